//! The control side: handshakes and timers.
//!
//! One thread does this for all devices, so that curve arithmetic delays nobody else's data: a worker hands over a message or a
//! wish and goes on. Only the data of the peer that a handshake is computed for waits for it, at its lock. The library holds the
//! state machine; here it is decided whom a message is for, what may be computed for it, and what happens to the packets that waited.
//!
//! Invariants: nothing is computed on a curve before the message's MAC has been verified, and under load the cookie of one that
//! was not expected. The place of a peer changes only with an authentic message. Packets that waited leave under their
//! peer's lock, so that no worker overtakes them. Only active peers are visited by [`Handshakes::tick`]: those with a session, a handshake under
//! way, packets waiting or a keepalive interval; who has none of these for nine minutes is left alone (whitepaper §6.3).
//!
//! A peer whose handshake had no answer for ninety seconds is given up, and what waited for it is dropped; a keepalive interval
//! starts over, as in the kernel.

use std::collections::HashSet;
use std::mem;
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use gotatun::noise::TunnResult;
use gotatun::noise::errors::WireGuardError;
use gotatun::noise::handshake::parse_handshake_anon;
use gotatun::packet::{Packet, WgHandshakeInit, WgKind};
use gotatun::tun::MtuWatcher;
use netfwd_common::reason::{DropReason, Stage};
use tracing::debug;
use zerocopy::IntoBytes;

use super::device::Device;
use super::identity::{Admission, Gate, Identity};
use super::key::PublicKey;
use super::open::refusal;
use super::path::{HANDSHAKE_TOS, Outgoing, Path};
use super::peer::{Peer, State};
use super::queue::{Lane, Message};
use super::runs::Runs;
use super::seal::Press;
use super::stats::{HandshakeResult, Role};
use crate::datapath::stats::{Counters, Direction};
use crate::datapath::tunnel::encap::MAX_PAYLOAD;

/// How often timers are to be looked at.
pub const TICK: Duration = Duration::from_millis(250);
/// Older than this, the library's clock is set before a handshake.
const STALE: Duration = Duration::from_secs(1);

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

/// The control side of all devices: one thread. Its counters are its own.
pub struct Handshakes {
    press: Press,
    runs: Runs,
    peers: Vec<Arc<Peer>>,
    places: HashSet<SocketAddr>,
}

