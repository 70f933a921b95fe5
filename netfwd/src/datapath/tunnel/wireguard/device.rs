//! A WireGuard device: its key, its peers, and where they are found.
//!
//! Invariants: configuration is changed under one lock that no worker takes; workers find peers by allowed IPs
//! (`allowed_ips`) and by session index (`sessions`), and lock only the peer. Peers whose
//! timers run are in a list of their own, so that time passes for nobody else.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use gotatun::noise::TimerParams;
use ipnet::IpNet;

use super::allowed_ips::{AllowedIps, Published};
use super::identity::{Gate, Identity};
use super::key::{KEY_LEN, PrivateKey, PublicKey};
use super::path::Path;
use super::peer::{Peer, Session, State};
use super::places::Places;
use super::queue::QueueSender;
use super::sessions::Sessions;
use super::settings::{AllowedIpUpdate, DeviceStatus, DeviceUpdate, PeerStatus, PeerUpdate};
use super::staged::Budget;
use super::stats::Stats;
use crate::datapath::packet::TunnelIndex;

/// What the kernel's device has over IPv4 and IPv6 on Ethernet.
const DEFAULT_MTU: u16 = 1420;
/// So long an answer is waited for before the question is repeated (whitepaper §6.1).
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// A session is unusable that long after its handshake (REJECT_AFTER_TIME, whitepaper §6.1).
const SESSION: Duration = Duration::from_secs(180);

/// An endpoint with its peers. All methods take `&self`: workers, control socket and timers share it in an [`Arc`].
pub struct Device {
    tunnel: TunnelIndex,
    config: Mutex<Config>,
    own: Mutex<Own>,
    mtu: AtomicU16,
    is_down: AtomicBool,
    is_retired: AtomicBool,
    queue: QueueSender,
    stats: Stats,
    errands: Mutex<Vec<Arc<Peer>>>,
    has_errands: AtomicBool,
    active: Mutex<Vec<Arc<Peer>>>,
    /// How many peers are active. The list is somewhere else during a tick.
    active_count: AtomicUsize,
    pub(super) allowed_ips: Published,
    pub(super) sessions: Sessions,
    pub(super) budget: Budget,
    pub(super) gate: Mutex<Gate>,
    /// Known only while cookies are wanted.
    pub(super) places: Places,
}

#[derive(Default)]
struct Config {
    peers: HashMap<PublicKey, Entry>,
    /// How many there ever were.
    count: u64,
}

/// What sessions are made with. Nothing else is locked while this is: it may be read under a peer's lock.
#[derive(Default)]
struct Own {
    identity: Option<Arc<Identity>>,
    timers: Option<TimerParams>,
}

struct Entry {
    peer: Arc<Peer>,
    /// The later it came, the greater.
    place: u64,
    prefixes: BTreeSet<IpNet>,
}

/// How many peers there are, by what is known of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounts {
    /// Configured.
    pub configured: usize,
    /// Those whose timers run: with a session, a handshake under way or a keepalive interval.
    pub active: usize,
}

impl Device {
    /// A device without key and peers. Its handshake messages go to `queue`.
    pub fn new(tunnel: TunnelIndex, queue: QueueSender) -> Arc<Self> {
        Arc::new(Self {
            tunnel,
            config: Mutex::default(),
            own: Mutex::default(),
            mtu: AtomicU16::new(DEFAULT_MTU),
            is_down: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            queue,
            stats: Stats::default(),
            errands: Mutex::default(),
            has_errands: AtomicBool::new(false),
            active: Mutex::default(),
            active_count: AtomicUsize::new(0),
            allowed_ips: Published::new(),
            sessions: Sessions::new(),
            budget: Budget::default(),
            gate: Mutex::new(Gate::new()),
            places: Places::default(),
        })
    }

    /// Which tunnel it is.
    pub fn tunnel(&self) -> TunnelIndex {
        self.tunnel
    }

    /// What it counted.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Padding does not grow packets beyond this: the device's MTU.
    pub fn set_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Its link was taken down, or is up again. While it is down, its peers have no sessions, get none, and hear nothing.
    pub fn set_up(&self, is_up: bool) {
        self.is_down.store(!is_up, Ordering::Release);
        if is_up {
            self.config().peers.values().for_each(|entry| self.resume(&entry.peer));
        }
    }

