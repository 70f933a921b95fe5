//! The first eight bytes of a datagram: the tunnel header in front of the inner packet, or the start of a WireGuard message.
//!
//! The rules are [`vxlan::check_vxlan`], [`vxlan::check_gpe`] and [`crate::wire::wireguard::check`].

use zerocopy::transmute;

use crate::abi::TunnelKind;
use crate::checksum::Sum;
use crate::reason::DropReason;
use crate::wire::vxlan;
use crate::wire::wireguard::MessageType;

use super::Refusal;

/// Eight bytes as they came: two words in memory order.
pub(super) struct Header(pub [u32; 2]);

impl Header {
    #[inline(always)]
    pub fn vni(&self) -> u32 {
        u32::from_be(self.0[1]) >> 8
    }

    /// The type of a WireGuard message, if this begins one: no other header looks like that.
    #[inline(always)]
    pub fn message_type(&self) -> Option<MessageType> {
        MessageType::from_word(self.0[0])
    }

    /// The receiver index of a WireGuard data message, in memory order.
    #[inline(always)]
    pub fn receiver(&self) -> u32 {
        self.0[1]
    }

    #[inline(always)]
    pub fn sum(&self) -> Sum {
        Sum::ZERO.add_words(self.0)
    }
}

/// What a tunnel header says about the bytes behind it, or which message it begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Ethernet,
    Ipv4,
    Ipv6,
    Sealed(MessageType),
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
        TunnelKind::WireGuard => header.message_type().map(Content::Sealed).ok_or(DropReason::TunnelHeader),
    };
    content.map_err(Refusal::Drop)
}
