//! UDP sockets against a real kernel: what leaves in runs arrives as the right datagrams.

mod netns;

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use netfwd::datapath::seam::{DatagramSink, OuterChecksum, Transmit};
use netfwd::io::socket::SocketError;
use netfwd::io::udp_receive::{ReceiveBuffers, ReceiveOptions, ReceiveSocket};
use netfwd::io::udp_send::{SendPool, UdpSender};
use netns::{Namespace, in_new_namespace, ip};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const PORT: u16 = 4789;
const WANTED: OuterChecksum = OuterChecksum::Wanted { payload_sum: None };

/// A datagram as received.
#[derive(Debug, PartialEq, Eq)]
struct Received {
    payload: Vec<u8>,
    remote: IpAddr,
    port: u16,
    tos: u8,
}

/// Two namespaces joined by veth: the calling thread's, and the peer's.
struct Lab {
    peer: Namespace,
    v6: bool,
}

impl Lab {
    fn new(v6: bool) -> Self {
        let peer = Namespace::new();
        ip(&format!("link add near type veth peer name far netns {}", peer.path()));
        ip("addr add 10.9.0.1/24 dev near");
        ip("addr add fd09::1/64 dev near nodad");
        ip("link set near up");
        peer.run(|| {
            ip("addr add 10.9.0.2/24 dev far");
            ip("addr add fd09::2/64 dev far nodad");
            ip("link set far up");
        });
        Self { peer, v6 }
    }

    fn near(&self) -> IpAddr {
        if self.v6 { "fd09::1".parse().unwrap() } else { "10.9.0.1".parse().unwrap() }
    }

    fn far(&self) -> IpAddr {
        if self.v6 { "fd09::2".parse().unwrap() } else { "10.9.0.2".parse().unwrap() }
    }

    fn receiver(&self) -> ReceiveSocket {
        let options = ReceiveOptions { local: SocketAddr::new(self.far(), PORT), udp6_zero_checksum_rx: false };
        self.peer.run(|| ReceiveSocket::bind_group(&options, 1)).unwrap().remove(0)
    }

    fn transmit<'a>(&self, slices: &'a [IoSlice<'a>], segment_size: usize) -> Transmit<'a> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        Transmit {
            local: self.near(),
            remote: self.far(),
            port: PORT,
            source_port: 50_000,
            tos: 0,
            segment_size,
            datagrams: total.div_ceil(segment_size),
            slices,
            checksum: WANTED,
        }
    }
}

/// Receives until `count` datagrams are there, or two seconds have passed.
fn receive(socket: &mut ReceiveSocket, count: usize) -> Vec<Received> {
    let mut buffers = ReceiveBuffers::new();
    let mut all = Vec::new();
    while all.len() < count {
        let patience = Timespec { tv_sec: 2, tv_nsec: 0 };
        if poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&patience)).unwrap() == 0 {
            break;
        }
        let batch = socket.receive(&mut buffers).unwrap();
        all.extend(batch.map(|d| Received { payload: d.payload.to_vec(), remote: d.remote, port: d.port, tos: d.tos }));
    }
    all
}

fn nothing_more(socket: &mut ReceiveSocket) {
    std::thread::sleep(Duration::from_millis(20));
    assert!(socket.receive(&mut ReceiveBuffers::new()).unwrap().is_empty());
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn sender(lab: &Lab) -> (UdpSender, Arc<SendPool>) {
    let pool = Arc::new(SendPool::open(lab.near(), 64).unwrap());
    (UdpSender::new(vec![pool.clone()]), pool)
}

fn payloads(received: Vec<Received>) -> Vec<Vec<u8>> {
    received.into_iter().map(|datagram| datagram.payload).collect()
}

#[test]
fn a_run_arrives_as_its_datagrams() {
    for v6 in [false, true] {
        in_new_namespace("a_run_arrives_as_its_datagrams", || {
            let lab = Lab::new(v6);
            let mut socket = lab.receiver();
            let (mut sender, pool) = sender(&lab);
            let whole = bytes(1400 * 40 + 77);
            let slices: Vec<_> = whole.chunks(333).map(IoSlice::new).collect();
            let transmit = Transmit { tos: 0xb9, ..lab.transmit(&slices, 1400) };
            sender.send(&transmit).unwrap();
            let received = receive(&mut socket, 41);
            assert_eq!(received.len(), 41);
            for (datagram, sent) in received.iter().zip(whole.chunks(1400)) {
                assert_eq!(datagram.payload, sent);
                assert_eq!((datagram.remote, datagram.tos), (lab.near(), 0xb9));
                assert_eq!(datagram.port, pool.port_for(50_000));
            }
            assert!(pool.segmentation());
            nothing_more(&mut socket);
        });
    }
}
