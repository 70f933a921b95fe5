//! Which remotes get their datagrams one by one, because the way to them takes no `UDP_SEGMENT`.
//!
//! `udp_send_skb` refuses a run with EIO when the route leads through a transformation (IPsec), and before Linux 6.11 when it
//! leads to an interface without checksum offload. Both belong to the route, so one remote's refusal must not slow others; and
//! both pass when routes or offloads change, so a refused remote is tried again, which costs one failed call in
//! [`RUNS_ALONE`] runs.
//!
//! Invariants: no clock, no lock, bounded memory. Remotes that share a slot share its fate, which is only ever slowness.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs that are sent one by one before the next attempt: tens of megabytes.
pub const RUNS_ALONE: u32 = 1000;

const SLOTS: usize = 64;

/// How many runs each remote still sends one by one; shared by all workers.
#[derive(Debug)]
pub(super) struct Refusals([AtomicU32; SLOTS]);

impl Refusals {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }

    /// Whether runs to `remote` are sent as runs.
    pub(super) fn permits(&self, remote: IpAddr) -> bool {
        self.slot(remote).load(Ordering::Relaxed) == 0
    }

    /// [`permits`](Self::permits), for the next run. Workers may count the same run: it is a pause, not a sum.
    pub(super) fn permits_next(&self, remote: IpAddr) -> bool {
        let slot = self.slot(remote);
        match slot.load(Ordering::Relaxed).checked_sub(1) {
            None => true,
            Some(left) => {
                slot.store(left, Ordering::Relaxed);
                false
            }
        }
    }

    /// The kernel has refused a run to `remote`.
    pub(super) fn note(&self, remote: IpAddr) {
        self.slot(remote).store(RUNS_ALONE, Ordering::Relaxed);
    }

    fn slot(&self, remote: IpAddr) -> &AtomicU32 {
        let mix = |bytes: &[u8]| bytes.iter().fold(0u8, |mixed, byte| mixed.wrapping_mul(31) ^ byte);
        let mixed = match remote {
            IpAddr::V4(v4) => mix(&v4.octets()),
            IpAddr::V6(v6) => mix(&v6.octets()),
        };
        &self.0[usize::from(mixed) % SLOTS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_remote_is_tried_again_and_others_are_not_touched() {
        let refusals = Refusals::new();
        let [refused, other]: [IpAddr; 2] = [[10, 9, 0, 1].into(), [10, 9, 0, 2].into()];
        refusals.note(refused);
        assert!(refusals.permits_next(other) && !refusals.permits(refused));
        let alone = (0..2 * RUNS_ALONE).take_while(|_| !refusals.permits_next(refused)).count();
        assert_eq!(alone, RUNS_ALONE as usize);
        assert!(refusals.permits(refused));
    }
}
