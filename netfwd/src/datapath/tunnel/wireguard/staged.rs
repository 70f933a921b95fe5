//! Packets that wait for their peer's handshake.
//!
//! The first packets to an idle peer would be lost without it: a TCP connection would start a second late. They are kept in
//! the clear, since the session that will seal them does not exist yet.
//!
//! Invariants: at most [`MAX_PACKETS`] per peer, as in the kernel (`MAX_STAGED_PACKETS`), and [`MAX_BYTES`] per device; the
//! oldest makes room for the newest, whose buffer it gives. Nothing is kept of an empty queue.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most packets that wait for one peer.
pub const MAX_PACKETS: usize = 128;
/// Most bytes that wait for all peers of a device.
pub const MAX_BYTES: usize = 16 << 20;

/// The bytes that wait for all peers of a device.
#[derive(Debug, Default)]
pub(super) struct Budget(AtomicUsize);

impl Budget {
    fn take(&self, bytes: usize) -> bool {
        let taken = self.0.fetch_add(bytes, Ordering::Relaxed) + bytes <= MAX_BYTES;
        if !taken {
            self.give(bytes);
        }
        taken
    }

    fn give(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A packet in the clear and its ECN field.
pub(super) struct StagedPacket {
    pub(super) bytes: Vec<u8>,
    pub(super) ecn: u8,
}

/// One peer's packets, oldest first.
#[derive(Default)]
pub(super) struct Staged(VecDeque<StagedPacket>);

impl Staged {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends a packet; how many packets were dropped for it, itself included.
    pub(super) fn push(&mut self, budget: &Budget, ecn: u8, packet: &[u8]) -> usize {
        let oldest = if self.0.len() == MAX_PACKETS { self.pop(budget) } else { None };
        let dropped = usize::from(oldest.is_some());
        if !budget.take(packet.len()) {
            return dropped + 1;
        }
        let mut bytes = oldest.map(|packet| packet.bytes).unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(packet);
        self.0.push_back(StagedPacket { bytes, ecn });
        dropped
    }

    /// The oldest packet.
    pub(super) fn front(&self) -> Option<&StagedPacket> {
        self.0.front()
    }

    /// Takes the oldest packet out.
    pub(super) fn pop(&mut self, budget: &Budget) -> Option<StagedPacket> {
        let packet = self.0.pop_front()?;
        budget.give(packet.bytes.len());
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
        Some(packet)
    }

    /// Forgets all packets; how many there were.
    pub(super) fn clear(&mut self, budget: &Budget) -> usize {
        std::iter::from_fn(|| self.pop(budget)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(staged: &mut Staged, budget: &Budget) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| staged.pop(budget)).map(|packet| packet.bytes).collect()
    }

    #[test]
    fn the_oldest_makes_room_for_the_newest() {
        let (budget, mut staged) = (Budget::default(), Staged::default());
        let dropped: usize = (0..MAX_PACKETS + 3).map(|n| staged.push(&budget, 0, &[n as u8, 7])).sum();
        assert_eq!(dropped, 3);
        let kept = contents(&mut staged, &budget);
        assert_eq!(kept.len(), MAX_PACKETS);
        assert_eq!((&kept[0], &kept[MAX_PACKETS - 1]), (&vec![3, 7], &vec![MAX_PACKETS as u8 + 2, 7]));
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_device_keeps_no_more_than_its_budget() {
        let (budget, packet) = (Budget::default(), vec![0; MAX_BYTES / 64]);
        let mut peers: Vec<_> = (0..2).map(|_| Staged::default()).collect();
        for _ in 0..32 {
            assert!(peers.iter_mut().all(|staged| staged.push(&budget, 0, &packet) == 0));
        }
        assert_eq!(peers[0].push(&budget, 0, &packet), 1);
        assert_eq!(peers[1].clear(&budget), 32);
        assert_eq!(peers[0].push(&budget, 0, &packet), 0);
    }
}
