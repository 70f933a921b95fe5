//! UDP sockets against a real kernel: what leaves in runs arrives as the right datagrams.

mod netns;

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use netfwd::datapath::seam::{DatagramSink, OuterChecksum, Transmit};
use netfwd::io::socket::SocketError;
use netfwd::io::udp_receive::{ReceiveBuffers, ReceiveOptions, ReceiveSocket};
use netfwd::io::udp_send::{SendPool, UdpSender};
use netfwd_common::checksum::Sum;
use netns::{Namespace, in_new_namespace, ip, run, sysctl};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

const PORT: u16 = 4789;
const NEAR_MAC: &str = "02:00:00:00:00:01";
const FAR_MAC: &str = "02:00:00:00:00:02";
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
        stay_on_this_cpu();
        let peer = Namespace::new();
        ip(&format!(
            "link add near address {NEAR_MAC} type veth peer name far address {FAR_MAC} netns {}",
            peer.path()
        ));
        // Neighbours and addresses are static: nothing waits for ARP, neighbour discovery or duplicate detection.
        let set_up = |name, number, other, mac| {
            sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0");
            ip(&format!("addr add 10.9.0.{number}/24 dev {name}"));
            ip(&format!("addr add fd09::{number}/64 dev {name} nodad"));
            ip(&format!("link set {name} up"));
            ip(&format!("neigh add 10.9.0.{other} lladdr {mac} dev {name} nud permanent"));
            ip(&format!("neigh add fd09::{other} lladdr {mac} dev {name} nud permanent"));
        };
        set_up("near", 1, 2, FAR_MAC);
        peer.run(|| set_up("far", 2, 1, NEAR_MAC));
        let lab = Self { peer, v6 };
        lab.wait_until_passable();
        lab
    }

    /// A link that was just set up swallows datagrams without a word for a while: a veth's carrier is noticed up to a
    /// second late (linkwatch), and IPv6 addresses become usable in a work queue.
    fn wait_until_passable(&self) {
        let far = self.peer.run(|| UdpSocket::bind((self.far(), 9)).unwrap());
        far.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let near = UdpSocket::bind((self.near(), 0)).unwrap();
        let passed = (0..250).any(|_| {
            let _ = near.send_to(b"?", (self.far(), 9));
            far.recv(&mut [0]).is_ok()
        });
        assert!(passed, "nothing passes between the namespaces");
    }

    fn near(&self) -> IpAddr {
        if self.v6 { "fd09::1".parse().unwrap() } else { "10.9.0.1".parse().unwrap() }
    }

    fn far(&self) -> IpAddr {
        if self.v6 { "fd09::2".parse().unwrap() } else { "10.9.0.2".parse().unwrap() }
    }

    fn receiver(&self) -> ReceiveSocket {
        let options = ReceiveOptions::at(SocketAddr::new(self.far(), PORT));
        self.peer.run(|| ReceiveSocket::bind_group(&options, 1)).unwrap().remove(0)
    }

    fn transmit<'a>(&self, slices: &'a [IoSlice<'a>], segment_size: usize) -> Transmit<'a> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        Transmit {
            local: self.near(),
            remote: self.far(),
            port: PORT,
            scope: 0,
            source_port: 50_000,
            tos: 0,
            segment_size,
            datagrams: total.div_ceil(segment_size),
            slices,
            checksum: WANTED,
        }
    }
}

/// As workers do: a thread that changes its CPU can overtake its own datagrams in the per-CPU backlogs behind a veth.
fn stay_on_this_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu());
    sched_setaffinity(None, &cpus).unwrap();
}

/// Receives until `count` datagrams are there, or five seconds have passed without any.
fn receive(socket: &mut ReceiveSocket, count: usize) -> Vec<Received> {
    let mut all = Vec::new();
    while all.len() < count {
        let batch = receive_once(socket);
        if batch.is_empty() {
            break;
        }
        all.extend(batch);
    }
    all
}

