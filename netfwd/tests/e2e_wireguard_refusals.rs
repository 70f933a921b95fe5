//! What a WireGuard endpoint has to refuse: strangers, forgeries, repetitions, addresses that are not the sender's.
//!
//! Each is counted once under its own reason, and none disturbs the session that stands.

mod e2e;

use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use e2e::packets::{Capture, Forger, bound};
use e2e::wireguard::{HANDSHAKE, start};
use e2e::{FAMILIES, Rig};
use xtask::lab::{Family, KeyPair, Options, Program, Side, Tunnel, generate_preshared};

const PORT: u16 = 5001;
/// Longer than a handshake takes, shorter than one is tried again.
const NO_ANSWER: Duration = Duration::from_secs(3);

/// A session with wireguard-go.
fn session() -> Option<Rig> {
    let rig = start(Tunnel::wireguard(Program::WireguardGo).initiator(Side::Peer))?;
    rig.greet();
    Some(rig)
}

impl Rig {
    /// Datagrams from the peer to the server, and how they were sealed.
    fn sealed_datagrams(&self, count: u8) -> Vec<Vec<u8>> {
        let capture = Capture::start(&self.lab.peer);
        let sender = bound(&self.lab.peer, self.lab.peer_address(Family::V4), 0);
        let delivered = self.delivered(PORT, usize::from(count), |target| {
            for index in 0..count {
                sender.send_to(&[index; 64], target).expect("a datagram");
            }
        });
        assert_eq!(delivered.len(), usize::from(count));
        let sealed = self.sealed(&capture);
        assert_eq!(sealed.len(), usize::from(count));
        sealed
    }

    /// Nothing of this comes out, each is counted under that reason, and the session stands as before.
    fn refuses(&self, datagrams: Vec<Vec<u8>>, reason: &str) {
        self.refuses_all(datagrams.len(), reason, || self.inject(datagrams));
    }

    /// The same where they come from there.
    fn refuses_from(&self, source: SocketAddr, datagrams: &[Vec<u8>], reason: &str) {
        let (forger, (from, to)) = (Forger::start(&self.lab.peer), (v4(source), v4(self.endpoint())));
        self.refuses_all(datagrams.len(), reason, || datagrams.iter().for_each(|sealed| forger.send(from, to, sealed)));
    }

    fn refuses_all(&self, count: usize, reason: &str, send: impl FnOnce()) {
        let (before, endpoint) = (self.drops_for(reason), self.peer_endpoint());
        let delivered = self.delivered(PORT, 0, |_| send());
        assert_eq!(delivered, Vec::<Vec<u8>>::new(), "{reason}");
        let labels = [("direction", "ingress"), ("reason", reason)];
        self.expect_count("netfwd_drops_total", &labels, before + count as f64);
        assert_eq!(self.peer_endpoint(), endpoint, "a forgery has moved the endpoint");
        self.sealed_datagrams(5);
    }

    fn peer_endpoint(&self) -> SocketAddr {
        self.state().peer().expect("one peer").endpoint.expect("it has spoken")
    }

    fn drops_for(&self, reason: &str) -> f64 {
        self.metrics().metric("netfwd_drops_total", &[("direction", "ingress"), ("reason", reason)])
    }
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    let SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    address
}

#[test]
fn what_was_received_is_not_received_again() {
    let Some(rig) = session() else { return };
    let sealed = rig.sealed_datagrams(40);
    rig.refuses(sealed.clone(), "replay");
    rig.refuses(sealed.into_iter().rev().collect(), "replay");
    rig.stop();
}

/// Only its counter says that a datagram from the right place is an old one; and the place may be one that the peer has left.
#[test]
fn what_is_repeated_from_where_it_came_from_is_refused_and_calls_nobody_back() {
    let Some(rig) = session() else { return };
    let (sealed, source) = (rig.sealed_datagrams(20), rig.peer_endpoint());
    rig.refuses_from(source, &sealed, "replay");
    rig.far_device().set("listen-port 51999").expect("another port");
    rig.sealed_datagrams(1);
    assert_eq!(rig.peer_endpoint(), SocketAddr::new(source.ip(), 51999));
    rig.refuses_from(source, &sealed, "replay");
    rig.stop();
}

#[test]
fn a_flipped_bit_anywhere_behind_the_header_is_a_forgery() {
    let Some(rig) = session() else { return };
    let sealed = rig.sealed_datagrams(1).remove(0);
    // The counter is in clear; one that was not used yet gets a flipped packet past the replay window.
    let fresh = |at: usize, bit: u8, ahead: u8| {
        let mut forged = sealed.clone();
        forged[8..16].copy_from_slice(&u64::from(200 + u16::from(ahead)).to_le_bytes());
        forged[at] ^= 1 << bit;
        forged
    };
    let places = [16, 17, 40, sealed.len() - 17, sealed.len() - 16, sealed.len() - 1];
    let forged = places.into_iter().flat_map(|at| [0, 7].map(|bit| (at, bit))).zip(0..);
    rig.refuses(forged.map(|((at, bit), ahead)| fresh(at, bit, ahead)).collect(), "auth");
    // A counter of the far future must not move the window: what follows would be too old.
    let mut future = sealed.clone();
    future[8..16].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    rig.refuses(vec![future], "auth");
    rig.stop();
}

