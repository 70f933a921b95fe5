//! Packets that come in several descriptors (`XDP_USE_SG`), put together by copying.
//!
//! Jumbo frames only; everything else never comes here. The parts' chunks are free as soon as they are copied.

use super::super::batch::{ASSEMBLED_MAX, RxBatch};
use super::super::umem::{Frame, METADATA_LEN};

/// A packet of which some parts are still to come; it may span receive calls.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    bytes: Vec<u8>,
    metadata: [u8; METADATA_LEN],
    open: bool,
    damaged: bool,
}

impl Assembly {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity), ..Self::default() }
    }

    /// Whether the next descriptor goes on with this packet.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Appends a part. `None`: it was lost.
    pub(super) fn append(&mut self, part: Option<&Frame>) {
        match part {
            Some(part) if self.bytes.len() + part.bytes().len() <= ASSEMBLED_MAX => {
                if !self.open {
                    self.metadata = part.metadata().copied().unwrap_or_default();
                }
                self.bytes.extend_from_slice(part.bytes());
            }
            _ => self.damaged = true,
        }
        self.open = true;
    }

    /// The packet is complete: moves it to `batch`. Returns whether it arrived there.
    pub(super) fn finish(&mut self, batch: &mut RxBatch) -> bool {
        let delivered = !self.damaged && batch.push_assembled(&self.bytes, &self.metadata);
        self.bytes.clear();
        (self.open, self.damaged) = (false, false);
        delivered
    }
}
