//! Endpoints that are host names.
//!
//! `wg` resolves a name once, when it reads the file: a peer whose address changes later is lost, and so is one whose name
//! did not resolve at boot. Here names are resolved at the start and again, ever more rarely, while their peer has no
//! session.
//!
//! Invariants: a peer with a session is left alone, since it may have roamed to where no name leads; one that was removed
//! over the control socket does not come back; a place that was set there holds, and its peer's name is not followed any more.
//! Both are asked about again when the answer has come.
//!
//! What bounds there are: [`LOOKUPS`] of an interface at a time, each on a thread that it occupies until the C library has an
//! answer or gives up (`timeout` and `attempts` in `resolv.conf`; 10 seconds with one server). All others wait for any of them
//! to end, those that took long the last time behind the rest. So a name that was answered promptly before waits for one
//! place, and one that has never been asked about for its turn: 26 minutes where ten thousand before it have no answer.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{Instant, interval};
use tracing::{debug, info};

use super::Changeable;
use crate::config::{self, HostName};
use crate::datapath::tunnel::wireguard::{DeviceUpdate, PublicKey};

/// The interval between the first two lookups of a name; the next ones double.
const FIRST: Duration = Duration::from_secs(5);
/// The longest one.
const LONGEST: Duration = Duration::from_secs(300);
/// How often peers are looked at: so much later than it is due a lookup may be.
const LOOK: Duration = Duration::from_secs(1);
/// Who takes longer to answer lets others go first, the next time.
const PROMPT: Duration = Duration::from_secs(1);
/// Lookups at a time; each occupies a thread.
const LOOKUPS: usize = 64;

/// Asks for the addresses of a host, and waits for as long as that takes.
type Resolve = fn(&HostName) -> io::Result<Vec<SocketAddr>>;

/// Names in want of a lookup, by index: first those that are answered promptly, then whoever has waited longest.
type Waiting = BTreeSet<(bool, Instant, usize)>;

/// The names of one interface's peers.
pub(super) struct Names {
    interface: String,
    local: IpAddr,
    peers: Vec<Named>,
    resolve: Resolve,
}

/// A peer whose endpoint is a name.
struct Named {
    key: PublicKey,
    name: HostName,
    interval: Duration,
    /// When its peer is looked at next; `None` while a lookup is awaited, or when there will be none any more.
    due: Option<Instant>,
    lookups: usize,
    is_slow: bool,
}

/// What came of a lookup.
struct Answer {
    index: usize,
    addresses: io::Result<Vec<SocketAddr>>,
    is_slow: bool,
}

/// The peers that are where their names say: all that are configured with one, until the operator says something else.
#[derive(Default)]
pub(super) struct Followed(HashSet<PublicKey>);

impl Names {
    /// Those that a tunnel is configured with.
    pub(super) fn of(tunnel: &config::Tunnel) -> Self {
        let named = tunnel.wireguard().into_iter().flat_map(|wireguard| wireguard.names());
        let peers = named.map(|(key, name)| Named::new(key, name.clone())).collect();
        Self { interface: tunnel.name.clone(), local: tunnel.local, peers, resolve }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    pub(super) fn followed(&self) -> Followed {
        Followed(self.peers.iter().map(|named| named.key).collect())
    }

    /// Resolves them again and again, until it is dropped.
    pub(super) async fn follow(mut self, device: Arc<Changeable>) {
        let (mut looks, mut waiting, mut lookups) = (interval(LOOK), Waiting::new(), JoinSet::new());
        loop {
            tokio::select! {
                _ = looks.tick() => self.look(&device, &mut waiting).await,
                Some(Ok(answer)) = lookups.join_next() => self.take(answer, &device).await,
            }
            while lookups.len() < LOOKUPS
                && let Some((.., index)) = waiting.pop_first()
            {
                lookups.spawn_blocking(self.lookup(index));
            }
        }
    }

    /// Adds those that are due and whose peers have no session to `waiting`.
    async fn look(&mut self, device: &Changeable, waiting: &mut Waiting) {
        let (now, time) = (Instant::now(), SystemTime::now());
        let followed = device.turn.lock().await;
        for (index, named) in self.peers.iter_mut().enumerate() {
            let Some(due) = named.due.take_if(|due| *due <= now) else { continue };
            if !followed.has(&named.key) {
                continue;
            }
            if device.interface.device().lacks_session(&named.key, time) {
                waiting.insert((named.is_slow, due, index));
            } else {
                named.rest(now);
            }
        }
    }

    fn lookup(&self, index: usize) -> impl FnOnce() -> Answer + Send + use<> {
        let (resolve, name, begin) = (self.resolve, self.peers[index].name.clone(), Instant::now());
        move || {
            let addresses = resolve(&name);
            Answer { index, addresses, is_slow: begin.elapsed() > PROMPT }
        }
    }

    async fn take(&mut self, answer: Answer, device: &Changeable) {
        let Self { interface, local, peers, .. } = self;
        let named = &mut peers[answer.index];
        named.is_slow = answer.is_slow;
        let addresses = answer.addresses.and_then(|addresses| usable(addresses, *local)).unwrap_or_else(|error| {
            info!("tunnel {interface}: {}: {error}", named.name);
            Vec::new()
        });
        if let Some(endpoint) = named.choose(&addresses) {
            debug!("tunnel {interface}: {} is {endpoint}", named.name);
            if let Err(error) = device.lead(named.key, endpoint).await {
                info!("tunnel {interface}: {}: {error}", named.name);
            }
        }
        named.wait(Instant::now());
    }
}

impl Named {
    fn new(key: PublicKey, name: HostName) -> Self {
        Self { key, name, interval: FIRST, due: Some(Instant::now()), lookups: 0, is_slow: false }
    }

    /// The next lookup comes later than this one did.
    fn wait(&mut self, now: Instant) {
        self.due = Some(now + self.interval);
        self.interval = (self.interval * 2).min(LONGEST);
    }

    /// The peer has a session. Lookups begin anew when it has lost that.
    fn rest(&mut self, now: Instant) {
        (self.due, self.interval) = (Some(now + FIRST), FIRST);
    }

    /// One of the name's addresses, another one at each lookup: not all of them need answer.
    fn choose(&mut self, addresses: &[SocketAddr]) -> Option<SocketAddr> {
        let choice = addresses.get(self.lookups % addresses.len().max(1)).copied();
        self.lookups += 1;
        choice
    }
}

impl Followed {
    pub(super) fn has(&self, key: &PublicKey) -> bool {
        self.0.contains(key)
    }

    /// The operator says where peers are, or that there are none: who is made again is another peer than the configured one.
    pub(super) fn heed(&mut self, update: &DeviceUpdate) {
        if update.replace_peers {
            self.0.clear();
        }
        for peer in update.peers.iter().filter(|peer| peer.remove || peer.endpoint.is_some()) {
            self.0.remove(&peer.public_key);
        }
    }
}

fn resolve(HostName { host, port }: &HostName) -> io::Result<Vec<SocketAddr>> {
    Ok((host.as_str(), *port).to_socket_addrs()?.collect())
}

/// Those addresses that can be reached from `local`, each once.
fn usable(mut addresses: Vec<SocketAddr>, local: IpAddr) -> io::Result<Vec<SocketAddr>> {
    addresses.retain(|address| local.is_unspecified() || address.is_ipv4() == local.is_ipv4());
    addresses.dedup();
    if addresses.is_empty() { Err(io::Error::other("the name has no address of our family")) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests;
