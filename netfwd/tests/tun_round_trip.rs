//! Superframes through a real TUN and TAP: written, forwarded and cut by the kernel, and read back.
//!
//! ```text
//! superframe → first device → kernel forwards → second device (offloads off) → segments
//! ```

mod frames;
mod netns;

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use frames::{Family, Superframe};
use ipnet::IpNet;
use netfwd::datapath::packet::Link;
use netfwd::io::tun::{DeviceError, DeviceOptions, OverlayDevice, READ_LEN, TX_QUEUE_LEN, TunQueue};
use netns::{in_new_namespace, ip, run, sysctl};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn options(name: &str, link: Link, mac: [u8; 6], addresses: &[&str]) -> DeviceOptions {
    DeviceOptions {
        name: name.to_owned(),
        link,
        queues: 1,
        mtu: 1500,
        mac: Some(mac),
        addresses: addresses.iter().map(|address| address.parse::<IpNet>().unwrap()).collect(),
        link_local: true,
        up: true,
        tx_queue_len: TX_QUEUE_LEN,
    }
}

fn device(options: &DeviceOptions) -> (OverlayDevice, TunQueue) {
    let (device, mut queues) = OverlayDevice::create(options).unwrap();
    (device, queues.remove(0))
}

/// A device that superframes are written to, and one without offloads that the kernel forwards them to.
struct Lab {
    link: Link,
    near: TunQueue,
    far: TunQueue,
}

impl Lab {
    fn new(link: Link) -> Self {
        let (_, near) = device(&options("near", link, NEAR_MAC, &["10.1.0.1/24", "fd01::1/64"]));
        let (_, far) = device(&options("far", link, FAR_MAC, &["10.2.0.1/24", "fd02::1/64"]));
        run("ethtool", "-K far tx off gso off tso off tx-udp-segmentation off");
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv6/conf/all/forwarding", "1");
        for name in ["near", "far", "all"] {
            sysctl(&format!("ipv4/conf/{name}/rp_filter"), "0");
        }
        if link == Link::Ethernet {
            ip("neigh add 10.2.0.2 lladdr 02:00:00:00:00:22 dev far nud permanent");
            ip("neigh add fd02::2 lladdr 02:00:00:00:00:22 dev far nud permanent");
        }
        Self { link, near, far }
    }

    fn write(&mut self, frame: &Superframe) -> std::io::Result<()> {
        let (headers, payload) = frame.written(self.link, NEAR_MAC);
        // As the coalescer does: headers in one slice, the payload of each packet in its own.
        let mut slices = vec![IoSlice::new(&headers)];
        slices.extend(payload.chunks(frame.segment).map(IoSlice::new));
        self.near.write(&slices)
    }

    /// What comes out on the far side to the address that superframes go to.
    fn segments(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut segments = Vec::new();
        while segments.len() < count {
            let Some(frame) = read(&mut self.far) else { break };
            assert_eq!(frame[..2], [0, 0], "nothing left to complete or to cut");
            let skip = if self.link == Link::Ethernet { 24 } else { 10 };
            let packet = frame[skip..].to_vec();
            if frames::is_test_packet(&packet) {
                segments.push(packet);
            }
        }
        segments
    }

    fn round_trip(&mut self, frame: &Superframe) {
        self.write(frame).unwrap_or_else(|error| panic!("{frame:?}: {error}"));
        let expected = frame.segments(1);
        let segments = self.segments(expected.len());
        assert_eq!(segments.len(), expected.len(), "{frame:?}");
        for (segment, expected) in segments.iter().zip(&expected) {
            assert_eq!(frames::without_ipv4_id(segment), frames::without_ipv4_id(expected), "{frame:?}");
        }
    }
}

