//! What is counted outside the workers: in the XDP program, by the kernel for AF_XDP sockets, on the devices.

use netfwd_common::abi::Action;
use netfwd_common::reason::{DropReason, PassReason, Stage};

use super::drops::TOLERABLE;
use super::family::Family;
use super::scrape::Scrape;
use crate::datapath::stats::Direction;
use crate::io::xdp::XdpCounters;

/// Something that is asked at every scrape, on the control thread.
pub trait Source: Send + Sync {
    /// Adds its samples.
    fn collect(&self, scrape: &mut Scrape);
}

impl<F: Fn(&mut Scrape) + Send + Sync> Source for F {
    fn collect(&self, scrape: &mut Scrape) {
        self(scrape);
    }
}

impl XdpCounters {
    /// Adds the counts of `interface`.
    pub fn report(&self, interface: &str, scrape: &mut Scrape) {
        for (action, count) in Action::ALL.into_iter().zip(self.actions) {
            scrape.add(Family::XdpPackets, &[interface, action.as_str()], count);
        }
        for (reason, count) in PassReason::ALL.iter().zip(self.passes) {
            scrape.add(Family::XdpPasses, &[interface, reason.as_str()], count);
        }
        for (reason, count) in DropReason::ALL.iter().zip(self.tolerated) {
            if count > 0 || TOLERABLE.contains(reason) {
                scrape.add(Family::XdpTolerated, &[interface, reason.as_str()], count);
            }
        }
        let labels = [Direction::Ingress.as_str(), Stage::Xdp.as_str()];
        for (reason, count) in DropReason::ALL.iter().zip(self.drops).filter(|(_, count)| *count > 0) {
            scrape.add(Family::Drops, &[labels[0], labels[1], reason.as_str()], count);
        }
    }
}

/// One AF_XDP socket, or a queue without one.
#[derive(Clone, Debug, Default)]
pub struct XskCounts<'a> {
    /// How the queue is read: `zero_copy`, `copy` or `off`.
    pub mode: &'a str,
    /// `rx_dropped` of `struct xdp_statistics`.
    pub rx_dropped: u64,
    /// `rx_invalid_descs`.
    pub rx_invalid_descs: u64,
    /// `tx_invalid_descs`.
    pub tx_invalid_descs: u64,
    /// `rx_ring_full`.
    pub rx_ring_full: u64,
    /// `rx_fill_ring_empty_descs`.
    pub rx_fill_ring_empty: u64,
    /// `tx_ring_empty_descs`.
    pub tx_ring_empty: u64,
    /// UMEM frames by state.
    pub umem_frames: &'a [(&'a str, u64)],
}

impl XskCounts<'_> {
    /// Adds the counts of one queue.
    pub fn report(&self, interface: &str, queue: u32, scrape: &mut Scrape) {
        let queue = queue.to_string();
        let labels = [interface, queue.as_str()];
        scrape.add(Family::XskMode, &[interface, &queue, self.mode], 1);
        scrape.add(Family::XskRxDropped, &labels, self.rx_dropped);
        scrape.add(Family::XskRxInvalidDescs, &labels, self.rx_invalid_descs);
        scrape.add(Family::XskTxInvalidDescs, &labels, self.tx_invalid_descs);
        scrape.add(Family::XskRxRingFull, &labels, self.rx_ring_full);
        scrape.add(Family::XskRxFillRingEmpty, &labels, self.rx_fill_ring_empty);
        scrape.add(Family::XskTxRingEmpty, &labels, self.tx_ring_empty);
        for (state, frames) in self.umem_frames {
            scrape.add(Family::XskUmemFrames, &[interface, &queue, state], *frames);
        }
    }
}

/// This process' resident memory in bytes (`/proc/self/statm`, second field, in pages).
pub(super) fn resident_memory() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}
