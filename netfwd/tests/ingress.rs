//! The way in as a whole: what becomes of frames and datagrams, good and bad.

mod packets;

use std::net::IpAddr;

use netfwd::datapath::gro::GroConfig;
use netfwd::datapath::ingress::{Ingress, Origin, Received};
use netfwd::datapath::packet::{RemoteIndex, TunnelIndex};
use netfwd::datapath::stats::{Counters, Direction};
use netfwd::datapath::table::{ForwardingTable, Tunnel, VerifyPolicy, address_bytes};
use netfwd::datapath::tunnel::decap::SocketOrigin;
use netfwd_common::abi::{METADATA_MAGIC, METADATA_VERSION, Metadata, TunnelKind, Verify};
use netfwd_common::reason::{DropReason, FlushReason, Stage};
use packets::*;
use proptest::prelude::*;
use zerocopy::IntoBytes;

const L2: u16 = 0;
const L3: u16 = 1;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Tunnel 0 is VXLAN with VNI 7, tunnel 1 GPE with VNI 8 and routes; both have two remotes.
fn table() -> ForwardingTable {
    let tunnel = |kind, port, vni, routes| Tunnel {
        name: format!("t{vni}"),
        kind,
        vni,
        local: address("192.0.2.1"),
        port,
        remotes: vec![address("192.0.2.2"), address("192.0.2.3")],
        learning: true,
        static_macs: Vec::new(),
        routes,
        mtu: 1450,
        udp_checksum: false,
        udp6_zero_checksum_rx: false,
        udp6_zero_checksum_tx: false,
        dscp: 0,
    };
    let route = |prefix: &str, remote| (prefix.parse().expect("a prefix"), RemoteIndex(remote));
    let routes = vec![route("10.9.8.0/24", 0), route("10.9.8.77/32", 1), route("fd00::/8", 0)];
    ForwardingTable::new(vec![
        tunnel(TunnelKind::Vxlan, 4789, 7, vec![]),
        tunnel(TunnelKind::VxlanGpe, 4790, 8, routes),
    ])
}

struct World {
    table: ForwardingTable,
    policy: VerifyPolicy,
    counters: Counters,
    sink: Sink,
    learned: Vec<(TunnelIndex, [u8; 6], RemoteIndex)>,
}

impl World {
    fn new() -> Self {
        Self {
            table: table(),
            policy: VerifyPolicy::default(),
            counters: Counters::new(2),
            sink: Sink::default(),
            learned: Vec::new(),
        }
    }

    fn with_policy(verify: Verify, accept_partial: bool) -> Self {
        Self { policy: VerifyPolicy { verify, accept_partial }, ..Self::new() }
    }

    fn run(&mut self, batch: Vec<(Vec<u8>, Origin)>) -> &[Written] {
        self.run_in_portions(batch.into_iter().map(Some).collect())
    }

    /// Each `None` stands for a look at the ring that finds nothing.
    fn run_in_portions(&mut self, mut batch: Vec<Option<(Vec<u8>, Origin)>>) -> &[Written] {
        let mut ingress = Ingress::new(&GroConfig::default(), self.policy);
        let learned = &mut self.learned;
        let mut arrivals = batch.iter_mut();
        let received = std::iter::from_fn(|| {
            let (bytes, origin) = arrivals.next()?.as_mut()?;
            Some(Received { bytes, origin: *origin })
        });
        let mut learn = |tunnel, mac, remote| learned.push((tunnel, mac, remote));
        ingress.run(&self.table, &mut learn, &mut |_| {}, &self.counters, received, &mut self.sink);
        &self.sink.frames
    }

    fn drops(&self, stage: Stage, reason: DropReason) -> u64 {
        self.counters.drops.get(Direction::Ingress, stage, reason)
    }