/// Receives one batch within five seconds.
fn receive_once(socket: &mut ReceiveSocket) -> Vec<Received> {
    let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
    poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&patience)).unwrap();
    let mut buffers = ReceiveBuffers::new();
    let batch = socket.receive(&mut buffers).unwrap();
    batch.map(|d| Received { payload: d.payload.to_vec(), remote: d.remote, port: d.port, tos: d.tos }).collect()
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
            // More datagrams than a batch has buffers, in one batch: they came as aggregates.
            let received = receive_once(&mut socket);
            assert_eq!(received.len(), 41);
            for (datagram, sent) in received.iter().zip(whole.chunks(1400)) {
                assert_eq!(datagram.payload, sent);
                assert_eq!((datagram.remote, datagram.tos), (lab.near(), 0xb9));
                assert_eq!(datagram.port, pool.port_for(50_000));
            }
            assert!(pool.segmentation(lab.far()));
            nothing_more(&mut socket);
        });
    }
}

#[test]
fn runs_too_long_for_one_call_are_sent_in_several() {
    for v6 in [false, true] {
        in_new_namespace("runs_too_long_for_one_call_are_sent_in_several", || {
            let lab = Lab::new(v6);
            let mut socket = lab.receiver();
            let (mut sender, pool) = sender(&lab);
            // (datagram size, bytes, slice size): too many bytes, too many datagrams, too many slices.
            for (size, len, slice) in [(1400, 100_000, 1000), (300, 300 * 150 + 1, 4000), (1000, 4000, 3)] {
                let whole = bytes(len);
                let slices: Vec<_> = whole.chunks(slice).map(IoSlice::new).collect();
                sender.send(&lab.transmit(&slices, size)).unwrap();
                let sent: Vec<_> = whole.chunks(size).map(<[u8]>::to_vec).collect();
                assert!(payloads(receive(&mut socket, sent.len())) == sent, "{size} {len} {slice}");
            }
            assert!(pool.segmentation(lab.far()));
            nothing_more(&mut socket);
        });
    }
}

#[test]
fn a_run_that_the_kernel_refuses_is_sent_as_single_datagrams() {
    for v6 in [false, true] {
        in_new_namespace("a_run_that_the_kernel_refuses_is_sent_as_single_datagrams", || {
            let lab = Lab::new(v6);
            let mut socket = lab.receiver();
            let (mut sender, pool) = sender(&lab);
            // No segment may be larger than the MTU; single datagrams may, and are fragmented.
            let whole = bytes(10 * 3000 + 55);
            let slices: Vec<_> = whole.chunks(700).map(IoSlice::new).collect();
            sender.send(&lab.transmit(&slices, 3000)).unwrap();
            let sent: Vec<_> = whole.chunks(3000).map(<[u8]>::to_vec).collect();
            let received = payloads(receive(&mut socket, 11));
            let places: Vec<_> = received.iter().map(|one| sent.iter().position(|other| other == one)).collect();
            assert!(received == sent, "{v6} {places:?}");
            assert!(pool.segmentation(lab.far()), "it was this run's fault, not the interface's");
        });
    }
}

#[test]
fn a_flow_keeps_its_source_port_in_runs_and_alone() {
    for v6 in [false, true] {
        in_new_namespace("a_flow_keeps_its_source_port_in_runs_and_alone", || {
            let lab = Lab::new(v6);
            let mut socket = lab.receiver();
            let (mut sender, pool) = sender(&lab);
            let run = bytes(3000);
            let slices = [IoSlice::new(&run)];
            let mut ports = std::collections::BTreeSet::new();
            for source_port in (49_152..=65_535).step_by(97) {
                let flow = Transmit { source_port, ..lab.transmit(&slices, 1000) };
                sender.send(&flow).unwrap();
                let single = Transmit { segment_size: 3000, datagrams: 1, ..flow };
                let small = [IoSlice::new(&run[..100])];
                sender.send(&Transmit { slices: &small, segment_size: 100, ..single }).unwrap();
                sender.send(&Transmit { slices: &small, checksum: payload_sum(&run[..100]), ..single }).unwrap();
                // Too large for a raw socket, which does not fragment.
                sender.send(&Transmit { checksum: payload_sum(&run), ..single }).unwrap();
                let received = receive(&mut socket, 6);
                assert_eq!(received.len(), 6);
                assert!(received.iter().all(|datagram| datagram.port == pool.port_for(source_port)));
                assert!(pool.port_for(source_port) >= 49_152);
                ports.insert(pool.port_for(source_port));
            }
            assert_eq!(ports.len(), 64, "every socket of the pool serves some flow");
        });
    }
}

