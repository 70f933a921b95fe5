//! What WireGuard costs in memory: nothing of ours per packet, a bounded amount per peer, a bounded amount under a flood.

mod segmentation;
mod wireguard;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use netfwd::datapath::packet::TunnelIndex;
use netfwd::datapath::stats::Direction;
use netfwd::datapath::tunnel::wireguard::{
    AllowedIpUpdate, Content, DeviceUpdate, Lane, Message, Now, Path, PeerUpdate, PrivateKey,
};
use netfwd_common::reason::{DropReason, Stage};
use segmentation::{Shape, pattern};
use wireguard::{End, Wire, everything, packet, superframe};

struct Counting;

thread_local! {
    // This thread's only: the test harness has threads of its own.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static ZEROED_ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static LIVE_BYTES: Cell<i64> = const { Cell::new(0) };
}

// SAFETY: every call goes to `System` unchanged, which keeps the trait's contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        LIVE_BYTES.set(LIVE_BYTES.get() + layout.size() as i64);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ZEROED_ALLOCATIONS.set(ZEROED_ALLOCATIONS.get() + 1);
        LIVE_BYTES.set(LIVE_BYTES.get() + layout.size() as i64);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.set(LIVE_BYTES.get() - layout.size() as i64);
        // SAFETY: `pointer` came from `System` with this `layout`, since the two above did.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `run` allocates: in all the usual ways, and asking for zeroed memory.
fn allocations(run: impl FnOnce()) -> (u64, u64) {
    let before = (ALLOCATIONS.get(), ZEROED_ALLOCATIONS.get());
    run();
    (ALLOCATIONS.get() - before.0, ZEROED_ALLOCATIONS.get() - before.1)
}

/// By how many bytes what is allocated grows in `run`.
fn growth(run: impl FnOnce()) -> i64 {
    let before = LIVE_BYTES.get();
    run();
    LIVE_BYTES.get() - before
}

#[test]
fn sealing_allocates_the_librarys_one_buffer_per_segment_and_opening_nothing() {
    const SEGMENTS: usize = 45;
    let frame = Shape::tcp(false, pattern(SEGMENTS * 1_348, 1)).frame(1_348);
    let superframe = superframe(&frame);
    let [mut a, mut b] = End::connected();
    let mut wire = Wire::default();
    let mut opened = 0;
    let mut round = |measured: bool| {
        let sealing = allocations(|| {
            a.seal(Content::Superframe(&superframe), &mut wire).expect("a peer");
        });
        let segments = wire.len() as u64;
        // One is damaged, one comes twice: refusing costs nothing either.
        wire.datagrams().take(1).for_each(|datagram| datagram[40] ^= 1);
        wire.repeat_last();
        let opening = allocations(|| b.receive(&mut wire, a.address, |_| opened += 1));
        if measured {
            // `Session::format_packet_data` seals into a `BytesMut::zeroed`.
            assert_eq!(sealing, (0, segments));
            assert_eq!(opening, (0, 0));
        }
    };
    round(false);
    (0..100).for_each(|_| round(true));
    assert_eq!(opened, 101 * (SEGMENTS - 1));
    let drops = |reason| b.counters.drops.get(Direction::Ingress, Stage::Crypto, reason);
    assert_eq!((drops(DropReason::Auth), drops(DropReason::Replay)), (101, 101));
}

#[test]
fn packets_to_a_peer_that_does_not_answer_cost_nothing_once_the_queue_is_full() {
    let [mut a, b] = [End::new(1), End::new(2)];
    a.know(&b, |_| {});
    let (mut wire, packet) = (Wire::default(), packet(1_000));
    for _ in 0..200 {
        a.send(&packet, &mut wire).expect("a peer");
    }
    let counted = allocations(|| {
        for _ in 0..1_000 {
            a.send(&packet, &mut wire).expect("a peer");
        }
    });
    assert_eq!(counted, (0, 0));
    assert_eq!(wire.len(), 1, "and nobody is asked for more than one handshake");
}

const KIB: i64 = 1 << 10;