    fn all_drops(&self) -> u64 {
        let one_stage = |stage: Stage| DropReason::ALL.iter().map(move |reason| (stage, *reason));
        Stage::ALL.into_iter().flat_map(one_stage).map(|(stage, reason)| self.drops(stage, reason)).sum()
    }

    /// One datagram that must be dropped under this reason and no other.
    fn must_drop(mut self, datagram: (Vec<u8>, Origin), stage: Stage, reason: DropReason) {
        assert_eq!(self.run(vec![datagram]), []);
        assert_eq!(self.drops(stage, reason), 1, "{reason:?} in {stage:?}");
        assert_eq!(self.all_drops(), 1);
    }
}

fn origin(port: u16, ecn: u8) -> SocketOrigin {
    let [local, remote] = ["192.0.2.1", "192.0.2.2"].map(|text| address_bytes(address(text)));
    SocketOrigin { local, port, remote, remote_port: 50_000, scope: 0, ecn }
}

fn vxlan(inner: &[u8]) -> (Vec<u8>, Origin) {
    vxlan_marked(inner, 0)
}

fn vxlan_marked(inner: &[u8], ecn: u8) -> (Vec<u8>, Origin) {
    ([&[8, 0, 0, 0, 0, 0, 7, 0], inner].concat(), Origin::Socket(origin(4789, ecn)))
}

fn gpe(inner: &[u8]) -> (Vec<u8>, Origin) {
    let next = if inner.first().is_some_and(|byte| byte >> 4 == 6) { 2 } else { 1 };
    ([&[12, 0, 0, next, 0, 0, 8, 0], inner].concat(), Origin::Socket(origin(4790, 0)))
}

fn record(tunnel: u16, inner_offset: u16, inner_len: u16) -> Metadata {
    Metadata {
        magic: METADATA_MAGIC,
        version: METADATA_VERSION,
        checksums: 1,
        tunnel,
        remote: 0,
        inner_offset,
        inner_len,
        ecn: 0,
        message: 0,
        flow_hash: 0,
    }
}

fn recorded(frame: Vec<u8>, record: Metadata) -> (Vec<u8>, Origin) {
    (frame, Origin::Xdp { metadata: record.as_bytes().try_into().ok() })
}

#[test]
fn a_train_from_xdp_becomes_one_superframe() {
    let mut packet = tcp(false);
    let batch = (0..10)
        .map(|n| {
            packet = packet.following(pattern(1000, n));
            let inner = ethernet(&packet.build(), 1, &[]);
            recorded([vec![0xee; 50], inner.clone(), vec![0; 6]].concat(), record(L2, 50, inner.len() as u16))
        })
        .collect();
    let mut world = World::new();
    assert_eq!(world.run(batch).iter().map(|frame| frame.packets).collect::<Vec<_>>(), [10]);
    assert_eq!(world.counters.tunnels[0].receive_packets.get(), 10);
    assert_eq!(world.counters.tunnels[0].receive_bytes.get(), 10 * 1054);
    assert_eq!(resplit(&world.sink.frames[0], true)[9], ethernet(&packet.build(), 1, &[]));
}

#[test]
fn what_arrives_while_a_frame_is_written_joins_the_runs_that_are_left() {
    let mut flows = [tcp(false), Packet { ports: (5, 6), ..tcp(false) }];
    let mut next = |flow: usize| {
        flows[flow] = flows[flow].following(pattern(1000, flow as u32));
        vxlan(&ethernet(&flows[flow].build(), 1, &[]))
    };
    // The second flow's run is still open when its next packet comes, the first flow's is written.
    let arrivals = vec![Some(next(0)), Some(next(1)), None, Some(next(0)), Some(next(1)), None, None];
    let inner = |arrival: &Option<(Vec<u8>, Origin)>| arrival.as_ref().map(|(bytes, _)| bytes[8..].to_vec());
    let [a1, b1, _, a2, b2, ..] = &arrivals.iter().map(inner).collect::<Vec<_>>()[..] else { unreachable!() };
    let mut world = World::new();
    let frames = world.run_in_portions(arrivals.clone());
    let out: Vec<_> = frames.iter().flat_map(|frame| resplit(frame, true)).map(Some).collect();
    assert_eq!(frames.iter().map(|frame| frame.packets).collect::<Vec<_>>(), [1, 2, 1]);
    assert_eq!(out, [a1, b1, b2, a2].map(Clone::clone));
}

