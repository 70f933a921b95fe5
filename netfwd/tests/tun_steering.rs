//! What the steering programs make of a packet, by `BPF_PROG_TEST_RUN` on the object that ships, and where a device puts it.
//!
//! The oracle says what of a packet makes its flow. What number that becomes is not its business: packets of one flow have
//! one, and packets of others have others.

mod netns;
#[path = "support/packets.rs"]
mod packets;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use aya::Ebpf;
use aya::programs::{SocketFilter, TestRun as _, TestRunOptions};
use netfwd::datapath::packet::Link;
use netfwd::ebpf::STEERING;
use netfwd::io::tun::{DeviceOptions, OverlayDevice, READ_LEN, TX_QUEUE_LEN, TunQueue};
use netfwd_common::steering::{NO_FLOW, flow_of_frame, flow_of_packet};
use netns::{have_root, in_new_namespace, sysctl};
use packets::{Inner, TCP, UDP};
use rustix::net::{SendFlags, send};
use xtask::lab::packet_socket::{self, Frames};

/// Between an IPv4 header and the ports.
const OPTIONS: [u8; 8] = [1, 1, 1, 1, 1, 1, 1, 0];
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const LINKS: [Link; 2] = [Link::Ip, Link::Ethernet];

/// Both programs, in the kernel.
struct Programs(Ebpf);

impl Programs {
    /// `None` without root, if that is allowed.
    fn load(test: &str) -> Option<Self> {
        if !have_root(test) {
            return None;
        }
        let mut object = Ebpf::load(STEERING).unwrap();
        for (_, program) in object.programs_mut() {
            <&mut SocketFilter>::try_from(program).unwrap().load().unwrap();
        }
        Some(Self(object))
    }

    /// What the program for such devices says, and user space with it.
    fn flow(&self, link: Link, packet: &[u8]) -> u16 {
        let name = if link == Link::Ip { "tun" } else { "tap" };
        let program: &SocketFilter = self.0.program(name).unwrap().try_into().unwrap();
        // A test run takes an Ethernet header away, whose type is one that the kernel does not look behind.
        let with_header = [&[0; 12][..], &[0x88, 0xb5], packet].concat();
        let options = TestRunOptions { data_in: Some(&with_header), ..TestRunOptions::new() };
        let flow = program.test_run(options).unwrap().return_value;
        assert_eq!(flow, u32::from(in_user_space(link, packet)), "{link:?} {packet:02x?}");
        flow as u16
    }
}

fn in_user_space(link: Link, packet: &[u8]) -> u16 {
    match link {
        Link::Ip => flow_of_packet(packet),
        Link::Ethernet => flow_of_frame(packet),
    }
}

/// What makes the flow of what such a device carries: addresses, and ports where every packet has them.
fn key(link: Link, packet: &[u8]) -> Option<Vec<u8>> {
    let ip = match link {
        Link::Ip => packet,
        Link::Ethernet => behind_ethernet(packet)?,
    };
    match ip.first()? >> 4 {
        4 => {
            let addresses = ip.get(12..20)?;
            let is_fragment = ip[6] & 0x3f != 0 || ip[7] != 0;
            let ports = usize::from(ip[0] & 0xf) * 4;
            if is_fragment { Some(addresses.to_vec()) } else { with_ports(addresses, ip[9], ip.get(ports..)) }
        }
        6 => with_ports(ip.get(8..40)?, ip[6], ip.get(40..)),
        _ => None,
    }
}

fn behind_ethernet(frame: &[u8]) -> Option<&[u8]> {
    let types: Vec<[u8; 2]> = frame.get(12..)?.chunks_exact(4).take(3).map(|word| [word[0], word[1]]).collect();
    let tags = types.iter().take(2).take_while(|kind| matches!(kind, [0x81, 0] | [0x88, 0xa8])).count();
    let at = 14 + 4 * tags;
    matches!(frame.get(at - 2..at)?, [0x08, 0] | [0x86, 0xdd]).then(|| &frame[at..])
}

fn with_ports(addresses: &[u8], protocol: u8, behind: Option<&[u8]>) -> Option<Vec<u8>> {
    if matches!(protocol, TCP | UDP) { Some([addresses, behind?.get(..4)?].concat()) } else { Some(addresses.to_vec()) }
}

