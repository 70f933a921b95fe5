//! Socket options of level `SOL_XDP` (and `SOL_SOCKET` for busy polling).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A kernel structure that consists of integers only: valid for every bit pattern.
pub(crate) trait KernelStruct: Copy {}
impl KernelStruct for libc::xdp_mmap_offsets {}
impl KernelStruct for libc::xdp_options {}
impl KernelStruct for libc::xdp_statistics {}

/// Reads an option of level `SOL_XDP`. What an older kernel does not know of stays zero.
pub(crate) fn get<T: KernelStruct>(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<T> {
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
