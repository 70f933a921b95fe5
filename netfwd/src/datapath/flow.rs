//! Which flow an inner packet belongs to.
//!
//! The problem: coalescing needs a flow's newest run within nanoseconds, tenants with the same inner addresses must never
//! meet, and senders choose addresses and ports, so they must not be able to choose hash collisions either.
//!
//! Invariants: a [`FlowKey`] holds the whole identity (tunnel, family, protocol, addresses, ports) and is compared in
//! full; the hash only finds it. The hash is keyed with a secret that the caller draws at start. Reading never goes past
//! the slice.
//!
//! Deliberately absent: the hash in XDP's metadata record. It is sixteen bits wide and not keyed; mixing our own from
//! bytes that are in the cache anyway costs about two nanoseconds.

use netfwd_common::wire::{ethernet, ipv4, ipv6};

use super::packet::{Link, TunnelIndex};
use super::stats::Proto;

/// The IP version of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

/// Where the IP header of an inner packet starts, and what it claims to be.
///
/// `None`: not IP. On L2, up to two VLAN tags are stepped over and the EtherType decides; the IP header's own version
/// may still contradict it. On L3 the version nibble decides.
#[inline]
pub fn locate_ip(link: Link, bytes: &[u8]) -> Option<(usize, Family)> {
    match link {
        Link::Ip => match bytes.first()? >> 4 {
            4 => Some((0, Family::V4)),
            6 => Some((0, Family::V6)),
            _ => None,
        },
        Link::Ethernet => locate_behind_ethernet(bytes),
    }
}

#[inline]
fn locate_behind_ethernet(bytes: &[u8]) -> Option<(usize, Family)> {
    let mut offset = ethernet::HEADER_LEN;
    for _ in 0..=2 {
        let ethertype = u16::from_be_bytes(*bytes.get(..offset)?.last_chunk()?);
        match ethertype {
            ethernet::ETHERTYPE_IPV4 => return Some((offset, Family::V4)),
            ethernet::ETHERTYPE_IPV6 => return Some((offset, Family::V6)),
            ethernet::ETHERTYPE_VLAN | ethernet::ETHERTYPE_QINQ => offset += ethernet::VLAN_TAG_LEN,
            _ => return None,
        }
    }
    None
}

/// A flow's whole identity, packed so that comparing it is two word compares for IPv4 and five for IPv6.
#[derive(Clone, Copy, Debug, Default, Eq)]
pub struct FlowKey {
    /// From the low end: tunnel, protocol, family, ports.
    ///
    /// The tunnel comes first so that it is read as the two bytes that were just written. Shifted up, its neighbours in
    /// the packet would be read along, and a read of several fresh stores waits for all of them.
    head: u64,
    /// Source and destination; IPv4 fills the first word only.
    addresses: [u64; 4],
}

/// Tunnel, family and addresses of a packet: what all flows between two hosts have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPair {
    head: u64,
    addresses: [u64; 4],
}

/// In `head`: the addresses are IPv6.
const IPV6: u64 = 1 << 24;
/// In `head`: what all flows of an address pair share.
const PAIR: u64 = IPV6 | 0xffff;

impl AddressPair {
    /// Of an IPv4 header.
    #[inline]
    pub fn ipv4(tunnel: TunnelIndex, header: &ipv4::Header) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (header.source, header.destination);
        let addresses = [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), 0, 0, 0];
        Self { head: u64::from(tunnel.0), addresses }
    }

    /// Of an IPv6 header.
    #[inline]
    pub fn ipv6(tunnel: TunnelIndex, header: &ipv6::Header) -> Self {
        let (source, destination) = (words(&header.source), words(&header.destination));
        let addresses = [source[0], source[1], destination[0], destination[1]];
        Self { head: u64::from(tunnel.0) | IPV6, addresses }
    }

    /// The flow of this pair with `protocol` and `ports`, the first four bytes of a TCP or UDP header.
    #[inline]
    pub fn flow(&self, protocol: u8, ports: [u8; 4]) -> FlowKey {
        let head = self.head | (u64::from(protocol) << 16) | (u64::from(u32::from_ne_bytes(ports)) << 32);
        FlowKey { head, addresses: self.addresses }
    }

    /// The pair's hash under `secret`.
    #[inline]
    pub fn hash(&self, secret: u64) -> u64 {
        hash(self.head, &self.addresses, secret)
    }
}

impl PartialEq for FlowKey {
    /// Word by word: a key is compared right after it was put together, and wider loads would wait for its stores.
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let [a, b, c, d] = self.addresses;
        let [w, x, y, z] = other.addresses;
        self.head == other.head && a == w && (self.head & IPV6 == 0 || (b == x && c == y && d == z))
    }
}

