//! Single-producer, single-consumer rings, as AF_XDP shares them.
//!
//! The problem: two free-running `u32` indices in shared memory say how far the producer and the consumer are. They wrap
//! at 2^32, which a 10 Gbit/s queue reaches within minutes, and the other side changes them at any time.
//!
//! Invariants:
//!
//! - Indices are only added to and compared by wrapping arithmetic; a slot is the index modulo the (power of two) size.
//! - The own index is published with release, the other's is read with acquire: slots are seen as they were written.
//! - The other's index is cached and re-read only when the cache says full or empty.
//! - A nonsensical index (further ahead than the ring is long) reads as "no room" or "nothing there", never out of bounds.
//!
//! The logic is generic over [`RingMemory`]: the kernel's mapping or, in tests, the heap. Slots are atomics read and
//! written relaxed, which costs nothing over plain accesses and needs no `unsafe`.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::mapping::Mapping;

/// One entry of a ring.
pub trait Slot {
    /// What the entry holds.
    type Value: Copy;
    /// Reads it.
    fn load(&self) -> Self::Value;
    /// Writes it.
    fn store(&self, value: Self::Value);
}

/// An entry of the fill ring: a UMEM address.
impl Slot for AtomicU64 {
    type Value = u64;

    fn load(&self) -> u64 {
        AtomicU64::load(self, Ordering::Relaxed)
    }

    fn store(&self, value: u64) {
        AtomicU64::store(self, value, Ordering::Relaxed);
    }
}

/// `struct xdp_desc`: a received range of the UMEM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Offset of the first byte in the UMEM.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// `XDP_PKT_CONTD` or nothing.
    pub options: u32,
}

impl Descriptor {
    /// Whether the packet goes on in the next descriptor.
    pub fn is_continued(self) -> bool {
        self.options & libc::XDP_PKT_CONTD != 0
    }
}

/// A [`Descriptor`] in shared memory.
#[derive(Debug, Default)]
#[repr(C)]
pub struct DescriptorSlot {
    address: AtomicU64,
    length: AtomicU32,
    options: AtomicU32,
}

const _: () = assert!(size_of::<DescriptorSlot>() == size_of::<libc::xdp_desc>());

impl Slot for DescriptorSlot {
    type Value = Descriptor;

    fn load(&self) -> Descriptor {
        Descriptor {
            address: self.address.load(Ordering::Relaxed),
            length: self.length.load(Ordering::Relaxed),
            options: self.options.load(Ordering::Relaxed),
        }
    }

    fn store(&self, value: Descriptor) {
        self.address.store(value.address, Ordering::Relaxed);
        self.length.store(value.length, Ordering::Relaxed);
        self.options.store(value.options, Ordering::Relaxed);
    }
}

/// Where a ring lives.
pub trait RingMemory {
    /// Its entries.
    type Slot: Slot;
    /// How far the producer is.
    fn producer(&self) -> &AtomicU32;
    /// How far the consumer is.
    fn consumer(&self) -> &AtomicU32;
    /// `XDP_RING_NEED_WAKEUP` or nothing.
    fn flags(&self) -> &AtomicU32;
    /// The entries; their number is a power of two.
    fn slots(&self) -> &[Self::Slot];
}

fn slot<M: RingMemory>(memory: &M, index: u32) -> &M::Slot {
    let slots = memory.slots();
    &slots[index as usize & (slots.len() - 1)]
}

fn size<M: RingMemory>(memory: &M) -> u32 {
    memory.slots().len() as u32
}

/// The producing end of a ring.
#[derive(Debug)]
pub struct Producer<M> {
    memory: M,
    /// Next index to write.
    head: u32,
    /// The consumer's index as last seen.
    tail: u32,
}

impl<M: RingMemory> Producer<M> {
    /// Goes on where the memory's indices are.
    pub fn new(memory: M) -> Self {
        debug_assert!(memory.slots().len().is_power_of_two());
        let head = memory.producer().load(Ordering::Relaxed);
        let tail = memory.consumer().load(Ordering::Acquire);
        Self { memory, head, tail }
    }

    /// Writes values that `next` yields until it has no more, `limit` is reached, or the ring is full, and publishes them.
    /// A value is taken from `next` only when there is room for it. Returns how many.
    pub fn fill(&mut self, limit: u32, mut next: impl FnMut() -> Option<<M::Slot as Slot>::Value>) -> u32 {
        let room = self.room(limit).min(limit);
        for written in 0..room {
            let Some(value) = next() else { return self.publish(written) };
            slot(&self.memory, self.head.wrapping_add(written)).store(value);
        }
        self.publish(room)
    }

