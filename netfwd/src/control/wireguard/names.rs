//! Endpoints that are host names.
//!
//! `wg` resolves a name once, when it reads the file: a peer whose address changes later is lost, and so is one whose name
//! did not resolve at boot. Here names are resolved at the start and again, ever more rarely, while their peer has no
//! session.
//!
//! Invariants: a peer with a session is left alone, since it may have roamed to where no name leads; one that was removed
//! over the control socket does not come back; lookups at a time are bounded, and their answers are waited for only so long.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::config::{self, HostName};
use crate::control::uapi::Configurable;
use crate::datapath::tunnel::wireguard::{DeviceStatus, DeviceUpdate, PeerUpdate, PublicKey};

/// A session is unusable that long after its handshake (WireGuard's REJECT_AFTER_TIME).
const SESSION: Duration = Duration::from_secs(180);
/// The interval between the first two lookups of a name; the next ones double.
const FIRST: Duration = Duration::from_secs(5);
/// The longest one.
const LONGEST: Duration = Duration::from_secs(300);
/// How often peers are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Lookups at a time; each occupies a thread.
const LOOKUPS: usize = 8;

/// The names of one interface's peers.
pub(super) struct Names {
    interface: String,
    local: IpAddr,
    peers: Vec<Named>,
}

/// A peer whose endpoint is a name.
struct Named {
    key: PublicKey,
    name: HostName,
    interval: Duration,
    due: Instant,
    lookups: usize,
}

impl Names {
    /// Those that a tunnel is configured with.
    pub(super) fn of(tunnel: &config::Tunnel) -> Self {
        let due = Instant::now();
        let named = |(key, name): (_, &HostName)| Named { key, name: name.clone(), interval: FIRST, due, lookups: 0 };
        let peers = tunnel.wireguard().into_iter().flat_map(|wireguard| wireguard.names()).map(named).collect();
        Self { interface: tunnel.name.clone(), local: tunnel.local, peers }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Resolves them again and again, until it is dropped.
    pub(super) async fn follow<D: Configurable>(mut self, device: Arc<D>) {
        loop {
            let now = Instant::now();
            if self.peers.iter().any(|named| named.due <= now) {
                let status = device.status();
                let due = self.peers.iter_mut().filter_map(|named| named.needs_lookup(&status, now).then_some(named));
                let mut due: Vec<_> = due.collect();
                for some in due.chunks_mut(LOOKUPS) {
                    look_up(&self.interface, self.local, some, device.as_ref()).await;
                }
            }
            sleep(LOOK).await;
        }
    }
}

impl Named {
    /// Whether it is to be resolved now; when it is asked about next.
    fn needs_lookup(&mut self, status: &DeviceStatus, now: Instant) -> bool {
        if self.due > now {
            return false;
        }
        let needed = !has_session(status, self.key, SystemTime::now());
        self.interval = if needed && self.lookups > 0 { (self.interval * 2).min(LONGEST) } else { FIRST };
        self.due = now + self.interval;
        needed
    }

