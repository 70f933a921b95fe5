//! Laws over many packets: both halves agree, nothing corrupt is verified, nothing panics.

use netfwd_common::abi::ChecksumVerdict;
use netfwd_common::classify::{Delivery, Verdict, classify};
use netfwd_common::reason::{DropReason, PassReason};

use crate::bench::{COUNT, DROP, OFF, PARTIAL, table, with_program};
use crate::frames::{drops, valid_frames};
use crate::packets::{Field, Inner, Outer};
use crate::wireguard;

#[test]
fn payloads_of_every_length_and_every_value_are_summed_right() {
    with_program(DROP, |bench| {
        for len in (0..520).chain(1380..1420).chain(2900..3000) {
            for payload in [vec![0xff; len], (0..len).map(|at| ((at * at) >> 3) as u8 ^ 0xa5).collect()] {
                let mut frame = Outer::vxlan4(7).frame(&Inner { payload, ..Inner::udp4(0) }.ethernet(0));
                assert_eq!(bench.delivery(&frame).checksums, ChecksumVerdict::Verified, "{len}");
                *frame.last_mut().unwrap() ^= 1;
                assert_eq!(bench.verdict(&frame), Verdict::Drop(DropReason::OuterUdpChecksum), "{len}");
            }
        }
    });
}

#[test]
fn both_halves_agree_on_every_truncation() {
    with_program(DROP, |bench| {
        let inner = Inner::tcp4(3);
        let inner6 = Inner::udp6(2);
        for frame in [
            Outer::vxlan4(7).tags(1).frame(&inner.ethernet(1)),
            Outer::vxlan6(7).frame(&inner6.ethernet(0)),
            Outer::gpe4(9, 2).frame(&inner6.bytes()),
            Outer::gpe6(9, 1).tags(2).frame(&inner.bytes()),
        ] {
            // A test run takes no less than an Ethernet header.
            for len in 14..frame.len() {
                match bench.verdict(&frame[..len]) {
                    Verdict::Pass(PassReason::TooShort) | Verdict::Drop(DropReason::Truncated) => {}
                    other => panic!("{other:?} at {len} of {}", frame.len()),
                }
            }
        }
    });
}

#[test]
fn both_halves_agree_on_mutated_packets() {
    with_program(DROP, |bench| {
        // SplitMix64: a fixed sequence, so a failure repeats.
        let mut state = 0x5eed_u64;
        let mut random = move |below: usize| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % below as u64) as usize
        };
        let frames: Vec<_> = valid_frames().into_iter().map(|(_, frame)| frame).chain(wireguard::frames()).collect();
        let policies = [DROP, COUNT, OFF, PARTIAL];
        for round in 0..4000 {
            let mut frame = frames[random(frames.len())].clone();
            for _ in 0..=random(3) {
                let at = random(frame.len().min(130));
                frame[at] = random(256) as u8;
            }
            if random(4) == 0 {
                frame.truncate(14 + random(frame.len() - 13));
            }
            if round % 1000 == 0 {
                bench.set_policy(policies[round / 1000]);
            }
            bench.verdict(&frame);
        }
    });
}

#[test]
fn flipping_any_bit_of_a_valid_packet_is_never_verified() {
    // No root needed: the user-space classifier, whose equality with the program the other tests show.
    let table = table();
    for inner in [Inner::tcp4(20).ethernet(1), Inner::udp6(9).ethernet(0)] {
        for outer in [Outer::vxlan4(7), Outer::vxlan6(7), Outer::vxlan4(7).checksum(Field::Zero)] {
            let frame = outer.frame(&inner);
            let Verdict::Deliver(good) = classify(&frame[..], &table, &DROP) else { panic!("not delivered") };
            assert_eq!(good.checksums, ChecksumVerdict::Verified);
            // With no outer checksum only the inner IP packet is covered.
            let inner_ip = frame.len() - inner.len() + if inner.len() > 70 && inner[12] == 0x81 { 18 } else { 14 };
            let covered = if outer.checksum == Field::Zero { inner_ip } else { 14 };
            for bit in covered * 8..frame.len() * 8 {
                let mut frame = frame.clone();
                frame[bit / 8] ^= 1 << (bit % 8);
                if let Verdict::Deliver(delivery) = classify(&frame[..], &table, &DROP) {
                    assert!(uncovered(bit, &frame, &delivery), "bit {} of byte {}", bit % 8, bit / 8);
                }
            }
        }
    }
}

/// What no checksum covers: an IPv6 header's class, label and hop limit, inside and outside. (The outer checksum covers the
/// inner one's.)
fn uncovered(bit: usize, frame: &[u8], delivery: &Delivery) -> bool {
    if delivery.checksums != ChecksumVerdict::Verified {
        return true;
    }
    let unprotected = |start: usize| {
        frame[start] >> 4 == 6 && (start..start + 8).contains(&(bit / 8)) && !(4..7).contains(&(bit / 8 - start))
    };
    let has_outer_checksum = frame[14] >> 4 == 6 || frame[40..42] != [0, 0];
    unprotected(14) || !has_outer_checksum && unprotected(usize::from(delivery.inner_offset) + 14)
}

proptest::proptest! {
    #[test]
    fn classify_never_panics_and_offsets_lie_within_the_frame(
        row in 0usize..50,
        edits in proptest::collection::vec((0usize..160, proptest::num::u8::ANY), 0..8),
        len in 0usize..400,
    ) {
        let (_, mut frame) = drops().swap_remove(row % drops().len());
        for (at, value) in edits {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(len);
        for policy in [DROP, COUNT, OFF, PARTIAL] {
            if let Verdict::Deliver(delivery) = classify(&frame[..], &table(), &policy) {
                let end = usize::from(delivery.inner_offset) + usize::from(delivery.inner_len);
                proptest::prop_assert!(end <= frame.len());
            }
        }
    }

    #[test]
    fn classify_never_panics_on_any_bytes(frame in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = classify(&frame[..], &table(), &DROP);
    }
}
