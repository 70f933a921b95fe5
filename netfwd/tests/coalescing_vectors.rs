//! The rules of COALESCING.md, one named case each.

mod packets;

use netfwd::datapath::gro::{Coalescer, GroConfig};
use netfwd::datapath::packet::{Checksums, InnerPacket, Link, TunnelIndex};
use netfwd::datapath::stats::{Counters, Proto};
use netfwd_common::reason::{DropReason, FlushReason, Stage};
use packets::*;

/// One batch through the coalescer.
struct Batch {
    config: GroConfig,
    ethernet: bool,
    packets: Vec<(u16, Vec<u8>, Checksums)>,
    sink: Sink,
    counters: Counters,
}

impl Batch {
    fn new() -> Self {
        Self {
            config: GroConfig::default(),
            ethernet: false,
            packets: Vec::new(),
            sink: Sink::default(),
            counters: Counters::new(4),
        }
    }

    fn of(packets: impl IntoIterator<Item = Packet>) -> Self {
        packets.into_iter().fold(Self::new(), |batch, packet| batch.and(packet.build()))
    }

    fn and(self, bytes: Vec<u8>) -> Self {
        self.and_tagged(0, bytes, Checksums::Verified)
    }

    fn and_tagged(mut self, tunnel: u16, bytes: Vec<u8>, checksums: Checksums) -> Self {
        self.packets.push((tunnel, bytes, checksums));
        self
    }

    fn with(mut self, change: impl FnOnce(&mut GroConfig)) -> Self {
        change(&mut self.config);
        self
    }

    fn on_tap(mut self) -> Self {
        self.ethernet = true;
        self
    }

    /// Runs it, checks that it re-splits into what came in, in order, and returns the packets per frame.
    fn run(&mut self) -> Vec<usize> {
        let frames = self.run_unchecked();
        let mut out: Vec<(TunnelIndex, Vec<u8>)> = Vec::new();
        for frame in &self.sink.frames {
            out.extend(resplit(frame, self.ethernet).into_iter().map(|packet| (frame.tunnel, packet)));
        }
        assert_eq!(out.len(), self.packets.len(), "every packet comes out exactly once");
        let mut expected: Vec<_> = self.packets.iter().map(|(t, bytes, _)| (TunnelIndex(*t), bytes.clone())).collect();
        let clean = |list: &mut Vec<(TunnelIndex, Vec<u8>)>, ethernet| {
            for (_, packet) in list.iter_mut() {
                if packet.len() >= 20 && ones_sum(&[&packet[..20]]) == 0xffff {
                    *packet = without_atomic_id(packet, ethernet);
                }
            }
            list.sort();
        };
        if !self.ethernet {
            clean(&mut out, false);
            clean(&mut expected, false);
            assert_eq!(out, expected);
        }
        frames
    }

    fn run_unchecked(&mut self) -> Vec<usize> {
        let link = if self.ethernet { Link::Ethernet } else { Link::Ip };
        let batch: Vec<_> = self
            .packets
            .iter()
            .map(|(tunnel, bytes, checksums)| InnerPacket {
                tunnel: TunnelIndex(*tunnel),
                link,
                bytes,
                checksums: *checksums,
            })
            .collect();
        Coalescer::new(&self.config).coalesce(&batch, &self.counters, &mut self.sink);
        self.sink.frames.iter().map(|frame| frame.packets).collect()
    }

    fn reason(&self, reason: FlushReason) -> u64 {
        self.counters.gro_flush[reason.index()].get()
    }
}

/// `count` consecutive segments of `len` bytes.
fn train(first: Packet, count: usize, len: usize) -> Vec<Packet> {
    let mut train = vec![first.with_payload(pattern(len, 0))];
    for n in 1..count {
        let next = train[n - 1].following(pattern(len, n as u32));
        train.push(next);
    }
    train
}

/// Three segments in which `change` alters the middle one: it and what follows may not join.
fn change_in_mid_run(first: Packet, change: impl Fn(&mut Packet)) -> Batch {
    let mut train = train(first, 4, 100);
    for packet in &mut train[2..] {
        change(packet);
    }
    Batch::of(train)
}

