//! Superframes built by hand, and the packets that they must be cut into, built just as plainly: the oracle shares no
//! code with the data path.

use netfwd::datapath::packet::Link;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// A TCP or UDP superframe to 10.2.0.2 or fd02::2, TTL or hop limit 64.
#[derive(Clone, Debug)]
pub struct Superframe {
    pub family: Family,
    pub tcp: bool,
    pub segment: usize,
    pub payload_len: usize,
}

const SEQUENCE: u32 = 0xffff_f000;
const TCP_HEADER: usize = 32;
const UDP_HEADER: usize = 8;

impl Superframe {
    pub fn tcp(family: Family, segment: usize, payload_len: usize) -> Self {
        Self { family, tcp: true, segment, payload_len }
    }

    pub fn udp(family: Family, segment: usize, payload_len: usize) -> Self {
        Self { family, tcp: false, segment, payload_len }
    }

    fn ip_len(&self) -> usize {
        if self.family == Family::V4 { 20 } else { 40 }
    }

    /// IP and TCP or UDP headers.
    pub fn header_len(&self) -> usize {
        self.ip_len() + if self.tcp { TCP_HEADER } else { UDP_HEADER }
    }

    pub fn payload(&self) -> Vec<u8> {
        (0..self.payload_len).map(|i| (i * 7 + i / 255) as u8).collect()
    }

    /// The vnet header with everything a superframe needs.
    pub fn vnet(&self, link: Link) -> [u8; 10] {
        let ethernet = if link == Link::Ethernet { 14 } else { 0 };
        let mut vnet = [0; 10];
        vnet[0] = 1;
        vnet[1] = match (self.tcp, self.family) {
            (true, Family::V4) => 1,
            (true, Family::V6) => 4,
            (false, _) => 5,
        };
        vnet[2..4].copy_from_slice(&((ethernet + self.header_len()) as u16).to_ne_bytes());
        vnet[4..6].copy_from_slice(&(self.segment as u16).to_ne_bytes());
        vnet[6..8].copy_from_slice(&((ethernet + self.ip_len()) as u16).to_ne_bytes());
        vnet[8..10].copy_from_slice(&(if self.tcp { 16u16 } else { 6 }).to_ne_bytes());
        vnet
    }

    /// What is written to a device: the vnet header and all headers in one piece, and the payload.
    pub fn written(&self, link: Link, mac: [u8; 6]) -> (Vec<u8>, Vec<u8>) {
        let mut headers = self.vnet(link).to_vec();
        if link == Link::Ethernet {
            headers.extend(mac);
            headers.extend([2, 0, 0, 0, 0, 99]);
            headers.extend(if self.family == Family::V4 { [8, 0] } else { [0x86, 0xdd] });
        }
        let mut packet = self.headers(64, 0, self.payload_len, true);
        let l4 = self.ip_len();
        let at = l4 + if self.tcp { 16 } else { 6 };
        let pseudo = self.pseudo_sum(&packet, packet.len() - l4 + self.payload_len);
        packet[at..at + 2].copy_from_slice(&fold(pseudo).to_be_bytes());
        headers.extend(packet);
        (headers, self.payload())
    }

    /// The packets it stands for, after `hops` routers.
    pub fn segments(&self, hops: u8) -> Vec<Vec<u8>> {
        let payload = self.payload();
        let last = payload.len().div_ceil(self.segment) - 1;
        payload.chunks(self.segment).enumerate().map(|(i, piece)| self.packet(64 - hops, i, piece, i == last)).collect()
    }

    fn packet(&self, ttl: u8, index: usize, payload: &[u8], last: bool) -> Vec<u8> {
        let mut packet = self.headers(ttl, index, payload.len(), last);
        packet.extend(payload);
        let l4 = self.ip_len();
        let at = l4 + if self.tcp { 16 } else { 6 };
        let sum = self.pseudo_sum(&packet, packet.len() - l4) + sum(&packet[l4..]);
        let checksum = match !fold(sum) {
            0 if !self.tcp => 0xffff,
            checksum => checksum,
        };
        packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// Headers for `payload_len` bytes, the L4 checksum zero.
    fn headers(&self, ttl: u8, index: usize, payload_len: usize, last: bool) -> Vec<u8> {
        let total = self.header_len() + payload_len;
        let protocol = if self.tcp { 6 } else { 17 };
        let mut packet = Vec::with_capacity(total);
        match self.family {
            Family::V4 => {
                packet.extend([0x45, 0]);
                packet.extend((total as u16).to_be_bytes());
                packet.extend(((7 + index) as u16).to_be_bytes());
                packet.extend([0x40, 0, ttl, protocol, 0, 0, 10, 1, 0, 2, 10, 2, 0, 2]);
                let checksum = !fold(sum(&packet));
                packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            Family::V6 => {
                packet.extend([0x60, 0, 0, 0]);
                packet.extend(((total - 40) as u16).to_be_bytes());
                packet.extend([protocol, ttl]);
                packet.extend([0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
                packet.extend([0xfd, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            }
        }
        packet.extend(1111u16.to_be_bytes());
        packet.extend(2222u16.to_be_bytes());
        if self.tcp {
            packet.extend(SEQUENCE.wrapping_add((index * self.segment) as u32).to_be_bytes());
            packet.extend(77u32.to_be_bytes());
            packet.extend([0x80, if last { 0x18 } else { 0x10 }, 0x20, 0, 0, 0, 0, 0]);
            // Timestamps.
            packet.extend([1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6]);
        } else {
            packet.extend(((UDP_HEADER + payload_len) as u16).to_be_bytes());
            packet.extend([0, 0]);
        }
        packet
    }

    fn pseudo_sum(&self, packet: &[u8], l4_len: usize) -> u64 {
        let addresses = if self.family == Family::V4 { &packet[12..20] } else { &packet[8..40] };
        sum(addresses) + if self.tcp { 6 } else { 17 } + l4_len as u64
    }
}

/// Whether a packet comes from a [`Superframe`], not from the kernel's own neighbour discovery.
pub fn is_test_packet(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => matches!(packet.get(9), Some(6 | 17)),
        Some(6) => matches!(packet.get(6), Some(6 | 17)),
        _ => false,
    }
}

/// The packet with its IPv4 ID, the one exempt field, and the header checksum over it taken out.
pub fn without_ipv4_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        assert_eq!(fold(sum(&packet[..20])), 0xffff, "IPv4 header checksum");
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

pub fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum()
}

pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
