//! Real sockets over two devices in two namespaces, whose frames the test carries over unchanged: what the kernel hands
//! over in superframes is described by the vnet header as the data path expects it.

mod netns;

use std::io::{IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netfwd::datapath::packet::Link;
use netfwd::io::tun::{DeviceOptions, OverlayDevice, READ_LEN, TX_QUEUE_LEN, TunQueue};
use netfwd_common::wire::vnet;
use netns::{Namespace, in_new_namespace, ip, sysctl};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::FromBytes;

const MTU: u16 = 1450;
const LEN: usize = 4 << 20;

/// The calling thread's namespace and another, each with a device; `here` and `there` are their addresses.
struct Lab {
    link: Link,
    other: Namespace,
    queues: [TunQueue; 2],
    here: IpAddr,
    there: IpAddr,
}

impl Lab {
    fn new(link: Link, v6: bool) -> Self {
        let other = Namespace::new();
        let [here, there] = if v6 { ["fd01::1", "fd01::2"] } else { ["10.1.0.1", "10.1.0.2"] };
        let prefix = if v6 { 64 } else { 24 };
        let near = device(link, 1, &format!("{here}/{prefix}"));
        let far = other.run(|| device(link, 2, &format!("{there}/{prefix}")));
        if link == Link::Ethernet {
            ip(&format!("neigh add {there} lladdr 02:00:00:00:00:02 dev dev1 nud permanent"));
            other.run(|| ip(&format!("neigh add {here} lladdr 02:00:00:00:00:01 dev dev2 nud permanent")));
        }
        Self { link, other, queues: [near, far], here: here.parse().unwrap(), there: there.parse().unwrap() }
    }

    /// Carries frames both ways while `traffic` runs; returns the vnet headers and lengths of what went out from here.
    fn carry(&mut self, traffic: impl FnOnce(&Namespace) + Send) -> Vec<(vnet::Header, Vec<u8>)> {
        let done = AtomicBool::new(false);
        let (queues, other) = (&mut self.queues, &self.other);
        std::thread::scope(|scope| {
            let carrier = scope.spawn(|| relay(queues, &done));
            let stop = StopOnDrop(&done);
            traffic(other);
            drop(stop);
            carrier.join().unwrap()
        })
    }

    fn l2_len(&self) -> usize {
        if self.link == Link::Ethernet { 14 } else { 0 }
    }

    fn ip_len(&self) -> usize {
        if self.here.is_ipv4() { 20 } else { 40 }
    }
}

/// Ends the carrier even if the traffic panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn device(link: Link, number: u8, address: &str) -> TunQueue {
    let options = DeviceOptions {
        name: format!("dev{number}"),
        link,
        queues: 1,
        mtu: MTU,
        mac: Some([2, 0, 0, 0, 0, number]),
        addresses: vec![address.parse().unwrap()],
        link_local: true,
        up: true,
        tx_queue_len: TX_QUEUE_LEN,
    };
    // Duplicate address detection would keep an IPv6 address from being used for a second.
    sysctl("ipv6/conf/default/accept_dad", "0");
    let (_, mut queues) = OverlayDevice::create(&options).unwrap();
    queues.remove(0)
}

fn relay(queues: &mut [TunQueue; 2], done: &AtomicBool) -> Vec<(vnet::Header, Vec<u8>)> {
    let mut buffer = vec![0; READ_LEN];
    let mut seen = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let wait = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        let [near, far] = queues;
        poll(&mut [PollFd::new(near, PollFlags::IN), PollFd::new(far, PollFlags::IN)], Some(&wait)).unwrap();
        for from in [0, 1] {
            while let Some(len) = queues[from].read(&mut buffer).unwrap() {
                let (header, frame) = vnet::Header::read_from_prefix(&buffer[..len]).unwrap();
                if from == 0 {
                    seen.push((header, frame.to_vec()));
                }
                queues[1 - from].write(&[IoSlice::new(&buffer[..len])]).unwrap();
            }
        }
    }
    seen
}