    /// One of the name's addresses, another one at each lookup: not all of them need answer.
    fn choose(&mut self, addresses: &[SocketAddr]) -> Option<SocketAddr> {
        let choice = addresses.get(self.lookups % addresses.len().max(1)).copied();
        self.lookups += 1;
        choice
    }
}

/// Whether the peer has a session; one that is gone needs nothing either.
fn has_session(status: &DeviceStatus, key: PublicKey, now: SystemTime) -> bool {
    let Some(peer) = status.peers.iter().find(|peer| peer.public_key == key) else { return true };
    let age = peer.last_handshake.map(|time| now.duration_since(time).unwrap_or_default());
    age.is_some_and(|age| age < SESSION)
}

async fn look_up<D: Configurable>(interface: &str, local: IpAddr, names: &mut [&mut Named], device: &D) {
    let mut lookups = JoinSet::new();
    for (index, named) in names.iter().enumerate() {
        let HostName { host, port } = named.name.clone();
        lookups.spawn(async move { (index, resolve(&host, port, local).await) });
    }
    while let Some(Ok((index, answer))) = lookups.join_next().await {
        let named = &mut names[index];
        let addresses = answer.unwrap_or_else(|error| {
            info!("tunnel {interface}: {}: {error}", named.name);
            Vec::new()
        });
        let Some(endpoint) = named.choose(&addresses) else { continue };
        debug!("tunnel {interface}: {} is {endpoint}", named.name);
        let peer = PeerUpdate { update_only: true, endpoint: Some(endpoint), ..PeerUpdate::new(named.key) };
        if let Err(error) = device.apply(&DeviceUpdate { peers: vec![peer], ..DeviceUpdate::default() }).await {
            info!("tunnel {interface}: {}: {error}", named.name);
        }
    }
}

async fn resolve(host: &str, port: u16, local: IpAddr) -> io::Result<Vec<SocketAddr>> {
    let answer = timeout(PATIENCE, tokio::net::lookup_host((host, port))).await??;
    usable(answer, local)
}

/// Those addresses that can be reached from `local`, each once.
fn usable(answer: impl Iterator<Item = SocketAddr>, local: IpAddr) -> io::Result<Vec<SocketAddr>> {
    let mut addresses: Vec<_> =
        answer.filter(|address| local.is_unspecified() || address.is_ipv4() == local.is_ipv4()).collect();
    addresses.dedup();
    if addresses.is_empty() { Err(io::Error::other("the name has no address of our family")) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::tunnel::wireguard::PeerStatus;

    const KEY: PublicKey = PublicKey([7; 32]);

    fn named() -> Named {
        let name = HostName { host: "vpn.example.org".to_owned(), port: 51820 };
        Named { key: KEY, name, interval: FIRST, due: Instant::now(), lookups: 0 }
    }

    fn status(last_handshake: Option<SystemTime>) -> DeviceStatus {
        let peer = PeerStatus {
            public_key: KEY,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
            last_handshake,
            receive_bytes: 0,
            transmit_bytes: 0,
        };
        DeviceStatus { peers: vec![peer], ..DeviceStatus::default() }
    }

    #[test]
    fn a_peer_with_a_session_and_one_that_is_gone_are_left_alone() {
        let now = SystemTime::now();
        assert!(!has_session(&status(None), KEY, now));
        assert!(!has_session(&status(Some(now - SESSION)), KEY, now));
        assert!(has_session(&status(Some(now - SESSION / 2)), KEY, now));
        // The clock was set back meanwhile.
        assert!(has_session(&status(Some(now + SESSION)), KEY, now));
        assert!(has_session(&DeviceStatus::default(), KEY, now));
    }

    #[test]
    fn lookups_become_rarer_up_to_a_bound_until_there_is_a_session() {
        let mut named = named();
        let mut now = named.due;
        let mut intervals = Vec::new();
        for _ in 0..9 {
            assert!(named.needs_lookup(&status(None), now));
            assert!(!named.needs_lookup(&status(None), now), "once when it is due");
            named.choose(&[]);
            intervals.push((named.due - now).as_secs());
            now = named.due;
        }
        assert_eq!(intervals, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert!(!named.needs_lookup(&status(Some(SystemTime::now())), now));
        assert_eq!(named.due - now, FIRST);
    }

    #[test]
    fn addresses_of_the_family_that_we_have_not_are_left_out() {
        let [v4, v6]: [SocketAddr; 2] =
            ["192.0.2.1:1", "[2001:db8::1]:1"].map(|text| text.parse().expect("an address"));
        let from = |local: &str| usable([v4, v4, v6].into_iter(), local.parse().expect("an address")).expect("some");
        assert_eq!((from("::"), from("10.9.0.2"), from("fd00::1")), (vec![v4, v6], vec![v4], vec![v6]));
        assert!(usable([v6].into_iter(), [10, 9, 0, 2].into()).is_err());
    }

    #[test]
    fn all_addresses_of_a_name_get_their_turn() {
        let addresses: Vec<SocketAddr> =
            ["192.0.2.1:1", "[2001:db8::1]:1"].map(|text| text.parse().expect("an address")).into();
        let mut named = named();
        let choices: Vec<_> = (0..3).map(|_| named.choose(&addresses)).collect();
        assert_eq!(choices, [Some(addresses[0]), Some(addresses[1]), Some(addresses[0])]);
        assert_eq!(named.choose(&[]), None);
    }
}