#[test]
fn a_train_becomes_one_superframe() {
    for v6 in [false, true] {
        for first in [tcp(v6), udp(v6)] {
            let proto = if first.udp { Proto::Udp } else { Proto::Tcp };
            let mut batch = Batch::of(train(first, 40, 1000));
            assert_eq!(batch.run(), [40]);
            assert_eq!(batch.sink.frames[0].slices, 41, "headers, then one payload slice per packet");
            let tunnel = &batch.counters.tunnels[0];
            assert_eq!(tunnel.gro_input_packets[proto as usize].get(), 40);
            assert_eq!(tunnel.gro_output_frames[proto as usize].get(), 1);
            assert_eq!(tunnel.tun_write_frames.get(), 1);
        }
    }
}

#[test]
fn a_run_of_one_is_written_as_it_came() {
    let packet = tcp(false).build();
    let mut batch = Batch::new().and(packet.clone());
    assert_eq!(batch.run(), [1]);
    assert_eq!(batch.sink.frames[0].bytes, [[0; 10].as_slice(), &packet].concat());
}

#[test]
fn a_header_field_that_changes_in_mid_run_ends_it() {
    type Change = fn(&mut Packet);
    let tcp_changes: [(Change, FlushReason); 5] = [
        (|p| p.window += 1, FlushReason::Window),
        (|p| p.acknowledgement += 1, FlushReason::Acknowledgement),
        (|p| p.urgent = 7, FlushReason::Urgent),
        (|p| p.flags |= ECE, FlushReason::FlagsDiffer),
        (|p| p.tcp_options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], FlushReason::TcpOptions),
    ];
    let ip_changes: [(Change, FlushReason); 3] = [
        (|p| p.tos ^= 0x10, FlushReason::Tos),
        (|p| p.tos ^= 0x03, FlushReason::Tos),
        (|p| p.ttl -= 1, FlushReason::Ttl),
    ];
    for v6 in [false, true] {
        for (change, reason) in tcp_changes.into_iter().chain(ip_changes) {
            let mut batch = change_in_mid_run(tcp(v6), change);
            assert_eq!(batch.run(), [2, 2], "{reason:?}");
            assert_eq!(batch.reason(reason), 1, "{reason:?}");
        }
        for (change, reason) in ip_changes {
            let mut batch = change_in_mid_run(udp(v6), change);
            assert_eq!(batch.run(), [2, 2], "{reason:?}");
            assert_eq!(batch.reason(reason), 1, "{reason:?}");
        }
    }
}

#[test]
fn a_changed_timestamp_of_the_same_length_ends_the_run() {
    let stamp = |n| vec![1, 1, 8, 10, 0, 0, 0, n, 0, 0, 0, 2];
    let mut first = tcp(false);
    first.tcp_options = stamp(1);
    let mut batch = change_in_mid_run(first, |p| p.tcp_options = stamp(2));
    assert_eq!(batch.run(), [2, 2]);
    assert_eq!(batch.reason(FlushReason::TcpOptions), 1);
}

#[test]
fn a_changed_flow_label_ends_the_run() {
    for first in [tcp(true), udp(true)] {
        let mut batch = change_in_mid_run(first, |p| p.label = 0xabcde);
        assert_eq!(batch.run(), [2, 2]);
        assert_eq!(batch.reason(FlushReason::FlowLabel), 1);
    }
}

#[test]
fn a_changed_df_bit_ends_the_run() {
    for first in [tcp(false), udp(false)] {
        let mut batch = change_in_mid_run(first, |p| p.df = false);
        assert_eq!(batch.run(), [2, 2]);
        assert_eq!(batch.reason(FlushReason::DontFragment), 1);
    }
}

#[test]
fn push_joins_and_closes_wherever_it_stands() {
    for place in 0..5 {
        let mut train = train(tcp(false), 5, 100);
        train[place].flags |= PSH;
        let mut batch = Batch::of(train);
        let rest = 4 - place;
        let expected: Vec<_> = [place + 1, rest].into_iter().filter(|&n| n > 0).collect();
        assert_eq!(batch.run(), expected, "PSH at {place}");
        assert_eq!(batch.reason(FlushReason::AfterPush), u64::from(rest > 0));
    }
}

