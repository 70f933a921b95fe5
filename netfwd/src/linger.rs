//! When a worker sleeps.
//!
//! The problem: where packets come one by one, request and response, most of a round trip is waking those who sleep, and
//! a worker that still looks when the next packet comes spares it that. But where nothing comes soon enough, or much is to
//! be done, looking only takes time from others, the program that is to answer among them. What was handed to a device this
//! very host may answer within microseconds; what was sent away comes back over a network, seldom as fast.
//!
//! So a worker lingers after small rounds, for each direction as long as that pays, and not for a while after a large one.
//! An idle gateway sleeps. A round that moved nothing (an ICMP error, an order) is as if it had not been.

use std::time::{Duration, Instant};

/// How long it looks before it sleeps: two wake-ups on another core, the answering program's and its own.
const LINGER: Duration = Duration::from_micros(40);
/// A round that moved more is bulk traffic.
const FEW_BYTES: usize = 4096;
/// How long after such a round there is no lingering.
const BULK: Duration = Duration::from_millis(10);

/// What a round moved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    /// In both directions.
    pub bytes: usize,
    /// Something came from an underlay.
    pub inward: bool,
}

/// What a worker remembers of its rounds.
#[derive(Debug)]
pub struct Linger {
    until: Instant,
    bulk_until: Instant,
    /// After which rounds it lingers now, if it does.
    after: Option<Direction>,
    payoffs: [Payoff; 2],
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    Inward,
    Outward,
}

impl Linger {
    /// Of a worker that starts at `now`.
    pub fn new(now: Instant) -> Self {
        Self { until: now, bulk_until: now, after: None, payoffs: [Payoff::default(); 2] }
    }

    /// A round that moved this began at `started` and ended at `ended`.
    pub fn served(&mut self, moved: Moved, started: Instant, ended: Instant) {
        if moved.bytes == 0 {
            return;
        }
        if let Some(direction) = self.after {
            self.payoffs[direction as usize].learn(started < self.until);
        }
        if moved.bytes > FEW_BYTES {
            self.bulk_until = ended + BULK;
        }
        let direction = if moved.inward { Direction::Inward } else { Direction::Outward };
        let lingers = ended >= self.bulk_until && self.payoffs[direction as usize].is_worth_it();
        (self.after, self.until) = if lingers { (Some(direction), ended + LINGER) } else { (None, ended) };
    }

    /// Whether to look once more instead of sleeping.
    pub fn is_awake(&self, now: Instant) -> bool {
        now < self.until
    }
}

/// Whether lingering found something lately.
#[derive(Clone, Copy, Debug)]
struct Payoff {
    trust: u8,
    skipped: u16,
}

impl Default for Payoff {
    fn default() -> Self {
        Self { trust: Self::TRUST, skipped: 0 }
    }
}

impl Payoff {
    /// So often in vain, if nothing makes up for it, is enough.
    const TRUST: u8 = 16;
    /// After so many rounds it is tried again, several times: at first whoever is to be found still sleeps elsewhere.
    const PAUSE: u16 = 1000;

    fn learn(&mut self, found: bool) {
        self.trust = if found { Self::TRUST.min(self.trust + 2) } else { self.trust.saturating_sub(1) };
    }

