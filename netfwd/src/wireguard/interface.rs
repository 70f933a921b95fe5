//! A WireGuard interface: a device, the port it listens on, and the mark of what it sends.
//!
//! Configuration file and control socket say the same things by the same two calls, [`Interface::apply`] and
//! [`Interface::status`].
//!
//! - A change is refused before anything of it has happened where a socket is the obstacle: a port that is taken leaves
//!   the device as it was.
//! - A new port is bound before the old one is given up, and each worker changes over between two batches.
//! - The port before can be had again as soon as no worker has sockets of it: [`Former`] tells when. To wait for that is
//!   the caller's, since who changes an interface has other things to do meanwhile.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::{io, mem};

use thiserror::Error;

use super::steering::Steering;
use crate::datapath::packet::TunnelIndex;
use crate::datapath::seam::{DatagramSink, SendFailure, Transmit};
use crate::datapath::tunnel::wireguard::{Device, DeviceStatus, DeviceUpdate};
use crate::io::listen_port::{ListenPort, PortSender};
use crate::io::socket::SocketError;
use crate::order::Order;

/// Why an interface stays as it was.
#[derive(Debug, Error)]
pub enum InterfaceError {
    /// The port cannot be had.
    #[error(transparent)]
    Port(#[from] SocketError),
    /// The mark cannot be set.
    #[error("cannot set the mark of outgoing datagrams: {0}")]
    Mark(io::Error),
    /// A worker does not take its sockets.
    #[error("a worker does not take orders")]
    Busy,
}

impl InterfaceError {
    /// What the control socket answers.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Port(SocketError::AddressInUse { .. }) => libc::EADDRINUSE,
            Self::Port(SocketError::AddressNotAvailable { .. }) => libc::EADDRNOTAVAIL,
            Self::Port(SocketError::Permission { .. }) => libc::EPERM,
            Self::Port(_) => libc::EIO,
            Self::Mark(error) => error.raw_os_error().unwrap_or(libc::EIO),
            Self::Busy => libc::EBUSY,
        }
    }
}

/// A WireGuard interface.
pub struct Interface {
    tunnel: TunnelIndex,
    local: IpAddr,
    device: Arc<Device>,
    steering: Arc<Steering>,
    outside: Mutex<Outside>,
}

/// What the interface has of the underlay.
struct Outside {
    port: u16,
    fwmark: u32,
    /// For handshakes, and to set marks.
    senders: Vec<PortSender>,
    /// Lives as long as any worker has sockets of this port.
    lease: Weak<()>,
}

impl Outside {
    fn of(port: &ListenPort, fwmark: u32) -> Self {
        let senders = port.workers.iter().map(|own| own.sender.clone()).collect();
        Self { port: port.number, fwmark, senders, lease: port.lease() }
    }
}

/// The port that an interface has left, if it has.
#[derive(Debug, Default)]
pub struct Former(Weak<()>);

