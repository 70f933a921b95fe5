//! The outer header as the wire shows it: congestion marks both ways, source ports, checksums.

mod e2e;
#[path = "support/packets.rs"]
mod made;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};

use e2e::packets::{Capture, Injector, Packet, TCP, awaited, bound};
use e2e::{FAMILIES, Rig, equal, scaled};
use made::{Field, Inner, Outer, UDP, finish_ipv4, gpe, vxlan};
use rustix::net::sockopt;
use xtask::lab::{Family, Options, Side, Tunnel, TunnelKind, UNDERLAY};
use xtask::load::udp;

/// RFC 3168's codepoints, by value: Not-ECT, ECT(1), ECT(0), CE.
const CODEPOINTS: [u8; 4] = [0b00, 0b01, 0b10, 0b11];
const GATEWAY_MAC: &str = "mac = \"02:00:00:00:00:02\"";
const INNER_PORT: u16 = 5001;
/// RFC 6335's dynamic ports, which RFC 7348 §5 recommends.
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// RFC 6040 §4.2, figure 4: what arrives inside, if anything.
fn decapsulated(inner: u8, outer: u8) -> Option<u8> {
    match (inner, outer) {
        (0b00, 0b11) => None,
        (0b00, _) => Some(0b00),
        (_, 0b11) => Some(0b11),
        (0b10, 0b01) => Some(0b01),
        (inner, _) => Some(inner),
    }
}

fn set_tos(socket: &UdpSocket, tos: u8) {
    match socket.local_addr().expect("a bound socket") {
        SocketAddr::V4(_) => sockopt::set_ip_tos(socket, tos).expect("IP_TOS"),
        SocketAddr::V6(_) => sockopt::set_ipv6_tclass(socket, tos.into()).expect("IPV6_TCLASS"),
    }
}

/// A tunnel datagram's payload around an inner packet with that ECN field.
fn marked(tunnel: &Tunnel, inner: &Inner, ecn: u8) -> Vec<u8> {
    let mut packet = inner.bytes();
    match inner.source {
        IpAddr::V4(_) => {
            packet[1] = ecn;
            finish_ipv4(&mut packet, Field::Right);
        }
        IpAddr::V6(_) => packet[1] |= ecn << 4,
    }
    match tunnel.kind {
        TunnelKind::Vxlan => [&vxlan(tunnel.vni)[..], &made::ethernet(inner.source, 0, &packet)].concat(),
        TunnelKind::VxlanGpe => {
            let next_protocol = if inner.source.is_ipv4() { 1 } else { 2 };
            [&gpe(tunnel.vni, next_protocol)[..], &packet].concat()
        }
        TunnelKind::WireGuard(_) => unreachable!("what is inside is encrypted"),
    }
}

/// Every inner mark under every outer mark, each in a flow of its own.
fn outer_marks_arrive_inside(tunnel: Tunnel, xdp: &str) {
    let options = Options::with_tunnels([tunnel.clone()]);
    let Some(rig) = Rig::configured(options, |config| config.xdp(xdp)) else { return };
    let underlay = bound(&rig.lab.peer, tunnel.outer_address(Side::Peer), 0);
    let target = SocketAddr::new(tunnel.outer_address(Side::Gateway), tunnel.port);
    for (family, drops) in FAMILIES.into_iter().zip([1.0, 2.0]) {
        let (from, to) = (rig.lab.peer_address(family), rig.lab.gateway_address(family));
        let (receiver, capture) = (bound(&rig.lab.gateway, to, INNER_PORT), Capture::start(&rig.lab.gateway));
        let mut expected = BTreeMap::new();
        for (inner, outer) in CODEPOINTS.iter().flat_map(|inner| CODEPOINTS.map(|outer| (*inner, outer))) {
            let source_port = 40_000 + u16::from(inner * 4 + outer);
            let packet = Inner { source_port, ..Inner::new(UDP, &from.to_string(), &to.to_string(), 50) };
            set_tos(&underlay, outer);
            underlay.send_to(&marked(&tunnel, &packet, inner), target).expect("a datagram");
            expected.extend(decapsulated(inner, outer).map(|ecn| (source_port, ecn)));
        }
        // The sockets' stack has verified the rewritten header checksums.
        assert_eq!(awaited(&receiver, 15).len(), 15, "inside {family:?}");
        let inside = |packet: &Packet| packet.destination == to && packet.destination_port == INNER_PORT;
        let seen = capture.packets().into_iter().filter(inside);
        assert_eq!(seen.map(|packet| (packet.source_port, packet.tos)).collect::<BTreeMap<_, _>>(), expected);
        rig.expect_drops("ingress", "decap", "ecn_ce_not_ect", drops);
    }
}

