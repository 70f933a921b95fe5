//! The one way to read a packet: bounds-checked loads at an offset.
//!
//! The classifier is written against [`Cursor`], so the same source runs over a slice in user space, tests and fuzzers,
//! and over packet pointers under the BPF verifier.

use crate::checksum::Sum;

/// Bytes that can be read at checked offsets.
pub trait Cursor {
    /// Readable bytes.
    fn len(&self) -> usize;

    /// Whether nothing is readable.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `N` bytes at `offset`, if they are all there.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The one's complement sum of `len` bytes at `offset`, if they are all there.
    fn sum(&self, offset: usize, len: usize) -> Option<Sum>;
}

impl Cursor for [u8] {
    fn len(&self) -> usize {
        self.len()
    }

    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    fn sum(&self, offset: usize, len: usize) -> Option<Sum> {
        Some(Sum::ZERO.add(self.get(offset..offset.checked_add(len)?)?))
    }
}
