//! Receiving datagrams on ordinary UDP sockets: the way in for whatever XDP passes on.
//!
//! The kernel hands over aggregates (`UDP_GRO`): one message with the datagrams of one sender back to back, all as long
//! as the first but the last. `recvmmsg` fills a fixed set of 64 KiB buffers, and a [`Batch`] yields the single
//! datagrams as mutable pieces of those buffers, since decapsulation rewrites ECN in place.
//!
//! - Nothing is allocated per batch, and no byte is copied after the kernel's own copy.
//! - Each worker has its own socket on the same address (`SO_REUSEPORT`); the kernel spreads flows by hash.
//! - What the kernel dropped for want of buffer space, or for a wrong outer checksum, is counted (`SO_RXQ_OVFL`).
//!
//! Not here: outer checksums. The kernel verifies them before it delivers.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::slice::ChunksMut;

use rustix::net::sockopt;

use super::control_message::{Control, Messages};
use super::socket::{self, SocketError};

/// Messages per `recvmmsg`: what can meet in a superframe when the kernel did not aggregate (no outer checksum, GRO off). The
/// memory behind the buffers is touched only as far as it is used.
pub const BATCH: usize = 64;
/// Room for one message: the largest UDP payload, aggregated or not, is smaller.
pub const BUFFER_LEN: usize = 1 << 16;
/// SO_RCVBUF: some 5 ms of 10 Gbit/s.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Control messages of one message: UDP_GRO, TOS or traffic class, SO_RXQ_OVFL, each at most 24 bytes, and the
/// destination, at most 40.
const CONTROL_LEN: usize = 136;

/// What to listen to.
#[derive(Clone, Copy, Debug)]
pub struct ReceiveOptions {
    /// The tunnel's local address and port.
    pub local: SocketAddr,
    /// Accept datagrams without a checksum over IPv6 (RFC 6935).
    pub udp6_zero_checksum_rx: bool,
    /// Tell each datagram's destination, for a socket that is bound to every address.
    pub destination: bool,
}

impl ReceiveOptions {
    /// What is sent to one address and port.
    pub fn at(local: SocketAddr) -> Self {
        Self { local, udp6_zero_checksum_rx: false, destination: false }
    }
}

/// One worker's socket on a tunnel's address and port.
#[derive(Debug)]
pub struct ReceiveSocket {
    socket: OwnedFd,
    overflow_seen: u32,
    drops: u64,
}

impl ReceiveSocket {
    /// One socket per worker, all on the same address; the kernel chooses a port instead of 0. An address that someone else
    /// uses is an error even if that someone set SO_REUSEPORT too: two daemons must not share a tunnel's traffic by accident.
    pub fn bind_group(options: &ReceiveOptions, workers: usize) -> Result<Vec<Self>, SocketError> {
        let alone = socket::open_udp(options.local.ip()).map_err(|e| SocketError::other("open a UDP socket", e))?;
        rustix::net::bind(&alone, &options.local).map_err(|e| SocketError::from_bind(options.local, e))?;
        let local = bound_address(&alone).map_err(|e| SocketError::other("ask for a socket's port", e))?;
        drop(alone);
        (0..workers).map(|_| Self::bind(&ReceiveOptions { local, ..*options })).collect()
    }

    fn bind(options: &ReceiveOptions) -> Result<Self, SocketError> {
        let socket = socket::open_udp(options.local.ip()).map_err(|e| SocketError::other("open a UDP socket", e))?;
        configure(&socket, options).map_err(|e| SocketError::other("configure a UDP socket", e))?;
        rustix::net::bind(&socket, &options.local).map_err(|e| SocketError::from_bind(options.local, e))?;
        Ok(Self { socket, overflow_seen: 0, drops: 0 })
    }

