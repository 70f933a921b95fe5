//! What the control side tells a running worker: here are other sockets, here is another table, that queue is gone.
//!
//! Only a worker touches its own sockets, and it sleeps in epoll. So an order reaches it by a bounded channel, and an eventfd
//! among what its epoll watches says when to look: nothing is asked per batch, let alone per packet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::event::{EventfdFlags, eventfd};

use crate::datapath::packet::TunnelIndex;
use crate::datapath::table::ForwardingTable;
use crate::io::listen_port::PortSockets;
use crate::worker::Queue;

/// Orders that may wait for one worker; it takes them between two batches.
const ROOM: usize = 64;

/// Something that changes while packets flow.
pub enum Order {
    /// A tunnel listens on, and sends from, these sockets from now on.
    Port {
        /// Whose.
        tunnel: TunnelIndex,
        /// The worker's share.
        sockets: PortSockets,
    },
    /// Packets are matched by this table from now on.
    Table(Arc<ForwardingTable>),
    /// An underlay's interface is gone, and its AF_XDP socket gets nothing any more.
    QueueLost {
        /// Index of the underlay.
        underlay: usize,
    },
    /// The interface is back, and this queue gets its packets from now on.
    QueueAttached {
        /// Index of the underlay.
        underlay: usize,
        /// The new socket.
        queue: Box<Queue>,
    },
}

/// The control side's end.
#[derive(Clone)]
pub struct Orders {
    orders: SyncSender<Order>,
    bell: Arc<OwnedFd>,
}

/// The worker's end.
pub struct OrderInbox {
    orders: Receiver<Order>,
    bell: Arc<OwnedFd>,
}

/// Both ends.
pub fn channel() -> io::Result<(Orders, OrderInbox)> {
    let (sender, receiver) = sync_channel(ROOM);
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    Ok((Orders { orders: sender, bell: bell.clone() }, OrderInbox { orders: receiver, bell }))
}

impl Orders {
    /// Gives an order; whether there was room, and a worker to take it.
    pub fn give(&self, order: Order) -> bool {
        let given = self.orders.try_send(order).is_ok();
        // Only at u64::MAX would the eventfd refuse, and then it rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        given
    }
}

impl OrderInbox {
    /// The next order, if there is one.
    pub fn next(&self) -> Option<Order> {
        self.orders.try_recv().ok()
    }

    /// Stops the bell; to be called before [`next`](Self::next).
    pub fn silence(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
    }
}

impl AsFd for OrderInbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn rings(inbox: &OrderInbox) -> bool {
        poll(&mut [PollFd::new(inbox, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(1)
    }

    #[test]
    fn an_order_rings_until_it_is_heard() {
        let (orders, inbox) = channel().expect("an eventfd");
        assert!(!rings(&inbox));
        assert!(orders.give(Order::Table(Arc::default())));
        assert!(rings(&inbox));
        inbox.silence();
        assert!(!rings(&inbox));
        assert!(matches!(inbox.next(), Some(Order::Table(_))));
        assert!(inbox.next().is_none());
    }

    #[test]
    fn a_worker_that_hears_nothing_costs_a_bounded_queue() {
        let (orders, _inbox) = channel().expect("an eventfd");
        let given = (0..2 * ROOM).filter(|_| orders.give(Order::Table(Arc::default()))).count();
        assert_eq!(given, ROOM);
    }
}