#[test]
fn fin_joins_and_closes_wherever_it_stands() {
    for flags in [FIN, FIN | PSH] {
        for place in 0..5 {
            let mut train = train(tcp(true), 5, 100);
            train[place].flags |= flags;
            let mut batch = Batch::of(train);
            let rest = 4 - place;
            let expected: Vec<_> = [place + 1, rest].into_iter().filter(|&n| n > 0).collect();
            assert_eq!(batch.run(), expected, "FIN at {place}");
            assert_eq!(batch.reason(FlushReason::AfterFin), u64::from(rest > 0));
        }
    }
}

#[test]
fn flags_that_a_superframe_cannot_carry_are_barriers() {
    for flags in [SYN | ACK, RST | ACK, URG | ACK, CWR | ACK, 0, PSH] {
        let mut train = train(tcp(false), 5, 100);
        train[2].flags = flags;
        let mut batch = Batch::of(train);
        assert_eq!(batch.run(), [2, 1, 2], "flags {flags:#x}");
        assert_eq!(batch.reason(FlushReason::TcpFlags), 1);
        assert_eq!(batch.reason(FlushReason::AfterBarrier), 1);
    }
}

#[test]
fn a_reserved_tcp_bit_is_a_barrier() {
    for bit in 0..4 {
        let mut train = train(tcp(false), 3, 100);
        train[1].reserved = 1 << bit;
        let mut batch = Batch::of(train);
        assert_eq!(batch.run(), [1, 1, 1]);
        assert_eq!(batch.reason(FlushReason::TcpFlags), 1);
    }
}

#[test]
fn sequence_numbers_wrap() {
    let mut first = tcp(false);
    first.sequence = u32::MAX - 150;
    assert_eq!(Batch::of(train(first, 5, 100)).run(), [5]);
}

#[test]
fn a_gap_a_repeat_and_a_reordered_segment_seed_new_runs() {
    let train = train(tcp(false), 6, 100);
    let pick = |order: &[usize]| Batch::of(order.iter().map(|&n| train[n].clone()));
    for order in [&[0, 1, 3, 4][..], &[0, 1, 1, 2], &[1, 2, 0, 1]] {
        let mut batch = pick(order);
        assert_eq!(batch.run(), [2, 2], "{order:?}");
        assert_eq!(batch.reason(FlushReason::Sequence), 1);
    }
}

#[test]
fn a_segment_never_joins_in_front() {
    let train = train(tcp(false), 2, 100);
    let mut batch = Batch::of([train[1].clone(), train[0].clone()]);
    assert_eq!(batch.run(), [1, 1]);
    assert_eq!(batch.sink.frames[0].bytes[10..], train[1].build());
}

#[test]
fn a_pure_ack_is_a_barrier() {
    let mut train = train(tcp(false), 4, 100);
    let ack = train[1].following(Vec::new());
    train.insert(2, ack);
    let mut batch = Batch::of(train);
    assert_eq!(batch.run(), [2, 1, 2]);
    assert_eq!(batch.reason(FlushReason::EmptyPayload), 1);
    assert_eq!(batch.reason(FlushReason::AfterBarrier), 1);
}

#[test]
fn an_empty_datagram_is_a_barrier() {
    let empty = udp(true).with_payload(Vec::new());
    let mut batch = Batch::of([udp(true), empty, udp(true)]);
    assert_eq!(batch.run(), [1, 1, 1]);
    assert_eq!(batch.reason(FlushReason::EmptyPayload), 1);
}

#[test]
fn a_short_segment_closes_the_run() {
    for v6 in [false, true] {
        for first in [tcp(v6), udp(v6)] {
            let mut train = vec![first.with_payload(pattern(100, 1))];
            for len in [100, 40, 40, 40] {
                let next = train[train.len() - 1].following(pattern(len, 3));
                train.push(next);
            }
            let mut batch = Batch::of(train);
            assert_eq!(batch.run(), [3, 2]);
            assert_eq!(batch.reason(FlushReason::AfterShort), 1);
        }
    }
}

