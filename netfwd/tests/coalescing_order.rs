//! Order, and nothing but order: whenever frames are written between arrivals, whatever the kernel refuses, and however a
//! batch is full, no packet overtakes another of its flow, and a packet whose flow cannot be told overtakes none between
//! its addresses and is overtaken by none.
//!
//! Every packet is unlike any other, so each one that comes out is known again by its bytes.

mod packets;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netfwd::datapath::gro::{Coalescer, GroConfig, MAX_BATCH};
use netfwd::datapath::ingress::{Ingress, Origin, Received};
use netfwd::datapath::packet::{Checksums, InnerPacket, Link, TunnelIndex};
use netfwd::datapath::seam::{FrameSink, OverlayFrame};
use netfwd::datapath::stats::Counters;
use netfwd::datapath::table::{ForwardingTable, Tunnel, VerifyPolicy};
use netfwd_common::abi::TunnelKind;
use packets::*;
use proptest::prelude::*;

/// One packet of a flow.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Next,
    Push,
    Short,
    Empty,
    Fragment,
    Options,
    Extension,
    Stub,
    Unverified,
}

/// What happens: a packet of one of a few flows, or a moment in which nothing has arrived, so that a frame is written.
#[derive(Clone, Copy, Debug)]
enum Step {
    Packet(usize, Kind),
    Pause,
}

fn step(flows: usize) -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        40 => Just(Kind::Next),
        3 => Just(Kind::Push),
        3 => Just(Kind::Short),
        2 => Just(Kind::Empty),
        2 => Just(Kind::Fragment),
        2 => Just(Kind::Options),
        2 => Just(Kind::Extension),
        1 => Just(Kind::Stub),
        2 => Just(Kind::Unverified),
    ];
    prop_oneof![10 => (0..flows, kind).prop_map(|(flow, kind)| Step::Packet(flow, kind)), 3 => Just(Step::Pause)]
}

fn steps(len: usize) -> impl Strategy<Value = Vec<Step>> {
    (1usize..12).prop_flat_map(move |flows| prop::collection::vec(step(flows), 1..len))
}

/// A packet as it arrives, with what its receiver's order depends on.
struct Sample {
    bytes: Vec<u8>,
    checksums: Checksums,
    /// Both addresses.
    pair: Vec<u8>,
    /// Protocol and ports; `None` where they cannot be read.
    flow: Option<[u8; 5]>,
}

impl Sample {
    /// Whether a receiver could tell that these two changed places.
    fn is_bound_to(&self, other: &Self) -> bool {
        self.pair == other.pair && (self.flow.is_none() || other.flow.is_none() || self.flow == other.flow)
    }
}

/// Flows over both families and protocols, most of them between the same two hosts.
fn template(flow: usize) -> Packet {
    Packet {
        v6: flow & 1 != 0,
        udp: flow & 2 != 0,
        source: 1 + u8::from(flow > 8),
        ports: (1000 + flow as u16 / 4, 2000),
        sequence: u32::MAX - 500,
        ..Packet::default()
    }
}

/// A payload that says which packet it is.
fn payload(number: u32, len: usize) -> Vec<u8> {
    [number.to_be_bytes().as_slice(), &pattern(len, number)].concat()
}

