//! Socket options of level `SOL_XDP` (and `SOL_SOCKET` for busy polling).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A structure of the kernel's.
///
/// # Safety
///
/// Integers only: valid for every bit pattern.
pub(in crate::io::xsk) unsafe trait KernelStruct: Copy {}
// SAFETY: offsets, all `u64`.
unsafe impl KernelStruct for libc::xdp_mmap_offsets {}
// SAFETY: one `u32`.
unsafe impl KernelStruct for libc::xdp_options {}
// SAFETY: counts, all `u64`.
unsafe impl KernelStruct for libc::xdp_statistics {}

/// Reads an option of level `SOL_XDP`. What an older kernel does not know of stays zero.
pub(in crate::io::xsk) fn get<T: KernelStruct>(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: value has `length` writable bytes.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, name, value.as_mut_ptr().cast(), &mut length) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed before, and every bit pattern is a valid KernelStruct.
    Ok(unsafe { value.assume_init() })
}

/// Sets an option.
pub(super) fn set<T: Copy>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: value has `length` readable bytes.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
