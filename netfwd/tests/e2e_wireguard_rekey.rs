//! New keys every two minutes, under load in both directions: nothing is lost, nothing overtakes.
//!
//! The protocol's times are constants, so each of these takes minutes. `cargo xtask test` leaves them out by the first word
//! of their names; `cargo xtask test --slow` runs them and nothing else.

mod e2e;

use std::time::Duration;

use e2e::wireguard::{HANDSHAKE, OTHERS, start};
use e2e::{Rig, equal};
use xtask::lab::{Family, Lab, Program, Side, Tunnel};
use xtask::load::{tcp, udp};

/// Beyond REKEY_AFTER_TIME, 120 s, and a handshake that has to be tried again.
const STREAM: Duration = Duration::from_secs(140);
/// Gbit/s of datagrams each way; slow enough that nobody's queue runs over.
const RATE: f64 = 0.005;

/// Datagrams both ways for longer than a key lives.
fn carry_datagrams(rig: &Rig) {
    let Lab { peer, server, .. } = &rig.lab;
    let before = rig.far_losses();
    let load = udp::Load { duration: STREAM, ..udp::Load::of_datagrams(equal(), u64::MAX, RATE) };
    std::thread::scope(|scope| {
        let inward = scope.spawn(|| udp::run(peer, server, rig.lab.server_address(Family::V4), &load));
        let outward = scope.spawn(|| udp::run(server, peer, rig.lab.peer_address(Family::V6), &load));
        let reports = [inward, outward].map(|run| run.join().expect("no panic").expect("a run"));
        assert!(reports.iter().all(udp::Report::faithful), "{reports:?}");
        let (lost, excused) = (reports.iter().map(udp::Report::lost).sum::<u64>(), rig.far_losses() - before);
        assert!(lost <= excused, "{reports:?}, the far end's own queues have lost {excused}");
        let sent = rig.metrics().sum("netfwd_transmit_packets_total");
        assert!(sent >= reports[1].sent as f64, "{sent} packets have left, {reports:?}");
    });
}

/// As much as goes through.
fn carry_streams(rig: &Rig) {
    let Lab { peer, server, .. } = &rig.lab;
    let load = tcp::Load { verify: true, ..tcp::Load::for_seconds(2, STREAM.as_secs_f64()) };
    std::thread::scope(|scope| {
        let inward = scope.spawn(|| tcp::run(peer, server, rig.lab.server_address(Family::V6), load));
        let outward = scope.spawn(|| tcp::run(server, peer, rig.lab.peer_address(Family::V4), load));
        for run in [inward, outward] {
            let report = run.join().expect("no panic").expect("a run");
            assert!(report.intact(), "{report:?}");
        }
    });
}

fn keys_change(other: Program, initiator: Side, carry: impl FnOnce(&Rig)) {
    let Some(rig) = start(Tunnel::wireguard(other).initiator(initiator)) else { return };
    assert!(rig.answers(initiator, HANDSHAKE));
    rig.wait_until_noted();
    let handshake = || rig.state().peer().expect("one peer").latest_handshake;
    let first = handshake();
    carry(&rig);
    let last = handshake();
    assert!(last >= first + 100, "{}: the keys of {first} are those of {last}", other.name());
    rig.assert_no_drops();
    rig.stop();
}

/// Minutes each: only `cargo xtask test --slow` runs what is in a module of this name.
mod slow {
    use super::*;

    #[test]
    fn keys_change_without_loss_where_others_begin() {
        OTHERS.into_iter().for_each(|other| keys_change(other, Side::Peer, carry_datagrams));
    }

    #[test]
    fn keys_change_without_loss_where_netfwd_begins() {
        OTHERS.into_iter().for_each(|other| keys_change(other, Side::Gateway, carry_datagrams));
    }

    #[test]
    fn keys_change_under_full_load() {
        keys_change(Program::WireguardGo, Side::Gateway, carry_streams);
    }
}
