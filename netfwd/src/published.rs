//! What a worker shows to the control thread beside its counters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::io::xsk::FrameCounts;

/// When a worker last went round its loop, since the gateway's start.
#[derive(Debug, Default)]
pub struct Pulse(AtomicU64);

impl Pulse {
    /// Called once per round.
    pub fn beat(&self, since_start: Duration) {
        self.0.store(since_start.as_millis() as u64, Ordering::Relaxed);
    }

    /// The last round, since the gateway's start.
    pub fn last(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// Where the frames of one UMEM are, as of the last batch.
#[derive(Debug, Default)]
pub struct FrameGauges([AtomicU64; 4]);

impl FrameGauges {
    /// The `state` labels.
    pub const STATES: [&'static str; 4] = ["free", "fill_ring", "kernel", "in_flight"];

    /// Called once per batch.
    pub fn publish(&self, counts: FrameCounts) {
        let FrameCounts { free, fill_ring, kernel, in_flight } = counts;
        for (gauge, count) in self.0.iter().zip([free, fill_ring, kernel, in_flight]) {
            gauge.store(u64::from(count), Ordering::Relaxed);
        }
    }

    /// Each state with its count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Self::STATES.into_iter().zip(self.0.iter().map(|gauge| gauge.load(Ordering::Relaxed)))
    }
}
