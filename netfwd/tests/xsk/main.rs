//! AF_XDP sockets on a veth pair: real frames, real rings. Needs root.

mod bpf;
mod lab;

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use netfwd::io::xsk::{
    BusyPoll, ChunkSize, Error, FrameCounts, Mode, Options, RxBatch, Socket, Target, Umem, XdpStatistics, ZeroCopy,
};

use bpf::{RECORD, Redirect};
use lab::{GATEWAY_ADDRESS, Lab};

const PORT: u16 = 4789;
const PATIENCE: Duration = Duration::from_secs(5);
const HEADERS: usize = 14 + 20 + 8;

/// A socket that gets everything its interface receives.
struct Receiver {
    socket: Socket,
    batch: RxBatch,
    _redirect: Redirect,
}

impl Receiver {
    fn new(lab: &Lab, frames: u32, options: &Options) -> Self {
        let chunk_size = if options.scatter_gather { ChunkSize::FourKiB } else { ChunkSize::TwoKiB };
        lab.gateway(|ifindex| {
            let redirect = Redirect::attach(ifindex, true, options.scatter_gather).unwrap();
            let umem = Umem::new(chunk_size, 0, frames).unwrap();
            let socket = Socket::bind(umem, Target { ifindex, queue: 0 }, options).unwrap();
            redirect.insert(0, socket.as_fd()).unwrap();
            let batch = socket.batch(256);
            Self { socket, batch, _redirect: redirect }
        })
    }

    /// Adds to the batch until it has `count` packets; how many it has in the end.
    fn receive(&mut self, count: usize) -> usize {
        let deadline = Instant::now() + PATIENCE;
        while self.batch.len() < count && Instant::now() < deadline {
            if self.socket.recv(&mut self.batch, 64) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.batch.len()
    }

    /// Takes nothing out until so many packets were dropped: on a busy machine the kernel may not have come to them yet.
    fn wait_until_counted(&self, count: u64, dropped: impl Fn(&XdpStatistics) -> u64) {
        let deadline = Instant::now() + PATIENCE;
        while dropped(&self.socket.statistics().unwrap()) < count && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn release(&mut self) {
        self.socket.release(&mut self.batch);
    }
}

fn sizes(rx_size: u32, fill_size: u32) -> Options {
    Options { rx_size, fill_size, ..Options::default() }
}

/// The payload of a flow's `sequence`-th datagram: both numbers, then bytes that depend on them.
fn payload(flow: u8, sequence: u32, length: usize) -> Vec<u8> {
    let pattern = (0..length).map(|place| (place as u32).wrapping_mul(31).wrapping_add(sequence) as u8 ^ flow);
    [flow].into_iter().chain(sequence.to_be_bytes()).chain(pattern).collect()
}

fn send(socket: &UdpSocket, payload: &[u8]) {
    assert_eq!(socket.send_to(payload, (GATEWAY_ADDRESS, PORT)).unwrap(), payload.len());
}

/// The UDP payload of a frame, if it is one of ours.
fn udp_payload(frame: &[u8]) -> Option<&[u8]> {
    let (headers, payload) = frame.split_at_checked(HEADERS)?;
    let ours = headers[12..14] == [8, 0] && headers[23] == 17 && headers[36..38] == PORT.to_be_bytes();
    ours.then_some(payload)
}

#[test]
fn frames_arrive_whole_in_order_and_with_their_metadata() {
    let Some(lab) = Lab::new(1500) else { return };
    let mut receiver = Receiver::new(&lab, 1024, &sizes(512, 512));
    assert_eq!(receiver.socket.mode(), Mode::Copy);
    let flows = [lab.peer_socket(), lab.peer_socket(), lab.peer_socket()];
    let mut expected = [0u32; 3];
    for burst in 0..20 {
        for number in 0..240u32 {
            let (flow, sequence) = ((number % 3) as u8, burst * 80 + number / 3);
            send(&flows[usize::from(flow)], &payload(flow, sequence, (sequence as usize * 7) % 1400));
        }
        assert_eq!(receiver.receive(240), 240);
        // All at once, as the data path holds them.
        let packets: Vec<_> = receiver.batch.iter_mut().collect();
        for packet in &packets {
            assert_eq!(packet.metadata, Some(RECORD));
            let bytes = udp_payload(packet.bytes).unwrap();
            let next = &mut expected[usize::from(bytes[0])];
            assert_eq!(bytes, payload(bytes[0], *next, (*next as usize * 7) % 1400));
            *next += 1;
        }
        receiver.release();
    }
    assert_eq!(expected, [1600; 3]);
    let counts = receiver.socket.frame_counts();
    assert_eq!((counts.free, counts.in_flight), (512, 0), "{counts:?}");
    assert!(receiver.socket.statistics().unwrap().iter().all(|(_, value)| value == 0));
    assert_eq!(receiver.socket.refused(), Default::default());
}

#[test]
fn frames_can_be_changed_in_place() {
    let Some(lab) = Lab::new(1500) else { return };
    let mut receiver = Receiver::new(&lab, 64, &sizes(32, 32));
    send(&lab.peer_socket(), b"before");
    assert_eq!(receiver.receive(1), 1);
    for packet in receiver.batch.iter_mut() {
        packet.bytes[HEADERS..].copy_from_slice(b"behind");
    }
    assert_eq!(udp_payload(receiver.batch.iter_mut().next().unwrap().bytes), Some(&b"behind"[..]));
}

#[test]
fn an_arrival_wakes_a_poll_and_a_batch_takes_no_more_than_asked_for() {
    let Some(lab) = Lab::new(1500) else { return };
    let mut receiver = Receiver::new(&lab, 64, &sizes(32, 32));
    let readable = |socket: &Socket, patience: Duration| {
        let timeout = Timespec::try_from(patience).unwrap();
        poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)).unwrap() == 1
    };
    assert!(!readable(&receiver.socket, Duration::ZERO));
    let peer = lab.peer_socket();
    for sequence in 0..5 {
        send(&peer, &payload(0, sequence, 10));
    }
    assert!(readable(&receiver.socket, PATIENCE));
    assert_eq!(receiver.receive(5), 5);
    receiver.release();
    for sequence in 0..5 {
        send(&peer, &payload(0, sequence, 10));
    }
    assert!(readable(&receiver.socket, PATIENCE));
    let mut small = receiver.socket.batch(3);
    assert_eq!(receiver.socket.recv(&mut small, 2), 2);
    assert_eq!(receiver.socket.recv(&mut small, 64), 1);
    assert_eq!((small.len(), small.room()), (3, 0));
    assert_eq!(receiver.socket.recv(&mut small, 64), 0);
    assert_eq!(receiver.receive(2), 2);
}

