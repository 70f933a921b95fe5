//! The one way to read a packet: bounds-checked loads from a position.
//!
//! The classifier is written against [`Cursor`], so the same source runs over a slice in user space, tests and fuzzers,
//! and over packet pointers under the BPF verifier. The trait is shaped by the poorer of the two: constant-size loads
//! only, one loop, and no reference into the packet ever leaves it.

use zerocopy::FromBytes as _;

use crate::checksum::Sum;

/// A position in a packet.
pub trait Cursor: Copy {
    /// Readable bytes from here.
    fn len(self) -> usize;

    /// Whether nothing is readable from here.
    fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Bytes that the packet has from here, readable or not: an XDP buffer may continue in fragments.
    fn total_len(self) -> usize {
        self.len()
    }

    /// The position `len` bytes further on. Behind the end nothing can be loaded.
    ///
    /// Behind a header of variable length this is more than convenience: the verifier starts afresh from here, so that what
    /// follows is verified once and not once for every way that led to it.
    #[must_use]
    fn skip(self, len: usize) -> Self;

    /// The 16-bit value `offset` bytes from here, in network byte order, if it is there.
    fn load_u16(self, offset: usize) -> Option<u16>;

    /// The `N` 32-bit words `offset` bytes from here, in memory order, if they are all there. Headers are multiples of 32
    /// bits; as words they stay aligned on the BPF stack, where the verifier insists on it, and add up directly.
    fn load_words<const N: usize>(self, offset: usize) -> Option<[u32; N]>;

    /// The one's complement sum of `len` bytes from here, if they are all there and this cursor can sum so many.
    fn sum(self, len: usize) -> Option<Sum>;
}

impl Cursor for &[u8] {
    fn len(self) -> usize {
        <[u8]>::len(self)
    }

    fn skip(self, len: usize) -> Self {
        self.get(len..).unwrap_or_default()
    }

    fn load_u16(self, offset: usize) -> Option<u16> {
        self.get(offset..)?.first_chunk().copied().map(u16::from_be_bytes)
    }

    fn load_words<const N: usize>(self, offset: usize) -> Option<[u32; N]> {
        let (words, _) = <[[u8; 4]; N]>::read_from_prefix(self.get(offset..)?).ok()?;
        Some(words.map(u32::from_ne_bytes))
    }

    fn sum(self, len: usize) -> Option<Sum> {
        Some(Sum::ZERO.add(self.get(..len)?))
    }
}
