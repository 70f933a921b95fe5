//! The machine changes under a running gateway: a smaller MTU, an interface down and up, or deleted and made again.
//! Afterwards all is as before.

mod e2e;

use std::time::Duration;

use e2e::packets::{awaited, bound, received};
use e2e::wireguard::HANDSHAKE;
use e2e::{FAMILIES, PATIENCE, Rig, equal, mixed, scaled};
use xtask::lab::{Config, Family, Options, Program, Side, Tunnel};
use xtask::machine::{slowness, wait_until};

/// The control thread looks once a second, at an interface that refuses every 16 s; the rest is for a busy machine.
const LOOKS: Duration = Duration::from_secs(30);
/// Bytes that take longer than it takes to see that they are on their way.
const MUCH: u64 = 40_000_000;

#[test]
fn a_renamed_device_is_still_its_tunnel_s() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    let gateway = &rig.lab.gateway;
    for line in ["link set vx7 down", "link set vx7 name blue", "link set blue up"] {
        gateway.ip(line).expect(line);
    }
    gateway.exec(&format!("ping -c 1 -W {} 10.10.0.1", 10.0 * slowness())).expect("an answer");
    assert_eq!(rig.metrics().metric("netfwd_tunnel_up", &[("tunnel", "vx7")]), 1.0);
}

/// A default route into a tunnel whose remote is behind that route: everybody does it once.
fn a_route_to_the_remote_through_the_tunnel_makes_no_storm(rig: Rig, route: &str) {
    let gateway = &rig.lab.gateway;
    let ping = |size, patience: f64| {
        gateway.exec(&format!("ping -c 1 -W {patience} -s {size} {}", rig.lab.peer_address(Family::V4)))
    };
    ping(56, 10.0 * slowness()).expect("an answer");
    gateway.ip(&format!("route add {route}")).expect("a route");
    let ((), growth) = rig.during(|| assert!(ping(1400, 1.0).is_err()));
    let nested = growth.of("netfwd_drops_total", &[("direction", "egress"), ("reason", "nested")]);
    let frames = growth.of("netfwd_tun_read_frames_total", &[]);
    // Wrapped, the request comes back; if it is long, in fragments, of which those behind the first come back once more.
    assert!(nested >= 1.0 && frames < 100.0, "{nested} drops, {frames} frames");
    gateway.ip(&format!("route delete {route}")).expect("no route");
    ping(56, 10.0 * slowness()).expect("an answer");
}

#[test]
fn a_route_to_the_remote_through_vxlan_makes_no_storm() {
    for tunnel in [Tunnel::vxlan("vx7", 7), Tunnel::vxlan_gpe("vx7", 7)] {
        let Some(rig) = Rig::start(Options::with_tunnels([tunnel])) else { return };
        a_route_to_the_remote_through_the_tunnel_makes_no_storm(rig, "10.9.0.1/32 via 10.10.0.1 dev vx7");
    }
}

#[test]
fn a_route_to_the_endpoint_through_wireguard_makes_no_storm() {
    let tunnel = Tunnel::wireguard(Program::WireguardGo).initiator(Side::Gateway);
    let everything = |text: String| text.replace("allowed_ips = [", "allowed_ips = [\"10.9.0.1/32\", ");
    let rig = Rig::from_text(Options::with_tunnels([tunnel]), |lab| everything(Config::of(lab).text()));
    let Some(rig) = rig else { return };
    assert!(rig.answers(Side::Gateway, HANDSHAKE), "no session within {HANDSHAKE:?}");
    let route = format!("10.9.0.1/32 dev {}", rig.tunnel().name);
    a_route_to_the_remote_through_the_tunnel_makes_no_storm(rig, &route);
}