fn payload_sum(payload: &[u8]) -> OuterChecksum {
    OuterChecksum::Wanted { payload_sum: Some(Sum::ZERO.add(payload).fold()) }
}

#[test]
fn checksums_on_the_wire_are_zero_or_right_as_asked() {
    for v6 in [false, true] {
        in_new_namespace("checksums_on_the_wire_are_zero_or_right_as_asked", || {
            let lab = Lab::new(v6);
            let _socket = lab.receiver();
            let wire = lab.peer.run(capture);
            let (mut sender, _) = sender(&lab);
            for len in [1, 2, 99, 100, 1000] {
                let payload = bytes(len);
                let slices: Vec<_> = payload.chunks(64).take(9).map(IoSlice::new).collect();
                let payload: Vec<u8> = payload.iter().copied().take(64 * 9).collect();
                let single = Transmit { tos: 0x02, ..lab.transmit(&slices, payload.len()) };
                for checksum in [OuterChecksum::Zero, payload_sum(&payload), WANTED] {
                    sender.send(&Transmit { checksum, ..single }).unwrap();
                    let packet = captured(&wire);
                    let ip_len = if v6 { 40 } else { 20 };
                    let (ip_header, udp) = packet.split_at(ip_len);
                    assert_eq!(udp[8..], payload);
                    if !v6 {
                        assert!(Sum::ZERO.add(ip_header).is_valid());
                        assert_eq!((ip_header[1], ip_header[6]), (0x02, 0), "TOS, DF");
                    } else {
                        assert_eq!(ip_header[..4], [0x60, 0x20, 0, 0]);
                    }
                    let addresses = if v6 { &ip_header[8..40] } else { &ip_header[12..20] };
                    let pseudo = Sum::ZERO.add(addresses).add_u16(17).add_u16(udp.len() as u16);
                    match checksum {
                        OuterChecksum::Zero => assert_eq!(udp[6..8], [0, 0]),
                        // The kernel leaves it to the NIC, which a veth has none of.
                        WANTED => assert_eq!(udp[6..8], pseudo.to_bytes()),
                        OuterChecksum::Wanted { .. } => assert!(pseudo.add(udp).is_valid()),
                    }
                }
            }
        });
    }
}

/// A packet socket that sees everything in this namespace, from the IP header on.
fn capture() -> OwnedFd {
    use rustix::net::{AddressFamily, SocketType, eth, socket};
    socket(AddressFamily::PACKET, SocketType::DGRAM, Some(eth::ALL)).unwrap()
}

/// The next UDP datagram to [`PORT`] on the wire.
fn captured(wire: &OwnedFd) -> Vec<u8> {
    loop {
        let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(wire, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ready, 1, "nothing was captured");
        let mut packet = vec![0; 65_536];
        let len = rustix::io::read(wire, &mut packet).unwrap();
        packet.truncate(len);
        let ip_len = if packet[0] >> 4 == 6 { 40 } else { 20 };
        let is_udp = packet[if ip_len == 40 { 6 } else { 9 }] == 17;
        if is_udp && packet.get(ip_len + 2..ip_len + 4) == Some(&PORT.to_be_bytes()) {
            return packet;
        }
    }
}

#[test]
fn with_zero_checksums_allowed_they_are_received_over_ipv6() {
    for allowed in [false, true] {
        in_new_namespace("with_zero_checksums_allowed_they_are_received_over_ipv6", || {
            let lab = Lab::new(true);
            let local = SocketAddr::new(lab.far(), PORT);
            let options = ReceiveOptions { udp6_zero_checksum_rx: allowed, ..ReceiveOptions::at(local) };
            let mut socket = lab.peer.run(|| ReceiveSocket::bind_group(&options, 1)).unwrap().remove(0);
            let (mut sender, _) = sender(&lab);
            let slices = [IoSlice::new(b"no checksum")];
            sender.send(&Transmit { checksum: OuterChecksum::Zero, ..lab.transmit(&slices, 11) }).unwrap();
            assert_eq!(payloads(receive(&mut socket, 1)).len(), usize::from(allowed));
        });
    }
}

