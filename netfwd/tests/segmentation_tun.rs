//! Superframes as the kernel itself hands them over: forwarded between two devices with all offloads on, read with the
//! vnet header that the kernel wrote, and cut here.
//!
//! ```text
//! superframe → first TUN → kernel forwards it whole → second TUN → egress → segments
//! ```
//!
//! What the other segmentation tests assume of the kernel (the checksum field holds the pseudo-header's sum, `hdr_len`
//! may be anything) is shown to hold here.

mod netns;
mod segmentation;

use netfwd::datapath::packet::Link;
use netfwd::io::tun::{DeviceOptions, OverlayDevice, READ_LEN, TX_QUEUE_LEN, TunQueue};
use netns::{in_new_namespace, ip, sysctl};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use segmentation::{ACK, Bench, CWR, FIN, GPE, L4, PSH, Shape, add, destination_options, fold, pattern};
use std::io::IoSlice;

struct Lab {
    near: TunQueue,
    far: TunQueue,
}

impl Lab {
    fn new() -> Self {
        let near = device("near", "10.1.0.1/24");
        let far = device("far", "10.2.0.1/24");
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv6/conf/all/forwarding", "1");
        for name in ["near", "far", "all"] {
            sysctl(&format!("ipv4/conf/{name}/rp_filter"), "0");
        }
        ip("route add 10.20.0.2/32 dev far");
        ip("route add fd00::2/128 dev far");
        Self { near, far }
    }

    /// Has the kernel forward a superframe, and cuts what it hands over.
    fn forwarded_and_cut(&mut self, shape: &Shape, size: usize) -> Vec<Vec<u8>> {
        let mut frame = shape.frame(size);
        // On write the kernel does believe hdr_len.
        frame[2..4].copy_from_slice(&(shape.header_len() as u16).to_ne_bytes());
        self.near.write(&[IoSlice::new(&frame)]).unwrap();
        let mut bench = Bench::new();
        let frame = self.read_from(shape).expect("the superframe, forwarded");
        assert_ne!(frame[1], 0, "forwarded whole: a superframe is to be cut here");
        bench.run(GPE, frame);
        assert_eq!(bench.drops(), vec![]);
        bench.sink.inner()
    }

    /// The next frame of `shape`'s flow; the kernel's own chatter is passed over.
    fn read_from(&mut self, shape: &Shape) -> Option<Vec<u8>> {
        let ports = [shape.ports.0.to_be_bytes(), shape.ports.1.to_be_bytes()].concat();
        let at = 10 + shape.l4_offset();
        loop {
            let frame = read(&mut self.far)?;
            if frame.get(at..at + 4) == Some(&ports) {
                return Some(frame);
            }
        }
    }
}

fn device(name: &str, address: &str) -> TunQueue {
    let options = DeviceOptions {
        name: name.to_owned(),
        link: Link::Ip,
        queues: 1,
        mtu: 1500,
        mac: None,
        addresses: vec![address.parse().unwrap()],
        link_local: true,
        up: true,
        tx_queue_len: TX_QUEUE_LEN,
    };
    let (_, mut queues) = OverlayDevice::create(&options).unwrap();
    queues.remove(0)
}

/// Reads one frame within five seconds.
fn read(queue: &mut TunQueue) -> Option<Vec<u8>> {
    let mut buffer = vec![0; READ_LEN];
    let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
    poll(&mut [PollFd::new(queue, PollFlags::IN)], Some(&patience)).unwrap();
    let len = queue.read(&mut buffer).unwrap()?;
    buffer.truncate(len);
    Some(buffer)
}

/// What forwarding does to a packet: one hop less, and over IPv4 the header checksum that goes with it.
fn one_hop_on(shape: &Shape) -> Vec<u8> {
    let mut packet = shape.packet();
    if shape.v6 {
        packet[7] -= 1;
    } else {
        packet[8] -= 1;
        packet[10..12].fill(0);
        let checksum = !fold(add(0, &packet[..shape.l4_offset()]));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

fn shapes() -> Vec<(Shape, usize)> {
    let mut shapes = vec![];
    for v6 in [false, true] {
        for (length, size) in [(10 * 1_400, 1_400), (10 * 1_400 + 1, 1_400), (60 * 536 + 77, 536)] {
            let mut flags = Shape::tcp(v6, pattern(length, 1));
            flags.l4 = L4::Tcp { sequence: u32::MAX - 5_000, flags: ACK | PSH | FIN | CWR, options: vec![] };
            shapes.push((flags, size));
            shapes.push((Shape::tcp(v6, pattern(length, 2)), size));
            shapes.push((Shape::udp(v6, pattern(length, 3)), size));
        }
    }
    shapes.push((Shape { dont_fragment: false, id: 0xfffe, ..Shape::udp(false, pattern(5_000, 4)) }, 1_000));
    shapes.push((Shape { extensions: vec![destination_options(1)], ..Shape::tcp(true, pattern(5_000, 5)) }, 1_000));
    shapes
}

#[test]
fn superframes_that_the_kernel_forwards_are_cut_into_the_oracles_segments() {
    in_new_namespace("superframes_that_the_kernel_forwards_are_cut_into_the_oracles_segments", || {
        let mut lab = Lab::new();
        for (shape, size) in shapes() {
            let expected: Vec<_> = shape.cut(size).iter().map(one_hop_on).collect();
            assert!(lab.forwarded_and_cut(&shape, size) == expected, "{:?} {size}", shape.l4);
        }
    });
}