#[test]
fn a_starved_fill_ring_is_counted_and_recovers() {
    let Some(lab) = Lab::new(1500) else { return };
    let mut receiver = Receiver::new(&lab, 64, &sizes(128, 64));
    let peer = lab.peer_socket();
    for sequence in 0..100 {
        send(&peer, &payload(0, sequence, 100));
    }
    receiver.wait_until_counted(36, |statistics| statistics.rx_dropped);
    assert_eq!(receiver.receive(64), 64);
    let counts = receiver.socket.frame_counts();
    assert_eq!(counts, FrameCounts { in_flight: 64, ..FrameCounts::default() });
    let statistics = receiver.socket.statistics().unwrap();
    assert_eq!((statistics.rx_fill_ring_empty, statistics.rx_dropped), (36, 36), "{statistics:?}");
    receiver.release();
    send(&peer, b"again");
    assert_eq!(receiver.receive(1), 1);
}

#[test]
fn a_full_rx_ring_is_counted() {
    let Some(lab) = Lab::new(1500) else { return };
    let mut receiver = Receiver::new(&lab, 128, &sizes(32, 128));
    let peer = lab.peer_socket();
    for sequence in 0..100 {
        send(&peer, &payload(0, sequence, 100));
    }
    receiver.wait_until_counted(68, |statistics| statistics.rx_ring_full);
    assert_eq!(receiver.receive(32), 32);
    let statistics = receiver.socket.statistics().unwrap();
    assert_eq!(statistics.rx_ring_full, 68, "{statistics:?}");
    receiver.release();
    // The kernel keeps the chunks of the packets it dropped for itself.
    assert_eq!(receiver.socket.frame_counts().in_flight, 0);
}

