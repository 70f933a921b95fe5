//! The frames of the table, each with what is to become of it.

use netfwd_common::reason::{DropReason, PassReason};

use crate::packets::{self, Field, Inner, Outer};

/// Every outer around every inner that is right.
pub fn valid_frames() -> Vec<(String, Vec<u8>)> {
    let mut frames = Vec::new();
    let inners =
        [("tcp4", Inner::tcp4(1398)), ("tcp6", Inner::tcp6(101)), ("udp4", Inner::udp4(64)), ("udp6", Inner::udp6(7))];
    for (name, inner) in inners {
        let next = if inner.source.is_ipv4() { 1 } else { 2 };
        for checksum in [Field::Right, Field::Zero] {
            for tags in 0..3 {
                let zero = checksum == Field::Zero;
                let mut push =
                    |kind: &str, frame| frames.push((format!("{kind} {name} tags {tags} zero {zero}"), frame));
                let vxlan4 = Outer::vxlan4(7).checksum(checksum).tags(tags);
                push("vxlan4", vxlan4.frame(&inner.ethernet(0)));
                push("vxlan4 inner tag", vxlan4.frame(&inner.ethernet(1)));
                push("vxlan4 inner tags", vxlan4.frame(&inner.ethernet(2)));
                push("gpe4", Outer::gpe4(9, next).checksum(checksum).tags(tags).frame(&inner.bytes()));
                push("gpe6", Outer::gpe6(9, next).checksum(checksum).tags(tags).frame(&inner.bytes()));
                if !zero {
                    push("vxlan6", Outer::vxlan6(7).tags(tags).frame(&inner.ethernet(0)));
                }
            }
        }
    }
    frames
}

/// Every drop that XDP can give, by its reason.
pub fn drops() -> Vec<(DropReason, Vec<u8>)> {
    use DropReason::*;
    let inner = Inner::tcp4(100);
    let good = Outer::vxlan4(7).frame(&inner.ethernet(0));
    let good6 = Outer::vxlan6(7).frame(&inner.ethernet(0));
    let ip6 = Inner::tcp6(50);
    let header = |header| Outer::vxlan4(7).header(header).frame(&inner.ethernet(0));
    let gpe = |header| Outer::gpe4(9, 1).header(header).frame(&inner.bytes());
    let other =
        |source, destination| Outer::new(source, destination, 4789, packets::vxlan(7)).frame(&inner.ethernet(0));
    let bent = |at: usize, value: u8| {
        let mut bytes = inner.bytes();
        bytes[at] = value;
        packets::finish_ipv4(&mut bytes, Field::Right);
        Outer::gpe4(9, 1).frame(&bytes)
    };
    let bent6 = |at: usize, value: u8| {
        let mut bytes = ip6.bytes();
        bytes[at] = value;
        Outer::gpe6(9, 2).frame(&bytes)
    };
    vec![
        (Truncated, good[..good.len() - 1].to_vec()),
        (Truncated, good6[..good6.len() - 1].to_vec()),
        (Truncated, good[..45].to_vec()),
        (BadLength, with_udp_length(&good, 34, 15)),
        (BadLength, with_udp_length(&good, 34, 2000)),
        (BadLength, with_udp_length(&good6, 54, 2000)),
        (OuterIpChecksum, Outer::vxlan4(7).ip_checksum(Field::Wrong).frame(&inner.ethernet(0))),
        (OuterUdpChecksum, Outer::vxlan4(7).checksum(Field::Wrong).frame(&inner.ethernet(0))),
        (OuterUdpChecksum, Outer::vxlan6(7).checksum(Field::Wrong).frame(&ip6.ethernet(0))),
        (OuterUdpZeroChecksum, Outer::vxlan6(7).checksum(Field::Zero).frame(&ip6.ethernet(0))),
        (TunnelHeader, header([0x00, 0, 0, 0, 0, 0, 7, 0])),
        (TunnelHeader, header([0x88, 0, 0, 0, 0, 0, 7, 0])),
        (TunnelHeader, header([0x08, 1, 0, 0, 0, 0, 7, 0])),
        (TunnelHeader, header([0x08, 0, 1, 0, 0, 0, 7, 0])),
        (TunnelHeader, header([0x08, 0, 0, 1, 0, 0, 7, 0])),
        (TunnelHeader, header([0x08, 0, 0, 0, 0, 0, 7, 1])),
        (TunnelHeader, header([0x0c, 0, 0, 1, 0, 0, 99, 0])),
        (TunnelHeader, gpe([0x08, 0, 0, 1, 0, 0, 9, 0])),
        (TunnelHeader, gpe([0x04, 0, 0, 1, 0, 0, 9, 0])),
        (TunnelHeader, gpe([0x1c, 0, 0, 1, 0, 0, 9, 0])),
        (TunnelHeader, gpe([0x4c, 0, 0, 1, 0, 0, 9, 0])),
        (TunnelHeader, gpe([0x0c, 1, 0, 1, 0, 0, 9, 0])),
        (TunnelHeader, gpe([0x0c, 0, 0, 1, 0, 0, 9, 1])),
        (UnknownProtocol, gpe([0x0c, 0, 0, 3, 0, 0, 9, 0])),
        (UnknownProtocol, gpe([0x0c, 0, 0, 4, 0, 0, 9, 0])),
        (UnknownProtocol, gpe([0x0c, 0, 0, 0, 0, 0, 9, 0])),
        (Oam, gpe([0x0d, 0, 0, 1, 0, 0, 9, 0])),
        (UnknownVni, header(packets::vxlan(99))),
        (UnknownVni, gpe(packets::gpe(7, 1))),
        (RemoteNotAllowed, other("10.9.0.9", "10.9.0.2")),
        (RemoteNotAllowed, other("fd09::9", "fd09::2")),
        (RemoteNotAllowed, other("::", "fd09::2")),
        (InnerIpChecksum, Outer::vxlan4(7).frame(&inner.clone().ip_checksum(Field::Wrong).ethernet(0))),
        (InnerL4Checksum, Outer::vxlan4(7).frame(&inner.clone().checksum(Field::Wrong).ethernet(0))),
        (InnerL4Checksum, Outer::vxlan6(7).frame(&Inner::udp6(33).checksum(Field::Wrong).ethernet(0))),
        (PartialChecksum, Outer::vxlan4(7).frame(&inner.clone().checksum(Field::Partial).ethernet(0))),
        (PartialChecksum, Outer::vxlan6(7).frame(&Inner::udp6(9).checksum(Field::Partial).ethernet(0))),
        (PartialChecksum, Outer::vxlan4(7).checksum(Field::Partial).frame(&inner.ethernet(0))),
        (InnerHeader, Outer::vxlan4(7).frame(&inner.ethernet(0)[..13])),
        (InnerHeader, Outer::vxlan4(7).frame(&inner.ethernet(0)[..33])),
        (InnerHeader, Outer::gpe4(9, 1).frame(&ip6.bytes())),
        (InnerHeader, Outer::gpe4(9, 2).frame(&inner.bytes())),
        (InnerHeader, bent(0, 0x44)),
        (InnerHeader, bent(3, 19)),
        (InnerHeader, bent(3, 255)),
        (InnerHeader, bent(32, 0x40)),
        (InnerHeader, bent6(5, 200)),
        (InnerHeader, bent6(5, 7)),
        (InnerHeader, bent6(0, 0x50)),
    ]
}

