//! Sending tunnel datagrams through kernel sockets.
//!
//! A tunnel wants its source port to be the inner flow's hash, but `UDP_SEGMENT`, which lets one call send a whole run,
//! works only on a socket's own port. So each local address has a [`SendPool`]: sockets bound to ports spread over
//! 49152–65535. A flow's hash picks one, by a fixed mapping: a flow keeps its port for life, in runs and alone.
//!
//! - Runs are gathered from where the bytes lie; nothing is copied or allocated here.
//! - What the kernel refuses as a run is sent again as single datagrams; a datagram counts as lost only after a retry.
//! - A remote whose route takes no runs gets none for a while ([`refusals`](super::refusals)).
//! - Pool sockets never receive: a filter drops everything, so an answer to such a port costs no memory.
//! - DF is not set, as with the kernel's own vxlan: a datagram too large for the path is fragmented, not swallowed.
//! - IP_RECVERR is on. Without it UDP hides the drops of the local queueing discipline (ENOBUFS); the price is that an
//!   ICMP error for one remote fails the next call on that socket, whichever its remote. Hence the retry.
//!
//! The kernel refuses `UDP_SEGMENT` on sockets without checksums, so runs always carry an outer checksum, which the NIC
//! computes. Single datagrams that want none, or whose checksum follows from headers, leave through [`raw_send`].
//!
//! [`raw_send`]: super::raw_send

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::control_message::Control;
use super::gather::{Gather, MAX_SLICES, recycle, total_len};
use super::raw_send::RawSender;
use super::refusals::Refusals;
use super::socket::{self, SocketError, SocketName, send_gather};
use crate::datapath::seam::{DatagramSink, OuterChecksum, SendFailure, Transmit};

/// Datagrams per `UDP_SEGMENT` call that every kernel takes (UDP_MAX_SEGMENTS, include/linux/udp.h).
pub const MAX_SEGMENTS: usize = 64;
/// UDP payload that fits an IPv4 packet.
pub const MAX_PAYLOAD: usize = 65_507;
/// A pool's size unless there is reason for another: as many paths for a network that balances by source port.
pub const POOL_SIZE: usize = 64;
/// The range of source ports (RFC 7348 §5: the dynamic ports of RFC 6335).
const FIRST_PORT: u16 = 49_152;
const PORTS: usize = 16_384;
/// SO_SNDBUF: enough for a few dozen superframes per flow in the queueing discipline.
const SEND_BUFFER: usize = 4 << 20;
/// How long a full socket or queue is waited for before the datagrams are lost.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
/// UDP_SEGMENT and TOS / traffic class, 24 bytes each, and a source address, 40.
type SendControl = Control<88>;

/// The send sockets of one local address, shared by all workers.
#[derive(Debug)]
pub struct SendPool {
    local: IpAddr,
    members: Box<[(u16, OwnedFd)]>,
    segmentation: Segmentation,
}

/// Which remotes take runs (`UDP_SEGMENT`) from some address.
#[derive(Debug)]
pub(super) struct Segmentation {
    local: IpAddr,
    refusals: Refusals,
    has_said_so: AtomicBool,
}

impl Segmentation {
    pub(super) fn new(local: IpAddr) -> Self {
        Self { local, refusals: Refusals::new(), has_said_so: AtomicBool::new(false) }
    }

    fn note_refusal(&self, remote: IpAddr) {
        self.refusals.note(remote);
        if !self.has_said_so.swap(true, Ordering::Relaxed) {
            let local = self.local;
            tracing::info!(%local, %remote, "the route takes no UDP_SEGMENT (no checksum offload, or IPsec): datagrams leave one by one");
        }
    }
}

impl SendPool {
    /// Binds `size` sockets (at most 16,384) on `local`, each on the first free port of its share of the range.
    pub fn open(local: IpAddr, size: usize) -> Result<Self, SocketError> {
        let size = size.clamp(1, PORTS);
        let stride = PORTS / size;
        let members = (0..size).filter_map(|i| first_free(local, i * stride, stride).transpose());
        let members: Box<[_]> = members.collect::<Result<_, _>>()?;
        if members.is_empty() {
            return Err(SocketError::NoFreePort { address: local, wanted: size, free: 0 });
        }
        if members.len() < size {
            tracing::info!(%local, wanted = size, free = members.len(), "some source ports are taken");
        }
        Ok(Self { local, members, segmentation: Segmentation::new(local) })
    }

    /// The address bound.
    pub fn local(&self) -> IpAddr {
        self.local
    }