#[test]
fn sockets_and_xdp_feed_the_same_run() {
    let first = udp(true);
    let second = first.following(pattern(100, 2));
    let frame = recorded(second.build(), record(L3, 0, second.build().len() as u16));
    let mut world = World::new();
    assert_eq!(world.run(vec![gpe(&first.build()), frame])[0].packets, 2);
}

#[test]
fn a_record_that_contradicts_the_frame_is_a_drop() {
    let inner = tcp(false).build();
    let len = inner.len() as u16;
    let bad = |change: fn(&mut Metadata)| {
        let mut record = record(L3, 0, len);
        change(&mut record);
        World::new().must_drop(recorded(inner.clone(), record), Stage::Decap, DropReason::BadMetadata);
    };
    bad(|record| record.inner_len += 1);
    bad(|record| record.inner_offset = 1);
    bad(|record| record.inner_offset = u16::MAX);
    bad(|record| record.tunnel = 2);
    bad(|record| record.remote = 2);
    bad(|record| record.checksums = 5);
}

#[test]
fn a_datagram_must_match_exactly() {
    let inner = ethernet(&tcp(false).build(), 1, &[]);
    let wrong = |change: fn(&mut Vec<u8>, &mut SocketOrigin), reason| {
        let (mut bytes, mut origin) = (vxlan(&inner).0, origin(4789, 0));
        change(&mut bytes, &mut origin);
        World::new().must_drop((bytes, Origin::Socket(origin)), Stage::Decap, reason);
    };
    wrong(|bytes, _| bytes[6] = 9, DropReason::UnknownVni);
    wrong(|_, origin| origin.remote[15] = 99, DropReason::RemoteNotAllowed);
    wrong(|_, origin| origin.port = 4790, DropReason::TunnelHeader);
    wrong(|_, origin| origin.local[15] = 99, DropReason::UnknownVni);
    wrong(|bytes, _| bytes[0] = 0, DropReason::TunnelHeader);
    wrong(|bytes, _| bytes[7] = 1, DropReason::TunnelHeader);
    wrong(|bytes, _| bytes.truncate(7), DropReason::BadLength);
}

#[test]
fn a_gpe_header_must_agree_with_the_packet() {
    let (mut bytes, origin) = gpe(&tcp(true).build());
    bytes[3] = 1;
    World::new().must_drop((bytes, origin), Stage::Decap, DropReason::InnerHeader);
    let (mut bytes, origin) = gpe(&tcp(true).build());
    bytes[0] |= 1;
    World::new().must_drop((bytes, origin), Stage::Decap, DropReason::Oam);
    let (mut bytes, origin) = gpe(&tcp(true).build());
    bytes[3] = 3;
    World::new().must_drop((bytes, origin), Stage::Decap, DropReason::UnknownProtocol);
}

#[test]
fn an_inner_source_must_lie_behind_its_remote() {
    let from = |source| gpe(&Packet { source, ..tcp(false) }.build());
    let mut world = World::new();
    assert_eq!(world.run(vec![from(1)]).len(), 1);
    World::new().must_drop(from(77), Stage::Decap, DropReason::InnerSourceDenied);
    let mut outside = tcp(false).build();
    outside[12] = 11;
    World::new().must_drop(gpe(&outside), Stage::Decap, DropReason::InnerSourceDenied);
}

