//! The headers of a superframe.
//!
//! A superframe's lengths, checksums and flags differ from its seed's, and a field that is forgotten shows only when the
//! kernel cuts the frame. So the headers are made in one place, from the seed's bytes and a [`Shape`]; there is no way to
//! change a length without the sums that depend on it, and the seed itself stays as it came.
//!
//! What stands in the vnet header follows `virtio_net_hdr_to_skb` (include/linux/virtio_net.h): NEEDS_CSUM is always set,
//! because UDP_L4 is refused without it, and then the checksum field must hold the folded, **not** complemented sum of
//! the pseudo-header with the superframe's L4 length. `hdr_len` is always the true length of all headers.

use netfwd_common::checksum::Sum;
use netfwd_common::wire::{IPPROTO_TCP, IPPROTO_UDP, ethernet, ipv4, ipv6, tcp, udp, vnet};
use zerocopy::byteorder::native_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use super::flow::Family;

/// Longest headers: Ethernet with two tags, IPv6, TCP with all options.
const MAX_HEADERS: usize = ethernet::HEADER_LEN + 2 * ethernet::VLAN_TAG_LEN + ipv6::HEADER_LEN + tcp::MAX_HEADER_LEN;

/// What a superframe is, beside the bytes it shares with its seed. Offsets count from the seed's first byte.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// IP version.
    pub family: Family,
    /// TCP, else UDP.
    pub is_tcp: bool,
    /// IP header: 0 on TUN, behind Ethernet and its tags on TAP.
    pub ip: usize,
    /// TCP or UDP header.
    pub l4: usize,
    /// Payload.
    pub payload: usize,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// From the IP header to the end of the last payload.
    pub length: u16,
    /// TCP flags of all segments together.
    pub tcp_flags: u8,
}

/// A vnet header and rewritten packet headers, ready to be written in front of the payloads.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    bytes: [u8; vnet::HEADER_LEN + MAX_HEADERS],
    len: usize,
}

impl Headers {
    /// The headers of a superframe of `shape` that `seed` began.
    ///
    /// A shape that does not fit the seed gives headers that the kernel refuses, not a panic.
    pub fn of(seed: &[u8], shape: &Shape) -> Self {
        let mut headers = Self { bytes: [0; vnet::HEADER_LEN + MAX_HEADERS], len: vnet::HEADER_LEN };
        let Some(original) = seed.get(..shape.payload).filter(|original| original.len() <= MAX_HEADERS) else {
            return headers;
        };
        headers.len += original.len();
        let (vnet_header, rest) = headers.bytes.split_at_mut(vnet::HEADER_LEN);
        vnet_header.copy_from_slice(shape.vnet().as_bytes());
        let packet = &mut rest[..original.len()];
        packet.copy_from_slice(original);
        if let Some((ip, l4)) = shape.split(packet) {
            shape.rewrite(ip, l4);
        }
        headers
    }

    /// The bytes to write.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Shape {
    /// The IP and the TCP/UDP header of a packet.
    fn split<'a>(&self, packet: &'a mut [u8]) -> Option<(&'a mut [u8], &'a mut [u8])> {
        packet.get_mut(self.ip..)?.split_at_mut_checked(self.l4.checked_sub(self.ip)?)
    }

    fn vnet(&self) -> vnet::Header {
        let (gso_type, csum_offset) = match (self.is_tcp, self.family) {
            (true, Family::V4) => (vnet::GSO_TCPV4, tcp::CHECKSUM_OFFSET),
            (true, Family::V6) => (vnet::GSO_TCPV6, tcp::CHECKSUM_OFFSET),
            (false, _) => (vnet::GSO_UDP_L4, udp::CHECKSUM_OFFSET),
        };
        vnet::Header {
            flags: vnet::NEEDS_CSUM,
            gso_type,
            hdr_len: U16::new(self.payload as u16),
            gso_size: U16::new(self.gso_size),
            csum_start: U16::new(self.l4 as u16),
            csum_offset: U16::new(csum_offset),
        }
    }

    fn rewrite(&self, ip: &mut [u8], l4: &mut [u8]) {
        let l4_len = self.length.saturating_sub((self.l4 - self.ip) as u16);
        let protocol = if self.is_tcp { IPPROTO_TCP } else { IPPROTO_UDP };
        let pseudo = match self.family {
            Family::V4 => rewrite_ipv4(ip, self.length, l4_len, protocol),
            Family::V6 => rewrite_ipv6(ip, l4_len, protocol),
        };
        if self.is_tcp {
            rewrite_tcp(l4, self.tcp_flags, pseudo);
        } else {
            rewrite_udp(l4, l4_len, pseudo);
        }
    }
}

/// Returns the pseudo-header's sum.
fn rewrite_ipv4(bytes: &mut [u8], length: u16, l4_len: u16, protocol: u8) -> Sum {
    let Ok((header, _)) = ipv4::Header::mut_from_prefix(bytes) else {
        return Sum::ZERO;
    };
    header.total_length.set(length);
    header.checksum.set(0);
    let checksum = Sum::ZERO.add(header.as_bytes()).checksum();
    header.checksum = checksum.to_bytes().into();
    Sum::pseudo_ipv4(&header.source, &header.destination, protocol, l4_len)
}

/// Returns the pseudo-header's sum.
fn rewrite_ipv6(bytes: &mut [u8], l4_len: u16, protocol: u8) -> Sum {
    let Ok((header, _)) = ipv6::Header::mut_from_prefix(bytes) else {
        return Sum::ZERO;
    };
    header.payload_length.set(l4_len);
    Sum::pseudo_ipv6(&header.source, &header.destination, protocol, u32::from(l4_len))
}

fn rewrite_tcp(bytes: &mut [u8], flags: u8, pseudo: Sum) {
    if let Ok((header, _)) = tcp::Header::mut_from_prefix(bytes) {
        header.flags = flags;
        header.checksum = pseudo.to_bytes().into();
    }
}

fn rewrite_udp(bytes: &mut [u8], length: u16, pseudo: Sum) {
    if let Ok((header, _)) = udp::Header::mut_from_prefix(bytes) {
        header.length.set(length);
        header.checksum = pseudo.to_bytes().into();
    }
}
