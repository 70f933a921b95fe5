//! Packets for tests: a builder, an in-memory sink, and a re-splitter that cuts superframes as the kernel does.
//!
//! Everything here is written straight from the RFCs and COALESCING.md, byte by byte and without the code under test, so
//! that a mistake there cannot hide here.
#![allow(dead_code, missing_docs)]

use std::io;

use netfwd::datapath::packet::TunnelIndex;
use netfwd::datapath::seam::{FrameSink, OverlayFrame};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// The Internet checksum's sum, as RFC 1071 §1 defines it.
pub fn ones_sum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for piece in pieces {
        for pair in piece.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What to build. The default is a plain TCP segment over IPv4 with 100 bytes.
#[derive(Clone, Debug)]
pub struct Packet {
    pub v6: bool,
    pub udp: bool,
    pub source: u8,
    pub destination: u8,
    pub ports: (u16, u16),
    pub tos: u8,
    pub ttl: u8,
    pub df: bool,
    pub id: u16,
    pub label: u32,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub window: u16,
    pub urgent: u16,
    pub flags: u8,
    pub reserved: u8,
    pub tcp_options: Vec<u8>,
    pub ip_options: Vec<u8>,
    /// IPv6: a hop-by-hop or destination options header in front of the transport header.
    pub extension: Option<u8>,
    pub zero_checksum: bool,
    pub payload: Vec<u8>,
}

impl Default for Packet {
    fn default() -> Self {
        Self {
            v6: false,
            udp: false,
            source: 1,
            destination: 2,
            ports: (1000, 2000),
            tos: 0,
            ttl: 64,
            df: true,
            id: 0,
            label: 0,
            sequence: 1,
            acknowledgement: 1,
            window: 512,
            urgent: 0,
            flags: ACK,
            reserved: 0,
            tcp_options: Vec::new(),
            ip_options: Vec::new(),
            extension: None,
            zero_checksum: false,
            payload: pattern(100, 1),
        }
    }
}

/// `len` bytes that depend on `seed` and position.
pub fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
            (state >> 16) as u8
        })
        .collect()
}

pub fn tcp(v6: bool) -> Packet {
    Packet { v6, ..Packet::default() }
}

pub fn udp(v6: bool) -> Packet {
    Packet { v6, udp: true, ..Packet::default() }
}

impl Packet {
    pub fn address(&self, last: u8) -> Vec<u8> {
        if self.v6 { [[0xfd; 15].as_slice(), &[last]].concat() } else { vec![10, 9, 8, last] }
    }

    pub fn with_payload(mut self, payload: Vec<u8>) -> Self {
        self.payload = payload;
        self
    }

