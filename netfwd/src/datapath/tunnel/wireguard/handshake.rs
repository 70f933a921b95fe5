//! The control side: handshakes and timers.

use std::time::{Instant, SystemTime};

use super::device::Device;
use super::path::Outgoing;
use super::queue::Message;
use crate::datapath::stats::Counters;

/// When it is, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For intervals.
    pub monotonic: Instant,
    /// For what people are told.
    pub wall: SystemTime,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }
}

/// The control side of all devices: one thread.
pub struct Handshakes {}

impl Handshakes {
    /// A control side.
    #[expect(clippy::new_without_default, reason = "it allocates")]
    pub fn new() -> Self {
        Self {}
    }

    /// Answers one handshake message for `device`, and sends what has waited for it. `loaded`: the queue is filling up
    /// ([`QueueReceiver::is_loaded`](super::queue::QueueReceiver::is_loaded)); from then on and for a second after, senders must prove
    /// their address first.
    pub fn receive(
        &mut self,
        device: &Device,
        counters: &Counters,
        now: Now,
        loaded: bool,
        message: &Message,
        emit: &mut impl FnMut(&Outgoing<'_>),
    ) {
        let _ = (device, counters, now, loaded, message, emit);
    }

    /// Does what workers asked for: starts handshakes, sends what has waited for one. Cheap when there is nothing to do: call
    /// it on every turn.
    pub fn run_errands(
        &mut self,
        device: &Device,
        counters: &Counters,
        now: Now,
        emit: &mut impl FnMut(&Outgoing<'_>),
    ) {
        let _ = (device, counters, now, emit);
    }

    /// Timers: call it every [`TICK`], under a flood too.
    pub fn tick(&mut self, device: &Device, counters: &Counters, now: Now, emit: &mut impl FnMut(&Outgoing<'_>)) {
        let _ = (device, counters, now, emit);
    }
}

/// How often timers are looked at.
pub const TICK: std::time::Duration = std::time::Duration::from_millis(250);
