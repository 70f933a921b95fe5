//! What a worker shows to the control thread beside its counters and its heartbeat.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::io::xsk::FrameCounts;

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
    pub fn snapshot(&self) -> [(&'static str, u64); 4] {
        std::array::from_fn(|i| (Self::STATES[i], self.0[i].load(Ordering::Relaxed)))
    }
}