impl Handshakes {
    /// A control side.
    #[expect(clippy::new_without_default, reason = "it allocates")]
    pub fn new() -> Self {
        Self { press: Press::new(), runs: Runs::new(), peers: Vec::new(), places: HashSet::new() }
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
        emit: &mut impl FnMut(&Outgoing<'_>) -> usize,
    ) {
        let mut visit = Visit { device, counters, now, press: &mut self.press, runs: &mut self.runs, emit };
        if let Err(reason) = visit.receive(loaded, message) {
            debug!("a handshake message from {} was dropped: {}", message.path.remote, reason.as_str());
            counters.drops.add(Direction::Ingress, Stage::Handshake, reason, 1);
        }
    }

    /// Does what workers asked for: starts handshakes, sends what has waited for one. Cheap when there is nothing to do: call
    /// it on every turn.
    pub fn run_errands(
        &mut self,
        device: &Device,
        counters: &Counters,
        now: Now,
        emit: &mut impl FnMut(&Outgoing<'_>) -> usize,
    ) {
        let mut peers = mem::take(&mut self.peers);
        device.take_errands(&mut peers);
        let mut visit = Visit { device, counters, now, press: &mut self.press, runs: &mut self.runs, emit };
        for peer in peers.drain(..) {
            visit.look_after(&peer);
        }
        self.peers = peers;
    }

    /// Timers: call it every [`TICK`], under a flood too.
    pub fn tick(
        &mut self,
        device: &Device,
        counters: &Counters,
        now: Now,
        emit: &mut impl FnMut(&Outgoing<'_>) -> usize,
    ) {
        if let Some(identity) = device.identity() {
            identity.reset_counts();
        }
        let is_strict = device.gate.lock().unwrap_or_else(PoisonError::into_inner).is_strict(now.monotonic);
        device.stats().set_under_load(is_strict);
        let mut peers = mem::take(&mut self.peers);
        device.take_active(&mut peers);
        let mut visit = Visit { device, counters, now, press: &mut self.press, runs: &mut self.runs, emit };
        peers.retain(|peer| visit.tick(peer));
        self.places.clear();
        if is_strict {
            self.places.extend(peers.iter().filter_map(|peer| peer.lock().place()));
        }
        device.places.replace(&mut self.places);
        device.give_active(&mut peers);
        self.peers = peers;
    }
}

/// What is needed to do something for a peer.
struct Visit<'a, E> {
    device: &'a Device,
    counters: &'a Counters,
    now: Now,
    press: &'a mut Press,
    runs: &'a mut Runs,
    emit: &'a mut E,
}

impl<E: FnMut(&Outgoing<'_>) -> usize> Visit<'_, E> {
    fn receive(&mut self, loaded: bool, message: &Message) -> Result<(), DropReason> {
        if self.device.is_down() {
            return Err(DropReason::NoSession);
        }
        let identity = self.device.identity().ok_or(DropReason::Auth)?;
        let packet = Packet::copy_from(message.bytes());
        let is_known = message.lane == Lane::Known;
        let admission =
            self.gate().admit(self.now.monotonic, loaded, is_known).ok_or(DropReason::HandshakeQueueFull)?;
        match identity.limiter_for(admission).verify_packet(message.path.remote, packet) {
            Ok(WgKind::HandshakeInit(initiation)) => {
                if admission == Admission::WithCookie && !self.gate().admit_proven(message.path.remote.ip()) {
                    return Err(DropReason::HandshakeQueueFull);
                }
                self.initiation(&identity, message, initiation)
            }
            Ok(WgKind::HandshakeResp(response)) => {
                self.answer(response.receiver_idx.get(), message, WgKind::HandshakeResp(response))
            }
            Ok(WgKind::CookieReply(reply)) => {
                self.answer(reply.receiver_idx.get(), message, WgKind::CookieReply(reply))
            }
            Ok(WgKind::Data(_)) | Err(TunnResult::Done | TunnResult::WriteToTunnel(_)) => Err(DropReason::BadLength),
            Err(TunnResult::WriteToNetwork(_)) if message.lane == Lane::Cookie => self.send_back(message),
            Err(TunnResult::WriteToNetwork(cookie)) => {
                self.device.stats().count_cookie_reply();
                self.device.queue().expect_cookie_from(&message.path.remote);
                self.send_to(message.path, cookie);
                Ok(())
            }
            Err(TunnResult::Err(error)) => Err(refusal(&error)),
        }
    }

    /// What had a wrong cookie is one of the crowd, and gets a right one if the crowd's allowance is enough for that.
    fn send_back(&self, message: &Message) -> Result<(), DropReason> {
        let queue = self.device.queue();
        let lane = queue.lane_in_crowd(&message.path.remote).ok_or(DropReason::HandshakeQueueFull)?;
        if queue.send(message.on(lane)) { Ok(()) } else { Err(DropReason::HandshakeQueueFull) }
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.device.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer wants a session.
    fn initiation(
        &mut self,
        identity: &Identity,
        message: &Message,
        initiation: Packet<WgHandshakeInit>,
    ) -> Result<(), DropReason> {
        let half = parse_handshake_anon(identity.secret(), identity.public(), &initiation)
            .map_err(|error| self.refuse(Role::Responder, &error))?;
        let peer = self.device.peer(&PublicKey(half.peer_static_public)).ok_or(DropReason::NoPeer)?;
        let mut state = peer.lock();
        self.device.with_session(&peer, &mut state).ok_or(DropReason::NoPeer)?;
        self.wind(&peer, &mut state);
        let session = state.session.as_mut().ok_or(DropReason::NoPeer)?;
        match session.handle_incoming_packet(WgKind::HandshakeInit(initiation)) {
            TunnResult::WriteToNetwork(WgKind::HandshakeResp(response)) => {
                peer.count_received(message.bytes().len());
                state.follow(message.path);
                state.unconfirmed = Some(response.sender_idx.get());
                state.answered = Some(self.now.monotonic);
                self.device.activate(&peer);
                self.send(&peer, &mut state, WgKind::HandshakeResp(response));
                Ok(())
            }
            TunnResult::Err(error) => Err(self.refuse(Role::Responder, &error)),
            _ => Err(DropReason::NoSession),
        }
    }

    /// A peer answers: with a session, or with a cookie.
    fn answer(&mut self, receiver: u32, message: &Message, answer: WgKind) -> Result<(), DropReason> {
        let peer = self.device.sessions.find(receiver).ok_or(DropReason::NoSession)?;
        let mut state = peer.lock();
        let session = state.session.as_mut().ok_or(DropReason::NoSession)?;
        let is_response = matches!(answer, WgKind::HandshakeResp(_));
        match session.handle_incoming_packet(answer) {
            TunnResult::WriteToNetwork(keepalive) => {
                peer.count_received(message.bytes().len());
                state.follow_answer(message.path);
                self.complete(&peer, &mut state, Role::Initiator);
                self.send(&peer, &mut state, keepalive);
                self.flush_library(&peer, &mut state);
                self.release(&peer, &mut state);
                Ok(())
            }
            // A cookie proves nothing about where the peer is.
            TunnResult::Done => Ok(()),
            TunnResult::Err(error) if is_response => Err(self.refuse(Role::Initiator, &error)),
            TunnResult::Err(error) => Err(refusal(&error)),
            TunnResult::WriteToTunnel(_) => Err(DropReason::NoSession),
        }
    }

    /// The library queues a keepalive that was due without a session; at most one, since it asks for the handshake, too.
    fn flush_library(&mut self, peer: &Arc<Peer>, state: &mut State) {
        let Some(session) = &mut state.session else { return };
        let queued = session.get_queued_packets(&mut MtuWatcher::new(u16::MAX)).next();
        if let Some(message) = queued {
            self.send(peer, state, message);
        }
    }

    fn refuse(&self, role: Role, error: &WireGuardError) -> DropReason {
        self.device.stats().count_handshake(role, HandshakeResult::Refused);
        refusal(error)
    }

    fn complete(&self, peer: &Arc<Peer>, state: &mut State, role: Role) {
        (state.is_initiating, state.is_confirmed, state.is_established) = (false, false, true);
        state.last_handshake = Some(self.now.wall);
        state.is_initiator = role == Role::Initiator;
        debug!("session with peer {}, as {}", peer.public_key, role.as_str());
        self.device.stats().count_handshake(role, HandshakeResult::Completed);
        self.device.activate(peer);
    }

    /// A worker asked for this peer, since it has confirmed a session or packets wait for one; or our key has changed meanwhile.
    fn look_after(&mut self, peer: &Arc<Peer>) {
        let mut state = peer.lock();
        if state.is_removed {
            return self.drop_staged(&mut state);
        }
        if state.is_confirmed {
            self.complete(peer, &mut state, Role::Responder);
        }
        self.release(peer, &mut state);
        if !self.device.is_down() && state.wants_session() {
            state.is_interrupted = false;
            self.initiate(peer, &mut state);
            self.device.activate(peer);
        }
    }

    /// Starts a handshake unless one is under way.
    fn initiate(&mut self, peer: &Arc<Peer>, state: &mut State) {
        if state.path.is_none() || self.is_expected(state) || self.device.with_session(peer, state).is_none() {
            return;
        }
        self.wind(peer, state);
        let initiation = state.session.as_mut().and_then(|session| session.format_handshake_initiation(false));
        if let Some(initiation) = initiation {
            self.send(peer, state, initiation.into());
        }
    }

    /// Whether the peer may yet confirm the session that it asked for: it gets REKEY_TIMEOUT, as in the kernel, where an answer
    /// counts as a handshake sent (`wg_packet_send_handshake_initiation`). Two that ask each other at once, and each again as soon
    /// as they have answered, would forget what they asked before its answer has come from far away, for ever.
    fn is_expected(&self, state: &State) -> bool {
        let waited = state.answered.map(|answered| self.now.monotonic.saturating_duration_since(answered));
        state.awaits_confirmation() && waited.is_some_and(|waited| waited < self.device.rekey_timeout())
    }

    /// Begins a handshake if the session that we began is due for one. The library does so when it has sent packets, the kernel
    /// after keepalives too (`keep_key_fresh`): nobody should find an idle peer's newest handshake older than two minutes.
    fn renew(&mut self, peer: &Arc<Peer>, state: &mut State) {
        let is_fresh = state.session.as_ref().is_some_and(|session| session.has_active_session());
        if state.is_initiator && !is_fresh {
            self.initiate(peer, state);
        }
    }

    /// The library's clock stands still between ticks: sets it if there were none for this peer lately. By the old time the next
    /// tick would find the handshake that is about to begin long expired.
    fn wind(&mut self, peer: &Arc<Peer>, state: &mut State) {
        let wound = *state.wound.get_or_insert(self.now.monotonic);
        if self.now.monotonic.saturating_duration_since(wound) < STALE {
            return;
        }
        match self.update_timers(state) {
            Some(Ok(Some(message))) => self.send(peer, state, message),
            // Of a handshake that was given up before, too: that has been counted.
            Some(Err(WireGuardError::ConnectionExpired)) => state.forget_sessions(),
            _ => {}
        }
    }

    fn update_timers(&self, state: &mut State) -> Option<Result<Option<WgKind>, WireGuardError>> {
        state.wound = Some(self.now.monotonic);
        state.session.as_mut().map(|session| session.update_timers())
    }

    /// Seals and sends what waited for a session, if there is one now.
    fn release(&mut self, peer: &Arc<Peer>, state: &mut State) {
        let Some(path) = state.path else { return };
        if state.awaits_confirmation() {
            return;
        }
        let mtu = self.device.mtu();
        let State { staged, session, .. } = state;
        while let Some(packet) = staged.front() {
            self.press.begin().extend_from_slice(&packet.bytes);
            let ecn = packet.ecn;
            if self.press.seal(session.as_mut(), mtu, |datagram| self.runs.push(ecn, datagram)).is_none() {
                break;
            }
            staged.pop(&self.device.budget);
            if !self.runs.has_room(MAX_PAYLOAD) {
                peer.count_transmitted(self.runs.emit(path, self.emit));
            }
        }
        peer.count_transmitted(self.runs.emit(path, self.emit));
    }

    /// Lets time pass for a peer; whether it stays active.
    fn tick(&mut self, peer: &Arc<Peer>) -> bool {
        let mut state = peer.lock();
        let stays = !state.is_removed && self.pass_time(peer, &mut state);
        if !stays {
            self.device.sessions.sweep(peer, &mut state);
            self.device.deactivate(peer);
        }
        stays
    }

    fn pass_time(&mut self, peer: &Arc<Peer>, state: &mut State) -> bool {
        if self.device.is_down() {
            self.suspend(state);
            return false;
        }
        let wants_keepalives = state.persistent_keepalive != 0 && state.path.is_some();
        if !wants_keepalives && state.staged.is_empty() && state.session.is_none() {
            return false;
        }
        if self.device.with_session(peer, state).is_none() {
            // What waits for a key of ours goes on waiting, as in the kernel: `wg set` may bring it last.
            if self.device.identity().is_some() {
                self.give_up(peer, state);
            }
            return wants_keepalives;
        }
        match self.update_timers(state) {
            Some(Ok(Some(message))) => {
                let is_keepalive = matches!(message, WgKind::Data(_));
                if state.is_initiating && !is_keepalive {
                    state.distrust_local();
                }
                self.send(peer, state, message);
                if is_keepalive {
                    self.renew(peer, state);
                }
            }
            Some(Err(WireGuardError::ConnectionExpired)) => {
                self.give_up(peer, state);
                if !wants_keepalives {
                    return false;
                }
                self.initiate(peer, state);
            }
            _ => {}
        }
        // Who waits for the session to be confirmed that it answered for, may have found no room for its packet.
        if !state.staged.is_empty() || state.is_initiating && state.awaits_confirmation() {
            self.release(peer, state);
            self.initiate(peer, state);
        }
        true
    }

    /// The link is down: no session outlives that, as in the kernel (`wg_stop`).
    fn suspend(&self, state: &mut State) {
        if let Some(session) = &mut state.session {
            session.reset();
        }
        state.forget_sessions();
        self.drop_staged(state);
    }

    /// There is no session any more, and no answer to come.
    fn give_up(&self, peer: &Peer, state: &mut State) {
        if state.is_initiating {
            debug!("peer {} did not answer", peer.public_key);
            self.device.stats().count_handshake(Role::Initiator, HandshakeResult::GaveUp);
        }
        state.forget_sessions();
        self.drop_staged(state);
    }

    fn drop_staged(&self, state: &mut State) {
        let dropped = state.staged.clear(&self.device.budget);
        self.counters.drops.add(Direction::Egress, Stage::Crypto, DropReason::NoSession, dropped as u64);
    }

    /// Sends a message of the library's to a peer; a handshake's index is entered first.
    fn send(&mut self, peer: &Arc<Peer>, state: &mut State, message: WgKind) {
        let index = match &message {
            WgKind::HandshakeInit(initiation) => {
                debug!("peer {} is asked for a session", peer.public_key);
                state.is_initiating = true;
                Some(initiation.sender_idx.get())
            }
            WgKind::HandshakeResp(response) => Some(response.sender_idx.get()),
            WgKind::CookieReply(_) | WgKind::Data(_) => None,
        };
        if let Some(index) = index {
            self.device.sessions.enter(peer, state, index);
        }
        if let Some(path) = state.path {
            peer.count_transmitted(self.send_to(path, message));
        }
    }

    fn send_to(&mut self, path: Path, message: WgKind) -> usize {
        let tos = if matches!(message, WgKind::Data(_)) { 0 } else { HANDSHAKE_TOS };
        self.runs.push(tos, Packet::from(message).as_bytes());
        self.runs.emit(path, self.emit)
    }
}
