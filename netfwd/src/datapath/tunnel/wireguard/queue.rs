//! The way from the workers to the control side: bounded, and full under a flood.
//!
//! Who forges sources cannot answer, so the many messages of a flood have nothing that vouches for them: no session index of
//! ours, not the address of a peer with a session, no cookie. What has one goes by a lane of its own, past all others; so
//! somebody new has to get through the crowd once, for a cookie, and everybody else not at all. A cookie is only a claim
//! here, and noise looks like one: so claims have a lane apart from what is known, and one that turns out to be wrong puts the
//! message back into the crowd. In both crowds there is a difference: who was turned away and comes again, or was given
//! a cookie and comes with one (`turned_away.rs`), is hardly ever a forger.
//!
//! Invariants: a worker never waits and never allocates; what does not fit is a dropped handshake message, never a data
//! packet. A receiver that need not look at a lane is not woken for it. A worker's own wishes (a peer needs a handshake) do
//! not travel in the queue: they are kept by the device, and the queue only wakes the other side up, which looks for them on
//! every turn.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use netfwd_common::wire::wireguard::Initiation;
use zerocopy::FromBytes;

use super::path::Path;
use super::turned_away::{EPOCH, TurnedAway};
use crate::datapath::packet::TunnelIndex;

/// How often [`QueueReceiver::begin_epoch`] is to be called.
pub const MEMORY: Duration = EPOCH;
/// Longest handshake message: an initiation.
pub const MAX_MESSAGE: usize = size_of::<Initiation>();

/// In `sleeps_for`: the receiver sleeps, for whichever lanes.
const ASLEEP: u8 = 0b1_0000;

/// A handshake message on its way to the control side.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Whose.
    pub tunnel: TunnelIndex,
    /// Where it came from.
    pub path: Path,
    /// Which way it goes.
    pub lane: Lane,
    bytes: [u8; MAX_MESSAGE],
    len: u8,
}

impl Message {
    /// A copy of a message; none of one that is too long to be a handshake's.
    pub fn new(tunnel: TunnelIndex, path: Path, lane: Lane, message: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_MESSAGE];
        bytes.get_mut(..message.len())?.copy_from_slice(message);
        Some(Self { tunnel, path, lane, bytes, len: message.len() as u8 })
    }

    /// The same on another way.
    pub fn on(self, lane: Lane) -> Self {
        Self { lane, ..self }
    }

    /// The message.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The ways through the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Answers to ours, and initiations from where a peer is.
    Known,
    /// Initiations that have something for a cookie.
    Cookie,
    /// Initiations from where one was turned away, or given the cookie that it comes with.
    Returning,
    /// All others.
    Anonymous,
}

impl Lane {
    /// All, the first one to be worked off first.
    pub const ALL: [Self; 4] = [Self::Known, Self::Cookie, Self::Returning, Self::Anonymous];

    /// That of a message which answers something of ours or comes from where a peer is (`is_known`), or does not.
    pub fn of(message: &[u8], is_known: bool) -> Self {
        match Initiation::ref_from_bytes(message) {
            _ if is_known => Self::Known,
            Ok(initiation) if initiation.macs.mac2 != [0; 16] => Self::Cookie,
            _ => Self::Anonymous,
        }
    }
}

/// A set of lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lanes(u8);

impl Lanes {
    /// All of them.
    pub const ALL: Self = Self(0b1111);

    /// With another one.
    pub fn with(self, lane: Lane) -> Self {
        Self(self.0 | 1 << lane as u8)
    }

    /// Whether it is among them.
    pub fn contains(self, lane: Lane) -> bool {
        self.0 & 1 << lane as u8 != 0
    }
}

/// A queue for `capacity` handshake messages in each lane, shared by all devices.
pub fn queue(capacity: usize) -> (QueueSender, QueueReceiver) {
    let (senders, receivers): (Vec<_>, Vec<_>) = Lane::ALL.map(|_| sync_channel(capacity)).into_iter().unzip();
    let shared = Arc::new(Shared::new(capacity));
    let sender = QueueSender { lanes: senders.into(), shared: Arc::clone(&shared) };
    (sender, QueueReceiver { lanes: receivers.into(), shared })
}

