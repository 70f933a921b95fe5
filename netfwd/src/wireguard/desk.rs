//! The thread for handshakes and timers of all WireGuard interfaces.
//!
//! A handshake costs as much as some hundred packets, and whoever likes may send the first message of one. So workers hand
//! handshake messages over in a bounded queue, which drops them when it is full, and this thread works them off at a lower
//! priority than the workers have: a flood costs handshakes, not data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tracing::info;

use super::interface::Interface;
use crate::datapath::sealed::transmit;
use crate::datapath::stats::Counters;
use crate::datapath::tunnel::wireguard::{Handshakes, Message, Now, Outgoing, QueueReceiver, QueueSender, TICK, queue};

/// Handshake messages that may wait: as many as the kernel lets wait (`MAX_QUEUED_INCOMING_HANDSHAKES`).
const QUEUE: usize = 4096;
/// How much the thread yields to others: half of the way from an ordinary one to one that runs only when nobody else does.
const NICE: i32 = 10;

/// The thread's things, before it runs.
pub struct Desk {
    queue: QueueReceiver,
    closed: Arc<AtomicBool>,
}

/// Ends the thread.
#[derive(Clone)]
pub struct Closing {
    queue: QueueSender,
    closed: Arc<AtomicBool>,
}

impl Desk {
    /// A desk, what devices put their handshake messages into, and what ends it.
    pub fn new() -> (Self, QueueSender, Closing) {
        let (sender, receiver) = queue(QUEUE);
        let closed = Arc::new(AtomicBool::new(false));
        let closing = Closing { queue: sender.clone(), closed: closed.clone() };
        (Self { queue: receiver, closed }, sender, closing)
    }

    /// Works until it is closed.
    pub fn run(self, interfaces: &[Arc<Interface>], counters: &Counters) {
        if let Err(error) = setpriority_process(Some(gettid()), NICE) {
            info!("handshakes have the workers' priority: {error}");
        }
        let mut handshakes = Handshakes::new();
        let mut next_tick = Instant::now() + TICK;
        while !self.closed.load(Ordering::Relaxed) {
            let message = self.queue.receive(next_tick.saturating_duration_since(Instant::now()));
            let now = Now::read();
            if let Some(message) = message {
                self.answer(&mut handshakes, interfaces, counters, now, &message);
            }
            for interface in interfaces {
                let emit = &mut |outgoing: &Outgoing<'_>| send(interface, outgoing, counters);
                handshakes.run_errands(interface.device(), counters, now, emit);
                if now.monotonic >= next_tick {
                    handshakes.tick(interface.device(), counters, now, emit);
                }
            }
            if now.monotonic >= next_tick {
                next_tick = now.monotonic + TICK;
            }
        }
    }

    fn answer(
        &self,
        handshakes: &mut Handshakes,
        interfaces: &[Arc<Interface>],
        counters: &Counters,
        now: Now,
        message: &Message,
    ) {
        let Some(interface) = interfaces.iter().find(|interface| interface.tunnel() == message.tunnel) else { return };
        let emit = &mut |outgoing: &Outgoing<'_>| send(interface, outgoing, counters);
        handshakes.receive(interface.device(), counters, now, self.queue.is_loaded(), message, emit);
    }
}

fn send(interface: &Interface, outgoing: &Outgoing<'_>, counters: &Counters) {
    transmit(&mut &*interface, outgoing, interface.tunnel(), counters);
}

impl Closing {
    /// Ends the thread soon.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.queue.wake();
    }
}