    /// Its datagrams have another port or mark, and so perhaps another way: the kernel chooses anew which of our addresses they come
    /// from, as its own device does (`wg_socket_clear_peer_endpoint_src`).
    pub fn forget_locals(&self) {
        self.config().peers.values().for_each(|entry| entry.peer.lock().forget_local());
    }

    /// Its link was deleted: down for good, whatever is said of it.
    pub fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
    }

    /// Other timers than the protocol's, for sessions that are made from now on: tests cannot wait for two minutes.
    pub fn set_timers(&self, timers: TimerParams) {
        lock(&self.own).timers = Some(timers);
    }

    /// REKEY_TIMEOUT, or what the timers have instead.
    pub(super) fn rekey_timeout(&self) -> Duration {
        lock(&self.own).timers.as_ref().map_or(REKEY_TIMEOUT, |timers| *timers.rekey_timeout.end())
    }

    /// Changes key and peers. `listen_port` and `fwmark` are the sockets' matter and ignored here.
    pub fn apply(&self, update: &DeviceUpdate) {
        let mut config = self.config();
        if let Some(key) = &update.private_key {
            self.set_key(&mut config, key.clone().map(PrivateKey::clamped));
        }
        let changes_prefixes = update.replace_peers || update.peers.iter().any(PeerUpdate::changes_prefixes);
        if changes_prefixes {
            self.allowed_ips.change(|table| self.apply_peers(&mut config, table, update));
        } else {
            // Nothing will be written to it.
            self.apply_peers(&mut config, &mut AllowedIps::default(), update);
        }
    }

    /// Key and peers; `listen_port` and `fwmark` are left at 0 for the sockets' owner.
    pub fn status(&self) -> DeviceStatus {
        let config = self.config();
        let mut entries: Vec<_> = config.peers.values().collect();
        // `wg-quick save` writes a file from this, and its sections are to stay where they are.
        entries.sort_unstable_by_key(|entry| entry.place);
        DeviceStatus {
            private_key: self.identity().map(|identity| identity.key().clone()),
            peers: entries.into_iter().map(Entry::status).collect(),
            ..DeviceStatus::default()
        }
    }

    /// Whether there is such a peer, and no session with it that could be in use at `now`.
    pub fn lacks_session(&self, public_key: &PublicKey, now: SystemTime) -> bool {
        let Some(peer) = self.peer(public_key) else { return false };
        let state = peer.lock();
        // A clock that was set back tells nothing.
        let is_old = |time| now.duration_since(time).is_ok_and(|age| age >= SESSION);
        !state.is_established || state.last_handshake.is_none_or(is_old)
    }

    /// How many peers there are.
    pub fn peer_counts(&self) -> PeerCounts {
        PeerCounts { configured: self.config().peers.len(), active: self.active_count.load(Ordering::Relaxed) }
    }

    pub(super) fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed).into()
    }

    /// What [`Device::set_up`] last said, unless it is retired; up at first.
    pub fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Acquire) || self.is_retired.load(Ordering::Acquire)
    }

    pub(super) fn queue(&self) -> &QueueSender {
        &self.queue
    }

    pub(super) fn identity(&self) -> Option<Arc<Identity>> {
        lock(&self.own).identity.clone()
    }

    pub(super) fn peer(&self, public_key: &PublicKey) -> Option<Arc<Peer>> {
        self.config().peers.get(public_key).map(|entry| Arc::clone(&entry.peer))
    }

    /// Makes sure that the peer, whose state is locked, has a session object, if there is a key to make one with and that of the
    /// peer is good for something. It is the one that lay by without a key, where there is one: a key is in force before all
    /// peers have heard of it.
    pub(super) fn with_session<'s>(&self, peer: &Peer, state: &'s mut State) -> Option<&'s mut Session> {
        if state.session.is_none() && !state.is_removed {
            if peer.public_key.has_small_order() {
                return None;
            }
            let own = lock(&self.own);
            let identity = own.identity.as_deref()?;
            if state.dormant.is_some() {
                state.set_identity(identity, false);
            } else {
                let (indices, timers) = (self.sessions.table(), own.timers.as_ref());
                state.session = Some(Session::new(identity, peer.public_key, state, indices, timers));
            }
        }
        state.session.as_mut()
    }

    /// Asks the control side to look after a peer: it needs a handshake, or had one.
    pub(super) fn ask_for(&self, peer: &Arc<Peer>) {
        if !peer.is_wanted.swap(true, Ordering::AcqRel) {
            lock(&self.errands).push(Arc::clone(peer));
            self.has_errands.store(true, Ordering::Release);
            self.queue.wake();
        }
    }

    /// Takes the peers that were asked for, into an empty vector.
    pub(super) fn take_errands(&self, errands: &mut Vec<Arc<Peer>>) {
        if self.has_errands.swap(false, Ordering::AcqRel) {
            mem::swap(&mut *lock(&self.errands), errands);
        }
        for peer in errands {
            peer.is_wanted.store(false, Ordering::Release);
        }
    }

    /// Lets time pass for a peer.
    pub(super) fn activate(&self, peer: &Arc<Peer>) {
        if !peer.is_active.swap(true, Ordering::AcqRel) {
            self.active_count.fetch_add(1, Ordering::Relaxed);
            self.active().push(Arc::clone(peer));
        }
    }

    /// Lets no time pass for an active peer any more; it is not to be given back.
    pub(super) fn deactivate(&self, peer: &Peer) {
        self.active_count.fetch_sub(1, Ordering::Relaxed);
        peer.is_active.store(false, Ordering::Release);
    }

    /// Takes the peers whose timers run, into an empty vector. Those that are still active are to be given back.
    pub(super) fn take_active(&self, active: &mut Vec<Arc<Peer>>) {
        mem::swap(&mut *self.active(), active);
    }

    pub(super) fn give_active(&self, active: &mut Vec<Arc<Peer>>) {
        let mut current = self.active();
        // Usually nothing was added meanwhile, and the vector that was taken goes back as it is.
        mem::swap(&mut *current, active);
        current.append(active);
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        lock(&self.config)
    }

    fn active(&self) -> MutexGuard<'_, Vec<Arc<Peer>>> {
        lock(&self.active)
    }

    /// Before any peer hears of it the key is in force, so that no session is made with the one before.
    fn set_key(&self, config: &mut Config, key: Option<PrivateKey>) {
        let current = self.identity().map(|identity| identity.key().to_hex());
        if current == key.as_ref().map(PrivateKey::to_hex) {
            return;
        }
        let identity = key.map(|key| Arc::new(Identity::new(key)));
        lock(&self.own).identity = identity.clone();
        if let Some(own) = identity.as_ref().map(|identity| identity.public_key()) {
            // As in the kernel: a peer that is ourselves makes no sense.
            self.allowed_ips.change(|table| self.remove_peer(config, table, &own));
        }
        let is_placeholder = identity.is_none();
        let identity = identity.unwrap_or_else(|| Arc::new(Identity::new(PrivateKey::from_bytes([0; KEY_LEN]))));
        for Entry { peer, .. } in config.peers.values() {
            let mut state = peer.lock();
            state.set_identity(&identity, is_placeholder);
            self.sessions.sweep(peer, &mut state);
            if state.is_interrupted && !is_placeholder {
                self.ask_for(peer);
            }
        }
    }

    /// The link is up again: keepalives are due, and what came before that was known has to leave.
    fn resume(&self, peer: &Arc<Peer>) {
        let state = peer.lock();
        if state.persistent_keepalive != 0 {
            self.activate(peer);
        }
        if state.wants_session() {
            self.ask_for(peer);
        }
    }

    fn apply_peers(&self, config: &mut Config, table: &mut AllowedIps, update: &DeviceUpdate) {
        if update.replace_peers {
            let all: Vec<PublicKey> = config.peers.keys().copied().collect();
            all.iter().for_each(|key| self.remove_peer(config, table, key));
        }
        for peer in &update.peers {
            self.apply_peer(config, table, peer);
        }
    }

    fn apply_peer(&self, config: &mut Config, table: &mut AllowedIps, update: &PeerUpdate) {
        let key = update.public_key;
        let is_own = self.identity().is_some_and(|identity| identity.public_key() == key);
        if update.remove {
            return self.remove_peer(config, table, &key);
        }
        if is_own || (update.update_only && !config.peers.contains_key(&key)) {
            return;
        }
        let entry = config.peers.entry(key).or_insert_with(|| {
            config.count += 1;
            Entry::new(key, config.count)
        });
        let peer = Arc::clone(&entry.peer);
        if peer.lock().apply(update) {
            self.activate(&peer);
        }
        if update.replace_allowed_ips {
            mem::take(&mut entry.prefixes).into_iter().for_each(|prefix| table.remove(prefix));
        }
        for allowed in &update.allowed_ips {
            config.allow(table, &peer, allowed);
        }
    }

    fn remove_peer(&self, config: &mut Config, table: &mut AllowedIps, key: &PublicKey) {
        let Some(Entry { peer, prefixes, .. }) = config.peers.remove(key) else { return };
        prefixes.into_iter().for_each(|prefix| table.remove(prefix));
        let mut state = peer.lock();
        state.is_removed = true;
        (state.session, state.dormant) = (None, None);
        state.preshared_key = None;
        self.sessions.sweep(&peer, &mut state);
        if !state.staged.is_empty() {
            // The control side drops what waits: it can count.
            self.ask_for(&peer);
        }
    }
}

