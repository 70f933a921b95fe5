//! The lab with the kernel on both ends: what it promises to tests of netfwd has to hold without netfwd.

use std::time::Duration;

use xtask::lab::{Family, Lab, Options, Tunnel, UNDERLAY, root_or_skip};
use xtask::load::{latency, tcp, udp};

const MIB: u64 = 1 << 20;

fn carries_everything(tunnel: Tunnel) {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::with(Options::with_tunnels([tunnel])).unwrap();
    let _gateway = lab.kernel_gateway().unwrap();
    for family in [Family::V4, Family::V6] {
        let inward =
            tcp::run(&lab.peer, &lab.server, lab.server_address(family), tcp::Load::of_bytes(2, 4 * MIB)).unwrap();
        assert!(inward.intact(), "{inward:?}");
        let outward =
            tcp::run(&lab.server, &lab.peer, lab.peer_address(family), tcp::Load::of_bytes(2, 4 * MIB)).unwrap();
        assert!(outward.intact(), "{outward:?}");
        let load = udp::Load::of_datagrams(udp::Sizes::Mixed(vec![100, 1200, 33]), 2000, 0.05);
        let mixed = udp::run(&lab.peer, &lab.server, lab.server_address(family), &load).unwrap();
        assert!(mixed.faithful() && mixed.lost() == 0, "{mixed:?}");
    }
}

#[test]
fn vxlan_over_ipv4_carries_everything() {
    carries_everything(Tunnel::vxlan("vx7", 7));
}

#[test]
fn vxlan_over_ipv6_carries_everything() {
    carries_everything(Tunnel::vxlan("vx7", 7).over(Family::V6));
}

#[test]
fn vxlan_gpe_over_ipv4_carries_everything() {
    carries_everything(Tunnel::vxlan_gpe("gpe7", 7));
}

#[test]
fn vxlan_gpe_over_ipv6_carries_everything() {
    carries_everything(Tunnel::vxlan_gpe("gpe7", 7).over(Family::V6));
}

/// Every packet that reaches the gateway fits the MTU and has its checksums finished, inside and out.
#[test]
fn the_peer_looks_like_a_wire() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::with(Options::with_tunnels([Tunnel::vxlan("vx7", 7).outer_checksum(true)])).unwrap();
    let _gateway = lab.kernel_gateway().unwrap();
    // The capture sits on the wire side of GRO only while GRO is off.
    lab.gateway.exec(&format!("ethtool -K {UNDERLAY} gro off")).unwrap();
    let log = lab.directory().join("tcpdump");
    let mut command = lab.gateway.command("tcpdump");
    command.args(["-ni", UNDERLAY, "-vv", "-l", "-c", "400", "--direction=in", "udp port 4789"]);
    let mut capture = lab.gateway.spawn(&mut command, &log).unwrap();
    assert!(xtask::machine::wait_until(Duration::from_secs(5), || capture.output().contains("listening on")));
    tcp::run(&lab.peer, &lab.server, lab.server_address(Family::V4), tcp::Load::of_bytes(1, 4 * MIB)).unwrap();
    let load = udp::Load::of_datagrams(udp::Sizes::Equal(1200), 400, 0.1);
    udp::run(&lab.peer, &lab.server, lab.server_address(Family::V4), &load).unwrap();
    capture.wait(Duration::from_secs(10)).unwrap();
    let text = capture.output();
    assert!(text.contains("udp sum ok") && text.contains("(correct)") && text.contains("length 1398"), "{text}");
    assert!(!text.contains("incorrect") && !text.contains("bad udp") && !text.contains("bad length"), "{text}");
    let longest =
        text.lines().filter_map(|line| line.split("proto UDP (17), length ").nth(1)?.split(')').next()?.parse().ok());
    assert_eq!(longest.max(), Some(1500), "{text}");
}

/// The kernel verifies too, so flipped bits cost packets and never reach a socket.
#[test]
fn a_bad_cable_flips_bits_that_checksums_notice() {
    if !root_or_skip() {
        return;
    }
    let options = Options { flip_every: Some(100), ..Options::default() };
    let lab = Lab::with(options).unwrap();
    let _gateway = lab.kernel_gateway().unwrap();
    let address = lab.server_address(Family::V4);
    let load = udp::Load::of_datagrams(udp::Sizes::Mixed(vec![1200, 1000]), 5000, 0.2);
    let report = udp::run(&lab.peer, &lab.server, address, &load).unwrap();
    let flips = lab.wire.as_ref().unwrap().flips();
    assert!(report.faithful() && flips == 50 && report.lost() == flips, "{flips} flips, {report:?}");
    let report = tcp::run(&lab.peer, &lab.server, address, tcp::Load::of_bytes(2, 4 * MIB)).unwrap();
    assert!(report.intact() && lab.wire.as_ref().unwrap().flips() > flips, "{report:?}");
}

#[test]
fn requests_are_answered_through_the_tunnel() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let _gateway = lab.kernel_gateway().unwrap();
    let address = lab.server_address(Family::V4);
    let report = latency::run(&lab.peer, &lab.server, address, Duration::from_millis(200)).unwrap();
    assert!(report.count > 10 && report.p50 <= report.p99, "{report:?}");
}

#[test]
fn nothing_of_a_lab_outlives_it() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let (name, directory) = (lab.gateway.name().to_owned(), lab.directory().to_owned());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _lab = lab;
        panic!("a failing test");
    }));
    assert!(panic.is_err());
    assert!(xtask::lab::Namespace::open(&name).is_err());
    assert!(!directory.exists());
}
