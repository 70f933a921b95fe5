//! Each row of the table gets its verdict.

use netfwd_common::abi::ChecksumVerdict;
use netfwd_common::classify::Verdict;
use netfwd_common::reason::{DropReason, PassReason};

use crate::bench::{COUNT, DROP, OFF, PARTIAL, XDP_PASS, with_program};
use crate::frames::{drops, passes, unusual, valid_frames};
use crate::packets::{self, Field, Inner, Outer};

#[test]
fn what_is_right_is_redirected_as_verified() {
    with_program(DROP, |bench| {
        for (name, frame) in valid_frames() {
            let delivery = bench.delivery(&frame);
            assert_eq!(delivery.checksums, ChecksumVerdict::Verified, "{name}");
            assert_eq!(usize::from(delivery.inner_offset + delivery.inner_len), frame.len(), "{name}");
            assert_ne!(delivery.flow_hash, 0, "{name}");
        }
    });
}

#[test]
fn each_reason_drops_what_it_says() {
    with_program(DROP, |bench| {
        for (row, (reason, frame)) in drops().into_iter().enumerate() {
            assert_eq!(bench.verdict(&frame), Verdict::Drop(reason), "row {row}");
        }
    });
}

#[test]
fn what_is_not_positively_ours_passes() {
    with_program(DROP, |bench| {
        for (row, (reason, frame)) in passes().into_iter().enumerate() {
            assert_eq!(bench.verdict(&frame), Verdict::Pass(reason), "row {row}");
        }
    });
}

#[test]
fn a_packet_in_fragments_of_the_buffer_passes() {
    with_program(DROP, |bench| {
        let run = bench.run(&Outer::vxlan4(7).frame(&Inner::udp4(8000).ethernet(0)));
        assert_eq!((run.action, run.counted.passed(PassReason::Frags)), (XDP_PASS, 1));
    });
}

#[test]
fn the_unusual_is_delivered_unverified_but_its_outer_checksum_counts() {
    with_program(DROP, |bench| {
        for (row, mut frame) in unusual().into_iter().enumerate() {
            assert_eq!(bench.delivery(&frame).checksums, ChecksumVerdict::Unverified, "row {row}");
            *frame.last_mut().unwrap() ^= 1;
            assert_eq!(bench.verdict(&frame), Verdict::Drop(DropReason::OuterUdpChecksum), "row {row}");
        }
    });
}

#[test]
fn inner_padding_counts_for_the_outer_checksum_only() {
    with_program(DROP, |bench| {
        for payload in [0, 1, 2, 5] {
            for padding in [1, 2, 17, 63, 64, 100] {
                let mut inner = Inner::udp4(payload).ethernet(0);
                inner.extend((0..padding).map(|i| i as u8 + 1));
                let mut frame = Outer::vxlan4(7).frame(&inner);
                let checksums = bench.delivery(&frame).checksums;
                assert_eq!(checksums, ChecksumVerdict::Verified, "{payload} + {padding}");
                *frame.last_mut().unwrap() ^= 0x10;
                assert_eq!(bench.verdict(&frame), Verdict::Drop(DropReason::OuterUdpChecksum));
            }
        }
    });
}

#[test]
fn udp_without_a_checksum_is_absent_over_ipv4_and_left_to_the_receiver_over_ipv6() {
    with_program(DROP, |bench| {
        let inner = Inner::udp4(33).checksum(Field::Zero);
        assert_eq!(bench.delivery(&Outer::vxlan4(7).frame(&inner.ethernet(0))).checksums, ChecksumVerdict::Absent);
        let bare = Outer::vxlan4(7).checksum(Field::Zero).frame(&inner.ethernet(0));
        assert_eq!(bench.delivery(&bare).checksums, ChecksumVerdict::Absent);
        let over_ipv6 = Outer::gpe4(9, 2).frame(&Inner::udp6(33).checksum(Field::Zero).bytes());
        assert_eq!(bench.delivery(&over_ipv6).checksums, ChecksumVerdict::Unverified);
    });
}

#[test]
fn partial_checksums_are_delivered_where_the_policy_accepts_them() {
    with_program(PARTIAL, |bench| {
        let partial = Inner::tcp4(100).checksum(Field::Partial);
        for outer in [Field::Right, Field::Zero, Field::Partial] {
            let frame = Outer::vxlan4(7).checksum(outer).frame(&partial.ethernet(0));
            assert_eq!(bench.delivery(&frame).checksums, ChecksumVerdict::Partial);
        }
        // Local checksum offload: the outer checksum is that of the finished packet.
        let finished = Outer::vxlan4(7).frame(&Inner::tcp4(100).ethernet(0));
        let mut frame = Outer::vxlan4(7).frame(&partial.ethernet(0));
        frame[40..42].copy_from_slice(&finished[40..42]);
        assert_eq!(bench.delivery(&frame).checksums, ChecksumVerdict::Partial);
        let unfinished_outer = Outer::vxlan4(7).checksum(Field::Partial).frame(&Inner::tcp4(100).ethernet(0));
        assert_eq!(bench.delivery(&unfinished_outer).checksums, ChecksumVerdict::Verified);
        let bad = Outer::vxlan4(7).frame(&Inner::tcp4(100).checksum(Field::Wrong).ethernet(0));
        assert_eq!(bench.verdict(&bad), Verdict::Drop(DropReason::InnerL4Checksum));
    });
}

#[test]
fn count_delivers_bad_checksums_as_bad_and_off_does_not_look() {
    use DropReason::*;
    with_program(COUNT, |bench| {
        for (row, (reason, frame)) in drops().into_iter().enumerate() {
            let checksum = matches!(
                reason,
                OuterIpChecksum | OuterUdpChecksum | InnerIpChecksum | InnerL4Checksum | PartialChecksum
            );
            bench.set_policy(COUNT);
            if !checksum {
                assert_eq!(bench.verdict(&frame), Verdict::Drop(reason), "row {row}");
                continue;
            }
            let delivery = bench.delivery(&frame);
            assert_eq!((delivery.checksums, delivery.tolerated), (ChecksumVerdict::Bad, Some(reason)), "row {row}");
            bench.set_policy(OFF);
            let delivery = bench.delivery(&frame);
            assert_eq!((delivery.checksums, delivery.tolerated), (ChecksumVerdict::Unverified, None), "row {row}");
        }
    });
}

#[test]
fn the_record_names_tunnel_remote_ecn_and_flow() {
    with_program(DROP, |bench| {
        let flow = |port| Inner { source_port: port, ..Inner::tcp4(10) }.ethernet(0);
        let frame = Outer { tos: 3, ..Outer::vxlan4(7) }.frame(&flow(1));
        let delivery = bench.delivery(&frame);
        assert_eq!((delivery.entry.tunnel, delivery.entry.remote, delivery.ecn), (0, 1, 3));
        assert_eq!(delivery.flow_hash, bench.delivery(&Outer::vxlan4(7).frame(&flow(1))).flow_hash);
        assert_ne!(delivery.flow_hash, bench.delivery(&Outer::vxlan4(7).frame(&flow(2))).flow_hash);
        let second = Outer::new("10.9.0.3", "10.9.0.2", 4789, packets::vxlan(8)).frame(&flow(1));
        assert_eq!(bench.delivery(&second).entry.tunnel, 1);
        let six = Outer { tos: 2, ..Outer::gpe6(9, 2) }.frame(&Inner::udp6(1).bytes());
        let delivery = bench.delivery(&six);
        assert_eq!((delivery.entry.tunnel, delivery.entry.remote, delivery.ecn), (4, 1, 2));
    });
}