impl Former {
    /// Whether no worker has sockets of it.
    pub fn is_given_up(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl Interface {
    /// The interface of `device`, whose workers have got the sockets of `port`.
    pub fn new(
        tunnel: TunnelIndex,
        local: IpAddr,
        device: Arc<Device>,
        port: &ListenPort,
        steering: Arc<Steering>,
    ) -> Self {
        Self { tunnel, local, device, steering, outside: Mutex::new(Outside::of(port, 0)) }
    }

    /// Its tunnel.
    pub fn tunnel(&self) -> TunnelIndex {
        self.tunnel
    }

    /// Its peers and keys.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Changes what `update` names.
    pub fn apply(&self, update: &DeviceUpdate) -> Result<Former, InterfaceError> {
        let mut outside = self.outside();
        let fwmark = update.fwmark.unwrap_or(outside.fwmark);
        let before = (outside.port, outside.fwmark);
        let former = match update.listen_port {
            Some(port) if port != outside.port => self.move_to(&mut outside, port, fwmark)?,
            _ => Self::mark(&mut outside, fwmark).map(|()| Former::default())?,
        };
        let is_as_before = before == (outside.port, outside.fwmark);
        drop(outside);
        if !is_as_before {
            self.device.forget_locals();
        }
        self.device.apply(update);
        Ok(former)
    }

    /// What can be said of it.
    pub fn status(&self) -> DeviceStatus {
        let (listen_port, fwmark) = {
            let outside = self.outside();
            (outside.port, outside.fwmark)
        };
        DeviceStatus { listen_port, fwmark, ..self.device.status() }
    }

    fn outside(&self) -> MutexGuard<'_, Outside> {
        self.outside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes over to another port; 0 for one that the kernel chooses.
    fn move_to(&self, outside: &mut Outside, port: u16, fwmark: u32) -> Result<Former, InterfaceError> {
        let workers = self.steering.workers();
        let bound = ListenPort::bind(self.local, port, fwmark, workers.len())?;
        let before = mem::replace(outside, Outside::of(&bound, fwmark));
        for (worker, sockets) in workers.iter().zip(bound.workers) {
            if !worker.give(Order::Port { tunnel: self.tunnel, sockets }) {
                return Err(InterfaceError::Busy);
            }
        }
        self.steering.set_port(self.tunnel, bound.number);
        Ok(Former(before.lease))
    }

    fn mark(outside: &mut Outside, fwmark: u32) -> Result<(), InterfaceError> {
        if fwmark != outside.fwmark {
            outside.senders.iter().try_for_each(|sender| sender.set_mark(fwmark)).map_err(InterfaceError::Mark)?;
            outside.fwmark = fwmark;
        }
        Ok(())
    }
}

impl DatagramSink for &Interface {
    /// Sends from the listening port, as the control side does.
    fn send(&mut self, transmit: &Transmit<'_>) -> Result<(), SendFailure> {
        let mut outside = self.outside();
        let Some(sender) = outside.senders.first_mut() else {
            return Err(SendFailure { lost: transmit.datagrams, error: io::ErrorKind::NotConnected.into() });
        };
        sender.send(transmit)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::datapath::table::ForwardingTable;
    use crate::datapath::tunnel::wireguard::queue;
    use crate::io::listen_port::PortSockets;
    use crate::order::{OrderInbox, channel};

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// An interface, and the one worker that listens for it.
    pub(crate) fn interface() -> (Interface, OrderInbox, PortSockets) {
        let mut port = ListenPort::bind(LOCAL, 0, 0, 1).expect("a port");
        let (orders, inbox) = channel().expect("an eventfd");
        let table = Arc::new(ForwardingTable::default());
        let steering = Arc::new(Steering::new(Arc::default(), Vec::new(), table, vec![orders]));
        let device = Device::new(TunnelIndex(0), queue(8).0);
        let interface = Interface::new(TunnelIndex(0), LOCAL, device, &port, steering);
        (interface, inbox, port.workers.remove(0))
    }

    fn listen(port: u16) -> DeviceUpdate {
        DeviceUpdate { listen_port: Some(port), ..DeviceUpdate::default() }
    }

    /// What a worker does with orders: it has the new sockets, and the old ones no more.
    fn obey(inbox: &OrderInbox, sockets: &mut PortSockets) {
        while let Some(order) = inbox.next() {
            if let Order::Port { sockets: new, .. } = order {
                *sockets = new;
            }
        }
    }

    #[test]
    fn a_new_port_is_everybody_s_and_the_old_one_is_free_again() {
        let (interface, inbox, mut sockets) = interface();
        let first = interface.status().listen_port;
        assert_eq!(sockets.number, first);
        let former = interface.apply(&listen(0)).expect("another port");
        assert!(!former.is_given_up(), "the worker has it");
        obey(&inbox, &mut sockets);
        assert!(former.is_given_up());
        let second = interface.status().listen_port;
        assert_eq!(sockets.number, second);
        assert_ne!(first, second);
        let former = interface.apply(&listen(first)).expect("the first port again");
        obey(&inbox, &mut sockets);
        assert!(former.is_given_up());
        assert_eq!((sockets.number, interface.status().listen_port), (first, first));
    }

    #[test]
    fn a_port_that_is_taken_changes_nothing() {
        let (interface, inbox, sockets) = interface();
        let taken = std::net::UdpSocket::bind((LOCAL, 0)).expect("a port");
        let before = interface.status().listen_port;
        let taken_port = taken.local_addr().expect("an address").port();
        let refusal = interface.apply(&listen(taken_port)).expect_err("a refusal");
        assert_eq!(refusal.errno(), libc::EADDRINUSE);
        assert_eq!((interface.status().listen_port, sockets.number), (before, before));
        assert!(inbox.next().is_none());
    }

    #[test]
    fn the_port_that_it_has_is_not_bound_again() {
        let (interface, inbox, sockets) = interface();
        let former = interface.apply(&listen(sockets.number)).expect("nothing to do");
        assert!(former.is_given_up());
        assert!(inbox.next().is_none());
    }
}