#[test]
fn dropped_batches_find_their_way_back() {
    let Some(lab) = Lab::new(1500) else { return };
    let mut receiver = Receiver::new(&lab, 64, &sizes(64, 64));
    let peer = lab.peer_socket();
    for round in 0..5 {
        for sequence in 0..64 {
            send(&peer, &payload(0, sequence, 100));
        }
        assert_eq!(receiver.receive(64), 64, "round {round}");
        receiver.batch = receiver.socket.batch(256);
        receiver.socket.recv(&mut receiver.batch, 1);
    }
    assert_eq!(receiver.socket.frame_counts().in_flight, 0);
}

#[test]
fn a_taken_queue_is_refused_with_what_to_do_and_is_free_again_after_close() {
    let Some(lab) = Lab::new(1500) else { return };
    let bind = |busy_wait| {
        lab.gateway(|ifindex| {
            let umem = Umem::new(ChunkSize::TwoKiB, 0, 64).unwrap();
            Socket::bind(umem, Target { ifindex, queue: 0 }, &Options { busy_wait, ..sizes(64, 64) })
        })
    };
    let first = bind(Duration::ZERO).unwrap();
    let error = bind(Duration::ZERO).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    assert!(error.to_string().contains("another socket holds this queue"), "{error}");
    drop(first);
    bind(PATIENCE).unwrap();
}

#[test]
fn what_the_system_refuses_is_explained() {
    let Some(lab) = Lab::new(1500) else { return };
    let bind = |queue, options: Options| {
        lab.gateway(|ifindex| {
            let umem = Umem::new(ChunkSize::TwoKiB, 0, 64).unwrap();
            Socket::bind(umem, Target { ifindex, queue }, &options).unwrap_err()
        })
    };
    let error = bind(0, Options { zero_copy: ZeroCopy::Require, ..sizes(64, 64) });
    assert!(error.to_string().contains("no zero-copy"), "{error}");
    let error = bind(17, sizes(64, 64));
    assert!(error.to_string().contains("no such queue"), "{error}");
    assert!(matches!(bind(0, sizes(48, 64)), Error::Sizes(_)));
    assert!(matches!(bind(0, sizes(64, 128)), Error::Sizes(_)));
}

#[test]
fn without_privileges_the_operator_is_told_which() {
    let Some(lab) = Lab::new(1500) else { return };
    let error = lab.gateway(|ifindex| {
        // Capabilities belong to the thread, which ends here.
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).unwrap();
        let umem = Umem::new(ChunkSize::TwoKiB, 0, 64).unwrap();
        Socket::bind(umem, Target { ifindex, queue: 0 }, &sizes(64, 64)).unwrap_err()
    });
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert!(error.to_string().contains("CAP_NET_RAW"), "{error}");
}

#[test]
fn jumbo_frames_are_put_together_from_several_chunks() {
    let Some(lab) = Lab::new(9000) else { return };
    let mut receiver = Receiver::new(&lab, 128, &Options { scatter_gather: true, ..sizes(64, 64) });
    assert!(receiver.socket.has_scatter_gather());
    let peer = lab.peer_socket();
    let lengths = [8900, 10, 5000, 3700, 4100, 8967, 1];
    for (sequence, length) in lengths.into_iter().enumerate() {
        send(&peer, &payload(3, sequence as u32, length));
    }
    assert_eq!(receiver.receive(lengths.len()), lengths.len());
    for (sequence, packet) in receiver.batch.iter_mut().enumerate() {
        assert_eq!(packet.metadata, Some(RECORD));
        assert_eq!(udp_payload(packet.bytes).unwrap(), payload(3, sequence as u32, lengths[sequence]));
    }
    receiver.release();
    assert_eq!(receiver.socket.frame_counts().in_flight, 0);
}

#[test]
fn busy_polling_receives_too() {
    let Some(lab) = Lab::new(1500) else { return };
    let busy_poll = Some(BusyPoll { microseconds: 20, budget: 64 });
    let mut receiver = Receiver::new(&lab, 64, &Options { busy_poll, ..sizes(64, 64) });
    send(&lab.peer_socket(), b"polled");
    assert_eq!(receiver.receive(1), 1);
}
