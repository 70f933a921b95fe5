//! UDP socket options that the standard library has no names for.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Every later send on this socket is cut into datagrams of `size` bytes by the kernel or the device.
pub fn set_segment_size(socket: &UdpSocket, size: u16) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, size.into())
}

/// Receives may return several datagrams of one flow at once.
pub fn set_gro(socket: &UdpSocket) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Room for a burst while the reader is not running; the limit of the system is ignored, which takes root.
pub fn set_receive_buffer(socket: &UdpSocket, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
        .or_else(|_| set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes))
}

fn set_option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointer and the length describe `value`, which outlives the call; the descriptor is the socket's.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives once; returns the length and the size of the datagrams that GRO joined (the last may be shorter).
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, usize)> {
    // Aligned as cmsghdr has to be, with room for one int.
    let mut control = [0_u64; 4];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeroes is a valid msghdr: no name, no parts, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer in `message` is to a local or to `buffer`, with its length, and they outlive the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    Ok((length, segment_size(&control, message.msg_controllen).unwrap_or(length)))
}

/// Reads the one control message there can be: `cmsghdr { u64 length, i32 level, i32 type }`, then an int.
fn segment_size(control: &[u64; 4], length: usize) -> Option<usize> {
    let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let int = |at: usize| Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let present = length >= 20 && int(8)? == libc::SOL_UDP && int(12)? == libc::UDP_GRO;
    if present { usize::try_from(int(16)?).ok() } else { None }
}
