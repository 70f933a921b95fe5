//! The forwarding databases: behind which remote an inner MAC address lives.
//!
//! Every worker learns from what it receives and looks up what it sends, so the tables are shared, and neither may wait
//! for the other. Whoever can send into a tunnel can also invent addresses, so a table must stay bounded in memory and
//! in time per packet, whatever it is fed.
//!
//! A table is a set-associative array of atomics: an address can stand in one of eight slots, found by a keyed hash. A
//! slot's address and remote share one 64-bit word, so a reader that finds its address in a word has, from the same
//! load, the remote that was stored with it: there is no moment at which a slot shows one address with another's remote.
//! The time of the last sighting is a second word and may lag behind: the worst that does is to forget an address early
//! or late, and the next packet teaches it again. Two workers that learn one address at the same moment may fill two
//! slots; lookups and refreshes use the first, and the other ages out.
//!
//! Invariants: at most [`CAPACITY`] learned entries per tunnel, with twice as many slots so that sets rarely fill up.
//! What does not fit is not learned, and its frames are flooded; nothing in use is evicted for a newcomer. Static
//! entries are never aged and never overridden by learning. Lookups skip what is older than [`MAX_AGE`], so ageing does not
//! depend on how often [`Fdbs::age`] sweeps. The arrays are zero-allocated: a page costs memory once an address
//! falls into it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use netfwd_common::wire::ethernet::{Mac, is_multicast};
use zerocopy::FromZeros;

use super::packet::{Link, RemoteIndex, TunnelIndex};
use super::table::{ForwardingTable, Tunnel};

/// Most learned entries of one tunnel.
pub const CAPACITY: usize = 65_536;
/// Seconds without a sighting after which a learned entry is forgotten.
pub const MAX_AGE: u32 = 300;

const WAYS: usize = 8;
const SETS: usize = 2 * CAPACITY / WAYS;
const EMPTY: u64 = 0;

/// What became of a sighting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// A new entry.
    New,
    /// A known address, at the remote where it was.
    Known,
    /// A known address at another remote: the entry moved with it.
    Moved,
    /// A static entry's address, a group address, or zeros: never learned.
    Fixed,
    /// No room.
    Full,
}

/// One entry, as a status command shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Address.
    pub mac: Mac,
    /// Where it lives.
    pub remote: RemoteIndex,
    /// Seconds since it was last seen; none for a static entry.
    pub age: Option<u32>,
}

/// The forwarding databases of all tunnels, by tunnel index.
#[derive(Debug, Default)]
pub struct Fdbs(Box<[Option<Fdb>]>);

impl Fdbs {
    /// Empty databases with the static entries of `table`. `seed` keys the hash, so that nobody can aim at a set.
    pub fn new(table: &ForwardingTable, seed: u64) -> Self {
        let fdb = |tunnel: &Tunnel| (tunnel.link() == Link::Ethernet).then(|| Fdb::new(&tunnel.static_macs, seed));
        Self(table.tunnels().iter().map(fdb).collect())
    }

    /// One tunnel's database; L3 tunnels have none.
    pub fn get(&self, tunnel: TunnelIndex) -> Option<&Fdb> {
        self.0.get(usize::from(tunnel.0))?.as_ref()
    }

    /// Notes that `mac` was seen behind `remote`. `now` is in seconds on a monotonic clock.
    pub fn learn(&self, tunnel: TunnelIndex, mac: &Mac, remote: RemoteIndex, now: u32) -> Learned {
        self.get(tunnel).map_or(Learned::Fixed, |fdb| fdb.learn(mac, remote, now))
    }

    /// Where `mac` lives.
    pub fn lookup(&self, tunnel: TunnelIndex, mac: &Mac, now: u32) -> Option<RemoteIndex> {
        self.get(tunnel)?.lookup(mac, now)
    }

    /// Frees the slots of entries older than [`MAX_AGE`]: to be called every few seconds, by one thread.
    pub fn age(&self, now: u32) {
        self.0.iter().flatten().for_each(|fdb| fdb.age(now));
    }
}

/// One tunnel's forwarding database.
#[derive(Debug)]
pub struct Fdb {
    fixed: HashMap<Mac, RemoteIndex>,
    slots: Vec<AtomicU64>,
    seen: Vec<AtomicU32>,
    learned: AtomicUsize,
    seed: u64,
}

impl Fdb {
    fn new(fixed: &[(Mac, RemoteIndex)], seed: u64) -> Self {
        Self {
            fixed: fixed.iter().copied().collect(),
            slots: AtomicU64::new_vec_zeroed(SETS * WAYS).expect("address space for 1 MiB"),
            seen: AtomicU32::new_vec_zeroed(SETS * WAYS).expect("address space for 512 KiB"),
            learned: AtomicUsize::new(0),
            seed,
        }
    }

