//! Law 7, exact match: what is not ours is left alone, what is not allowed is dropped and counted, and tunnels stay apart.

mod e2e;
#[path = "support/packets.rs"]
mod made;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use e2e::packets::{awaited, bound};
use e2e::{FAMILIES, Rig, mixed, scaled, tcp_intact};
use made::{Inner, UDP, gpe, vxlan};
use xtask::lab::{Config, Family, Namespace, Options, Side, Tunnel};
use xtask::load::{latency, tcp};
use xtask::machine::slowness;

/// The destination of frames that [`Inner::ethernet`] makes.
const GATEWAY_MAC: &str = "mac = \"02:00:00:00:00:02\"";
/// The destination port of packets that [`Inner`] makes.
const INNER_PORT: u16 = 5001;

#[test]
fn what_is_not_ours_is_untouched_while_the_tunnel_is_under_load() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    let (peer, gateway, server) = (&rig.lab.peer, &rig.lab.gateway, &rig.lab.server);
    let (here, inside) = (&rig, rig.lab.server_address(Family::V4));
    let ((), growth) = rig.during(|| {
        thread::scope(|scope| {
            let load = tcp::Load { verify: true, ..tcp::Load::for_seconds(2, 4.0 * slowness()) };
            let load = scope.spawn(move || tcp::run(peer, server, inside, load));
            for underlay in ["10.9.0.2", "fd09::2"].map(address) {
                scope.spawn(move || ssh_like(peer, gateway, underlay));
                scope.spawn(move || ping(peer, underlay));
                scope.spawn(move || here.udp_faithful(peer, gateway, underlay, mixed(), scaled(3_000)));
                scope.spawn(move || here.udp_faithful(gateway, peer, near(underlay), mixed(), scaled(3_000)));
            }
            let report = load.join().expect("a load").expect("a report");
            assert!(report.intact(), "{report:?}");
        });
    });
    let passes = |reason| growth.of("netfwd_xdp_passes_total", &[("reason", reason)]);
    assert!(passes("not_ours") >= 2.0 * scaled(3_000) as f64, "{} datagrams to other ports", passes("not_ours"));
    assert!(passes("not_udp") >= 100.0, "{} TCP segments and pings", passes("not_udp"));
    rig.assert_nothing_lost();
    rig.stop();
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The peer's address beside one of the gateway's.
fn near(gateway: IpAddr) -> IpAddr {
    address(if gateway.is_ipv4() { "10.9.0.1" } else { "fd09::1" })
}

/// Keystrokes and their echoes.
fn ssh_like(from: &Namespace, to: &Namespace, target: IpAddr) {
    let report =
        latency::run(from, to, target, Duration::from_secs(3).mul_f64(slowness())).expect("a connection that lives");
    assert!(report.count > 50, "{report:?}");
}

fn ping(from: &Namespace, target: IpAddr) {
    for _ in 0..15 {
        // One at a time: for the last of several, ping waits no longer than twice what the others took.
        from.exec(&format!("ping -c 1 -W {} {target}", 5.0 * slowness())).expect("an answer");
        thread::sleep(Duration::from_millis(100));
    }
}

/// A second tunnel with the addresses of the first, MAC addresses included, its devices moved to namespaces where those
/// addresses are free.
struct Twins {
    rig: Rig,
    peer: Namespace,
    gateway: Namespace,
}

impl Twins {
    fn start(tunnel: impl Fn(&str, u32) -> Tunnel) -> Option<Self> {
        let tunnels = [tunnel("vx7", 7), tunnel("vx8", 8)].map(|tunnel| tunnel.config_line(GATEWAY_MAC));
        let rig = Rig::start(Options::with_tunnels(tunnels))?;
        for device in ["vx7", "vx8"] {
            rig.lab.peer.ip(&format!("link set {device} address 02:00:00:00:00:01")).expect("a MAC address");
        }
        let away = |from: &Namespace, side| {
            let namespace = Namespace::create(&format!("{}8", from.name())).expect("a namespace");
            from.ip(&format!("link set vx8 netns {}", namespace.name())).expect("a moved device");
            namespace.ip("link set vx8 up").expect("up");
            for (family, length) in [(Family::V4, 24), (Family::V6, 64)] {
                let address = rig.lab.options().tunnels[1].address(side, family);
                namespace.ip(&format!("address add {address}/{length} dev vx8 nodad")).expect("an address");
            }
            namespace
        };
        // A device on its way takes no frames, so nobody sends any.
        rig.lab.peer.ip("link set vx8 down").expect("down");
        let gateway = away(&rig.lab.gateway, Side::Gateway);
        let peer = away(&rig.lab.peer, Side::Peer);
        Some(Self { rig, peer, gateway })
    }
}

