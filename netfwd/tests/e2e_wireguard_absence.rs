//! Peers that are not where they were, or nowhere: names are asked again, and who does not answer is given up.

mod e2e;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use e2e::Rig;
use e2e::packets::{Capture, bound};
use e2e::wireguard::{HANDSHAKE, start};
use xtask::lab::{Config, Family, KeyPair, Lab, Options, Program, Side, Tunnel, UNDERLAY, write_secret};
use xtask::machine::wait_until;

const NAME: &str = "far.example";
const ELSEWHERE: &str = "10.9.0.77";
/// Lookups follow each other after 5 and 10 seconds, handshakes after 5.
const FOUND_AGAIN: Duration = Duration::from_secs(30);
/// WireGuard's KEEPALIVE_TIMEOUT + REKEY_TIMEOUT: who has not answered a packet for so long is asked for another session.
const SILENCE: Duration = Duration::from_secs(15);
/// WireGuard's REKEY_ATTEMPT_TIME: so long an answer is waited for; without one the old session is given up, too.
const ATTEMPT: Duration = Duration::from_secs(90);

/// The hosts file of a namespace, which `ip netns exec` puts in the place of the machine's.
struct Hosts(PathBuf);

impl Hosts {
    fn new(lab: &Lab, address: &str) -> Self {
        let hosts = Self(PathBuf::from("/etc/netns").join(lab.gateway.name()));
        fs::create_dir_all(&hosts.0).expect("a directory");
        hosts.point_to(address);
        hosts
    }

