//! Ownership without a kernel: the tests lend chunks and describe them as the kernel would.

use proptest::prelude::*;

use super::*;

fn umem(frames: u32) -> Umem {
    Umem::new(ChunkSize::TwoKiB, 0, frames).unwrap()
}

fn received(address: u64, length: u32) -> Descriptor {
    Descriptor { address: address + 256, length, options: 0 }
}

#[test]
fn a_lent_chunk_comes_back_once() {
    let mut umem = umem(4);
    let address = umem.lend().unwrap();
    assert_eq!((umem.free(), umem.lent()), (3, 1));
    let frame = umem.take_back(received(address, 60)).unwrap();
    assert_eq!(frame.bytes().len(), 60);
    assert!(umem.take_back(received(address, 60)).is_none());
    umem.give_back(frame);
    assert_eq!((umem.free(), umem.lent()), (4, 0));
}

#[test]
fn the_chunk_freed_last_is_lent_first() {
    let mut umem = umem(8);
    let addresses: Vec<_> = (0..3).map(|_| umem.lend().unwrap()).collect();
    let frame = umem.take_back(received(addresses[1], 1)).unwrap();
    umem.give_back(frame);
    assert_eq!(umem.lend(), Some(addresses[1]));
}

#[test]
fn frames_are_distinct_memory() {
    let mut umem = umem(8);
    let addresses: Vec<_> = std::iter::from_fn(|| umem.lend()).collect();
    let mut frames: Vec<_> = addresses.iter().filter_map(|&address| umem.take_back(received(address, 1792))).collect();
    assert_eq!(frames.len(), 8);
    for (number, frame) in frames.iter_mut().enumerate() {
        frame.bytes_mut().fill(number as u8);
    }
    for (number, frame) in frames.iter().enumerate() {
        assert!(frame.bytes().iter().all(|&byte| byte == number as u8));
    }
}

#[test]
fn a_dropped_frame_is_collected() {
    let mut umem = umem(2);
    let address = umem.lend().unwrap();
    drop(umem.take_back(received(address, 60)));
    assert_eq!((umem.free(), umem.lent()), (1, 0));
    assert!(umem.collect_dropped());
    assert_eq!(umem.free(), 2);
    assert!(!umem.collect_dropped());
}

#[test]
fn a_frame_outlives_its_umem() {
    let mut umem = umem(2);
    let address = umem.lend().unwrap();
    let mut frame = umem.take_back(received(address, 60)).unwrap();
    drop(umem);
    frame.bytes_mut().fill(7);
    assert_eq!(frame.bytes(), [7; 60]);
}

#[test]
fn a_frame_given_to_another_umem_goes_home() {
    let (mut home, mut other) = (umem(2), umem(2));
    let address = home.lend().unwrap();
    let frame = home.take_back(received(address, 60)).unwrap();
    other.give_back(frame);
    assert_eq!(other.free(), 2);
    home.collect_dropped();
    assert_eq!(home.free(), 2);
}

fn metadata_is_gone_after(released: bool) {
    let mut umem = umem(1);
    let address = umem.lend().unwrap();
    let early = Descriptor { address: address + 240, length: 60, options: 0 };
    // The kernel would write the record; here a frame that starts sixteen bytes earlier does.
    let mut frame = umem.take_back(early).unwrap();
    frame.bytes_mut()[..METADATA_LEN].fill(0xaa);
    frame.0.start += METADATA_LEN as u16;
    assert_eq!(frame.metadata(), Some(&[0xaa; METADATA_LEN]));
    if released {
        umem.give_back(frame);
    } else {
        drop(frame);
        umem.collect_dropped();
    }
    let address = umem.lend().unwrap();
    let frame = umem.take_back(received(address, 60)).unwrap();
    assert_eq!(frame.metadata(), Some(&[0; METADATA_LEN]));
}

#[test]
fn an_earlier_packets_metadata_does_not_vouch_for_a_later_one() {
    metadata_is_gone_after(true);
    metadata_is_gone_after(false);
}

#[test]
fn a_packet_at_the_start_of_its_chunk_has_no_metadata() {
    let mut umem = umem(1);
    let address = umem.lend().unwrap();
    let frame = umem.take_back(Descriptor { address: address + 15, length: 60, options: 0 }).unwrap();
    assert_eq!(frame.metadata(), None);
}

#[test]
fn the_mtu_chooses_the_chunk() {
    assert_eq!(ChunkSize::for_mtu(1500, 0), Some(ChunkSize::TwoKiB));
    assert_eq!(ChunkSize::for_mtu(1770, 0), Some(ChunkSize::TwoKiB));
    assert_eq!(ChunkSize::for_mtu(1770, 8), Some(ChunkSize::FourKiB));
    assert_eq!(ChunkSize::for_mtu(3818, 0), Some(ChunkSize::FourKiB));
    assert_eq!(ChunkSize::for_mtu(9000, 0), None);
    assert_eq!(ChunkSize::for_mtu(usize::MAX, 0), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 1024 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_descriptor_makes_a_second_owner_or_leaves_its_chunk(
        address in prop_oneof![0..16_384u64, any::<u64>()],
        length in prop_oneof![0..4096u32, any::<u32>()],
        again in prop_oneof![0..16_384u64, any::<u64>()],
    ) {
        let mut umem = umem(4);
        let lent: Vec<_> = std::iter::from_fn(|| umem.lend()).take(2).collect();
        let first = umem.take_back(Descriptor { address, length, options: 0 });
        let second = umem.take_back(Descriptor { address: again, length, options: 0 });
        for frame in first.iter().chain(&second) {
            prop_assert!(lent.contains(&(u64::from(frame.0.chunk) << 11)));
            prop_assert_eq!(frame.bytes().len(), length as usize);
            let _ = frame.metadata();
        }
        if let (Some(first), Some(second)) = (&first, &second) {
            prop_assert_ne!(first.0.chunk, second.0.chunk);
        }
        let held = first.iter().chain(&second).count() as u32;
        prop_assert_eq!(umem.free() + umem.lent() + held, 4);
    }
}