/// Numbered datagrams of one tunnel from and to the same addresses and ports as the other's.
struct Line {
    mark: u8,
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl Line {
    const SIZE: usize = 1000;

    fn new(mark: u8, peer: &Namespace, gateway: &Namespace, [from, to]: [IpAddr; 2]) -> Self {
        let (sender, receiver) = (bound(peer, from, 6000), bound(gateway, to, INNER_PORT));
        sender.connect(SocketAddr::new(to, INNER_PORT)).expect("a route");
        Self { mark, sender, receiver }
    }

    fn datagram(&self, index: u16) -> Vec<u8> {
        let mut bytes = vec![self.mark; Self::SIZE];
        bytes[..2].copy_from_slice(&index.to_be_bytes());
        bytes
    }
}

/// The strictest case for the coalescer: two flows with one 5-tuple, packet by packet in turn, in one batch.
#[test]
fn two_tunnels_with_the_same_inner_addresses_and_ports_stay_apart() {
    let Some(twins) = Twins::start(Tunnel::vxlan) else { return };
    for family in FAMILIES {
        let rig = &twins.rig;
        let ends = [rig.lab.peer_address(family), rig.lab.gateway_address(family)];
        let lines = [
            Line::new(b'A', &rig.lab.peer, &rig.lab.gateway, ends),
            Line::new(b'B', &twins.peer, &twins.gateway, ends),
        ];
        // Resolves the neighbours.
        lines.iter().for_each(|line| assert!(line.sender.send(&line.datagram(0)).is_ok()));
        lines.iter().for_each(|line| assert_eq!(awaited(&line.receiver, 1), [line.datagram(0)]));
        let ((), growth) = rig.during(|| in_turn(rig, &lines));
        rig.assert_udp_coalesced(&growth, 10.0);
    }
    twins.rig.assert_nothing_lost();
}

fn in_turn(rig: &Rig, lines: &[Line]) {
    for round in 0..5 {
        // While the worker sleeps, its AF_XDP ring fills: one batch for all.
        rig.pause();
        let numbers = || (0..300).map(|index| round * 300 + index);
        for index in numbers() {
            lines.iter().for_each(|line| assert!(line.sender.send(&line.datagram(index)).is_ok()));
        }
        rig.resume();
        for line in lines {
            let expected: Vec<_> = numbers().map(|index| line.datagram(index)).collect();
            assert!(
                awaited(&line.receiver, expected.len()) == expected,
                "round {round}: others than the 300 of line {}",
                line.mark
            );
        }
    }
}

#[test]
fn tcp_in_two_tunnels_with_the_same_addresses_arrives_in_its_own() {
    for tunnel in [Tunnel::vxlan as fn(&str, u32) -> Tunnel, |name, vni| Tunnel::vxlan(name, vni).over(Family::V6)] {
        let Some(twins) = Twins::start(tunnel) else { return };
        let lab = &twins.rig.lab;
        let (near, far) = (lab.peer_address(Family::V4), lab.gateway_address(Family::V4));
        thread::scope(|scope| {
            scope.spawn(|| tcp_intact(&lab.peer, &lab.gateway, far, 2, scaled(5_000_000)));
            scope.spawn(|| tcp_intact(&twins.peer, &twins.gateway, far, 2, scaled(5_000_000)));
            scope.spawn(|| tcp_intact(&lab.gateway, &lab.peer, near, 2, scaled(5_000_000)));
            scope.spawn(|| tcp_intact(&twins.gateway, &twins.peer, near, 2, scaled(5_000_000)));
        });
        for name in ["vx7", "vx8"] {
            let packets = twins.rig.metrics().metric("netfwd_receive_packets_total", &[("tunnel", name)]);
            assert!(packets >= scaled(10_000_000) as f64 / 1450.0, "{packets} packets came through {name}");
        }
        twins.rig.assert_nothing_lost();
    }
}

/// Every kind over every underlay, with one VNI: only address and port tell them apart.
#[test]
fn tunnels_of_all_kinds_share_a_gateway_and_a_vni() {
    let tunnels = [
        Tunnel::vxlan("vx4", 7).overlay(10),
        Tunnel::vxlan("vx6", 7).overlay(11).over(Family::V6),
        Tunnel::vxlan_gpe("gpe4", 7).overlay(12),
        Tunnel::vxlan_gpe("gpe6", 7).overlay(13).over(Family::V6).port(4791),
    ];
    let Some(rig) = Rig::start(Options { queues: 2, ..Options::with_tunnels(tunnels.clone()) }) else { return };
    let (peer, gateway) = (&rig.lab.peer, &rig.lab.gateway);
    thread::scope(|scope| {
        for (tunnel, family) in tunnels.iter().zip([Family::V4, Family::V6, Family::V6, Family::V4]) {
            let (near, far) = (tunnel.address(Side::Peer, family), tunnel.address(Side::Gateway, family));
            scope.spawn(move || tcp_intact(peer, gateway, far, 1, scaled(5_000_000)));
            scope.spawn(move || tcp_intact(gateway, peer, near, 1, scaled(5_000_000)));
        }
    });
    for tunnel in &tunnels {
        let packets = rig.metrics().metric("netfwd_receive_packets_total", &[("tunnel", &tunnel.name)]);
        let (least, most) = (scaled(3_000) as f64, scaled(10_000) as f64);
        assert!((least..most).contains(&packets), "{packets} packets came through {}", tunnel.name);
    }
    rig.assert_nothing_lost();
    rig.stop();
}

/// Datagrams made by hand, from one of the peer's underlay addresses, and a socket where their content would come out.
struct Intruder<'a> {
    rig: &'a Rig,
    receiver: UdpSocket,
}

