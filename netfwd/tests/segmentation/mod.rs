//! What the segmentation tests share: packets described by their fields, an oracle that builds each segment from those
//! fields alone, and a sink that keeps what it is sent.
//!
//! Nothing here uses the code under test: checksums are added up sixteen bits at a time, as RFC 1071 defines them.
#![allow(dead_code)]

use std::io;
use std::net::IpAddr;

use netfwd::datapath::egress::{Egress, Surroundings};
use netfwd::datapath::fdb::Fdbs;
use netfwd::datapath::packet::{RemoteIndex, TunnelIndex};
use netfwd::datapath::seam::{DatagramSink, OuterChecksum, SendFailure, Transmit};
use netfwd::datapath::stats::{Counters, Direction};
use netfwd::datapath::table::{ForwardingTable, Tunnel};
use netfwd_common::abi::TunnelKind;
use netfwd_common::reason::{DropReason, Stage};

pub const FIN: u8 = 0x01;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const CWR: u8 = 0x80;

pub const GSO_TCPV4: u8 = 1;
pub const GSO_TCPV6: u8 = 4;
pub const GSO_UDP_L4: u8 = 5;

/// The L2 and the L3 tunnel of [`table`].
pub const VXLAN: TunnelIndex = TunnelIndex(0);
pub const GPE: TunnelIndex = TunnelIndex(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum L4 {
    Tcp { sequence: u32, flags: u8, options: Vec<u8> },
    Udp,
}

/// A packet or superframe, by its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// VLAN tags; `None` for a packet without an Ethernet header.
    pub ethernet: Option<Vec<[u8; 4]>>,
    pub v6: bool,
    pub tos: u8,
    pub id: u16,
    pub dont_fragment: bool,
    /// IPv4 options or whole IPv6 extension headers, each as (header number, bytes with the next header left out).
    pub ipv4_options: Vec<u8>,
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub l4: L4,
    pub ports: (u16, u16),
    pub payload: Vec<u8>,
}

impl Shape {
    pub fn tcp(v6: bool, payload: Vec<u8>) -> Self {
        Self {
            ethernet: None,
            v6,
            tos: 0,
            id: 7,
            dont_fragment: true,
            ipv4_options: vec![],
            extensions: vec![],
            l4: L4::Tcp { sequence: 1_000_000, flags: ACK, options: timestamps() },
            ports: (40_000, 443),
            payload,
        }
    }

    pub fn udp(v6: bool, payload: Vec<u8>) -> Self {
        Self { l4: L4::Udp, ..Self::tcp(v6, payload) }
    }

    pub fn tunnel(&self) -> TunnelIndex {
        if self.ethernet.is_some() { VXLAN } else { GPE }
    }

    pub fn is_tcp(&self) -> bool {
        matches!(self.l4, L4::Tcp { .. })
    }

    pub fn l2_len(&self) -> usize {
        self.ethernet.as_ref().map_or(0, |tags| 14 + 4 * tags.len())
    }

    pub fn l4_offset(&self) -> usize {
        let options = if self.v6 {
            40 + self.extensions.iter().map(|(_, rest)| 1 + rest.len()).sum::<usize>()
        } else {
            20 + self.ipv4_options.len()
        };
        self.l2_len() + options
    }

    pub fn header_len(&self) -> usize {
        self.l4_offset() + self.l4_header().len()
    }

    /// The finished packet, every checksum computed in full.
    pub fn packet(&self) -> Vec<u8> {
        let l4 = self.l4_bytes();
        let sum = add(self.pseudo(l4.len()), &l4);
        self.assemble(l4, finish(sum, !self.is_tcp()))
    }

    /// As the kernel hands it over for offloading: the checksum field holds the pseudo-header's sum.
    pub fn partial(&self) -> Vec<u8> {
        let l4 = self.l4_bytes();
        let seed = fold(self.pseudo(l4.len()));
        self.assemble(l4, seed)
    }

