//! Endpoints that say nothing without their interface: `fe80::…`, configured, learned and followed.

mod e2e;

use e2e::wireguard::HANDSHAKE;
use e2e::{FAMILIES, Rig};
use xtask::lab::{Config, Lab, Namespace, Options, Program, Side, Tunnel, UNDERLAY};
use xtask::machine::wait_until;

/// The gateway's other address in the underlay.
const GATEWAY6: &str = "fd09::2";

/// A namespace's link-local address in the underlay.
fn link_local(namespace: &Namespace) -> String {
    let shown = || namespace.ip(&format!("-6 -o address show dev {UNDERLAY} scope link")).expect("addresses");
    // A device has one when its carrier was noticed, which is a work queue's business.
    wait_until(HANDSHAKE, || shown().contains("/64"));
    let shown = shown();
    let address = shown.split_whitespace().find_map(|word| word.strip_suffix("/64"));
    address.unwrap_or_else(|| panic!("no link-local address: {shown}")).to_owned()
}

/// An address with its interface, and a port.
fn endpoint(namespace: &Namespace, port: u16) -> String {
    format!("[{}%{UNDERLAY}]:{port}", link_local(namespace))
}

/// netfwd listening on every address, where it is the one to begin with the peer's link-local address.
fn start(initiator: Side) -> Option<Rig> {
    let tunnel = Tunnel::wireguard(Program::WireguardGo).initiator(initiator);
    Rig::from_text(Options::with_tunnels([tunnel]), |lab| {
        let Lab { peer, .. } = lab;
        let tunnel = &lab.options().tunnels[0];
        let text =
            Config::of(lab).text().replace(&format!("{}", tunnel.endpoint(Side::Peer)), &endpoint(peer, tunnel.port));
        text.replace(&format!("local = \"{}\"", tunnel.outer_address(Side::Gateway)), "")
    })
}

impl Rig {
    /// Where that end believes the other one to be, in `wg`'s words.
    fn believed(&self, side: Side) -> String {
        let (namespace, device) = match side {
            Side::Gateway => (&self.lab.gateway, self.tunnel().name.as_str()),
            Side::Peer => (&self.lab.peer, self.far_device().name()),
        };
        let shown = namespace.exec(&format!("wg show {device} endpoints")).expect("endpoints");
        shown.split_whitespace().last().unwrap_or_default().to_owned()
    }

    fn assert_only_link_local(&self) {
        FAMILIES.into_iter().for_each(|family| self.tcp_both_ways(family));
        FAMILIES.into_iter().for_each(|family| self.udp_both_ways(family));
        // wireguard-go knows the interface and does not tell.
        let (believed, gateway) = (self.believed(Side::Peer), link_local(&self.lab.gateway));
        assert!(believed.starts_with(&format!("[{gateway}")), "{believed} is not {gateway}");
        self.assert_no_drops();
    }
}

#[test]
fn a_link_local_endpoint_is_found() {
    let Some(rig) = start(Side::Gateway) else { return };
    assert!(rig.answers(Side::Gateway, HANDSHAKE), "no answer from {}", rig.believed(Side::Gateway));
    assert_eq!(rig.believed(Side::Gateway), endpoint(&rig.lab.peer, rig.tunnel().port));
    rig.assert_only_link_local();
    rig.stop();
}

#[test]
fn a_peer_that_speaks_from_a_link_local_address_is_answered_and_followed_there() {
    let Some(rig) = start(Side::Peer) else { return };
    let (public, port) = (&rig.far_end().keys.gateway.public, rig.tunnel().port);
    rig.far_device().set(&format!("peer {public} endpoint {}", endpoint(&rig.lab.gateway, port))).expect("an endpoint");
    assert!(rig.answers(Side::Peer, HANDSHAKE), "no answer");
    rig.far_device().set("listen-port 51999").expect("another port");
    assert!(rig.answers(Side::Peer, HANDSHAKE), "no answer at another port");
    let moved = endpoint(&rig.lab.peer, 51999);
    assert!(wait_until(HANDSHAKE, || rig.believed(Side::Gateway) == moved), "{}", rig.believed(Side::Gateway));
    rig.assert_only_link_local();
    rig.stop();
}

/// As peers do that have no other IPv6 address. XDP sees what is sent to ours, but not the interface that the answer needs.
#[test]
fn a_peer_that_speaks_from_a_link_local_address_to_a_global_one_is_answered() {
    let Some(rig) = start(Side::Peer) else { return };
    let Lab { peer, .. } = &rig.lab;
    // Alone on the link it would choose that source by itself; here the tunnel's own address would come first.
    peer.ip(&format!("route add {GATEWAY6}/128 dev {UNDERLAY} src {}", link_local(peer))).expect("a route");
    let (public, port) = (&rig.far_end().keys.gateway.public, rig.tunnel().port);
    rig.far_device().set(&format!("peer {public} endpoint [{GATEWAY6}]:{port}")).expect("an endpoint");
    assert!(rig.answers(Side::Peer, HANDSHAKE), "no answer to {}", rig.believed(Side::Gateway));
    assert_eq!(rig.believed(Side::Gateway), endpoint(peer, port));
    FAMILIES.into_iter().for_each(|family| rig.tcp_both_ways(family));
    FAMILIES.into_iter().for_each(|family| rig.udp_both_ways(family));
    let passed = rig.metrics().sum("netfwd_xdp_passes_total");
    let passed_on = rig.metrics().metric("netfwd_xdp_passes_total", &[("reason", "link_local")]);
    assert!(passed_on > 1_000.0, "{passed_on} of {passed} passes: is there XDP at all?");
    rig.assert_no_drops();
    rig.stop();
}

#[test]
fn wg_can_name_a_link_local_endpoint() {
    let Some(rig) = start(Side::Peer) else { return };
    let (public, port) = (&rig.far_end().keys.peer.public, rig.tunnel().port);
    let to = endpoint(&rig.lab.peer, port);
    rig.lab.gateway.exec(&format!("wg set {} peer {public} endpoint {to}", rig.tunnel().name)).expect("an endpoint");
    assert_eq!(rig.believed(Side::Gateway), to);
    assert!(rig.answers(Side::Gateway, HANDSHAKE), "no answer");
    rig.assert_only_link_local();
    rig.stop();
}