impl<'a> Intruder<'a> {
    fn new(rig: &'a Rig) -> Self {
        rig.lab.peer.ip("address add 10.9.0.7/24 dev under0").expect("a second underlay address");
        let receiver = bound(&rig.lab.gateway, rig.lab.gateway_address(Family::V4), INNER_PORT);
        Self { rig, receiver }
    }

    /// Sends ten datagrams, of which so many are to come out of the tunnel, and asserts it.
    fn send(&self, from: &str, header: [u8; 8], inner: &[u8], arrive: usize) {
        let socket = bound(&self.rig.lab.peer, address(from), 0);
        let port = self.rig.lab.options().tunnels[0].port;
        for _ in 0..10 {
            socket.send_to(&[&header[..], inner].concat(), ("10.9.0.2", port)).expect("a datagram");
        }
        assert_eq!(awaited(&self.receiver, arrive).len(), arrive, "from {from}, behind {header:?}");
    }
}

fn only_what_is_configured_is_decapsulated(change: impl Fn(Config) -> Config, stage: &str) {
    let tunnel = Tunnel::vxlan("vx7", 7).config_line(GATEWAY_MAC);
    let Some(rig) = Rig::configured(Options::with_tunnels([tunnel]), change) else { return };
    let intruder = Intruder::new(&rig);
    let inner = Inner::udp4(100).ethernet(0);
    // The same from the right place arrives.
    intruder.send("10.9.0.1", vxlan(7), &inner, 10);
    intruder.send("10.9.0.1", vxlan(8), &inner, 0);
    rig.expect_drops("ingress", stage, "unknown_vni", 10.0);
    intruder.send("10.9.0.7", vxlan(7), &inner, 0);
    let labels = [("direction", "ingress"), ("stage", stage), ("reason", "remote_not_allowed")];
    rig.expect_count("netfwd_drops_total", &labels, 10.0);
    let mut reserved = vxlan(7);
    reserved[7] = 1;
    intruder.send("10.9.0.1", reserved, &inner, 0);
    rig.expect_count("netfwd_drops_total", &[("stage", stage), ("reason", "tunnel_header")], 10.0);
    assert_eq!(rig.drops().len(), 3, "{:?}", rig.drops());
}

