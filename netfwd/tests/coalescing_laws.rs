//! The laws of ingress over random batches: the re-split law, no laundering, order, and that every packet is accounted
//! for exactly once.

mod packets;

use std::collections::BTreeMap;

use netfwd::datapath::gro::{Coalescer, GroConfig, MAX_BATCH};
use netfwd::datapath::packet::{Checksums, InnerPacket, Link, TunnelIndex};
use netfwd::datapath::stats::Counters;
use packets::*;
use proptest::prelude::*;

/// What happens to one packet of a flow.
#[derive(Clone, Debug)]
enum Event {
    /// The next segment, as long as the flow's others.
    Next,
    /// The next segment, `len` bytes long.
    Sized(usize),
    /// The next segment with these flags.
    Flags(u8),
    /// The next segment with one header field changed, from now on or for once.
    Field { which: u8, sticks: bool },
    /// A segment is skipped.
    Lost,
    /// The last segment again.
    Again,
    /// A bit flipped, so not verified.
    Damaged(usize),
    /// The next segment, not verified.
    Doubtful,
    /// A fragment.
    Fragment,
    /// A packet of another protocol.
    OtherProtocol,
    /// Cut short.
    Cut(usize),
    /// A UDP datagram without checksum.
    NoChecksum,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        60 => Just(Event::Next),
        4 => (0usize..300).prop_map(Event::Sized),
        4 => any::<u8>().prop_map(Event::Flags),
        2 => Just(Event::Flags(ACK | PSH)),
        1 => Just(Event::Flags(ACK | FIN)),
        6 => (0u8..13, any::<bool>()).prop_map(|(which, sticks)| Event::Field { which, sticks }),
        2 => Just(Event::Lost),
        2 => Just(Event::Again),
        3 => any::<usize>().prop_map(Event::Damaged),
        2 => Just(Event::Doubtful),
        2 => Just(Event::Fragment),
        1 => Just(Event::OtherProtocol),
        1 => any::<usize>().prop_map(Event::Cut),
        1 => Just(Event::NoChecksum),
    ]
}

