//! Memory mappings: the UMEM's anonymous memory and the rings that the kernel shares.
//!
//! Invariant: a [`Mapping`] is page aligned, readable and writable for its whole length, and initialised (the kernel hands
//! out zeroed pages) until it is dropped.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

const HUGE_PAGE: usize = 2 << 20;

/// One `mmap`, unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping belongs to the process, not to the thread that made it.
unsafe impl Send for Mapping {}
// SAFETY: shared references give out raw pointers only; whoever dereferences them answers for aliasing.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Anonymous memory, in huge pages where the size and the system allow it: reserved ones, else transparent ones.
    pub(super) fn anonymous(length: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        if length < HUGE_PAGE {
            return Self::map(length, flags | libc::MAP_POPULATE, -1, 0);
        }
        let reserved = flags | libc::MAP_HUGETLB | libc::MAP_POPULATE;
        if let Ok(mapping) = Self::map(length.next_multiple_of(HUGE_PAGE), reserved, -1, 0) {
            return Ok(mapping);
        }
        // Not populated before the advice; registering the UMEM brings all of it in.
        let mapping = Self::map(length, flags, -1, 0)?;
        mapping.advise_huge_pages();
        Ok(mapping)
    }

    /// A wish: without it everything works, with more TLB misses.
    fn advise_huge_pages(&self) {
        // SAFETY: the range is this mapping, and the advice does not change its contents.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.length, libc::MADV_HUGEPAGE) };
    }

    /// A ring of an AF_XDP socket: `offset` is one of the `XDP_*PGOFF*` values.
    pub(super) fn ring(fd: BorrowedFd<'_>, length: usize, offset: libc::off_t) -> io::Result<Self> {
        Self::map(length, libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), offset)
    }

    fn map(length: usize, flags: libc::c_int, fd: libc::c_int, offset: libc::off_t) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a null hint without MAP_FIXED never replaces an existing mapping.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { base, length })
    }

    /// The first byte.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes mapped, at least what was asked for.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// `count` values of `T` at `offset`, if they lie inside the mapping and are aligned.
    pub(super) fn at<T>(&self, offset: usize, count: usize) -> Option<NonNull<[T]>> {
        let end = size_of::<T>().checked_mul(count)?.checked_add(offset)?;
        if end > self.length || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: offset ≤ end ≤ length, so the pointer stays inside the mapping.
        let first = unsafe { self.base.add(offset) };
        Some(NonNull::slice_from_raw_parts(first.cast(), count))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of one successful mmap, and no reference into it outlives its owner.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_stay_inside_and_aligned() {
        let mapping = Mapping::anonymous(4096).unwrap();
        assert!(mapping.at::<u64>(4088, 1).is_some());
        assert!(mapping.at::<u64>(4088, 2).is_none());
        assert!(mapping.at::<u64>(4, 1).is_none());
        assert!(mapping.at::<u64>(usize::MAX - 7, usize::MAX).is_none());
    }
}