/// What no longer fits is fragmented by the kernel, superframes included.
fn a_shrunken_underlay_still_carries(tunnel: Tunnel) {
    let Some(rig) = Rig::start(Options::with_tunnels([tunnel])) else { return };
    for end in [&rig.lab.gateway, &rig.lab.peer] {
        end.ip("link set under0 mtu 1400").expect("a smaller MTU");
    }
    for family in FAMILIES {
        rig.tcp_out(family, 2, scaled(4_000_000));
        rig.udp_out(family, equal(), scaled(2_000));
        rig.udp_out(family, mixed(), scaled(2_000));
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
    rig.tcp_in(Family::V4, 1, scaled(1_000_000));
    for change in ["down", "up"] {
        rig.lab.gateway.ip(&format!("link set under0 {change}")).expect(change);
    }
    let ((), growth) = rig.during(|| {
        rig.tcp_in(Family::V4, 2, scaled(4_000_000));
        rig.tcp_out(Family::V4, 2, scaled(4_000_000));
        rig.udp_in(Family::V4, equal(), scaled(2_000));
    });
    growth.assert_redirected(8_000_000);
    rig.stop();
}

#[test]
fn the_underlay_may_get_another_mac_address() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    rig.tcp_in(Family::V4, 1, scaled(1_000_000));
    let first = rig.metrics();
    for address in ["02:00:5e:10:00:01", "02:00:5e:10:00:02"] {
        rig.lab.gateway.ip(&format!("link set under0 address {address}")).expect("an address");
        rig.lab.peer.ip("neighbour flush dev under0").expect("forgotten");
        await_a_redirect(&rig);
        let ((), growth) = rig.during(|| {
            rig.tcp_in(Family::V4, 2, scaled(4_000_000));
            rig.tcp_out(Family::V4, 2, scaled(4_000_000));
            rig.udp_in(Family::V4, equal(), scaled(2_000));
        });
        growth.assert_redirected(8_000_000);
    }
    // Until XDP knows, the kernel's socket has what comes.
    let others = rig.metrics().growth(&first, "netfwd_xdp_passes_total", &[("reason", "other_station")]);
    assert!(others < 100.0, "{others} frames were taken for others'");
    rig.stop();
}

/// Waits until so many queues of the underlay are in that mode.
fn await_mode(rig: &Rig, mode: &str, queues: f64) {
    let in_mode = || rig.metrics().metric("netfwd_xsk_mode_info", &[("interface", "under0"), ("mode", mode)]);
    wait_until(LOOKS, || in_mode() == queues);
    assert_eq!(in_mode(), queues, "queues in mode {mode}");
}

/// Deletes the underlay amid TCP both ways, makes it again, and expects the same connections to end well.
fn an_underlay_is_lost_and_comes_back(options: Options) {
    let queues = f64::from(options.queues);
    let Some(rig) = Rig::start(options) else { return };
    std::thread::scope(|scope| {
        let inwards = scope.spawn(|| rig.tcp_in(Family::V4, 2, scaled(MUCH)));
        let outwards = scope.spawn(|| rig.tcp_out(Family::V6, 2, scaled(MUCH)));
        let moved = |name| rig.metrics().sum(name) > scaled(1_000) as f64;
        wait_until(LOOKS, || moved("netfwd_receive_packets_total") && moved("netfwd_transmit_packets_total"));
        rig.lab.delete_underlay().expect("deleted");
        await_mode(&rig, "off", queues);
        assert_eq!(rig.netfwd.get("/healthz").expect("healthy"), "ok\n");
        assert!(!inwards.is_finished() && !outwards.is_finished(), "nothing was under way at the loss");
        rig.lab.restore_underlay().expect("restored");
        await_mode(&rig, "copy", queues);
    });
    let ((), growth) = rig.during(|| rig.tcp_in(Family::V4, 4, scaled(4_000_000)));
    growth.assert_redirected(16_000_000);
    rig.tcp_out(Family::V4, 4, scaled(4_000_000));
    let said = |text| rig.netfwd.log().lines().filter(|line| line.contains(text)).count();
    assert_eq!((said("the interface is gone"), said("underlay under0: XDP native")), (1, 2), "{}", rig.netfwd.log());
    rig.stop();
}

#[test]
fn a_deleted_underlay_that_is_made_again_gets_xdp_and_its_sockets_back() {
    an_underlay_is_lost_and_comes_back(Options::default());
}

#[test]
fn so_do_all_its_queues() {
    an_underlay_is_lost_and_comes_back(Options { queues: 2, ..Options::default() });
}

#[test]
fn an_underlay_may_come_back_again_and_again() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    for _ in 0..3 {
        rig.lab.delete_underlay().expect("deleted");
        rig.lab.restore_underlay().expect("restored");
        // Between the two looks it may have been off or not.
        await_a_redirect(&rig);
    }
    rig.a_little_of_everything();
    rig.stop();
}

