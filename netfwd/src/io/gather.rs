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

    /// Takes the next `bytes` bytes (or what is left) as a gather list in `out`, whose former content is dropped.
    /// `false` if that needs more than [`MAX_SLICES`] entries; the position then stays where it was.
    pub fn take(&mut self, bytes: usize, out: &mut Vec<IoSlice<'a>>) -> bool {
        out.clear();
        let mut at = *self;
        let mut left = bytes;
        while left > 0 {
            let Some((first, rest)) = at.slices.split_first() else { break };
            let piece: &'a [u8] = first.get(at.offset..).unwrap_or_default();
            let taken = piece.len().min(left);
            if taken > 0 {
                if out.len() == MAX_SLICES {
                    return false;
                }
                out.push(IoSlice::new(&piece[..taken]));
                left -= taken;
            }
            if taken == piece.len() {
                at = Self { slices: rest, offset: 0 };
            } else {
                at.offset += taken;
            }
        }
        *self = at;
        true
    }
}

/// Empties a gather list and hands its allocation on to the next batch, whose slices live elsewhere: std collects in
/// place what has the same layout.
pub fn recycle<'b>(mut list: Vec<IoSlice<'_>>) -> Vec<IoSlice<'b>> {
    list.clear();
    list.into_iter().map(|_| IoSlice::new(&[])).collect()
}

/// Bytes in a gather list.
pub fn total_len(slices: &[IoSlice<'_>]) -> usize {
    slices.iter().map(|slice| slice.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(list: &[IoSlice<'_>]) -> Vec<u8> {
        list.iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn pieces_put_together_are_the_whole() {
        let whole: Vec<u8> = (0..40).collect();
        let slices = [&whole[..1], &whole[1..1], &whole[1..17], &whole[17..18], &whole[18..]].map(IoSlice::new);
        let mut list = Vec::new();
        for size in 1..=41 {
            let mut gather = Gather::new(&slices);
            let mut all = Vec::new();
            while gather.remaining() > 0 {
                assert!(gather.take(size, &mut list));
                assert!(total_len(&list) == size || gather.remaining() == 0);
                all.extend(joined(&list));
            }
            assert_eq!(all, whole, "pieces of {size}");
        }
    }

    #[test]
    fn a_list_too_long_for_the_kernel_takes_nothing() {
        let bytes = [7; MAX_SLICES + 1];
        let slices: Vec<_> = bytes.chunks(1).map(IoSlice::new).collect();
        let mut gather = Gather::new(&slices);
        let mut list = Vec::new();
        assert!(!gather.take(MAX_SLICES + 1, &mut list));
        assert_eq!(gather.remaining(), MAX_SLICES + 1);
        assert!(gather.take(MAX_SLICES, &mut list));
        assert_eq!((list.len(), gather.remaining()), (MAX_SLICES, 1));
    }

    #[test]
    fn a_recycled_list_keeps_its_allocation() {
        let list: Vec<IoSlice<'_>> = Vec::with_capacity(MAX_SLICES);
        let place = list.as_ptr() as usize;
        let recycled = recycle(list);
        assert_eq!((recycled.as_ptr() as usize, recycled.capacity()), (place, MAX_SLICES));
    }
}