    /// The same flow's next segment: sequence number and ID moved on.
    pub fn following(&self, payload: Vec<u8>) -> Self {
        let sequence = self.sequence.wrapping_add(self.payload.len() as u32);
        Self { sequence, id: self.id.wrapping_add(1), payload, ..self.clone() }
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        if self.udp {
            bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
            bytes.extend([0, 0]);
        } else {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend(self.acknowledgement.to_be_bytes());
            bytes.push(((5 + self.tcp_options.len() / 4) as u8) << 4 | self.reserved);
            bytes.push(self.flags);
            bytes.extend(self.window.to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(self.urgent.to_be_bytes());
            bytes.extend(&self.tcp_options);
        }
        bytes.extend(&self.payload);
        if !self.zero_checksum {
            let (source, destination) = (self.address(self.source), self.address(self.destination));
            let checksum = !l4_sum(&source, &destination, self.protocol(), &bytes);
            let at = if self.udp { 6 } else { 16 };
            let checksum = if self.udp && checksum == 0 { 0xffff } else { checksum };
            bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        bytes
    }

    pub fn protocol(&self) -> u8 {
        if self.udp { 17 } else { 6 }
    }

    /// The IP packet, all checksums right.
    pub fn build(&self) -> Vec<u8> {
        let mut transport = self.transport();
        let (source, destination) = (self.address(self.source), self.address(self.destination));
        let mut bytes = Vec::new();
        if self.v6 {
            if self.extension.is_some() {
                transport = [[self.protocol(), 0, 1, 4, 0, 0, 0, 0].as_slice(), &transport].concat();
            }
            bytes.extend((6 << 28 | u32::from(self.tos) << 20 | self.label).to_be_bytes());
            bytes.extend((transport.len() as u16).to_be_bytes());
            bytes.push(self.extension.unwrap_or(self.protocol()));
            bytes.push(self.ttl);
        } else {
            bytes.extend([0x45 + (self.ip_options.len() / 4) as u8, self.tos]);
            bytes.extend(((20 + self.ip_options.len() + transport.len()) as u16).to_be_bytes());
            bytes.extend(self.id.to_be_bytes());
            bytes.extend([if self.df { 0x40 } else { 0 }, 0, self.ttl, self.protocol(), 0, 0]);
        }
        bytes.extend(source);
        bytes.extend(destination);
        if !self.v6 {
            bytes.extend(&self.ip_options);
            fix_ipv4_checksum(&mut bytes);
        }
        bytes.extend(transport);
        bytes
    }
}

/// An Ethernet header with `tags` VLAN tags in front of an IP packet.
pub fn ethernet(packet: &[u8], source: u8, tags: &[u16]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, source];
    for tag in tags {
        frame.extend([0x81, 0x00]);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    frame.extend(packet);
    frame
}

pub fn fix_ipv4_checksum(header: &mut [u8]) {
    let len = usize::from(header[0] & 0xf) * 4;
    header[10..12].fill(0);
    let checksum = !ones_sum(&[&header[..len]]);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

pub fn pseudo_sum(source: &[u8], destination: &[u8], protocol: u8, len: usize) -> u16 {
    ones_sum(&[source, destination, &[0, protocol], &(len as u32).to_be_bytes()])
}

fn l4_sum(source: &[u8], destination: &[u8], protocol: u8, segment: &[u8]) -> u16 {
    ones_sum(&[&pseudo_sum(source, destination, protocol, segment.len()).to_be_bytes(), segment])
}

/// A frame as a sink received it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub tunnel: TunnelIndex,
    pub packets: usize,
    /// The slices of the gather list, concatenated.
    pub bytes: Vec<u8>,
    pub slices: usize,
}

/// Keeps what is written; refuses superframes or everything on request.
#[derive(Default)]
pub struct Sink {
    pub frames: Vec<Written>,
    pub refuse_superframes: Option<i32>,
    pub refuse_all: Option<i32>,
    pub refused: usize,
}

impl FrameSink for Sink {
    fn write(&mut self, frame: &OverlayFrame<'_>) -> io::Result<()> {
        let refusal = self.refuse_all.or(self.refuse_superframes.filter(|_| frame.packets > 1));
        if let Some(errno) = refusal {
            self.refused += 1;
            return Err(io::Error::from_raw_os_error(errno));
        }
        let bytes = frame.slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let slices = frame.slices.len();
        self.frames.push(Written { tunnel: frame.tunnel, packets: frame.packets, bytes, slices });
        Ok(())
    }
}

/// Bytes in front of the IP header.
pub fn link_len(ethernet: bool, packet: &[u8]) -> usize {
    if !ethernet {
        return 0;
    }
    let mut offset = 12;
    while packet.get(offset..offset + 2) == Some(&[0x81, 0]) {
        offset += 4;
    }
    offset + 2
}

/// Cuts a frame the way the kernel's `tun_get_user`, `inet_gso_segment`/`ipv6_gso_segment` and `tcp_gso_segment`/
/// `__udp_gso_segment` do, checking on the way everything that the kernel checks or relies on.
pub fn resplit(frame: &Written, ethernet: bool) -> Vec<Vec<u8>> {
    let (vnet, packet) = frame.bytes.split_at(10);
    let field = |at: usize| usize::from(u16::from_ne_bytes([vnet[at], vnet[at + 1]]));
    let (flags, gso_type) = (vnet[0], vnet[1]);
    let (hdr_len, gso_size, csum_start, csum_offset) = (field(2), field(4), field(6), field(8));
    if gso_type == 0 {
        assert_eq!(vnet, [0; 10], "a single packet asks for nothing");
        assert_eq!(frame.packets, 1);
        return vec![packet.to_vec()];
    }
    assert_eq!(flags, 1, "NEEDS_CSUM");
    assert!(gso_size > 0 && gso_size < 0xffff);
    let link = link_len(ethernet, packet);
    let v6 = packet[link] >> 4 == 6;
    let ip_len = if v6 { 40 } else { 20 };
    let l4 = link + ip_len;
    assert_eq!(csum_start, l4);
    let is_udp = gso_type == 5;
    assert_eq!(
        gso_type,
        if is_udp {
            5
        } else if v6 {
            4
        } else {
            1
        }
    );
    assert_eq!(csum_offset, if is_udp { 6 } else { 16 });
    assert_eq!(packet[link + if v6 { 6 } else { 9 }], if is_udp { 17 } else { 6 });
    let header_len = l4 + if is_udp { 8 } else { usize::from(packet[l4 + 12] >> 4) * 4 };
    assert_eq!(hdr_len, header_len, "the true header length");
    let ip_total = packet.len() - link;
    assert!(ip_total <= 65_535, "superframe of {ip_total} bytes");
    assert!(frame.slices <= 1024, "gather list");
    let (source, destination) = addresses(&packet[link..], v6);
    check_superframe_lengths(&packet[link..], v6, is_udp);
    let pseudo = pseudo_sum(source, destination, if is_udp { 17 } else { 6 }, packet.len() - l4);
    let at = l4 + csum_offset;
    assert_eq!(packet[at..at + 2], pseudo.to_be_bytes(), "folded, not complemented pseudo-header sum");

    let payload = &packet[header_len..];
    assert!(payload.len() > gso_size, "more than one segment");
    let count = payload.len().div_ceil(gso_size);
    assert_eq!(frame.packets, count);
    if is_udp {
        assert!(count <= 128);
    }
    let mut segments = Vec::new();
    for (index, piece) in payload.chunks(gso_size).enumerate() {
        let mut segment = [&packet[..header_len], piece].concat();
        let is_last = index == count - 1;
        cut_transport(&mut segment[l4..], index, gso_size, is_udp, is_last);
        cut_network(&mut segment[link..], index, v6);
        let (source, destination) = (source.to_vec(), destination.to_vec());
        let protocol = if is_udp { 17 } else { 6 };
        let checksum = !l4_sum(&source, &destination, protocol, &segment[l4..]);
        let checksum = if is_udp && checksum == 0 { 0xffff } else { checksum };
        segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        segments.push(segment);
    }
    segments
}

pub fn addresses(ip: &[u8], v6: bool) -> (&[u8], &[u8]) {
    if v6 { (&ip[8..24], &ip[24..40]) } else { (&ip[12..16], &ip[16..20]) }
}

fn check_superframe_lengths(ip: &[u8], v6: bool, is_udp: bool) {
    let word = |at: usize| usize::from(u16::from_be_bytes([ip[at], ip[at + 1]]));
    let l4 = if v6 {
        assert_eq!(word(4), ip.len() - 40, "IPv6 payload length covers the superframe");
        40
    } else {
        assert_eq!(word(2), ip.len(), "IPv4 total length covers the superframe");
        assert_eq!(ones_sum(&[&ip[..20]]), 0xffff, "IPv4 header checksum of the superframe");
        20
    };
    if is_udp {
        assert_eq!(word(l4 + 4), ip.len() - l4, "UDP length covers the superframe");
    }
}

fn cut_transport(segment: &mut [u8], index: usize, gso_size: usize, is_udp: bool, is_last: bool) {
    if is_udp {
        let len = segment.len() as u16;
        segment[4..6].copy_from_slice(&len.to_be_bytes());
        segment[6..8].fill(0);
        return;
    }
    let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
    segment[4..8].copy_from_slice(&sequence.wrapping_add((index * gso_size) as u32).to_be_bytes());
    if !is_last {
        segment[13] &= !(FIN | PSH);
    }
    if index > 0 {
        segment[13] &= !CWR;
    }
    segment[16..18].fill(0);
}

fn cut_network(ip: &mut [u8], index: usize, v6: bool) {
    if v6 {
        let len = (ip.len() - 40) as u16;
        ip[4..6].copy_from_slice(&len.to_be_bytes());
        return;
    }
    let len = ip.len() as u16;
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(index as u16);
    ip[4..6].copy_from_slice(&id.to_be_bytes());
    fix_ipv4_checksum(ip);
}

/// A packet with what a re-split may change taken out: the ID of an atomic datagram (RFC 6864 §4.1) and the header
/// checksum over it.
pub fn without_atomic_id(packet: &[u8], ethernet: bool) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let link = link_len(ethernet, &packet);
    let ip = &mut packet[link..];
    if ip[0] >> 4 == 4 && ip[6] & 0x40 != 0 {
        assert_eq!(ones_sum(&[&ip[..20]]), 0xffff, "the header checksum is right before it is ignored");
        ip[4..6].fill(0);
        ip[10..12].fill(0);
    }
    packet
}
