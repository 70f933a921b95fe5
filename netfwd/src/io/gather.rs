//! Cutting a gather list at byte positions without copying.

use std::io::IoSlice;

/// Entries of one gather list that the kernel takes (`UIO_MAXIOV`, include/uapi/linux/uio.h).
pub const MAX_SLICES: usize = 1024;

/// A position in a gather list, from which pieces are taken one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Gather<'a> {
    slices: &'a [IoSlice<'a>],
    offset: usize,
}

impl<'a> Gather<'a> {
    /// The start of `slices`.
    pub fn new(slices: &'a [IoSlice<'a>]) -> Self {
        Self { slices, offset: 0 }
    }

    /// Bytes from here to the end.
    pub fn remaining(&self) -> usize {
        total_len(self.slices) - self.offset
    }

    /// Takes the next `bytes` bytes (or what is left) as a gather list written to `out`, and returns its entries.
    /// `None` if `out` is too short for them; the position then stays where it was.
    pub fn take(&mut self, bytes: usize, out: &mut [IoSlice<'a>]) -> Option<usize> {
        let mut at = *self;
        let mut left = bytes;
        let mut count = 0;
        while left > 0 {
            let Some((first, rest)) = at.slices.split_first() else { break };
            let piece: &'a [u8] = first.get(at.offset..).unwrap_or_default();
            let taken = piece.len().min(left);
            if taken > 0 {
                *out.get_mut(count)? = IoSlice::new(&piece[..taken]);
                count += 1;
                left -= taken;
            }
            if taken == piece.len() {
                at = Self { slices: rest, offset: 0 };
            } else {
                at.offset += taken;
            }
        }
        *self = at;
        Some(count)
    }
}

/// Bytes in a gather list.
pub fn total_len(slices: &[IoSlice<'_>]) -> usize {
    slices.iter().map(|slice| slice.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(gather: &mut Gather<'_>, bytes: usize) -> Option<Vec<u8>> {
        let mut gather_copy = *gather;
        let mut out = [IoSlice::new(&[]); 3];
        let count = gather_copy.take(bytes, &mut out)?;
        let joined = out[..count].iter().flat_map(|slice| slice.to_vec()).collect();
        *gather = gather_copy;
        Some(joined)
    }

    #[test]
    fn pieces_put_together_are_the_whole() {
        let whole: Vec<u8> = (0..40).collect();
        let slices = [&whole[..1], &whole[1..1], &whole[1..17], &whole[17..18], &whole[18..]].map(IoSlice::new);
        for size in 1..=41 {
            let mut gather = Gather::new(&slices);
            let mut joined = Vec::new();
            while gather.remaining() > 0 {
                let mut out = [IoSlice::new(&[]); 5];
                let count = gather.take(size, &mut out).unwrap();
                joined.extend(out[..count].iter().flat_map(|slice| slice.to_vec()));
            }
            assert_eq!(joined, whole, "pieces of {size}");
        }
    }

    #[test]
    fn a_list_too_long_for_the_room_takes_nothing() {
        let bytes = [1u8, 2, 3, 4];
        let slices: Vec<_> = bytes.chunks(1).map(IoSlice::new).collect();
        let mut gather = Gather::new(&slices);
        assert_eq!(taken(&mut gather, 4), None);
        assert_eq!(gather.remaining(), 4);
        assert_eq!(taken(&mut gather, 3), Some(vec![1, 2, 3]));
    }
}
