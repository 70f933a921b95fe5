//! Whole frames on one device, past the IP stack.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::{netdevice, sockopt};

/// Room for a burst while the reader is not running.
const RECEIVE_BUFFER: usize = 16 << 20;
/// A reader looks so often whether it is to end.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(100);

/// Which frames a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Everything that the device has.
    InAndOut,
    /// Only what is sent: the device's frames are not copied for it.
    Out,
}

/// A packet socket bound to a device of this thread's namespace.
pub fn open(device: &str, frames: Frames) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before use.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    if frames == Frames::InAndOut {
        sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(RECEIVE_TIMEOUT))?;
    }
    bind(&socket, device, frames)?;
    Ok(socket)
}

fn bind(socket: &OwnedFd, device: &str, frames: Frames) -> io::Result<()> {
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = if frames == Frames::InAndOut { (libc::ETH_P_ALL as u16).to_be() } else { 0 };
    address.sll_ifindex = netdevice::name_to_index(socket, device)? as i32;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer and the length describe `address`, which outlives the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
