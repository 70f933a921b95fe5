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