fn sample(last: &mut Packet, kind: Kind, number: u32) -> Sample {
    let len = if matches!(kind, Kind::Short) { 20 } else { 100 };
    let mut packet = last.following(payload(number, len));
    let follows = packet.clone();
    match kind {
        Kind::Push => packet.flags |= PSH,
        Kind::Empty => {
            // Told apart by what an empty packet still has.
            packet = Packet { window: number as u16, id: number as u16, df: false, payload: Vec::new(), ..packet };
            packet.label = number;
        }
        Kind::Options => packet.ip_options = vec![1, 1, 1, 0],
        Kind::Extension => packet.extension = Some(60),
        _ => {}
    }
    let (mut bytes, mut checksums) = (packet.build(), Checksums::Verified);
    let l4 = if packet.v6 { 40 } else { 20 + packet.ip_options.len() };
    let ports = [&[packet.protocol()], &bytes[l4..l4 + 4]].concat().try_into().ok();
    let mut flow = if packet.v6 && packet.extension.is_some() { None } else { ports };
    match kind {
        Kind::Fragment if packet.v6 => {
            bytes.splice(40..40, [packet.protocol(), 0, 0, 1, 0, 0, 0, 7]);
            let payload_len = (bytes.len() - 40) as u16;
            bytes[4..6].copy_from_slice(&payload_len.to_be_bytes());
            bytes[6] = 44;
            (flow, checksums) = (None, Checksums::Unverified);
        }
        Kind::Fragment => {
            bytes[6] |= 0x20;
            fix_ipv4_checksum(&mut bytes);
            (flow, checksums) = (None, Checksums::Unverified);
        }
        Kind::Unverified => checksums = Checksums::Unverified,
        _ => {}
    }
    let addresses = addresses(&bytes, packet.v6);
    let pair = [addresses.0, addresses.1].concat();
    *last = if matches!(kind, Kind::Empty) { last.clone() } else { follows };
    if matches!(kind, Kind::Stub) {
        // Cut in the middle of its ports; the number moves to where it is not lost.
        bytes.truncate(l4 + 2);
        let at = if packet.v6 { 4 } else { 2 };
        bytes[at..at + 2].copy_from_slice(&(number as u16).to_be_bytes());
        (flow, checksums) = (None, Checksums::Unverified);
    }
    Sample { bytes, checksums, pair, flow }
}

/// The arrivals of `steps`; `None` for a pause.
fn arrivals(steps: &[Step]) -> Vec<Option<Sample>> {
    let mut flows: HashMap<usize, Packet> = HashMap::new();
    let mut number = 0;
    let arrival = |step: &Step| match *step {
        Step::Pause => None,
        Step::Packet(flow, kind) => {
            number += 1;
            Some(sample(flows.entry(flow).or_insert_with(|| template(flow)), kind, number))
        }
    };
    steps.iter().map(arrival).collect()
}

/// Refuses now one superframe, now another, as a kernel does that lacks an offload.
struct Moody {
    frames: Vec<Written>,
    moods: Vec<bool>,
    writes: usize,
}

impl Moody {
    fn new(moods: &[bool]) -> Self {
        Self { frames: Vec::new(), moods: moods.to_vec(), writes: 0 }
    }
}

