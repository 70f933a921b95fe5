//! The kernel as the judge of the re-split law: superframes go into one TUN, the kernel forwards and cuts them, and what
//! it hands to a second TUN without offloads is compared byte for byte with the packets that were merged.
//!
//! Needs root: it makes a network namespace of its own. Without root it fails, unless `NETFWD_SKIP_ROOT_TESTS=1`.

mod packets;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use netfwd::datapath::gro::{Coalescer, GroConfig};
use netfwd::datapath::packet::{Checksums, InnerPacket, Link, TunnelIndex};
use netfwd::datapath::seam::{FrameSink, OverlayFrame};
use netfwd::datapath::stats::Counters;
use packets::*;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tun_rs::{DeviceBuilder, SyncDevice};

/// A namespace that goes away with its value.
struct Namespace(String);

impl Namespace {
    fn enter(name: &str) -> Self {
        let name = format!("nfwd-{name}-{}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let namespace = Self(name);
        let file = fs::File::open(format!("/run/netns/{}", namespace.0)).expect("the namespace's file");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
        namespace
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run("ip", &["netns", "delete", &self.0]);
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect("the program starts");
    assert!(status.success(), "{program} {arguments:?}");
}

fn may_run() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let skip = std::env::var("NETFWD_SKIP_ROOT_TESTS").is_ok_and(|value| value == "1");
    assert!(skip, "this test needs root (or NETFWD_SKIP_ROOT_TESTS=1 to leave it out)");
    eprintln!("SKIPPED for want of root: the kernel's re-split of superframes");
    false
}

/// Writes superframes to a TUN.
struct TunSink<'a> {
    device: &'a SyncDevice,
    refused: Vec<(usize, io::Error)>,
    superframes: usize,
}

impl FrameSink for TunSink<'_> {
    fn write(&mut self, frame: &OverlayFrame<'_>) -> io::Result<()> {
        let bytes: Vec<u8> = frame.slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        match self.device.send(&bytes) {
            Ok(_) => {
                self.superframes += usize::from(frame.packets > 1);
                Ok(())
            }
            Err(error) => {
                let errno = io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(0));
                self.refused.push((frame.packets, error));
                Err(errno)
            }
        }
    }
}

/// A gateway: what is written to `inside` is forwarded to `outside`.
struct Gateway {
    inside: SyncDevice,
    outside: SyncDevice,
    _namespace: Namespace,
}

impl Gateway {
    fn new(name: &str) -> Self {
        let namespace = Namespace::enter(name);
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ] {
            fs::write(format!("/proc/sys/net/{key}"), value).expect("a sysctl");
        }
        let device = |name: &str, offload| DeviceBuilder::new().name(name).offload(offload).build_sync().expect(name);
        let (inside, outside) = (device("inside", true), device("outside", false));
        outside.set_nonblocking(true).expect("non-blocking reads");
        for device in ["inside", "outside"] {
            // Room for a batch of segments.
            run("ip", &["link", "set", device, "up", "mtu", "1500", "txqueuelen", "2000"]);
        }
        run("ip", &["route", "add", "10.9.8.2/32", "dev", "outside"]);
        run("ip", &["-6", "route", "add", "fd0f::/16", "dev", "outside"]);
        run("ip", &["-6", "route", "add", "fdfd::/16", "dev", "outside"]);
        Self { inside, outside, _namespace: namespace }
    }

    /// Sends a batch through the coalescer and the kernel; superframes written and what arrives.
    fn forward(&self, config: &GroConfig, packets: &[Packet]) -> (usize, Vec<Vec<u8>>) {
        let built: Vec<_> = packets.iter().map(Packet::build).collect();
        let batch: Vec<_> = built
            .iter()
            .map(|bytes| InnerPacket { tunnel: TunnelIndex(0), link: Link::Ip, bytes, checksums: Checksums::Verified })
            .collect();
        let mut sink = TunSink { device: &self.inside, refused: Vec::new(), superframes: 0 };
        Coalescer::new(config).coalesce(&batch, &Counters::new(1), &mut sink);
        if let Some((packets, error)) = sink.refused.first() {
            eprintln!("the kernel refused a frame of {packets} packets: {error}");
        }
        (sink.superframes, self.receive(packets.len()))
    }

    fn receive(&self, count: usize) -> Vec<Vec<u8>> {
        let mut received = Vec::new();
        let mut buffer = vec![0; 65_536];
        let deadline = Instant::now() + Duration::from_secs(5);
        while received.len() < count && Instant::now() < deadline {
            match self.outside.recv(&mut buffer) {
                Ok(len) if is_ours(&buffer[..len]) => received.push(buffer[..len].to_vec()),
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        received
    }

    /// Everything must arrive as it was sent, but for the hop that forwarding costs.
    fn must_return(&self, packets: &[Packet], superframes: usize) {
        let (written, received) = self.forward(&GroConfig::default(), packets);
        assert_eq!(written, superframes, "superframes that the kernel took");
        let expected: Vec<_> = packets.iter().map(after_one_hop).collect();
        assert_eq!(received.len(), expected.len(), "packets that arrived");
        for (n, (received, expected)) in received.iter().zip(&expected).enumerate() {
            assert_eq!(without_atomic_id(received, false), without_atomic_id(expected, false), "packet {n}");
        }
    }
}

/// TCP or UDP: not the kernel's own neighbour and router discovery.
fn is_ours(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => matches!(packet.get(9), Some(6 | 17)),
        Some(6) => matches!(packet.get(6), Some(6 | 17)),
        _ => false,
    }
}

