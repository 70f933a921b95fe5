//! A number that is the same for all packets of a flow, and of which the kernel makes a queue of a TUN or TAP device.
//!
//! Ports count only where every packet of the flow has them. Fragments, other protocols than TCP and UDP, and what is behind
//! an IPv6 extension header, the fragment header among them, go by their addresses.
//!
//! What is no IP, or too short for what it says it is, has no flow: [`NO_FLOW`]. Deliberately absent: whether the headers are
//! right, which is the kernel's to judge.

use zerocopy::transmute;

use crate::cursor::Cursor;
use crate::flow_hash::{fold, mix};
use crate::wire::{IPPROTO_TCP, IPPROTO_UDP, ethernet, ipv4};

/// What has no flow goes to the first queue.
pub const NO_FLOW: u16 = 0;

/// The flow of what a TUN device carries: an IP packet.
#[inline(always)]
pub fn flow_of_packet(packet: impl Cursor) -> u16 {
    hash(packet).map_or(NO_FLOW, fold)
}

/// The flow of what a TAP device carries: an Ethernet frame.
#[inline(always)]
pub fn flow_of_frame(frame: impl Cursor) -> u16 {
    ip_offset(frame).map_or(NO_FLOW, |offset| flow_of_packet(frame.skip(offset)))
}

/// Where the IP header starts behind an Ethernet header and its VLAN tags.
#[inline(always)]
fn ip_offset(frame: impl Cursor) -> Option<usize> {
    let mut offset = ethernet::HEADER_LEN;
    let mut ethertype = frame.load_u16(offset - 2)?;
    for _ in 0..ethernet::MAX_VLAN_TAGS {
        if !matches!(ethertype, ethernet::ETHERTYPE_VLAN | ethernet::ETHERTYPE_QINQ) {
            break;
        }
        offset += ethernet::VLAN_TAG_LEN;
        ethertype = frame.load_u16(offset - 2)?;
    }
    matches!(ethertype, ethernet::ETHERTYPE_IPV4 | ethernet::ETHERTYPE_IPV6).then_some(offset)
}

#[inline(always)]
fn hash(packet: impl Cursor) -> Option<u64> {
    // As much as both families have.
    let words: [u32; 5] = packet.load_words(0)?;
    match words[0].to_ne_bytes()[0] >> 4 {
        4 => hash_ipv4(packet, words),
        6 => hash_ipv6(packet, words),
        _ => None,
    }
}

#[inline(always)]
fn hash_ipv4(packet: impl Cursor, words: [u32; 5]) -> Option<u64> {
    let ip: ipv4::Header = transmute!(words);
    let hash = all([words[3], words[4]], 0);
    if ip.is_fragment() || !has_ports(ip.protocol) {
        return Some(hash);
    }
    Some(all::<1>(packet.load_words(ip.header_len())?, hash))
}

#[inline(always)]
fn hash_ipv6(packet: impl Cursor, words: [u32; 5]) -> Option<u64> {
    let next_header = words[1].to_ne_bytes()[2];
    let hash = all([words[2], words[3], words[4]], 0);
    let rest = 4 * words.len();
    if has_ports(next_header) {
        // The ports follow at once.
        Some(all::<6>(packet.load_words(rest)?, hash))
    } else {
        Some(all::<5>(packet.load_words(rest)?, hash))
    }
}

#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, IPPROTO_TCP | IPPROTO_UDP)
}

#[inline(always)]
fn all<const N: usize>(words: [u32; N], hash: u64) -> u64 {
    words.into_iter().fold(hash, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header without options, and eight bytes behind it.
    fn ipv4(fragment: u16, protocol: u8, behind: [u8; 8]) -> [u8; 28] {
        let [high, low] = fragment.to_be_bytes();
        let header = [0x45, 0, 0, 28, 0, 1, high, low, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let mut packet = [0; 28];
        packet[..20].copy_from_slice(&header);
        packet[20..].copy_from_slice(&behind);
        packet
    }

    #[test]
    fn a_fragment_goes_by_its_addresses() {
        let flow = |fragment, behind| flow_of_packet(&ipv4(fragment, IPPROTO_UDP, behind)[..]);
        assert_eq!(flow(ipv4::MF, [1; 8]), flow(0x0010, [2; 8]));
        assert_ne!(flow(ipv4::DF, [1; 8]), flow(ipv4::DF, [2; 8]));
    }

    #[test]
    fn only_tcp_and_udp_have_ports() {
        let flow = |protocol, behind| flow_of_packet(&ipv4(0, protocol, behind)[..]);
        assert_eq!(flow(50, [1; 8]), flow(50, [2; 8]));
        assert_ne!(flow(IPPROTO_TCP, [1; 8]), flow(IPPROTO_TCP, [2; 8]));
    }

    #[test]
    fn what_lacks_its_ports_has_no_flow() {
        let packet = ipv4(0, IPPROTO_TCP, [1; 8]);
        let flows: [u16; 28] = core::array::from_fn(|len| flow_of_packet(&packet[..len]));
        assert!(flows.iter().enumerate().all(|(len, &flow)| (flow == NO_FLOW) == (len < 24)));
    }
}