/// A flow: index into a few combinations of tunnel, family, protocol and address pair.
fn flow_template(flow: usize) -> (u16, Packet) {
    let base = Packet {
        v6: flow & 1 != 0,
        udp: flow & 2 != 0,
        source: 1 + (flow as u8 >> 2 & 1),
        ports: (1000 + (flow as u16 >> 3 & 1), 2000),
        df: flow.is_multiple_of(3),
        id: 65_530,
        sequence: u32::MAX - 700,
        tcp_options: if flow.is_multiple_of(5) { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { Vec::new() },
        payload: pattern([100, 37, 250][flow % 3], flow as u32),
        ..Packet::default()
    };
    ((flow >> 4 & 1) as u16, base)
}

fn change_field(packet: &mut Packet, which: u8) {
    match which {
        0 => packet.window ^= 1,
        1 => packet.acknowledgement ^= 1,
        2 => packet.urgent ^= 1,
        3 => packet.tos ^= 1,
        4 => packet.tos ^= 0x20,
        5 => packet.ttl ^= 1,
        6 => packet.df ^= true,
        7 => packet.id = packet.id.wrapping_add(5),
        8 => packet.label ^= 1,
        9 => packet.ip_options = if packet.ip_options.is_empty() { vec![1, 1, 1, 0] } else { Vec::new() },
        10 => packet.extension = if packet.extension.is_none() { Some(60) } else { None },
        11 => packet.reserved ^= 1,
        _ => packet.tcp_options = if packet.tcp_options.is_empty() { vec![1, 1, 1, 1] } else { Vec::new() },
    }
}

/// One packet of a batch.
#[derive(Clone, Debug)]
struct Sample {
    tunnel: u16,
    bytes: Vec<u8>,
    checksums: Checksums,
}

fn apply(packet: &mut Packet, event: &Event, number: u32) -> (Vec<u8>, Checksums) {
    let payload = pattern(packet.payload.len().max(1), number);
    let verified = |packet: &Packet| (packet.build(), Checksums::Verified);
    match event {
        Event::Again => return verified(packet),
        Event::Lost => {
            *packet = packet.following(payload.clone());
            *packet = packet.following(payload);
        }
        Event::Sized(len) => {
            let usual = packet.payload.len().max(1);
            let mut sized = packet.following(pattern(*len, number));
            let built = verified(&sized);
            // What follows continues behind it with the usual size.
            sized.sequence = sized.sequence.wrapping_add(*len as u32).wrapping_sub(usual as u32);
            sized.payload = pattern(usual, number);
            *packet = sized;
            return built;
        }
        _ => *packet = packet.following(payload),
    }
    let mut once = packet.clone();
    match event {
        Event::Flags(flags) => once.flags = *flags,
        Event::Field { which, sticks } => {
            change_field(&mut once, *which);
            if *sticks {
                *packet = once.clone();
            }
        }
        Event::NoChecksum if once.udp => {
            once.zero_checksum = true;
            return (once.build(), Checksums::Absent);
        }
        _ => {}
    }
    let (mut bytes, mut checksums) = verified(&once);
    match event {
        Event::Damaged(at) => {
            let bit = at % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            checksums = Checksums::Bad;
        }
        Event::Doubtful => checksums = Checksums::Unverified,
        Event::Fragment if !once.v6 => {
            bytes[6] |= 0x20;
            fix_ipv4_checksum(&mut bytes);
            checksums = Checksums::Unverified;
        }
        Event::OtherProtocol if !once.v6 && once.ip_options.is_empty() => {
            bytes[9] = 1;
            fix_ipv4_checksum(&mut bytes);
        }
        Event::Cut(len) => {
            bytes.truncate(1 + len % bytes.len());
            checksums = Checksums::Unverified;
        }
        _ => {}
    }
    (bytes, checksums)
}

/// A batch: each step picks a flow and what happens to it.
fn batch() -> impl Strategy<Value = Vec<Sample>> {
    let steps = prop::collection::vec((0usize..32, 1usize..8, event()), 1..90);
    (steps, 1usize..32).prop_map(|(steps, flows)| {
        let mut states: BTreeMap<usize, (u16, Packet)> = BTreeMap::new();
        let mut samples = Vec::new();
        for (flow, train, event) in steps {
            let (tunnel, packet) = states.entry(flow % flows).or_insert_with(|| flow_template(flow % flows));
            // A train of plain segments behind the event, so that there are runs to break.
            for n in 0..train {
                let number = samples.len() as u32;
                let (bytes, checksums) = apply(packet, if n == 0 { &event } else { &Event::Next }, number);
                samples.push(Sample { tunnel: *tunnel, bytes, checksums });
            }
        }
        samples
    })
}

struct Outcome {
    frames: Vec<Written>,
    counters: Counters,
}

fn coalesce(samples: &[Sample], config: &GroConfig, ethernet: bool) -> Outcome {
    let packets = inner_packets(samples, ethernet);
    let (mut sink, counters) = (Sink::default(), Counters::new(2));
    Coalescer::new(config).coalesce(&packets, &counters, &mut sink);
    Outcome { frames: sink.frames, counters }
}

/// Writes a frame in the middle of a batch whenever so many packets as the next portion says have been added.
fn coalesce_in_portions(samples: &[Sample], portions: &[usize]) -> Outcome {
    let packets = inner_packets(samples, false);
    let (mut sink, counters) = (Sink::default(), Counters::new(2));
    let mut coalescer = Coalescer::new(&GroConfig::default());
    let mut portions = portions.iter().cycle();
    for batch in packets.chunks(MAX_BATCH) {
        coalescer.begin();
        let mut left = 0;
        for count in 1..=batch.len() {
            coalescer.add(&batch[..count], &counters);
            if left == 0 {
                coalescer.write_next(&batch[..count], &counters, &mut sink);
                left = portions.next().copied().unwrap_or_default();
            }
            left -= 1;
        }
        coalescer.finish(batch, &counters, &mut sink);
    }
    Outcome { frames: sink.frames, counters }
}

fn inner_packets(samples: &[Sample], ethernet: bool) -> Vec<InnerPacket<'_>> {
    let link = if ethernet { Link::Ethernet } else { Link::Ip };
    let packets = samples.iter().map(|Sample { tunnel, bytes, checksums }| {
        let tunnel = TunnelIndex(*tunnel);
        InnerPacket { tunnel, link, bytes, checksums: *checksums }
    });
    packets.collect()
}

/// A flow as a receiver would tell it, read without the code under test: tunnel, addresses, protocol and ports. The
/// packets of one flow must stay in order; so must a fragment and all flows between its addresses.
fn flow_of(tunnel: u16, packet: &[u8], ethernet: bool) -> Option<(u16, Vec<u8>)> {
    let ip = packet.get(link_len(ethernet, packet)..)?;
    let (addresses, protocol, ports) = match ip.first()? >> 4 {
        4 => (ip.get(12..20)?, *ip.get(9)?, ip.get(usize::from(ip[0] & 0xf) * 4..)?),
        6 => (ip.get(8..40)?, *ip.get(6)?, ip.get(40..)?),
        _ => return None,
    };
    let is_fragment = ip[0] >> 4 == 4 && (ip[6] & 0x3f != 0 || ip[7] != 0);
    if is_fragment || !matches!(protocol, 6 | 17) {
        return None;
    }
    Some((tunnel, [&[protocol], addresses, ports.get(..4)?].concat()))
}

