//! What makes an L2 tunnel a cable: neighbours are found, groups reach everybody, and unicast only the one it is for.

mod e2e;
#[path = "support/packets.rs"]
mod made;

use std::collections::BTreeSet;
use std::net::IpAddr;

use e2e::packets::{Capture, Packet, awaited, bound};
use e2e::{FAMILIES, Rig, scaled};
use made::{Inner, vxlan};
use xtask::lab::{Config, Family, Lab, Namespace, Options, Tunnel};
use xtask::machine::slowness;

/// The kernel's peer, and the second remote behind it.
const REMOTES: [&str; 2] = ["10.9.0.1", "10.9.1.2"];
/// Nobody's; frames to it show what is known about it.
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn ping(from: &Namespace, target: impl std::fmt::Display) {
    for _ in 0..3 {
        // One at a time: for the last of several, ping waits no longer than twice what the others took.
        from.exec(&format!("ping -c 1 -W {} {target}", 5.0 * slowness())).expect("an answer");
    }
}

/// The MAC address of a device.
fn mac(namespace: &Namespace, device: &str) -> String {
    let shown = namespace.ip(&format!("-o link show {device}")).expect("a device");
    let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).expect("a MAC address").to_owned()
}

#[test]
fn arp_and_neighbour_discovery_find_the_other_end_both_ways() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    let (peer, gateway) = (&rig.lab.peer, &rig.lab.gateway);
    for family in FAMILIES {
        let ends = [(peer, gateway, rig.lab.gateway_address(family)), (gateway, peer, rig.lab.peer_address(family))];
        for (from, to, target) in ends {
            [peer, gateway].iter().for_each(|end| assert!(end.ip("neighbour flush dev vx7").is_ok()));
            ping(from, target);
            let known = from.ip(&format!("neighbour show {target} dev vx7")).expect("a table");
            assert!(known.contains(&mac(to, "vx7")), "{target}: {known}");
        }
    }
    rig.assert_nothing_lost();
    rig.stop();
}

/// A gateway with two remotes: the peer, and one more kernel behind it.
struct Triangle {
    rig: Rig,
    /// `10.10.0.3` in the tunnel, `10.9.1.2` outside.
    third: Namespace,
}

impl Triangle {
    fn start(lines: &str) -> Option<Self> {
        let options = Options::with_tunnels([Tunnel::vxlan("vx7", 7).config_line(lines)]);
        let remotes = format!("{REMOTES:?}");
        let mut third = None;
        let rig = Rig::from_text(options, |lab| {
            // First the way to it: the daemon's device speaks as soon as it is there.
            third = Some(Self::connect(lab));
            Config::of(lab).text().replace("[\"10.9.0.1\"]", &remotes)
        })?;
        Some(Self { rig, third: third? })
    }

    fn connect(lab: &Lab) -> Namespace {
        let third = Namespace::create(&format!("{}3", lab.peer.name())).expect("a namespace");
        let (peer, gateway) = (&lab.peer, &lab.gateway);
        peer.sysctl("net.ipv4.ip_forward", 1).expect("a router");
        peer.ip(&format!("link add far0 type veth peer under0 netns {}", third.name())).expect("a cable");
        for (end, line) in [
            (peer, "link set far0 up"),
            (peer, "address add 10.9.1.1/24 dev far0"),
            (&third, "link set under0 up"),
            (&third, "address add 10.9.1.2/24 dev under0"),
            (&third, "route add default via 10.9.1.1"),
            (gateway, "route add 10.9.1.0/24 via 10.9.0.1"),
            (&third, "link add vx7 mtu 1450 type vxlan id 7 local 10.9.1.2 remote 10.9.0.2 dstport 4789"),
            (&third, "address add 10.10.0.3/24 dev vx7"),
            (&third, "link set vx7 up"),
        ] {
            end.ip(line).expect(line);
        }
        third
    }

    /// Asserts where the gateway sends inner frames while `action` runs, as they reach the peer: to these remotes and no other.
    fn assert_sent(&self, these: &[&str], action: impl FnOnce(), wanted: impl Fn(&[u8]) -> bool) {
        let capture = Capture::start(&self.rig.lab.peer);
        action();
        let is_ours = |packet: &&Packet| packet.is_tunnelled(address("10.9.0.2"), 4789) && wanted(packet.inner_frame());
        let to = |packets: &[Packet]| -> BTreeSet<IpAddr> {
            packets.iter().filter(is_ours).map(|packet| packet.destination).collect()
        };
        let expected = remotes(these);
        assert_eq!(to(&capture.until(|packets| to(packets).is_superset(&expected))), expected);
    }

    /// Asserts where frames to [`STATION`] go.
    fn assert_station_is_behind(&self, these: &[&str]) {
        let gateway = &self.rig.lab.gateway;
        gateway.ip("neighbour replace 10.10.0.9 lladdr 02:00:00:00:00:99 dev vx7").expect("a neighbour");
        let socket = bound(gateway, address("10.10.0.2"), 0);
        let send = || (0..5).for_each(|_| assert!(socket.send_to(b"who are you?", "10.10.0.9:9").is_ok()));
        self.assert_sent(these, send, |frame| frame.starts_with(&STATION));
    }

