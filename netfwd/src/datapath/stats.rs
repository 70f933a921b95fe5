//! What a worker counts.
//!
//! Each worker owns one [`Counters`]; a scrape reads them all and sums. A [`Counter`] has one writer, so an increment is
//! a relaxed load, an add and a relaxed store: the same instructions as for a plain integer, with no publishing step to
//! forget. Per-worker blocks are separate allocations, so workers share no cache line.

use std::sync::atomic::{AtomicU64, Ordering};

use netfwd_common::reason::{DropReason, FlushReason, Stage};
use netfwd_common::wire::{IPPROTO_TCP, IPPROTO_UDP};

use super::packet::TunnelIndex;
use super::places::can_occur;

/// A count with a single writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker may call this: it is not an atomic read-modify-write.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The `proto` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    /// TCP over either family.
    Tcp,
    /// UDP over either family.
    Udp,
    /// Everything else.
    Other,
}

impl Proto {
    /// Every value, in index order.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Other];

    /// Of an IP protocol number.
    pub const fn of(protocol: u8) -> Self {
        match protocol {
            IPPROTO_TCP => Self::Tcp,
            IPPROTO_UDP => Self::Udp,
            _ => Self::Other,
        }
    }

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Other => "other",
        }
    }
}

/// The direction of a drop: the `direction` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Underlay to overlay.
    Ingress,
    /// Overlay to underlay.
    Egress,
}

impl Direction {
    /// Every value, in index order.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Drops by direction, stage and reason.
#[derive(Debug, Default)]
pub struct Drops([[Reasons; Stage::ALL.len()]; Direction::ALL.len()]);

#[derive(Debug)]
struct Reasons([Counter; DropReason::COUNT]);

impl Default for Reasons {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Drops {
    /// Counts `packets`.
    pub fn add(&self, direction: Direction, stage: Stage, reason: DropReason, packets: u64) {
        debug_assert!(can_occur(direction, stage, reason), "{direction:?} {stage:?} {reason:?} is not in the table");
        self.0[direction as usize][stage as usize].0[reason.index()].add(packets);
    }

    /// How many so far.
    pub fn get(&self, direction: Direction, stage: Stage, reason: DropReason) -> u64 {
        self.0[direction as usize][stage as usize].0[reason.index()].get()
    }
}

/// Errors by errno: the ones that occur get a slot, the rest share the last.
#[derive(Debug, Default)]
pub struct Errnos([Counter; Errnos::NAMES.len()]);

impl Errnos {
    /// The label of each slot.
    pub const NAMES: [&'static str; 12] = [
        "EAGAIN",
        "ENOBUFS",
        "ENOMEM",
        "EINVAL",
        "EIO",
        "EMSGSIZE",
        "EPERM",
        "ENETUNREACH",
        "EHOSTUNREACH",
        "ECONNREFUSED",
        "ENETDOWN",
        "other",
    ];

    /// Counts an error.
    pub fn count(&self, error: &std::io::Error) {
        let slot = match error.raw_os_error() {
            Some(libc::EAGAIN) => 0,
            Some(libc::ENOBUFS) => 1,
            Some(libc::ENOMEM) => 2,
            Some(libc::EINVAL) => 3,
            Some(libc::EIO) => 4,
            Some(libc::EMSGSIZE) => 5,
            Some(libc::EPERM) => 6,
            Some(libc::ENETUNREACH) => 7,
            Some(libc::EHOSTUNREACH) => 8,
            Some(libc::ECONNREFUSED) => 9,
            Some(libc::ENETDOWN) => 10,
            _ => 11,
        };
        self.0[slot].add(1);
    }

    /// Each label with its count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Self::NAMES.into_iter().zip(self.0.iter().map(Counter::get))
    }
}

/// One tunnel's traffic through one worker.
#[derive(Debug, Default)]
pub struct TunnelCounters {
    /// Inner packets received from the underlay and accepted.
    pub receive_packets: Counter,
    /// Their bytes, inner headers included.
    pub receive_bytes: Counter,
    /// Datagrams sent to the underlay.
    pub transmit_packets: Counter,
    /// Their inner bytes.
    pub transmit_bytes: Counter,
    /// Packets handed to the coalescer, by [`Proto`].
    pub gro_input_packets: [Counter; 3],
    /// Frames it let go, by [`Proto`].
    pub gro_output_frames: [Counter; 3],
    /// Frames read from the device.
    pub tun_read_frames: Counter,
    /// Frames written to the device.
    pub tun_write_frames: Counter,
    /// Errors of reads and writes.
    pub tun_errors: Errnos,
    /// Segments cut from GSO superframes, by [`Proto`].
    pub tso_output_packets: [Counter; 3],
    /// Sightings of an inner source address that the full forwarding database could not take.
    pub fdb_full: Counter,
}

/// Upper bounds of the buckets of [`Counters::gro_frame_segments`]; one more bucket has none.
pub const SEGMENT_BUCKETS: [u64; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// Everything one worker counts.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    /// Drops in user space.
    pub drops: Drops,
    /// What `verify = "count"` let through in user space, by [`DropReason`].
    pub tolerated: [Counter; DropReason::COUNT],
    /// By tunnel index.
    pub tunnels: Box<[TunnelCounters]>,
    /// Why packets seeded runs, by [`FlushReason`].
    pub gro_flush: [Counter; FlushReason::COUNT],
    /// Frames by number of packets, not cumulative.
    pub gro_frame_segments: [Counter; SEGMENT_BUCKETS.len() + 1],
    /// Sum of the packets of all frames.
    pub gro_frame_segments_sum: Counter,
    /// Errors of datagram sends.
    pub udp_send_errors: Errnos,
    /// Datagrams that the kernel dropped because a receive buffer was full (SO_RXQ_OVFL).
    pub udp_receive_drops: Counter,
    /// Nanoseconds spent on batches.
    pub busy_nanoseconds: Counter,
}

impl Counters {
    /// Zeroes for `tunnels` tunnels.
    pub fn new(tunnels: usize) -> Self {
        Self {
            drops: Drops::default(),
            tolerated: std::array::from_fn(|_| Counter::default()),
            tunnels: (0..tunnels).map(|_| TunnelCounters::default()).collect(),
            gro_flush: std::array::from_fn(|_| Counter::default()),
            gro_frame_segments: std::array::from_fn(|_| Counter::default()),
            gro_frame_segments_sum: Counter::default(),
            udp_send_errors: Errnos::default(),
            udp_receive_drops: Counter::default(),
            busy_nanoseconds: Counter::default(),
        }
    }

    /// The counters of a tunnel that the forwarding table knows.
    pub fn tunnel(&self, index: TunnelIndex) -> &TunnelCounters {
        &self.tunnels[usize::from(index.0)]
    }

    /// Counts a frame of `packets` in the histogram.
    pub fn frame_segments(&self, packets: u64) {
        let bucket = SEGMENT_BUCKETS.partition_point(|&bound| bound < packets);
        self.gro_frame_segments[bucket].add(1);
        self.gro_frame_segments_sum.add(packets);
    }
}