    /// Whether the kernel sleeps until it is called (`XDP_USE_NEED_WAKEUP`).
    pub fn needs_wakeup(&self) -> bool {
        self.memory.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    /// Published entries that the consumer has not taken yet.
    pub fn pending(&self) -> u32 {
        let taken = self.memory.consumer().load(Ordering::Relaxed);
        self.head.wrapping_sub(taken).min(size(&self.memory))
    }

    /// Free entries; the consumer's index is read again only if fewer than `wanted` are known.
    fn room(&mut self, wanted: u32) -> u32 {
        if self.known_room() < wanted {
            self.tail = self.memory.consumer().load(Ordering::Acquire);
        }
        self.known_room()
    }

    fn known_room(&self) -> u32 {
        size(&self.memory).saturating_sub(self.head.wrapping_sub(self.tail))
    }

    fn publish(&mut self, written: u32) -> u32 {
        if written > 0 {
            self.head = self.head.wrapping_add(written);
            self.memory.producer().store(self.head, Ordering::Release);
        }
        written
    }
}

/// The consuming end of a ring.
#[derive(Debug)]
pub struct Consumer<M> {
    memory: M,
    /// The producer's index as last seen.
    head: u32,
    /// Next index to read.
    tail: u32,
}

impl<M: RingMemory> Consumer<M> {
    /// Goes on where the memory's indices are.
    pub fn new(memory: M) -> Self {
        debug_assert!(memory.slots().len().is_power_of_two());
        let tail = memory.consumer().load(Ordering::Relaxed);
        let head = memory.producer().load(Ordering::Acquire);
        Self { memory, head, tail }
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&mut self) -> bool {
        self.ready() == 0
    }

    /// Takes the next value. The producer gets the entry back with [`release`](Self::release), once for many.
    #[inline]
    pub fn pop(&mut self) -> Option<<M::Slot as Slot>::Value> {
        if self.ready() == 0 {
            return None;
        }
        let value = slot(&self.memory, self.tail).load();
        self.tail = self.tail.wrapping_add(1);
        Some(value)
    }

    /// Gives the taken entries back to the producer. Without any, the shared cache line is left alone.
    pub fn release(&mut self) {
        if self.memory.consumer().load(Ordering::Relaxed) != self.tail {
            self.memory.consumer().store(self.tail, Ordering::Release);
        }
    }

    /// Entries to take; the producer's index is read again only when none are known.
    fn ready(&mut self) -> u32 {
        if self.head == self.tail {
            let head = self.memory.producer().load(Ordering::Acquire);
            // Further ahead than the ring is long cannot be: nothing there to be trusted.
            if head.wrapping_sub(self.tail) <= size(&self.memory) {
                self.head = head;
            }
        }
        self.head.wrapping_sub(self.tail)
    }
}

/// A ring that the kernel shares by `mmap`.
#[derive(Debug)]
pub(super) struct MappedRing<S> {
    /// Keeps what the pointers point to.
    _mapping: Mapping,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<[S]>,
}

// SAFETY: the pointers lead into the owned mapping, which belongs to the process, and to atomics only.
unsafe impl<S: Send> Send for MappedRing<S> {}

impl<S: Slot> MappedRing<S> {
    /// Bytes to map for `entries`.
    pub(super) fn length(offsets: &libc::xdp_ring_offset, entries: u32) -> usize {
        offsets.desc as usize + entries as usize * size_of::<S>()
    }
}

/// What a ring may consist of in memory that another party writes.
///
/// # Safety
///
/// Atomic integers only: valid for every bit pattern, and shared by design.
pub(super) unsafe trait SharedSlot: Slot {}
// SAFETY: one atomic integer.
unsafe impl SharedSlot for AtomicU64 {}
// SAFETY: `repr(C)`, three atomic integers without padding between or behind them.
unsafe impl SharedSlot for DescriptorSlot {}

impl<S: SharedSlot> MappedRing<S> {
    /// The ring inside `mapping`; `None` if the kernel's offsets do not fit it.
    pub(super) fn new(mapping: Mapping, offsets: &libc::xdp_ring_offset, entries: u32) -> Option<Self> {
        if !entries.is_power_of_two() {
            return None;
        }
        let index = |offset: u64| mapping.at::<AtomicU32>(usize::try_from(offset).ok()?, 1).map(NonNull::cast);
        Some(Self {
            producer: index(offsets.producer)?,
            consumer: index(offsets.consumer)?,
            flags: index(offsets.flags)?,
            slots: mapping.at(usize::try_from(offsets.desc).ok()?, entries as usize)?,
            _mapping: mapping,
        })
    }
}

impl<S: SharedSlot> RingMemory for MappedRing<S> {
    type Slot = S;

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: checked by `Mapping::at` to lie inside the mapping, which lives as long as `self`.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.flags.as_ref() }
    }

    fn slots(&self) -> &[S] {
        // SAFETY: as for `producer`; every bit pattern is a valid SharedSlot, and all its fields are atomics.
        unsafe { self.slots.as_ref() }
    }
}

#[cfg(test)]
mod tests;
