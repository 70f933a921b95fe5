//! Ethernet, VLAN tags, IPv4 or IPv6, UDP: everything in front of the tunnel header.

use zerocopy::transmute;

use crate::abi::FLAG_UDP6_ZERO_CSUM_RX;
use crate::checksum::Sum;
use crate::cursor::Cursor;
use crate::reason::{DropReason, PassReason};
use crate::wire::{IPPROTO_UDP, ethernet, ipv4, ipv6, udp};

use super::exact::{Address, Match, Origin, find};
use super::{Lookup, Refusal};

/// The outer headers of a UDP datagram.
pub(super) struct Outer {
    pub ecn: u8,
    pub is_ipv6: bool,
    /// Where the IP packet ends by its own account.
    pub ip_end: usize,
    pub udp_offset: usize,
    pub udp_length: usize,
    /// The UDP checksum field in memory order; 0 means absent.
    pub udp_checksum: u16,
    /// Pseudo-header and UDP header, checksum field included.
    pub sum: Sum,
    /// Pseudo-header alone.
    pub pseudo: Sum,
    /// The IPv4 header, or something valid where there is no checksum.
    pub header: Sum,
}

/// `abi::map_ipv4` over a word.
#[inline(always)]
fn map_ipv4(address: u32) -> Address {
    [0, 0, 0xffff_u32.to_be(), address]
}

/// An Ethernet header with its tags.
pub(super) struct Link {
    /// What follows.
    pub ethertype: u16,
    pub len: usize,
    /// The sum of all `len` bytes.
    pub sum: Sum,
}

impl Link {
    /// No Ethernet header at all: an L3 tunnel's packet.
    pub const NONE: Self = Self { ethertype: 0, len: 0, sum: Sum::ZERO };
}

/// Looks behind at most two VLAN tags.
#[inline(always)]
pub(super) fn parse_link(frame: impl Cursor) -> Option<Link> {
    let mut len = ethernet::HEADER_LEN;
    let mut ethertype = frame.load_u16(len - 2)?;
    let mut sum = Sum::ZERO.add_words::<3>(frame.load_words(0)?);
    for _ in 0..ethernet::MAX_VLAN_TAGS {
        if !matches!(ethertype, ethernet::ETHERTYPE_VLAN | ethernet::ETHERTYPE_QINQ) {
            break;
        }
        sum = sum.add_words::<1>(frame.load_words(len - 2)?);
        len += ethernet::VLAN_TAG_LEN;
        ethertype = frame.load_u16(len - 2)?;
    }
    Some(Link { ethertype, len, sum: sum.add_u16(ethertype) })
}

/// Whether the Ethernet destination is `station` ([`crate::abi::station`]), or that is nobody.
///
/// A switch floods frames for others, and a promiscuous card delivers them: the kernel tells them by their type
/// (`eth_type_trans`, `ip_rcv`), which XDP comes before.
#[inline(always)]
pub(super) fn is_for_us(frame: impl Cursor, station: [u32; 2]) -> bool {
    const DESTINATION: u32 = u32::from_ne_bytes([0xff, 0xff, 0, 0]);
    let Some([first, second]) = frame.load_words(0) else { return false };
    station == [0; 2] || ((first ^ station[0]) | ((second & DESTINATION) ^ station[1])) == 0
}

/// Parses down to the UDP header. Whatever is malformed or unusual this far is the kernel's to judge.
#[inline(always)]
pub(super) fn parse(frame: impl Cursor, lookup: &impl Lookup) -> Result<(Outer, Match), Refusal> {
    let link = parse_link(frame).ok_or(Refusal::Pass(PassReason::TooShort))?;
    let packet = frame.skip(link.len);
    match link.ethertype {
        ethernet::ETHERTYPE_IPV4 => parse_ipv4(packet, link.len, lookup),
        ethernet::ETHERTYPE_IPV6 => parse_ipv6(packet, link.len, lookup),
        _ => Err(Refusal::Pass(PassReason::NotIp)),
    }
}

