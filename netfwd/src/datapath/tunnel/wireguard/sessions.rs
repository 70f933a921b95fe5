//! From a session's index, which every message carries, to its peer.
//!
//! The library draws the indices at random and gives them back when a session ends, without telling. A new one is seen in the
//! handshake message that we send, and entered here before that message leaves; those that are no longer in use are taken out
//! on that occasion, so a peer never has more than its sessions.
//!
//! Invariants: workers read under a lock that is taken once per batch; writers hold it for a few insertions. No peer is locked
//! while this lock is held (the other way round is what happens).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use gotatun::noise::index_table::IndexTable;

use super::peer::{Peer, State};

pub(super) type ByIndex = HashMap<u32, Arc<Peer>, BuildHasherDefault<IndexHasher>>;

pub(super) struct Sessions {
    by_index: RwLock<ByIndex>,
    table: IndexTable,
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self { by_index: RwLock::default(), table: IndexTable::from_os_rng() }
    }

    /// Where the library draws its indices from.
    pub(super) fn table(&self) -> &IndexTable {
        &self.table
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, ByIndex> {
        self.by_index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, index: u32) -> Option<Arc<Peer>> {
        self.read().get(&index).cloned()
    }

    /// Enters a new index of `peer`, whose locked state is `state`.
    pub(super) fn enter(&self, peer: &Arc<Peer>, state: &mut State, index: u32) {
        self.sweep(peer, state);
        state.indices.push(index);
        self.by_index.write().unwrap_or_else(PoisonError::into_inner).insert(index, Arc::clone(peer));
    }

    /// Takes out the indices of sessions that have ended.
    pub(super) fn sweep(&self, peer: &Arc<Peer>, state: &mut State) {
        if state.indices.iter().all(|index| self.table.in_use(*index)) {
            return;
        }
        let mut by_index = self.by_index.write().unwrap_or_else(PoisonError::into_inner);
        state.indices.retain(|index| {
            let in_use = self.table.in_use(*index);
            // It may be another peer's by now.
            if !in_use && by_index.get(index).is_some_and(|owner| Arc::ptr_eq(owner, peer)) {
                by_index.remove(index);
            }
            in_use
        });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.read().len()
    }
}

/// Indices are random and ours: nobody can choose them so that they collide.
#[derive(Default)]
pub(super) struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32((*byte).into());
        }
    }

    fn write_u32(&mut self, word: u32) {
        // The table wants random bits at both ends. The odd constant is 2^64 / golden ratio.
        self.0 = (self.0 ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}