#[test]
fn a_longer_segment_seeds_a_new_run() {
    for first in [tcp(false), udp(true)] {
        let mut train = vec![first.with_payload(pattern(100, 1))];
        for len in [100, 101, 101] {
            let next = train[train.len() - 1].following(pattern(len, 3));
            train.push(next);
        }
        let mut batch = Batch::of(train);
        assert_eq!(batch.run(), [2, 2]);
        assert_eq!(batch.reason(FlushReason::LongerSegment), 1);
    }
}

#[test]
fn a_last_segment_shorter_than_the_headers_joins() {
    for first in [tcp(true), udp(true)] {
        let first = first.with_payload(pattern(1000, 1));
        let last = first.following(pattern(1, 2));
        assert_eq!(Batch::of([first, last]).run(), [2]);
    }
}

#[test]
fn segments_smaller_than_the_headers_are_merged() {
    for first in [tcp(true), udp(false)] {
        assert_eq!(Batch::of(train(first, 10, 3)).run(), [10]);
    }
}

#[test]
fn the_ip_id_counts_on_from_the_seed_when_df_is_clear() {
    for first in [tcp(false), udp(false)] {
        let first = Packet { df: false, id: 65_533, ..first };
        let train = train(first, 6, 100);
        assert_eq!(Batch::of(train.clone()).run(), [6], "also when it wraps");
        let mut gap = train;
        for packet in &mut gap[3..] {
            packet.id = packet.id.wrapping_add(1);
        }
        let mut batch = Batch::of(gap);
        assert_eq!(batch.run(), [3, 3]);
        assert_eq!(batch.reason(FlushReason::IpId), 1);
    }
}

#[test]
fn the_ip_id_of_atomic_datagrams_is_free() {
    let mut train = train(tcp(false), 4, 100);
    for (packet, id) in train.iter_mut().zip([7, 7, 0, 900]) {
        packet.id = id;
    }
    assert_eq!(Batch::of(train).run(), [4]);
}

#[test]
fn the_reserved_fragment_bit_is_never_merged() {
    let mut evil = train(udp(false), 3, 100)[1].build();
    evil[6] |= 0x80;
    fix_ipv4_checksum(&mut evil);
    let mut batch = Batch::new().and(udp(false).build()).and(evil).and(udp(false).build());
    assert_eq!(batch.run(), [1, 1, 1]);
}

#[test]
fn a_superframe_has_at_most_65535_bytes() {
    for v6 in [false, true] {
        let headers = if v6 { 60 } else { 40 };
        // Segments of 1365 bytes: 47 of them leave room for a last one that fills the superframe exactly.
        let mut exact = train(tcp(v6), 47, 1365);
        let room = 65_535 - headers - 47 * 1365;
        let mut too_long = exact.clone();
        exact.push(exact[46].following(pattern(room, 9)));
        too_long.push(too_long[46].following(pattern(room + 1, 9)));
        assert_eq!(Batch::of(exact).run(), [48], "65,535 bytes");
        let mut batch = Batch::of(too_long);
        assert_eq!(batch.run(), [47, 1], "65,536 bytes");
        assert_eq!(batch.reason(FlushReason::MaxLength), 1);
    }
}

#[test]
fn a_udp_superframe_has_at_most_65535_bytes() {
    for v6 in [false, true] {
        let headers = if v6 { 48 } else { 28 };
        let mut exact = train(udp(v6), 47, 1365);
        let room = 65_535 - headers - 47 * 1365;
        let mut too_long = exact.clone();
        exact.push(exact[46].following(pattern(room, 9)));
        too_long.push(too_long[46].following(pattern(room + 1, 9)));
        assert_eq!(Batch::of(exact).run(), [48]);
        assert_eq!(Batch::of(too_long).run(), [47, 1]);
    }
}

