//! The machine changes under a running gateway: a smaller MTU, an interface down and up. Afterwards all is as before.

mod e2e;

use e2e::packets::{bound, received};
use e2e::{FAMILIES, Rig, equal, mixed};
use xtask::lab::{Family, Options, Tunnel};

/// What no longer fits is fragmented by the kernel, superframes included.
fn a_shrunken_underlay_still_carries(tunnel: Tunnel) {
    let Some(rig) = Rig::start(Options::with_tunnels([tunnel])) else { return };
    for end in [&rig.lab.gateway, &rig.lab.peer] {
        end.ip("link set under0 mtu 1400").expect("a smaller MTU");
    }
    for family in FAMILIES {
        rig.tcp_out(family, 2, 4_000_000);
        rig.udp_out(family, equal(), 2_000);
        rig.udp_out(family, mixed(), 2_000);
    }
    assert_eq!(rig.drops(), Vec::<String>::new());
    rig.stop();
}

#[test]
fn a_shrunken_ipv4_underlay_still_carries_what_the_gateway_sends() {
    a_shrunken_underlay_still_carries(Tunnel::vxlan("vx7", 7));
}

#[test]
fn a_shrunken_ipv6_underlay_still_carries_what_the_gateway_sends() {
    a_shrunken_underlay_still_carries(Tunnel::vxlan("vx7", 7).over(Family::V6));
}

#[test]
fn with_outer_checksums_too() {
    a_shrunken_underlay_still_carries(Tunnel::vxlan("vx7", 7).config_line("udp_checksum = true"));
}

#[test]
fn the_underlay_may_go_down_and_come_back() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    rig.tcp_in(Family::V4, 1, 1_000_000);
    for change in ["down", "up"] {
        rig.lab.gateway.ip(&format!("link set under0 {change}")).expect(change);
    }
    let ((), growth) = rig.during(|| {
        rig.tcp_in(Family::V4, 2, 4_000_000);
        rig.tcp_out(Family::V4, 2, 4_000_000);
        rig.udp_in(Family::V4, equal(), 2_000);
    });
    assert!(growth.redirected() > 8_000_000.0 / 1450.0, "{} packets came through AF_XDP", growth.redirected());
    rig.stop();
}

#[test]
fn what_a_device_that_is_down_refuses_is_counted_and_later_frames_arrive() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    let (peer, gateway) = (&rig.lab.peer, &rig.lab.gateway);
    let target = rig.lab.gateway_address(Family::V4);
    let (sender, receiver) = (bound(peer, rig.lab.peer_address(Family::V4), 0), bound(gateway, target, 5001));
    let send = || (0..10).for_each(|_| assert!(sender.send_to(b"anybody there?", (target, 5001)).is_ok()));
    send();
    assert_eq!(received(&receiver).len(), 10);
    // The peer's own neighbour and group messages would be refused too.
    peer.ip("link set vx7 arp off").expect("no ARP");
    peer.ip(&format!("neighbour replace {target} lladdr ff:ff:ff:ff:ff:ff dev vx7 nud permanent"))
        .expect("a neighbour");
    gateway.ip("link set vx7 down").expect("down");
    send();
    assert_eq!(received(&receiver).len(), 0);
    let refused = rig.metrics().metric("netfwd_drops_total", &[("stage", "tun"), ("reason", "tun_write")]);
    assert!(refused >= 10.0, "{refused} frames refused");
    let errors = rig.metrics().metric("netfwd_tun_errors_total", &[("tunnel", "vx7"), ("errno", "EIO")]);
    // A refused superframe is an error too, before each of its packets is tried alone.
    assert!(errors >= refused, "{errors} errors, {refused} frames refused");
    gateway.ip("link set vx7 up").expect("up");
    send();
    assert_eq!(received(&receiver).len(), 10);
    rig.stop();
}