#[test]
fn outer_congestion_marks_arrive_inside_over_ipv4() {
    outer_marks_arrive_inside(Tunnel::vxlan("vx7", 7).config_line(GATEWAY_MAC), "auto");
}

#[test]
fn outer_congestion_marks_arrive_inside_over_ipv6() {
    outer_marks_arrive_inside(Tunnel::vxlan("vx7", 7).over(Family::V6).config_line(GATEWAY_MAC), "auto");
}

#[test]
fn outer_congestion_marks_arrive_inside_over_gpe() {
    outer_marks_arrive_inside(Tunnel::vxlan_gpe("gpe7", 7), "auto");
}

#[test]
fn outer_congestion_marks_arrive_inside_through_the_socket() {
    for underlay in FAMILIES {
        outer_marks_arrive_inside(Tunnel::vxlan("vx7", 7).over(underlay).config_line(GATEWAY_MAC), "off");
    }
}

/// RFC 6040 §4.1, normal mode; the DSCP is the tunnel's own.
fn inner_marks_show_outside(tunnel: Tunnel, dscp: u8) {
    let Some(rig) = Rig::start(Options::with_tunnels([tunnel.clone()])) else { return };
    for family in FAMILIES {
        let (local, remote) = (rig.lab.gateway_address(family), rig.lab.peer_address(family));
        let (sender, capture) = (bound(&rig.lab.gateway, local, 6000), Capture::start(&rig.lab.peer));
        for ecn in CODEPOINTS {
            set_tos(&sender, 0b0110_1000 | ecn);
            sender.send_to(b"marked", (remote, INNER_PORT)).expect("a datagram");
        }
        let from = tunnel.outer_address(Side::Gateway);
        let is_ours = |packet: &Packet| packet.is_tunnelled(from, tunnel.port) && packet.transport.ends_with(b"marked");
        let outer: Vec<_> = capture.awaited(4, is_ours).iter().map(|packet| packet.tos).collect();
        assert_eq!(outer, CODEPOINTS.map(|ecn| dscp << 2 | ecn), "{family:?} inside");
    }
    rig.assert_nothing_lost();
    rig.stop();
}

#[test]
fn inner_congestion_marks_show_outside_and_the_dscp_does_not() {
    for tunnel in [Tunnel::vxlan("vx7", 7), Tunnel::vxlan("vx7", 7).over(Family::V6), Tunnel::vxlan_gpe("gpe7", 7)] {
        inner_marks_show_outside(tunnel, 0);
    }
}

#[test]
fn a_configured_dscp_stands_beside_the_marks() {
    inner_marks_show_outside(Tunnel::vxlan("vx7", 7).config_line("dscp = 46"), 46);
}

/// Inner flow → what was seen outside.
fn by_flow<T: Ord>(
    datagrams: &[Packet],
    protocol: u8,
    outside: impl Fn(&Packet, &Packet) -> T,
) -> BTreeMap<(u16, u16), BTreeSet<T>> {
    let mut flows = BTreeMap::<_, BTreeSet<T>>::new();
    for datagram in datagrams {
        let Some(inner) = datagram.inner().filter(|inner| inner.protocol == protocol) else { continue };
        let ports = (inner.source_port, inner.destination_port);
        flows.entry(ports).or_default().insert(outside(datagram, &inner));
    }
    flows
}

#[test]
fn bulk_tcp_with_ecn_is_marked_alike_inside_and_outside() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    for end in [&rig.lab.server, &rig.lab.peer] {
        end.sysctl("net.ipv4.tcp_ecn", 1).expect("ECN");
    }
    let capture = Capture::start(&rig.lab.peer);
    rig.tcp_out(Family::V4, 1, scaled(1_000_000));
    let datagrams = capture.tunnelled("10.9.0.2".parse().expect("an address"), 4789);
    let flows = by_flow(&datagrams, TCP, |outer, inner| (outer.ecn(), inner.ecn()));
    assert_eq!(flows.len(), 1);
    for marks in flows.values() {
        // The handshake and pure acknowledgements are Not-ECT, data is ECT(0).
        assert_eq!(*marks, BTreeSet::from([(0b00, 0b00), (0b10, 0b10)]));
    }
    rig.assert_nothing_lost();
    rig.stop();
}

