//! What all packets of a run have in common.
//!
//! Most of the rules that decide about joining demand that a field equals the seed's. All those fields stand here in a few
//! words, copied from the headers. So equality, which matters, takes few comparisons; only a difference is looked for byte
//! by byte, in the order of the rules, and then what may differ is left out.
//!
//! Words are in memory order: nothing is swapped, and the masks are written byte by byte.

use netfwd_common::reason::FlushReason;
use netfwd_common::wire::tcp::{FIN, PSH};
use netfwd_common::wire::{ipv4, ipv6, tcp};
use zerocopy::IntoBytes;

use crate::datapath::flow::{Family, FlowKey};

/// Everything in a packet's headers that must equal the seed's, and beside it the packet's length and its PSH and FIN:
/// they may differ, but mostly do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Common {
    /// Tunnel, protocol, addresses, ports.
    pub key: FlowKey,
    /// The first eight bytes of the IP header, its length field included; IPv4's TTL in place of the ID.
    pub network: u64,
    /// What TCP or UDP adds.
    pub transport: Transport,
    /// Bytes in front of the IP header: the whole Ethernet header on TAP.
    pub ip: u16,
}

/// The fields of TCP or UDP that must equal the seed's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Transport {
    /// TCP: acknowledgement number, data offset, flags, window.
    pub word: u64,
    /// TCP: options, where they are twelve bytes (timestamps with their padding, by far the most common).
    pub options: [u8; 12],
    /// TCP: urgent pointer. UDP: whether the datagram has no checksum.
    pub extra: u16,
}

/// All but the ID, whose place is free for the TTL.
const IPV4_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0, 0xff, 0xff]);
/// Of TCP's bytes 8 to 15 what must be equal: all but PSH and FIN.
const TCP_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, !(PSH | FIN), 0xff, 0xff]);

/// [`Common::network`] of an IPv4 header.
#[inline(always)]
pub(super) fn ipv4_word(header: &ipv4::Header) -> u64 {
    (word_at(header.as_bytes(), 0) & IPV4_MASK) | u64::from_ne_bytes([0, 0, 0, 0, header.ttl, 0, 0, 0])
}

/// [`Common::network`] of an IPv6 header.
#[inline(always)]
pub(super) fn ipv6_word(header: &ipv6::Header) -> u64 {
    word_at(header.as_bytes(), 0)
}

/// [`Transport::word`] of a TCP header.
#[inline(always)]
pub(super) fn tcp_word(header: &tcp::Header) -> u64 {
    word_at(header.as_bytes(), 8)
}

#[inline(always)]
fn word_at(header: &[u8], at: usize) -> u64 {
    header.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

impl Common {
    /// The first network-layer rule by which `packet` differs.
    pub fn network_difference(&self, packet: &Self) -> Option<FlushReason> {
        let difference = (self.network ^ packet.network).to_ne_bytes();
        match (self.key.family(), difference) {
            (Family::V4, [_, tos, ..]) if tos != 0 => Some(FlushReason::Tos),
            (Family::V4, [_, _, _, _, ttl, ..]) if ttl != 0 => Some(FlushReason::Ttl),
            (Family::V4, [.., 0, 0]) => None,
            (Family::V4, _) => Some(FlushReason::DontFragment),
            (Family::V6, [high, low, ..]) if high | low & 0xf0 != 0 => Some(FlushReason::Tos),
            (Family::V6, [.., hop_limit]) if hop_limit != 0 => Some(FlushReason::Ttl),
            (Family::V6, [_, 0, 0, 0, ..]) => None,
            (Family::V6, _) => Some(FlushReason::FlowLabel),
        }
    }
}

impl Transport {
    /// The first of TCP's rules by which `packet` differs.
    pub fn tcp_difference(&self, packet: &Self) -> Option<FlushReason> {
        match ((self.word ^ packet.word) & TCP_MASK).to_ne_bytes() {
            [0, 0, 0, 0, _, _, 0, 0] if self.extra != packet.extra => Some(FlushReason::Urgent),
            [0, 0, 0, 0, 0, 0, 0, 0] if self.options == packet.options => None,
            [0, 0, 0, 0, _, 0, 0, 0] => Some(FlushReason::TcpOptions),
            [0, 0, 0, 0, _, _, 0, 0] => Some(FlushReason::FlagsDiffer),
            [0, 0, 0, 0, ..] => Some(FlushReason::Window),
            _ => Some(FlushReason::Acknowledgement),
        }
    }

    /// UDP's rule: all with a checksum or none.
    pub fn udp_difference(&self, packet: &Self) -> Option<FlushReason> {
        (self.extra != packet.extra).then_some(FlushReason::UdpZeroChecksum)
    }
}