/// Sends until a packet comes through AF_XDP.
fn await_a_redirect(rig: &Rig) {
    let target = rig.lab.gateway_address(Family::V4);
    let ping = || rig.lab.peer.exec(&format!("ping -c 1 -W 1 {target}")).ok();
    wait_until(LOOKS, || rig.during(ping).1.redirected() > 0.0);
    let (_, growth) = rig.during(ping);
    assert!(growth.redirected() > 0.0, "the underlay is back, but nothing comes through AF_XDP");
}

/// It keeps its index and its XDP program, but its sockets are dead.
#[test]
fn an_underlay_that_visits_another_namespace_gets_its_sockets_back() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    let (gateway, server) = (&rig.lab.gateway, &rig.lab.server);
    gateway.ip(&format!("link set under0 netns {}", server.name())).expect("there");
    await_mode(&rig, "off", 1.0);
    server.ip(&format!("link set under0 netns {}", gateway.name())).expect("and back");
    for change in ["link set under0 up", "address add 10.9.0.2/24 dev under0"] {
        gateway.ip(change).expect(change);
    }
    await_mode(&rig, "copy", 1.0);
    await_a_redirect(&rig);
    rig.stop();
}

/// veth refuses XDP while its peer has more transmit queues than it has receive queues.
#[test]
fn an_underlay_that_comes_back_and_refuses_xdp_is_used_through_the_kernels_sockets_until_it_takes_it() {
    let Some(rig) = Rig::start(Options { queues: 2, ..Options::default() }) else { return };
    let receive_queues = |count| rig.lab.gateway.exec(&format!("ethtool -L under0 rx {count}")).expect("queues");
    rig.pause();
    rig.lab.delete_underlay().expect("deleted");
    rig.lab.restore_underlay().expect("restored");
    receive_queues(1);
    rig.resume();
    await_mode(&rig, "off", 2.0);
    rig.a_little_of_everything();
    let log = rig.netfwd.log();
    assert_eq!(log.lines().filter(|line| line.contains("the kernel's sockets have to do")).count(), 1, "{log}");
    receive_queues(2);
    await_mode(&rig, "copy", 2.0);
    let ((), growth) = rig.during(|| rig.a_little_of_everything());
    growth.assert_redirected(8_000_000);
    rig.stop();
}

/// A new interface has GRO on again, and generic XDP behind it would see packets that nobody sent.
#[test]
fn generic_xdp_does_not_come_back_behind_gro() {
    let started = Rig::from_text(Options::default(), |lab| {
        lab.gateway.exec("ethtool -K under0 gro off").expect("no GRO");
        Config::of(lab).xdp("generic").text()
    });
    let Some(rig) = started else { return };
    rig.lab.delete_underlay().expect("deleted");
    await_mode(&rig, "off", 1.0);
    rig.lab.restore_underlay().expect("restored");
    assert!(wait_until(LOOKS, || rig.netfwd.log().contains("ethtool -K under0 gro off")), "{}", rig.netfwd.log());
    await_mode(&rig, "off", 1.0);
    rig.a_little_of_everything();
    rig.lab.gateway.exec("ethtool -K under0 gro off").expect("no GRO");
    await_mode(&rig, "copy", 1.0);
    await_a_redirect(&rig);
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
    assert_eq!(awaited(&receiver, 10).len(), 10);
    // The peer's own neighbour and group messages would be refused too.
    peer.ip("link set vx7 arp off").expect("no ARP");
    peer.ip(&format!("neighbour replace {target} lladdr ff:ff:ff:ff:ff:ff dev vx7 nud permanent"))
        .expect("a neighbour");
    gateway.ip("link set vx7 down").expect("down");
    send();
    assert_eq!(received(&receiver).len(), 0);
    let refused = || rig.metrics().metric("netfwd_drops_total", &[("stage", "tun"), ("reason", "tun_write")]);
    wait_until(PATIENCE, || refused() >= 10.0);
    let refused = refused();
    assert!(refused >= 10.0, "{refused} frames refused");
    let errors = rig.metrics().metric("netfwd_tun_errors_total", &[("tunnel", "vx7"), ("errno", "EIO")]);
    // A refused superframe is an error too, before each of its packets is tried alone.
    assert!(errors >= refused, "{errors} errors, {refused} frames refused");
    gateway.ip("link set vx7 up").expect("up");
    send();
    assert_eq!(awaited(&receiver, 10).len(), 10);
    rig.stop();
}
