//! Up to fifty thousand handshakes a second from nowhere, while a peer's traffic goes on.

mod e2e;

use std::time::Duration;

use e2e::Rig;
use e2e::wireguard::start;
use xtask::lab::{Family, Program, Side, Tunnel};
use xtask::load::{flood, udp};
use xtask::machine::resident_bytes;

/// Other programs on this machine can take the CPU away, and then nothing is measured: the best of so many runs counts.
const RUNS: usize = 3;
/// What the generator is asked for, a second.
const RATE: f64 = 50_000.0;
/// What it has to reach beside gateway, peer and server on the same cores, or the run says nothing.
const LEAST_RATE: f64 = 10_000.0;
const SECONDS: f64 = 3.0;
/// The flood begins so many seconds earlier and ends so many later.
const LEAD: f64 = 1.0;
/// What the peer sends meanwhile in Gbit/s, well within what the unoptimized daemon carries undisturbed.
const LOAD: f64 = 0.1;
/// What a flood may make the daemon grow by.
const GROWTH: u64 = 16 << 20;

impl Rig {
    /// Gbit/s from the peer to the server.
    fn goodput(&self) -> f64 {
        let load = udp::Load { verify: true, ..udp::Load::for_seconds(1350, SECONDS, LOAD) };
        let report = udp::run(&self.lab.peer, &self.lab.server, self.lab.server_address(Family::V4), &load);
        let report = report.expect("a run");
        assert!(report.faithful(), "{report:?}");
        report.gigabits()
    }

    /// The same under a flood that begins earlier and ends later; also returns the number of forged handshakes.
    fn goodput_under_flood(&self) -> (f64, u32) {
        let public_key = self.far_end().keys.gateway.public_bytes().expect("a key");
        let duration = Duration::from_secs_f64(SECONDS + 2.0 * LEAD);
        let flood = flood::Flood { target: self.endpoint(), public_key, rate: RATE as u32, duration };
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| flood::run(&self.lab.peer, &flood).expect("a flood"));
            std::thread::sleep(Duration::from_secs_f64(LEAD));
            let goodput = self.goodput();
            (goodput, flood.join().expect("no panic") as u32)
        })
    }
}

#[test]
fn a_flood_of_handshakes_stops_no_established_peer_and_takes_no_memory() {
    let Some(rig) = start(Tunnel::wireguard(Program::WireguardGo).initiator(Side::Peer)) else { return };
    // Answers to forged sources have to have somewhere to go.
    let away = format!("route add {} via {}", flood::SOURCE_PREFIX, rig.tunnel().outer_address(Side::Peer));
    rig.lab.gateway.ip(&away).expect("a route");
    rig.greet();
    let memory = || resident_bytes(rig.netfwd.id()).expect("a process");
    let before = rig.metrics();
    let good = |run: usize| {
        let (undisturbed, resident) = (rig.goodput(), memory());
        let (disturbed, forged) = rig.goodput_under_flood();
        let grown = memory().saturating_sub(resident);
        eprintln!("run {run}: {undisturbed:.3} Gbit/s, {disturbed:.3} under {forged} handshakes, {grown} bytes more");
        assert!(grown <= GROWTH, "{grown} bytes more");
        f64::from(forged) >= LEAST_RATE * (SECONDS + 2.0 * LEAD) && disturbed >= 0.8 * undisturbed
    };
    assert!((0..RUNS).any(good), "in none of {RUNS} runs both flood and load were what they have to be");
    let after = rig.metrics();
    assert!(after.growth(&before, "netfwd_wg_cookie_replies_total", &[]) > 0.0, "no cookie was asked for");
    let handshakes = after.growth(&before, "netfwd_wg_handshakes_total", &[("result", "completed")]);
    assert!(handshakes <= 2.0, "{handshakes} handshakes have succeeded");
    rig.stop();
}
