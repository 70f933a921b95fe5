//! A small load tool on plain sockets, whose receiver knows what it ought to get.
//!
//! Throughput alone does not show that a gateway is right: one that swaps two segments of a flow, or repairs a checksum
//! over a flipped bit, may be fast too. So each stream is a deterministic function of a seed, and the receiver compares.
//!
//! Sender and receiver are threads in two namespaces of a lab, or two processes (`cargo xtask load`). Deliberately
//! absent: a control channel. The sender's connection, or a closing datagram, tells the receiver all it needs.

pub mod content;
pub mod flood;
pub mod latency;
mod socket;
pub mod tcp;
pub mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes received so far, to be watched from another thread while a run goes on.
#[derive(Debug, Default)]
pub struct Progress(AtomicU64);

impl Progress {
    /// Bytes of payload.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Gbit/s.
pub fn gigabits(bytes: u64, duration: Duration) -> f64 {
    if duration.is_zero() { 0.0 } else { bytes as f64 * 8e-9 / duration.as_secs_f64() }
}

/// Any port on any address of the family that `peer` has.
pub(crate) fn any_address(peer: IpAddr, port: u16) -> SocketAddr {
    match peer {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// Has the time come, or Ctrl-C?
pub(crate) fn over(deadline: Instant) -> bool {
    Instant::now() >= deadline || crate::interrupt::requested()
}