    /// Receives what is there into `buffers`; an empty batch if there is nothing.
    pub fn receive<'a>(&mut self, buffers: &'a mut ReceiveBuffers) -> io::Result<Batch<'a>> {
        let mut names = [EMPTY_NAME; BATCH];
        let mut controls = [const { Control::<CONTROL_LEN>::new() }; BATCH];
        let mut iovecs = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH];
        for (iovec, buffer) in iovecs.iter_mut().zip(buffers.storage.chunks_exact_mut(BUFFER_LEN)) {
            *iovec = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        }
        let mut messages: [libc::mmsghdr; BATCH] =
            std::array::from_fn(|i| message(&mut names[i], &mut iovecs[i], &mut controls[i]));
        // SAFETY: names, controls and iovecs live in this frame and the buffers are exclusively borrowed; none of them is
        // touched before the call returns.
        let count = unsafe { receive_messages(&self.socket, &mut messages) }?;
        for (i, message) in messages[..count].iter().enumerate() {
            let control = controls[i].received(message.msg_hdr.msg_controllen as _);
            let truncated = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            let len = if truncated { 0 } else { message.msg_len as usize };
            buffers.received[i] = self.read_control(len, control);
            buffers.received[i].name(&names[i]);
        }
        Ok(Batch {
            storage: &mut buffers.storage[..count * BUFFER_LEN],
            received: &buffers.received[..count],
            at: None,
        })
    }

    fn read_control(&mut self, len: usize, messages: Messages<'_>) -> Received {
        let mut received = Received { len, segment_size: len.max(1), ..Received::EMPTY };
        for message in messages {
            let Some(value) = message.number() else { continue };
            match (message.level, message.kind) {
                (libc::SOL_UDP, libc::UDP_GRO) if value > 0 => received.segment_size = value as usize,
                (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    received.tos = value as u8;
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) | (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    received.destination = read_destination(message.data);
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                    self.drops += u64::from(value.wrapping_sub(self.overflow_seen));
                    self.overflow_seen = value;
                }
                _ => {}
            }
        }
        received
    }

    /// Datagrams that the kernel dropped because the buffer was full, or for their checksum (both are in `sk_drops`), as
    /// far as the messages received since told. The kernel counts an aggregate as one.
    pub fn drops(&self) -> u64 {
        self.drops
    }

    /// The address bound.
    pub fn local(&self) -> io::Result<SocketAddr> {
        bound_address(&self.socket)
    }

    /// Another descriptor of the same socket, to send from.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Empties the queue of ICMP errors, on a socket that was set up to have one.
    pub fn drain_errors(&self) {
        socket::drain_errors(self.socket.as_fd());
    }
}

impl AsFd for ReceiveSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bound_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    SocketAddr::try_from(rustix::net::getsockname(socket)?).map_err(io::Error::from)
}

fn configure(socket: &OwnedFd, options: &ReceiveOptions) -> io::Result<()> {
    sockopt::set_socket_reuseport(socket, true)?;
    socket::set_buffer(socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER)?;
    socket::set_int(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
    let destination = i32::from(options.destination);
    if options.local.is_ipv4() {
        socket::set_int(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        socket::set_int(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, destination)?;
    } else {
        socket::set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        socket::set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, destination)?;
        let zero = i32::from(options.udp6_zero_checksum_rx);
        socket::set_int(socket, libc::SOL_UDP, libc::UDP_NO_CHECK6_RX, zero)?;
    }
    if let Err(error) = socket::set_int(socket, libc::SOL_UDP, libc::UDP_GRO, 1) {
        tracing::info!(local = %options.local, %error, "no UDP_GRO: datagrams are received one by one");
    }
    Ok(())
}

/// A header that points to where the kernel is to write a message's parts.
fn message(
    name: &mut libc::sockaddr_in6,
    iovec: &mut libc::iovec,
    control: &mut Control<CONTROL_LEN>,
) -> libc::mmsghdr {
    // SAFETY: `mmsghdr` is a C structure of integers and pointers, for which all zeroes is a value.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_name = ptr::from_mut(name).cast();
    message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    message.msg_hdr.msg_iov = iovec;
    message.msg_hdr.msg_iovlen = 1;
    let room = control.room();
    message.msg_hdr.msg_control = room.as_mut_ptr().cast();
    message.msg_hdr.msg_controllen = room.len() as _;
    message
}

/// Receives as many messages as are there, and says how many.
///
/// # Safety
///
/// What the headers point to is valid for writes of the stated lengths, and nothing else refers to it meanwhile.
unsafe fn receive_messages(socket: &OwnedFd, messages: &mut [libc::mmsghdr; BATCH]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT as _;
    // SAFETY: the caller keeps what this function's contract says; the headers themselves are a live slice.
    let count = unsafe {
        libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as libc::c_uint, flags, ptr::null_mut())
    };
    if let Ok(count) = usize::try_from(count) {
        return Ok(count.min(BATCH));
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
        _ => Err(error),
    }
}

const EMPTY_NAME: libc::sockaddr_in6 = libc::sockaddr_in6 {
    sin6_family: 0,
    sin6_port: 0,
    sin6_flowinfo: 0,
    sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
    sin6_scope_id: 0,
};

/// The destination address in `struct in_pktinfo` (interface, local address, destination) or `struct in6_pktinfo`
/// (destination, interface).
fn read_destination(info: &[u8]) -> Option<IpAddr> {
    match info.len() {
        12 => info.get(8..12)?.first_chunk().map(|v4: &[u8; 4]| IpAddr::from(*v4)),
        20 => info.first_chunk().map(|v6: &[u8; 16]| IpAddr::from(*v6)),
        _ => None,
    }
}

/// The buffers of one worker, shared by all its sockets: a batch borrows them until it is dealt with.
#[derive(Debug)]
pub struct ReceiveBuffers {
    storage: Box<[u8]>,
    received: [Received; BATCH],
}