    fn is_worth_it(&mut self) -> bool {
        if self.trust > 0 {
            return true;
        }
        self.skipped += 1;
        if self.skipped == Self::PAUSE {
            *self = Self::default();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN: Moved = Moved { bytes: 1500, inward: true };
    const OUT: Moved = Moved { bytes: 1500, inward: false };
    const MUCH: Moved = Moved { bytes: 64 * 1500, inward: true };
    const NOTHING: Moved = Moved { bytes: 0, inward: false };

    /// A round at that instant, which takes no time.
    fn serve(linger: &mut Linger, moved: Moved, now: Instant) {
        linger.served(moved, now, now);
    }

    #[test]
    fn lingers_after_single_packets_and_then_sleeps() {
        let start = Instant::now();
        let mut linger = Linger::new(start);
        assert!(!linger.is_awake(start), "nothing has come yet");
        serve(&mut linger, IN, start);
        assert!(linger.is_awake(start + LINGER / 2));
        assert!(!linger.is_awake(start + LINGER));
    }

    #[test]
    fn bulk_traffic_and_what_comes_between_it_is_not_lingered_for() {
        let start = Instant::now();
        let mut linger = Linger::new(start);
        serve(&mut linger, MUCH, start);
        assert!(!linger.is_awake(start));
        serve(&mut linger, IN, start + BULK / 2);
        assert!(!linger.is_awake(start + BULK / 2), "an acknowledgement");
        serve(&mut linger, IN, start + BULK);
        assert!(linger.is_awake(start + BULK));
    }

    /// Requests a millisecond apart, each answered so long after; after how many of them, and of the answers, it lingered.
    fn exchanges(linger: &mut Linger, now: &mut Instant, count: u32, answer: Duration) -> (u32, u32) {
        let (mut requests, mut answers) = (0, 0);
        for _ in 0..count {
            *now += Duration::from_millis(1);
            serve(linger, IN, *now);
            requests += u32::from(linger.is_awake(*now));
            serve(linger, OUT, *now + answer);
            answers += u32::from(linger.is_awake(*now + answer));
        }
        (requests, answers)
    }

    const SOON: Duration = Duration::from_micros(10);
    const LATE: Duration = Duration::from_micros(400);

    #[test]
    fn each_direction_is_lingered_after_as_long_as_that_pays() {
        let mut now = Instant::now();
        let mut linger = Linger::new(now);
        let [trust, pause] = [u32::from(Payoff::TRUST), u32::from(Payoff::PAUSE)];
        let first = exchanges(&mut linger, &mut now, trust, SOON);
        assert_eq!(first, (trust, trust));
        assert_eq!(exchanges(&mut linger, &mut now, pause, SOON), (pause, 0), "the next request comes late");
        assert_eq!(exchanges(&mut linger, &mut now, trust, SOON), (trust, trust), "another try");
        assert_eq!(exchanges(&mut linger, &mut now, trust, LATE), (trust, 0));
        assert_eq!(exchanges(&mut linger, &mut now, pause, LATE).0, 0);
        assert_eq!(exchanges(&mut linger, &mut now, pause, SOON).0, pause);
    }

    #[test]
    fn a_wake_up_that_moved_nothing_is_no_find() {
        let mut now = Instant::now();
        let mut linger = Linger::new(now);
        let lingered = |linger: &mut Linger, now: &mut Instant| {
            *now += Duration::from_millis(1);
            serve(linger, IN, *now);
            let lingers = linger.is_awake(*now);
            serve(linger, NOTHING, *now + SOON);
            assert_eq!(linger.is_awake(*now + SOON), lingers, "it neither begins nor ends anything");
            u32::from(lingers)
        };
        let count: u32 = (0..Payoff::PAUSE).map(|_| lingered(&mut linger, &mut now)).sum();
        assert_eq!(count, u32::from(Payoff::TRUST));
    }

    #[test]
    fn a_wake_up_that_moved_nothing_hides_no_find() {
        let mut now = Instant::now();
        let mut linger = Linger::new(now);
        for _ in 0..Payoff::PAUSE {
            now += Duration::from_millis(1);
            serve(&mut linger, IN, now);
            assert!(linger.is_awake(now));
            serve(&mut linger, NOTHING, now + SOON);
            serve(&mut linger, OUT, now + 2 * SOON);
        }
    }

    #[test]
    fn an_answer_in_time_to_every_second_request_is_enough() {
        let mut now = Instant::now();
        let mut linger = Linger::new(now);
        for _ in 0..1000 {
            assert_eq!(exchanges(&mut linger, &mut now, 1, LATE).0, 1);
            assert_eq!(exchanges(&mut linger, &mut now, 1, SOON).0, 1);
        }
    }
}
