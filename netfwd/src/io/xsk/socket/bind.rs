//! From nothing to a bound socket, in the order that the kernel wants.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::super::error::{Error, Step};
use super::super::mapping::Mapping;
use super::super::ring::{Consumer, DescriptorSlot, MappedRing, Producer};
use super::*;

/// Nothing is sent, but the kernel wants the ring.
const COMPLETION_RING_SIZE: u32 = 2;

/// Pause between attempts to bind a taken queue.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

impl Socket {
    /// Opens a socket, registers the UMEM, fills the fill ring and binds. The caller then puts the socket into the XSKMAP.
    pub fn bind(umem: Umem, target: Target, options: &Options) -> Result<Self, Error> {
        check_sizes(&umem, options)?;
        let at = |step| move |source| Error::System { target, step, source };
        let fd = open().map_err(at(Step::OpenSocket))?;
        set_xdp(fd.as_fd(), libc::XDP_UMEM_REG, &umem.registration()).map_err(at(Step::RegisterUmem))?;
        let (rx, fill) = set_up_rings(fd.as_fd(), options).map_err(at(Step::SetUpRings))?;
        if let Some(busy_poll) = options.busy_poll {
            set_busy_poll(fd.as_fd(), busy_poll).map_err(at(Step::SetBusyPoll))?;
        }
        let assembly = Assembly::with_capacity(if options.scatter_gather { ASSEMBLED_MAX } else { 0 });
        let mut socket = Self {
            fd,
            target,
            rx,
            fill,
            umem,
            mode: Mode::Copy,
            scatter_gather: false,
            busy_poll: options.busy_poll.is_some(),
            assembly,
            refused: Refused::default(),
        };
        socket.fill.fill(u32::MAX, || socket.umem.lend());
        socket.scatter_gather = bind_with_fallback(socket.as_fd(), target, options).map_err(at(Step::Bind))?;
        socket.mode = read_mode(socket.as_fd()).map_err(at(Step::ReadMode))?;
        socket.wake_if_needed();
        Ok(socket)
    }
}

fn check_sizes(umem: &Umem, options: &Options) -> Result<(), Error> {
    if !options.rx_size.is_power_of_two() || !options.fill_size.is_power_of_two() {
        return Err(Error::Sizes("ring sizes must be powers of two"));
    }
    if umem.free() < options.fill_size {
        return Err(Error::Sizes("the UMEM needs at least as many frames as the fill ring has entries"));
    }
    Ok(())
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

type Rings = (Consumer<MappedRing<DescriptorSlot>>, Producer<MappedRing<AtomicU64>>);

fn set_up_rings(fd: BorrowedFd<'_>, options: &Options) -> io::Result<Rings> {
    set_xdp(fd, libc::XDP_UMEM_FILL_RING, &options.fill_size)?;
    set_xdp(fd, libc::XDP_UMEM_COMPLETION_RING, &COMPLETION_RING_SIZE)?;
    set_xdp(fd, libc::XDP_RX_RING, &options.rx_size)?;
    let offsets: libc::xdp_mmap_offsets = option::get(fd, libc::XDP_MMAP_OFFSETS)?;

    let length = MappedRing::<DescriptorSlot>::length(&offsets.rx, options.rx_size);
    let mapping = Mapping::ring(fd, length, libc::XDP_PGOFF_RX_RING)?;
    let rx = MappedRing::new(mapping, &offsets.rx, options.rx_size).ok_or(io::ErrorKind::InvalidData)?;

    let length = MappedRing::<AtomicU64>::length(&offsets.fr, options.fill_size);
    let mapping = Mapping::ring(fd, length, libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t)?;
    let fill = MappedRing::new(mapping, &offsets.fr, options.fill_size).ok_or(io::ErrorKind::InvalidData)?;
    Ok((Consumer::new(rx), Producer::new(fill)))
}

fn set_busy_poll(fd: BorrowedFd<'_>, busy_poll: BusyPoll) -> io::Result<()> {
    let set = |name, value: libc::c_int| option::set(fd, libc::SOL_SOCKET, name, &value);
    set(libc::SO_PREFER_BUSY_POLL, 1)?;
    set(libc::SO_BUSY_POLL, busy_poll.microseconds.into())?;
    set(libc::SO_BUSY_POLL_BUDGET, busy_poll.budget.into())
}

/// Binds, without scatter-gather if the kernel refuses that. Returns whether it is on.
fn bind_with_fallback(fd: BorrowedFd<'_>, target: Target, options: &Options) -> io::Result<bool> {
    // Without a flag the kernel tries zero-copy and falls back by itself (xp_assign_dev).
    let flags = libc::XDP_USE_NEED_WAKEUP
        | match options.zero_copy {
            ZeroCopy::Auto => 0,
            ZeroCopy::Require => libc::XDP_ZEROCOPY,
            ZeroCopy::Off => libc::XDP_COPY,
        };
    if options.scatter_gather {
        match bind_when_free(fd, target, flags | libc::XDP_USE_SG, options.busy_wait) {
            // Kernels before 6.6 do not know the flag; some drivers cannot.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
            result => return result.map(|()| true),
        }
    }
    bind_when_free(fd, target, flags, options.busy_wait).map(|()| false)
}

/// Binds; a taken queue is tried again for a while, since the kernel frees it only some time after the last socket is closed
/// (xp_release_deferred).
fn bind_when_free(fd: BorrowedFd<'_>, target: Target, flags: u16, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match bind_once(fd, target, flags) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(BUSY_PAUSE);
            }
            result => return result,
        }
    }
}

fn bind_once(fd: BorrowedFd<'_>, target: Target, flags: u16) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: target.ifindex,
        sxdp_queue_id: target.queue,
        sxdp_shared_umem_fd: 0,
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: address has `length` readable bytes.
    let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn read_mode(fd: BorrowedFd<'_>) -> io::Result<Mode> {
    let options: libc::xdp_options = option::get(fd, libc::XDP_OPTIONS)?;
    let zero_copy = options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
    Ok(if zero_copy { Mode::ZeroCopy } else { Mode::Copy })
}

fn set_xdp<T: Copy>(fd: BorrowedFd<'_>, name: libc::c_int, value: &T) -> io::Result<()> {
    option::set(fd, libc::SOL_XDP, name, value)
}