    /// In place: the file that processes see is this one, not one of its name.
    fn point_to(&self, address: &str) {
        fs::write(self.0.join("hosts"), format!("{address} {NAME}\n")).expect("written");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// netfwd with a peer whose endpoint is a name, which leads to that address at first. The peer knows no endpoint.
fn named(address: &str) -> Option<(Rig, Hosts)> {
    let tunnel = Tunnel::wireguard(Program::WireguardGo).initiator(Side::Gateway);
    let mut hosts = None;
    let rig = Rig::from_text(Options::with_tunnels([tunnel]), |lab| {
        hosts = Some(Hosts::new(lab, address));
        let (text, endpoint) = (Config::of(lab).text(), lab.options().tunnels[0].endpoint(Side::Peer));
        let named = text.replace(&format!("\"{endpoint}\""), &format!("\"{NAME}:{}\"", endpoint.port()));
        assert_ne!(named, text);
        named
    })?;
    Some((rig, hosts?))
}

impl Rig {
    fn believed(&self) -> Option<SocketAddr> {
        self.state().peer().expect("one peer").endpoint
    }

    fn is_believed_at(&self, address: &str) -> bool {
        self.believed().is_some_and(|endpoint| endpoint.ip().to_string() == address)
    }

    /// The peer starts anew at another address: it knows neither a session nor where we are.
    fn restart_peer_elsewhere(&self) {
        let Lab { peer, .. } = &self.lab;
        peer.sysctl("net.ipv4.conf.all.promote_secondaries", 1).expect("a parameter");
        peer.ip(&format!("address add {ELSEWHERE}/24 dev {UNDERLAY}")).expect("another address");
        peer.ip(&format!("address delete 10.9.0.1/24 dev {UNDERLAY}")).expect("the address is gone");
        let text = self.far_end().keys.wg_config(self.tunnel(), Side::Peer).expect("a configuration");
        let file = self.lab.directory().join("restarted.conf");
        write_secret(&file, &text).expect("a file");
        self.far_device().set_config(&file).expect("a device without sessions");
    }
}

#[test]
fn a_name_is_asked_again_until_it_leads_to_the_peer() {
    let Some((rig, hosts)) = named(ELSEWHERE) else { return };
    assert!(wait_until(HANDSHAKE, || rig.is_believed_at(ELSEWHERE)), "{:?}", rig.believed());
    assert!(!rig.answers(Side::Gateway, Duration::from_secs(2)), "nobody is there");
    hosts.point_to("10.9.0.1");
    assert!(rig.answers(Side::Gateway, FOUND_AGAIN), "the peer is not found: {:?}", rig.believed());
    assert!(rig.is_believed_at("10.9.0.1"));
    rig.tcp_both_ways(Family::V4);
    rig.stop();
}

#[test]
fn what_is_set_over_the_control_socket_holds_against_a_name() {
    const NOWHERE: &str = "10.9.0.78";
    let Some((rig, _hosts)) = named(ELSEWHERE) else { return };
    assert!(wait_until(HANDSHAKE, || rig.is_believed_at(ELSEWHERE)), "{:?}", rig.believed());
    let (tunnel, peer) = (rig.tunnel(), &rig.far_end().keys.peer.public);
    let port = tunnel.endpoint(Side::Peer).port();
    let set = format!("wg set {} peer {peer} endpoint {NOWHERE}:{port}", tunnel.name);
    rig.lab.gateway.exec(&set).expect("an endpoint");
    assert!(!wait_until(FOUND_AGAIN, || !rig.is_believed_at(NOWHERE)), "{:?}", rig.believed());
    rig.stop();
}

/// Minutes each: only `cargo xtask test --slow` runs what is in a module of this name.
mod slow {
    use super::*;

    #[test]
    fn a_peer_that_comes_back_elsewhere_is_found_by_its_name() {
        let Some((rig, hosts)) = named("10.9.0.1") else { return };
        assert!(rig.answers(Side::Gateway, FOUND_AGAIN), "{:?}", rig.believed());
        rig.restart_peer_elsewhere();
        hosts.point_to(ELSEWHERE);
        // While there is a session, the peer could be where no name leads.
        let margin = Duration::from_secs(5);
        assert!(!rig.answers(Side::Gateway, SILENCE + ATTEMPT - margin), "{:?}", rig.believed());
        assert!(rig.is_believed_at("10.9.0.1"), "{:?}", rig.believed());
        assert!(rig.answers(Side::Gateway, margin + FOUND_AGAIN), "{:?}", rig.believed());
        assert!(rig.is_believed_at(ELSEWHERE));
        rig.tcp_both_ways(Family::V4);
        rig.stop();
    }

    #[test]
    fn a_peer_that_does_not_answer_is_given_up_and_what_waited_is_dropped() {
        let Some(rig) = start(Tunnel::wireguard(Program::WireguardGo).initiator(Side::Gateway)) else { return };
        let stranger = KeyPair::generate(&rig.lab.directory().join("stranger")).expect("a key");
        rig.far_device()
            .set(&format!("private-key {}", stranger.private_file.display()))
            .expect("a key that we do not know");
        let given_up =
            || rig.metrics().metric("netfwd_wg_handshakes_total", &[("role", "initiator"), ("result", "gave_up")]);
        let dropped = [("direction", "egress"), ("reason", "no_session")];
        let initiations = |capture: &Capture| {
            let sent = capture.tunnelled(rig.tunnel().outer_address(Side::Gateway), rig.endpoint().port()).into_iter();
            sent.filter(|packet| packet.transport[8..].starts_with(&[1, 0, 0, 0])).count()
        };
        let (capture, began) = (Capture::start(&rig.lab.peer), Instant::now());
        let sender = bound(&rig.lab.server, rig.lab.server_address(Family::V4), 0);
        for _ in 0..10 {
            sender.send_to(b"anybody?", (rig.lab.peer_address(Family::V4), 7)).expect("a datagram");
        }
        assert!(wait_until(ATTEMPT + Duration::from_secs(5), || given_up() == 1.0), "not given up");
        assert!(began.elapsed() >= ATTEMPT - Duration::from_secs(1), "given up after {:?}", began.elapsed());
        rig.expect_count("netfwd_drops_total", &dropped, 10.0);
        // One at first, and one after every five seconds and up to a third.
        let tries = initiations(&capture);
        assert!((17..=19).contains(&tries), "{tries} initiations");
        std::thread::sleep(Duration::from_secs(12));
        assert_eq!(initiations(&capture), 0, "nobody has anything to say");
        // The next packet begins again.
        let own = &rig.far_end().keys.peer.private_file;
        rig.far_device().set(&format!("private-key {}", own.display())).expect("its own key");
        assert!(rig.answers(Side::Gateway, HANDSHAKE));
        assert_eq!(given_up(), 1.0);
        rig.stop();
    }
}