#[test]
fn what_finds_no_room_is_counted_exactly() {
    in_new_namespace("what_finds_no_room_is_counted_exactly", || {
        let lab = Lab::new(false);
        let mut socket = lab.receiver();
        let (mut sender, pool) = sender(&lab);
        // Nobody answers ARP: datagrams wait for the neighbour and fill the tiny send buffer.
        lab.peer.run(|| ip("link set far arp off"));
        ip("neigh del 10.9.0.2 dev near");
        pool.set_send_buffer(0).unwrap();
        let payload = bytes(1000);
        let slices = [IoSlice::new(&payload)];
        let mut lost = 0;
        for _ in 0..20 {
            if let Err(failure) = sender.send(&lab.transmit(&slices, 1000)) {
                assert_eq!(failure.error.raw_os_error(), Some(libc::EAGAIN));
                lost += failure.lost;
            }
        }
        assert!((1..20).contains(&lost), "{lost}");
        let run = [IoSlice::new(&payload), IoSlice::new(&payload)];
        let failure = sender.send(&lab.transmit(&run, 400)).unwrap_err();
        assert_eq!(failure.lost, 5);
        ip(&format!("neigh replace 10.9.0.2 lladdr {FAR_MAC} dev near nud permanent"));
        assert_eq!(receive(&mut socket, 20 - lost).len(), 20 - lost);
        nothing_more(&mut socket);
    });
}

#[test]
fn an_icmp_error_for_one_remote_costs_another_nothing() {
    for v6 in [false, true] {
        in_new_namespace("an_icmp_error_for_one_remote_costs_another_nothing", || {
            let lab = Lab::new(v6);
            let mut socket = lab.receiver();
            let (mut sender, _) = sender(&lab);
            let payload = bytes(100);
            let slices = [IoSlice::new(&payload)];
            for _ in 0..5 {
                let good = lab.transmit(&slices, 100);
                // Port unreachable arrives at once: veth delivers in the sender's context.
                let _ = sender.send(&Transmit { port: PORT + 1, ..good });
                std::thread::sleep(Duration::from_millis(5));
                sender.send(&good).unwrap();
            }
            assert_eq!(receive(&mut socket, 5).len(), 5);
        });
    }
}

#[test]
fn a_port_that_someone_else_has_is_named_as_such() {
    in_new_namespace("a_port_that_someone_else_has_is_named_as_such", || {
        let local: SocketAddr = "127.0.0.1:4789".parse().unwrap();
        let options = ReceiveOptions::at(local);
        let group = ReceiveSocket::bind_group(&options, 3).unwrap();
        assert_eq!(group[2].local().unwrap(), local);
        // Even though all of them set SO_REUSEPORT.
        let again = ReceiveSocket::bind_group(&options, 1);
        assert!(matches!(again, Err(SocketError::AddressInUse { local: taken }) if taken == local));
        drop(group);
        ReceiveSocket::bind_group(&options, 1).unwrap();
        ip("link add vx type vxlan id 1 dstport 4789 local 127.0.0.1");
        ip("link set vx up");
        let kernel = ReceiveSocket::bind_group(&options, 1);
        assert!(matches!(kernel, Err(SocketError::AddressInUse { .. })));
        let foreign = ReceiveOptions { local: "192.0.2.1:4789".parse().unwrap(), ..options };
        let error = ReceiveSocket::bind_group(&foreign, 1).unwrap_err();
        assert_eq!(error.to_string(), "192.0.2.1 is not an address of this host");
    });
}