#[test]
fn udp_superframes_have_as_many_segments_as_the_kernel_takes() {
    for limit in [64, 128] {
        let with_limit =
            |count| Batch::of(train(udp(false), count, 10)).with(|config| config.max_udp_segments = limit as u16);
        assert_eq!(with_limit(limit).run(), [limit]);
        let mut batch = with_limit(limit + 1);
        assert_eq!(batch.run(), [limit, 1]);
        assert_eq!(batch.reason(FlushReason::MaxSegments), 1);
    }
    assert_eq!(Batch::of(train(tcp(false), 200, 10)).run(), [200], "TCP has no such limit");
}

#[test]
fn datagrams_without_a_checksum_stay_alone_and_apart() {
    let zero = Packet { zero_checksum: true, ..udp(false) };
    let mut batch = Batch::of([udp(false), udp(false)]);
    for _ in 0..2 {
        batch = batch.and_tagged(0, zero.build(), Checksums::Absent);
    }
    let mut batch = batch.and(udp(false).build());
    assert_eq!(batch.run(), [2, 1, 1, 1]);
    assert_eq!(batch.reason(FlushReason::UdpZeroChecksum), 2);
    assert_eq!(batch.reason(FlushReason::AfterBarrier), 1);
}

#[test]
fn datagrams_without_a_checksum_merge_among_themselves_when_asked_to() {
    let zero = Packet { zero_checksum: true, ..udp(false) };
    let mut batch = Batch::new().with(|config| config.udp_zero_checksum = true);
    for _ in 0..3 {
        batch = batch.and_tagged(0, zero.build(), Checksums::Absent);
    }
    let mut batch = batch.and(udp(false).build()).and(udp(false).build());
    assert_eq!(batch.run_unchecked(), [3, 2]);
    assert_eq!(batch.reason(FlushReason::UdpZeroChecksum), 1);
    let cut = resplit(&batch.sink.frames[0], false);
    assert_eq!(cut[0], udp(false).build(), "the kernel gives them real checksums");
}

#[test]
fn ipv6_datagrams_without_a_checksum_are_never_merged() {
    let zero = Packet { zero_checksum: true, ..udp(true) };
    let mut batch = Batch::new().with(|config| config.udp_zero_checksum = true);
    for checksums in [Checksums::Absent, Checksums::Verified, Checksums::Unverified] {
        batch = batch.and_tagged(0, zero.build(), checksums);
    }
    assert_eq!(batch.run(), [1, 1, 1]);
}

#[test]
fn an_ipv6_udp_checksum_that_computes_to_zero_survives() {
    // Two payload bytes steer the sum to 0xffff, so that the checksum computes to zero and is sent as 0xffff.
    let datagram = |n: u32| {
        let mut packet = udp(true).with_payload(pattern(100, n));
        packet.payload[..2].fill(0);
        let bytes = packet.build();
        let checksum = u16::from_be_bytes([bytes[46], bytes[47]]);
        packet.payload[..2].copy_from_slice(&checksum.to_be_bytes());
        packet
    };
    let train: Vec<_> = (0..4).map(datagram).collect();
    assert_eq!(train[0].build()[46..48], [0xff, 0xff]);
    assert_eq!(Batch::of(train).run(), [4]);
}

#[test]
fn the_other_zero_of_a_checksum_is_never_merged() {
    // 0xFFFF where 0x0000 belongs verifies too, but the kernel would write 0x0000 when it cuts.
    let train = train(tcp(false), 3, 100);
    for at in [10, 36] {
        let mut batch = Batch::new();
        for (n, packet) in train.iter().enumerate() {
            let mut bytes = packet.build();
            if n == 1 {
                bytes[at..at + 2].fill(0xff);
            }
            batch = batch.and(bytes);
        }
        assert_eq!(batch.run_unchecked(), [1, 1, 1], "field at {at}");
        assert_eq!(batch.reason(FlushReason::Checksum), 1);
        assert_eq!(batch.sink.frames[1].bytes[10 + at..12 + at], [0xff, 0xff], "it goes on as it came");
    }
}