fn with_udp_length(frame: &[u8], udp: usize, length: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[udp + 4..udp + 6].copy_from_slice(&length.to_be_bytes());
    frame
}

/// Everything that is the kernel's.
pub fn passes() -> Vec<(PassReason, Vec<u8>)> {
    use PassReason::*;
    let inner = Inner::tcp4(100).ethernet(0);
    let outer = Outer::vxlan4(7);
    let ip4 = "10.0.0.1".parse().unwrap();
    let ip6 = "fd00::1".parse().unwrap();
    let mut arp = packets::ethernet(ip4, 0, &[0; 46]);
    arp[13] = 6;
    let next_header = |next: u8| {
        let mut frame = Outer::vxlan6(7).frame(&inner);
        frame[20] = next;
        frame
    };
    vec![
        (NotIp, arp),
        (NotIp, outer.clone().tags(3).frame(&inner)),
        (NotIp, packets::ethernet(ip4, 0, &Inner::tcp6(9).bytes())),
        (NotIp, packets::ethernet(ip6, 0, &Inner::tcp4(29).bytes())),
        (NotUdp, packets::ethernet(ip4, 0, &Inner::tcp4(9).bytes())),
        (NotUdp, packets::ethernet(ip6, 1, &Inner::tcp6(9).bytes())),
        (NotUdp, next_header(58)),
        (NotOurs, packets::ethernet(ip4, 0, &Inner::udp4(9).bytes())),
        (NotOurs, Outer::new("10.9.0.1", "10.9.0.2", 53, packets::vxlan(7)).frame(&inner)),
        (NotOurs, Outer::new("10.9.0.1", "10.9.0.7", 4789, packets::vxlan(7)).frame(&inner)),
        (NotOurs, Outer::new("fd09::1", "fd09::7", 4789, packets::vxlan(7)).frame(&inner)),
        (Fragment, Outer { fragment: 0x2000, ..outer.clone() }.frame(&inner)),
        (Fragment, Outer { fragment: 0x0010, ..outer.clone() }.frame(&inner)),
        (Fragment, next_header(44)),
        (IpOptions, Outer { options: vec![1, 1, 1, 0], ..outer.clone() }.frame(&inner)),
        (Ipv6Extension, next_header(0)),
        (Ipv6Extension, next_header(60)),
        (TooShort, outer.frame(&inner)[..33].to_vec()),
        (TooShort, outer.frame(&inner)[..41].to_vec()),
    ]
}

/// Legal, but nothing of it can be verified here.
pub fn unusual() -> Vec<Vec<u8>> {
    let tcp = Inner::tcp4(100);
    let inners = [
        Inner { fragment: 0x2000, ..tcp.clone() }.ethernet(0),
        Inner { fragment: 0x0003, ..tcp.clone() }.ethernet(1),
        Inner { options: vec![1, 1, 1, 0], ..tcp.clone() }.ethernet(0),
        Inner { protocol: 1, ..tcp.clone() }.ethernet(0),
        Inner { protocol: 0, ..Inner::tcp6(40) }.ethernet(0),
        Inner { protocol: 58, ..Inner::tcp6(40) }.ethernet(2),
        {
            let mut arp = tcp.ethernet(0);
            arp[13] = 6;
            arp
        },
    ];
    inners.iter().flat_map(|inner| [Outer::vxlan4(7).frame(inner), Outer::vxlan6(7).frame(inner)]).collect()
}