impl FlowKey {
    /// The key's hash under `secret`.
    #[inline(always)]
    pub fn hash(&self, secret: u64) -> u64 {
        hash(self.head, &self.addresses, secret)
    }

    /// The pair whose flow this is.
    pub fn pair(&self) -> AddressPair {
        AddressPair { head: self.head & PAIR, addresses: self.addresses }
    }

    /// TCP, UDP or neither.
    pub fn proto(&self) -> Proto {
        Proto::of((self.head >> 16) as u8)
    }

    /// The IP version.
    pub fn family(&self) -> Family {
        if self.head & IPV6 == 0 { Family::V4 } else { Family::V6 }
    }
}

/// Both factors of each product are secret: a sender who could make one zero would choose the hash.
#[inline(always)]
fn hash(head: u64, addresses: &[u64; 4], secret: u64) -> u64 {
    let [a, b, c, d] = *addresses;
    let other = secret.rotate_left(29) ^ 0xd6e8_feb8_6659_fd93;
    if head & IPV6 == 0 {
        return mix(a ^ secret, head ^ other);
    }
    let low = mix(a ^ secret, b ^ secret.rotate_left(17) ^ 0x9e37_79b9_7f4a_7c15);
    let high = mix(c ^ secret.rotate_left(32), d ^ secret.rotate_left(49) ^ 0xc2b2_ae3d_27d4_eb4f);
    mix(low ^ head, high ^ other)
}

fn words(address: &[u8; 16]) -> [u64; 2] {
    let wide = u128::from_ne_bytes(*address);
    [wide as u64, (wide >> 64) as u64]
}

/// Folded 64 × 64 → 128 bit multiplication: every input bit reaches both ends of the product.
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4_pair(tunnel: u16, source: [u8; 4], destination: [u8; 4]) -> AddressPair {
        let header = ipv4::Header {
            version_ihl: 0x45,
            tos: 0,
            total_length: 20.into(),
            id: 0.into(),
            fragment: 0.into(),
            ttl: 64,
            protocol: 17,
            checksum: 0.into(),
            source,
            destination,
        };
        AddressPair::ipv4(TunnelIndex(tunnel), &header)
    }

    #[test]
    fn every_part_of_the_identity_matters() {
        let base = ipv4_pair(1, [10, 0, 0, 1], [10, 0, 0, 2]).flow(6, [1, 2, 3, 4]);
        let others = [
            ipv4_pair(2, [10, 0, 0, 1], [10, 0, 0, 2]).flow(6, [1, 2, 3, 4]),
            ipv4_pair(1, [10, 0, 0, 2], [10, 0, 0, 1]).flow(6, [1, 2, 3, 4]),
            ipv4_pair(1, [10, 0, 0, 1], [10, 0, 0, 2]).flow(17, [1, 2, 3, 4]),
            ipv4_pair(1, [10, 0, 0, 1], [10, 0, 0, 2]).flow(6, [3, 4, 1, 2]),
        ];
        for other in others {
            assert_ne!(base, other);
            assert_ne!(base.hash(7), other.hash(7));
        }
    }

    #[test]
    fn flows_between_two_hosts_share_the_pair() {
        let pair = ipv4_pair(1, [10, 0, 0, 1], [10, 0, 0, 2]);
        assert_eq!(pair.flow(6, [1, 2, 3, 4]).pair(), pair);
        assert_eq!(pair.flow(17, [9, 9, 9, 9]).pair(), pair);
    }

    #[test]
    fn neighbouring_flows_spread_over_the_table() {
        let pair = ipv4_pair(0, [10, 0, 0, 1], [10, 0, 0, 2]);
        let mut slots = [0u32; 512];
        for port in 0..512u16 {
            let [a, b] = port.to_be_bytes();
            slots[pair.flow(6, [a, b, 0, 80]).hash(0x1234_5678_9abc_def0) as usize % 512] += 1;
        }
        assert!(slots.iter().all(|&count| count < 10), "512 flows in 512 slots crowd nowhere");
    }

    #[test]
    fn ip_is_found_behind_up_to_two_tags() {
        let mut frame = vec![0; 12];
        for (tags, expected) in [(0, Some(14)), (1, Some(18)), (2, Some(22)), (3, None)] {
            frame.truncate(12);
            frame.extend((0..tags).flat_map(|_| [0x81, 0, 0, 1]));
            frame.extend([0x08, 0x00]);
            assert_eq!(locate_ip(Link::Ethernet, &frame), expected.map(|offset| (offset, Family::V4)));
        }
        assert_eq!(locate_ip(Link::Ethernet, &frame[..13]), None);
        assert_eq!(locate_ip(Link::Ip, &[]), None);
    }
}
