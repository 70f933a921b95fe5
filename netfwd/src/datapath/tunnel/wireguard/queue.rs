//! The way from the workers to the control side: bounded, and full under a flood.
//!
//! Invariants: a worker never waits and never allocates; what does not fit is a dropped handshake message, never a data
//! packet. A worker's own wishes (a peer needs a handshake) do not travel in the queue: they are kept by the device, and the
//! queue only wakes the other side up, which looks for them on every turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::path::Path;
use crate::datapath::packet::TunnelIndex;

/// Longest handshake message: an initiation.
pub const MAX_MESSAGE: usize = 148;

/// A handshake message on its way to the control side.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Whose.
    pub tunnel: TunnelIndex,
    /// Where it came from.
    pub path: Path,
    bytes: [u8; MAX_MESSAGE],
    len: u8,
}

impl Message {
    /// A copy of a message; none of one that is too long to be a handshake's.
    pub fn new(tunnel: TunnelIndex, path: Path, message: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_MESSAGE];
        bytes.get_mut(..message.len())?.copy_from_slice(message);
        Some(Self { tunnel, path, bytes, len: message.len() as u8 })
    }

    /// The message.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What is in the queue: a message, or a wake-up.
type Order = Option<Message>;

/// A queue for `capacity` handshake messages, shared by all devices.
pub fn queue(capacity: usize) -> (QueueSender, QueueReceiver) {
    let (sender, receiver) = sync_channel(capacity);
    let waiting = Arc::new(AtomicUsize::new(0));
    (QueueSender { sender, waiting: Arc::clone(&waiting) }, QueueReceiver { receiver, waiting, capacity })
}

/// The workers' end.
#[derive(Clone)]
pub struct QueueSender {
    sender: SyncSender<Order>,
    waiting: Arc<AtomicUsize>,
}

impl QueueSender {
    /// Hands a message over, or says that there was no room.
    pub fn send(&self, message: Message) -> bool {
        self.try_send(Some(message))
    }

    /// Wakes the other end up. A full queue means that it is awake.
    pub fn wake(&self) {
        self.try_send(None);
    }

    fn try_send(&self, order: Order) -> bool {
        // Counted before, or the other end could take it off first.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let sent = self.sender.try_send(order).is_ok();
        if !sent {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        sent
    }
}

/// The control side's end.
pub struct QueueReceiver {
    receiver: Receiver<Order>,
    waiting: Arc<AtomicUsize>,
    capacity: usize,
}

impl QueueReceiver {
    /// The next message, if one comes within `timeout`. A wake-up ends the waiting without one.
    pub fn receive(&self, timeout: Duration) -> Option<Message> {
        let order = match self.receiver.try_recv() {
            Ok(order) => Ok(order),
            Err(_) => self.receiver.recv_timeout(timeout),
        };
        match order {
            Ok(order) => {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                order
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Whether an eighth of the queue is taken: from there on the kernel, too, wants cookies (`wg_receive_handshake_packet`).
    pub fn is_loaded(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= (self.capacity / 8).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(byte: u8) -> Message {
        let path = Path::to("192.0.2.1:51820".parse().unwrap());
        Message::new(TunnelIndex(3), path, &[byte; 64]).unwrap()
    }

    #[test]
    fn a_full_queue_refuses_and_a_wake_up_is_then_not_needed() {
        let (sender, receiver) = queue(16);
        assert_eq!((0..20).filter(|n| sender.send(message(*n))).count(), 16);
        sender.wake();
        for n in 0..16 {
            let message = receiver.receive(Duration::ZERO).unwrap();
            assert_eq!((message.tunnel, message.bytes()), (TunnelIndex(3), &[n; 64][..]));
        }
        assert!(receiver.receive(Duration::ZERO).is_none());
    }

    #[test]
    fn an_eighth_of_the_queue_is_load() {
        let (sender, receiver) = queue(16);
        assert!(sender.send(message(0)));
        assert!(!receiver.is_loaded());
        assert!(sender.send(message(0)));
        assert!(receiver.is_loaded());
        assert!(receiver.receive(Duration::ZERO).is_some());
        assert!(!receiver.is_loaded());
    }

    #[test]
    fn a_wake_up_ends_the_waiting() {
        let (sender, receiver) = queue(1);
        sender.wake();
        let start = std::time::Instant::now();
        assert!(receiver.receive(Duration::from_secs(60)).is_none());
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn what_is_too_long_for_a_handshake_is_none() {
        let path = Path::to("192.0.2.1:51820".parse().unwrap());
        assert!(Message::new(TunnelIndex(0), path, &[0; MAX_MESSAGE + 1]).is_none());
    }
}