#[test]
fn where_the_kernel_refuses_a_short_last_datagram_it_seeds_a_run() {
    let long = udp(false).with_payload(pattern(100, 1));
    let packets = [long.clone(), long.following(pattern(100, 2)), long.following(pattern(60, 3))];
    assert_eq!(Batch::of(packets.clone()).run(), [3]);
    let mut batch = Batch::of(packets).with(|config| config.udp_short_last = false);
    assert_eq!(batch.run(), [2, 1]);
    assert_eq!(batch.reason(FlushReason::ShortSegment), 1);
}

#[test]
fn every_ipv6_extension_header_is_a_barrier() {
    for extension in [0, 43, 51, 60, 135, 139, 140] {
        let train = train(udp(true), 3, 100);
        let odd = Packet { extension: Some(extension), ..train[1].clone() };
        assert_eq!(Batch::of([train[0].clone(), odd, train[2].clone()]).run(), [1, 1, 1], "next header {extension}");
    }
}

#[test]
fn what_is_not_verified_is_never_merged() {
    for first in [tcp(false), udp(false), tcp(true), udp(true)] {
        for doubt in [Checksums::Unverified, Checksums::Bad, Checksums::Absent] {
            let train = train(first.clone(), 5, 100);
            let mut batch = Batch::new();
            for (n, packet) in train.iter().enumerate() {
                let checksums = if n == 2 { doubt } else { Checksums::Verified };
                batch = batch.and_tagged(0, packet.build(), checksums);
            }
            assert_eq!(batch.run(), [2, 1, 2], "{doubt:?}");
            assert_eq!(batch.reason(FlushReason::Checksum), 1);
        }
    }
}

#[test]
fn ip_options_are_a_barrier() {
    for first in [tcp(false), udp(false)] {
        let mut train = train(first, 5, 100);
        train[2].ip_options = vec![0x94, 4, 0, 0];
        let mut batch = Batch::of(train);
        assert_eq!(batch.run(), [2, 1, 2]);
        assert_eq!(batch.reason(FlushReason::IpOptions), 1);
    }
}

#[test]
fn ipv6_extension_headers_are_a_barrier() {
    for first in [tcp(true), udp(true)] {
        for extension in [0, 43, 60] {
            let mut train = train(first.clone(), 5, 100);
            train[2].extension = Some(extension);
            let mut batch = Batch::of(train);
            assert_eq!(batch.run(), [2, 1, 2]);
            assert_eq!(batch.reason(FlushReason::Ipv6Extension), 1);
            assert_eq!(batch.reason(FlushReason::AfterBarrier), 1);
        }
    }
}

#[test]
fn a_fragment_is_a_barrier_for_its_address_pair_only() {
    let one = train(udp(false), 4, 100);
    let two = train(Packet { ports: (7, 7), ..tcp(false) }, 4, 100);
    let other = train(Packet { source: 77, ..udp(false) }, 4, 100);
    for mf_or_offset in [[0x20, 0], [0, 1], [0x20, 9]] {
        let mut fragment = udp(false).build();
        fragment[6..8].copy_from_slice(&mf_or_offset);
        fix_ipv4_checksum(&mut fragment);
        let mut batch = Batch::new();
        for n in 0..4 {
            if n == 2 {
                batch = batch.and(fragment.clone());
            }
            batch = batch.and(one[n].build()).and(two[n].build()).and(other[n].build());
        }
        assert_eq!(batch.run(), [2, 2, 4, 1, 2, 2]);
        assert_eq!(batch.reason(FlushReason::Fragment), 1);
        assert_eq!(batch.reason(FlushReason::AfterBarrier), 2);
    }
}

#[test]
fn an_ipv6_fragment_is_a_barrier() {
    let mut train = train(udp(true), 3, 100);
    train[1].extension = Some(44);
    let mut batch = Batch::of(train);
    assert_eq!(batch.run(), [1, 1, 1]);
    assert_eq!(batch.reason(FlushReason::Fragment), 1);
}

#[test]
fn a_udp_length_below_the_ip_payload_is_a_barrier() {
    let mut bytes = udp(false).build();
    let shorter = u16::from_be_bytes([bytes[24], bytes[25]]) - 4;
    bytes[24..26].copy_from_slice(&shorter.to_be_bytes());
    let mut batch = Batch::new().and(udp(false).build()).and(bytes).and(udp(false).build());
    assert_eq!(batch.run(), [1, 1, 1]);
    assert_eq!(batch.reason(FlushReason::Length), 1);
    assert_eq!(batch.reason(FlushReason::AfterBarrier), 1);
}