/// An IPv6 packet with an extension header of eight bytes, and behind it the ports of a TCP segment.
fn extended(kind: u8, payload: usize) -> Inner {
    let segment = Inner::tcp6(payload).bytes().split_off(40);
    Inner { payload: [&[TCP, 0, 0, 0, 0, 0, 0, 0], &segment[..]].concat(), protocol: kind, ..Inner::tcp6(0) }
}

/// Packets of some flows, several of each.
fn packets() -> Vec<Inner> {
    let mut packets = Vec::new();
    for payload in [0, 1, 100, 1400] {
        for one in [Inner::tcp4(payload), Inner::udp4(payload), Inner::tcp6(payload), Inner::udp6(payload)] {
            packets.push(Inner { options: OPTIONS.to_vec(), sequence: 7, ..one.clone() });
            packets.push(Inner { source_port: 5_001, destination_port: 40_000, ..one.clone() });
            packets.push(Inner { destination_port: 5_002, ..one.clone() });
            packets.push(Inner { source_port: 0, destination_port: 0, ..one.clone() });
            packets.push(Inner { source: one.destination, destination: one.source, ..one.clone() });
            // The first one, one in the middle, the last one.
            packets.extend([0x2000, 0x2010, 0x0020].map(|fragment| Inner { fragment, ..one.clone() }));
            packets.push(one);
        }
        packets.push(Inner::new(ICMP, "10.10.0.1", "10.10.0.2", 8 + payload));
        packets.push(Inner::new(ICMP, "10.10.0.3", "10.10.0.2", 8 + payload));
        packets.push(Inner::new(ICMPV6, "fd00::1", "fd00::2", 8 + payload));
        packets.push(Inner::new(ICMPV6, "fd00::1", "fd00::3", 8 + payload));
        packets.extend([HOP_BY_HOP, FRAGMENT].map(|kind| extended(kind, payload)));
    }
    packets
}

/// Those packets as what a device carries, with up to two tags.
fn frames() -> Vec<(Link, Vec<u8>)> {
    let tagged = |packet: Inner| {
        let frames = [0, 1, 2].map(|tags| (Link::Ethernet, packet.ethernet(tags)));
        [(Link::Ip, packet.bytes())].into_iter().chain(frames)
    };
    packets().into_iter().flat_map(tagged).collect()
}

#[test]
fn packets_have_the_same_number_if_they_are_of_the_same_flow_and_only_then() {
    let Some(programs) = Programs::load("packets_have_the_same_number_if_they_are_of_the_same_flow_and_only_then")
    else {
        return;
    };
    let mut flows = BTreeMap::new();
    for (link, frame) in frames() {
        let key = key(link, &frame).expect("each of them is of a flow");
        let flow = programs.flow(link, &frame);
        assert_ne!(flow, NO_FLOW, "{frame:02x?}");
        assert_eq!(*flows.entry(key).or_insert(flow), flow, "{link:?} {frame:02x?}");
    }
    let mut numbers: Vec<_> = flows.values().collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!((numbers.len(), flows.len()), (14, 14));
}

#[test]
fn what_ends_too_early_to_tell_its_flow_has_none() {
    let Some(programs) = Programs::load("what_ends_too_early_to_tell_its_flow_has_none") else { return };
    for (link, frame) in frames().iter().filter(|(_, frame)| frame.len() < 100) {
        let whole = programs.flow(*link, frame);
        // A test run takes no packet of no bytes.
        for len in 1..frame.len() {
            let expected = if key(*link, &frame[..len]).is_some() { whole } else { NO_FLOW };
            assert_eq!(programs.flow(*link, &frame[..len]), expected, "{len} bytes of {link:?} {frame:02x?}");
        }
    }
}

#[test]
fn what_is_no_ip_has_no_flow() {
    let Some(programs) = Programs::load("what_is_no_ip_has_no_flow") else { return };
    for version in (0..16).filter(|version| ![4, 6].contains(version)) {
        for mut packet in [Inner::udp4(100).bytes(), Inner::udp6(100).bytes()] {
            packet[0] = version << 4 | 5;
            assert_eq!(programs.flow(Link::Ip, &packet), NO_FLOW, "version {version}");
        }
    }
    // ARP, MPLS, PPPoE, LLDP, and a third tag; what follows looks like IP.
    for ethertype in [[0x08, 0x06], [0x88, 0x47], [0x88, 0x64], [0x88, 0xcc], [0x81, 0]] {
        for tags in 0..3 {
            let mut frame = Inner::udp4(100).ethernet(tags);
            frame[12 + 4 * tags..][..2].copy_from_slice(&ethertype);
            if (ethertype, tags) != ([0x81, 0], 0) {
                assert_eq!(programs.flow(Link::Ethernet, &frame), NO_FLOW, "{ethertype:02x?} behind {tags} tags");
            }
        }
    }
}