    /// A vnet header and the superframe.
    pub fn frame(&self, gso_size: usize) -> Vec<u8> {
        let gso_type = match (&self.l4, self.v6) {
            (L4::Tcp { .. }, false) => GSO_TCPV4,
            (L4::Tcp { .. }, true) => GSO_TCPV6,
            (L4::Udp, _) => GSO_UDP_L4,
        };
        let mut frame = self.vnet(gso_type, gso_size).to_vec();
        frame.extend(self.partial());
        frame
    }

    /// A vnet header that asks for one checksum, and the packet.
    pub fn needs_checksum_frame(&self) -> Vec<u8> {
        let mut frame = self.vnet(0, 0).to_vec();
        frame.extend(self.partial());
        frame
    }

    pub fn vnet(&self, gso_type: u8, gso_size: usize) -> [u8; 10] {
        let csum_offset = if self.is_tcp() { 16 } else { 6 };
        // A deceitful hdr_len: nothing may depend on it.
        vnet(1, gso_type, 0xbeef, gso_size as u16, self.l4_offset() as u16, csum_offset)
    }

    /// The oracle: every segment as a packet of its own, built from the fields.
    pub fn cut(&self, gso_size: usize) -> Vec<Self> {
        let pieces: Vec<&[u8]> =
            if self.payload.is_empty() { vec![&[]] } else { self.payload.chunks(gso_size).collect() };
        let last = pieces.len() - 1;
        let segment = |(index, piece): (usize, &&[u8])| Self {
            id: self.id.wrapping_add(index as u16),
            l4: self.l4.clone().nth(index, index == last, gso_size),
            payload: piece.to_vec(),
            ..self.clone()
        };
        pieces.iter().enumerate().map(segment).collect()
    }

    fn l4_header(&self) -> Vec<u8> {
        let mut header = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        match &self.l4 {
            L4::Tcp { sequence, flags, options } => {
                header.extend(sequence.to_be_bytes());
                header.extend(0x0102_0304u32.to_be_bytes());
                header.extend([(((20 + options.len()) / 4) << 4) as u8, *flags]);
                header.extend([0x20, 0x01, 0, 0, 0, 0]);
                header.extend(options);
            }
            L4::Udp => {
                header.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                header.extend([0, 0]);
            }
        }
        header
    }

    fn l4_bytes(&self) -> Vec<u8> {
        [self.l4_header(), self.payload.clone()].concat()
    }

    fn pseudo(&self, length: usize) -> u64 {
        let protocol: u8 = if self.is_tcp() { 6 } else { 17 };
        let sum = add(0, &self.addresses());
        sum + u64::from(protocol) + (length >> 16) as u64 + (length & 0xffff) as u64
    }

    fn addresses(&self) -> Vec<u8> {
        if self.v6 {
            let mut source = [0; 16];
            let mut destination = [0; 16];
            (source[0], source[15]) = (0xfd, 1);
            (destination[0], destination[15]) = (0xfd, 2);
            [source, destination].concat()
        } else {
            vec![10, 20, 0, 1, 10, 20, 0, 2]
        }
    }

