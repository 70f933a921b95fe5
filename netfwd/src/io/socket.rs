//! What all datagram sockets share: making, options, names, one gather send, typed errors for the operator.

use std::io::{self, IoSlice};
use std::mem::{size_of, size_of_val};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use thiserror::Error;
use zerocopy::{Immutable, IntoBytes};

/// Why a socket could not be set up.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Someone else receives on this address and port.
    #[error("UDP {local} is already in use by another program or kernel device")]
    AddressInUse {
        /// What was to be bound.
        local: SocketAddr,
    },
    /// The address is not one of this host's.
    #[error("{address} is not an address of this host")]
    AddressNotAvailable {
        /// The address.
        address: IpAddr,
    },
    /// Privileges are missing.
    #[error("no permission to {action} (needs CAP_NET_ADMIN and CAP_NET_RAW)")]
    Permission {
        /// What was refused.
        action: &'static str,
    },
    /// No free port was left for a send pool.
    #[error("{free} of {wanted} source ports could be bound on {address}")]
    NoFreePort {
        /// The address.
        address: IpAddr,
        /// Ports wanted.
        wanted: usize,
        /// Ports found.
        free: usize,
    },
    /// Anything else.
    #[error("cannot {action}: {source}")]
    Other {
        /// What failed.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl SocketError {
    /// Puts the failure of binding `local` into the operator's words.
    pub(super) fn from_bind(local: SocketAddr, error: impl Into<io::Error>) -> Self {
        let source = error.into();
        match source.raw_os_error() {
            Some(libc::EADDRINUSE) => Self::AddressInUse { local },
            Some(libc::EADDRNOTAVAIL) => Self::AddressNotAvailable { address: local.ip() },
            _ => Self::other("bind a UDP socket", source),
        }
    }

    /// Any other failure; EPERM and EACCES become [`SocketError::Permission`].
    pub(super) fn other(action: &'static str, error: impl Into<io::Error>) -> Self {
        let source = error.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission { action },
            _ => Self::Other { action, source },
        }
    }
}

/// A non-blocking socket of the family of `address`.
pub(super) fn open(address: IpAddr, kind: SocketType, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(family, kind, flags, protocol)?)
}

/// An unbound UDP socket. Over IPv6 it is IPV6_V6ONLY: v4 traffic has sockets of its own.
pub(super) fn open_udp(address: IpAddr) -> io::Result<OwnedFd> {
    let socket = open(address, SocketType::DGRAM, None)?;
    if address.is_ipv6() {
        set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    Ok(socket)
}

/// `setsockopt` with an `int`.
pub(super) fn set_int(socket: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(socket, level, name, &value)
}

/// `setsockopt` with any plain value.
pub(super) fn set_option<T: IntoBytes + Immutable>(
    socket: &OwnedFd,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    let bytes = value.as_bytes();
    // SAFETY: the kernel reads `bytes.len()` bytes from a live slice and keeps no pointer to it.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, bytes.as_ptr().cast(), bytes.len() as libc::socklen_t)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets a buffer size, past the system's limit where privileges allow. The kernel doubles `bytes` for its overhead.
pub(super) fn set_buffer(socket: &OwnedFd, force: i32, plain: i32, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    set_int(socket, libc::SOL_SOCKET, force, bytes).or_else(|_| set_int(socket, libc::SOL_SOCKET, plain, bytes))
}

/// A classic BPF program of one instruction, `ret #0`: the socket never receives anything.
pub(super) fn refuse_all(socket: &OwnedFd) -> io::Result<()> {
    const RETURN_ZERO: libc::sock_filter =
        libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let mut program = [RETURN_ZERO];
    let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    // SAFETY: `filter` and the program it points to live through the call; the kernel copies both.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            ptr::from_ref(&filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket address as the kernel takes it.
pub(super) enum SocketName {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl SocketName {
    /// `scope`: the interface that a link-local address is on.
    pub(super) fn new(address: IpAddr, port: u16, scope: u32) -> Self {
        match address {
            IpAddr::V4(v4) => Self::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: port.to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.octets()) },
                sin_zero: [0; 8],
            }),
            IpAddr::V6(v6) => Self::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: port.to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.octets() },
                sin6_scope_id: scope,
            }),
        }
    }

    fn as_raw(&self) -> (*const libc::c_void, usize) {
        match self {
            Self::V4(name) => (ptr::from_ref(name).cast(), size_of::<libc::sockaddr_in>()),
            Self::V6(name) => (ptr::from_ref(name).cast(), size_of::<libc::sockaddr_in6>()),
        }
    }
}

/// One `sendmsg` of a gather list.
pub(super) fn send_gather(
    socket: BorrowedFd<'_>,
    name: &SocketName,
    slices: &[IoSlice<'_>],
    control: &[u8],
) -> io::Result<()> {
    let (name, name_len) = name.as_raw();
    // SAFETY: `msghdr` is a C structure of integers and pointers, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = name.cast_mut();
    message.msg_namelen = name_len as libc::socklen_t;
    // std guarantees that IoSlice has the layout of `iovec` on Unix.
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    if !control.is_empty() {
        message.msg_control = control.as_ptr().cast_mut().cast();
        message.msg_controllen = control.len() as _;
    }
    // SAFETY: name, slices and control are live borrows of the given lengths; sendmsg only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Empties the error queue that IP_RECVERR fills. It is small (SO_RCVBUF bounds it), and a full one keeps poll awake.
pub(super) fn drain_errors(socket: BorrowedFd<'_>) {
    const QUEUE: usize = 16;
    for _ in 0..QUEUE {
        // SAFETY: no buffer is passed: a length of zero lets the kernel write nothing.
        let received =
            unsafe { libc::recv(socket.as_raw_fd(), ptr::null_mut(), 0, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
        if received < 0 {
            return;
        }
    }
}