    /// How many entries are learned.
    pub fn len(&self) -> usize {
        self.learned.load(Ordering::Relaxed)
    }

    /// Whether nothing is learned.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries, static ones first.
    pub fn entries(&self, now: u32) -> impl Iterator<Item = Entry> {
        let fixed = self.fixed.iter().map(|(mac, remote)| Entry { mac: *mac, remote: *remote, age: None });
        let learned = self.slots.iter().zip(&self.seen).filter_map(move |(slot, seen)| {
            let word = slot.load(Ordering::Relaxed);
            let (mac, remote) = unpack(word);
            let age = age(now, seen.load(Ordering::Relaxed));
            (word != EMPTY).then_some(Entry { mac, remote, age: Some(age) })
        });
        fixed.chain(learned)
    }

    fn lookup(&self, mac: &Mac, now: u32) -> Option<RemoteIndex> {
        if let Some(remote) = self.fixed.get(mac) {
            return Some(*remote);
        }
        let (slots, seen) = self.set(mac);
        let (slot, word) = find(slots, mac)?;
        let fresh = age(now, seen.get(slot)?.load(Ordering::Relaxed)) <= MAX_AGE;
        fresh.then_some(unpack(word).1)
    }

    fn learn(&self, mac: &Mac, remote: RemoteIndex, now: u32) -> Learned {
        if is_multicast(mac) || *mac == [0; 6] || self.fixed.contains_key(mac) {
            return Learned::Fixed;
        }
        let (slots, seen) = self.set(mac);
        match find(slots, mac) {
            Some((way, word)) => refresh(&slots[way], &seen[way], word, pack(mac, remote), now),
            None => self.insert(slots, seen, pack(mac, remote), now),
        }
    }

    fn insert(&self, slots: &[AtomicU64], seen: &[AtomicU32], word: u64, now: u32) -> Learned {
        // The place is taken in the count first, so that the cap holds whatever other workers do.
        let within_capacity = |learned| (learned < CAPACITY).then_some(learned + 1);
        if self.learned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within_capacity).is_err() {
            return Learned::Full;
        }
        for (slot, seen) in slots.iter().zip(seen) {
            if slot.load(Ordering::Relaxed) == EMPTY {
                seen.store(now, Ordering::Relaxed);
                if slot.compare_exchange(EMPTY, word, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                    return Learned::New;
                }
            }
        }
        self.learned.fetch_sub(1, Ordering::Relaxed);
        Learned::Full
    }

    fn age(&self, now: u32) {
        // Nothing learned: the sweep would only page the arrays in.
        if self.is_empty() {
            return;
        }
        for (slot, seen) in self.slots.iter().zip(&self.seen) {
            let word = slot.load(Ordering::Relaxed);
            let old = word != EMPTY && age(now, seen.load(Ordering::Relaxed)) > MAX_AGE;
            if old && slot.compare_exchange(word, EMPTY, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                self.learned.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn set(&self, mac: &Mac) -> (&[AtomicU64], &[AtomicU32]) {
        let product = u128::from(pack(mac, RemoteIndex(0)) ^ self.seed) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
        let start = ((product >> 64) as usize ^ product as usize) % SETS * WAYS;
        (&self.slots[start..start + WAYS], &self.seen[start..start + WAYS])
    }
}

fn find(slots: &[AtomicU64], mac: &Mac) -> Option<(usize, u64)> {
    let address = pack(mac, RemoteIndex(0));
    let words = slots.iter().map(|slot| slot.load(Ordering::Relaxed));
    words.enumerate().find(|(_, word)| word & !REMOTE_MASK == address && *word != EMPTY)
}

fn refresh(slot: &AtomicU64, seen: &AtomicU32, old: u64, new: u64, now: u32) -> Learned {
    // Written once a second, not once a packet: the cache line stays shared.
    if seen.load(Ordering::Relaxed) != now {
        seen.store(now, Ordering::Relaxed);
    }
    if old == new {
        return Learned::Known;
    }
    // If the slot changed meanwhile, another worker saw this address too, or it just aged out; the next packet decides.
    let _ = slot.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
    Learned::Moved
}

const REMOTE_MASK: u64 = 0xffff;

fn pack(mac: &Mac, remote: RemoteIndex) -> u64 {
    let [a, b, c, d, e, f] = *mac;
    u64::from_be_bytes([a, b, c, d, e, f, 0, 0]) | u64::from(remote.0)
}

fn unpack(word: u64) -> (Mac, RemoteIndex) {
    let [a, b, c, d, e, f, high, low] = word.to_be_bytes();
    ([a, b, c, d, e, f], RemoteIndex(u16::from_be_bytes([high, low])))
}

/// Seconds since `seen`; a worker's clock that is a second behind another's counts as none.
fn age(now: u32, seen: u32) -> u32 {
    let age = now.wrapping_sub(seen);
    if age > u32::MAX / 2 { 0 } else { age }
}