#[test]
fn mutated_packets_have_the_flow_that_their_bytes_tell() {
    let Some(programs) = Programs::load("mutated_packets_have_the_flow_that_their_bytes_tell") else { return };
    // SplitMix64: a fixed sequence, so a failure repeats.
    let mut state = 0x5eed_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    };
    let frames = frames();
    for _ in 0..4000 {
        let (link, mut frame) = frames[random(frames.len())].clone();
        for _ in 0..=random(3) {
            let at = random(frame.len().min(64));
            frame[at] = random(256) as u8;
        }
        if random(4) == 0 {
            frame.truncate(1 + random(frame.len()));
        }
        assert_eq!(programs.flow(link, &frame) == NO_FLOW, key(link, &frame).is_none(), "{link:?} {frame:02x?}");
    }
}

/// A device with four queues, and what sends out of it past the IP stack.
struct Device {
    queues: Vec<TunQueue>,
    socket: OwnedFd,
}

impl Device {
    fn new(link: Link) -> Self {
        // It carries only what the test sends.
        sysctl("ipv6/conf/default/disable_ipv6", "1");
        let (name, mtu, tx_queue_len) = ("near".to_owned(), 9000, TX_QUEUE_LEN);
        let wanted = DeviceOptions {
            name,
            link,
            queues: 4,
            mtu,
            mac: None,
            addresses: Vec::new(),
            link_local: true,
            up: true,
            tx_queue_len,
        };
        let (device, queues) = OverlayDevice::create(&wanted).unwrap();
        Self { queues, socket: packet_socket::open(device.name(), Frames::Out).unwrap() }
    }

    /// Sends a frame and finds the queue that it waits in.
    fn queue_of(&mut self, frame: &[u8]) -> usize {
        send(&self.socket, frame, SendFlags::empty()).unwrap();
        let mut buffer = vec![0; READ_LEN];
        // A device takes packets in the sender's context: what was sent is there.
        let mut waits =
            |queue: &mut TunQueue| queue.read(&mut buffer).unwrap().is_some_and(|len| buffer[10..len] == *frame);
        let found: Vec<bool> = self.queues.iter_mut().map(&mut waits).collect();
        assert_eq!(found.iter().filter(|it| **it).count(), 1, "{frame:02x?}");
        found.iter().position(|it| *it).unwrap()
    }
}

#[test]
fn a_device_asks_the_program_of_its_kind() {
    for link in LINKS {
        in_new_namespace("a_device_asks_the_program_of_its_kind", || {
            let mut device = Device::new(link);
            let mut counts = [0; 4];
            let short = [1, 20, 40].map(|len| (Link::Ip, Inner::udp6(0).bytes()[..len].to_vec()));
            for (_, frame) in frames().into_iter().chain(short).filter(|(of, _)| *of == link) {
                let expected = usize::from(in_user_space(link, &frame)) % 4;
                assert_eq!(device.queue_of(&frame), expected, "{link:?} {frame:02x?}");
                counts[expected] += 1;
            }
            assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
        });
    }
}

/// A packet socket puts no more than the Ethernet header of a long frame into the buffer's linear part, and all of a short one.
#[test]
fn headers_count_wherever_the_buffer_has_them() {
    in_new_namespace("headers_count_wherever_the_buffer_has_them", || {
        let mut device = Device::new(Link::Ethernet);
        for port in 1000..1016 {
            for one in [Inner::tcp4(0), Inner::udp6(0)] {
                let [short, long] = [10, 8000]
                    .map(|payload| Inner { source_port: port, payload: vec![1; payload], ..one.clone() }.ethernet(0));
                assert_eq!(device.queue_of(&long), device.queue_of(&short), "port {port}");
            }
        }
    });
}
