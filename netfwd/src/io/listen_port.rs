//! One UDP port of both families, to receive on and to send from: WireGuard's.
//!
//! A peer answers to where a message came from, so data and handshakes leave from the listening port itself, and a host
//! with several addresses answers from the one that was spoken to. Every worker has sockets of its own on the port
//! (`SO_REUSEPORT`), which it receives on and sends from.
//!
//! - Port 0 lets the kernel choose; both families then have the same one.
//! - Sending shares `udp_send`'s runs and their fallbacks.
//! - A machine without IPv6 has an IPv4 port.
//! - IP_RECVERR is on, as on other send sockets, so whoever receives has to empty the error queue too.
//!
//! Not here: when a port changes. New sockets are made, handed out, and the old ones dropped by their owners.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use super::gather::MAX_SLICES;
use super::socket::{self, SocketError, SocketName};
use super::udp_receive::{ReceiveOptions, ReceiveSocket};
use super::udp_send::{Run, Segmentation, configure_sending};
use crate::datapath::seam::{DatagramSink, SendFailure, Transmit};

/// How often another port is tried when the kernel's choice for the one family is taken in the other.
const TRIES: usize = 100;

/// A port with its sockets.
#[derive(Debug)]
pub struct ListenPort {
    /// Its number.
    pub number: u16,
    /// One for each worker.
    pub workers: Vec<PortSockets>,
    lease: Weak<()>,
}

/// One worker's sockets on a port.
#[derive(Debug)]
pub struct PortSockets {
    /// The port's number.
    pub number: u16,
    /// One per family.
    pub receivers: Vec<ReceiveSocket>,
    /// The way out, by the same sockets.
    pub sender: PortSender,
    _lease: Arc<()>,
}

impl ListenPort {
    /// Something that lives as long as a worker has its sockets.
    pub fn lease(&self) -> Weak<()> {
        self.lease.clone()
    }

    /// Binds `port` on `local`, or on every address of both families if that is unspecified.
    pub fn bind(local: IpAddr, port: u16, fwmark: u32, workers: usize) -> Result<Self, SocketError> {
        let mut tries = TRIES;
        loop {
            match Self::try_bind(local, port, fwmark, workers) {
                Err(SocketError::AddressInUse { .. }) if port == 0 && tries > 0 => tries -= 1,
                outcome => return outcome,
            }
        }
    }

    fn try_bind(local: IpAddr, port: u16, fwmark: u32, workers: usize) -> Result<Self, SocketError> {
        let mut number = port;
        let mut groups = Vec::new();
        for address in addresses(local) {
            let options = ReceiveOptions {
                destination: local.is_unspecified(),
                ..ReceiveOptions::at(SocketAddr::new(address, number))
            };
            let group = match ReceiveSocket::bind_group(&options, workers) {
                Err(error) if address.is_ipv6() && !groups.is_empty() && is_family_missing(&error) => break,
                outcome => outcome?,
            };
            number = group.first().and_then(|socket| socket.local().ok()).map_or(number, |bound| bound.port());
            groups.push((Arc::new(Segmentation::new(address)), group));
        }
        Self::assemble(number, groups, workers, fwmark)
            .map_err(|error| SocketError::other("configure a UDP socket", error))
    }

    fn assemble(
        number: u16,
        groups: Vec<(Arc<Segmentation>, Vec<ReceiveSocket>)>,
        workers: usize,
        fwmark: u32,
    ) -> io::Result<Self> {
        let lease = Arc::new(());
        let own =
            || PortSockets { number, receivers: Vec::new(), sender: PortSender::default(), _lease: lease.clone() };
        let mut sockets: Vec<_> = (0..workers).map(|_| own()).collect();
        for (segmentation, group) in groups {
            for (owner, socket) in sockets.iter_mut().zip(group) {
                owner.sender.add(&socket, segmentation.clone())?;
                owner.receivers.push(socket);
            }
        }
        // Marks need privileges that ports do not.
        if fwmark != 0 {
            sockets.iter().try_for_each(|own| own.sender.set_mark(fwmark))?;
        }
        Ok(Self { number, workers: sockets, lease: Arc::downgrade(&lease) })
    }
}

fn addresses(local: IpAddr) -> Vec<IpAddr> {
    if local.is_unspecified() { vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] } else { vec![local] }
}

fn is_family_missing(error: &SocketError) -> bool {
    matches!(error, SocketError::Other { source, .. } if source.raw_os_error() == Some(libc::EAFNOSUPPORT))
}

/// Sends from a port, as one of its owners.
#[derive(Debug, Default)]
pub struct PortSender {
    members: Vec<Member>,
    /// Always empty: the allocation for the pieces of a run.
    pieces: Vec<IoSlice<'static>>,
}

#[derive(Clone, Debug)]
struct Member {
    is_ipv4: bool,
    bound: bool,
    socket: Arc<OwnedFd>,
    segmentation: Arc<Segmentation>,
}

impl PortSender {
    fn add(&mut self, socket: &ReceiveSocket, segmentation: Arc<Segmentation>) -> io::Result<()> {
        let local = socket.local()?.ip();
        let shared = socket.share()?;
        configure_sending(&shared, local.is_ipv4())?;
        let bound = !local.is_unspecified();
        self.members.push(Member { is_ipv4: local.is_ipv4(), bound, socket: Arc::new(shared), segmentation });
        self.pieces.reserve(MAX_SLICES);
        Ok(())
    }