fn after_one_hop(packet: &Packet) -> Vec<u8> {
    Packet { ttl: packet.ttl - 1, ..packet.clone() }.build()
}

fn train(first: Packet, lens: &[usize]) -> Vec<Packet> {
    let mut train = vec![first.with_payload(pattern(lens[0], 0))];
    for (n, len) in lens.iter().enumerate().skip(1) {
        let next = train[n - 1].following(pattern(*len, n as u32));
        train.push(next);
    }
    train
}

#[test]
fn the_kernel_cuts_superframes_into_what_was_merged() {
    if !may_run() {
        return;
    }
    let gateway = Gateway::new("tun");
    for v6 in [false, true] {
        let stamps = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        let first = Packet { tcp_options: stamps, sequence: u32::MAX - 5000, tos: 0b10, label: 0xabcde, ..tcp(v6) };
        let mut bulk = train(first.clone(), &[1300; 40]);
        bulk[39].flags |= PSH;
        gateway.must_return(&bulk, 1);
        let mut end = train(Packet { df: false, id: 65_530, ..first.clone() }, &[1000, 1000, 1000, 1]);
        end[3].flags |= FIN | PSH;
        gateway.must_return(&end, 1);
        gateway.must_return(&train(Packet { flags: ACK | ECE, ..first }, &[3; 10]), 1);
        gateway.must_return(&train(udp(v6), &[1200; 40]), 1);
        gateway
            .must_return(&train(Packet { df: false, id: 65_530, ..udp(v6) }, &[900, 900, 900, 900, 900, 900, 900]), 1);
        gateway.must_return(&train(udp(v6), &[5; 64]), 1);
    }
}

#[test]
fn a_short_last_datagram_is_cut_or_refused_but_never_lost() {
    if !may_run() {
        return;
    }
    let gateway = Gateway::new("short");
    for v6 in [false, true] {
        let packets = train(udp(v6), &[1200, 1200, 7]);
        let (_, received) = gateway.forward(&GroConfig::default(), &packets);
        assert_eq!(received.len(), 3);
        for (received, packet) in received.iter().zip(&packets) {
            assert_eq!(without_atomic_id(received, false), without_atomic_id(&after_one_hop(packet), false));
        }
    }
}

#[test]
fn more_datagrams_than_the_kernel_takes_are_written_one_by_one() {
    if !may_run() {
        return;
    }
    let gateway = Gateway::new("many");
    for (limit, count) in [(64, 65), (128, 128), (128, 129), (200, 140)] {
        let config = GroConfig { max_udp_segments: limit, ..GroConfig::default() };
        let packets = train(udp(true), &vec![9; count]);
        let (_, received) = gateway.forward(&config, &packets);
        let expected: Vec<_> = packets.iter().map(after_one_hop).collect();
        assert_eq!(received, expected, "{count} datagrams, at most {limit} in a superframe");
    }
}

#[test]
fn the_longest_superframe_is_cut_like_any_other() {
    if !may_run() {
        return;
    }
    let gateway = Gateway::new("long");
    for v6 in [false, true] {
        let room = 65_535 - if v6 { 60 } else { 40 };
        let mut lens = vec![1365; 47];
        lens.push(room - 47 * 1365);
        gateway.must_return(&train(tcp(v6), &lens), 1);
    }
}
