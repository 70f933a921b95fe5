//! Steady state allocates nothing: neither sending, nor receiving, nor frames of a device.

mod netns;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;

use netfwd::datapath::packet::Link;
use netfwd::datapath::seam::{DatagramSink, OuterChecksum, Transmit};
use netfwd::io::tun::{DeviceOptions, OverlayDevice, READ_LEN, TX_QUEUE_LEN};
use netfwd::io::udp_receive::{ReceiveBuffers, ReceiveOptions, ReceiveSocket};
use netfwd::io::udp_send::{SendPool, UdpSender};
use netns::in_new_namespace;

thread_local!(static ALLOCATIONS: Cell<usize> = const { Cell::new(0) });

struct Counting;

// SAFETY: every call is passed on to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: `place` came from `alloc` above, so from System, with this layout.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of this thread during `action`.
fn allocations(action: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    action();
    ALLOCATIONS.get() - before
}

#[test]
fn sending_and_receiving_allocate_nothing() {
    in_new_namespace("sending_and_receiving_allocate_nothing", || {
        let local: SocketAddr = "127.0.0.1:4789".parse().unwrap();
        let options = ReceiveOptions::at(local);
        let mut socket = ReceiveSocket::bind_group(&options, 1).unwrap().remove(0);
        let mut buffers = ReceiveBuffers::new();
        let mut sender = UdpSender::new(vec![Arc::new(SendPool::open(local.ip(), 64).unwrap())]);
        let content = vec![7; 100_000];
        let run: Vec<_> = content.chunks(700).map(IoSlice::new).collect();
        let transmit = Transmit {
            local: local.ip(),
            remote: local.ip(),
            port: local.port(),
            scope: 0,
            source_port: 50_000,
            tos: 1,
            segment_size: 1400,
            datagrams: content.len().div_ceil(1400),
            slices: &run,
            checksum: OuterChecksum::Zero,
        };
        let mut received = 0;
        let count = allocations(|| {
            for _ in 0..50 {
                sender.send(&transmit).unwrap();
                let single = Transmit { slices: &run[..2], datagrams: 1, ..transmit };
                sender.send(&single).unwrap();
                sender.send(&Transmit { checksum: OuterChecksum::Wanted { payload_sum: None }, ..single }).unwrap();
                // Too large for the loopback's MTU as a run: sent in pieces, then lost as single datagrams.
                sender.send(&Transmit { segment_size: 65_520, datagrams: 2, ..transmit }).unwrap_err();
                received += socket.receive(&mut buffers).unwrap().map(|datagram| datagram.payload.len()).sum::<usize>();
            }
        });
        assert_eq!(count, 0);
        assert!(received >= 50 * (content.len() + 2 * 1400));
    });
}

#[test]
fn frames_of_a_device_allocate_nothing() {
    in_new_namespace("frames_of_a_device_allocate_nothing", || {
        let options = DeviceOptions {
            name: "tun0".to_owned(),
            link: Link::Ip,
            queues: 1,
            mtu: 1400,
            mac: None,
            addresses: vec!["10.1.0.1/24".parse().unwrap()],
            link_local: true,
            up: true,
            tx_queue_len: TX_QUEUE_LEN,
        };
        let (_, mut queues) = OverlayDevice::create(&options).unwrap();
        let mut buffer = vec![0; READ_LEN];
        let frame = [[0; 10].as_slice(), &[0x45; 100]].concat();
        let count = allocations(|| {
            for _ in 0..100 {
                queues[0].write(&[IoSlice::new(&frame[..10]), IoSlice::new(&frame[10..])]).unwrap();
                queues[0].read(&mut buffer).unwrap();
            }
        });
        assert_eq!(count, 0);
    });
}
