//! Where peers with a session are.
//!
//! A peer that wants a new session says so from where it was heard last. In a flood from forged sources that alone tells it from
//! the crowd, and so its traffic goes on; whoever knows the place of a peer and forges that gets what the limit per address
//! lets through, no more.
//!
//! Invariant: a worker never waits here. While the places change it may take a known one for unknown.

use std::collections::HashSet;
use std::mem;
use std::net::SocketAddr;
use std::sync::{PoisonError, RwLock};

#[derive(Default)]
pub(super) struct Places(RwLock<HashSet<SocketAddr>>);

impl Places {
    /// Whether a peer is there.
    pub(super) fn contains(&self, place: &SocketAddr) -> bool {
        self.0.try_read().is_ok_and(|places| places.contains(place))
    }

    /// Takes these for the known ones, and leaves what was known before: its allocation can be used again.
    pub(super) fn replace(&self, places: &mut HashSet<SocketAddr>) {
        mem::swap(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), places);
    }
}