/// Cuts all frames, pairing each packet with whether it was in a superframe.
fn cut(outcome: &Outcome, ethernet: bool) -> Vec<(u16, Vec<u8>, bool)> {
    let cut_frame = |frame: &Written| {
        let (tunnel, merged) = (frame.tunnel.0, frame.packets > 1);
        resplit(frame, ethernet).into_iter().map(move |packet| (tunnel, packet, merged)).collect::<Vec<_>>()
    };
    outcome.frames.iter().flat_map(cut_frame).collect()
}

fn comparable(packet: &[u8], merged: bool, ethernet: bool) -> Vec<u8> {
    if merged { without_atomic_id(packet, ethernet) } else { packet.to_vec() }
}

/// Finds for each packet that came out the packet that went in, in the order of its flow.
fn check_resplit_law(
    samples: &[Sample],
    outcome: &Outcome,
    ethernet: bool,
) -> Result<Vec<(usize, bool)>, TestCaseError> {
    let mut waiting: Vec<Option<&Sample>> = samples.iter().map(Some).collect();
    let mut origin = Vec::new();
    for (tunnel, packet, merged) in cut(outcome, ethernet) {
        let wanted = comparable(&packet, merged, ethernet);
        let flow = flow_of(tunnel, &packet, ethernet);
        // The first packet of the same flow that is still waiting must be this one.
        let position = waiting.iter().position(|slot| {
            slot.is_some_and(|sample| {
                sample.tunnel == tunnel
                    && match &flow {
                        Some(flow) => flow_of(tunnel, &sample.bytes, ethernet).as_ref() == Some(flow),
                        None => sample.bytes == packet,
                    }
            })
        });
        let Some(position) = position else { return Err(TestCaseError::fail("a packet that never went in")) };
        let Some(sample) = waiting[position].take() else { continue };
        let original = comparable(&sample.bytes, merged, ethernet);
        prop_assert_eq!(wanted, original, "byte for byte, in the order of the flow");
        origin.push((position, merged));
    }
    prop_assert!(waiting.iter().all(Option::is_none), "every packet comes out");
    Ok(origin)
}

fn check_counters(samples: &[Sample], outcome: &Outcome) -> Result<(), TestCaseError> {
    let total = |pick: fn(&netfwd::datapath::stats::TunnelCounters) -> u64| -> u64 {
        outcome.counters.tunnels.iter().map(pick).sum()
    };
    let input = total(|tunnel| tunnel.gro_input_packets.iter().map(|counter| counter.get()).sum());
    let output = total(|tunnel| tunnel.gro_output_frames.iter().map(|counter| counter.get()).sum());
    let flushed: u64 = outcome.counters.gro_flush.iter().map(|counter| counter.get()).sum();
    let merged: usize = outcome.frames.iter().map(|frame| frame.packets - 1).sum();
    prop_assert_eq!(input, samples.len() as u64);
    prop_assert_eq!(output, outcome.frames.len() as u64);
    prop_assert_eq!(flushed, output, "every frame has one seed and every seed one reason");
    prop_assert_eq!(input - output, merged as u64);
    prop_assert_eq!(total(|tunnel| tunnel.tun_write_frames.get()), output);
    prop_assert_eq!(outcome.counters.gro_frame_segments_sum.get(), input);
    Ok(())
}

fn check_no_laundering(samples: &[Sample], origin: &[(usize, bool)]) -> Result<(), TestCaseError> {
    for &(position, merged) in origin {
        prop_assert!(!merged || samples[position].checksums == Checksums::Verified);
    }
    Ok(())
}

/// Whether `packet` is an IPv4 fragment, and the addresses it goes between.
fn fragment_pair(sample: &Sample) -> Option<(u16, Vec<u8>)> {
    let ip = &sample.bytes;
    let is_fragment = ip.len() >= 20 && ip[0] >> 4 == 4 && (ip[6] & 0x3f != 0 || ip[7] != 0);
    is_fragment.then(|| (sample.tunnel, ip[12..20].to_vec()))
}

