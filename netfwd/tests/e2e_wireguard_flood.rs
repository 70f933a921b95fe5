//! Fifty thousand handshakes a second from nowhere, while a peer's traffic goes on.

mod e2e;

use std::time::Duration;

use e2e::Rig;
use e2e::wireguard::start;
use xtask::lab::{Family, Program, Side, Tunnel};
use xtask::load::{flood, udp};
use xtask::machine::resident_bytes;

const RATE: u32 = 50_000;
const SECONDS: f64 = 3.0;
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
    fn goodput_under_flood(&self) -> (f64, u64) {
        let public_key = self.far_end().keys.gateway.public_bytes().expect("a key");
        let duration = Duration::from_secs_f64(SECONDS + 2.0);
        let flood = flood::Flood { target: self.endpoint(), public_key, rate: RATE, duration };
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| flood::run(&self.lab.peer, &flood).expect("a flood"));
            std::thread::sleep(Duration::from_secs(1));
            let goodput = self.goodput();
            (goodput, flood.join().expect("no panic"))
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
    let undisturbed = rig.goodput();
    let (memory, before) = (resident_bytes(rig.netfwd.id()).expect("a process"), rig.metrics());
    let (disturbed, forged) = rig.goodput_under_flood();
    let (grown, after) = (resident_bytes(rig.netfwd.id()).expect("a process").saturating_sub(memory), rig.metrics());
    let cookies = after.growth(&before, "netfwd_wg_cookie_replies_total", &[]);
    eprintln!("{undisturbed:.3} Gbit/s, {disturbed:.3} under {forged} handshakes, {cookies} cookies, {grown} bytes");
    assert!(forged as f64 >= 0.8 * f64::from(RATE) * SECONDS, "this machine has sent {forged} handshakes only");
    assert!(disturbed >= 0.8 * undisturbed, "{disturbed} of {undisturbed} Gbit/s are left");
    assert!(grown <= GROWTH, "{grown} bytes more");
    assert!(cookies > 0.0, "no cookie was asked for");
    let handshakes = after.growth(&before, "netfwd_wg_handshakes_total", &[("result", "completed")]);
    assert!(handshakes <= 2.0, "{handshakes} handshakes have succeeded");
    rig.stop();
}