#[test]
fn taken_source_ports_are_passed_over() {
    in_new_namespace("taken_source_ports_are_passed_over", || {
        let _taken: Vec<_> = (0..3).map(|i| UdpSocket::bind(("127.0.0.1", 49_152 + i)).unwrap()).collect();
        let pool = SendPool::open("127.0.0.1".parse().unwrap(), 128).unwrap();
        assert_eq!(pool.port_for(49_152), 49_155);
        assert_eq!(pool.port_for(65_535), 65_408);
    });
}

#[test]
fn a_full_receive_buffer_is_counted() {
    in_new_namespace("a_full_receive_buffer_is_counted", || {
        let local: SocketAddr = "127.0.0.1:4789".parse().unwrap();
        let mut socket = ReceiveSocket::bind_group(&ReceiveOptions::at(local), 1).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        const SENT: u64 = 50_000;
        for _ in 0..SENT {
            sender.send_to(b"datagram", local).unwrap();
        }
        let received = receive(&mut socket[0], SENT as usize).len() as u64;
        // The count comes with the next datagram.
        sender.send_to(b"datagram", local).unwrap();
        assert_eq!(receive(&mut socket[0], 1).len(), 1);
        assert!(received < SENT);
        assert_eq!(received + socket[0].drops(), SENT);
    });
}

#[test]
fn runs_pass_an_interface_without_checksum_offload() {
    for v6 in [false, true] {
        in_new_namespace("runs_pass_an_interface_without_checksum_offload", || {
            let lab = Lab::new(v6);
            let mut socket = lab.receiver();
            let (mut sender, pool) = sender(&lab);
            // Before Linux 6.11 a run then gets EIO, and its remote gets no more for a while.
            run("ethtool", "-K near tx off");
            let whole = bytes(1400 * 20 + 77);
            let slices: Vec<_> = whole.chunks(333).map(IoSlice::new).collect();
            for _ in 0..2 {
                sender.send(&lab.transmit(&slices, 1400)).unwrap();
                let sent: Vec<_> = whole.chunks(1400).map(<[u8]>::to_vec).collect();
                let received = payloads(receive(&mut socket, 21));
                let places: Vec<_> = received.iter().map(|one| sent.iter().position(|other| other == one)).collect();
                assert!(received == sent, "{v6} {places:?}");
            }
            assert_eq!(pool.segmentation(lab.far()), kernel() >= [6, 11]);
        });
    }
}

/// Major and minor number of the running kernel.
fn kernel() -> [u32; 2] {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers =
        release.split(|character: char| !character.is_ascii_digit()).map(|number| number.parse().unwrap());
    [numbers.next().unwrap(), numbers.next().unwrap()]
}

#[test]
fn drops_of_the_queueing_discipline_are_counted() {
    for checksum in [WANTED, OuterChecksum::Zero] {
        in_new_namespace("drops_of_the_queueing_discipline_are_counted", || {
            let lab = Lab::new(false);
            let mut socket = lab.receiver();
            let (mut sender, _) = sender(&lab);
            run("tc", "qdisc add dev near root tbf rate 400kbit burst 3000 limit 5000");
            let payload = bytes(1000);
            let slices = [IoSlice::new(&payload)];
            let mut lost = 0;
            for _ in 0..20 {
                let single = Transmit { checksum, ..lab.transmit(&slices, 1000) };
                if let Err(failure) = sender.send(&single) {
                    assert_eq!(failure.error.raw_os_error(), Some(libc::ENOBUFS));
                    lost += failure.lost;
                }
            }
            assert!((1..20).contains(&lost), "{lost}");
            assert_eq!(receive(&mut socket, 20 - lost).len(), 20 - lost);
            nothing_more(&mut socket);
        });
    }
}

#[test]
fn an_empty_datagram_is_handed_on() {
    in_new_namespace("an_empty_datagram_is_handed_on", || {
        let local: SocketAddr = "127.0.0.1:4789".parse().unwrap();
        let mut socket = ReceiveSocket::bind_group(&ReceiveOptions::at(local), 1).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"", local).unwrap();
        sender.send_to(b"more", local).unwrap();
        assert_eq!(payloads(receive(&mut socket[0], 2)), [b"".to_vec(), b"more".to_vec()]);
    });
}
