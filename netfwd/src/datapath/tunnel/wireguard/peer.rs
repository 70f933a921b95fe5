//! A peer: its session, its place, and what waits for it.
//!
//! Invariants: the state is locked once per batch or superframe, never per packet, and no other lock is taken for longer
//! while it is held. A peer that never spoke has no session object ([`Tunn`], ten kilobytes); one that did keeps it, since it
//! remembers the newest handshake's timestamp, without which an old handshake could be replayed.
//!
//! The session object is overwritten before it is freed ([`Wiped`]): the library wipes only some of the keys in it.

use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use gotatun::noise::index_table::IndexTable;
use gotatun::noise::{TimerParams, Tunn};
use gotatun::x25519;

use super::identity::Identity;
use super::key::{PresharedKey, PublicKey};
use super::path::Path;
use super::staged::Staged;
use crate::io::wiped::Wiped;

pub(super) struct Peer {
    pub(super) public_key: PublicKey,
    state: Mutex<State>,
    /// How often the state was locked.
    #[cfg(test)]
    pub(super) locks: AtomicU64,
    /// Bytes of authenticated messages.
    pub(super) received: AtomicU64,
    /// Bytes of messages sent.
    pub(super) transmitted: AtomicU64,
    /// In the device's list of errands.
    pub(super) is_wanted: AtomicBool,
    /// In the device's list of peers whose timers run.
    pub(super) is_active: AtomicBool,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) session: Option<Session>,
    /// The same while the device has no key.
    pub(super) dormant: Option<Session>,
    pub(super) preshared_key: Option<PresharedKey>,
    /// Seconds; 0 for none.
    pub(super) persistent_keepalive: u16,
    pub(super) path: Option<Path>,
    /// The address of ours that the kernel had chosen when the peer last answered. While it speaks to that one, the choice is left
    /// to the kernel: when the way leads through another interface, so does the next datagram.
    chosen: Option<IpAddr>,
    pub(super) staged: Staged,
    pub(super) last_handshake: Option<SystemTime>,
    /// The session indices that lead here.
    pub(super) indices: Vec<u32>,
    /// A handshake has been asked for or is under way.
    pub(super) is_initiating: bool,
    /// Another key of ours has ended a handshake that was under way, or there was no key to begin it with: one is still wanted.
    pub(super) is_interrupted: bool,
    /// We began the last handshake that was completed.
    pub(super) is_initiator: bool,
    /// The session that we answered for, until the peer uses it.
    pub(super) unconfirmed: Option<u32>,
    /// When we last answered.
    pub(super) answered: Option<Instant>,
    /// When the library's clock was last set, or first looked at after its session object was made.
    pub(super) wound: Option<Instant>,
    /// The peer has used it: to be noted by the control side.
    pub(super) is_confirmed: bool,
    /// There has been a session that both sides used, and timers have not ended it yet.
    pub(super) is_established: bool,
    /// The peer was removed from the device; whoever still holds it must not use it.
    pub(super) is_removed: bool,
}

impl State {
    /// Whether the control side was asked for a session, or should have been. There may be no packet that waits for it, since it
    /// found no room.
    pub(super) fn wants_session(&self) -> bool {
        self.is_initiating || self.is_interrupted || !self.staged.is_empty()
    }

    /// Whether the only session is one that the peer may not know yet: its answer may have been lost (whitepaper §5.1, "key
    /// confirmation"). The library would use it.
    pub(super) fn awaits_confirmation(&self) -> bool {
        self.unconfirmed.is_some() && !self.is_established
    }

    /// Where the peer is, if there is a session with it.
    pub(super) fn place(&self) -> Option<SocketAddr> {
        self.path.filter(|_| self.is_established).map(|path| path.remote)
    }

    /// The peer is where that authentic message came from.
    pub(super) fn follow(&mut self, path: Path) {
        self.path = Some(if path.local == self.chosen { Path::to(path.remote) } else { path });
    }

    /// The same with the answer to an initiation of ours.
    pub(super) fn follow_answer(&mut self, path: Path) {
        if self.path.is_some_and(|before| before.local.is_none()) {
            self.chosen = path.local;
        }
        self.follow(path);
    }

    /// A handshake had no answer: the way may lead through another interface by now, where the address that the peer spoke to
    /// is none of ours, though the host still has it (`wg_expired_retransmit_handshake`). The kernel chooses again.
    pub(super) fn distrust_local(&mut self) {
        self.path = self.path.map(|path| Path::to(path.remote));
    }

    /// The way out is another one, whatever the peer spoke to and the kernel had chosen.
    pub(super) fn forget_local(&mut self) {
        self.distrust_local();
        self.chosen = None;
    }

    /// No session is left.
    pub(super) fn forget_sessions(&mut self) {
        (self.is_initiating, self.is_interrupted) = (false, false);
        (self.is_confirmed, self.is_established, self.unconfirmed) = (false, false, None);
    }
}

/// What the library keeps of a peer.
pub(super) struct Session(Wiped<Tunn>);

impl Session {
    pub(super) fn new(
        identity: &Identity,
        peer: PublicKey,
        state: &State,
        indices: &IndexTable,
        timers: Option<&TimerParams>,
    ) -> Self {
        let mut tunn = Wiped::new(Tunn::new(
            identity.secret().clone(),
            x25519::PublicKey::from(peer.0),
            state.preshared_key.as_ref().and_then(PresharedKey::bytes),
            Some(state.persistent_keepalive),
            indices.clone(),
            Arc::clone(identity.limiter()),
        ));
        if let Some(timers) = timers {
            tunn.dangerously_set_timer_params(timers.clone());
        }
        Self(tunn)
    }
}

impl Deref for Session {
    type Target = Tunn;

    fn deref(&self) -> &Tunn {
        &self.0
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Tunn {
        &mut self.0
    }
}

impl Peer {
    pub(super) fn new(public_key: PublicKey) -> Arc<Self> {
        Arc::new(Self {
            public_key,
            state: Mutex::default(),
            #[cfg(test)]
            locks: AtomicU64::new(0),
            received: AtomicU64::new(0),
            transmitted: AtomicU64::new(0),
            is_wanted: AtomicBool::new(false),
            is_active: AtomicBool::new(false),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        #[cfg(test)]
        self.locks.fetch_add(1, Ordering::Relaxed);
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_transmitted(&self, bytes: usize) {
        self.transmitted.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
