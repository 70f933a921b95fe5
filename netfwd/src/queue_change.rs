//! What the control thread tells a running worker: an AF_XDP queue is gone, here is another.
//!
//! An underlay may be deleted and made again under a running gateway (a driver reloaded, a virtual machine's port hot-plugged). Its
//! sockets are then dead for ever, and only the worker may touch its own. So new ones reach it by a bounded channel, and an
//! eventfd that its epoll watches says when to look: nothing is asked per batch, let alone per packet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::event::{EventfdFlags, eventfd};

use crate::worker::Queue;

/// Changes that may wait for one worker; it takes them within a batch, and each underlay makes two in turn.
const ROOM: usize = 64;

/// A change of one underlay's queue.
pub enum QueueChange {
    /// Its socket gets nothing any more.
    Lost {
        /// Index of the underlay.
        underlay: usize,
    },
    /// This one gets it from now on.
    Attached {
        /// Index of the underlay.
        underlay: usize,
        /// The new socket.
        queue: Box<Queue>,
    },
}

/// The control thread's end.
#[derive(Clone)]
pub struct QueueNotice {
    changes: SyncSender<QueueChange>,
    bell: Arc<OwnedFd>,
}

/// The worker's end.
pub struct QueueInbox {
    changes: Receiver<QueueChange>,
    bell: Arc<OwnedFd>,
}

/// Both ends.
pub fn channel() -> io::Result<(QueueNotice, QueueInbox)> {
    let (sender, receiver) = sync_channel(ROOM);
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    Ok((QueueNotice { changes: sender, bell: bell.clone() }, QueueInbox { changes: receiver, bell }))
}

impl QueueNotice {
    /// Says it; whether there was room, and a worker to hear it.
    pub fn send(&self, change: QueueChange) -> bool {
        let sent = self.changes.try_send(change).is_ok();
        // Only at u64::MAX would the eventfd refuse, and then it rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        sent
    }
}

impl QueueInbox {
    /// The next change, if there is one.
    pub fn next(&self) -> Option<QueueChange> {
        self.changes.try_recv().ok()
    }

    /// Stops the bell; to be called before [`next`](Self::next).
    pub fn silence(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
    }
}

impl AsFd for QueueInbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn rings(inbox: &QueueInbox) -> bool {
        poll(&mut [PollFd::new(inbox, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(1)
    }

    #[test]
    fn a_change_rings_until_it_is_heard() {
        let (notice, inbox) = channel().expect("an eventfd");
        assert!(!rings(&inbox));
        assert!(notice.send(QueueChange::Lost { underlay: 3 }));
        assert!(rings(&inbox));
        inbox.silence();
        assert!(!rings(&inbox));
        assert!(matches!(inbox.next(), Some(QueueChange::Lost { underlay: 3 })));
        assert!(inbox.next().is_none());
    }

    #[test]
    fn a_worker_that_hears_nothing_costs_a_bounded_queue() {
        let (notice, _inbox) = channel().expect("an eventfd");
        let sent = (0..2 * ROOM).filter(|_| notice.send(QueueChange::Lost { underlay: 0 })).count();
        assert_eq!(sent, ROOM);
    }
}