    /// Makes [`STATION`] speak from behind that remote, up to the gateway's socket.
    fn station_speaks(&self, remote: &str) {
        let mut frame = Inner::udp4(20).ethernet(0);
        frame[6..12].copy_from_slice(&STATION);
        let from = if remote == REMOTES[0] { &self.rig.lab.peer } else { &self.third };
        let (socket, heard) =
            (bound(from, address(remote), 0), bound(&self.rig.lab.gateway, address("10.10.0.2"), 5001));
        socket.send_to(&[&vxlan(7)[..], &frame].concat(), "10.9.0.2:4789").expect("a datagram");
        assert_eq!(awaited(&heard, 1).len(), 1, "the station's datagram");
    }
}

/// The tunnel's device gets the address that [`Inner::ethernet`] sends to.
const GATEWAY_MAC: &str = "mac = \"02:00:00:00:00:02\"";

fn remotes(these: &[&str]) -> BTreeSet<IpAddr> {
    these.iter().map(|remote| address(remote)).collect()
}

#[test]
fn broadcast_and_multicast_are_replicated_to_every_remote() {
    let Some(triangle) = Triangle::start(GATEWAY_MAC) else { return };
    let gateway = &triangle.rig.lab.gateway;
    let arp = || {
        ping(gateway, "10.10.0.1");
        ping(gateway, "10.10.0.3");
    };
    let is_arp_request = |frame: &[u8]| frame.starts_with(&[0xff; 6]) && frame.get(12..14) == Some(&[8, 6]);
    triangle.assert_sent(&REMOTES, arp, is_arp_request);
    gateway.ip("route add 239.0.0.0/8 dev vx7").expect("a route");
    let group = address("239.1.2.3");
    let listeners = [&triangle.rig.lab.peer, &triangle.third].map(Capture::start);
    let socket = bound(gateway, address("10.10.0.2"), 0);
    let send = || (0..3).for_each(|_| assert!(socket.send_to(b"to everybody", (group, 7)).is_ok()));
    triangle.assert_sent(&REMOTES, send, |frame| frame.starts_with(&[1, 0, 0x5e, 1, 2, 3]));
    for listener in listeners {
        let decapsulated = |packet: &Packet| packet.destination == group && packet.transport.ends_with(b"to everybody");
        // Each kernel decapsulates its own copy of each.
        assert_eq!(listener.awaited(3, decapsulated).len(), 3);
    }
    assert_eq!(triangle.rig.drops(), Vec::<String>::new());
}

#[test]
fn unicast_goes_only_where_its_address_was_learned() {
    let Some(triangle) = Triangle::start(GATEWAY_MAC) else { return };
    // Unknown: to everybody.
    triangle.assert_station_is_behind(&REMOTES);
    for remote in REMOTES {
        triangle.station_speaks(remote);
        // It moves with its station.
        triangle.assert_station_is_behind(&[remote]);
    }
    // Ordinary traffic of both kernels, which learned each other's place from the replicated ARP.
    ping(&triangle.third, "10.10.0.2");
    ping(&triangle.rig.lab.peer, "10.10.0.2");
    let third = mac(&triangle.third, "vx7");
    let third: Vec<u8> = third.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let to_third = || ping(&triangle.rig.lab.gateway, "10.10.0.3");
    triangle.assert_sent(&REMOTES[1..], to_third, |frame| frame.starts_with(&third));
    assert_eq!(triangle.rig.drops(), Vec::<String>::new());
}

#[test]
fn a_static_entry_steers_unicast_and_is_not_overridden_by_learning() {
    let entry = format!("{GATEWAY_MAC}\n[[tunnel.fdb]]\nmac = \"02:00:00:00:00:99\"\nremote = \"{}\"", REMOTES[1]);
    let Some(triangle) = Triangle::start(&entry) else { return };
    triangle.assert_station_is_behind(&REMOTES[1..]);
    triangle.station_speaks(REMOTES[0]);
    triangle.assert_station_is_behind(&REMOTES[1..]);
    assert_eq!(triangle.rig.drops(), Vec::<String>::new());
}

#[test]
fn without_learning_unicast_goes_to_everybody() {
    let Some(triangle) = Triangle::start(&format!("{GATEWAY_MAC}\nlearning = false")) else { return };
    triangle.station_speaks(REMOTES[0]);
    triangle.assert_station_is_behind(&REMOTES);
    assert_eq!(triangle.rig.drops(), Vec::<String>::new());
}

/// Bulk traffic to two remotes at once: each superframe is cut once and sent to the right one.
#[test]
fn two_remotes_have_their_own_tcp_flows() {
    let Some(triangle) = Triangle::start(GATEWAY_MAC) else { return };
    let (peer, gateway) = (&triangle.rig.lab.peer, &triangle.rig.lab.gateway);
    std::thread::scope(|scope| {
        for (other, near) in [(peer, "10.10.0.1"), (&triangle.third, "10.10.0.3")] {
            let far = triangle.rig.lab.gateway_address(Family::V4);
            scope.spawn(move || e2e::tcp_intact(other, gateway, far, 2, scaled(4_000_000)));
            scope.spawn(move || e2e::tcp_intact(gateway, other, address(near), 2, scaled(4_000_000)));
        }
    });
    assert_eq!(triangle.rig.drops(), Vec::<String>::new());
}
