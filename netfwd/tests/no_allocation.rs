//! The way in allocates nothing: a million packets under a counting allocator.

mod packets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::net::IpAddr;

use netfwd::datapath::gro::GroConfig;
use netfwd::datapath::ingress::{Ingress, Origin, Received};
use netfwd::datapath::seam::{FrameSink, OverlayFrame};
use netfwd::datapath::stats::Counters;
use netfwd::datapath::table::{ForwardingTable, Tunnel, VerifyPolicy, address_bytes};
use netfwd::datapath::tunnel::decap::SocketOrigin;
use netfwd_common::abi::{METADATA_MAGIC, METADATA_VERSION, Metadata, TunnelKind};
use packets::*;
use zerocopy::IntoBytes;

struct Counting;

thread_local! {
    // This thread's allocations only: the test harness has threads of its own, which run when the scheduler lets them.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system allocator unchanged; counting touches no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's layout, as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the pointer came from `alloc` above with this layout.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts what it is given.
#[derive(Default)]
struct Tally {
    packets: usize,
    frames: usize,
    /// Every this many superframes, one is refused.
    refuse_every: Option<usize>,
}

impl FrameSink for Tally {
    fn write(&mut self, frame: &OverlayFrame<'_>) -> io::Result<()> {
        if frame.packets > 1 && self.refuse_every.is_some_and(|n| self.frames.is_multiple_of(n)) {
            self.frames += 1;
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.frames += 1;
        self.packets += frame.packets;
        Ok(())
    }
}

fn table() -> ForwardingTable {
    let tunnel = |kind, port, vni| Tunnel {
        name: format!("t{vni}"),
        kind,
        vni,
        local: "192.0.2.1".parse().unwrap(),
        port,
        remotes: vec!["192.0.2.2".parse().unwrap()],
        learning: true,
        static_macs: Vec::new(),
        routes: Vec::new(),
        mtu: 1450,
        udp_checksum: false,
        udp6_zero_checksum_rx: false,
        udp6_zero_checksum_tx: false,
        dscp: 0,
    };
    ForwardingTable::new(vec![tunnel(TunnelKind::Vxlan, 4789, 7), tunnel(TunnelKind::VxlanGpe, 4790, 8)])
}

/// Sixteen flows interleaved, now and then something that is not merged or is dropped.
fn batch() -> Vec<(Vec<u8>, Origin)> {
    let mut flows: Vec<_> =
        (0..16).map(|n| Packet { v6: n & 1 != 0, udp: n & 2 != 0, ports: (n, 80), ..Packet::default() }).collect();
    let mut batch = Vec::new();
    for round in 0..16 {
        for (n, flow) in flows.iter_mut().enumerate() {
            *flow = flow.following(pattern(1300, round));
            let mut packet = flow.build();
            if n == 5 && round == 3 {
                packet[1000] ^= 1;
            }
            batch.push(if n % 3 == 0 { from_xdp(&packet) } else { from_socket(&packet, flow.v6, n % 2 == 0) });
        }
    }
    batch
}

fn from_xdp(packet: &[u8]) -> (Vec<u8>, Origin) {
    let inner = ethernet(packet, 3, &[]);
    let frame = [vec![0; 50], inner.clone()].concat();
    let record = Metadata {
        magic: METADATA_MAGIC,
        version: METADATA_VERSION,
        checksums: 1,
        tunnel: 0,
        remote: 0,
        inner_offset: 50,
        inner_len: inner.len() as u16,
        ecn: 2,
        message: 0,
        flow_hash: 1,
    };
    let metadata = record.as_bytes().try_into().ok();
    (frame, Origin::Xdp { metadata })
}

fn from_socket(packet: &[u8], v6: bool, l2: bool) -> (Vec<u8>, Origin) {
    let address = |text: &str| address_bytes(text.parse::<IpAddr>().unwrap());
    let port = if l2 { 4789 } else { 4790 };
    let origin = SocketOrigin {
        local: address("192.0.2.1"),
        port,
        remote: address("192.0.2.2"),
        remote_port: 50_000,
        scope: 0,
        ecn: 0,
    };
    let payload = if l2 {
        [vec![8, 0, 0, 0, 0, 0, 7, 0], ethernet(packet, 4, &[9])].concat()
    } else {
        [&[12, 0, 0, if v6 { 2 } else { 1 }, 0, 0, 8, 0], packet].concat()
    };
    (payload, Origin::Socket(origin))
}

#[test]
fn a_million_packets_allocate_nothing() {
    let table = table();
    let counters = Counters::new(2);
    let mut ingress = Ingress::new(&GroConfig::default(), VerifyPolicy::default());
    let mut batch = batch();
    let mut sink = Tally { refuse_every: Some(7), ..Tally::default() };
    let mut learned = 0u64;
    let mut run = |sink: &mut Tally| {
        let received = batch.iter_mut().map(|(bytes, origin)| Received { bytes, origin: *origin });
        ingress.run(&table, &mut |_, _, _| learned += 1, &mut |_| {}, &counters, received, sink);
    };
    run(&mut sink);
    let (before, packets_before) = (ALLOCATIONS.get(), sink.packets);
    let batches = 1_000_000 / 255 + 1;
    for _ in 0..batches {
        run(&mut sink);
    }
    let allocations = ALLOCATIONS.get() - before;
    assert_eq!(sink.packets - packets_before, batches * 255, "all but the damaged packet of each batch");
    assert!(sink.packets > 1_000_000);
    assert!(learned > 0);
    let merged: u64 = counters.tunnels.iter().flat_map(|t| &t.gro_output_frames).map(|counter| counter.get()).sum();
    assert!(merged < sink.packets as u64 / 5, "they were merged on the way");
    assert_eq!(allocations, 0, "in {batches} batches");
}
