//! The virtio-net header in front of each TUN/TAP frame (`struct virtio_net_hdr`, include/uapi/linux/virtio_net.h),
//! native endian, 10 bytes: what `TUNSETVNETHDRSZ` is set to.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Header length.
pub const HEADER_LEN: usize = 10;

/// `flags`: the checksum at `csum_start + csum_offset` is to be completed.
pub const NEEDS_CSUM: u8 = 1;

/// `gso_type`: not a superframe.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: UDP to be cut into datagrams of `gso_size` (kernel 6.2 and later).
pub const GSO_UDP_L4: u8 = 5;
/// `gso_type` bit: TCP with CWR, which belongs on the first segment only.
pub const GSO_ECN: u8 = 0x80;

/// The header. Fields are native endian and unaligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// `NEEDS_CSUM` or 0.
    pub flags: u8,
    /// One of the `GSO_*` constants.
    pub gso_type: u8,
    /// Length of all headers; untrustworthy on read (`tun_put_user` reports `skb_headlen` for forwarded frames).
    pub hdr_len: NativeU16,
    /// Payload bytes per segment.
    pub gso_size: NativeU16,
    /// Where checksumming starts.
    pub csum_start: NativeU16,
    /// Where the checksum is stored, counted from `csum_start`.
    pub csum_offset: NativeU16,
}

/// A native-endian `u16` without alignment.
pub type NativeU16 = zerocopy::byteorder::native_endian::U16;
