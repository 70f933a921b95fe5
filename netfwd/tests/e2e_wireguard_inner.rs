//! What is inside: congestion marks go through both ways, and a tag that is right says nothing about a checksum that
//! was wrong before the packet was sealed.

mod e2e;
#[path = "support/packets.rs"]
mod made;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use e2e::packets::{Capture, Packet, TCP, awaited, bound};
use e2e::wireguard::{HANDSHAKE, start};
use e2e::{FAMILIES, Rig};
use made::{Field, Inner, UDP};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with, sockopt};
use xtask::lab::{Family, Options, Program, Side, Tunnel};
use xtask::machine::wait_until;

/// RFC 3168's codepoints, by value: Not-ECT, ECT(1), ECT(0), CE.
const CODEPOINTS: [u8; 4] = [0b00, 0b01, 0b10, 0b11];
const PORT: u16 = 5001;

fn set_tos(socket: &UdpSocket, tos: u8) {
    match socket.local_addr().expect("a bound socket") {
        SocketAddr::V4(_) => sockopt::set_ip_tos(socket, tos).expect("IP_TOS"),
        SocketAddr::V6(_) => sockopt::set_ipv6_tclass(socket, tos.into()).expect("IPV6_TCLASS"),
    }
}

impl Rig {
    /// One datagram with each mark, each from a socket of its own in the peer or the gateway.
    fn send_marked(&self, from: Side, family: Family) {
        let [peer, gateway] = [self.lab.peer_address(family), self.lab.gateway_address(family)];
        let (namespace, source, target) = match from {
            Side::Peer => (&self.lab.peer, peer, gateway),
            Side::Gateway => (&self.lab.gateway, gateway, peer),
        };
        for mark in CODEPOINTS {
            // Of one flow, those with the same mark would be merged.
            let sender = bound(namespace, source, 0);
            set_tos(&sender, 0b0110_1000 | mark);
            sender.send_to(b"marked", (target, PORT)).expect("a datagram");
        }
    }

    /// The marks of what came to the port in the gateway.
    fn marks_inside(capture: &Capture, to: IpAddr) -> Vec<u8> {
        let inside = |packet: &Packet| packet.destination == to && packet.destination_port == PORT;
        // All but the one that cannot carry a mark.
        capture.awaited(3, inside).iter().map(Packet::ecn).collect()
    }
}

#[test]
fn inner_marks_show_outside_and_the_dscp_does_not() {
    for underlay in FAMILIES {
        let Some(rig) = start(Tunnel::wireguard(Program::WireguardGo).over(underlay)) else { return };
        rig.greet();
        for family in FAMILIES {
            let capture = Capture::start(&rig.lab.peer);
            rig.send_marked(Side::Gateway, family);
            let from = rig.tunnel().outer_address(Side::Gateway);
            let is_data = |packet: &Packet| packet.transport[8] == 4 && packet.transport.len() > 8 + 32;
            let ours = capture.awaited(4, |packet| packet.is_tunnelled(from, rig.tunnel().port) && is_data(packet));
            let marks: Vec<_> = ours.iter().map(|packet| packet.tos).collect();
            assert_eq!(marks, CODEPOINTS, "{family:?} over {underlay:?}");
        }
        rig.assert_no_drops();
        rig.stop();
    }
}

#[test]
fn congestion_on_the_way_shows_inside() {
    for (underlay, xdp) in [(Family::V4, "auto"), (Family::V6, "auto"), (Family::V4, "off")] {
        let options = Options::with_tunnels([Tunnel::wireguard(Program::WireguardGo).over(underlay)]);
        let Some(rig) = Rig::configured(options, |config| config.xdp(xdp)) else { return };
        rig.greet();
        let ip = if underlay == Family::V4 { "ip" } else { "ip6" };
        let mark = format!("add rule {ip} busy out udp dport 51820 {ip} ecn set ce");
        for rule in [
            &format!("add table {ip} busy"),
            &format!("add chain {ip} busy out {{ type filter hook output priority 0 ; }}"),
            &mark,
        ] {
            rig.lab.peer.exec(&format!("nft {rule}")).expect("a rule");
        }
        for (family, drops) in FAMILIES.into_iter().zip([1.0, 2.0]) {
            let capture = Capture::start(&rig.lab.gateway);
            rig.send_marked(Side::Peer, family);
            // RFC 6040 §4.2: a packet that cannot carry the mark must not arrive as if there were none.
            let labels = [("direction", "ingress"), ("reason", "ecn_ce_not_ect")];
            rig.expect_count("netfwd_drops_total", &labels, drops);
            let marks = Rig::marks_inside(&capture, rig.lab.gateway_address(family));
            assert_eq!(marks, [0b11, 0b11, 0b11], "{family:?} over {underlay:?}, xdp {xdp}");
        }
        rig.stop();
    }
}

/// Packets as they are into the far end's device: its kernel believes the checksums.
impl Rig {
    /// Bytes of the datagram that leaves for a UDP packet of this length.
    fn sealed_length(&self, length: usize) -> u64 {
        let [source, target] = [self.lab.gateway_address(Family::V4), self.lab.peer_address(Family::V4)];
        let sent = || self.state().peer().expect("one peer").sent;
        let (before, sender) = (sent(), bound(&self.lab.gateway, source, 0));
        sender.send_to(&vec![0; length - 28], (target, PORT)).expect("a datagram");
        assert!(wait_until(HANDSHAKE, || sent() > before), "nothing leaves");
        sent() - before
    }
}