struct Shared {
    capacity: usize,
    /// Messages in each lane.
    waiting: [AtomicUsize; Lane::ALL.len()],
    turned_away: TurnedAway,
    /// The lanes that the receiver sleeps for, and [`ASLEEP`]; 0 while it is awake.
    sleeps_for: AtomicU8,
    is_woken: AtomicBool,
    sleeper: OnceLock<Thread>,
}

impl Shared {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            waiting: Default::default(),
            turned_away: TurnedAway::new(),
            sleeps_for: AtomicU8::new(0),
            is_woken: AtomicBool::new(false),
            sleeper: OnceLock::new(),
        }
    }

    fn has_room(&self, lane: Lane) -> bool {
        self.waiting[lane as usize].load(Ordering::Relaxed) < self.capacity
    }

    /// Wakes the receiver if it sleeps for something in `mask`.
    fn rouse(&self, mask: u8) {
        // What was sent before is seen by a receiver that goes to sleep after this look.
        fence(Ordering::SeqCst);
        // One that has gone to sleep again since the look, for other lanes, is woken for nothing: nobody else would do it now.
        if self.sleeps_for.load(Ordering::Relaxed) & mask != 0
            && self.sleeps_for.swap(0, Ordering::Relaxed) != 0
            && let Some(sleeper) = self.sleeper.get()
        {
            sleeper.unpark();
        }
    }
}

/// The workers' end.
#[derive(Clone)]
pub struct QueueSender {
    lanes: Arc<[SyncSender<Message>]>,
    shared: Arc<Shared>,
}

impl QueueSender {
    /// The lane by which a message can go; `None` if there is no room. Asked before it is copied, since under a flood most need
    /// not be.
    pub fn lane_for(&self, message: &[u8], place: &SocketAddr, is_known: bool) -> Option<Lane> {
        match Lane::of(message, is_known) {
            Lane::Anonymous => self.lane_in_crowd(place),
            Lane::Cookie if !self.shared.has_room(Lane::Cookie) => {
                self.lane_returning(TurnedAway::comes_with_cookie, place)
            }
            lane => self.shared.has_room(lane).then_some(lane),
        }
    }

    /// The lane for somebody of whom nothing is known but where they are.
    pub fn lane_in_crowd(&self, place: &SocketAddr) -> Option<Lane> {
        match self.shared.has_room(Lane::Anonymous) {
            true => Some(Lane::Anonymous),
            false => self.lane_returning(TurnedAway::comes_again, place),
        }
    }

    fn lane_returning(&self, is_let_in: fn(&TurnedAway, &SocketAddr) -> bool, place: &SocketAddr) -> Option<Lane> {
        (self.shared.has_room(Lane::Returning) && is_let_in(&self.shared.turned_away, place)).then_some(Lane::Returning)
    }

    /// Somebody has been sent a cookie, and will come with it.
    pub fn expect_cookie_from(&self, place: &SocketAddr) {
        self.shared.turned_away.give_cookie(place);
    }

    /// Hands a message over, or says that there was no room.
    pub fn send(&self, message: Message) -> bool {
        let lane = message.lane;
        let waiting = &self.shared.waiting[lane as usize];
        // Counted before, or the other end could take it off first.
        waiting.fetch_add(1, Ordering::Relaxed);
        let sent = self.lanes[lane as usize].try_send(message).is_ok();
        if sent {
            self.shared.rouse(Lanes::default().with(lane).0);
        } else {
            waiting.fetch_sub(1, Ordering::Relaxed);
        }
        sent
    }

    /// Wakes the other end up.
    pub fn wake(&self) {
        self.shared.is_woken.store(true, Ordering::Release);
        self.shared.rouse(ASLEEP);
    }
}