#[test]
fn lengths_that_lie_are_never_believed() {
    let good = tcp(false).with_payload(pattern(20, 1)).build();
    let lies: [(usize, u8); 4] = [(3, 0xff), (2, 0xff), (32, 0xf0), (32, 0x40)];
    for (at, value) in lies {
        let mut bytes = good.clone();
        bytes[at] = value;
        let mut batch = Batch::new().and(bytes.clone()).and(bytes);
        assert_eq!(batch.run_unchecked(), [1, 1], "byte {at} = {value:#x}");
        assert_eq!(batch.reason(FlushReason::Length), 2);
    }
}

#[test]
fn a_packet_cut_anywhere_goes_out_alone_as_it_came() {
    for packet in [tcp(false), tcp(true), udp(false), udp(true)] {
        let bytes = packet.build();
        for len in 0..bytes.len() {
            let mut batch = Batch::new().and(bytes[..len].to_vec()).and(bytes[..len].to_vec());
            assert_eq!(batch.run_unchecked(), [1, 1]);
            assert_eq!(batch.sink.frames[0].bytes[10..], bytes[..len]);
        }
    }
}

#[test]
fn ethernet_padding_behind_a_short_packet_is_no_payload() {
    let mut batch = Batch::new().on_tap();
    let train = train(udp(false), 3, 4);
    for packet in &train {
        let mut frame = ethernet(&packet.build(), 1, &[]);
        frame.resize(60, 0);
        batch = batch.and(frame);
    }
    assert_eq!(batch.run(), [3]);
    let cut = resplit(&batch.sink.frames[0], true);
    for (segment, packet) in cut.iter().zip(&train) {
        assert_eq!(*segment, ethernet(&packet.build(), 1, &[]));
    }
}

#[test]
fn on_tap_the_whole_ethernet_header_must_be_equal() {
    for (tags, other_source, other_tags) in
        [(&[][..], 2, &[][..]), (&[], 1, &[5]), (&[5], 1, &[6]), (&[5, 6], 1, &[5, 7]), (&[5], 2, &[5])]
    {
        let train = train(tcp(true), 4, 100);
        let mut batch = Batch::new().on_tap();
        for (n, packet) in train.iter().enumerate() {
            let (source, tags) = if n < 2 { (1, tags) } else { (other_source, other_tags) };
            batch = batch.and(ethernet(&packet.build(), source, tags));
        }
        assert_eq!(batch.run(), [2, 2]);
        assert_eq!(batch.reason(FlushReason::Ethernet), 1);
    }
}

#[test]
fn on_tap_offsets_count_from_the_ethernet_header() {
    for tags in [&[][..], &[5], &[5, 6]] {
        for first in [tcp(false), udp(true)] {
            let train = train(first, 4, 100);
            let mut batch = Batch::new().on_tap();
            for packet in &train {
                batch = batch.and(ethernet(&packet.build(), 1, tags));
            }
            assert_eq!(batch.run(), [4]);
            for (segment, packet) in resplit(&batch.sink.frames[0], true).iter().zip(&train) {
                assert_eq!(*segment, ethernet(&packet.build(), 1, tags));
            }
        }
    }
}

#[test]
fn tenants_with_the_same_inner_addresses_never_meet() {
    let train = train(tcp(false), 4, 100);
    let mut batch = Batch::new();
    for packet in &train {
        batch = batch.and_tagged(0, packet.build(), Checksums::Verified);
        batch = batch.and_tagged(1, packet.build(), Checksums::Verified);
    }
    assert_eq!(batch.run(), [4, 4]);
    assert_eq!(batch.sink.frames[1].tunnel, TunnelIndex(1));
}