/// A fragment is overtaken by no packet between the same addresses, and overtakes none.
fn check_fragments(samples: &[Sample], origin: &[(usize, bool)]) -> Result<(), TestCaseError> {
    let mut out_at = vec![0; samples.len()];
    for (place, &(position, _)) in origin.iter().enumerate() {
        out_at[position] = place;
    }
    for (position, sample) in samples.iter().enumerate() {
        let Some(pair) = fragment_pair(sample) else { continue };
        for (other, sibling) in samples.iter().enumerate() {
            let same_flow = sibling.bytes.len() >= 24
                && sibling.bytes[0] >> 4 == 4
                && matches!(sibling.bytes[9], 6 | 17)
                && (sibling.tunnel, sibling.bytes[12..20].to_vec()) == pair;
            if same_flow {
                prop_assert_eq!(other < position, out_at[other] < out_at[position], "{} and {}", position, other);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn superframes_resplit_into_what_came_in(samples in batch()) {
        let outcome = coalesce(&samples, &GroConfig::default(), false);
        let origin = check_resplit_law(&samples, &outcome, false)?;
        check_no_laundering(&samples, &origin)?;
        check_counters(&samples, &outcome)?;
        // Repeated packets are told apart by their first occurrence, so the order is only certain without them.
        let mut all: Vec<_> = samples.iter().map(|sample| (sample.tunnel, &sample.bytes)).collect();
        all.sort();
        if samples.len() <= 256 && all.windows(2).all(|pair| pair[0] != pair[1]) {
            check_fragments(&samples, &origin)?;
        }
    }

    #[test]
    fn the_same_holds_when_frames_are_written_in_between(
        samples in batch(),
        portions in prop::collection::vec(1usize..20, 1..8),
    ) {
        let outcome = coalesce_in_portions(&samples, &portions);
        let origin = check_resplit_law(&samples, &outcome, false)?;
        check_no_laundering(&samples, &origin)?;
        check_counters(&samples, &outcome)?;
    }

    #[test]
    fn the_same_holds_on_tap(samples in batch(), tags in prop::collection::vec(0usize..3, 1..4)) {
        let framed: Vec<_> = samples
            .iter()
            .enumerate()
            .filter(|(_, sample)| sample.bytes[0] >> 4 == 4 || sample.bytes[0] >> 4 == 6)
            .map(|(n, sample)| {
                // Runs of packets share a tag stack, which now and then changes.
                let tags = &[7, 8][..tags[n / 40 % tags.len()]];
                Sample { bytes: ethernet(&sample.bytes, 1, tags), ..sample.clone() }
            })
            .collect();
        let outcome = coalesce(&framed, &GroConfig::default(), true);
        let origin = check_resplit_law(&framed, &outcome, true)?;
        check_no_laundering(&framed, &origin)?;
        check_counters(&framed, &outcome)?;
    }

    #[test]
    fn switched_off_means_untouched(samples in batch()) {
        let config = GroConfig { tcp: false, udp: false, ..GroConfig::default() };
        let outcome = coalesce(&samples, &config, false);
        let out: Vec<_> = outcome.frames.iter().map(|frame| frame.bytes[10..].to_vec()).collect();
        prop_assert_eq!(out, samples.iter().map(|sample| sample.bytes.clone()).collect::<Vec<_>>());
        check_counters(&samples, &outcome)?;
    }

    #[test]
    fn any_bytes_pass_without_a_panic(
        samples in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..120), 0u8..8), 0..60),
        ethernet: bool,
    ) {
        // Nibbles and protocols that lead deep into the parser, random bytes behind them, all of it called verified.
        let samples: Vec<_> = samples
            .into_iter()
            .map(|(mut bytes, kind)| {
                let at = if ethernet { 14 } else { 0 };
                for (offset, value) in match kind {
                    0 | 1 => vec![(at, 0x45), (at + 6, 0x40), (at + 7, 0), (at + 9, 6 + 11 * (kind & 1))],
                    2 | 3 => vec![(at, 0x60), (at + 6, 6 + 11 * (kind & 1))],
                    _ => vec![],
                } {
                    if let Some(byte) = bytes.get_mut(offset) {
                        *byte = value;
                    }
                }
                if ethernet && bytes.len() >= 14 {
                    let ethertype = if kind & 2 == 0 { [8, 0] } else { [0x86, 0xdd] };
                    bytes[12..14].copy_from_slice(&ethertype);
                }
                Sample { tunnel: 0, bytes, checksums: Checksums::Verified }
            })
            .collect();
        let outcome = coalesce(&samples, &GroConfig::default(), ethernet);
        check_counters(&samples, &outcome)?;
    }
}
