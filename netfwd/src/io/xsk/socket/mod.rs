//! The socket of one interface queue.

mod assembly;
mod bind;
pub(super) mod option;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::batch::{ASSEMBLED_MAX, RxBatch};
use super::ring::{Consumer, DescriptorSlot, MappedRing, Producer};
use super::stats::{FrameCounts, Refused, XdpStatistics};
use super::umem::{Frame, METADATA_LEN, Umem};
use assembly::Assembly;

/// An interface's receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The interface's index.
    pub ifindex: u32,
    /// The queue, from 0.
    pub queue: u32,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {} of interface {}", self.queue, self.ifindex)
    }
}

/// Whether the driver is to write packets straight into the UMEM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// If the driver can.
    #[default]
    Auto,
    /// Or fail.
    Require,
    /// Never.
    Off,
}

/// How packets reach the UMEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The NIC writes them there.
    ZeroCopy,
    /// The kernel copies them there.
    Copy,
}

impl Mode {
    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ZeroCopy => "zero_copy",
            Self::Copy => "copy",
        }
    }
}

/// Busy polling: the driver is polled from the receive call instead of by interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyPoll {
    /// `SO_BUSY_POLL`: how long a poll may take, in microseconds.
    pub microseconds: u16,
    /// `SO_BUSY_POLL_BUDGET`: packets per poll.
    pub budget: u16,
}

/// What to ask of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Entries of the RX ring, a power of two.
    pub rx_size: u32,
    /// Entries of the fill ring, a power of two, at most the frames of the UMEM. A UMEM of `fill_size` + `rx_size` + the
    /// largest batch never runs dry.
    pub fill_size: u32,
    /// Zero-copy or copy mode.
    pub zero_copy: ZeroCopy,
    /// Take packets larger than a chunk, in several descriptors, if the kernel and driver can.
    pub scatter_gather: bool,
    /// Poll the driver from [`Socket::recv`].
    pub busy_poll: Option<BusyPoll>,
    /// How long to wait for a queue that is taken: the kernel frees a closed socket's queue a little later.
    pub busy_wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rx_size: 2048,
            fill_size: 2048,
            zero_copy: ZeroCopy::Auto,
            scatter_gather: false,
            busy_poll: None,
            busy_wait: Duration::from_millis(500),
        }
    }
}

/// An AF_XDP socket that receives, with its UMEM.
#[derive(Debug)]
pub struct Socket {
    // Dropped first: the kernel lets go of the rings and the UMEM before they are unmapped.
    fd: OwnedFd,
    target: Target,
    rx: Consumer<MappedRing<DescriptorSlot>>,
    fill: Producer<MappedRing<AtomicU64>>,
    umem: Umem,
    mode: Mode,
    scatter_gather: bool,
    busy_poll: bool,
    assembly: Assembly,
    refused: Refused,
}

impl Socket {
    /// A batch for this socket's packets.
    pub fn batch(&self, capacity: usize) -> RxBatch {
        let scratch = if self.scatter_gather { 4 * (METADATA_LEN + ASSEMBLED_MAX) } else { 0 };
        RxBatch::new(capacity, scratch)
    }

    /// Appends up to `max` packets that have arrived, as far as `batch` has room, and returns how many. Never waits.
    pub fn recv(&mut self, batch: &mut RxBatch, max: usize) -> usize {
        if self.umem.collect_dropped() {
            self.refill();
        }
        if self.busy_poll && self.rx.is_empty() {
            self.poll_driver();
        }
        let before = batch.len();
        while batch.len() - before < max && batch.takes_any() {
            let Some(descriptor) = self.rx.pop() else { break };
            let frame = self.umem.take_back(descriptor);
            if descriptor.is_continued() || self.assembly.is_open() {
                self.assemble(frame, descriptor.is_continued(), batch);
            } else if let Some(frame) = frame {
                batch.push(frame);
            } else {
                self.refused.invalid_descriptors += 1;
            }
        }
        self.rx.release();
        batch.len() - before
    }

    /// Gives the batch's frames back and refills the fill ring. Frames of another socket go back to that one.
    pub fn release(&mut self, batch: &mut RxBatch) {
        for frame in batch.drain() {
            self.umem.give_back(frame);
        }
        self.refill();
    }

    /// Lends free frames to the kernel until the fill ring is full, and wakes the driver if it waits for that.
    pub fn refill(&mut self) {
        self.umem.collect_dropped();
        self.fill.fill(u32::MAX, || self.umem.lend());
        self.wake_if_needed();
    }

    /// Wakes the driver if it sleeps for want of frames. To be called before waiting, too.
    pub fn wake_if_needed(&self) {
        if self.fill.needs_wakeup() {
            self.poll_driver();
        }
    }

    /// What the kernel counted.
    pub fn statistics(&self) -> io::Result<XdpStatistics> {
        XdpStatistics::read(self.as_fd())
    }

    /// What was refused here of what the kernel delivered.
    pub fn refused(&self) -> Refused {
        self.refused
    }

    /// Where the frames are.
    pub fn frame_counts(&self) -> FrameCounts {
        let (free, lent) = (self.umem.free(), self.umem.lent());
        let fill_ring = self.fill.pending().min(lent);
        FrameCounts { free, fill_ring, kernel: lent - fill_ring, in_flight: self.umem.frames() - free - lent }
    }

    /// How packets reach the UMEM.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether packets larger than a chunk arrive.
    pub fn has_scatter_gather(&self) -> bool {
        self.scatter_gather
    }

    /// The queue it is bound to.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Copies one part of a larger packet and frees its chunk.
    #[cold]
    fn assemble(&mut self, part: Option<Frame>, continued: bool, batch: &mut RxBatch) {
        self.assembly.append(part.as_ref());
        if let Some(part) = part {
            self.umem.give_back(part);
        }
        if !continued && !self.assembly.finish(batch) {
            self.refused.unassembled += 1;
        }
    }

    /// `recvfrom` without a buffer: xsk_recvmsg polls the driver or wakes it. Its errors (EAGAIN, EBUSY, ENETDOWN while the
    /// interface is down) need no answer: the next call tries again.
    fn poll_driver(&self) {
        // SAFETY: a null buffer of length zero and no address to be written.
        unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker's socket and batches move to its thread.
    #[test]
    fn sockets_and_batches_move_between_threads() {
        fn assert_send<T: Send>() {}
        assert_send::<Socket>();
        assert_send::<RxBatch>();
        assert_send::<Frame>();
    }
}
