//! VXLAN (RFC 7348) and VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe-13).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Header length of both kinds.
pub const HEADER_LEN: usize = 8;
/// VXLAN's UDP port (IANA).
pub const PORT: u16 = 4789;
/// VXLAN-GPE's UDP port (IANA).
pub const GPE_PORT: u16 = 4790;
/// Highest VNI: 24 bits.
pub const MAX_VNI: u32 = (1 << 24) - 1;

/// Flag I: the VNI is valid.
pub const FLAG_VNI: u8 = 0x08;
/// GPE flag P: the next-protocol field is valid.
pub const GPE_FLAG_NEXT_PROTOCOL: u8 = 0x04;
/// GPE flag B: ingress-replicated broadcast, unknown unicast or multicast.
pub const GPE_FLAG_BUM: u8 = 0x02;
/// GPE flag O: operations, administration and maintenance; must never be forwarded.
pub const GPE_FLAG_OAM: u8 = 0x01;
/// GPE version field, two bits.
pub const GPE_VERSION_MASK: u8 = 0x30;

/// GPE next protocol: IPv4.
pub const GPE_NEXT_IPV4: u8 = 1;
/// GPE next protocol: IPv6.
pub const GPE_NEXT_IPV6: u8 = 2;
/// GPE next protocol: Ethernet.
pub const GPE_NEXT_ETHERNET: u8 = 3;

/// The header; for VXLAN everything but flag I and the VNI is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Flags.
    pub flags: u8,
    /// Reserved: sent as zero.
    pub reserved: [u8; 2],
    /// GPE: the protocol that follows. VXLAN: reserved.
    pub next_protocol: u8,
    /// VXLAN network identifier, big-endian.
    pub vni: [u8; 3],
    /// Reserved: sent as zero.
    pub reserved2: u8,
}

impl Header {
    /// The network identifier.
    pub const fn vni(&self) -> u32 {
        u32::from_be_bytes([0, self.vni[0], self.vni[1], self.vni[2]])
    }
}
