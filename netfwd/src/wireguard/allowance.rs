//! CPU time for handshake messages, so that a flood of them leaves the rest to data.
//!
//! A low priority alone does not do: on a busy machine it lets the scheduler run the thread for milliseconds in between, and
//! what sending an answer costs in soft interrupts has no priority at all. So each lane of the queue has a share of the
//! machine. What it does not use is saved up for a while: peers that all come at once after a restart are no flood.
//!
//! Invariant: over any time the work begun takes no more than its share of that time, what was saved, and one turn.

use std::time::{Duration, Instant};

use crate::datapath::tunnel::wireguard::{Lane, Lanes};

/// What may be saved: some hundred handshakes.
const SAVINGS: Duration = Duration::from_millis(100);
/// What has to be there before work is begun again: waking up for every message would cost as much as the message.
const LEAST: Duration = Duration::from_micros(500);
/// Parts of the machine that go to what is known, to the verification of cookies and what is computed for those who have a right
/// one, and to the crowd.
const KNOWN: u32 = 8;
const COOKIE: u32 = 8;
const CROWD: u32 = 32;

/// The allowances of all lanes.
#[derive(Debug)]
pub struct Allowances([Allowance; 3]);

impl Allowances {
    /// Full ones, on a machine with so many CPUs.
    pub fn new(cpus: usize, now: Instant) -> Self {
        Self([KNOWN, COOKIE, CROWD].map(|parts| Allowance::new((cpus as f64 / f64::from(parts)).min(1.0), now)))
    }

    /// The lanes that may be worked on at `now`.
    pub fn lanes(&mut self, now: Instant) -> Lanes {
        Lane::ALL.into_iter().fold(Lanes::default(), |lanes, lane| {
            if self.0[paid_from(lane)].is_open(now) { lanes.with(lane) } else { lanes }
        })
    }

    /// Time until a lane may be worked on that may not now; `None` if all may.
    pub fn closed_for(&self) -> Option<Duration> {
        self.0.iter().filter_map(Allowance::closed_for).min()
    }

    /// Takes work on a lane off.
    pub fn spend(&mut self, lane: Lane, time: Duration) {
        self.0[paid_from(lane)].spend(time);
    }
}

/// Whose allowance pays for a lane.
fn paid_from(lane: Lane) -> usize {
    match lane {
        Lane::Known => 0,
        Lane::Cookie => 1,
        Lane::Returning | Lane::Anonymous => 2,
    }
}

/// One lane's, in seconds of CPU time.
#[derive(Debug)]
struct Allowance {
    /// CPU time for each second.
    share: f64,
    /// Negative after a turn that took longer than there was.
    saved: f64,
    since: Instant,
    is_open: bool,
}

impl Allowance {
    fn new(share: f64, now: Instant) -> Self {
        Self { share, saved: SAVINGS.as_secs_f64(), since: now, is_open: true }
    }

    fn is_open(&mut self, now: Instant) -> bool {
        let more = now.saturating_duration_since(self.since).as_secs_f64() * self.share;
        (self.saved, self.since) = ((self.saved + more).min(SAVINGS.as_secs_f64()), now);
        self.is_open = self.saved >= if self.is_open { 0.0 } else { LEAST.as_secs_f64() };
        self.is_open
    }

    fn closed_for(&self) -> Option<Duration> {
        let missing = LEAST.as_secs_f64() - self.saved;
        // A nanosecond more, or rounding would have us ask again and again.
        (!self.is_open).then(|| Duration::from_secs_f64(missing.max(0.0) / self.share) + Duration::from_nanos(1))
    }

    fn spend(&mut self, time: Duration) {
        self.saved -= time.as_secs_f64();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_micros(100);

    /// CPU time that a crowd in this lane gets out of ten seconds, and how often work was begun.
    fn used(cpus: usize, lane: Lane) -> (Duration, u32) {
        let start = Instant::now();
        let mut allowances = Allowances::new(cpus, start);
        let (mut now, mut used, mut begun) = (start, Duration::ZERO, 0);
        while now < start + Duration::from_secs(10) {
            if allowances.lanes(now).contains(lane) {
                allowances.spend(lane, TURN);
                (now, used) = (now + TURN, used + TURN);
            } else {
                now += allowances.closed_for().unwrap();
                begun += 1;
            }
        }
        (used, begun)
    }

    #[test]
    fn a_crowd_gets_its_share_of_the_machine_and_what_was_saved() {
        for (cpus, lane, share) in [
            (2, Lane::Anonymous, 0.0625),
            (2, Lane::Known, 0.25),
            (2, Lane::Cookie, 0.25),
            (16, Lane::Anonymous, 0.5),
            (64, Lane::Known, 1.0),
        ] {
            let (used, begun) = used(cpus, lane);
            let expected = (10.0 * share + SAVINGS.as_secs_f64()).min(10.0);
            let error = (used.as_secs_f64() - expected).abs();
            assert!(error < 0.002, "{cpus} CPUs, {lane:?}: {used:?}, not {expected}");
            assert!(begun <= (10.0 * share / LEAST.as_secs_f64()) as u32 + 1, "woken {begun} times");
        }
    }

    #[test]
    fn a_lane_pays_only_for_itself() {
        let now = Instant::now();
        let mut allowances = Allowances::new(2, now);
        allowances.spend(Lane::Anonymous, Duration::from_secs(1));
        assert_eq!(allowances.lanes(now), Lanes::default().with(Lane::Known).with(Lane::Cookie));
        assert!(allowances.closed_for().unwrap() > Duration::from_secs(10));
        assert_eq!(allowances.lanes(now + Duration::from_secs(20)), Lanes::ALL);
        assert_eq!(allowances.closed_for(), None);
    }

    #[test]
    fn savings_end_somewhere() {
        let start = Instant::now();
        let mut allowances = Allowances::new(2, start);
        let later = start + Duration::from_secs(3600);
        assert_eq!(allowances.lanes(later), Lanes::ALL);
        allowances.spend(Lane::Known, SAVINGS + TURN);
        assert!(!allowances.lanes(later).contains(Lane::Known));
    }
}
