//! What a worker counts. Plain integers: the worker publishes them once per batch (see `control::metrics`).

use netfwd_common::reason::{DropReason, Stage};

/// Drops by stage and reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drops([[u64; DropReason::COUNT]; Stage::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([[0; DropReason::COUNT]; Stage::ALL.len()])
    }
}

impl Drops {
    /// Counts one packet.
    pub fn count(&mut self, stage: Stage, reason: DropReason) {
        self.add(stage, reason, 1);
    }

    /// Counts several packets.
    pub fn add(&mut self, stage: Stage, reason: DropReason, packets: u64) {
        self.0[stage as usize][reason.index()] += packets;
    }

    /// How many so far.
    pub fn get(&self, stage: Stage, reason: DropReason) -> u64 {
        self.0[stage as usize][reason.index()]
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.0.iter().flatten().sum()
    }
}
