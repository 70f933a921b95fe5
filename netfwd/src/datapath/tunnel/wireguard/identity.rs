//! A device's own key, and what follows from it: who may make us compute.
//!
//! A handshake message must carry a MAC that is keyed with our public key; and once we are under load, one that is keyed with a
//! cookie that we sent to its source. Both are the library's ([`RateLimiter`]), but it only ever counts messages per source
//! address, and forged sources never repeat. So there are two: the ordinary one, and one that allows nobody anything
//! without a cookie. Which one is asked is decided by how full the queue is ([`Gate`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::x25519;

use super::key::{PrivateKey, PublicKey};

/// Handshake messages that one address may send per second without a cookie.
const PER_ADDRESS: u64 = 100;
/// Handshake messages that are looked at per second and device: the limiters remember every source for a second.
const PER_SECOND: u32 = 1 << 16;
/// How long cookies are wanted after the queue was last seen filling up, as in the kernel (`wg_receive_handshake_packet`).
const AFTERGLOW: Duration = Duration::from_secs(1);

/// The device's key and its limiters.
pub(super) struct Identity {
    key: PrivateKey,
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    ordinary: Arc<RateLimiter>,
    strict: RateLimiter,
}

impl Identity {
    pub(super) fn new(key: PrivateKey) -> Self {
        let secret = key.secret();
        let public = x25519::PublicKey::from(&secret);
        let ordinary = Arc::new(RateLimiter::new(&public, PER_ADDRESS));
        Self { key, secret, public, ordinary, strict: RateLimiter::new(&public, 0) }
    }

    pub(super) fn key(&self) -> &PrivateKey {
        &self.key
    }

    pub(super) fn secret(&self) -> &x25519::StaticSecret {
        &self.secret
    }

    pub(super) fn public(&self) -> &x25519::PublicKey {
        &self.public
    }

    pub(super) fn public_key(&self) -> PublicKey {
        PublicKey(self.public.to_bytes())
    }

    /// The ordinary limiter, which sessions want to hold.
    pub(super) fn limiter(&self) -> &Arc<RateLimiter> {
        &self.ordinary
    }

    /// The limiter to ask.
    pub(super) fn limiter_for(&self, admission: Admission) -> &RateLimiter {
        match admission {
            Admission::Ordinary => &self.ordinary,
            Admission::WithCookie => &self.strict,
        }
    }

    /// Forgets the sources seen, once a second.
    pub(super) fn reset_counts(&self) {
        self.ordinary.try_reset_count();
        self.strict.try_reset_count();
    }
}

/// What a handshake message needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// A MAC keyed with our public key.
    Ordinary,
    /// One keyed with a cookie, too.
    WithCookie,
}

/// Decides what handshake messages need.
pub(super) struct Gate {
    /// Until when cookies are wanted.
    strict_until: Option<Instant>,
    /// Start of the second that `seen` counts in.
    since: Option<Instant>,
    seen: u32,
}

impl Gate {
    pub(super) const fn new() -> Self {
        Self { strict_until: None, since: None, seen: 0 }
    }

    /// What a message needs that is looked at now; `None`: there have been too many this second.
    pub(super) fn admit(&mut self, now: Instant, loaded: bool) -> Option<Admission> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            (self.since, self.seen) = (Some(now), 0);
        }
        if self.seen == PER_SECOND {
            return None;
        }
        self.seen += 1;
        if loaded {
            self.strict_until = Some(now + AFTERGLOW);
        }
        Some(if self.is_strict(now) { Admission::WithCookie } else { Admission::Ordinary })
    }

    /// Whether cookies are wanted.
    pub(super) fn is_strict(&self, now: Instant) -> bool {
        self.strict_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_wanted_for_a_second_after_the_queue_was_filling_up() {
        let (mut gate, start) = (Gate::new(), Instant::now());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(gate.admit(at(0), false), Some(Admission::Ordinary));
        assert_eq!(gate.admit(at(10), true), Some(Admission::WithCookie));
        assert_eq!(gate.admit(at(1009), false), Some(Admission::WithCookie));
        assert_eq!(gate.admit(at(1010), false), Some(Admission::Ordinary));
    }

    #[test]
    fn what_a_flood_makes_us_remember_is_bounded() {
        let (mut gate, start) = (Gate::new(), Instant::now());
        assert_eq!((0..2 * PER_SECOND).filter(|_| gate.admit(start, true).is_some()).count(), PER_SECOND as usize);
        assert!(gate.admit(start + Duration::from_secs(1), true).is_some());
    }
}
