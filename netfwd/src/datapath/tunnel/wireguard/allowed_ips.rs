//! Which peer an inner address belongs to: one longest-prefix match answers for both directions (cryptokey routing).
//!
//! Egress asks who gets a destination, ingress whether a source is its sender's. A prefix belongs to the peer that it was last
//! given to.
//!
//! Workers look it up for every superframe and every packet, so they must not share a lock for it: each has a
//! [`Snapshots`] of the table, which a number tells to be outdated. Numbers are never used twice, not even by two devices. While the
//! table is being changed (milliseconds, with thousands of peers) workers go on with what they have; one that has nothing waits.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::peer::Peer;
use crate::datapath::packet::TunnelIndex;

/// Prefixes and whose they are.
#[derive(Clone, Default)]
pub(super) struct AllowedIps {
    ipv4: PrefixMap<Ipv4Net, Arc<Peer>>,
    ipv6: PrefixMap<Ipv6Net, Arc<Peer>>,
}

impl AllowedIps {
    /// Gives a prefix to a peer; who had it.
    pub(super) fn insert(&mut self, prefix: IpNet, peer: Arc<Peer>) -> Option<Arc<Peer>> {
        match prefix {
            IpNet::V4(prefix) => self.ipv4.insert(prefix, peer),
            IpNet::V6(prefix) => self.ipv6.insert(prefix, peer),
        }
    }

    /// Takes a prefix away.
    pub(super) fn remove(&mut self, prefix: IpNet) {
        match prefix {
            IpNet::V4(prefix) => self.ipv4.remove(&prefix),
            IpNet::V6(prefix) => self.ipv6.remove(&prefix),
        };
    }

    /// Whose an address is.
    pub(super) fn lookup(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        match address {
            IpAddr::V4(address) => self.ipv4.get_lpm(&Ipv4Net::from(address)).map(|(_, peer)| peer),
            IpAddr::V6(address) => self.ipv6.get_lpm(&Ipv6Net::from(address)).map(|(_, peer)| peer),
        }
    }
}

/// The table that is in force.
pub(super) struct Published {
    current: Mutex<Arc<AllowedIps>>,
    number: AtomicU64,
}

impl Published {
    pub(super) fn new() -> Self {
        Self { current: Mutex::default(), number: AtomicU64::new(next_number()) }
    }

    /// Changes the table.
    pub(super) fn change(&self, change: impl FnOnce(&mut AllowedIps)) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut current));
        self.number.store(next_number(), Ordering::Release);
    }

    /// The table, unless it is being changed; `waits`: once it is not.
    fn look(&self, waits: bool) -> Option<MutexGuard<'_, Arc<AllowedIps>>> {
        match self.current.try_lock() {
            Ok(current) => Some(current),
            Err(TryLockError::Poisoned(current)) => Some(current.into_inner()),
            Err(TryLockError::WouldBlock) => waits.then(|| self.current.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A worker's view of every device's table.
#[derive(Default)]
pub(super) struct Snapshots(Vec<Snapshot>);

#[derive(Clone, Default)]
struct Snapshot {
    /// 0: none yet.
    number: u64,
    table: Arc<AllowedIps>,
}

impl Snapshots {
    /// The table that is in force for this tunnel's device.
    pub(super) fn of(&mut self, tunnel: TunnelIndex, published: &Published) -> &AllowedIps {
        let at = usize::from(tunnel.0);
        if self.0.len() <= at {
            self.0.resize(at + 1, Snapshot::default());
        }
        let snapshot = &mut self.0[at];
        if snapshot.number != published.number.load(Ordering::Acquire)
            && let Some(current) = published.look(snapshot.number == 0)
        {
            // Under the lock the number belongs to the table.
            *snapshot = Snapshot { number: published.number.load(Ordering::Acquire), table: Arc::clone(&current) };
        }
        &snapshot.table
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::key::PublicKey;
    use super::*;

    /// Few bits, so that prefixes contain each other; the same ones in both families.
    fn prefix(v6: bool, bits: u8, len: u8) -> IpNet {
        let net = match v6 {
            false => Ipv4Net::new((u32::from(bits) << 24).into(), len).map(IpNet::V4),
            true => Ipv6Net::new((u128::from(bits) << 120).into(), len).map(IpNet::V6),
        };
        net.expect("a length up to eight").trunc()
    }

    fn operation() -> impl Strategy<Value = (IpNet, Option<usize>)> {
        let prefix = (any::<bool>(), any::<u8>(), 0_u8..=8).prop_map(|(v6, bits, len)| prefix(v6, bits, len));
        (prefix, prop::option::weighted(0.6, 0_usize..4))
    }

    #[test]
    fn a_worker_goes_on_with_what_it_has_while_the_table_is_changed() {
        let (tunnel, published, mut snapshots) = (TunnelIndex(0), Published::new(), Snapshots::default());
        let peer = Peer::new(PublicKey([1; 32]));
        let everything = prefix(false, 0, 0);
        let owns = |table: &AllowedIps| table.lookup(everything.addr()).is_some();
        assert!(!owns(snapshots.of(tunnel, &published)));
        published.change(|table| drop(table.insert(everything, peer)));
        std::thread::scope(|scope| {
            let (said, told) = std::sync::mpsc::channel();
            published.change(|_| {
                let (snapshots, published) = (&mut snapshots, &published);
                scope.spawn(move || said.send(owns(snapshots.of(tunnel, published))));
                assert_eq!(told.recv_timeout(std::time::Duration::from_secs(10)), Ok(false));
            });
        });
        assert!(owns(snapshots.of(tunnel, &published)));
    }

    proptest! {
        /// Given or taken away in whatever order.
        #[test]
        fn an_address_belongs_to_whom_the_longest_of_its_prefixes_was_last_given(
            operations in prop::collection::vec(operation(), 1..80),
        ) {
            let peers: Vec<_> = (0..4).map(|n| Peer::new(PublicKey([n; 32]))).collect();
            let (mut table, mut expected) = (AllowedIps::default(), HashMap::<IpNet, usize>::new());
            for (prefix, peer) in operations {
                match peer {
                    Some(peer) => {
                        let before = table.insert(prefix, peers[peer].clone()).map(|before| before.public_key.0[0]);
                        prop_assert_eq!(before.map(usize::from), expected.insert(prefix, peer));
                    }
                    None => {
                        table.remove(prefix);
                        expected.remove(&prefix);
                    }
                }
            }
            for address in (0..=255).flat_map(|bits| [false, true].map(|v6| prefix(v6, bits, 8).addr())) {
                let prefixes = expected.iter().filter(|(prefix, _)| prefix.contains(&address));
                let owner = prefixes.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, peer)| *peer);
                let found = table.lookup(address).map(|peer| usize::from(peer.public_key.0[0]));
                prop_assert_eq!(found, owner, "{}", address);
            }
        }
    }
}
