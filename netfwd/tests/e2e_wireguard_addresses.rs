//! A tunnel that listens on every address, and an underlay that gets and loses some while it runs: XDP follows. And which of
//! them netfwd speaks from.

mod e2e;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use e2e::packets::bound;
use e2e::wireguard::HANDSHAKE;
use e2e::{FAMILIES, Rig};
use xtask::lab::{Config, Family, Options, Program, Side, Tunnel, UNDERLAY};
use xtask::machine::wait_until;

const NEW: [&str; 2] = ["10.9.0.50", "fd09::50"];

/// netfwd listening everywhere, where the peer is the one to begin.
fn start() -> Option<Rig> {
    let tunnel = Tunnel::wireguard(Program::WireguardGo).initiator(Side::Peer);
    Rig::from_text(Options::with_tunnels([tunnel]), |lab| {
        let local = format!("local = \"{}\"\n", lab.options().tunnels[0].outer_address(Side::Gateway));
        let text = Config::of(lab).text();
        assert!(text.contains(&local), "{text}");
        text.replace(&local, "")
    })
}

impl Rig {
    fn change_address(&self, verb: &str, address: &str) {
        let (length, nodad) = if address.contains(':') { (64, "nodad") } else { (24, "") };
        let nodad = if verb == "add" { nodad } else { "" };
        self.lab.gateway.ip(&format!("address {verb} {address}/{length} dev {UNDERLAY} {nodad}")).expect("an address");
    }

    /// The peer speaks to that address from now on.
    fn speak_to(&self, address: &str) {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let (public, port) = (&self.far_end().keys.gateway.public, self.tunnel().port);
        self.far_device().set(&format!("peer {public} endpoint {host}:{port}")).expect("an endpoint");
        assert!(self.answers(Side::Peer, HANDSHAKE), "{address} does not answer");
    }

    /// Whether a message to that address comes through AF_XDP; the gateway's device has to see it.
    fn redirects_what_is_sent_to(&self, address: &str) -> bool {
        let address: IpAddr = address.parse().expect("an address");
        let unspecified = if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let sender = bound(&self.lab.peer, unspecified, 0);
        let message = [&[4, 0, 0, 0][..], &[0; 28]].concat();
        let ((), growth) = self.during(|| {
            for _ in 0..10 {
                sender.send_to(&message, (address, self.tunnel().port)).expect("a message");
            }
            std::thread::sleep(Duration::from_millis(50));
        });
        assert!(growth.of("netfwd_xdp_packets_total", &[]) >= 10.0, "nothing arrives");
        growth.redirected() > 0.0
    }

    /// Whether what the peer sends comes through AF_XDP.
    fn is_redirected(&self) -> bool {
        let (answered, growth) = self.during(|| self.answers(Side::Peer, HANDSHAKE));
        answered && growth.redirected() > 0.0
    }
}

#[test]
fn with_another_mark_or_port_the_address_that_the_peer_spoke_to_is_left() {
    let Some(rig) = start() else { return };
    let (chosen, port) = (rig.tunnel().outer_address(Side::Gateway), rig.tunnel().port);
    let spoken_to: IpAddr = NEW[0].parse().expect("an address");
    rig.change_address("add", NEW[0]);
    for (change, address, port) in [
        ("fwmark 7", chosen, port),
        ("fwmark 7", spoken_to, port),
        (&format!("listen-port {port}"), spoken_to, port),
        ("listen-port 51998", chosen, 51998),
    ] {
        rig.speak_to(NEW[0]);
        rig.lab.gateway.exec(&format!("wg set {} {change}", rig.tunnel().name)).expect("a change");
        assert!(rig.answers(Side::Gateway, HANDSHAKE), "no answer after {change}");
        let endpoint = rig.far_state().peer().expect("one peer").endpoint;
        assert_eq!(endpoint, Some(SocketAddr::new(address, port)), "{change}");
    }
    rig.stop();
}

#[test]
fn an_address_that_an_underlay_gets_later_is_steered_by_xdp_until_it_is_gone() {
    let Some(rig) = start() else { return };
    for address in NEW {
        rig.change_address("add", address);
        rig.speak_to(address);
        assert!(wait_until(HANDSHAKE, || rig.is_redirected()), "XDP does not know {address}");
        let ((), growth) = rig.during(|| FAMILIES.into_iter().for_each(|family| rig.tcp_in(family, 1, 4_000_000)));
        assert!(growth.redirected() > 8_000_000.0 / 1420.0, "{} packets came through AF_XDP", growth.redirected());
        rig.tcp_out(Family::V4, 1, 4_000_000);
    }
    for address in NEW {
        // The peer goes on sending there.
        rig.lab.peer.ip(&format!("neighbour change {address} dev {UNDERLAY} nud permanent")).expect("a neighbour");
        assert!(rig.redirects_what_is_sent_to(address));
        rig.change_address("delete", address);
        assert!(wait_until(HANDSHAKE, || !rig.redirects_what_is_sent_to(address)), "XDP still knows {address}");
    }
    // The addresses of before are still known.
    rig.speak_to(&rig.tunnel().outer_address(Side::Gateway).to_string());
    assert!(wait_until(HANDSHAKE, || rig.is_redirected()), "XDP has forgotten the first address");
    rig.stop();
}
