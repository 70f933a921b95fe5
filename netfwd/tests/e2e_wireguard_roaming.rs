//! Peers that move: the newest authenticated packet says where a peer is, in mid-stream too.

mod e2e;

use std::net::SocketAddr;

use e2e::wireguard::{HANDSHAKE, OTHERS, start};
use e2e::{NETFWD, Rig, tcp_intact};
use xtask::lab::{Family, Program, Side, Tunnel, UNDERLAY};
use xtask::machine::wait_until;

const MOVED4: &str = "10.9.0.77";
const MOVED6: &str = "fd09::77";
/// Long enough to move in the middle, at any speed.
const BYTES: u64 = 100_000_000;
/// Of which so many have to have arrived before.
const STARTED: u64 = 2_000_000;

impl Rig {
    /// The peer gets other addresses in the underlay instead of those it had.
    fn move_peer(&self) {
        let peer = &self.lab.peer;
        // Without this the second address of a network goes with the first.
        peer.sysctl("net.ipv4.conf.all.promote_secondaries", 1).expect("a parameter");
        peer.ip(&format!("address add {MOVED4}/24 dev {UNDERLAY}")).expect("another address");
        peer.ip(&format!("address add {MOVED6}/64 dev {UNDERLAY} nodad")).expect("another address");
        peer.ip(&format!("address delete 10.9.0.1/24 dev {UNDERLAY}")).expect("the address is gone");
        peer.ip(&format!("address delete fd09::1/64 dev {UNDERLAY}")).expect("the address is gone");
    }

    fn peer_is_at(&self, endpoint: SocketAddr) -> bool {
        wait_until(HANDSHAKE, || self.state().peer().is_ok_and(|peer| peer.endpoint == Some(endpoint)))
    }

    /// Moves something while the peer sends TCP to the server; every byte has to arrive.
    fn in_mid_stream(&self, what: impl FnOnce() + Send) {
        let (peer, server) = (&self.lab.peer, &self.lab.server);
        let received = || self.state().peer().expect("one peer").received;
        let before = received();
        std::thread::scope(|scope| {
            let stream = scope.spawn(|| tcp_intact(peer, server, self.lab.server_address(Family::V4), 1, BYTES));
            assert!(wait_until(HANDSHAKE, || received() > before + STARTED), "nothing arrives");
            what();
            assert!(!stream.is_finished(), "the stream was over before the move");
        });
    }
}

fn netfwd_follows(other: Program, family: Family) {
    let Some(rig) = start(Tunnel::wireguard(other).over(family).initiator(Side::Peer)) else { return };
    rig.greet();
    rig.in_mid_stream(|| {
        rig.move_peer();
        rig.far_device().set("listen-port 51999").expect("another port");
    });
    let address = if family == Family::V4 { MOVED4 } else { MOVED6 };
    let endpoint = SocketAddr::new(address.parse().expect("an address"), 51999);
    assert!(rig.peer_is_at(endpoint), "{}: {:?}", other.name(), rig.state());
    // And there it is found, too.
    rig.tcp_both_ways(Family::V6);
    rig.stop();
}

#[test]
fn netfwd_follows_a_peer_that_moves_in_mid_stream_over_ipv4() {
    OTHERS.into_iter().for_each(|other| netfwd_follows(other, Family::V4));
}

#[test]
fn netfwd_follows_a_peer_that_moves_in_mid_stream_over_ipv6() {
    netfwd_follows(Program::WireguardGo, Family::V6);
    netfwd_follows(Program::Netfwd(NETFWD), Family::V6);
}

#[test]
fn others_follow_netfwd_to_another_port() {
    for other in OTHERS {
        let Some(rig) = start(Tunnel::wireguard(other)) else { return };
        rig.greet();
        rig.lab.gateway.exec(&format!("wg set {} listen-port 51998", rig.tunnel().name)).expect("another port");
        assert!(rig.answers(Side::Gateway, HANDSHAKE), "nothing comes back to the new port");
        let moved = SocketAddr::new(rig.tunnel().outer_address(Side::Gateway), 51998);
        assert_eq!(rig.far_state().peer().expect("one peer").endpoint, Some(moved));
        rig.tcp_both_ways(Family::V4);
        assert_eq!(rig.state().listen_port, 51998);
        rig.stop();
    }
}