    /// The source port that datagrams of a flow with the hash `source_port` carry.
    pub fn port_for(&self, source_port: u16) -> u16 {
        self.member(source_port).0
    }

    /// Whether runs to `remote` are sent with `UDP_SEGMENT`; not for a while after the kernel has said that its route takes
    /// none.
    pub fn segmentation(&self, remote: IpAddr) -> bool {
        self.segmentation.refusals.permits(remote)
    }

    /// Limits every socket's send buffer; the kernel doubles `bytes` and has a minimum of a few KiB.
    pub fn set_send_buffer(&self, bytes: i32) -> io::Result<()> {
        self.members.iter().try_for_each(|(_, fd)| socket::set_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes))
    }

    fn member(&self, source_port: u16) -> (u16, BorrowedFd<'_>) {
        let place = usize::from(source_port) % PORTS;
        let (port, socket) = &self.members[place * self.members.len() / PORTS];
        (*port, socket.as_fd())
    }
}

fn first_free(local: IpAddr, start: usize, count: usize) -> Result<Option<(u16, OwnedFd)>, SocketError> {
    for place in start..start + count {
        let port = FIRST_PORT + place as u16;
        match open_member(SocketAddr::new(local, port)) {
            Ok(socket) => return Ok(Some((port, socket))),
            Err(SocketError::AddressInUse { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn open_member(local: SocketAddr) -> Result<OwnedFd, SocketError> {
    let socket = socket::open_udp(local.ip()).map_err(|e| SocketError::other("open a UDP socket", e))?;
    configure(&socket, local.ip()).map_err(|e| SocketError::other("configure a UDP socket", e))?;
    rustix::net::bind(&socket, &local).map_err(|e| SocketError::from_bind(local, e))?;
    Ok(socket)
}

fn configure(socket: &OwnedFd, local: IpAddr) -> io::Result<()> {
    socket::refuse_all(socket)?;
    socket::set_int(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 0)?;
    if local.is_ipv6() {
        // A label from the kernel's own hash would tell the runs of a flow from its raw single datagrams.
        socket::set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL, 0)?;
    }
    configure_sending(socket, local.is_ipv4())
}

/// What every socket has that tunnel datagrams are sent from.
pub(super) fn configure_sending(socket: &OwnedFd, is_ipv4: bool) -> io::Result<()> {
    socket::set_buffer(socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER)?;
    if is_ipv4 {
        socket::set_int(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
        socket::set_int(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)
    } else {
        socket::set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
        socket::set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)
    }
}

/// One worker's way out: the shared pools of all local addresses, and raw sockets of its own.
#[derive(Debug)]
pub struct UdpSender {
    pools: Box<[Arc<SendPool>]>,
    raw: RawSender,
    /// Always empty: the allocation for the pieces of a run.
    pieces: Vec<IoSlice<'static>>,
}

impl UdpSender {
    /// Sends from the addresses of `pools`.
    pub fn new(pools: Vec<Arc<SendPool>>) -> Self {
        let raw = RawSender::open(pools.iter().map(|pool| pool.local()));
        Self { pools: pools.into_boxed_slice(), raw, pieces: Vec::with_capacity(MAX_SLICES) }
    }
}

impl DatagramSink for UdpSender {
    fn send(&mut self, transmit: &Transmit<'_>) -> Result<(), SendFailure> {
        let Some(pool) = self.pools.iter().find(|pool| pool.local == transmit.local) else {
            let error = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
            return Err(SendFailure { lost: transmit.datagrams, error });
        };
        let (port, socket) = pool.member(transmit.source_port);
        if transmit.datagrams == 1 {
            let wants_raw = !matches!(transmit.checksum, OuterChecksum::Wanted { payload_sum: None });
            if wants_raw && self.raw.send(transmit, port).is_ok() {
                return Ok(());
            }
        }
        let name = SocketName::new(transmit.remote, transmit.port, transmit.scope);
        Run { segmentation: &pool.segmentation, socket, name, source: None, transmit }.send(&mut self.pieces)
    }
}

/// A run on its way through one socket.
pub(super) struct Run<'a> {
    pub(super) segmentation: &'a Segmentation,
    pub(super) socket: BorrowedFd<'a>,
    pub(super) name: SocketName,
    /// The source address, where the socket is not bound to one.
    pub(super) source: Option<IpAddr>,
    pub(super) transmit: &'a Transmit<'a>,
}

impl Run<'_> {
    /// Sends it; `pieces` is an empty list whose allocation is used.
    pub(super) fn send(&self, pieces: &mut Vec<IoSlice<'static>>) -> Result<(), SendFailure> {
        let Transmit { slices, datagrams, .. } = *self.transmit;
        let mut per_call = self.datagrams_per_call();
        if datagrams <= per_call && slices.len() <= MAX_SLICES && total_len(slices) <= MAX_PAYLOAD {
            match self.deliver(slices, datagrams) {
                Ok(()) => return Ok(()),
                Err(error) if datagrams > 1 && self.refused_as_run(&error) => per_call = 1,
                Err(error) => return Err(SendFailure { lost: datagrams, error }),
            }
        }
        let mut list = recycle(std::mem::take(pieces));
        let result = self.send_pieces(per_call, &mut list);
        *pieces = recycle(list);
        result
    }

    /// How many datagrams one call takes.
    fn datagrams_per_call(&self) -> usize {
        if !self.segmentation.refusals.permits_next(self.transmit.remote) {
            return 1;
        }
        (MAX_PAYLOAD / self.transmit.segment_size.max(1)).clamp(1, MAX_SEGMENTS)
    }

    /// Sends the run in pieces of at most `per_call` datagrams, and one by one from where it is refused as a run.
    fn send_pieces<'s>(&'s self, mut per_call: usize, piece: &mut Vec<IoSlice<'s>>) -> Result<(), SendFailure> {
        let mut gather = Gather::new(self.transmit.slices);
        let mut failure: Option<SendFailure> = None;
        let mut left = self.transmit.datagrams;
        while left > 0 {
            let datagrams = per_call.min(left);
            let start = gather;
            match self.send_piece(&mut gather, datagrams, piece) {
                Ok(()) => {}
                Err(error) if datagrams > 1 && self.refused_as_run(&error) => {
                    (gather, per_call) = (start, 1);
                    continue;
                }
                Err(error) => {
                    let lost = failure.map_or(0, |failure| failure.lost) + datagrams;
                    failure = Some(SendFailure { lost, error });
                }
            }
            left -= datagrams;
        }
        failure.map_or(Ok(()), Err)
    }

    fn send_piece<'s>(
        &'s self,
        gather: &mut Gather<'s>,
        datagrams: usize,
        piece: &mut Vec<IoSlice<'s>>,
    ) -> io::Result<()> {
        if !gather.take(datagrams.saturating_mul(self.transmit.segment_size), piece) {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        self.deliver(piece, datagrams)
    }

    /// Whether the same bytes may still pass as single datagrams.
    fn refused_as_run(&self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EIO) => {
                self.segmentation.note_refusal(self.transmit.remote);
                true
            }
            Some(libc::EMSGSIZE | libc::EINVAL) => true,
            _ => false,
        }
    }

    fn deliver(&self, slices: &[IoSlice<'_>], datagrams: usize) -> io::Result<()> {
        let mut control = SendControl::new();
        if datagrams > 1 {
            let size =
                u16::try_from(self.transmit.segment_size).map_err(|_| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
        }
        if self.transmit.tos != 0 {
            let tos = i32::from(self.transmit.tos).to_ne_bytes();
            match self.name {
                SocketName::V4(_) => control.push(libc::IPPROTO_IP, libc::IP_TOS, &tos),
                SocketName::V6(_) => control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &tos),
            }
        }
        if let Some(source) = self.source {
            push_source(&mut control, source);
        }
        send_patiently(self.socket, &self.name, slices, control.as_bytes())
    }
}