/// Reads one frame within half a second.
fn read(queue: &mut TunQueue) -> Option<Vec<u8>> {
    let mut buffer = vec![0; READ_LEN];
    let patience = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
    poll(&mut [PollFd::new(queue, PollFlags::IN)], Some(&patience)).unwrap();
    let len = queue.read(&mut buffer).unwrap()?;
    buffer.truncate(len);
    Some(buffer)
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const LINKS: [Link; 2] = [Link::Ip, Link::Ethernet];

#[test]
fn superframes_come_out_as_the_packets_that_went_in() {
    in_new_namespace("superframes_come_out_as_the_packets_that_went_in", || {
        for link in LINKS {
            let mut lab = Lab::new(link);
            for family in FAMILIES {
                lab.round_trip(&Superframe::tcp(family, 1400, 10 * 1400));
                lab.round_trip(&Superframe::tcp(family, 1400, 10 * 1400 + 1));
                lab.round_trip(&Superframe::tcp(family, 536, 60 * 536 + 77));
                lab.round_trip(&Superframe::udp(family, 1400, 10 * 1400));
                lab.round_trip(&Superframe::udp(family, 1200, 10 * 1200 + 1));
            }
        }
    });
}

#[test]
fn a_udp_superframe_takes_as_many_segments_as_the_probe_says() {
    in_new_namespace("a_udp_superframe_takes_as_many_segments_as_the_probe_says", || {
        let (device, _queue) = device(&options("probed", Link::Ip, NEAR_MAC, &[]));
        let limit = device.offloads().write.udp_segments;
        assert!([0, 64, 128].contains(&limit), "{limit}");
        println!("{:?}", device.offloads());
        for link in LINKS {
            let mut lab = Lab::new(link);
            for family in FAMILIES {
                for segments in [64, 65, 128, 129] {
                    let frame = Superframe::udp(family, 400, segments * 400);
                    if segments <= limit {
                        lab.round_trip(&frame);
                    } else {
                        let error = lab.write(&frame).expect_err("more segments than the probe found");
                        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{frame:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_superframe_of_65535_bytes_passes() {
    in_new_namespace("a_superframe_of_65535_bytes_passes", || {
        for link in LINKS {
            let mut lab = Lab::new(link);
            for family in FAMILIES {
                for frame in [Superframe::tcp(family, 1400, 0), Superframe::udp(family, 1400, 0)] {
                    let payload_len = 65_535 - frame.header_len();
                    lab.round_trip(&Superframe { payload_len, ..frame });
                }
            }
        }
    });
}

/// Linux 6.18 accepts the write of one byte more, takes it for BIG TCP where it can, and loses UDP over IPv4 (whose total
/// length is 0 by then) without a word. So 65,535 is a limit that netfwd has to keep by itself.
#[test]
fn beyond_65535_bytes_a_successful_write_promises_nothing() {
    in_new_namespace("beyond_65535_bytes_a_successful_write_promises_nothing", || {
        let mut lab = Lab::new(Link::Ip);
        for family in FAMILIES {
            for frame in [Superframe::tcp(family, 1400, 0), Superframe::udp(family, 1400, 0)] {
                let payload_len = 65_536 - frame.header_len();
                let frame = Superframe { payload_len, ..frame };
                let result = lab.write(&frame);
                let expected: Vec<_> = frame.segments(1).iter().map(|s| frames::without_ipv4_id(s)).collect();
                let out: Vec<_> = lab.segments(expected.len()).iter().map(|s| frames::without_ipv4_id(s)).collect();
                println!("{family:?} tcp={}: {result:?}, {} of {} segments", frame.tcp, out.len(), expected.len());
                assert!(out.is_empty() || (result.is_ok() && out == expected), "{frame:?}");
            }
        }
    });
}

#[test]
fn malformed_vnet_headers_are_einval() {
    in_new_namespace("malformed_vnet_headers_are_einval", || {
        let (_, mut queue) = device(&options("near", Link::Ip, NEAR_MAC, &["10.1.0.1/24", "fd01::1/64"]));
        for family in FAMILIES {
            let tcp = Superframe::tcp(family, 1000, 3000);
            let udp = Superframe::udp(family, 1000, 3000);
            let mut refused = |case: &str, frame: &Superframe, change: &dyn Fn(&mut Vec<u8>)| {
                let (mut bytes, payload) = frame.written(Link::Ip, NEAR_MAC);
                change(&mut bytes);
                let error = queue.write(&[IoSlice::new(&bytes), IoSlice::new(&payload)]).expect_err(case);
                assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{case} {family:?}");
            };
            for frame in [&tcp, &udp] {
                refused("gso_size 0", frame, &|bytes| bytes[4..6].fill(0));
                refused("hdr_len beyond the frame", frame, &|bytes| bytes[2..4].fill(0xff));
                refused("unknown gso_type", frame, &|bytes| bytes[1] = 7);
            }
            refused("UDP without NEEDS_CSUM", &udp, &|bytes| bytes[0] = 0);
            refused("UDP with another csum_offset", &udp, &|bytes| bytes[8..10].copy_from_slice(&16u16.to_ne_bytes()));
        }
        queue.write(&[IoSlice::new(&[0; 10])]).expect_err("no packet behind the header");
        let too_long = vec![IoSlice::new(&[0]); 1025];
        assert_eq!(queue.write(&too_long).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    });
}

#[test]
fn a_device_that_is_down_gives_eio() {
    in_new_namespace("a_device_that_is_down_gives_eio", || {
        let (_, mut queue) = device(&options("near", Link::Ip, NEAR_MAC, &["10.1.0.1/24"]));
        ip("link set near down");
        let (headers, payload) = Superframe::tcp(Family::V4, 1000, 3000).written(Link::Ip, NEAR_MAC);
        let error = queue.write(&[IoSlice::new(&headers), IoSlice::new(&payload)]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        ip("link set near up");
        queue.write(&[IoSlice::new(&headers), IoSlice::new(&payload)]).unwrap();
    });
}

#[test]
fn a_device_is_what_was_asked_for_and_gone_with_its_last_queue() {
    in_new_namespace("a_device_is_what_was_asked_for_and_gone_with_its_last_queue", || {
        let wanted = DeviceOptions {
            queues: 3,
            mtu: 1444,
            ..options("vx7", Link::Ethernet, FAR_MAC, &["10.3.0.1/24", "10.3.1.1/24", "fd03::1/64"])
        };
        let (device, mut queues) = OverlayDevice::create(&wanted).unwrap();
        assert_eq!((device.name(), queues.len()), ("vx7", 3));
        let shown = shown_link("-d addr show dev vx7");
        for expected in
            ["mtu 1444", "qlen 10000", "02:00:00:00:00:02", "10.3.0.1/24", "10.3.1.1/24", "fd03::1/64", ",UP"]
        {
            assert!(shown.contains(expected), "{expected} in {shown}");
        }
        assert!(shown.contains("multi_queue numqueues 3") && shown.contains("persist off"), "{shown}");
        assert!(matches!(OverlayDevice::create(&wanted), Err(DeviceError::Exists { .. })));
        queues.truncate(1);
        assert!(shown_link("link show").contains("vx7"));
        drop(queues);
        assert!(!shown_link("link show").contains("vx7"));
        let _again = OverlayDevice::create(&wanted).unwrap();
    });
}

/// Devices made from now on carry only what the test sends.
fn without_neighbour_discovery() {
    sysctl("ipv6/conf/default/disable_ipv6", "1");
}

fn shown_link(arguments: &str) -> String {
    let output = std::process::Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_full_queue_drops_and_says_so() {
    in_new_namespace("a_full_queue_drops_and_says_so", || {
        without_neighbour_discovery();
        let small = DeviceOptions { tx_queue_len: 8, ..options("near", Link::Ip, NEAR_MAC, &["10.1.0.1/24"]) };
        let (device, mut queue) = device(&small);
        let socket = UdpSocket::bind("10.1.0.1:0").unwrap();
        for _ in 0..20 {
            let _ = socket.send_to(b"datagram", "10.1.0.2:9");
        }
        let read = std::iter::from_fn(|| read(&mut queue)).filter(|frame| frames::is_test_packet(&frame[10..])).count();
        assert_eq!((read as u64 + device.queue_drops().unwrap(), read), (20, 8));
    });
}

/// Device `near` with so many queues.
fn queues(link: Link, count: usize) -> Vec<TunQueue> {
    // Addresses are there at once.
    sysctl("ipv6/conf/default/accept_dad", "0");
    let wanted = DeviceOptions { queues: count, ..options("near", link, NEAR_MAC, &["10.2.0.2/24", "fd02::2/64"]) };
    let (_, queues) = OverlayDevice::create(&wanted).unwrap();
    ip("route add 10.1.0.0/16 dev near");
    ip("route add fd01::/64 dev near");
    if link == Link::Ethernet {
        for neighbour in ["10.1.0.2", "fd01::2"] {
            ip(&format!("neigh add {neighbour} lladdr 02:00:00:00:00:22 dev near nud permanent"));
        }
    }
    queues
}

/// How many frames with that payload at their end wait in each queue; all are taken out.
fn found(queues: &mut [TunQueue], payload: &[u8]) -> Vec<usize> {
    let mut buffer = vec![0; READ_LEN];
    // A device takes packets in the sender's context: what was sent is there.
    let mut count = |queue: &mut TunQueue| {
        let frames =
            std::iter::from_fn(|| queue.read(&mut buffer).unwrap().map(|len| buffer[..len].ends_with(payload)));
        frames.filter(|it| *it).count()
    };
    queues.iter_mut().map(&mut count).collect()
}

/// The one queue in which a datagram with that payload waits.
fn queue_of(queues: &mut [TunQueue], payload: &[u8]) -> usize {
    let found = found(queues, payload);
    assert_eq!(found.iter().sum::<usize>(), 1, "{found:?}");
    found.iter().position(|&frames| frames == 1).unwrap()
}

#[test]
fn a_flow_keeps_its_queue_wherever_its_other_direction_is_written() {
    for link in LINKS {
        in_new_namespace("a_flow_keeps_its_queue_wherever_its_other_direction_is_written", || {
            let mut queues = queues(link, 4);
            let socket = UdpSocket::bind("10.2.0.2:2222").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let other_end = SocketAddr::from(([10, 1, 0, 2], 1111));
            socket.send_to(b"question", other_end).unwrap();
            let first = queue_of(&mut queues, b"question");
            for index in [2, 0, 3, 1] {
                let (mut headers, payload) = Superframe::udp(Family::V4, 100, 100).written(link, NEAR_MAC);
                // A single packet without a checksum to complete.
                headers[..10].fill(0);
                let checksum = headers.len() - 2;
                headers[checksum..].fill(0);
                queues[index].write(&[IoSlice::new(&headers), IoSlice::new(&payload)]).unwrap();
                let mut room = [0; 200];
                let (len, from) = socket.recv_from(&mut room).unwrap();
                assert_eq!((&room[..len], from), (&payload[..], other_end));
                socket.send_to(b"answer", from).unwrap();
                assert_eq!(queue_of(&mut queues, b"answer"), first, "{link:?}, the other direction written to {index}");
            }
        });
    }
}

#[test]
fn flows_spread_over_the_queues_by_their_addresses_and_ports() {
    const FLOWS: u16 = 400;
    let spread = |queues: &mut [TunQueue], target: &dyn Fn(u16) -> SocketAddr| {
        let from = if target(0).is_ipv4() { "10.2.0.2:2222" } else { "[fd02::2]:2222" };
        let socket = UdpSocket::bind(from).unwrap();
        let mut flows = [0; 4];
        for number in 0..FLOWS {
            socket.send_to(b"datagram", target(number)).unwrap();
            flows[queue_of(queues, b"datagram")] += 1;
        }
        assert!(flows.iter().all(|&count| count > FLOWS / 8), "{} and so on: {flows:?}", target(0));
    };
    for link in LINKS {
        in_new_namespace("flows_spread_over_the_queues_by_their_addresses_and_ports", || {
            let mut queues = queues(link, 4);
            spread(&mut queues, &|number| ([10, 1, 0, 2], 1000 + number).into());
            spread(&mut queues, &|number| ([0xfd01, 0, 0, 0, 0, 0, 0, 2], 1000 + number).into());
            if link == Link::Ip {
                spread(&mut queues, &|number| ([10, 1, (number >> 8) as u8, number as u8], 9).into());
                spread(&mut queues, &|number| ([0xfd01, 0, 0, 0, 0, 0, 0, number], 9).into());
            }
        });
    }
}

#[test]
fn fragments_stay_together() {
    in_new_namespace("fragments_stay_together", || {
        let mut queues = queues(Link::Ip, 4);
        for (from, to) in [("10.2.0.2:0", "10.1.0.2"), ("[fd02::2]:0", "fd01::2")] {
            for port in 1000..1016 {
                let socket = UdpSocket::bind(from).unwrap();
                // All alike, so that every fragment has the same end.
                socket.send_to(&[7; 4000], (to, port)).unwrap();
                let mut found = found(&mut queues, &[7; 100]);
                found.sort_unstable();
                assert_eq!(found, [0, 0, 0, 3], "to {to}");
            }
        }
    });
}
