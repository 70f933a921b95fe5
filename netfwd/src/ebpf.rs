//! The eBPF object, as the build script made it: what ships is what is tested.

/// An ELF object with the XDP program `netfwd`, aligned as the ELF parser wants it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NETFWD_EBPF_OBJECT_PATH"));
