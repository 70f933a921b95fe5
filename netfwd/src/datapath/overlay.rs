//! What a packet from the TUN/TAP says about itself: where its IP header is, where it goes, which flow it belongs to.
//!
//! Routing, segmentation and encapsulation all need the same few facts. They are read once, here, into types that hold
//! only offsets inside the packet.
//!
//! The flow hash becomes the outer source port, so that the underlay spreads flows over paths and queues but never
//! reorders one. It covers addresses, protocol and ports. A fragment contributes its addresses only: later fragments
//! carry no ports, and hashing what the first one has would send one datagram over two paths.
//!
//! Deliberately absent: checking lengths and checksums. These packets come from the kernel's own stack; whether they
//! make sense is for their receiver to say.

use std::net::IpAddr;

use netfwd_common::reason::DropReason;
use netfwd_common::wire::{IPPROTO_TCP, IPPROTO_UDP, ethernet, ipv4, ipv6};
use zerocopy::FromBytes;

use super::flow::Family;
use super::packet::Link;
use super::vet;

/// The family of an IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Where the transport header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// IP protocol number.
    pub protocol: u8,
    /// From the start of the packet.
    pub offset: usize,
}

/// An IP header inside a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Family.
    pub version: Version,
    /// Where the header starts, from the start of the packet.
    pub offset: usize,
    /// TOS or traffic class.
    pub tos: u8,
    /// Destination address.
    pub destination: IpAddr,
    /// What follows; absent for fragments and for extension headers that hide it.
    pub transport: Option<Transport>,
}

/// A packet from the TUN/TAP, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Its IP header, if it has one; on an L3 tunnel it always does.
    pub network: Option<Network>,
    /// Hash of its flow.
    pub flow_hash: u64,
}

impl Overlay {
    /// Takes a packet apart. `seed` is the flow hash's key: the same for all workers, or a flow's port would change with
    /// the worker.
    pub fn parse(link: Link, packet: &[u8], seed: u64) -> Result<Self, DropReason> {
        match link {
            Link::Ethernet => Self::ethernet(packet, seed),
            Link::Ip => {
                let network = Network::parse(packet, 0)?;
                Ok(Self { flow_hash: network.flow_hash(packet, seed), network: Some(network) })
            }
        }
    }

    fn ethernet(packet: &[u8], seed: u64) -> Result<Self, DropReason> {
        let (header, _) = ethernet::Header::read_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        let network = ip_offset(packet, header.ethertype.get()).and_then(|offset| Network::parse(packet, offset).ok());
        let flow_hash = match &network {
            Some(network) => network.flow_hash(packet, seed),
            None => Hash(seed).bytes(&header.destination).bytes(&header.source).word(header.ethertype.get().into()).0,
        };
        Ok(Self { network, flow_hash })
    }
}

/// The `N` bytes at `offset`, if they are all there.
pub(super) fn load<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// Where the IP header starts behind an Ethernet header and up to two VLAN tags.
fn ip_offset(packet: &[u8], ethertype: u16) -> Option<usize> {
    let (mut offset, mut ethertype) = (ethernet::HEADER_LEN, ethertype);
    for _ in 0..ethernet::MAX_VLAN_TAGS {
        if matches!(ethertype, ethernet::ETHERTYPE_VLAN | ethernet::ETHERTYPE_QINQ) {
            ethertype = u16::from_be_bytes(load(packet, offset + 2)?);
            offset += ethernet::VLAN_TAG_LEN;
        }
    }
    matches!(ethertype, ethernet::ETHERTYPE_IPV4 | ethernet::ETHERTYPE_IPV6).then_some(offset)
}

impl Network {
    fn parse(packet: &[u8], offset: usize) -> Result<Self, DropReason> {
        let bytes = packet.get(offset..).ok_or(DropReason::Truncated)?;
        match bytes.first().ok_or(DropReason::Truncated)? >> 4 {
            4 => Self::ipv4(bytes, offset),
            6 => Self::ipv6(packet, offset),
            _ => Err(DropReason::NotIp),
        }
    }

    fn ipv4(bytes: &[u8], offset: usize) -> Result<Self, DropReason> {
        let (header, _) = ipv4::Header::ref_from_prefix(bytes).map_err(|_| DropReason::Truncated)?;
        if header.header_len() < ipv4::HEADER_LEN {
            return Err(DropReason::InnerHeader);
        }
        if header.header_len() > bytes.len() {
            return Err(DropReason::Truncated);
        }
        let transport = Transport { protocol: header.protocol, offset: offset + header.header_len() };
        Ok(Self {
            version: Version::V4,
            offset,
            tos: header.tos,
            destination: header.destination.into(),
            transport: (!header.is_fragment()).then_some(transport),
        })
    }

