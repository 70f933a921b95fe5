//! The tunnel headers' strict rules.

use crate::abi::TunnelKind;
use crate::checksum::Sum;
use crate::reason::DropReason;
use crate::wire::vxlan;

use super::Refusal;

/// A VXLAN or VXLAN-GPE header as it came: two words in memory order.
pub(super) struct Header(pub [u32; 2]);

impl Header {
    #[inline(always)]
    pub fn vni(&self) -> u32 {
        u32::from_be(self.0[1]) >> 8
    }

    #[inline(always)]
    pub fn sum(&self) -> Sum {
        Sum::ZERO.add_words(self.0)
    }
}

/// What a tunnel header says about the bytes behind it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Ethernet,
    Ipv4,
    Ipv6,
}

/// Applies the rules of the endpoint's kind.
#[inline(always)]
pub(super) fn check(kind: TunnelKind, header: &Header) -> Result<Content, Refusal> {
    // The byte behind the VNI is reserved in both.
    if u32::from_be(header.0[1]) & 0xff != 0 {
        return Err(Refusal::Drop(DropReason::TunnelHeader));
    }
    match kind {
        TunnelKind::Vxlan => check_vxlan(header),
        TunnelKind::VxlanGpe => check_gpe(header),
    }
}

/// RFC 7348 §5: flag I set, the other flags and the reserved fields zero. The RFC says that receivers ignore the reserved bits;
/// the kernel drops what it has no extension for (`vxlan_rcv`), and so do we: an unknown extension changes the format.
#[inline(always)]
fn check_vxlan(header: &Header) -> Result<Content, Refusal> {
    if header.0[0] != u32::from_ne_bytes([vxlan::FLAG_VNI, 0, 0, 0]) {
        return Err(Refusal::Drop(DropReason::TunnelHeader));
    }
    Ok(Content::Ethernet)
}

/// draft-ietf-nvo3-vxlan-gpe-13 §3: version 0, I and P set; O marks packets that must not be forwarded; B is tolerated.
#[inline(always)]
fn check_gpe(header: &Header) -> Result<Content, Refusal> {
    const REQUIRED: u8 = vxlan::FLAG_VNI | vxlan::GPE_FLAG_NEXT_PROTOCOL;
    const OPTIONAL: u8 = vxlan::GPE_FLAG_BUM | vxlan::GPE_FLAG_OAM;
    let [flags, reserved, reserved2, next] = header.0[0].to_ne_bytes();
    if flags & !OPTIONAL != REQUIRED || reserved | reserved2 != 0 {
        return Err(Refusal::Drop(DropReason::TunnelHeader));
    }
    if flags & vxlan::GPE_FLAG_OAM != 0 {
        return Err(Refusal::Drop(DropReason::Oam));
    }
    match next {
        vxlan::GPE_NEXT_IPV4 => Ok(Content::Ipv4),
        vxlan::GPE_NEXT_IPV6 => Ok(Content::Ipv6),
        _ => Err(Refusal::Drop(DropReason::UnknownProtocol)),
    }
}