    fn assemble(&self, mut l4: Vec<u8>, checksum: u16) -> Vec<u8> {
        let field = if self.is_tcp() { 16 } else { 6 };
        l4[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        let mut packet = vec![];
        if let Some(tags) = &self.ethernet {
            packet.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
            packet.extend(tags.iter().flatten());
            packet.extend(if self.v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        }
        packet.extend(if self.v6 { self.ipv6(l4.len()) } else { self.ipv4(l4.len()) });
        packet.extend(l4);
        packet
    }

    fn ipv4(&self, l4: usize) -> Vec<u8> {
        let length = 20 + self.ipv4_options.len();
        let mut header = vec![0x40 | (length / 4) as u8, self.tos];
        header.extend(((length + l4) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(if self.dont_fragment { [0x40, 0] } else { [0, 0] });
        header.extend([64, if self.is_tcp() { 6 } else { 17 }, 0, 0]);
        header.extend(self.addresses());
        header.extend(&self.ipv4_options);
        let checksum = finish(add(0, &header), false);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn ipv6(&self, l4: usize) -> Vec<u8> {
        let extensions: usize = self.extensions.iter().map(|(_, rest)| 1 + rest.len()).sum();
        let mut following: Vec<u8> = self.extensions.iter().map(|(number, _)| *number).collect();
        following.push(if self.is_tcp() { 6 } else { 17 });
        let mut header = (0x6000_0000u32 | u32::from(self.tos) << 20 | 0xabcde).to_be_bytes().to_vec();
        header.extend(((extensions + l4) as u16).to_be_bytes());
        header.extend([following[0], 64]);
        header.extend(self.addresses());
        for ((_, rest), next) in self.extensions.iter().zip(&following[1..]) {
            header.push(*next);
            header.extend(rest);
        }
        header
    }
}

impl L4 {
    fn nth(self, index: usize, last: bool, gso_size: usize) -> Self {
        match self {
            Self::Tcp { sequence, mut flags, options } => {
                if index > 0 {
                    flags &= !CWR;
                }
                if !last {
                    flags &= !(FIN | PSH);
                }
                Self::Tcp { sequence: sequence.wrapping_add((index * gso_size) as u32), flags, options }
            }
            Self::Udp => Self::Udp,
        }
    }
}

pub fn timestamps() -> Vec<u8> {
    vec![1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4]
}

/// A destination options header of `8 × units` bytes, without its next-header byte.
pub fn destination_options(units: u8) -> (u8, Vec<u8>) {
    let mut rest = vec![0; 8 * usize::from(units) - 1];
    (rest[0], rest[1], rest[2]) = (units - 1, 1, 8 * units - 4);
    (60, rest)
}

pub fn vnet(flags: u8, gso_type: u8, hdr_len: u16, gso_size: u16, csum_start: u16, csum_offset: u16) -> [u8; 10] {
    let mut header = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
    for (slot, value) in header[2..].chunks_exact_mut(2).zip([hdr_len, gso_size, csum_start, csum_offset]) {
        slot.copy_from_slice(&value.to_ne_bytes());
    }
    header
}

/// A vnet header that asks for nothing, and `packet`.
pub fn plain(packet: &[u8]) -> Vec<u8> {
    [&[0; 10], packet].concat()
}

/// Bytes that depend on their place and on `salt`.
pub fn pattern(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ (i as u8).wrapping_mul(7) ^ salt).collect()
}

/// Adds big-endian words, a last odd byte padded with zero.
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .fold(sum, |sum, pair| sum + u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
}

pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn finish(sum: u64, udp: bool) -> u16 {
    match !fold(sum) {
        0 if udp => 0xffff,
        checksum => checksum,
    }
}

/// Checks a packet's IPv4 header and transport checksums by a full pass.
pub fn checksums_verify(shape: &Shape, packet: &[u8]) -> bool {
    let (l2, l4) = (shape.l2_len(), shape.l4_offset());
    let header = shape.v6 || fold(add(0, &packet[l2..l4])) == 0xffff;
    let udp_zero = !shape.is_tcp() && packet[l4 + 6..l4 + 8] == [0, 0];
    header && !udp_zero && fold(add(shape.pseudo(packet.len() - l4), &packet[l4..])) == 0xffff
}

/// A datagram as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub remote: IpAddr,
    pub source_port: u16,
    pub tos: u8,
    /// UDP payload: tunnel header and inner packet.
    pub bytes: Vec<u8>,
}

impl Datagram {
    pub fn inner(&self) -> &[u8] {
        &self.bytes[8..]
    }
}

/// One call of the sink.
#[derive(Clone, Debug)]
pub struct Sent {
    pub datagrams: Vec<Datagram>,
    pub segment_size: usize,
    pub bytes: usize,
    pub checksum: OuterChecksum,
    pub port: u16,
    pub local: IpAddr,
}

/// Keeps what it is sent, and checks that each run is one that `UDP_SEGMENT` takes.
#[derive(Debug, Default)]
pub struct Recorder {
    pub sent: Vec<Sent>,
    /// Refuse everything with this errno, losing so many datagrams per run.
    pub fail: Option<(i32, usize)>,
}

impl Recorder {
    pub fn datagrams(&self) -> Vec<Datagram> {
        self.sent.iter().flat_map(|sent| sent.datagrams.clone()).collect()
    }

    pub fn inner(&self) -> Vec<Vec<u8>> {
        self.datagrams().iter().map(|datagram| datagram.inner().to_vec()).collect()
    }
}

impl DatagramSink for Recorder {
    fn send(&mut self, transmit: &Transmit<'_>) -> Result<(), SendFailure> {
        let bytes: Vec<u8> = transmit.slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let pieces: Vec<&[u8]> = bytes.chunks(transmit.segment_size).collect();
        assert_eq!(pieces.len(), transmit.datagrams, "the run's sizes add up");
        assert!((1..=64).contains(&pieces.len()) && bytes.len() <= 65_507, "one UDP_SEGMENT send");
        assert!(transmit.source_port >= 49_152);
        let datagram = |piece: &&[u8]| Datagram {
            remote: transmit.remote,
            source_port: transmit.source_port,
            tos: transmit.tos,
            bytes: piece.to_vec(),
        };
        self.sent.push(Sent {
            datagrams: pieces.iter().map(datagram).collect(),
            segment_size: transmit.segment_size,
            bytes: bytes.len(),
            checksum: transmit.checksum,
            port: transmit.port,
            local: transmit.local,
        });
        match self.fail {
            Some((errno, lost)) => Err(SendFailure { lost, error: io::Error::from_raw_os_error(errno) }),
            None => Ok(()),
        }
    }
}

pub fn tunnel(kind: TunnelKind) -> Tunnel {
    let remote = RemoteIndex(0);
    Tunnel {
        name: kind.as_str().into(),
        kind,
        vni: 0x0a0b0c,
        local: [10, 9, 0, 2].into(),
        port: 4789,
        remotes: vec![[10, 9, 0, 1].into(), [10, 9, 0, 3].into(), [10, 9, 0, 4].into()],
        learning: true,
        static_macs: vec![([2, 0, 0, 0, 0, 2], remote)],
        routes: vec![("10.20.0.0/16".parse().unwrap(), remote), ("fd00::/8".parse().unwrap(), remote)],
        mtu: 1450,
        udp_checksum: true,
        udp6_zero_checksum_rx: false,
        udp6_zero_checksum_tx: false,
        dscp: 0,
    }
}

pub fn tunnels() -> Vec<Tunnel> {
    vec![tunnel(TunnelKind::Vxlan), tunnel(TunnelKind::VxlanGpe)]
}

/// An egress path with everything around it.
pub struct Bench {
    pub table: ForwardingTable,
    pub fdbs: Fdbs,
    pub counters: Counters,
    pub egress: Egress,
    pub sink: Recorder,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(tunnels())
    }

    pub fn with(tunnels: Vec<Tunnel>) -> Self {
        let counters = Counters::new(tunnels.len());
        let table = ForwardingTable::new(tunnels);
        Self { fdbs: Fdbs::new(&table, 1), table, counters, egress: Egress::new(2), sink: Recorder::default() }
    }

    pub fn run(&mut self, tunnel: TunnelIndex, mut frame: Vec<u8>) {
        let around =
            Surroundings { table: &self.table, fdbs: &self.fdbs, counters: &self.counters, now_seconds: 1_000 };
        self.egress.run(&around, tunnel, &mut frame, &mut self.sink);
    }

    /// All drops that were counted.
    pub fn drops(&self) -> Vec<(Stage, DropReason, u64)> {
        let all = Stage::ALL.into_iter().flat_map(|stage| DropReason::ALL.iter().map(move |reason| (stage, *reason)));
        all.map(|(stage, reason)| (stage, reason, self.counters.drops.get(Direction::Egress, stage, reason)))
            .filter(|(_, _, count)| *count > 0)
            .collect()
    }
}
