//! Ordinary traffic at the edges of what the fast path is built for.

mod e2e;

use std::time::Duration;

use e2e::packets::{bound, received};
use e2e::{FAMILIES, Rig, equal, scaled, tcp_intact};
use xtask::lab::{Config, Family, Options, Tunnel};
use xtask::load::latency;
use xtask::load::udp::Sizes;

#[test]
fn the_gateways_own_tcp_arrives_intact_both_ways() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    let (peer, gateway) = (&rig.lab.peer, &rig.lab.gateway);
    for family in FAMILIES {
        tcp_intact(peer, gateway, rig.lab.gateway_address(family), 4, scaled(4_000_000));
        tcp_intact(gateway, peer, rig.lab.peer_address(family), 4, scaled(4_000_000));
        rig.udp_faithful(gateway, peer, rig.lab.peer_address(family), equal(), scaled(3_000));
    }
    rig.assert_nothing_lost();
    rig.stop();
}

/// Fragments have no ports, and neither may they be merged nor overtaken.
#[test]
fn inner_fragments_arrive_in_order_among_whole_packets() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    let sizes = Sizes::Mixed(vec![8000, 100, 4000, 1350, 1350, 1350, 5000, 24]);
    for family in FAMILIES {
        rig.udp_faithful(&rig.lab.peer, &rig.lab.gateway, rig.lab.gateway_address(family), sizes.clone(), 1_600);
        rig.udp_faithful(&rig.lab.gateway, &rig.lab.peer, rig.lab.peer_address(family), sizes.clone(), 1_600);
    }
    rig.assert_nothing_lost();
    rig.stop();
}

/// A batch that waited for company would show here.
#[test]
fn a_lonely_packet_does_not_wait() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    for family in FAMILIES {
        let target = rig.lab.server_address(family);
        // Where others take the CPU away all packets wait, but not in every run.
        let quick = |run: usize| {
            let report = latency::run(&rig.lab.peer, &rig.lab.server, target, Duration::from_secs(1));
            let report = report.expect("answers");
            eprintln!("run {run}: {report:?}");
            report.count >= 30 && report.p50 < Duration::from_millis(20)
        };
        assert!((0..5).any(quick), "packets inside {family:?} wait in every run");
    }
    rig.assert_nothing_lost();
    rig.stop();
}

/// Full-sized ones do not fit an AF_XDP buffer; the short ones of the same flow must not overtake them.
fn jumbo_frames_arrive_in_order_among_short_ones(rig: Rig) {
    let ((), growth) = rig.during(|| {
        rig.tcp_in(Family::V4, 2, scaled(10_000_000));
        rig.tcp_out(Family::V4, 2, scaled(10_000_000));
        for family in FAMILIES {
            let (peer, gateway) = (&rig.lab.peer, &rig.lab.gateway);
            let sizes = Sizes::Mixed(vec![8800, 100, 8800]);
            rig.udp_faithful(peer, gateway, rig.lab.gateway_address(family), sizes.clone(), scaled(1_000));
            rig.udp_faithful(gateway, peer, rig.lab.peer_address(family), sizes, scaled(1_000));
        }
    });
    assert_eq!(growth.redirected(), 0.0);
    rig.assert_nothing_lost();
    rig.stop();
}

#[test]
fn jumbo_frames_to_the_underlays_address_arrive_in_order_among_short_ones() {
    let Some(rig) = Rig::start(Options { underlay_mtu: 9000, ..Options::default() }) else { return };
    jumbo_frames_arrive_in_order_among_short_ones(rig);
}

/// Moves the gateway's end of the tunnel to an address on its loopback device, as routers have it that are reached over
/// several interfaces.
fn on_loopback(options: Options, change: impl FnOnce(Config) -> Config) -> Option<Rig> {
    Rig::from_text(options, |lab| {
        for (end, line) in [
            (&lab.gateway, "address add 10.99.0.2/32 dev lo"),
            (&lab.peer, "route add 10.99.0.2/32 via 10.9.0.2"),
            (&lab.peer, "link set vx7 type vxlan id 7 remote 10.99.0.2"),
        ] {
            end.ip(line).expect(line);
        }
        change(Config::of(lab)).text().replace("local = \"10.9.0.2\"", "local = \"10.99.0.2\"")
    })
}

#[test]
fn jumbo_frames_to_a_loopback_address_arrive_in_order_among_short_ones() {
    let Some(rig) = on_loopback(Options { underlay_mtu: 9000, ..Options::default() }, |config| config) else { return };
    jumbo_frames_arrive_in_order_among_short_ones(rig);
}

