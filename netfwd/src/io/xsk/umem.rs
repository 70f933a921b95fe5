//! The UMEM: packet memory in chunks, and the tokens that own them.
//!
//! Invariants: there is at most one [`Frame`] per chunk in the process. Frames are made once, when the area is; after that
//! they move between the free list, the table of lent frames (the kernel has the chunk) and their users. Only a frame
//! that was dropped outside is made anew, from the list that its `Drop` put it on.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::Error;
use super::mapping::Mapping;
use super::ring::Descriptor;

/// Bytes that the kernel keeps before every packet for XDP (`XDP_PACKET_HEADROOM`).
const XDP_PACKET_HEADROOM: usize = 256;

/// Length of the metadata record that the XDP program puts right before the packet.
pub const METADATA_LEN: usize = 16;

/// Ethernet header and two VLAN tags: what a frame has beyond the MTU.
const LINK_OVERHEAD: usize = 14 + 2 * 4;

/// The size of a UMEM chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkSize {
    /// 2048 bytes: frames up to 1792 bytes less the headroom.
    TwoKiB,
    /// 4096 bytes: frames up to 3840 bytes less the headroom.
    FourKiB,
}

impl ChunkSize {
    /// The smallest chunk that holds the frames of this MTU, or `None` if they need several (scatter-gather).
    pub fn for_mtu(mtu: usize, headroom: usize) -> Option<Self> {
        let wanted = mtu.checked_add(LINK_OVERHEAD)?;
        [Self::TwoKiB, Self::FourKiB].into_iter().find(|size| size.frame_limit(headroom) >= wanted)
    }

    /// Bytes of a chunk.
    pub const fn bytes(self) -> usize {
        match self {
            Self::TwoKiB => 2048,
            Self::FourKiB => 4096,
        }
    }

    /// The longest frame that fits one chunk.
    pub const fn frame_limit(self, headroom: usize) -> usize {
        (self.bytes() - XDP_PACKET_HEADROOM).saturating_sub(headroom)
    }

    const fn shift(self) -> u32 {
        self.bytes().trailing_zeros()
    }
}

/// The memory, shared by the frames that lie in it.
struct Area {
    mapping: Mapping,
    chunk_size: ChunkSize,
    /// Chunks whose frames were dropped instead of released, and where their packets start.
    dropped: Mutex<Vec<(u32, u16)>>,
    /// Whether `dropped` has entries: spares the lock.
    has_dropped: AtomicBool,
}

impl Area {
    fn chunk(&self, index: u32) -> NonNull<u8> {
        let offset = (index as usize) << self.chunk_size.shift();
        debug_assert!(offset + self.chunk_size.bytes() <= self.mapping.length());
        // SAFETY: `Umem::new` makes frames only for chunks that lie wholly inside the mapping.
        unsafe { self.mapping.base().add(offset) }
    }
}

/// Ownership of one UMEM chunk, and of the received range in it.
///
/// Whoever holds it may read and write the chunk; nobody else, the kernel included, can at that time. Dropping it gives the
/// chunk back at the next refill; [`Socket::release`](super::Socket::release) gives a whole batch back at once.
pub struct Frame(Box<Owned>);

/// What a [`Frame`] owns. It is boxed once, when the UMEM is made, since frames move four times per packet: a pointer moves
/// in a register, while sixteen bytes of fields pass through the stack and wait there for each other.
struct Owned {
    area: Arc<Area>,
    chunk: u32,
    /// Where the packet starts in the chunk.
    start: u16,
    length: u16,
}

impl Frame {
    fn new(area: &Arc<Area>, chunk: u32) -> Self {
        Self::starting_at(area, chunk, 0)
    }

    fn starting_at(area: &Arc<Area>, chunk: u32, start: u16) -> Self {
        Self(Box::new(Owned { area: Arc::clone(area), chunk, start, length: 0 }))
    }

    /// The received bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.chunk().get(self.range()).unwrap_or_default()
    }

    /// The received bytes, to change in place.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let range = self.range();
        self.chunk_mut().get_mut(range).unwrap_or_default()
    }

    /// What lies right before the packet: the XDP program's record if it wrote one. `None` if the packet starts too early in
    /// its chunk.
    ///
    /// The record is erased whenever user space lends the chunk again, but the kernel may reuse a chunk by itself (a packet
    /// that found the RX ring full). So a record counts only if the program writes one before *every* redirect.
    #[inline]
    pub fn metadata(&self) -> Option<&[u8; METADATA_LEN]> {
        let (before, _) = self.chunk().split_at_checked(usize::from(self.0.start))?;
        before.last_chunk()
    }

    fn range(&self) -> std::ops::Range<usize> {
        let start = usize::from(self.0.start);
        start..start + usize::from(self.0.length)
    }

    /// Erases the metadata record: when the program leaves none, an earlier packet's must not vouch for this one.
    fn erase_metadata(&mut self) {
        let start = usize::from(self.0.start);
        let record = self.chunk_mut().split_at_mut_checked(start).and_then(|(before, _)| before.last_chunk_mut());
        if let Some(record) = record {
            *record = [0; METADATA_LEN];
        }
    }

    fn chunk(&self) -> &[u8] {
        let first = self.0.area.chunk(self.0.chunk);
        // SAFETY: the chunk is mapped and initialised as long as `area` lives, and this frame is its only owner: it is not
        // in the kernel's hands, and `&self` keeps writers out.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), self.0.area.chunk_size.bytes()) }
    }

    fn chunk_mut(&mut self) -> &mut [u8] {
        let first = self.0.area.chunk(self.0.chunk);
        // SAFETY: as in `chunk`; `&mut self` keeps everybody else out.
        unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), self.0.area.chunk_size.bytes()) }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // The chunk itself is not touched: at the end of a UMEM the kernel may not have let go of it yet.
        let Owned { area, chunk, start, .. } = &*self.0;
        area.dropped.lock().unwrap_or_else(PoisonError::into_inner).push((*chunk, *start));
        area.has_dropped.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("chunk", &self.0.chunk).field("range", &self.range()).finish()
    }
}

