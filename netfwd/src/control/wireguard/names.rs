//! Endpoints that are host names.
//!
//! `wg` resolves a name once, when it reads the file: a peer whose address changes later is lost, and so is one whose name
//! did not resolve at boot. Here names are resolved at the start and again, ever more rarely, while their peer has no
//! session.
//!
//! Invariants: a peer with a session is left alone, since it may have roamed to where no name leads; one that was removed
//! over the control socket does not come back; lookups at a time are bounded, and their answers are waited for only so long.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::config::HostName;
use crate::control::uapi::Configurable;
use crate::datapath::tunnel::wireguard::{DeviceStatus, DeviceUpdate, PeerUpdate, PublicKey};

/// A session is unusable that long after its handshake (WireGuard's REJECT_AFTER_TIME).
const SESSION: Duration = Duration::from_secs(180);
/// First and last interval between two lookups of a name.
const INTERVALS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// How often peers are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Lookups at a time; each occupies a thread.
const LOOKUPS: usize = 8;

/// A peer whose endpoint is a name.
struct Named {
    key: PublicKey,
    name: HostName,
    interval: Duration,
    due: Instant,
    lookups: usize,
}

/// Resolves the names of `interface`'s peers, until it is dropped.
pub(super) async fn follow<D: Configurable>(interface: String, names: Vec<(PublicKey, HostName)>, device: Arc<D>) {
    let now = Instant::now();
    let named = |(key, name)| Named { key, name, interval: INTERVALS.0, due: now, lookups: 0 };
    let mut names: Vec<_> = names.into_iter().map(named).collect();
    loop {
        let now = Instant::now();
        if names.iter().any(|named| named.due <= now) {
            let status = device.status();
            let mut due: Vec<_> =
                names.iter_mut().filter_map(|named| named.needs_lookup(&status, now).then_some(named)).collect();
            for some in due.chunks_mut(LOOKUPS) {
                look_up(&interface, some, device.as_ref()).await;
            }
        }
        sleep(LOOK).await;
    }
}

impl Named {
    /// Whether it is to be resolved now; when it is asked about next.
    fn needs_lookup(&mut self, status: &DeviceStatus, now: Instant) -> bool {
        if self.due > now {
            return false;
        }
        let needed = !has_session(status, self.key, SystemTime::now());
        self.interval = if needed && self.lookups > 0 { (self.interval * 2).min(INTERVALS.1) } else { INTERVALS.0 };
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

async fn look_up<D: Configurable>(interface: &str, names: &mut [&mut Named], device: &D) {
    let mut lookups = JoinSet::new();
    for (index, named) in names.iter().enumerate() {
        let HostName { host, port } = named.name.clone();
        lookups.spawn(async move { (index, resolve(&host, port).await) });
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
        if let Err(error) = device.apply(&DeviceUpdate { peers: vec![peer], ..DeviceUpdate::default() }) {
            info!("tunnel {interface}: {}: {error}", named.name);
        }
    }
}

async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let answer = timeout(PATIENCE, tokio::net::lookup_host((host, port))).await??;
    let mut addresses: Vec<_> = answer.collect();
    addresses.dedup();
    if addresses.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::tunnel::wireguard::PeerStatus;

    const KEY: PublicKey = PublicKey([7; 32]);

    fn named() -> Named {
        let name = HostName { host: "vpn.example.org".to_owned(), port: 51820 };
        Named { key: KEY, name, interval: INTERVALS.0, due: Instant::now(), lookups: 0 }
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
        assert_eq!(named.due - now, INTERVALS.0);
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