/// The control side's end: for one thread, which is the one that is woken up.
pub struct QueueReceiver {
    lanes: Box<[Receiver<Message>]>,
    shared: Arc<Shared>,
}

impl QueueReceiver {
    /// The next message of those lanes, if one comes within `timeout`. A wake-up ends the waiting without one.
    pub fn receive(&self, lanes: Lanes, timeout: Duration) -> Option<Message> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(message) = self.next(lanes) {
                return Some(message);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.shared.is_woken.swap(false, Ordering::Acquire) {
                return None;
            }
            if let Some(message) = self.sleep(lanes, left) {
                return Some(message);
            }
        }
    }

    /// The next message of those lanes, if there is one.
    pub fn next(&self, lanes: Lanes) -> Option<Message> {
        let wanted = Lane::ALL.into_iter().filter(|lane| lanes.contains(*lane));
        let message = wanted.into_iter().find_map(|lane| self.lanes[lane as usize].try_recv().ok())?;
        self.shared.waiting[message.lane as usize].fetch_sub(1, Ordering::Relaxed);
        Some(message)
    }

    /// Sleeps until something is sent, at most that long; a message that came just before.
    fn sleep(&self, lanes: Lanes, timeout: Duration) -> Option<Message> {
        let Shared { sleeps_for, is_woken, sleeper, .. } = &*self.shared;
        sleeper.get_or_init(thread::current);
        sleeps_for.store(lanes.0 | ASLEEP, Ordering::Relaxed);
        // What is sent after this look finds us asleep.
        fence(Ordering::SeqCst);
        let message = self.next(lanes);
        if message.is_none() && !is_woken.load(Ordering::Acquire) {
            thread::park_timeout(timeout);
        }
        sleeps_for.store(0, Ordering::Relaxed);
        message
    }

    /// Has those who were turned away some time ago forgotten: to be called every [`MEMORY`].
    pub fn begin_epoch(&self) {
        self.shared.turned_away.begin_epoch();
    }

    /// Whether an eighth of a lane is taken: from there on the kernel, too, wants cookies (`wg_receive_handshake_packet`).
    pub fn is_loaded(&self) -> bool {
        let threshold = (self.shared.capacity / 8).max(1);
        self.shared.waiting.iter().any(|waiting| waiting.load(Ordering::Relaxed) >= threshold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(byte: u8) -> Message {
        let path = Path::to("192.0.2.1:51820".parse().unwrap());
        Message::new(TunnelIndex(3), path, Lane::Known, &[byte; 64]).unwrap()
    }

    #[test]
    fn a_full_lane_refuses_what_comes() {
        let (sender, receiver) = queue(16);
        assert_eq!((0..20).filter(|n| sender.send(message(*n))).count(), 16);
        for n in 0..16 {
            let message = receiver.next(Lanes::ALL).unwrap();
            assert_eq!((message.tunnel, message.bytes()), (TunnelIndex(3), &[n; 64][..]));
        }
        assert!(receiver.next(Lanes::ALL).is_none());
    }

    #[test]
    fn an_eighth_of_the_queue_is_load() {
        let (sender, receiver) = queue(16);
        assert!(sender.send(message(0)));
        assert!(!receiver.is_loaded());
        assert!(sender.send(message(0)));
        assert!(receiver.is_loaded());
        assert!(receiver.next(Lanes::ALL).is_some());
        assert!(!receiver.is_loaded());
    }

    #[test]
    fn a_wake_up_ends_the_waiting() {
        let (sender, receiver) = queue(1);
        sender.wake();
        let start = std::time::Instant::now();
        assert!(receiver.receive(Lanes::default(), Duration::from_secs(60)).is_none());
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    /// An initiation with that in each byte, but for the second MAC.
    fn initiation(byte: u8, mac2: u8) -> Message {
        let mut bytes = [byte; MAX_MESSAGE];
        bytes[MAX_MESSAGE - 16..].fill(mac2);
        let path = Path::to("192.0.2.1:51820".parse().unwrap());
        Message::new(TunnelIndex(3), path, Lane::of(&bytes, false), &bytes).unwrap()
    }

    #[test]
    fn what_has_a_cookie_or_answers_us_goes_past_a_crowd() {
        let (sender, receiver) = queue(4);
        assert_eq!((0..9).filter(|n| sender.send(initiation(*n, 0))).count(), 4);
        assert!(sender.send(initiation(11, 1)) && sender.send(message(10)));
        let order = std::iter::from_fn(|| receiver.next(Lanes::ALL)).map(|message| message.bytes()[0]);
        assert_eq!(order.collect::<Vec<_>>(), [10, 11, 0, 1, 2, 3]);
    }

    #[test]
    fn who_is_turned_away_from_a_full_lane_finds_another_the_next_time() {
        let (sender, receiver) = queue(1);
        let [one, other] = ["192.0.2.1:1", "192.0.2.2:1"].map(|place| place.parse().unwrap());
        let lane_for = |place, mac2| sender.lane_for(initiation(0, mac2).bytes(), place, false);
        assert_eq!(lane_for(&one, 0), Some(Lane::Anonymous));
        assert!(sender.send(initiation(0, 0)));
        assert_eq!([&one, &other, &one].map(|place| lane_for(place, 0)), [None, None, Some(Lane::Returning)]);
        assert_eq!(lane_for(&one, 1), Some(Lane::Cookie));
        assert!(sender.send(initiation(1, 0).on(Lane::Returning)));
        assert_eq!(lane_for(&other, 0), None, "that lane is full, too");
        assert_eq!([(); 2].map(|()| receiver.next(Lanes::ALL).unwrap().bytes()[0]), [1, 0]);
    }

    #[test]
    fn who_was_given_a_cookie_goes_past_those_who_only_pretend_to_have_one() {
        let (sender, _receiver) = queue(1);
        let [one, other] = ["192.0.2.1:1", "192.0.2.2:1"].map(|place| place.parse().unwrap());
        let lane_for = |place| sender.lane_for(initiation(0, 1).bytes(), place, false);
        assert_eq!(lane_for(&one), Some(Lane::Cookie));
        assert!(sender.send(initiation(0, 1)));
        sender.expect_cookie_from(&one);
        assert_eq!([&one, &other, &one].map(lane_for), [Some(Lane::Returning), None, None]);
    }

    #[test]
    fn a_lane_can_be_left_alone() {
        let (sender, receiver) = queue(4);
        assert!(sender.send(initiation(0, 0)));
        let cookies = Lanes::default().with(Lane::Cookie);
        assert!(receiver.receive(cookies, Duration::from_millis(1)).is_none());
        assert!(sender.send(initiation(1, 1)));
        assert_eq!(receiver.receive(cookies, Duration::ZERO).unwrap().bytes()[0], 1);
        assert_eq!(receiver.receive(Lanes::ALL, Duration::ZERO).unwrap().bytes()[0], 0);
    }

    #[test]
    fn a_message_ends_the_sleep_of_whoever_waits_for_its_lane() {
        let (sender, receiver) = queue(4);
        for n in 0..200_u8 {
            std::thread::scope(|scope| {
                scope.spawn(|| assert!(sender.send(initiation(n, 1))));
                let start = Instant::now();
                let message = receiver.receive(Lanes::default().with(Lane::Cookie), Duration::from_secs(60)).unwrap();
                assert_eq!((message.bytes()[0], start.elapsed() < Duration::from_secs(30)), (n, true));
            });
        }
    }

    #[test]
    fn what_is_too_long_for_a_handshake_is_none() {
        let path = Path::to("192.0.2.1:51820".parse().unwrap());
        assert!(Message::new(TunnelIndex(0), path, Lane::Known, &[0; MAX_MESSAGE + 1]).is_none());
    }
}
