//! What a gateway does at its limits: a forwarding database that is full, and an RX ring with nonsense in it.

mod e2e;
mod xsk_ring;

use std::net::UdpSocket;

use e2e::packets::{awaited, bound};
use e2e::{PATIENCE, Rig};
use xsk_ring::RxRing;
use xtask::lab::{Family, Options, Side, TunnelKind};
use xtask::machine::{slowness, wait_until};

/// What a tunnel's forwarding database holds.
const CAPACITY: u32 = 65_536;
/// Datagrams between two looks: half an RX ring, so that none is lost.
const BURST: u32 = 2048;

/// A VXLAN datagram with a frame from that address to everybody, of an EtherType for experiments.
fn frame_from(vni: u32, mac: [u8; 6]) -> Vec<u8> {
    let vxlan = [0x08, 0, 0, 0, (vni >> 16) as u8, (vni >> 8) as u8, vni as u8, 0];
    [&vxlan[..], &[0xff; 6], &mac, &[0x88, 0xb5], &[0; 46]].concat()
}

/// Sends frames from `count` new addresses and waits until the gateway has taken them all.
fn send_from_new_addresses(rig: &Rig, sender: &UdpSocket, count: u32) {
    let tunnel = &rig.lab.options().tunnels[0];
    assert_eq!(tunnel.kind, TunnelKind::Vxlan);
    let target = (tunnel.outer_address(Side::Gateway), tunnel.port);
    let taken = || rig.metrics().sum("netfwd_receive_packets_total");
    for start in (0..count).step_by(BURST as usize) {
        let (before, burst) = (taken(), BURST.min(count - start));
        for number in start..start + burst {
            let [_, a, b, c] = number.to_be_bytes();
            sender.send_to(&frame_from(tunnel.vni, [2, 0x77, 0, a, b, c]), target).expect("sent");
        }
        wait_until(PATIENCE, || taken() >= before + f64::from(burst));
        assert!(taken() >= before + f64::from(burst), "not every frame of a burst arrived");
    }
}

#[test]
fn a_full_forwarding_database_counts_what_it_does_not_learn_and_floods_to_it() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    let target = rig.lab.gateway_address(Family::V4);
    let ping = || rig.lab.peer.exec(&format!("ping -c 1 -W {} {target}", 5.0 * slowness())).expect("an answer");
    // The peer's own address is learned first.
    ping();
    let sender = bound(&rig.lab.peer, rig.lab.options().tunnels[0].outer_address(Side::Peer), 0);
    let sent = CAPACITY + 5_000;
    let ((), growth) = rig.during(|| {
        let seen =
            || ["netfwd_fdb_entries", "netfwd_fdb_full_total"].map(|name| rig.metrics().sum(name)).iter().sum::<f64>();
        let before = seen();
        send_from_new_addresses(&rig, &sender, sent);
        // What else came meanwhile was counted with them, so the last ones may be on their way.
        wait_until(PATIENCE, || seen() - before >= f64::from(sent));
    });
    let (learned, refused) = (growth.of("netfwd_fdb_entries", &[]), growth.of("netfwd_fdb_full_total", &[]));
    assert!(refused >= 5_000.0, "{refused} addresses were refused");
    assert_eq!(learned + refused, f64::from(sent), "{learned} learned and {refused} refused");
    let entries = rig.metrics().metric("netfwd_fdb_entries", &[("tunnel", "vx7")]);
    assert!((60_000.0..=f64::from(CAPACITY)).contains(&entries), "{entries} entries");
    assert_eq!(rig.drops(), Vec::<String>::new());

    // The peer gets an address that there may be no more room for: what is unknown is flooded, so answers find it.
    let addresses = (0..20u8).map(|number| format!("02:78:00:00:00:{number:02x}"));
    let ((), growth) = rig.during(|| {
        for address in addresses {
            rig.lab.peer.ip(&format!("link set vx7 address {address}")).expect("another address");
            rig.lab.gateway.ip("neighbour flush dev vx7").expect("forgotten");
            ping();
        }
    });
    assert!(growth.of("netfwd_fdb_full_total", &[]) > 0.0, "every one of the peer's addresses was learned");
    rig.stop();
}

#[test]
fn nonsense_in_the_rx_ring_is_dropped_with_its_reason_and_what_is_behind_it_arrives() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    let (peer, gateway) = (&rig.lab.peer, &rig.lab.gateway);
    let target = rig.lab.gateway_address(Family::V4);
    let (sender, receiver) = (bound(peer, rig.lab.peer_address(Family::V4), 0), bound(gateway, target, 5001));
    let send = |count| (0..count).for_each(|_| assert!(sender.send_to(b"anybody there?", (target, 5001)).is_ok()));
    send(10);
    assert_eq!(awaited(&receiver, 10).len(), 10);
    let ring = RxRing::of_process(rig.netfwd.id());
    // A worker that stands still leaves the ring to the kernel and this test.
    rig.pause();
    let first = ring.produced();
    send(8);
    wait_until(PATIENCE, || ring.produced().wrapping_sub(first) >= 8);
    // No such chunk; longer than its chunk; a packet in two parts, which nobody has asked for.
    ring.change(first.wrapping_add(1), |descriptor| descriptor.addr = u64::MAX);
    ring.change(first.wrapping_add(2), |descriptor| descriptor.len = 5_000);
    ring.change(first.wrapping_add(4), |descriptor| descriptor.options = libc::XDP_PKT_CONTD);
    rig.resume();
    rig.expect_count("netfwd_drops_total", &[("stage", "decap"), ("reason", "xsk_descriptor")], 2.0);
    rig.expect_count("netfwd_drops_total", &[("stage", "decap"), ("reason", "unassembled")], 1.0);
    assert!(awaited(&receiver, 3).len() >= 3, "the others arrive");
    assert_eq!(rig.drops().len(), 2, "{:?}", rig.drops());
    rig.a_little_of_everything();
    rig.stop();
}