impl ReceiveBuffers {
    /// [`BATCH`] buffers of [`BUFFER_LEN`] bytes.
    pub fn new() -> Self {
        Self { storage: vec![0; BATCH * BUFFER_LEN].into_boxed_slice(), received: [Received::EMPTY; BATCH] }
    }
}

impl Default for ReceiveBuffers {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Clone, Copy, Debug)]
struct Received {
    len: usize,
    segment_size: usize,
    remote: IpAddr,
    port: u16,
    scope: u32,
    destination: Option<IpAddr>,
    tos: u8,
}

impl Received {
    const EMPTY: Self = Self {
        len: 0,
        segment_size: 1,
        remote: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        port: 0,
        scope: 0,
        destination: None,
        tos: 0,
    };

    /// Takes the sender out of a name. `sockaddr_in` and `sockaddr_in6` share the first eight bytes: family, port, and v4's
    /// address where v6 has its flow label.
    fn name(&mut self, name: &libc::sockaddr_in6) {
        self.port = u16::from_be(name.sin6_port);
        (self.remote, self.scope) = if i32::from(name.sin6_family) == libc::AF_INET {
            (Ipv4Addr::from(name.sin6_flowinfo.to_ne_bytes()).into(), 0)
        } else {
            (Ipv6Addr::from(name.sin6_addr.s6_addr).into(), name.sin6_scope_id)
        };
    }

    fn datagram<'a>(&self, payload: &'a mut [u8]) -> Datagram<'a> {
        let Self { remote, port, scope, destination, tos, .. } = *self;
        Datagram { payload, remote, port, scope, destination, tos }
    }
}

/// A datagram as it was on the wire.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// The UDP payload.
    pub payload: &'a mut [u8],
    /// Who sent it.
    pub remote: IpAddr,
    /// From which port.
    pub port: u16,
    /// Index of the interface that a link-local sender is on; 0 for all others.
    pub scope: u32,
    /// To which address, if [`ReceiveOptions::destination`] asked for it.
    pub destination: Option<IpAddr>,
    /// Outer TOS / traffic class; ECN is its low two bits.
    pub tos: u8,
}

/// The datagrams of one `recvmmsg`, aggregates cut apart; they may be kept together as long as the batch's buffers are
/// borrowed. An empty datagram is yielded too: it is for the data path to refuse and count.
#[derive(Debug)]
pub struct Batch<'a> {
    storage: &'a mut [u8],
    received: &'a [Received],
    at: Option<(ChunksMut<'a, u8>, Received)>,
}

impl Batch<'_> {
    /// Whether the kernel had nothing to deliver.
    pub fn is_empty(&self) -> bool {
        self.received.is_empty() && self.at.is_none()
    }

    /// Whether every buffer was filled, so that more is likely waiting.
    pub fn is_full(&self) -> bool {
        self.received.len() == BATCH
    }
}

impl<'a> Iterator for Batch<'a> {
    type Item = Datagram<'a>;

    fn next(&mut self) -> Option<Datagram<'a>> {
        loop {
            if let Some((segments, received)) = &mut self.at
                && let Some(payload) = segments.next()
            {
                return Some(received.datagram(payload));
            }
            let (received, rest) = self.received.split_first()?;
            let (buffer, storage) = std::mem::take(&mut self.storage).split_at_mut_checked(BUFFER_LEN)?;
            (self.received, self.storage) = (rest, storage);
            let len = received.len.min(BUFFER_LEN);
            if len == 0 {
                return Some(received.datagram(&mut []));
            }
            self.at = Some((buffer[..len].chunks_mut(received.segment_size.max(1)), *received));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggregates_are_cut_at_their_segment_size() {
        // (bytes received, UDP_GRO's size, the datagrams' sizes)
        let cases: [(usize, usize, &[usize]); 6] = [
            (3000, 1000, &[1000, 1000, 1000]),
            (2001, 1000, &[1000, 1000, 1]),
            (700, 700, &[700]),
            (700, 1400, &[700]),
            (0, 1, &[0]),
            (65_507, 65_507, &[65_507]),
        ];
        let mut buffers = ReceiveBuffers::new();
        for (place, (received, (len, segment_size, _))) in buffers.received.iter_mut().zip(cases).enumerate() {
            *received = Received { len, segment_size, port: place as u16, ..Received::EMPTY };
        }
        let storage = &mut buffers.storage[..cases.len() * BUFFER_LEN];
        let batch = Batch { storage, received: &buffers.received[..cases.len()], at: None };
        let cut: Vec<_> = batch.map(|datagram| (datagram.port, datagram.payload.len())).collect();
        let expected = cases.iter().enumerate().flat_map(|(i, case)| case.2.iter().map(move |len| (i as u16, *len)));
        assert_eq!(cut, expected.collect::<Vec<_>>());
    }
}