    /// Sets the mark that routing rules see (SO_MARK); 0 for none.
    pub fn set_mark(&self, fwmark: u32) -> io::Result<()> {
        let mark = fwmark.cast_signed();
        self.members.iter().try_for_each(|own| socket::set_int(&own.socket, libc::SOL_SOCKET, libc::SO_MARK, mark))
    }
}

impl Clone for PortSender {
    fn clone(&self) -> Self {
        Self { members: self.members.clone(), pieces: Vec::with_capacity(MAX_SLICES) }
    }
}

impl DatagramSink for PortSender {
    fn send(&mut self, transmit: &Transmit<'_>) -> Result<(), SendFailure> {
        let Some(member) = self.members.iter().find(|member| member.is_ipv4 == transmit.remote.is_ipv4()) else {
            let error = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
            return Err(SendFailure { lost: transmit.datagrams, error });
        };
        let source = Some(transmit.local).filter(|local| !member.bound && !local.is_unspecified());
        match member.run(transmit, source).send(&mut self.pieces) {
            // The address that the peer had spoken to may be gone.
            Err(failure) if source.is_some() && is_about_source(&failure) && failure.lost == transmit.datagrams => {
                member.run(transmit, None).send(&mut self.pieces)
            }
            outcome => outcome,
        }
    }
}

impl Member {
    fn run<'a>(&'a self, transmit: &'a Transmit<'a>, source: Option<IpAddr>) -> Run<'a> {
        let name = SocketName::new(transmit.remote, transmit.port, transmit.scope);
        let source = source.filter(|source| source.is_ipv4() == self.is_ipv4);
        Run { segmentation: &self.segmentation, socket: self.socket.as_fd(), name, source, transmit }
    }
}

fn is_about_source(failure: &SendFailure) -> bool {
    matches!(failure.error.raw_os_error(), Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::seam::OuterChecksum;
    use crate::io::udp_receive::ReceiveBuffers;

    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    fn transmit<'a>(local: IpAddr, to: SocketAddr, slices: &'a [IoSlice<'a>]) -> Transmit<'a> {
        Transmit {
            local,
            remote: to.ip(),
            port: to.port(),
            scope: 0,
            source_port: 0,
            tos: 2,
            segment_size: 3,
            datagrams: 2,
            slices,
            checksum: OuterChecksum::Wanted { payload_sum: None },
        }
    }

    #[test]
    fn both_families_share_the_port_that_the_kernel_chose() {
        let port = ListenPort::bind(ANY, 0, 0, 2).expect("a port");
        assert_ne!(port.number, 0);
        for own in &port.workers {
            assert_eq!(own.receivers.len(), 2);
            assert!(own.receivers.iter().all(|socket| socket.local().unwrap().port() == port.number));
        }
    }

    #[test]
    fn a_port_of_another_is_refused() {
        let port = ListenPort::bind(ANY, 0, 0, 1).expect("a port");
        let again = ListenPort::bind(ANY, port.number, 0, 1);
        assert!(matches!(again, Err(SocketError::AddressInUse { .. })), "{again:?}");
    }

    #[test]
    fn answers_leave_from_the_address_that_was_spoken_to() {
        for (one, other) in [("127.0.0.1", "127.0.0.7"), ("::1", "::1")] {
            let mut here = ListenPort::bind(ANY, 0, 0, 1).expect("a port");
            let mut there = ListenPort::bind(ANY, 0, 0, 1).expect("a port");
            let (one, other): (IpAddr, IpAddr) = (one.parse().unwrap(), other.parse().unwrap());
            let slices = [IoSlice::new(b"abcde")];
            here.workers[0].sender.send(&transmit(one, SocketAddr::new(other, there.number), &slices)).expect("sent");
            let mut buffers = ReceiveBuffers::new();
            let family = usize::from(one.is_ipv6());
            let batch = there.workers[0].receivers[family].receive(&mut buffers).expect("received");
            let heard: Vec<_> = batch.map(|got| (got.payload.len(), got.remote, got.destination, got.tos)).collect();
            assert_eq!(heard, [(3, one, Some(other), 2), (2, one, Some(other), 2)]);
            assert_eq!(there.workers[0].receivers[family].local().unwrap().port(), there.number);
            there.workers[0]
                .sender
                .send(&transmit(other, SocketAddr::new(one, here.number), &slices))
                .expect("sent back");
            let batch = here.workers[0].receivers[family].receive(&mut buffers).expect("received");
            assert_eq!(batch.map(|got| got.remote).collect::<Vec<_>>(), [other, other]);
        }
    }

    #[test]
    fn a_source_address_that_is_gone_is_left_to_the_kernel() {
        let mut here = ListenPort::bind(ANY, 0, 0, 1).expect("a port");
        let mut there = ListenPort::bind(ANY, 0, 0, 1).expect("a port");
        let slices = [IoSlice::new(b"abcde")];
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), there.number);
        here.workers[0].sender.send(&transmit("192.0.2.77".parse().unwrap(), to, &slices)).expect("sent all the same");
        let mut buffers = ReceiveBuffers::new();
        let batch = there.workers[0].receivers[0].receive(&mut buffers).expect("received");
        assert_eq!(batch.map(|got| got.remote).collect::<Vec<_>>(), [IpAddr::from(Ipv4Addr::LOCALHOST); 2]);
    }
}