/// The source address of a datagram: `struct in_pktinfo` or `struct in6_pktinfo`, without an interface.
fn push_source(control: &mut SendControl, source: IpAddr) {
    match source {
        IpAddr::V4(v4) => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&v4.octets());
            control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        IpAddr::V6(v6) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&v6.octets());
            control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
    }
}

/// Sends, and once more if the kernel was short of room or reported an earlier datagram's ICMP error.
pub(super) fn send_patiently(
    socket: BorrowedFd<'_>,
    name: &SocketName,
    slices: &[IoSlice<'_>],
    control: &[u8],
) -> io::Result<()> {
    let error = match send_gather(socket, name, slices, control) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS) => {
            // Bounded by PATIENCE; what poll says does not matter, the second attempt decides.
            let _ = poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::OUT)], Some(&PATIENCE));
        }
        // EMSGSIZE may be an ICMPv6 Packet Too Big of an earlier datagram as well as the verdict on this one.
        Some(
            libc::EMSGSIZE
            | libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENOPROTOOPT
            | libc::EPROTO
            | libc::EOPNOTSUPP
            | libc::ENONET
            | libc::EACCES
            | libc::EINTR,
        ) => socket::drain_errors(socket),
        _ => return Err(error),
    }
    send_gather(socket, name, slices, control)
}