fn peers(keys: impl Iterator<Item = PrivateKey>) -> Vec<PeerUpdate> {
    let peer = |(n, key): (usize, PrivateKey)| PeerUpdate {
        endpoint: Some(SocketAddr::new(IpAddr::from([198, 51, 100, 1]), 51_820)),
        allowed_ips: vec![AllowedIpUpdate {
            prefix: IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n as u32)).into(),
            remove: false,
        }],
        ..PeerUpdate::new(key.public_key())
    };
    keys.enumerate().map(peer).collect()
}

#[test]
fn ten_thousand_peers_that_never_spoke_cost_a_kibibyte_each_at_most() {
    const PEERS: i64 = 10_000;
    let key = |n: i64| {
        let mut bytes = [9; 32];
        bytes[8..16].copy_from_slice(&n.to_le_bytes());
        PrivateKey::from_bytes(bytes)
    };
    let hub = End::new(1);
    let update = DeviceUpdate { peers: peers((0..PEERS).map(key)), ..DeviceUpdate::default() };
    let per_peer = growth(|| hub.device.apply(&update)) / PEERS;
    println!("{per_peer} bytes per peer that never spoke");
    assert!(per_peer <= KIB, "{per_peer} bytes");
    assert_eq!(hub.device.peer_counts().active, 0);
}

#[test]
fn a_peer_with_a_session_costs_sixteen_kibibytes_at_most() {
    const SPOKES: u8 = 20;
    let mut hub = End::new(1);
    let mut spokes: Vec<_> = (2..2 + SPOKES).map(End::new).collect();
    hub.device
        .apply(&DeviceUpdate { peers: peers(spokes.iter().map(|spoke| spoke.key.clone())), ..DeviceUpdate::default() });
    let (mut to_hub, mut from_hub) = (Wire::default(), Wire::default());
    let mut grown = 0;
    for (n, spoke) in spokes.iter_mut().enumerate() {
        spoke.know(&hub, everything);
        // From its address among the hub's peers.
        let mut packet = packet(1);
        packet[12..16].copy_from_slice(&(0x0a00_0000 + n as u32).to_be_bytes());
        spoke.send(&packet, &mut to_hub).expect("a peer");
        let mut received = 0;
        for _ in 0..3 {
            grown += growth(|| {
                hub.receive(&mut to_hub, spoke.address, |_| received += 1);
                hub.work(&mut from_hub);
            });
            spoke.receive(&mut from_hub, hub.address, |_| {});
            spoke.work(&mut to_hub);
        }
        assert_eq!(received, 1, "spoke {n}");
    }
    let per_peer = grown / i64::from(SPOKES);
    println!("{per_peer} bytes per peer with a session, on top of what is configured");
    assert!(per_peer <= 15 * KIB, "{per_peer} bytes");
}

#[test]
fn a_flood_with_forged_sources_is_forgotten() {
    // How many are looked at per second is limited where it is decided (`identity.rs`).
    const SOURCES: u32 = 5_000;
    let [mut a, mut b] = [End::new(1), End::new(2)];
    a.know(&b, |_| {});
    b.know(&a, |_| {});
    let mut wire = Wire::default();
    a.send(&packet(1), &mut wire).expect("a peer");
    let initiation = wire.datagrams().next().expect("an initiation").to_vec();
    let flood = |b: &mut End, first: u32| {
        let (now, mut answers) = (Now::read(), 0u64);
        for from in first..first + SOURCES {
            let path = Path::to(SocketAddr::new(Ipv4Addr::from(from).into(), 1));
            let message =
                Message::new(TunnelIndex(0), path, Lane::Anonymous, &initiation).expect("a handshake message");
            b.handshakes.receive(&b.device, &b.counters, now, true, &message, &mut |run| {
                answers += 1;
                run.bytes
            });
        }
        answers
    };
    let mut answers = 0;
    let grown = growth(|| answers = flood(&mut b, 0));
    println!("{grown} bytes for {SOURCES} forged sources in a second");
    assert!(grown <= i64::from(SOURCES) * 128, "{grown} bytes");
    assert_eq!(answers, u64::from(SOURCES));
    assert_eq!(b.device.stats().cookie_replies(), answers);
    // A second later the next tick forgets them.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    b.handshakes.tick(&b.device, &b.counters, Now::read(), &mut |run| run.bytes);
    assert_eq!(growth(|| answers += flood(&mut b, SOURCES)), 0, "their memory is used again");
}