#[test]
fn tunnels_are_not_nested() {
    let mut packet = udp(false);
    packet.ports.1 = 4789;
    let mut inner = packet.build();
    inner[16..20].copy_from_slice(&[192, 0, 2, 1]);
    World::new().must_drop(gpe(&inner), Stage::Decap, DropReason::Nested);
    inner[16..20].copy_from_slice(&[192, 0, 2, 9]);
    fix_ipv4_checksum(&mut inner);
    // Another host's tunnel passes, though its UDP checksum is wrong by now.
    let mut world = World::with_policy(Verify::Count, false);
    assert_eq!(world.run(vec![gpe(&inner)]).len(), 1);
}

#[test]
fn congestion_on_the_underlay_reaches_the_inner_packet() {
    for v6 in [false, true] {
        for tags in [&[][..], &[5], &[5, 6]] {
            let packet = Packet { tos: 0b10, ..tcp(v6) };
            let marked = Packet { tos: 0b11, ..packet.clone() };
            let mut world = World::new();
            let frames = world.run(vec![vxlan_marked(&ethernet(&packet.build(), 1, tags), 0b11)]);
            assert_eq!(frames[0].bytes[10..], ethernet(&marked.build(), 1, tags), "v6 {v6}, tags {tags:?}");
            let not_ect = ethernet(&tcp(v6).build(), 1, tags);
            World::new().must_drop(vxlan_marked(&not_ect, 0b11), Stage::Decap, DropReason::EcnCeNotEct);
        }
    }
}

#[test]
fn packets_that_differ_only_in_congestion_marks_are_not_merged() {
    let first = Packet { tos: 0b10, ..tcp(false) };
    let second = first.following(pattern(100, 2));
    let third = second.following(pattern(100, 3));
    let framed = |packet: &Packet, ecn| vxlan_marked(&ethernet(&packet.build(), 1, &[]), ecn);
    let mut world = World::new();
    let frames = world.run(vec![framed(&first, 0b10), framed(&second, 0b11), framed(&third, 0b11)]);
    assert_eq!(frames.iter().map(|frame| frame.packets).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(world.counters.gro_flush[FlushReason::Tos.index()].get(), 1);
}

#[test]
fn what_is_not_ip_is_delivered_as_it_came() {
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[8, 6], &[7; 46]].concat();
    let lldp = [&[1, 0x80, 0xc2, 0, 0, 14][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xcc], &[9; 60]].concat();
    let mut world = World::new();
    let frames = world.run(vec![vxlan_marked(&arp, 0b11), vxlan(&lldp)]);
    assert_eq!(frames[0].bytes[10..], arp);
    assert_eq!(frames[1].bytes[10..], lldp);
    World::new().must_drop(vxlan(&arp[..13]), Stage::Vet, DropReason::InnerHeader);
}

#[test]
fn unusual_packets_pass_unmerged() {
    let mut fragment = udp(false).build();
    fragment[6] = 0x20;
    fix_ipv4_checksum(&mut fragment);
    let options = Packet { ip_options: vec![1, 1, 1, 0], ..tcp(false) }.build();
    let extension = Packet { extension: Some(60), ..tcp(true) }.build();
    for packet in [fragment, options, extension] {
        let mut world = World::new();
        let frames = world.run(vec![gpe(&packet), gpe(&packet)]);
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[1].bytes[10..], packet);
    }
}

#[test]
fn padding_is_trimmed() {
    let packet = tcp(false).with_payload(vec![1]).build();
    let mut frame = ethernet(&packet, 1, &[]);
    let trimmed = frame.clone();
    frame.resize(64, 0);
    assert_eq!(World::new().run(vec![vxlan(&frame)])[0].bytes[10..], trimmed);
}