    fn ipv6(packet: &[u8], offset: usize) -> Result<Self, DropReason> {
        let bytes = packet.get(offset..).ok_or(DropReason::Truncated)?;
        let (header, _) = ipv6::Header::ref_from_prefix(bytes).map_err(|_| DropReason::Truncated)?;
        Ok(Self {
            version: Version::V6,
            offset,
            tos: header.traffic_class(),
            destination: header.destination.into(),
            transport: walk_extensions(packet, header.next_header, offset + ipv6::HEADER_LEN),
        })
    }

    /// Destination port of a UDP datagram, and of its first fragment.
    pub(super) fn udp_destination_port(&self, packet: &[u8]) -> Option<u16> {
        vet::udp_destination_port(packet.get(self.offset..)?, self.family())
    }

    /// Source address.
    pub(super) fn source(&self, packet: &[u8]) -> Option<IpAddr> {
        vet::source_address(packet.get(self.offset..)?, self.family())
    }

    fn family(&self) -> Family {
        match self.version {
            Version::V4 => Family::V4,
            Version::V6 => Family::V6,
        }
    }

    /// The RFC 3168 field in the low two bits of TOS.
    pub fn ecn(&self) -> u8 {
        self.tos & 0b11
    }

    fn flow_hash(&self, packet: &[u8], seed: u64) -> u64 {
        let addresses = match self.version {
            Version::V4 => packet.get(self.offset + 12..self.offset + 20),
            Version::V6 => packet.get(self.offset + 8..self.offset + 40),
        };
        let hash = Hash(seed).bytes(addresses.unwrap_or_default());
        let Some(Transport { protocol, offset }) = self.transport else { return hash.0 };
        let ports: [u8; 4] = match protocol {
            IPPROTO_TCP | IPPROTO_UDP => load(packet, offset).unwrap_or_default(),
            _ => [0; 4],
        };
        hash.word(u64::from(protocol) << 32 | u64::from(u32::from_ne_bytes(ports))).0
    }
}

/// Follows extension headers to the transport header (RFC 8200 §4).
fn walk_extensions(packet: &[u8], first: u8, start: usize) -> Option<Transport> {
    let (mut protocol, mut offset) = (first, start);
    // Every turn moves `offset` on by at least eight bytes, so the packet's end ends the walk.
    while ipv6::is_extension(protocol) {
        let [next, length] = load(packet, offset)?;
        offset += match protocol {
            ipv6::FRAGMENT => return None,
            ipv6::AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        protocol = next;
    }
    Some(Transport { protocol, offset })
}

/// A multiply-and-fold hash: good avalanche from a few instructions, keyed by its start value. Not for secrets.
struct Hash(u64);

impl Hash {
    fn word(self, word: u64) -> Self {
        // The odd constant is 2^64 / golden ratio; the second one keeps a zero from sticking.
        let product = u128::from(self.0 ^ word) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
        Self((product as u64) ^ ((product >> 64) as u64) ^ 0xd6e8_feb8_6659_fd93)
    }

    fn bytes(self, bytes: &[u8]) -> Self {
        bytes.chunks(8).fold(self, |hash, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash.word(u64::from_ne_bytes(word))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4302 §2.2: the authentication header counts words of four bytes, all others words of eight (RFC 8200 §4).
    #[test]
    fn every_extension_header_is_as_long_as_its_kind_says() {
        for (kind, len, expected) in
            [(ipv6::HOP_BY_HOP, 0, 8), (ipv6::DESTINATION_OPTIONS, 2, 24), (ipv6::AUTHENTICATION, 4, 24)]
        {
            let mut packet = vec![0; 40 + 64];
            (packet[0], packet[6], packet[40], packet[41]) = (0x60, kind, IPPROTO_TCP, len);
            let overlay = Overlay::parse(Link::Ip, &packet, 0).expect("a packet");
            let transport = Transport { protocol: IPPROTO_TCP, offset: 40 + expected };
            assert_eq!(overlay.network.and_then(|network| network.transport), Some(transport), "{kind}");
        }
    }
}
