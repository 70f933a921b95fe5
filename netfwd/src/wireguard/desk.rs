//! The thread for handshakes and timers of all WireGuard interfaces.
//!
//! A handshake costs as much as some hundred packets, and whoever likes may send the first message of one. So workers hand
//! handshake messages over in a bounded queue, which drops them when it is full, and this thread works them off at a lower
//! priority than the workers have and within an allowance of CPU time: a flood costs handshakes, not data.

use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::setpriority_process;
use rustix::thread::gettid;
use rustix::time::{ClockId, clock_gettime};
use tracing::info;

use super::allowance::Allowances;
use super::interface::Interface;
use crate::datapath::sealed::transmit;
use crate::datapath::stats::Counters;
use crate::datapath::tunnel::wireguard::{
    Handshakes, Lanes, MEMORY, Message, Now, Outgoing, QueueReceiver, QueueSender, TICK, queue,
};

/// Handshake messages that may wait in each lane: as many as the kernel lets wait (`MAX_QUEUED_INCOMING_HANDSHAKES`).
const QUEUE: usize = 4096;
/// How much the thread yields to others: half of the way from an ordinary one to one that runs only when nobody else does.
const NICE: i32 = 10;
/// Messages between two looks at clocks, errands and timers.
const TURN: usize = 16;

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
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let mut allowances = Allowances::new(cpus, Instant::now());
        let mut handshakes = Handshakes::new();
        let mut next_tick = Instant::now() + TICK;
        let mut next_epoch = Instant::now() + MEMORY;
        while !self.closed.load(Ordering::Relaxed) {
            self.turn(&mut handshakes, &mut allowances, next_tick, interfaces, counters);
            let now = Now::read();
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
            self.forget(now.monotonic, &mut next_epoch);
        }
    }

    fn forget(&self, now: Instant, next_epoch: &mut Instant) {
        if now >= *next_epoch {
            self.queue.begin_epoch();
            *next_epoch = now + MEMORY;
        }
    }

    /// Waits for a message until `next_tick`, and works off some of its lane.
    fn turn(
        &self,
        handshakes: &mut Handshakes,
        allowances: &mut Allowances,
        next_tick: Instant,
        interfaces: &[Arc<Interface>],
        counters: &Counters,
    ) {
        let now = Instant::now();
        let lanes = allowances.lanes(now);
        let until_tick = next_tick.saturating_duration_since(now);
        let patience = allowances.closed_for().map_or(until_tick, |closed| until_tick.min(closed));
        let Some(first) = self.queue.receive(lanes, patience) else { return };
        let (now, lane, started) = (Now::read(), first.lane, own_time());
        let more = iter::from_fn(|| self.queue.next(Lanes::default().with(lane)));
        for message in iter::once(first).chain(more).take(TURN) {
            self.answer(handshakes, interfaces, counters, now, &message);
        }
        allowances.spend(lane, own_time().saturating_sub(started));
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

/// The CPU time that this thread has had.
fn own_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

fn send(interface: &Interface, outgoing: &Outgoing<'_>, counters: &Counters) -> usize {
    transmit(&mut &*interface, outgoing, interface.tunnel(), counters)
}

impl Closing {
    /// Ends the thread soon.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.queue.wake();
    }
}