#[test]
fn lengths_that_lie_are_a_drop() {
    let mut long = tcp(false).build();
    long[3] += 1;
    fix_ipv4_checksum(&mut long);
    World::new().must_drop(gpe(&long), Stage::Vet, DropReason::InnerHeader);
    let mut udp_long = udp(true).build();
    udp_long[45] += 1;
    World::new().must_drop(gpe(&udp_long), Stage::Vet, DropReason::InnerHeader);
    let mut offset = tcp(true).build();
    offset[52] = 0x40;
    World::new().must_drop(gpe(&offset), Stage::Vet, DropReason::InnerHeader);
}

/// A packet with a damaged payload, one with a damaged IPv4 header.
fn damaged() -> [(Vec<u8>, DropReason); 3] {
    let mut payload = tcp(true).build();
    payload[90] ^= 4;
    let mut datagram = udp(false).build();
    datagram[60] ^= 1;
    let mut header = tcp(false).build();
    header[8] ^= 1;
    [
        (payload, DropReason::InnerL4Checksum),
        (datagram, DropReason::InnerL4Checksum),
        (header, DropReason::InnerIpChecksum),
    ]
}

#[test]
fn a_corrupt_packet_is_dropped_or_stays_corrupt() {
    for (packet, reason) in damaged() {
        World::new().must_drop(gpe(&packet), Stage::Vet, reason);
        let mut world = World::with_policy(Verify::Count, false);
        let frames = world.run(vec![gpe(&packet), gpe(&packet)]);
        assert_eq!(frames.len(), 2, "never merged");
        assert_eq!(frames[0].bytes[10..], packet, "byte for byte");
        assert_eq!(world.counters.tolerated[reason.index()].get(), 2);
        let mut world = World::with_policy(Verify::Off, false);
        assert_eq!(world.run(vec![gpe(&packet), gpe(&packet)])[1].bytes[10..], packet);
        assert_eq!(world.counters.tolerated[reason.index()].get(), 0);
    }
}

#[test]
fn verify_off_still_verifies_what_it_merges() {
    let (first, second) = (tcp(false), tcp(false).following(pattern(100, 2)));
    let mut world = World::with_policy(Verify::Off, false);
    assert_eq!(world.run(vec![gpe(&first.build()), gpe(&second.build())])[0].packets, 2);
}

