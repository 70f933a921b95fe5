//! Egress allocates nothing once it is set up: counted by the allocator itself.

mod segmentation;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use netfwd::datapath::egress::{Egress, Surroundings};
use netfwd::datapath::fdb::Fdbs;
use netfwd::datapath::packet::{RemoteIndex, TunnelIndex};
use netfwd::datapath::seam::{DatagramSink, SendFailure, Transmit};
use netfwd::datapath::stats::Counters;
use netfwd::datapath::table::ForwardingTable;
use segmentation::{GPE, Shape, VXLAN, pattern, plain, tunnels};

struct Counting;

thread_local! {
    // This thread's allocations only: the test harness has threads of its own.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to `System` unchanged, which keeps the trait's contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this `layout`, since `alloc` above did.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes every run and keeps nothing.
#[derive(Default)]
struct Null {
    datagrams: usize,
}

impl DatagramSink for Null {
    fn send(&mut self, transmit: &Transmit<'_>) -> Result<(), SendFailure> {
        self.datagrams += transmit.datagrams;
        Ok(())
    }
}

/// A frame of every kind, bad ones included.
fn frames() -> Vec<(TunnelIndex, Vec<u8>)> {
    let ethernet = |shape| Shape { ethernet: Some(vec![[0x81, 0, 0, 7]]), ..shape };
    let mut frames = vec![];
    for v6 in [false, true] {
        for shape in [Shape::tcp(v6, pattern(60_000, 0)), Shape::udp(v6, pattern(60_000, 0))] {
            frames.push((GPE, shape.frame(1_400)));
            frames.push((GPE, shape.frame(400)));
            frames.push((GPE, shape.frame(0)));
            frames.push((GPE, shape.needs_checksum_frame()));
            frames.push((VXLAN, ethernet(shape).frame(1_400)));
        }
    }
    let mut unknown = ethernet(Shape::udp(false, pattern(3_000, 0))).frame(1_000);
    unknown[10] = 0x06;
    frames.extend([(VXLAN, unknown), (GPE, plain(&[0x45; 60])), (GPE, vec![1; 5])]);
    frames
}

#[test]
fn two_hundred_thousand_datagrams_allocate_nothing() {
    let table = ForwardingTable::new(tunnels());
    let (fdbs, counters) = (Fdbs::new(&table, 1), Counters::new(2));
    let mut egress = Egress::new(2);
    let mut sink = Null::default();
    let frames = frames();
    let mut frame = vec![0; 70_000];
    let before = ALLOCATIONS.get();
    let mut now_seconds = 0;
    while sink.datagrams < 200_000 {
        now_seconds += 1;
        let around = Surroundings { table: &table, fdbs: &fdbs, counters: &counters, now_seconds };
        for (tunnel, original) in &frames {
            let frame = &mut frame[..original.len()];
            frame.copy_from_slice(original);
            egress.run(&around, *tunnel, frame, &mut sink);
        }
        let mac = [2, 0, 0, 1, (now_seconds >> 8) as u8, now_seconds as u8];
        fdbs.learn(VXLAN, &mac, RemoteIndex(1), now_seconds);
        fdbs.age(now_seconds);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert!(
        counters.drops.get(
            netfwd::datapath::stats::Direction::Egress,
            netfwd_common::reason::Stage::Segment,
            netfwd_common::reason::DropReason::VnetHeader,
        ) > 0
    );
}