impl Config {
    fn allow(&mut self, table: &mut AllowedIps, peer: &Arc<Peer>, update: &AllowedIpUpdate) {
        let prefix = update.prefix.trunc();
        let Some(entry) = self.peers.get_mut(&peer.public_key) else { return };
        if update.remove {
            if entry.prefixes.remove(&prefix) {
                table.remove(prefix);
            }
            return;
        }
        entry.prefixes.insert(prefix);
        let before = table.insert(prefix, Arc::clone(peer)).filter(|before| !Arc::ptr_eq(before, peer));
        if let Some(loser) = before.and_then(|before| self.peers.get_mut(&before.public_key)) {
            loser.prefixes.remove(&prefix);
        }
    }
}

impl Entry {
    fn new(key: PublicKey, place: u64) -> Self {
        Self { peer: Peer::new(key), place, prefixes: BTreeSet::new() }
    }

    fn status(&self) -> PeerStatus {
        let state = self.peer.lock();
        PeerStatus {
            public_key: self.peer.public_key,
            preshared_key: state.preshared_key.clone(),
            endpoint: state.path.map(|path| path.remote),
            persistent_keepalive: state.persistent_keepalive,
            allowed_ips: self.prefixes.iter().copied().collect(),
            last_handshake: state.last_handshake,
            receive_bytes: self.peer.received.load(Ordering::Relaxed),
            transmit_bytes: self.peer.transmitted.load(Ordering::Relaxed),
        }
    }
}

