//! The RX ring of another process' AF_XDP socket, to be written by a test: what a broken driver or kernel would put there.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{AddressFamily, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Entries of the daemon's RX rings.
const ENTRIES: u32 = 4096;

/// A second mapping of the ring.
pub struct RxRing {
    mapping: *mut u8,
    length: usize,
    offsets: libc::xdp_ring_offset,
    _socket: OwnedFd,
}

impl RxRing {
    /// The ring of the only AF_XDP socket that the process has.
    pub fn of_process(pid: u32) -> Self {
        let socket = xdp_socket(pid);
        let offsets = ring_offsets(socket.as_fd());
        let length = offsets.desc as usize + ENTRIES as usize * size_of::<libc::xdp_desc>();
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let mapping = unsafe {
            let fd = socket.as_raw_fd();
            libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, libc::XDP_PGOFF_RX_RING)
        };
        assert_ne!(mapping, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { mapping: mapping.cast(), length, offsets, _socket: socket }
    }

    /// How many descriptors the kernel has ever put there, modulo 2^32.
    pub fn produced(&self) -> u32 {
        let place = self.mapping.wrapping_add(self.offsets.producer as usize);
        // SAFETY: the kernel has said that the index is there, and both sides access it atomically.
        let producer = unsafe { AtomicU32::from_ptr(place.cast()) };
        producer.load(Ordering::Acquire)
    }

    /// Changes a descriptor that nobody reads at the time.
    pub fn change(&self, number: u32, change: impl FnOnce(&mut libc::xdp_desc)) {
        let place = self.offsets.desc as usize + (number % ENTRIES) as usize * size_of::<libc::xdp_desc>();
        let descriptor = self.mapping.wrapping_add(place).cast::<libc::xdp_desc>();
        // SAFETY: within the mapping; the process whose ring it is stands still, and the kernel does not read it.
        change(unsafe { &mut *descriptor });
    }
}

impl Drop for RxRing {
    fn drop(&mut self) {
        // SAFETY: mapped by `of_process`, and used through `self` only.
        unsafe { libc::munmap(self.mapping.cast(), self.length) };
    }
}

fn xdp_socket(pid: u32) -> OwnedFd {
    let process = Pid::from_raw(pid as i32).expect("a process id");
    let process = pidfd_open(process, PidfdFlags::empty()).expect("a process");
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten();
    let numbers = descriptors.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut copies = numbers.filter_map(|fd| pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok());
    let is_xdp = |copy: &OwnedFd| sockopt::socket_domain(copy) == Ok(AddressFamily::XDP);
    copies.find(is_xdp).expect("an AF_XDP socket")
}

fn ring_offsets(socket: BorrowedFd<'_>) -> libc::xdp_ring_offset {
    // SAFETY: integers only, for which all zeroes is a value.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&offsets) as libc::socklen_t;
    let value = std::ptr::from_mut(&mut offsets).cast();
    // SAFETY: `value` has `length` writable bytes.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, value, &mut length) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    offsets.rx
}
