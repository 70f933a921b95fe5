//! May this packet join its flow's newest run, and how far does a run go?

use netfwd::datapath::stats::Proto;
use netfwd_common::reason::FlushReason;

use crate::batch::{Batch, change_in_mid_run, train};
use crate::packets::*;

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
fn changed_options_of_any_length_end_the_run() {
    for len in (4..=40).step_by(4) {
        let options = |last| [vec![1; len - 1], vec![last]].concat();
        let mut batch =
            change_in_mid_run(Packet { tcp_options: options(1), ..tcp(false) }, |p| p.tcp_options = options(0));
        assert_eq!(batch.run(), [2, 2], "{len} bytes");
        assert_eq!(batch.reason(FlushReason::TcpOptions), 1);
    }
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
    let mut batch = Batch::new().and(udp(false).build()).and(evil.clone()).and(evil).and(udp(false).build());
    assert_eq!(batch.run(), [1; 4]);
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
    // Datagrams of ten bytes are too short for the shortcut.
    for (limit, len) in [(64, 10), (64, 100), (128, 10), (128, 100)] {
        let with_limit =
            |count| Batch::of(train(udp(false), count, len)).with(|config| config.max_udp_segments = limit as u16);
        assert_eq!(with_limit(limit).run(), [limit]);
        let mut batch = with_limit(limit + 1);
        assert_eq!(batch.run(), [limit, 1]);
        assert_eq!(batch.reason(FlushReason::MaxSegments), 1);
    }
    assert_eq!(Batch::of(train(tcp(false), 200, 10)).run(), [200], "TCP has no such limit");
}
