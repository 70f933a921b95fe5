//! When a worker sleeps.
//!
//! The problem: where packets come one by one, request and response, most of a round trip is waking those who sleep. A
//! worker that looks for the next packet for a moment longer often spares the packet that. But where much is to be done, the
//! same moment is taken from others, and waking costs little per packet.
//!
//! So a worker lingers after small rounds only, and not for a while after a large one. An idle gateway sleeps.

use std::time::{Duration, Instant};

/// How long it looks before it sleeps: about what waking it would cost the sender of the next packet.
const LINGER: Duration = Duration::from_micros(20);
/// A round that moved more is bulk traffic.
const FEW_BYTES: usize = 4096;
/// How long after such a round there is no lingering.
const BULK: Duration = Duration::from_millis(10);

/// What a worker remembers of its rounds.
#[derive(Debug)]
pub struct Linger {
    until: Instant,
    bulk_until: Instant,
}

impl Linger {
    /// Of a worker that starts at `now`.
    pub fn new(now: Instant) -> Self {
        Self { until: now, bulk_until: now }
    }

    /// A round that moved these bytes ended at `now`.
    pub fn served(&mut self, bytes: usize, now: Instant) {
        if bytes > FEW_BYTES {
            self.bulk_until = now + BULK;
        }
        self.until = if now < self.bulk_until { now } else { now + LINGER };
    }

    /// Whether to look once more instead of sleeping.
    pub fn is_awake(&self, now: Instant) -> bool {
        now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lingers_after_single_packets_and_then_sleeps() {
        let start = Instant::now();
        let mut linger = Linger::new(start);
        assert!(!linger.is_awake(start), "nothing has come yet");
        linger.served(1500, start);
        assert!(linger.is_awake(start + LINGER / 2));
        assert!(!linger.is_awake(start + LINGER));
    }

    #[test]
    fn bulk_traffic_and_what_comes_between_it_is_not_lingered_for() {
        let start = Instant::now();
        let mut linger = Linger::new(start);
        linger.served(64 * 1500, start);
        assert!(!linger.is_awake(start));
        linger.served(100, start + BULK / 2);
        assert!(!linger.is_awake(start + BULK / 2), "an acknowledgement");
        linger.served(100, start + BULK);
        assert!(linger.is_awake(start + BULK));
    }
}