#[test]
fn interleaved_flows_leave_in_the_order_of_their_seeds() {
    let flows: Vec<_> = (0..5).map(|n| train(Packet { ports: (n, 80), ..tcp(false) }, 6, 100)).collect();
    let mut batch = Batch::of((0..6).flat_map(|n| flows.iter().map(move |flow| flow[n].clone())));
    assert_eq!(batch.run(), [6; 5]);
    for (n, frame) in batch.sink.frames.iter().enumerate() {
        assert_eq!(frame.bytes[10 + 20..10 + 22], (n as u16).to_be_bytes());
    }
}

#[test]
fn what_is_not_tcp_or_udp_passes_and_closes_nothing() {
    let train = train(tcp(false), 4, 100);
    let mut icmp = tcp(false).build();
    icmp[9] = 1;
    fix_ipv4_checksum(&mut icmp);
    let mut batch = Batch::of(train[..2].to_vec()).and(icmp).and(vec![0x00, 1, 2]);
    for packet in &train[2..] {
        batch = batch.and(packet.build());
    }
    assert_eq!(batch.run(), [4, 1, 1]);
    assert_eq!(batch.reason(FlushReason::NotCandidate), 2);
}

#[test]
fn switches_and_excluded_ports_are_obeyed() {
    let run = |first: Packet, change: fn(&mut GroConfig)| {
        let mut batch = Batch::of(train(first, 2, 100)).with(change);
        (batch.run(), batch.reason(FlushReason::Disabled), batch.reason(FlushReason::PortExcluded))
    };
    assert_eq!(run(tcp(false), |c| c.tcp = false), (vec![1, 1], 2, 0));
    assert_eq!(run(udp(false), |c| c.udp = false), (vec![1, 1], 2, 0));
    assert_eq!(run(udp(false), |c| c.tcp = false), (vec![2], 0, 0));
    assert_eq!(run(udp(false), |c| c.udp_exclude_ports = vec![2000]), (vec![1, 1], 0, 2));
    assert_eq!(run(udp(true), |c| c.udp_exclude_ports = vec![1000]), (vec![1, 1], 0, 2));
    assert_eq!(run(tcp(false), |c| c.udp_exclude_ports = vec![1000]), (vec![2], 0, 0));
}

#[test]
fn a_refused_superframe_is_written_packet_by_packet() {
    let train = train(tcp(false), 5, 100);
    let mut batch = Batch::of(train.clone());
    batch.sink.refuse_superframes = Some(libc::EINVAL);
    assert_eq!(batch.run(), [1; 5]);
    for (frame, packet) in batch.sink.frames.iter().zip(&train) {
        assert_eq!(frame.bytes[10..], packet.build(), "as it came");
    }
    let tunnel = &batch.counters.tunnels[0];
    assert_eq!(tunnel.tun_errors.iter().find(|(name, _)| *name == "EINVAL"), Some(("EINVAL", 1)));
    assert_eq!(tunnel.tun_write_frames.get(), 5);
    assert_eq!(tunnel.gro_output_frames[Proto::Tcp as usize].get(), 1, "the coalescer let one frame go");
}

#[test]
fn a_packet_that_cannot_be_written_at_all_is_counted_once() {
    let mut batch = Batch::of(train(tcp(false), 3, 100)).and(udp(true).build());
    batch.sink.refuse_all = Some(libc::EIO);
    assert!(batch.run_unchecked().is_empty());
    let drops = &batch.counters.drops;
    assert_eq!(drops.get(netfwd::datapath::stats::Direction::Ingress, Stage::Tun, DropReason::TunWrite), 4);
    assert_eq!(batch.sink.refused, 5, "the superframe, then each packet");
}

#[test]
fn batches_longer_than_the_table_are_cut() {
    let mut batch = Batch::of(train(tcp(false), 600, 10));
    assert_eq!(batch.run(), [256, 256, 88]);
}

#[test]
fn the_histogram_counts_packets_per_frame() {
    let mut batch = Batch::of(train(tcp(false), 40, 10)).and(udp(false).build());
    batch.run();
    assert_eq!(batch.counters.gro_frame_segments_sum.get(), 41);
    assert_eq!(batch.counters.gro_frame_segments[0].get(), 1);
    assert_eq!(batch.counters.gro_frame_segments[6].get(), 1, "33 to 64");
}
