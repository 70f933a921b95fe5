//! The tunnel header between the outer and the inner packet; its rules are [`vxlan::check_vxlan`] and [`vxlan::check_gpe`].

use zerocopy::transmute;

use crate::abi::TunnelKind;
use crate::checksum::Sum;
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
    let bytes: [u8; vxlan::HEADER_LEN] = transmute!(header.0);
    let content = match kind {
        TunnelKind::Vxlan => vxlan::check_vxlan(&bytes).map(|_| Content::Ethernet),
        TunnelKind::VxlanGpe => vxlan::check_gpe(&bytes).map(|gpe| match gpe.ip_version {
            6 => Content::Ipv6,
            _ => Content::Ipv4,
        }),
        // Never steered from here: the kernel's socket gets it.
        TunnelKind::WireGuard => Err(crate::reason::DropReason::TunnelHeader),
    };
    content.map_err(Refusal::Drop)
}
