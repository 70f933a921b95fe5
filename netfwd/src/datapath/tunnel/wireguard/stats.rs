//! What a device counts besides packets.
//!
//! Handshakes are rare and counted by two threads (a responder's is complete when a worker has opened the first packet), so
//! these are ordinary atomic additions.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The `role` label of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We asked for it.
    Initiator,
    /// The peer asked for it.
    Responder,
}

impl Role {
    /// Every value, in index order.
    pub const ALL: [Self; 2] = [Self::Initiator, Self::Responder];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Initiator => "initiator",
            Self::Responder => "responder",
        }
    }
}

/// The `result` label of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeResult {
    /// There is a session, and both sides have used it.
    Completed,
    /// A message was refused: wrong key, MAC or preshared key, or a replay.
    Refused,
    /// The peer did not answer for 90 seconds.
    GaveUp,
}

impl HandshakeResult {
    /// Every value, in index order.
    pub const ALL: [Self; 3] = [Self::Completed, Self::Refused, Self::GaveUp];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Refused => "refused",
            Self::GaveUp => "gave_up",
        }
    }
}

/// One device's counts.
#[derive(Debug, Default)]
pub struct Stats {
    handshakes: [[AtomicU64; HandshakeResult::ALL.len()]; Role::ALL.len()],
    cookie_replies: AtomicU64,
    keepalives: AtomicU64,
    under_load: AtomicBool,
}

impl Stats {
    /// Handshakes that ended like this.
    pub fn handshakes(&self, role: Role, result: HandshakeResult) -> u64 {
        self.handshakes[role as usize][result as usize].load(Ordering::Relaxed)
    }

    /// Cookies sent to prove addresses.
    pub fn cookie_replies(&self) -> u64 {
        self.cookie_replies.load(Ordering::Relaxed)
    }

    /// Keepalives received.
    pub fn keepalives(&self) -> u64 {
        self.keepalives.load(Ordering::Relaxed)
    }

    /// Whether handshakes need a cookie now.
    pub fn under_load(&self) -> bool {
        self.under_load.load(Ordering::Relaxed)
    }

    pub(super) fn count_handshake(&self, role: Role, result: HandshakeResult) {
        self.handshakes[role as usize][result as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_cookie_reply(&self) {
        self.cookie_replies.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_keepalives(&self, keepalives: u64) {
        if keepalives != 0 {
            self.keepalives.fetch_add(keepalives, Ordering::Relaxed);
        }
    }

    pub(super) fn set_under_load(&self, under_load: bool) {
        self.under_load.store(under_load, Ordering::Relaxed);
    }
}