/// A UMEM with its free list and the table of frames lent to the kernel.
pub struct Umem {
    area: Arc<Area>,
    headroom: u32,
    /// Last in, first out.
    free: Vec<Frame>,
    /// By chunk: the frames that the kernel has.
    lent: Box<[Option<Frame>]>,
    lent_count: u32,
}

impl Umem {
    /// Maps `frames` chunks. `headroom` bytes (a multiple of 8 is wise) stay free before each packet, beyond the kernel's
    /// own 256.
    pub fn new(chunk_size: ChunkSize, headroom: u32, frames: u32) -> Result<Self, Error> {
        if frames == 0 {
            return Err(Error::Sizes("a UMEM needs at least one frame"));
        }
        if chunk_size.frame_limit(headroom as usize) == 0 {
            return Err(Error::Sizes("the headroom leaves no room for packets"));
        }
        let bytes = (frames as usize)
            .checked_mul(chunk_size.bytes())
            .ok_or(Error::Sizes("the UMEM would be larger than the address space"))?;
        let mapping = Mapping::anonymous(bytes).map_err(|source: io::Error| Error::Memory { bytes, source })?;
        let dropped = Mutex::new(Vec::with_capacity(frames as usize));
        let area = Arc::new(Area { mapping, chunk_size, dropped, has_dropped: AtomicBool::new(false) });
        // The lowest address is on top of the stack.
        let free = (0..frames).rev().map(|chunk| Frame::new(&area, chunk)).collect();
        let lent = (0..frames).map(|_| None).collect();
        Ok(Self { area, headroom, free, lent, lent_count: 0 })
    }

    /// The size of its chunks.
    pub fn chunk_size(&self) -> ChunkSize {
        self.area.chunk_size
    }

    /// How many chunks it has.
    pub fn frames(&self) -> u32 {
        self.lent.len() as u32
    }

    /// What `XDP_UMEM_REG` wants to know.
    pub(super) fn registration(&self) -> libc::xdp_umem_reg {
        libc::xdp_umem_reg {
            addr: self.area.mapping.base().as_ptr().expose_provenance() as u64,
            len: (self.lent.len() * self.area.chunk_size.bytes()) as u64,
            chunk_size: self.area.chunk_size.bytes() as u32,
            headroom: self.headroom,
            flags: 0,
            tx_metadata_len: 0,
        }
    }

    /// Frames on the free list.
    pub(super) fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Frames that the kernel has, in the fill ring, the RX ring or between.
    pub(super) fn lent(&self) -> u32 {
        self.lent_count
    }

    /// Takes the frame that was freed last and hands it to the kernel: its address.
    #[inline]
    pub(super) fn lend(&mut self) -> Option<u64> {
        let mut frame = self.free.pop()?;
        frame.erase_metadata();
        let chunk = frame.0.chunk;
        let entry = self.lent.get_mut(chunk as usize)?;
        debug_assert!(entry.is_none(), "chunk {chunk} had two owners");
        *entry = Some(frame);
        self.lent_count += 1;
        Some(u64::from(chunk) << self.area.chunk_size.shift())
    }

    /// Takes the described frame back from the kernel. `None` if the kernel does not have it, or if the range leaves the
    /// chunk (which then is free again).
    #[inline]
    pub(super) fn take_back(&mut self, descriptor: Descriptor) -> Option<Frame> {
        let chunk = usize::try_from(descriptor.address >> self.area.chunk_size.shift()).ok()?;
        let mut frame = self.lent.get_mut(chunk)?.take()?;
        self.lent_count -= 1;
        let bytes = self.area.chunk_size.bytes();
        let start = descriptor.address as usize & (bytes - 1);
        if descriptor.length as usize > bytes - start {
            self.give_back(frame);
            return None;
        }
        // Both are at most 4096.
        (frame.0.start, frame.0.length) = (start as u16, descriptor.length as u16);
        Some(frame)
    }

    /// Puts a frame on the free list. A frame of another UMEM goes home through its own drop list.
    #[inline]
    pub(super) fn give_back(&mut self, frame: Frame) {
        if Arc::ptr_eq(&frame.0.area, &self.area) {
            self.free.push(frame);
        }
    }

    /// Puts frames that were dropped elsewhere on the free list. Returns whether there were any.
    pub(super) fn collect_dropped(&mut self) -> bool {
        if !self.area.has_dropped.load(Ordering::Relaxed) {
            return false;
        }
        let mut dropped = self.area.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that no drop falls between.
        self.area.has_dropped.store(false, Ordering::Relaxed);
        for (chunk, start) in dropped.drain(..) {
            // `lend` erases the record in front of the start.
            self.free.push(Frame::starting_at(&self.area, chunk, start));
        }
        true
    }
}

impl fmt::Debug for Umem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Umem")
            .field("chunk_size", &self.area.chunk_size)
            .field("frames", &self.frames())
            .field("free", &self.free())
            .field("lent", &self.lent_count)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
