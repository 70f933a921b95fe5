//! What is never merged, what keeps flows and tenants apart, and what is written and counted.

use netfwd::datapath::gro::GroConfig;
use netfwd::datapath::packet::{Checksums, TunnelIndex};
use netfwd::datapath::stats::Proto;
use netfwd_common::reason::{DropReason, FlushReason, Stage};

use crate::batch::{Batch, train};
use crate::packets::*;

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
fn a_datagram_without_a_checksum_stays_alone_whatever_is_said_of_it() {
    let zero = Packet { zero_checksum: true, ..udp(false) };
    for checksums in [Checksums::Verified, Checksums::Unverified, Checksums::Bad] {
        let batch = Batch::of([udp(false), udp(false)]).and_tagged(0, zero.build(), checksums);
        assert_eq!(batch.and(udp(false).build()).run(), [2, 1, 1], "{checksums:?}");
        // Where merging them is allowed, the IPv4 header has to be known as good.
        let batch = Batch::new().with(|config| config.udp_zero_checksum = true);
        let mut batch = batch.and_tagged(0, zero.build(), checksums).and_tagged(0, zero.build(), checksums);
        assert_eq!(batch.run(), [1, 1], "{checksums:?}");
    }
}

#[test]
fn ipv6_datagrams_without_a_checksum_are_never_merged() {
    let zero = Packet { zero_checksum: true, ..udp(true) };
    let mut batch = Batch::new().with(|config| config.udp_zero_checksum = true);
    for checksums in [Checksums::Absent, Checksums::Verified, Checksums::Unverified] {
        batch = batch.and_tagged(0, zero.build(), checksums).and_tagged(0, zero.build(), checksums);
    }
    assert_eq!(batch.run(), [1; 6]);
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
fn a_version_or_header_length_that_no_ip_has_is_never_merged() {
    let versions: [(Packet, u8); 4] = [(tcp(false), 0x44), (tcp(false), 0x65), (tcp(true), 0x45), (udp(true), 0x50)];
    for (packet, first_byte) in versions {
        let mut batch = Batch::new().on_tap();
        for packet in train(packet, 2, 100) {
            let mut frame = ethernet(&packet.build(), 1, &[]);
            frame[14] = first_byte;
            batch = batch.and(frame);
        }
        assert_eq!(batch.run_unchecked(), [1, 1], "{first_byte:#x}");
        assert_eq!(batch.reason(FlushReason::Length), 2);
    }
}

#[test]
fn a_packet_that_is_shorter_than_it_says_joins_no_run() {
    for first in [tcp(false), tcp(true), udp(false), udp(true)] {
        let mut bytes: Vec<_> = train(first, 3, 100).iter().map(Packet::build).collect();
        bytes[1].pop();
        let mut batch = bytes.iter().cloned().fold(Batch::new(), Batch::and);
        assert_eq!(batch.run_unchecked(), [1, 1, 1]);
        let out: Vec<_> = batch.sink.frames.iter().map(|frame| frame.bytes[10..].to_vec()).collect();
        assert_eq!(out, bytes);
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
