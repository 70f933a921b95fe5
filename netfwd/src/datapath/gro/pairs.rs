//! Barriers for all flows between two addresses.
//!
//! A fragment, or a packet with extension headers, belongs to one of them and nobody can tell to which, so it may be
//! overtaken by none. Remembering the newest such packet of each pair and asking when a packet wants to join costs
//! nothing as long as there are none.

/// Where in the batch a packet stands whose flow cannot be read (a fragment, say), by hash of its address pair.
///
/// Pairs that share a slot close each other's runs: they merge less, never wrongly.
#[derive(Debug)]
pub(super) struct PairBarriers {
    /// Position + 1 of the newest barrier, 0 for none.
    positions: Box<[u16; PairBarriers::SLOTS]>,
    any: bool,
}

impl Default for PairBarriers {
    fn default() -> Self {
        Self { positions: Box::new([0; Self::SLOTS]), any: false }
    }
}

impl PairBarriers {
    const SLOTS: usize = 256;

    pub fn clear(&mut self) {
        if self.any {
            self.positions.fill(0);
            self.any = false;
        }
    }

    pub fn close(&mut self, position: u16, pair_hash: u64) {
        self.positions[pair_hash as usize % Self::SLOTS] = position + 1;
        self.any = true;
    }

    /// Whether there is no barrier in this batch, as nearly always.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        !self.any
    }

    /// Whether a barrier of this pair stands behind position `last`.
    #[inline]
    pub fn closed_since(&self, last: u16, pair_hash: u64) -> bool {
        self.any && self.positions[pair_hash as usize % Self::SLOTS] > last
    }
}
