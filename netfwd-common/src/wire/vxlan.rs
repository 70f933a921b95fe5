//! VXLAN (RFC 7348) and VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe-13).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::reason::DropReason;

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

/// GPE reserved flag bits.
pub const GPE_RESERVED_MASK: u8 = 0xc0;

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

/// What a GPE header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpeHeader {
    /// The network identifier.
    pub vni: u32,
    /// IP version of the packet behind the header: 4 or 6.
    pub ip_version: u8,
}

/// Checks a VXLAN header as strictly as the kernel's device does and returns its VNI.
///
/// RFC 7348 §5: flag I "MUST be set to 1 for a valid VXLAN Network ID"; the other seven flags and both reserved fields
/// are sent as zero. Receivers may ignore them by the RFC, but the kernel drops what it has no extension for (`vxlan_rcv`), and
/// so do we: an extension changes the meaning of the packet.
#[inline(always)]
pub const fn check_vxlan(bytes: &[u8; HEADER_LEN]) -> Result<u32, DropReason> {
    match *bytes {
        [FLAG_VNI, 0, 0, 0, a, b, c, 0] => Ok(u32::from_be_bytes([0, a, b, c])),
        _ => Err(DropReason::TunnelHeader),
    }
}

/// Checks a VXLAN-GPE header of a tunnel that carries IP.
///
/// Version 0, flags I and P set, nothing reserved set (draft-ietf-nvo3-vxlan-gpe-13 §3.1); O packets are for the
/// tunnel's end point itself and must never be forwarded; a next protocol other than IPv4 and IPv6 is not ours to carry.
#[inline(always)]
pub const fn check_gpe(bytes: &[u8; HEADER_LEN]) -> Result<GpeHeader, DropReason> {
    let [flags, reserved_a, reserved_b, next_protocol, vni_a, vni_b, vni_c, reserved_c] = *bytes;
    let well_formed = flags & (GPE_RESERVED_MASK | GPE_VERSION_MASK) == 0
        && flags & FLAG_VNI != 0
        && flags & GPE_FLAG_NEXT_PROTOCOL != 0
        && reserved_a | reserved_b | reserved_c == 0;
    if !well_formed {
        return Err(DropReason::TunnelHeader);
    }
    if flags & GPE_FLAG_OAM != 0 {
        return Err(DropReason::Oam);
    }
    let vni = u32::from_be_bytes([0, vni_a, vni_b, vni_c]);
    match next_protocol {
        GPE_NEXT_IPV4 => Ok(GpeHeader { vni, ip_version: 4 }),
        GPE_NEXT_IPV6 => Ok(GpeHeader { vni, ip_version: 6 }),
        _ => Err(DropReason::UnknownProtocol),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VXLAN: [u8; HEADER_LEN] = [FLAG_VNI, 0, 0, 0, 0x12, 0x34, 0x56, 0];
    const GPE: [u8; HEADER_LEN] = [FLAG_VNI | GPE_FLAG_NEXT_PROTOCOL, 0, 0, GPE_NEXT_IPV4, 0x12, 0x34, 0x56, 0];

    #[test]
    fn vxlan_tolerates_no_bit_but_flag_i_and_the_vni() {
        assert_eq!(check_vxlan(&VXLAN), Ok(0x123456));
        for bit in (0..64).filter(|bit| !(32..56).contains(bit)) {
            let mut header = VXLAN;
            header[bit / 8] ^= 0x80 >> (bit % 8);
            assert_eq!(check_vxlan(&header), Err(DropReason::TunnelHeader), "bit {bit}");
        }
    }

    #[test]
    fn gpe_tolerates_no_reserved_bit_and_no_other_version() {
        assert_eq!(check_gpe(&GPE), Ok(GpeHeader { vni: 0x123456, ip_version: 4 }));
        for bit in (0..6).chain(8..24).chain(56..64) {
            let mut header = GPE;
            header[bit / 8] ^= 0x80 >> (bit % 8);
            assert_eq!(check_gpe(&header), Err(DropReason::TunnelHeader), "bit {bit}");
        }
    }

    #[test]
    fn gpe_says_why_it_cannot_be_forwarded() {
        let with = |change: fn(&mut [u8; HEADER_LEN])| {
            let mut header = GPE;
            change(&mut header);
            check_gpe(&header)
        };
        assert_eq!(with(|h| h[0] |= GPE_FLAG_OAM), Err(DropReason::Oam));
        assert_eq!(with(|h| h[3] = GPE_NEXT_ETHERNET), Err(DropReason::UnknownProtocol));
        assert_eq!(with(|h| h[3] = 0), Err(DropReason::UnknownProtocol));
        assert!(with(|h| h[0] |= GPE_FLAG_BUM).is_ok());
        assert_eq!(with(|h| h[3] = GPE_NEXT_IPV6).map(|gpe| gpe.ip_version), Ok(6));
    }
}