#[test]
fn each_flow_has_one_source_port_in_the_dynamic_range() {
    for (underlay, inside) in [(Family::V4, Family::V4), (Family::V6, Family::V6), (Family::V4, Family::V6)] {
        let tunnel = Tunnel::vxlan("vx7", 7).over(underlay);
        let Some(rig) = Rig::start(Options::with_tunnels([tunnel.clone()])) else { return };
        let capture = Capture::start(&rig.lab.peer);
        rig.tcp_out(inside, 8, scaled(500_000));
        // Not judged by its order: in the peer's kernel, what a capture has taken may overtake (`e2e/order.rs`).
        let load = udp::Load::of_datagrams(equal(), 200, 0.05);
        udp::run(&rig.lab.server, &rig.lab.peer, rig.lab.peer_address(inside), &load).expect("a load");
        let datagrams = capture.tunnelled(tunnel.outer_address(Side::Gateway), tunnel.port);
        let tcp = by_flow(&datagrams, TCP, |outer, _| outer.source_port);
        let udp = by_flow(&datagrams, UDP, |outer, _| outer.source_port);
        assert_eq!(tcp.len(), 8);
        // The load's own, and the one that says that it is over.
        assert_eq!(udp.len(), 2);
        for ports in tcp.values().chain(udp.values()) {
            assert_eq!(ports.len(), 1, "{ports:?}");
            assert!(ports.iter().all(|port| SOURCE_PORTS.contains(port)), "{ports:?}");
        }
        let different: BTreeSet<_> = tcp.values().flatten().collect();
        assert!(different.len() >= 4, "eight flows share {different:?}");
        rig.assert_nothing_lost();
        rig.stop();
    }
}

/// The single datagrams that the gateway sends through that tunnel: small packets of several flows.
fn singles(tunnel: &Tunnel) -> Option<Vec<Packet>> {
    let rig = Rig::start(Options::with_tunnels([tunnel.clone()]))?;
    let capture = Capture::start(&rig.lab.peer);
    let mut delivered = 0;
    for family in FAMILIES {
        let (local, remote) = (rig.lab.gateway_address(family), rig.lab.peer_address(family));
        let receiver = bound(&rig.lab.peer, remote, INNER_PORT);
        for length in [1, 2, 99, 100, 1000, 1001, 1300] {
            let content: Vec<u8> = (0..length).map(|index| (index * 7 + length) as u8).collect();
            bound(&rig.lab.gateway, local, 0).send_to(&content, (remote, INNER_PORT)).expect("a datagram");
        }
        delivered += awaited(&receiver, 7).len();
    }
    assert_eq!(delivered, 14, "the peer's kernel takes every one");
    rig.assert_nothing_lost();
    let datagrams = capture.tunnelled(tunnel.outer_address(Side::Gateway), tunnel.port).into_iter();
    let ours = |packet: &Packet| packet.inner().is_some_and(|inner| inner.destination_port == INNER_PORT);
    let singles: Vec<_> = datagrams.filter(ours).collect();
    assert_eq!(singles.len(), 14);
    for inner in singles.iter().filter_map(Packet::inner) {
        assert!(inner.udp_checksum() != 0 && inner.udp_checksum_is_right(), "the inner checksum is complete");
    }
    Some(singles)
}

#[test]
fn udp_checksum_says_whether_single_datagrams_carry_one() {
    for (wanted, line) in [(false, ""), (false, "udp_checksum = false"), (true, "udp_checksum = true")] {
        let tunnel = Tunnel::vxlan("vx7", 7).config_line(line);
        let Some(singles) = singles(&tunnel) else { return };
        for datagram in singles {
            assert_eq!(datagram.udp_checksum() != 0, wanted, "{line}");
            assert!(!wanted || datagram.udp_checksum_is_right());
        }
    }
}

#[test]
fn over_ipv6_there_is_a_checksum_unless_zero_is_asked_for() {
    let tunnel = Tunnel::vxlan("vx7", 7).over(Family::V6);
    let Some(checked) = singles(&tunnel) else { return };
    assert!(checked.iter().all(|datagram| datagram.udp_checksum() != 0 && datagram.udp_checksum_is_right()));
    let mut tunnel = tunnel.config_line("udp6_zero_checksum_tx = true");
    tunnel.device_options = "udp6zerocsumrx".to_owned();
    let Some(unchecked) = singles(&tunnel) else { return };
    assert!(unchecked.iter().all(|datagram| datagram.udp_checksum() == 0));
}

/// The MAC address of the gateway's underlay device.
fn underlay_mac(rig: &Rig) -> [u8; 6] {
    let line = rig.lab.gateway.ip(&format!("-o link show dev {UNDERLAY}")).expect("the device");
    let text = line.split("link/ether ").nth(1).and_then(|rest| rest.get(..17)).expect("an Ethernet address");
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte"));
    bytes.collect::<Vec<_>>().try_into().expect("six bytes")
}

