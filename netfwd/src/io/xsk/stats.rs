//! What the kernel and the UMEM tell about a socket.

use std::io;
use std::os::fd::BorrowedFd;

use super::socket::option;

/// `struct xdp_statistics`: what the kernel counted since the socket was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpStatistics {
    /// Packets dropped for other reasons than a full RX ring: too long for a chunk, or no chunk to be had.
    pub rx_dropped: u64,
    /// Fill ring entries that the kernel refused.
    pub rx_invalid_descs: u64,
    /// TX ring entries that the kernel refused.
    pub tx_invalid_descs: u64,
    /// Packets dropped because the RX ring was full: user space is too slow.
    pub rx_ring_full: u64,
    /// Times that the kernel found the fill ring empty: too few frames, or held too long.
    pub rx_fill_ring_empty: u64,
    /// Times that the kernel found the TX ring empty.
    pub tx_ring_empty: u64,
}

impl XdpStatistics {
    /// Reads them from any descriptor of the socket, on any thread.
    pub fn read(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let raw: libc::xdp_statistics = option::get(fd, libc::XDP_STATISTICS)?;
        Ok(Self {
            rx_dropped: raw.rx_dropped,
            rx_invalid_descs: raw.rx_invalid_descs,
            tx_invalid_descs: raw.tx_invalid_descs,
            rx_ring_full: raw.rx_ring_full,
            rx_fill_ring_empty: raw.rx_fill_ring_empty_descs,
            tx_ring_empty: raw.tx_ring_empty_descs,
        })
    }

    /// Each value with its name, as in `netfwd_xsk_<name>_total`.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("rx_dropped", self.rx_dropped),
            ("rx_invalid_descs", self.rx_invalid_descs),
            ("tx_invalid_descs", self.tx_invalid_descs),
            ("rx_ring_full", self.rx_ring_full),
            ("rx_fill_ring_empty", self.rx_fill_ring_empty),
            ("tx_ring_empty", self.tx_ring_empty),
        ]
        .into_iter()
    }
}

/// Where the frames of a UMEM are. The sum is the number of its chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// On the free list.
    pub free: u32,
    /// In the fill ring, waiting for the kernel.
    pub fill_ring: u32,
    /// In the kernel's hands or in the RX ring.
    pub kernel: u32,
    /// Held by user space: batches, and frames that were dropped and wait for the next refill.
    pub in_flight: u32,
}

impl FrameCounts {
    /// Each count with its `state` label.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
        [("free", self.free), ("fill_ring", self.fill_ring), ("kernel", self.kernel), ("in_flight", self.in_flight)]
            .into_iter()
    }
}

/// What user space refused of what the kernel delivered: packets, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Packets whose one descriptor names a chunk that the kernel did not have, or a range outside it.
    pub invalid_descriptors: u64,
    /// Packets in several descriptors, longer than any IP packet or with a part missing.
    pub unassembled: u64,
}
