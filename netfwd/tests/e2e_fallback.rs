//! Law 3: what the fast path does not take, and a gateway without a fast path, still carry everything.

mod e2e;
#[path = "support/packets.rs"]
mod made;

use std::net::SocketAddr;

use e2e::packets::{awaited, bound};
use e2e::{FAMILIES, Rig, scaled};
use made::{Inner, UDP, vxlan};
use xtask::lab::{Config, Family, Options, Side, Tunnel};
use xtask::load::udp::Sizes;

/// The daemon thinks that 1,500 bytes of underlay leave 1,450; the peer's device sends 3,000 all the same.
#[test]
fn inner_packets_of_3000_bytes_arrive_as_outer_fragments() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    let (peer, gateway) = (&rig.lab.peer, &rig.lab.gateway);
    let address = rig.lab.gateway_address(Family::V4);
    peer.ip("link set vx7 mtu 3000").expect("a larger MTU");
    // The VXLAN device tells the sender the underlay's path MTU, who would then cut the inner packets.
    peer.ip(&format!("route add {address} dev vx7 mtu lock 3000")).expect("a route without path MTU discovery");
    for sizes in [Sizes::Equal(2972), Sizes::Mixed(vec![2972, 2000, 2500, 2500])] {
        let sent = scaled(1000);
        let (runs, growth) = rig.during(|| rig.udp_faithful(peer, gateway, address, sizes.clone(), sent));
        // Three fragments or two, each of which XDP leaves to the kernel.
        let fragments = growth.of("netfwd_xdp_passes_total", &[("reason", "fragment")]);
        assert!(fragments >= 2.0 * sent as f64, "{fragments} fragments passed on for {sizes:?}");
        let packets = growth.of("netfwd_gro_input_packets_total", &[("proto", "udp")]);
        let most = runs * (sent + 5);
        assert!(
            (sent as f64..=most as f64).contains(&packets),
            "{packets} packets in {runs} runs, of which five close each"
        );
    }
    rig.assert_nothing_lost();
    rig.stop();
}

/// The kernel's VXLAN device never cuts over IPv6, where only sources fragment; a UDP socket is one.
#[test]
fn outer_ipv6_fragments_arrive() {
    let tunnel = Tunnel::vxlan("vx7", 7).over(Family::V6).config_line("mac = \"02:00:00:00:00:02\"");
    let Some(rig) = Rig::start(Options::with_tunnels([tunnel.clone()])) else { return };
    let underlay = bound(&rig.lab.peer, tunnel.outer_address(Side::Peer), 0);
    let target = SocketAddr::new(tunnel.outer_address(Side::Gateway), tunnel.port);
    for family in FAMILIES {
        let (from, to) = (rig.lab.peer_address(family).to_string(), rig.lab.gateway_address(family));
        let receiver = bound(&rig.lab.gateway, to, 5001);
        let inner = |size| Inner::new(UDP, &from, &to.to_string(), size);
        let sent: Vec<_> = (0..100).map(|index| inner(2000 + index * 10)).collect();
        for packet in &sent {
            underlay.send_to(&[&vxlan(7)[..], &packet.ethernet(0)].concat(), target).expect("a datagram");
        }
        let payloads: Vec<_> = sent.into_iter().map(|packet| packet.payload).collect();
        assert!(awaited(&receiver, payloads.len()) == payloads, "other datagrams than the 100 sent, inside {family:?}");
    }
    let fragments = rig.metrics().metric("netfwd_xdp_passes_total", &[("reason", "fragment")]);
    assert!(fragments >= 400.0, "{fragments} fragments passed on");
    rig.assert_nothing_lost();
    rig.stop();
}

fn everything_passes_without_xdp(tunnel: Tunnel) {
    let options = Options::with_tunnels([tunnel]);
    let Some(rig) = Rig::configured(options, |config| config.xdp("off")) else { return };
    rig.tcp_in(Family::V4, 8, scaled(2_000_000));
    rig.tcp_out(Family::V4, 8, scaled(2_000_000));
    let ((), growth) = rig.during(|| rig.a_little_of_everything());
    assert_eq!(growth.redirected(), 0.0);
    let tcp = growth.of("netfwd_gro_input_packets_total", &[("proto", "tcp")]);
    assert!(tcp >= scaled(8_000_000) as f64 / 1450.0, "{tcp} TCP packets through the sockets");
    assert!(growth.coalescing("tcp") > 1.5, "{} packets a frame", growth.coalescing("tcp"));
    rig.assert_nothing_lost();
    rig.stop();
}

#[test]
fn everything_passes_without_xdp_over_ipv4() {
    everything_passes_without_xdp(Tunnel::vxlan("vx7", 7));
}

#[test]
fn everything_passes_without_xdp_over_ipv6() {
    everything_passes_without_xdp(Tunnel::vxlan("vx7", 7).over(Family::V6));
}

#[test]
fn everything_passes_without_xdp_over_vxlan_gpe() {
    everything_passes_without_xdp(Tunnel::vxlan_gpe("gpe7", 7));
}

#[test]
fn everything_passes_with_generic_xdp() {
    let rig = Rig::from_text(Options::default(), |lab| {
        // Generic XDP runs behind GRO, and the daemon refuses that.
        lab.gateway.exec("ethtool -K under0 gro off").expect("GRO off");
        Config::of(lab).xdp("generic").text()
    });
    let Some(rig) = rig else { return };
    let ((), growth) = rig.during(|| rig.a_little_of_everything());
    growth.assert_redirected(8_000_000);
    rig.assert_nothing_lost();
    rig.stop();
}

#[test]
fn everything_passes_uncoalesced_with_gro_off() {
    let Some(rig) = Rig::configured(Options::default(), |config| config.gro(false)) else { return };
    let ((), growth) = rig.during(|| rig.a_little_of_everything());
    assert_eq!((growth.coalescing("tcp"), growth.coalescing("udp")), (1.0, 1.0));
    rig.assert_nothing_lost();
    rig.stop();
}

#[test]
fn everything_passes_over_several_queues() {
    let Some(rig) = Rig::start(Options { queues: 2, ..Options::default() }) else { return };
    rig.tcp_in(Family::V4, 8, scaled(2_000_000));
    rig.tcp_out(Family::V6, 8, scaled(2_000_000));
    rig.a_little_of_everything();
    rig.assert_nothing_lost();
    rig.stop();
}