/// The packet as a local sender leaves it: the checksum field holds the bare pseudo-header sum.
fn unfinished(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.build();
    let l4 = if packet.v6 { 40 } else { 20 };
    let at = l4 + if packet.udp { 6 } else { 16 };
    let (source, destination) = addresses(&bytes, packet.v6);
    let sum = pseudo_sum(source, destination, packet.protocol(), bytes.len() - l4);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn unfinished_checksums_are_told_apart_and_finished_when_asked_to() {
    for packet in [tcp(false), tcp(true), udp(false), udp(true)] {
        let bytes = unfinished(&packet);
        World::new().must_drop(gpe(&bytes), Stage::Vet, DropReason::PartialChecksum);
        let mut world = World::with_policy(Verify::Drop, true);
        assert_eq!(world.run(vec![gpe(&bytes)])[0].bytes[10..], packet.build(), "finished");
        // XDP flags it, and it becomes mergeable.
        let flagged = |packet: &Packet| {
            let bytes = unfinished(packet);
            let record = Metadata { checksums: 3, ..record(L3, 0, bytes.len() as u16) };
            recorded(bytes, record)
        };
        let mut world = World::with_policy(Verify::Drop, true);
        let frames = world.run(vec![flagged(&packet), flagged(&packet.following(pattern(100, 2)))]);
        assert_eq!(frames[0].packets, 2);
        assert_eq!(resplit(&frames[0], false)[0], packet.build());
    }
}

/// The packet with a last word that makes its right checksum the bare pseudo-header sum, as one packet in 65,535 has it.
fn looking_unfinished(mut packet: Packet) -> Packet {
    let last = packet.payload.len() - 2;
    packet.payload[last..].fill(0);
    let at = packet.build().len() - packet.payload.len() - if packet.udp { 2 } else { 4 };
    let (right, bare) = (packet.build(), unfinished(&packet));
    // What is missing between the sum of all the rest and the complement of the wanted field.
    let word = ones_sum(&[&right[at..at + 2], &[!bare[at], !bare[at + 1]]]);
    packet.payload[last..].copy_from_slice(&word.to_be_bytes());
    packet
}

#[test]
fn damage_where_the_right_checksum_looks_unfinished_is_counted_as_that_and_never_merged() {
    let reason = DropReason::PartialChecksum;
    for packet in [tcp(false), tcp(true), udp(false), udp(true)].map(looking_unfinished) {
        let mut bytes = packet.build();
        assert_eq!(bytes, unfinished(&packet));
        assert_eq!(World::new().run(vec![gpe(&bytes)])[0].bytes[10..], bytes, "it is right");
        *bytes.last_mut().expect("a payload") ^= 1;
        World::new().must_drop(gpe(&bytes), Stage::Vet, reason);
        let mut world = World::with_policy(Verify::Count, false);
        let frames = world.run(vec![gpe(&bytes), gpe(&bytes)]);
        assert_eq!((frames.len(), &frames[0].bytes[10..]), (2, &bytes[..]));
        assert_eq!(world.counters.tolerated[reason.index()].get(), 2);
        assert_eq!(world.counters.gro_flush[FlushReason::Checksum.index()].get(), 2);
    }
}

#[test]
fn a_finished_udp_checksum_of_zero_is_written_as_ffff() {
    // A last word of what the checksum was without it.
    let mut packet = udp(true);
    packet.payload[98..].fill(0);
    let checksum = packet.build()[46..48].to_vec();
    packet.payload[98..].copy_from_slice(&checksum);
    assert_eq!(packet.build()[46..48], [0xff, 0xff]);
    let mut world = World::with_policy(Verify::Drop, true);
    assert_eq!(world.run(vec![gpe(&unfinished(&packet))])[0].bytes[10..], packet.build());
}

#[test]
fn a_tolerated_packet_keeps_what_stands_behind_it() {
    // The length may be what is damaged.
    let mut frame = ethernet(&damaged()[0].0, 1, &[]);
    frame.resize(frame.len() + 6, 0);
    let mut world = World::with_policy(Verify::Count, false);
    assert_eq!(world.run(vec![vxlan(&frame)])[0].bytes[10..], frame);
}

#[test]
fn a_flag_that_lies_launders_nothing() {
    let mut bytes = tcp(false).build();
    bytes[100] ^= 1;
    let record = Metadata { checksums: 3, ..record(L3, 0, bytes.len() as u16) };
    World::with_policy(Verify::Drop, true).must_drop(recorded(bytes, record), Stage::Vet, DropReason::InnerL4Checksum);
}

#[test]
fn a_datagram_without_checksum_passes_unmerged() {
    let zero = |v6| Packet { zero_checksum: true, ..udp(v6) }.build();
    let mut world = World::new();
    assert_eq!(world.run(vec![gpe(&zero(false))])[0].bytes[10..], zero(false));
    let mut world = World::new();
    let frames = world.run(vec![gpe(&zero(true)), gpe(&zero(true))]);
    assert_eq!(frames.len(), 2, "over IPv6 the receiver decides");
    assert!(frames.iter().all(|frame| frame.bytes[10..] == zero(true)));
}

#[test]
fn unicast_sources_of_good_frames_are_learned_once_per_batch() {
    let frame = |source| ethernet(&tcp(false).build(), source, &[]);
    let mut multicast = frame(1);
    multicast[6] |= 1;
    let mut damaged = frame(9);
    damaged[80] ^= 1;
    let mut batch: Vec<_> = [1, 2, 1, 2, 1].map(|source| vxlan(&frame(source))).into();
    batch.extend([vxlan(&multicast), vxlan(&damaged), gpe(&tcp(false).build())]);
    let mut world = World::new();
    world.run(batch.clone());
    let mac = |last| [2, 0, 0, 0, 0, last];
    let expected = [(TunnelIndex(L2), mac(1), RemoteIndex(0)), (TunnelIndex(L2), mac(2), RemoteIndex(0))];
    assert_eq!(world.learned, expected);
    world.run(batch);
    assert_eq!(world.learned.len(), 4, "the next batch refreshes them");
}

#[test]
fn two_tunnels_with_the_same_inner_addresses_stay_apart() {
    let mut tunnels = table().tunnels().to_vec();
    tunnels[0].kind = TunnelKind::VxlanGpe;
    tunnels[0].port = 4790;
    let mut world = World { table: ForwardingTable::new(tunnels), ..World::new() };
    let other = |packet: &Packet| {
        let (mut bytes, origin) = gpe(&packet.build());
        bytes[6] = 7;
        (bytes, origin)
    };
    let (first, second) = (tcp(false), tcp(false).following(pattern(100, 2)));
    let frames = world.run(vec![gpe(&first.build()), other(&first), gpe(&second.build()), other(&second)]);
    let tunnels: Vec<_> = frames.iter().map(|frame| (frame.tunnel.0, frame.packets)).collect();
    assert_eq!(tunnels, [(L3, 2), (L2, 2)]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_delivered_or_counted(
        batch in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..200), any::<[u8; 16]>(), 0u8..6), 1..20),
    ) {
        let mut world = World::new();
        let total = batch.len() as u64;
        let batch = batch
            .into_iter()
            .map(|(bytes, metadata, kind)| match kind {
                0 => vxlan(&bytes),
                1 => gpe(&bytes),
                2 => (bytes, Origin::Socket(origin(4789, 3))),
                3 => (bytes, Origin::Xdp { metadata: None }),
                4 => (bytes, Origin::Xdp { metadata: Some(metadata) }),
                _ => {
                    let len = bytes.len() as u16;
                    let record = Metadata { checksums: metadata[0] % 5, ..record(u16::from(metadata[1] & 1), 0, len) };
                    recorded(bytes, record)
                }
            })
            .collect();
        let delivered: usize = world.run(batch).iter().map(|frame| frame.packets).sum();
        prop_assert_eq!(delivered as u64 + world.all_drops(), total);
    }

    #[test]
    fn a_flipped_bit_is_never_delivered_as_good(position in any::<prop::sample::Index>(), which in 0usize..4) {
        let packet = [tcp(false), tcp(true), udp(false), udp(true)][which].clone();
        let mut train = vec![packet];
        for n in 1..5 {
            let next = train[n - 1].following(pattern(100, n as u32));
            train.push(next);
        }
        let mut batch: Vec<_> = train.iter().map(|packet| gpe(&packet.build())).collect();
        // Behind the tunnel header and the bits that no checksum of IPv6 covers.
        let start = 8 + if train[0].v6 { 8 } else { 0 };
        let bit = start * 8 + position.index((batch[2].0.len() - start) * 8);
        batch[2].0[bit / 8] ^= 1 << (bit % 8);
        let mut world = World::with_policy(Verify::Count, false);
        let damaged = batch[2].0[8..].to_vec();
        let frames = world.run(batch).to_vec();
        let out: Vec<_> = frames.iter().flat_map(|frame| resplit(frame, false)).collect();
        let good: Vec<_> = train.iter().map(Packet::build).collect();
        for packet in &out {
            let known = *packet == damaged
                || good.iter().any(|good| without_atomic_id(good, false) == without_atomic_id_if_intact(packet));
            prop_assert!(known, "neither as sent nor as damaged");
        }
    }
}

fn without_atomic_id_if_intact(packet: &[u8]) -> Vec<u8> {
    if packet[0] >> 4 == 4 && ones_sum(&[&packet[..20]]) != 0xffff {
        return packet.to_vec();
    }
    without_atomic_id(packet, false)
}
