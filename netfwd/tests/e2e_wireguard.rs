//! netfwd and WireGuard by others: whoever begins, whatever is outside and inside, every byte compared.

mod e2e;

use e2e::wireguard::{HANDSHAKE, OTHERS, everything_arrives, start};
use e2e::{NETFWD, Rig};
use xtask::lab::{Family, Options, Program, Side, Tunnel};

#[test]
fn others_begin_over_ipv4() {
    OTHERS.into_iter().for_each(|other| everything_arrives(Tunnel::wireguard(other), Side::Peer));
}

#[test]
fn others_begin_over_ipv6() {
    OTHERS.into_iter().for_each(|other| everything_arrives(Tunnel::wireguard(other).over(Family::V6), Side::Peer));
}

#[test]
fn netfwd_begins_over_ipv4() {
    OTHERS.into_iter().for_each(|other| everything_arrives(Tunnel::wireguard(other), Side::Gateway));
}

#[test]
fn netfwd_begins_over_ipv6() {
    OTHERS.into_iter().for_each(|other| everything_arrives(Tunnel::wireguard(other).over(Family::V6), Side::Gateway));
}

#[test]
fn a_preshared_key_on_both_sides_changes_nothing_else() {
    for initiator in [Side::Peer, Side::Gateway] {
        OTHERS.into_iter().for_each(|other| everything_arrives(Tunnel::wireguard(other).preshared(), initiator));
    }
}

#[test]
fn netfwd_talks_to_netfwd() {
    for (initiator, family) in [(Side::Peer, Family::V4), (Side::Gateway, Family::V6)] {
        everything_arrives(Tunnel::wireguard(Program::Netfwd(NETFWD)).over(family).preshared(), initiator);
    }
}

#[test]
fn everything_arrives_through_ordinary_sockets() {
    let options = Options::with_tunnels([Tunnel::wireguard(Program::WireguardGo)]);
    let Some(rig) = Rig::configured(options, |config| config.xdp("off")) else { return };
    rig.greet();
    rig.everything_arrives();
    rig.assert_no_drops();
    rig.stop();
}

#[test]
fn bulk_tcp_comes_through_af_xdp_and_is_coalesced() {
    let Some(rig) = start(Tunnel::wireguard(Program::WireguardGo)) else { return };
    rig.greet();
    let ((), growth) = rig.during(|| rig.tcp_in(Family::V4, 1, 20_000_000));
    assert!(growth.redirected() >= 20_000_000.0 / 1380.0, "{} packets came through AF_XDP", growth.redirected());
    assert!(growth.coalescing("tcp") >= 3.0, "{} packets a frame", growth.coalescing("tcp"));
    let ((), growth) = rig.during(|| rig.tcp_out(Family::V4, 1, 20_000_000));
    let cut = growth.of("netfwd_tso_output_packets_total", &[("proto", "tcp")]);
    let read = growth.of("netfwd_tun_read_frames_total", &[]);
    assert!(cut / read >= 3.0, "{cut} segments from {read} frames");
    rig.assert_no_drops();
    rig.stop();
}

/// Whoever speaks first pays for the handshake with time, not with packets.
#[test]
fn the_first_packets_of_an_idle_peer_wait_for_the_handshake() {
    for other in OTHERS {
        let Some(rig) = start(Tunnel::wireguard(other).initiator(Side::Gateway)) else { return };
        let address = rig.lab.peer_address(Family::V4);
        let receiver = e2e::packets::bound(&rig.lab.peer, address, 5001);
        let sender = e2e::packets::bound(&rig.lab.server, rig.lab.server_address(Family::V4), 0);
        let sent: Vec<Vec<u8>> = (0..20_u8).map(|index| vec![index; 100]).collect();
        for datagram in &sent {
            sender.send_to(datagram, (address, 5001)).expect("a datagram");
        }
        assert!(rig.answers(Side::Gateway, HANDSHAKE), "no session within {HANDSHAKE:?}");
        assert_eq!(e2e::packets::awaited(&receiver, sent.len()), sent, "{}", other.name());
        rig.assert_no_drops();
        rig.stop();
    }
}
