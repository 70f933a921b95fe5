//! A WireGuard interface: a device, the port it listens on, and the mark of what it sends.
//!
//! Configuration file and control socket say the same things by the same two calls, [`Interface::apply`] and
//! [`Interface::status`].
//!
//! - A change is refused before anything of it has happened where a socket is the obstacle: a port that is taken leaves
//!   the device as it was.
//! - A new port is bound before the old one is given up, and each worker changes over between two batches.
//! - After a change, nobody has sockets of the port before any more, so that it can be had again.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};
use std::{io, mem};

use thiserror::Error;

use super::steering::Steering;
use crate::datapath::packet::TunnelIndex;
use crate::datapath::seam::{DatagramSink, SendFailure, Transmit};
use crate::datapath::tunnel::wireguard::{Device, DeviceStatus, DeviceUpdate};
use crate::io::listen_port::{ListenPort, PortSender};
use crate::io::socket::SocketError;
use crate::order::Order;

/// How long workers may take to change over: a batch, and a busy machine.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at them.
const LOOK: Duration = Duration::from_millis(1);

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

    /// Waits until no worker has sockets of this port.
    fn wait_until_given_up(self) {
        drop(self.senders);
        let deadline = Instant::now() + PATIENCE;
        while self.lease.strong_count() > 0 && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
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
    pub fn apply(&self, update: &DeviceUpdate) -> Result<(), InterfaceError> {
        let mut outside = self.outside();
        let fwmark = update.fwmark.unwrap_or(outside.fwmark);
        match update.listen_port {
            Some(port) if port != outside.port => self.move_to(&mut outside, port, fwmark)?,
            _ => Self::mark(&mut outside, fwmark)?,
        }
        drop(outside);
        self.device.apply(update);
        Ok(())
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
    fn move_to(&self, outside: &mut Outside, port: u16, fwmark: u32) -> Result<(), InterfaceError> {
        let workers = self.steering.workers();
        let bound = ListenPort::bind(self.local, port, fwmark, workers.len())?;
        let before = mem::replace(outside, Outside::of(&bound, fwmark));
        for (worker, sockets) in workers.iter().zip(bound.workers) {
            if !worker.give(Order::Port { tunnel: self.tunnel, sockets }) {
                return Err(InterfaceError::Busy);
            }
        }
        self.steering.set_port(self.tunnel, bound.number);
        before.wait_until_given_up();
        Ok(())
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
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::datapath::table::ForwardingTable;
    use crate::datapath::tunnel::wireguard::queue;
    use crate::io::listen_port::PortSockets;
    use crate::order::{OrderInbox, channel};

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// An interface, and the one worker that listens for it.
    fn interface() -> (Interface, OrderInbox, PortSockets) {
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

    /// What a worker does with orders, until `interface` has done something.
    fn serve<T: Send>(
        inbox: &OrderInbox,
        mut sockets: PortSockets,
        action: impl FnOnce() -> T + Send,
    ) -> (T, PortSockets) {
        thread::scope(|scope| {
            let action = scope.spawn(action);
            while !action.is_finished() {
                if let Some(Order::Port { sockets: new, .. }) = inbox.next() {
                    sockets = new;
                }
            }
            (action.join().expect("an outcome"), sockets)
        })
    }

    #[test]
    fn a_new_port_is_everybody_s_and_the_old_one_is_free_again() {
        let (interface, inbox, sockets) = interface();
        let first = interface.status().listen_port;
        assert_eq!(sockets.number, first);
        let (changed, sockets) = serve(&inbox, sockets, || interface.apply(&listen(0)));
        changed.expect("another port");
        let second = interface.status().listen_port;
        assert_eq!(sockets.number, second);
        assert_ne!(first, second);
        let (changed, sockets) = serve(&inbox, sockets, || interface.apply(&listen(first)));
        changed.expect("the first port again");
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
        interface.apply(&listen(sockets.number)).expect("nothing to do");
        assert!(inbox.next().is_none());
    }
}