#[test]
fn tcp_is_read_in_superframes() {
    in_new_namespace("tcp_is_read_in_superframes", || {
        for (link, v6) in [(Link::Ip, false), (Link::Ip, true), (Link::Ethernet, false), (Link::Ethernet, true)] {
            let mut lab = Lab::new(link, v6);
            let (l2, ip_len, there) = (lab.l2_len(), lab.ip_len(), SocketAddr::new(lab.there, 5001));
            let listener = lab.other.run(|| TcpListener::bind(there)).unwrap();
            let seen = lab.carry(|_| send_stream(&listener, there));
            let superframes: Vec<_> = seen.iter().filter(|(header, _)| header.gso_type != vnet::GSO_NONE).collect();
            let bytes: usize = superframes.iter().map(|(_, frame)| frame.len()).sum();
            assert!(bytes * 10 > LEN * 9, "{bytes} of {LEN} bytes came in superframes");
            for (header, frame) in superframes {
                assert_eq!(header.flags, vnet::NEEDS_CSUM);
                assert_eq!(header.gso_type, if v6 { vnet::GSO_TCPV6 } else { vnet::GSO_TCPV4 });
                // 32 bytes of TCP header: timestamps.
                assert_eq!(usize::from(header.gso_size.get()), usize::from(MTU) - ip_len - 32);
                assert_eq!(usize::from(header.csum_start.get()), l2 + ip_len);
                assert_eq!(header.csum_offset.get(), 16);
                assert_eq!(usize::from(header.hdr_len.get()), l2 + ip_len + 32);
                assert!(frame.len() <= l2 + 65_535);
            }
        }
    });
}

fn send_stream(listener: &TcpListener, to: SocketAddr) {
    let content: Vec<u8> = (0..LEN).map(|i| (i * 13 + i / 257) as u8).collect();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(15)).unwrap();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        });
        stream.write_all(&content).unwrap();
        drop(stream);
        assert!(receiver.join().unwrap() == content, "what arrived is not what was sent");
    });
}

#[test]
fn udp_runs_are_read_in_superframes() {
    in_new_namespace("udp_runs_are_read_in_superframes", || {
        for (link, v6) in [(Link::Ip, false), (Link::Ip, true), (Link::Ethernet, false), (Link::Ethernet, true)] {
            let mut lab = Lab::new(link, v6);
            let (l2, ip_len, there) = (lab.l2_len(), lab.ip_len(), SocketAddr::new(lab.there, 5002));
            let receiver = lab.other.run(|| UdpSocket::bind(there)).unwrap();
            receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let sender = UdpSocket::bind(SocketAddr::new(lab.here, 0)).unwrap();
            let content: Vec<u8> = (0..20 * 1000 + 333).map(|i| (i * 13 + i / 257) as u8).collect();
            set_segment_size(&sender, 1000);
            let seen = lab.carry(|_| {
                assert_eq!(sender.send_to(&content, there).unwrap(), content.len());
                let mut room = [0; 2000];
                for sent in content.chunks(1000) {
                    let len = receiver.recv(&mut room).unwrap();
                    assert_eq!(&room[..len], sent);
                }
            });
            let superframes: Vec<_> = seen.iter().filter(|(header, _)| header.gso_type != vnet::GSO_NONE).collect();
            let [(header, frame)] = superframes[..] else { panic!("{} superframes", superframes.len()) };
            assert_eq!((header.flags, header.gso_type), (vnet::NEEDS_CSUM, vnet::GSO_UDP_L4));
            assert_eq!((header.gso_size.get(), header.csum_offset.get()), (1000, 6));
            assert_eq!(usize::from(header.csum_start.get()), l2 + ip_len);
            assert_eq!(frame.len(), l2 + ip_len + 8 + content.len());
        }
    });
}

/// Every send of `socket` from now on is a run of datagrams of `size` bytes.
fn set_segment_size(socket: &UdpSocket, size: i32) {
    use std::os::fd::AsRawFd;
    // SAFETY: the kernel reads four bytes from a live integer.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const size).cast(), 4) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