#[test]
fn an_unknown_vni_or_remote_is_dropped_by_xdp_and_counted() {
    only_what_is_configured_is_decapsulated(|config| config, "xdp");
}

#[test]
fn an_unknown_vni_or_remote_is_dropped_without_xdp_and_counted() {
    only_what_is_configured_is_decapsulated(|config| config.xdp("off"), "decap");
}

#[test]
fn a_tunnel_inside_the_tunnel_is_not_opened() {
    let tunnel = Tunnel::vxlan("vx7", 7).config_line(GATEWAY_MAC);
    let Some(rig) = Rig::start(Options::with_tunnels([tunnel])) else { return };
    let intruder = Intruder::new(&rig);
    let mut outer = Inner::new(UDP, "10.9.0.1", "10.9.0.2", 0);
    outer.destination_port = 4789;
    outer.payload = [&vxlan(7)[..], &Inner::udp4(100).ethernet(0)].concat();
    intruder.send("10.9.0.1", vxlan(7), &outer.ethernet(0), 0);
    rig.expect_drops("ingress", "decap", "nested", 10.0);
}

#[test]
fn an_inner_source_outside_the_remotes_prefixes_is_denied() {
    let options = Options::with_tunnels([Tunnel::vxlan_gpe("gpe7", 7)]);
    let two_remotes = |config: Config| {
        let route = "[[tunnel.route]]\nprefix = \"10.77.0.0/16\"\nremote = \"10.9.0.7\"";
        config.extra(route).text().replace("[\"10.9.0.1\"]", "[\"10.9.0.1\", \"10.9.0.7\"]")
    };
    let Some(rig) = Rig::from_text(options, |lab| two_remotes(Config::of(lab))) else { return };
    let intruder = Intruder::new(&rig);
    // A strict return path would hide what the tunnel lets through.
    let from = |source: &str| Inner::new(UDP, source, "10.10.0.2", 100).bytes();
    // Its own prefix.
    intruder.send("10.9.0.1", gpe(7, 1), &from("10.10.0.1"), 10);
    // The other remote's own prefix.
    intruder.send("10.9.0.7", gpe(7, 1), &from("10.77.0.1"), 10);
    // The other remote's prefix.
    intruder.send("10.9.0.1", gpe(7, 1), &from("10.77.0.1"), 0);
    rig.expect_drops("ingress", "decap", "inner_source_denied", 10.0);
    // Nobody's prefix.
    intruder.send("10.9.0.7", gpe(7, 1), &from("10.99.0.1"), 0);
    rig.expect_drops("ingress", "decap", "inner_source_denied", 20.0);
}

/// The same with the kernel's device as the sender.
#[test]
fn the_kernels_gpe_device_cannot_send_from_outside_its_prefixes() {
    let Some(rig) = Rig::start(Options::with_tunnels([Tunnel::vxlan_gpe("gpe7", 7)])) else { return };
    rig.lab.peer.ip("address add 10.99.0.1/32 dev lo").expect("a foreign address");
    let gateway = rig.lab.gateway_address(Family::V4);
    let receiver = bound(&rig.lab.gateway, gateway, INNER_PORT);
    for (source, arrive) in [("10.10.0.1", 10), ("10.99.0.1", 0)] {
        let socket = bound(&rig.lab.peer, address(source), 0);
        for _ in 0..10 {
            socket.send_to(b"from where?", (gateway, INNER_PORT)).expect("a datagram");
        }
        assert_eq!(awaited(&receiver, arrive).len(), arrive, "from {source}");
    }
    rig.expect_drops("ingress", "decap", "inner_source_denied", 10.0);
}
