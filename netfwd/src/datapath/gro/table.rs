//! From a flow's key to its state within one batch.
//!
//! Open addressing with linear probing over twice as many slots as a batch has packets, so a free slot always exists.
//! Each slot is stamped with the batch it was written in: starting a batch is one addition, nothing is cleared.

use super::MAX_BATCH;
use super::common::Common;
use crate::datapath::flow::FlowKey;
use netfwd_common::reason::FlushReason;

const SLOTS: usize = 2 * MAX_BATCH;
const _: () = assert!(SLOTS.is_power_of_two());

/// A flow's state within a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flow {
    /// What the newest run's packets have in common; always this flow's key.
    pub common: Common,
    /// The newest run: index into the batch's runs.
    pub run: u16,
    /// Why nothing may join the newest run any more.
    pub closed: Option<FlushReason>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    generation: u32,
    /// Bits of the hash that did not choose the slot: spares most key comparisons.
    tag: u16,
    flow: u16,
}

/// The flows of one batch.
#[derive(Debug)]
pub(super) struct FlowTable {
    slots: Box<[Slot; SLOTS]>,
    flows: Vec<Flow>,
    generation: u32,
}

impl FlowTable {
    pub fn new() -> Self {
        Self { slots: Box::new([Slot::default(); SLOTS]), flows: Vec::with_capacity(MAX_BATCH), generation: 0 }
    }

    /// Forgets all flows.
    pub fn clear(&mut self) {
        self.flows.clear();
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            // After 2^32 batches old stamps would look fresh again.
            self.slots.fill(Slot::default());
            self.generation = 1;
        }
    }

    /// The flow of `key`, whose hash is `hash`, if it is known in this batch.
    #[inline(always)]
    pub fn find(&mut self, key: &FlowKey, hash: u64) -> Option<&mut Flow> {
        let index = self.search(key, hash).ok()?;
        self.flows.get_mut(usize::from(index))
    }

    /// The flow of `key`, whose hash is `hash`; whether it is new.
    pub fn find_or_insert(&mut self, key: &FlowKey, hash: u64) -> (&mut Flow, bool) {
        let (index, is_new) = match self.search(key, hash) {
            Ok(index) => (index, false),
            Err(free) => (self.insert(key, hash, free), true),
        };
        (&mut self.flows[usize::from(index)], is_new)
    }

    /// The flow of `key`, or the slot for it.
    #[inline(always)]
    fn search(&self, key: &FlowKey, hash: u64) -> Result<u16, usize> {
        let mut position = hash as usize % SLOTS;
        loop {
            let slot = &self.slots[position];
            if slot.generation != self.generation {
                return Err(position);
            }
            let is_likely = slot.tag == tag(hash);
            if is_likely && self.flows.get(usize::from(slot.flow)).is_some_and(|flow| flow.common.key == *key) {
                return Ok(slot.flow);
            }
            position = (position + 1) % SLOTS;
        }
    }

    fn insert(&mut self, key: &FlowKey, hash: u64, position: usize) -> u16 {
        let flow = self.flows.len() as u16;
        self.slots[position] = Slot { generation: self.generation, tag: tag(hash), flow };
        self.flows.push(Flow { common: Common { key: *key, ..Common::default() }, ..Flow::default() });
        flow
    }
}

/// The bits of a hash that do not choose the slot.
fn tag(hash: u64) -> u16 {
    (hash >> 48) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::packet::TunnelIndex;
    use netfwd_common::wire::ipv6;
    use zerocopy::FromZeros;

    /// Flow number `n`.
    fn flow(n: u16) -> FlowKey {
        let [a, b] = n.to_be_bytes();
        let pair = crate::datapath::flow::AddressPair::ipv6(TunnelIndex(0), &ipv6::Header::new_zeroed());
        pair.flow(17, [a, b, 0, 0])
    }

    #[test]
    fn colliding_flows_are_kept_apart() {
        let mut table = FlowTable::new();
        table.clear();
        for n in 0..MAX_BATCH as u16 {
            let (state, is_new) = table.find_or_insert(&flow(n), u64::MAX);
            assert!(is_new);
            state.run = n;
        }
        for n in 0..MAX_BATCH as u16 {
            let (state, is_new) = table.find_or_insert(&flow(n), u64::MAX);
            assert_eq!((state.run, is_new), (n, false));
        }
    }

    #[test]
    fn a_new_batch_knows_no_flow_also_when_the_stamp_wraps() {
        let mut table = FlowTable::new();
        table.generation = u32::MAX - 2;
        for _ in 0..5 {
            table.clear();
            assert!(table.find_or_insert(&flow(1), 5).1);
            assert!(!table.find_or_insert(&flow(1), 5).1);
        }
    }
}