/// Datagrams in frames that no socket sends arrive inside; `reason` is why XDP passes them on, if it does.
fn injected_frames_arrive(underlay: Family, reason: Option<&str>, frame: impl Fn(&Outer, &[u8]) -> Vec<u8>) {
    let tunnel = Tunnel::vxlan("vx7", 7).over(underlay).config_line(GATEWAY_MAC);
    let Some(rig) = Rig::start(Options::with_tunnels([tunnel.clone()])) else { return };
    let [remote, local] = [Side::Peer, Side::Gateway].map(|side| tunnel.outer_address(side).to_string());
    let outer = Outer::new(&remote, &local, tunnel.port, vxlan(tunnel.vni));
    let (injector, mac) = (Injector::on(&rig.lab.peer, UNDERLAY), underlay_mac(&rig));
    for family in FAMILIES {
        let (from, to) = (rig.lab.peer_address(family).to_string(), rig.lab.gateway_address(family));
        let receiver = bound(&rig.lab.gateway, to, INNER_PORT);
        let sent: Vec<_> = (0..50).map(|index| Inner::new(UDP, &from, &to.to_string(), 20 + 20 * index)).collect();
        let (arrived, growth) = rig.during(|| {
            for inner in &sent {
                let mut frame = frame(&outer, &inner.ethernet(0));
                frame[..6].copy_from_slice(&mac);
                injector.send(&frame);
            }
            awaited(&receiver, sent.len())
        });
        let payloads: Vec<_> = sent.into_iter().map(|inner| inner.payload).collect();
        assert!(arrived == payloads, "{} of 50 datagrams arrived inside {family:?}, or others did", arrived.len());
        match reason {
            // The kernels' own multicast reports have options and extension headers, too (RFC 3376, RFC 3810).
            Some(reason) => assert!(growth.of("netfwd_xdp_passes_total", &[("reason", reason)]) >= 50.0),
            None => assert!(growth.redirected() >= 50.0, "{} frames came through AF_XDP", growth.redirected()),
        }
    }
    rig.assert_nothing_lost();
    rig.stop();
}

/// As on the segment of two gateways that share an address, where a switch floods: each packet is for one of them.
#[test]
fn a_frame_for_another_station_is_taken_by_nobody() {
    let tunnel = Tunnel::vxlan("vx7", 7).config_line(GATEWAY_MAC);
    let Some(rig) = Rig::start(Options::with_tunnels([tunnel.clone()])) else { return };
    let [remote, local] = [Side::Peer, Side::Gateway].map(|side| tunnel.outer_address(side).to_string());
    let outer = Outer::new(&remote, &local, tunnel.port, vxlan(tunnel.vni));
    let [from, to] = [rig.lab.peer_address(Family::V4), rig.lab.gateway_address(Family::V4)];
    let receiver = bound(&rig.lab.gateway, to, INNER_PORT);
    let (injector, ours) = (Injector::on(&rig.lab.peer, UNDERLAY), underlay_mac(&rig));
    let others = ours.map(|byte| byte ^ 4);
    let send = |destination: [u8; 6], length: usize| {
        let inner = Inner::new(UDP, &from.to_string(), &to.to_string(), length);
        let mut frame = outer.frame(&inner.ethernet(0));
        frame[..6].copy_from_slice(&destination);
        injector.send(&frame);
    };
    let (arrived, growth) = rig.during(|| {
        (0..50).for_each(|_| send(others, 100));
        // What is sent last arrives last.
        send(ours, 200);
        awaited(&receiver, 1)
    });
    assert_eq!(arrived.iter().map(Vec::len).collect::<Vec<_>>(), [200]);
    assert_eq!(growth.of("netfwd_xdp_passes_total", &[("reason", "other_station")]), 50.0);
    rig.stop();
}

#[test]
fn xdp_sees_through_one_and_two_vlan_tags() {
    for (underlay, tags) in FAMILIES.into_iter().flat_map(|underlay| [(underlay, 1), (underlay, 2)]) {
        injected_frames_arrive(underlay, None, |outer, inner| outer.clone().tags(tags).frame(inner));
    }
}

#[test]
fn outer_ip_options_take_the_way_through_the_kernel() {
    // Three times nothing, and the end of the options (RFC 791).
    let options = vec![1, 1, 1, 0];
    injected_frames_arrive(Family::V4, Some("ip_options"), |outer, inner| {
        Outer { options: options.clone(), ..outer.clone() }.frame(inner)
    });
}

#[test]
fn outer_ipv6_extension_headers_take_the_way_through_the_kernel() {
    // Destination options, UDP behind them, that are four bytes of padding (RFC 8200 §4.6).
    const OPTIONS: [u8; 8] = [UDP, 0, 1, 4, 0, 0, 0, 0];
    injected_frames_arrive(Family::V6, Some("ipv6_extension"), |outer, inner| {
        let mut frame = outer.frame(inner);
        let length = u16::from_be_bytes([frame[18], frame[19]]) + OPTIONS.len() as u16;
        frame[18..20].copy_from_slice(&length.to_be_bytes());
        frame[20] = 60;
        frame.splice(54..54, OPTIONS);
        frame
    });
}
