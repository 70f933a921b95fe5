//! Up to fifty thousand handshakes a second from nowhere, while a peer's traffic goes on, and its sessions.

mod e2e;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use e2e::Rig;
use e2e::wireguard::start;
use xtask::lab::{Family, Program, Side, Tunnel, write_secret};
use xtask::load::flood::{self, Cookie, Flood, Sources};
use xtask::load::udp;
use xtask::machine::resident_bytes;

/// Other programs on this machine can take the CPU away, and then nothing is measured: the best of so many runs counts.
const RUNS: usize = 5;
/// What the generator is asked for, a second.
const RATE: f64 = 50_000.0;
/// What it has to reach beside gateway, peer and server on the same cores, or the run says nothing.
const LEAST_RATE: f64 = 30_000.0;
const SECONDS: f64 = 3.0;
/// The flood begins so many seconds earlier and ends so many later.
const LEAD: f64 = 1.0;
/// What the peer sends meanwhile in Gbit/s, well within what the unoptimized daemon carries undisturbed.
const LOAD: f64 = 0.1;
/// What a flood may make the daemon grow by.
const GROWTH: u64 = 16 << 20;

/// New sessions that are made under a flood.
const SESSIONS: usize = 10;
/// How long one takes at most: an initiator that has no answer begins again after five seconds (REKEY_TIMEOUT), so what
/// takes less has lost nothing.
const PROMPT: Duration = Duration::from_secs(4);
/// wireguard-go hides the lower 24 bits of its nanoseconds (`tai64n.whitenerMask`): of two initiations within so long the
/// second looks like the first one's replay, and is refused as one.
const TIMESTAMP: Duration = Duration::from_nanos(1 << 24);
/// How long a stranger needs at most. Its first message may drown, the second is answered with a cookie, and the third has
/// that: ten seconds, and a little.
const STRANGER: Duration = Duration::from_secs(20);
/// From where strangers come: ports that follow this one.
const STRANGERS: u16 = 40_000;
/// How long any flood lasts at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// Messages that answer nothing, all different in what they pretend.
const FORGERIES: [(Cookie, Sources); 3] =
    [(Cookie::Absent, Sources::Many), (Cookie::Wrong, Sources::Many), (Cookie::Absent, Sources::One)];

/// One flood at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A rig in which answers to forged sources have somewhere to go.
fn start_with_way_out() -> Option<Rig> {
    let rig = start(Tunnel::wireguard(Program::WireguardGo).initiator(Side::Peer))?;
    let away = format!("route add {} via {}", flood::SOURCE_PREFIX, rig.tunnel().outer_address(Side::Peer));
    rig.lab.gateway.ip(&away).expect("a route");
    // The kernels are to know each other before the flood.
    rig.lab.peer.exec(&format!("ping -c 1 -W 5 {}", rig.endpoint().ip())).expect("a neighbour");
    Some(rig)
}

impl Rig {
    /// Gbit/s from the peer to the server.
    fn goodput(&self) -> f64 {
        let load = udp::Load { verify: true, ..udp::Load::for_seconds(1350, SECONDS, LOAD) };
        let report = udp::run(&self.lab.peer, &self.lab.server, self.lab.server_address(Family::V4), &load);
        let report = report.expect("a run");
        assert!(report.faithful(), "{report:?}");
        report.gigabits()
    }

    /// Does something while forged handshakes come; also returns how many there were a second.
    fn under_flood<T>(&self, (cookie, sources): (Cookie, Sources), task: impl FnOnce() -> T) -> (T, f64) {
        let public_key = self.far_end().keys.gateway.public_bytes().expect("a key");
        let target = self.endpoint();
        let flood = Flood { target, public_key, cookie, sources, rate: RATE as u32, duration: PATIENCE };
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let started = Instant::now();
            let flood = scope.spawn(|| flood::run_until(&self.lab.peer, &flood, &stop).expect("a flood"));
            std::thread::sleep(Duration::from_secs_f64(LEAD));
            let outcome = task();
            std::thread::sleep(Duration::from_secs_f64(LEAD));
            stop.store(true, Ordering::Relaxed);
            let forged = flood.join().expect("no panic");
            (outcome, forged as f64 / started.elapsed().as_secs_f64())
        })
    }

    /// The far end forgets its session; how long it takes until there is another.
    fn renew_session(&self) -> Duration {
        std::thread::sleep(TIMESTAMP);
        self.forget_session();
        let start = Instant::now();
        self.greet();
        start.elapsed()
    }

    fn forget_session(&self) {
        let text = self.far_end().keys.wg_config(self.tunnel(), Side::Peer).expect("a configuration");
        let file = self.lab.directory().join("again.conf");
        write_secret(&file, &text).expect("a file");
        self.far_device().set_config(&file).expect("a device without sessions");
    }

    /// The far end forgets session and cookie, and is where no peer was before.
    fn move_far_end(&self, port: u16) {
        self.forget_session();
        self.lab.peer.exec(&format!("wg set {} listen-port {port}", self.far_device().name())).expect("another port");
    }

    /// How long it takes until there is a session with somebody from nowhere, if there is one in time.
    fn first_session(&self) -> Option<Duration> {
        let start = Instant::now();
        self.answers(Side::Peer, STRANGER).then(|| start.elapsed())
    }
}

