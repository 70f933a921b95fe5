//! A device's own key, and what follows from it: who may make us compute.
//!
//! A handshake message must carry a MAC that is keyed with our public key; and once we are under load, one that is keyed with a
//! cookie that we sent to its source. Both are the library's ([`RateLimiter`]), but it only ever counts messages per source
//! address, and forged sources never repeat. So there are two: the ordinary one, and one that allows nobody anything
//! without a cookie. Which one is asked is decided by how full the queue is ([`Gate`]).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::x25519;

use super::key::{PrivateKey, PublicKey};

/// Handshake messages that one address may send per second without a cookie.
const PER_ADDRESS: u64 = 100;
/// Handshake messages that are looked at per second and device: the limiters remember every source for a second.
const PER_SECOND: u32 = 1 << 16;
/// Handshake messages of strangers that one address may send per second once it is proven (`PACKETS_PER_SECOND` in the
/// kernel's `ratelimiter.c`): to the library a cookie is all that it takes.
const PER_PROVEN_ADDRESS: u32 = 20;
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
    /// Those who proved their address this second, and how often: nobody can forge that, so they are not many.
    proven: HashMap<IpAddr, u32>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { strict_until: None, since: None, seen: 0, proven: HashMap::new() }
    }

    /// What a message needs that is looked at now; `None`: there have been too many this second.
    ///
    /// Nobody who forges sources knows our indices, or where our peers are: what is known needs no cookie, and what is
    /// not takes nothing away from it.
    pub(super) fn admit(&mut self, now: Instant, loaded: bool, is_known: bool) -> Option<Admission> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            (self.since, self.seen) = (Some(now), 0);
            self.proven.clear();
        }
        if loaded {
            self.strict_until = Some(now + AFTERGLOW);
        }
        if is_known {
            return Some(Admission::Ordinary);
        }
        if self.seen == PER_SECOND {
            return None;
        }
        self.seen += 1;
        Some(if self.is_strict(now) { Admission::WithCookie } else { Admission::Ordinary })
    }

    /// Whether one who has proven to be there may have us compute.
    pub(super) fn admit_proven(&mut self, address: IpAddr) -> bool {
        let count = self.proven.entry(network(address)).or_default();
        *count += 1;
        *count <= PER_PROVEN_ADDRESS
    }

    /// Whether cookies are wanted.
    pub(super) fn is_strict(&self, now: Instant) -> bool {
        self.strict_until.is_some_and(|until| now < until)
    }
}

/// What one host has: an IPv6 host gets 2^64 addresses.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_wanted_for_a_second_after_the_queue_was_filling_up() {
        let (mut gate, start) = (Gate::new(), Instant::now());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(gate.admit(at(0), false, false), Some(Admission::Ordinary));
        assert_eq!(gate.admit(at(10), true, false), Some(Admission::WithCookie));
        assert_eq!(gate.admit(at(1009), false, false), Some(Admission::WithCookie));
        assert_eq!(gate.admit(at(1010), false, false), Some(Admission::Ordinary));
    }

    #[test]
    fn what_a_flood_makes_us_remember_is_bounded() {
        let (mut gate, start) = (Gate::new(), Instant::now());
        let admitted = (0..2 * PER_SECOND).filter(|_| gate.admit(start, true, false).is_some());
        assert_eq!(admitted.count(), PER_SECOND as usize);
        assert_eq!(gate.admit(start, true, true), Some(Admission::Ordinary), "what is known does not pay for it");
        assert!(gate.admit(start + Duration::from_secs(1), true, false).is_some());
    }
    #[test]
    fn a_cookie_is_worth_twenty_messages_a_second() {
        let (mut gate, start) = (Gate::new(), Instant::now());
        gate.admit(start, false, false);
        let admitted = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"].map(|address| {
            let address = address.parse().unwrap();
            (0..100).filter(|_| gate.admit_proven(address)).count()
        });
        assert_eq!(admitted, [20, 20, 20, 0]);
        gate.admit(start + Duration::from_secs(1), false, false);
        assert!(gate.admit_proven("192.0.2.1".parse().unwrap()));
    }
}