impl FrameSink for Moody {
    fn write(&mut self, frame: &OverlayFrame<'_>) -> io::Result<()> {
        self.writes += 1;
        if frame.packets > 1 && self.moods[self.writes % self.moods.len()] {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let bytes = frame.slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let (packets, slices) = (frame.packets, frame.slices.len());
        self.frames.push(Written { tunnel: frame.tunnel, packets, bytes, slices });
        Ok(())
    }
}

/// Where each sample came out.
fn places(samples: &[&Sample], frames: &[Written]) -> Result<Vec<usize>, TestCaseError> {
    let by_bytes: HashMap<Vec<u8>, usize> =
        samples.iter().enumerate().map(|(at, sample)| (recognizable(&sample.bytes), at)).collect();
    prop_assert_eq!(by_bytes.len(), samples.len(), "no two packets are alike");
    let out: Vec<_> = frames.iter().flat_map(|frame| resplit(frame, false)).collect();
    prop_assert_eq!(out.len(), samples.len(), "every packet comes out once");
    let mut places = vec![usize::MAX; samples.len()];
    for (place, packet) in out.iter().enumerate() {
        let Some(&at) = by_bytes.get(&recognizable(packet)) else {
            return Err(TestCaseError::fail(format!("a packet that never went in: {packet:02x?}")));
        };
        places[at] = place;
    }
    Ok(places)
}

/// A packet without the ID of atomic datagrams, which a cut may change.
fn recognizable(packet: &[u8]) -> Vec<u8> {
    let is_whole_ipv4 = packet[0] >> 4 == 4 && ones_sum(&[&packet[..20]]) == 0xffff;
    if is_whole_ipv4 { without_atomic_id(packet, false) } else { packet.to_vec() }
}

/// Between flows, frames leave in the order in which their first packets came.
fn check_seeds(samples: &[&Sample], frames: &[Written]) -> Result<(), TestCaseError> {
    let mut place = 0;
    let firsts = frames.iter().map(|frame| {
        place += frame.packets;
        place - frame.packets
    });
    let places = places(samples, frames)?;
    let arrivals: Vec<_> = firsts.map(|first| places.iter().position(|&place| place == first)).collect();
    prop_assert!(arrivals.is_sorted(), "{:?}", arrivals);
    Ok(())
}

fn check_order(samples: &[&Sample], frames: &[Written]) -> Result<(), TestCaseError> {
    let places = places(samples, frames)?;
    for (later, sample) in samples.iter().enumerate() {
        for earlier in (0..later).filter(|&earlier| samples[earlier].is_bound_to(sample)) {
            prop_assert!(places[earlier] < places[later], "packet {} overtook packet {}", later, earlier);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// The coalescer in steps, a frame written at every pause.
    #[test]
    fn no_packet_overtakes_another_of_its_flow(
        steps in steps(250),
        moods in prop::collection::vec(prop::bool::weighted(0.3), 1..6),
    ) {
        let arrivals = arrivals(&steps);
        let samples: Vec<_> = arrivals.iter().flatten().collect();
        let packets: Vec<_> = samples.iter().map(|sample| InnerPacket {
            tunnel: TunnelIndex(0),
            link: Link::Ip,
            bytes: &sample.bytes,
            checksums: sample.checksums,
        }).collect();
        let (mut sink, counters) = (Moody::new(&moods), Counters::new(1));
        let mut coalescer = Coalescer::new(&GroConfig::default());
        coalescer.begin();
        let mut count = 0;
        for arrival in &arrivals {
            match arrival {
                Some(_) => {
                    count += 1;
                    coalescer.add(&packets[..count], &counters);
                }
                None => {
                    coalescer.write_next(&packets[..count], &counters, &mut sink);
                }
            }
        }
        coalescer.finish(&packets, &counters, &mut sink);
        check_order(&samples, &sink.frames)?;
        if !moods.contains(&true) {
            check_seeds(&samples, &sink.frames)?;
        }
    }

    /// The whole way in, over batches that are full in the midst of runs.
    #[test]
    fn neither_full_batches_nor_looks_at_the_ring_change_the_order(
        steps in steps(3 * MAX_BATCH),
        moods in prop::collection::vec(prop::bool::weighted(0.3), 1..6),
    ) {
        let arrivals = arrivals(&steps);
        // Stubs are refused by vetting.
        let samples: Vec<_> = arrivals.iter().flatten().filter(|sample| !is_stub(sample)).collect();
        let (mut sink, counters) = (Moody::new(&moods), Counters::new(1));
        let mut ingress = Ingress::new(&GroConfig::default(), VerifyPolicy::default());
        let mut copies: Vec<_> = arrivals.iter().map(|arrival| arrival.as_ref().map(|sample| sample.bytes.clone())).collect();
        let mut looks = copies.iter_mut().peekable();
        while looks.peek().is_some() {
            // One look after the other, until neither a packet nor a frame is left.
            let received = std::iter::from_fn(|| {
                let bytes = looks.next()?.as_mut()?;
                Some(Received { bytes, origin: Origin::Session(TunnelIndex(0)) })
            });
            ingress.run(&table(), &mut |_, _, _| {}, &mut |_| {}, &counters, received, &mut sink);
        }
        check_order(&samples, &sink.frames)?;
    }
}

fn is_stub(sample: &Sample) -> bool {
    let l4 = if sample.bytes[0] >> 4 == 6 { 40 } else { 20 };
    sample.bytes.len() < l4 + 4
}

/// One tunnel that delivers whatever its sessions opened.
fn table() -> ForwardingTable {
    ForwardingTable::new(vec![Tunnel {
        name: "wg0".into(),
        kind: TunnelKind::WireGuard,
        vni: 0,
        local: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        port: 51820,
        remotes: Vec::new(),
        learning: false,
        static_macs: Vec::new(),
        routes: Vec::new(),
        mtu: 1420,
        udp_checksum: true,
        udp6_zero_checksum_rx: false,
        udp6_zero_checksum_tx: false,
        dscp: 0,
    }])
}