#[test]
fn a_flood_of_handshakes_stops_no_established_peer_and_takes_no_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(rig) = start_with_way_out() else { return };
    rig.greet();
    let memory = || resident_bytes(rig.netfwd.id()).expect("a process");
    let before = rig.metrics();
    for kind in FORGERIES {
        let good = |run: usize| {
            let (undisturbed, resident) = (rig.goodput(), memory());
            let (disturbed, forged) = rig.under_flood(kind, || rig.goodput());
            let grown = memory().saturating_sub(resident);
            eprintln!(
                "{kind:?}, run {run}: {undisturbed:.3} Gbit/s, {disturbed:.3} under {forged:.0} a second, {grown} bytes more"
            );
            assert!(grown <= GROWTH, "{grown} bytes more");
            forged >= LEAST_RATE && disturbed >= 0.8 * undisturbed
        };
        assert!((0..RUNS).any(good), "{kind:?}: in none of {RUNS} runs both flood and load were what they have to be");
    }
    let after = rig.metrics();
    assert!(after.growth(&before, "netfwd_wg_cookie_replies_total", &[]) > 0.0, "no cookie was asked for");
    let handshakes = after.growth(&before, "netfwd_wg_handshakes_total", &[("result", "completed")]);
    assert!(handshakes <= 2.0, "{handshakes} handshakes have succeeded");
    rig.stop();
}

#[test]
fn a_peer_gets_new_sessions_while_a_flood_of_handshakes_goes_on() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(rig) = start_with_way_out() else { return };
    rig.greet();
    for kind in FORGERIES {
        let good = |run: usize| {
            let (before, overruns) = (rig.metrics(), rig.overruns());
            let (took, forged) = rig.under_flood(kind, || [(); SESSIONS].map(|()| rig.renew_session()));
            let (after, overruns) = (rig.metrics(), rig.overruns() - overruns);
            eprintln!(
                "{kind:?}, run {run}: sessions after {took:?} under {forged:.0} a second, {overruns} found a full queue"
            );
            let completed = [("role", "responder"), ("result", "completed")];
            let completed = after.growth(&before, "netfwd_wg_handshakes_total", &completed);
            assert!(completed >= SESSIONS as f64, "old sessions went on");
            assert_eq!(after.growth(&before, "netfwd_drops_total", &[("reason", "replay")]), 0.0);
            let prompt = took.iter().all(|took| *took < PROMPT);
            assert!(prompt || overruns > 0, "{kind:?}: a handshake message was lost, and not before netfwd");
            prompt && forged >= LEAST_RATE
        };
        assert!(
            (0..RUNS).any(good),
            "{kind:?}: in none of {RUNS} runs there was a flood and no full queue before netfwd"
        );
    }
    rig.stop();
}

#[test]
fn a_stranger_gets_in_while_a_flood_of_handshakes_goes_on() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(rig) = start_with_way_out() else { return };
    let mut ports = STRANGERS..;
    for kind in FORGERIES {
        let good = |run: usize| {
            rig.move_far_end(ports.next().expect("ports enough"));
            let (took, forged) = rig.under_flood(kind, || rig.first_session());
            eprintln!("{kind:?}, run {run}: a first session after {took:?} under {forged:.0} a second");
            // Where others take the CPU, the control thread gets to none of the stranger's messages.
            took.is_some() && forged >= LEAST_RATE
        };
        assert!((0..RUNS).any(good), "{kind:?}: in none of {RUNS} runs a stranger got in under a flood");
    }
    rig.stop();
}