#[inline(always)]
fn parse_ipv4(packet: impl Cursor, offset: usize, lookup: &impl Lookup) -> Result<(Outer, Match), Refusal> {
    let words: [u32; 5] = packet.load_words(0).ok_or(Refusal::Pass(PassReason::TooShort))?;
    let ip: ipv4::Header = transmute!(words);
    if ip.version_ihl != ipv4::PLAIN || ip.protocol != IPPROTO_UDP || ip.is_fragment() {
        return Err(Refusal::Pass(not_plain_udp(&ip)));
    }
    let (udp, udp_sum) = load_udp(packet, ipv4::HEADER_LEN)?;
    let pseudo = pseudo([words[3], words[4]], IPPROTO_UDP, udp.length.get());
    let origin = Origin { local: map_ipv4(words[4]), remote: map_ipv4(words[3]), port: udp.destination_port.get() };
    let outer = Outer {
        ecn: ip.tos & 3,
        is_ipv6: false,
        ip_end: offset + usize::from(ip.total_length.get()),
        udp_offset: offset + ipv4::HEADER_LEN,
        udp_length: usize::from(udp.length.get()),
        udp_checksum: transmute!(udp.checksum),
        sum: pseudo + udp_sum,
        pseudo,
        header: Sum::ZERO.add_words(words),
    };
    let found = find(packet, ipv4::HEADER_LEN, &outer, &origin, lookup)?;
    Ok((outer, found))
}

/// What keeps an IPv4 packet from being a datagram that can be read here.
#[cold]
#[inline(always)]
fn not_plain_udp(ip: &ipv4::Header) -> PassReason {
    if ip.version() != 4 || ip.header_len() < ipv4::HEADER_LEN {
        PassReason::NotIp
    } else if ip.protocol != IPPROTO_UDP {
        PassReason::NotUdp
    } else if ip.is_fragment() {
        PassReason::Fragment
    } else {
        PassReason::IpOptions
    }
}

#[inline(always)]
fn parse_ipv6(packet: impl Cursor, offset: usize, lookup: &impl Lookup) -> Result<(Outer, Match), Refusal> {
    let words: [u32; 10] = packet.load_words(0).ok_or(Refusal::Pass(PassReason::TooShort))?;
    let ip: ipv6::Header = transmute!(words);
    let [_, _, addresses @ ..] = words;
    if ip.version() != 6 {
        return Err(Refusal::Pass(PassReason::NotIp));
    }
    match ip.next_header {
        IPPROTO_UDP => {}
        ipv6::FRAGMENT => return Err(Refusal::Pass(PassReason::Fragment)),
        next if ipv6::is_extension(next) => return Err(Refusal::Pass(PassReason::Ipv6Extension)),
        _ => return Err(Refusal::Pass(PassReason::NotUdp)),
    }
    let (udp, udp_sum) = load_udp(packet, ipv6::HEADER_LEN)?;
    let pseudo = pseudo(addresses, IPPROTO_UDP, udp.length.get());
    let origin = Origin {
        local: [words[6], words[7], words[8], words[9]],
        remote: [words[2], words[3], words[4], words[5]],
        port: udp.destination_port.get(),
    };
    let outer = Outer {
        ecn: ip.traffic_class() & 3,
        is_ipv6: true,
        ip_end: offset + ipv6::HEADER_LEN + usize::from(ip.payload_length.get()),
        udp_offset: offset + ipv6::HEADER_LEN,
        udp_length: usize::from(udp.length.get()),
        udp_checksum: transmute!(udp.checksum),
        sum: pseudo + udp_sum,
        pseudo,
        header: Sum::VALID,
    };
    let found = find(packet, ipv6::HEADER_LEN, &outer, &origin, lookup)?;
    Ok((outer, found))
}

/// The UDP header and its sum.
#[inline(always)]
fn load_udp(packet: impl Cursor, offset: usize) -> Result<(udp::Header, Sum), Refusal> {
    let words: [u32; 2] = packet.load_words(offset).ok_or(Refusal::Pass(PassReason::TooShort))?;
    Ok((transmute!(words), Sum::ZERO.add_words(words)))
}

/// The pseudo-header of either family: both addresses as words, the protocol and the L4 length (RFC 768, RFC 8200 §8.1;
/// they differ only in zero bytes).
#[inline(always)]
pub(super) fn pseudo<const N: usize>(addresses: [u32; N], protocol: u8, length: u16) -> Sum {
    Sum::ZERO.add_words(addresses).add_u16(u16::from(protocol)).add_u16(length)
}

/// "A zero checksum over IPv6 is dropped unless the port is configured for it" (RFC 6935 §5); over IPv4 it means absent.
#[inline(always)]
pub(super) fn check_zero_checksum(outer: &Outer, flags: u8) -> Result<(), Refusal> {
    if outer.udp_checksum == 0 && outer.is_ipv6 && flags & FLAG_UDP6_ZERO_CSUM_RX == 0 {
        return Err(Refusal::Drop(DropReason::OuterUdpZeroChecksum));
    }
    Ok(())
}