/// A fast underlay for a tunnel of ordinary packets.
#[test]
fn a_jumbo_underlay_makes_no_ordinary_tunnel_slower() {
    let tunnel = Tunnel::vxlan("vx7", 7).mtu(1500);
    let options = Options { underlay_mtu: 9000, ..Options::with_tunnels([tunnel]) };
    let Some(rig) = Rig::start(options) else { return };
    let ((), growth) = rig.during(|| rig.a_little_of_everything());
    growth.assert_redirected(8_000_000);
    rig.assert_nothing_lost();
    rig.stop();
}

#[test]
fn a_small_underlay_mtu_is_enough() {
    let Some(rig) = Rig::start(Options { underlay_mtu: 1350, ..Options::default() }) else { return };
    for family in FAMILIES {
        rig.tcp_in(family, 2, scaled(4_000_000));
        rig.tcp_out(family, 2, scaled(4_000_000));
        rig.udp_in(family, Sizes::Equal(1200), scaled(2_000));
        rig.udp_out(family, Sizes::Equal(1200), scaled(2_000));
    }
    rig.assert_nothing_lost();
    rig.stop();
}

#[test]
fn everything_passes_while_polling_busily() {
    let Some(rig) = Rig::configured(Options::default(), |config| config.underlay_line("busy_poll = true")) else {
        return;
    };
    rig.a_little_of_everything();
    rig.assert_nothing_lost();
    rig.stop();
}

/// A sender on the same machine leaves checksums to a device that never computes them.
fn with_unfinished_checksums(accept: bool) -> Option<Rig> {
    let rig =
        Rig::configured(Options::default(), |config| config.underlay_line(&format!("accept_partial = {accept}")))?;
    rig.lab.peer.exec("ethtool -K under0 tx on").expect("checksums left to the device");
    Some(rig)
}

#[test]
fn unfinished_checksums_are_finished_when_that_is_allowed() {
    let Some(rig) = with_unfinished_checksums(true) else { return };
    rig.a_little_of_everything();
    rig.assert_nothing_lost();
    rig.stop();
}

#[test]
fn unfinished_checksums_are_not_let_through_otherwise() {
    let Some(rig) = with_unfinished_checksums(false) else { return };
    let gateway = rig.lab.gateway_address(Family::V4);
    let (sender, receiver) =
        (bound(&rig.lab.peer, rig.lab.peer_address(Family::V4), 0), bound(&rig.lab.gateway, gateway, 5001));
    for _ in 0..10 {
        sender.send_to(b"unfinished", (gateway, 5001)).expect("a datagram");
    }
    assert_eq!(received(&receiver), Vec::<Vec<u8>>::new());
    rig.expect_count("netfwd_drops_total", &[("reason", "partial_checksum")], 10.0);
}

/// What comes by the kernel's sockets is vetted as its underlay says, wherever the address is.
#[test]
fn unfinished_checksums_to_a_loopback_address_are_finished_too() {
    for xdp in ["auto", "off"] {
        let change = |config: Config| config.xdp(xdp).underlay_line("accept_partial = true");
        let Some(rig) = on_loopback(Options::default(), change) else { return };
        rig.lab.peer.exec("ethtool -K under0 tx on").expect("checksums left to the device");
        rig.a_little_of_everything();
        rig.assert_nothing_lost();
        rig.stop();
    }
}

/// RFC 6935: a tunnel may, when both ends say so.
#[test]
fn a_zero_outer_checksum_over_ipv6_needs_permission() {
    for allowed in [true, false] {
        let line = format!("udp6_zero_checksum_rx = {allowed}");
        let mut tunnel = Tunnel::vxlan("vx7", 7).over(Family::V6).config_line(&line);
        tunnel.device_options = "udp6zerocsumtx".to_owned();
        for xdp in ["auto", "off"] {
            let options = Options::with_tunnels([tunnel.clone()]);
            let Some(rig) = Rig::configured(options, |config| config.xdp(xdp)) else { return };
            if allowed {
                rig.tcp_in(Family::V4, 2, scaled(4_000_000));
                rig.udp_in(Family::V6, equal(), scaled(2_000));
                rig.assert_nothing_lost();
            } else {
                let ping = rig.lab.peer.exec("ping -c 2 -i 0.2 -W 1 10.10.0.2");
                assert!(ping.is_err(), "xdp {xdp}: {ping:?}");
                // Without XDP it is the kernel that refuses, before the socket.
                let labels = [("reason", "outer_udp_zero_checksum")];
                let dropped = rig.metrics().metric("netfwd_drops_total", &labels);
                assert_eq!(dropped > 0.0, xdp == "auto", "{dropped} drops with xdp {xdp}");
            }
        }
    }
}