#[test]
fn a_datagram_of_no_session_is_refused() {
    let Some(rig) = session() else { return };
    let mut sealed = rig.sealed_datagrams(3);
    for datagram in &mut sealed {
        datagram[4..8].iter_mut().for_each(|byte| *byte = !*byte);
    }
    rig.refuses(sealed, "no_session");
    rig.stop();
}

#[test]
fn an_inner_source_that_is_not_the_peers_is_refused() {
    let Some(rig) = session() else { return };
    let device = rig.far_device().name();
    for (prefix, source) in [("10.66.0.1/32", "10.66.0.1"), ("fd66::1/128", "fd66::1")] {
        rig.lab.peer.ip(&format!("address add {prefix} dev {device}")).expect("another address");
        let sender = bound(&rig.lab.peer, source.parse().expect("an address"), 0);
        let family = if source.contains(':') { Family::V6 } else { Family::V4 };
        let capture = Capture::start(&rig.lab.server);
        let before = rig.drops_for("inner_source_denied");
        for _ in 0..10 {
            sender.send_to(b"not mine", (rig.lab.server_address(family), PORT)).expect("a datagram");
        }
        let labels = [("direction", "ingress"), ("reason", "inner_source_denied")];
        rig.expect_count("netfwd_drops_total", &labels, before + 10.0);
        let strangers = capture.packets().into_iter().filter(|packet| packet.source.to_string() == source).count();
        assert_eq!(strangers, 0);
    }
    rig.sealed_datagrams(5);
    rig.stop();
}

#[test]
fn a_peer_with_another_private_key_is_a_stranger() {
    let Some(rig) = start(Tunnel::wireguard(Program::WireguardGo).initiator(Side::Peer)) else { return };
    let stranger = KeyPair::generate(&rig.lab.directory().join("stranger")).expect("a key");
    rig.far_device().set(&format!("private-key {}", stranger.private_file.display())).expect("another key");
    assert!(!rig.answers(Side::Peer, NO_ANSWER));
    assert_eq!(rig.state().peer().expect("one peer").latest_handshake, 0);
    assert!(rig.drops_for("no_peer") > 0.0, "{:?}", rig.drops());
    let own = &rig.far_end().keys.peer.private_file;
    rig.far_device().set(&format!("private-key {}", own.display())).expect("its own key");
    assert!(rig.answers(Side::Peer, HANDSHAKE), "its own key opens no session");
    rig.stop();
}

#[test]
fn another_preshared_key_opens_no_session() {
    for initiator in [Side::Peer, Side::Gateway] {
        let tunnel = Tunnel::wireguard(Program::WireguardGo).preshared().initiator(initiator);
        let Some(rig) = start(tunnel) else { return };
        let other = rig.lab.directory().join("other");
        generate_preshared(&other).expect("a key");
        let public = &rig.far_end().keys.gateway.public;
        rig.far_device().set(&format!("peer {public} preshared-key {}", other.display())).expect("another key");
        assert!(!rig.answers(initiator, NO_ANSWER), "{initiator:?} begins");
        let own = rig.far_end().keys.preshared.as_ref().expect("a preshared key");
        rig.far_device().set(&format!("peer {public} preshared-key {}", own.display())).expect("its own key");
        assert!(rig.answers(initiator, HANDSHAKE), "the right key opens no session, {initiator:?} begins");
        rig.stop();
    }
}

/// What is no WireGuard message by its size or its first bytes is nobody's, and never worth an answer.
#[test]
fn nonsense_is_neither_delivered_nor_answered() {
    let Some(rig) = session() else { return };
    let capture = Capture::start(&rig.lab.peer);
    let lengths = [0, 1, 3, 4, 31, 33, 47, 63, 65, 91, 93, 147, 149, 1400];
    let message = |kind: u8, length: usize| {
        let mut bytes = vec![0; length];
        bytes.iter_mut().take(1).for_each(|first| *first = kind);
        bytes
    };
    let all = (0..=5).flat_map(|kind| lengths.map(|length| message(kind, length)));
    let delivered = rig.delivered(PORT, 0, |_| rig.inject(all));
    assert_eq!(delivered, Vec::<Vec<u8>>::new());
    let answers = capture.packets().into_iter().filter(|packet| packet.source_port == rig.endpoint().port());
    let answers = answers.filter(|packet| packet.destination_port != rig.endpoint().port()).count();
    assert_eq!(answers, 0);
    rig.sealed_datagrams(5);
    rig.stop();
}

/// A wire that flips a bit in every five hundredth datagram, after all checksums.
#[test]
fn no_flipped_bit_reaches_an_application() {
    let tunnel = Tunnel::wireguard(Program::WireguardGo);
    let Some(rig) = Rig::start(Options { flip_every: Some(500), ..Options::with_tunnels([tunnel]) }) else { return };
    rig.greet();
    for family in FAMILIES {
        rig.tcp_in(family, 2, 4_000_000);
    }
    assert!(rig.lab.wire.as_ref().expect("a wire").flips() > 5);
    rig.stop();
}