/// Else a full packet would be fragmented on an underlay that the MTU was chosen for.
#[test]
fn padding_keeps_to_the_mtu_that_the_device_is_given() {
    let Some(rig) = start(Tunnel::wireguard(Program::WireguardGo)) else { return };
    rig.greet();
    for mtu in [1300_usize, 1412, 1500, 1420] {
        rig.lab.gateway.ip(&format!("link set {} mtu {mtu}", rig.tunnel().name)).expect("an MTU");
        for length in [mtu - 5, mtu - 20, mtu] {
            let expected = (length.next_multiple_of(16).min(mtu) + 32) as u64;
            let fits = wait_until(HANDSHAKE, || rig.sealed_length(length) == expected);
            assert!(fits, "{length} bytes of {mtu}: {} instead of {expected}", rig.sealed_length(length));
        }
    }
    rig.stop();
}

/// Its name is the operator's to change, and then another interface's to have.
#[test]
fn a_renamed_device_obeys_its_own_link() {
    let Some(rig) = start(Tunnel::wireguard(Program::WireguardGo)) else { return };
    rig.greet();
    let (gateway, name) = (&rig.lab.gateway, &rig.tunnel().name);
    let keepalives = format!("wg set {name} peer {} persistent-keepalive 1", rig.far_end().keys.peer.public);
    gateway.exec(&keepalives).expect("keepalives");
    let sent = || rig.state().peer().expect("one peer").sent;
    let is_silent = || {
        // Looks are a tenth of a second behind what happens.
        std::thread::sleep(Duration::from_millis(500));
        let before = sent();
        !wait_until(Duration::from_millis(1500), || sent() > before)
    };
    gateway.ip(&format!("link set {name} down")).expect("down");
    assert!(is_silent(), "its link is down");
    let other = format!("tuntap add {name} mode tun");
    for line in [&format!("link set {name} name blue"), &other, &format!("link set {name} mtu 1300 up")] {
        gateway.ip(line).expect(line);
    }
    assert!(is_silent(), "another link is up");
    gateway.ip("link set blue mtu 1412 up").expect("up");
    assert!(rig.answers(Side::Gateway, HANDSHAKE), "its link is up");
    gateway.ip(&format!("link delete {name}")).expect("deleted");
    // With an MTU of 1300 the first were 12 bytes shorter, with that of before the second 8 longer.
    let lengths = || [1297, 1412].map(|length| rig.sealed_length(length));
    assert!(wait_until(HANDSHAKE, || lengths() == [1312 + 32, 1412 + 32]), "{:?}", lengths());
    gateway.ip("link set blue down").expect("down");
    assert!(is_silent(), "its link is down again");
    rig.stop();
}

fn send_raw(rig: &Rig, packets: &[Inner]) {
    for packet in packets {
        let family = if packet.source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let open = || socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW));
        let socket = rig.lab.peer.run(open).expect("the namespace").expect("a raw socket");
        sendto(&socket, &packet.bytes(), SendFlags::empty(), &SocketAddr::new(packet.destination, 0)).expect("sent");
    }
}

#[test]
fn a_wrong_inner_checksum_is_refused_though_it_is_authentic() {
    let Some(rig) = start(Tunnel::wireguard(Program::WireguardGo)) else { return };
    rig.greet();
    let mut refused = 0.0;
    for family in FAMILIES {
        let (source, destination) = (rig.lab.peer_address(family), rig.lab.server_address(family));
        let packet = |protocol, index: u16, field| {
            let inner = Inner::new(protocol, &source.to_string(), &destination.to_string(), 600);
            Inner { source_port: 40_000 + index, ..inner }.checksum(field)
        };
        let (receiver, capture) = (bound(&rig.lab.server, destination, PORT), Capture::start(&rig.lab.server));
        // Wrong ones among right ones: whatever is merged, the wrong ones must not take part.
        let fields = [Field::Right, Field::Wrong, Field::Right, Field::Wrong, Field::Right];
        let udp: Vec<_> = fields.into_iter().zip(0..).map(|(field, index)| packet(UDP, index, field)).collect();
        let tcp: Vec<_> = (0..4).map(|index| packet(made::TCP, index, Field::Wrong)).collect();
        send_raw(&rig, &[udp, tcp].concat());
        refused += 6.0;
        let labels = [("direction", "ingress"), ("stage", "vet"), ("reason", "inner_l4_checksum")];
        rig.expect_count("netfwd_drops_total", &labels, refused);
        assert_eq!(awaited(&receiver, 3).len(), 3, "{family:?}");
        let arrived = capture.packets().into_iter().filter(|packet| packet.source == source);
        let ports: BTreeSet<_> = arrived.clone().map(|packet| packet.source_port).collect();
        assert_eq!(ports, BTreeSet::from([40_000, 40_002, 40_004]));
        assert_eq!(arrived.filter(|packet| packet.protocol == TCP).count(), 0);
    }
    rig.stop();
}