impl PeerUpdate {
    fn changes_prefixes(&self) -> bool {
        self.remove || self.replace_allowed_ips || !self.allowed_ips.is_empty()
    }
}

impl State {
    /// Changes what is named; whether keepalives are due, and so timers are needed.
    fn apply(&mut self, update: &PeerUpdate) -> bool {
        if let Some(key) = &update.preshared_key {
            self.preshared_key = key.bytes().map(|_| key.clone());
            self.kept().for_each(|session| session.set_preshared_key(key.bytes()));
        }
        if let Some(remote) = update.endpoint {
            self.path = Some(Path::to(remote));
        }
        // The same again, as `wg syncconf` says it, must not put off what is due: the library begins to count anew.
        if let Some(seconds) = update.persistent_keepalive.filter(|seconds| *seconds != self.persistent_keepalive) {
            self.persistent_keepalive = seconds;
            self.kept().for_each(|session| session.set_persistent_keepalive(Some(seconds)));
        }
        self.persistent_keepalive != 0
    }

    /// What the library keeps of the peer, also while the device has no key.
    fn kept(&mut self) -> impl Iterator<Item = &mut Session> {
        self.session.iter_mut().chain(&mut self.dormant)
    }

    /// The device has another key, or none: no session outlives that. What the library keeps of the peer does, as in the kernel: it
    /// remembers the newest handshake. Without a key it lies by with a placeholder, so that nothing is left of the one it had.
    fn set_identity(&mut self, identity: &Identity, is_placeholder: bool) {
        let is_wanted = self.is_initiating || self.is_interrupted;
        self.forget_sessions();
        self.is_interrupted = is_wanted;
        let Some(mut session) = self.session.take().or_else(|| self.dormant.take()) else { return };
        session.set_static_private(identity.secret().clone(), *identity.public(), Arc::clone(identity.limiter()));
        *if is_placeholder { &mut self.dormant } else { &mut self.session } = Some(session);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
