//! AF_XDP receive sockets.
//!
//! The problem: the kernel and user space pass 2 or 4 KiB chunks of one memory area (the UMEM) back and forth by writing
//! chunk addresses into shared rings. An address is a plain integer, so nothing stops a program from handing a chunk back
//! while it still reads it, from handing it back twice, or from never handing it back. Each of these shows up only under
//! load, as a corrupted packet of somebody else's flow.
//!
//! Here a chunk in user space *is* a [`Frame`]: a token that is neither `Clone` nor `Copy`, and the only way to the
//! chunk's bytes.
//!
//! ```text
//!             refill                       kernel writes                 recv
//! free list ────────► fill ring (lent) ───────────────► RX ring (lent) ──────► RxBatch ──┐
//!     ▲                                                                                  │ release
//!     └──────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants:
//!
//! - A chunk has one owner: the free list, the kernel, or whoever holds its `Frame`. Lending a chunk moves its `Frame`
//!   into a table; a descriptor from the kernel takes it out of there. A descriptor of a chunk that was not lent is
//!   counted and ignored, so no descriptor, however wrong, makes a second owner.
//! - A `Frame` that is dropped anywhere, by a panic too, is back on the free list at the next refill.
//! - Freed chunks are reused last in, first out, so the caches keep them.
//! - The fill ring is full before the socket is bound, since some drivers take their buffers only then. The caller
//!   puts the socket into the XSKMAP after that.
//! - Ring indices wrap at 2^32; no index or length read from shared memory is trusted for more than a bounds check.
//!
//! Deliberately absent: transmit (egress leaves through UDP sockets; the kernel insists on a completion ring, which is
//! made as small as can be and never used), XDP_SHARED_UMEM (sockets of one queue share one fill ring: with one thread
//! each that is a lock on the hot path), unaligned chunks, and the XSKMAP, which belongs to whoever loaded the program.

mod batch;
mod error;
mod mapping;
mod ring;
mod socket;
mod stats;
mod umem;

pub use batch::{Received, RxBatch};
pub use error::{Error, Step};
pub use socket::{BusyPoll, Mode, Options, Socket, Target, ZeroCopy};
pub use stats::{FrameCounts, Refused, XdpStatistics};
pub use umem::{ChunkSize, Frame, METADATA_LEN, Umem};
