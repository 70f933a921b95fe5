//! Ethernet, VLAN tags, IPv4 or IPv6, UDP: everything in front of the tunnel header.

use zerocopy::transmute;

use crate::abi::{EndpointKey, FLAG_UDP6_ZERO_CSUM_RX, map_ipv4};
use crate::checksum::Sum;
use crate::cursor::Cursor;
use crate::reason::{DropReason, PassReason};
use crate::wire::{IPPROTO_UDP, ethernet, ipv4, ipv6, udp};

use super::Refusal;

/// Most VLAN tags that are looked behind, outside and inside.
const MAX_VLAN_TAGS: usize = 2;

/// The outer headers of a UDP datagram.
pub(super) struct Outer {
    pub local: [u8; 16],
    pub remote: [u8; 16],
    pub port: u16,
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
    /// The IPv4 header's checksum is right, or there is none.
    pub header_intact: bool,
}

impl Outer {
    pub fn endpoint(&self) -> EndpointKey {
        EndpointKey { local: self.local, port: self.port, reserved: 0 }
    }
}

/// The EtherType behind at most two VLAN tags, and where its payload starts.
#[inline(always)]
pub(super) fn ethertype(frame: &(impl Cursor + ?Sized), start: usize) -> Option<(u16, usize)> {
    let mut offset = start + ethernet::HEADER_LEN;
    let mut ethertype = u16::from_be_bytes(frame.load(offset - 2)?);
    for _ in 0..MAX_VLAN_TAGS {
        if !matches!(ethertype, ethernet::ETHERTYPE_VLAN | ethernet::ETHERTYPE_QINQ) {
            break;
        }
        offset += ethernet::VLAN_TAG_LEN;
        ethertype = u16::from_be_bytes(frame.load(offset - 2)?);
    }
    Some((ethertype, offset))
}

/// Parses down to the UDP header. Whatever is malformed or unusual this far is the kernel's to judge.
#[inline(always)]
pub(super) fn parse(frame: &(impl Cursor + ?Sized)) -> Result<Outer, Refusal> {
    let (ethertype, offset) = ethertype(frame, 0).ok_or(Refusal::Pass(PassReason::TooShort))?;
    match ethertype {
        ethernet::ETHERTYPE_IPV4 => parse_ipv4(frame, offset),
        ethernet::ETHERTYPE_IPV6 => parse_ipv6(frame, offset),
        _ => Err(Refusal::Pass(PassReason::NotIp)),
    }
}

#[inline(always)]
fn parse_ipv4(frame: &(impl Cursor + ?Sized), offset: usize) -> Result<Outer, Refusal> {
    let bytes: [u8; ipv4::HEADER_LEN] = frame.load(offset).ok_or(Refusal::Pass(PassReason::TooShort))?;
    let ip: ipv4::Header = transmute!(bytes);
    if ip.version() != 4 || ip.header_len() < ipv4::HEADER_LEN {
        return Err(Refusal::Pass(PassReason::NotIp));
    }
    if ip.protocol != IPPROTO_UDP {
        return Err(Refusal::Pass(PassReason::NotUdp));
    }
    if ip.is_fragment() {
        return Err(Refusal::Pass(PassReason::Fragment));
    }
    if ip.header_len() != ipv4::HEADER_LEN {
        return Err(Refusal::Pass(PassReason::IpOptions));
    }
    let udp_offset = offset + ipv4::HEADER_LEN;
    let udp = load_udp(frame, udp_offset)?;
    let pseudo = Sum::pseudo_ipv4(&ip.source, &ip.destination, IPPROTO_UDP, udp.length.get());
    Ok(Outer {
        local: map_ipv4(ip.destination),
        remote: map_ipv4(ip.source),
        port: udp.destination_port.get(),
        ecn: ip.tos & 3,
        is_ipv6: false,
        ip_end: offset + usize::from(ip.total_length.get()),
        udp_offset,
        udp_length: usize::from(udp.length.get()),
        udp_checksum: transmute!(udp.checksum),
        sum: pseudo + sum_udp(&udp),
        pseudo,
        header_intact: Sum::ZERO.add(&bytes).is_valid(),
    })
}

#[inline(always)]
fn parse_ipv6(frame: &(impl Cursor + ?Sized), offset: usize) -> Result<Outer, Refusal> {
    let bytes: [u8; ipv6::HEADER_LEN] = frame.load(offset).ok_or(Refusal::Pass(PassReason::TooShort))?;
    let ip: ipv6::Header = transmute!(bytes);
    if ip.version() != 6 {
        return Err(Refusal::Pass(PassReason::NotIp));
    }
    match ip.next_header {
        IPPROTO_UDP => {}
        ipv6::FRAGMENT => return Err(Refusal::Pass(PassReason::Fragment)),
        next if ipv6::is_extension(next) => return Err(Refusal::Pass(PassReason::Ipv6Extension)),
        _ => return Err(Refusal::Pass(PassReason::NotUdp)),
    }
    let udp_offset = offset + ipv6::HEADER_LEN;
    let udp = load_udp(frame, udp_offset)?;
    let pseudo = Sum::pseudo_ipv6(&ip.source, &ip.destination, IPPROTO_UDP, u32::from(udp.length.get()));
    Ok(Outer {
        local: ip.destination,
        remote: ip.source,
        port: udp.destination_port.get(),
        ecn: ip.traffic_class() & 3,
        is_ipv6: true,
        ip_end: udp_offset + usize::from(ip.payload_length.get()),
        udp_offset,
        udp_length: usize::from(udp.length.get()),
        udp_checksum: transmute!(udp.checksum),
        sum: pseudo + sum_udp(&udp),
        pseudo,
        header_intact: true,
    })
}

#[inline(always)]
fn load_udp(frame: &(impl Cursor + ?Sized), offset: usize) -> Result<udp::Header, Refusal> {
    let bytes: [u8; udp::HEADER_LEN] = frame.load(offset).ok_or(Refusal::Pass(PassReason::TooShort))?;
    Ok(transmute!(bytes))
}

#[inline(always)]
fn sum_udp(header: &udp::Header) -> Sum {
    let bytes: [u8; udp::HEADER_LEN] = transmute!(*header);
    Sum::ZERO.add(&bytes)
}

/// "A zero checksum over IPv6 is dropped unless the port is configured for it" (RFC 6935 §5); over IPv4 it means absent.
#[inline(always)]
pub(super) fn check_zero_checksum(outer: &Outer, flags: u8) -> Result<(), Refusal> {
    if outer.is_ipv6 && outer.udp_checksum == 0 && flags & FLAG_UDP6_ZERO_CSUM_RX == 0 {
        return Err(Refusal::Drop(DropReason::OuterUdpZeroChecksum));
    }
    Ok(())
}
