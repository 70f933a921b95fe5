//! The eBPF objects, as the build script made them: what ships is what is tested. Each is ELF, aligned as the parser wants it.

/// The XDP program `netfwd` and its maps.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NETFWD_EBPF_OBJECT_PATH"));

/// What chooses the queues of TUN and TAP devices: the programs `tun` and `tap`.
pub static STEERING: &[u8] = aya::include_bytes_aligned!(env!("NETFWD_EBPF_STEERING_PATH"));
