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
//! Invariants: at most [`CAPACITY`] learned entries per tunnel, with twice as many slots, so that few addresses find
//! their set full: under 1 % of a full table's. What does not fit is not learned, and its frames are flooded; nothing
//! in use is evicted for a newcomer. Static entries are never aged and never overridden by learning. Lookups skip what
//! is older than [`MAX_AGE`], so ageing does not depend on how often [`Fdbs::age`] sweeps. The arrays are
//! zero-allocated: a page costs memory once an address falls into it.

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
        let fdb =
            |tunnel: &Tunnel| (tunnel.link() == Link::Ethernet).then(|| Fdb::new(&tunnel.static_macs, seed, SETS));
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
    factor: u64,
    shift: u32,
}

impl Fdb {
    /// `sets` is a power of two.
    fn new(fixed: &[(Mac, RemoteIndex)], seed: u64, sets: usize) -> Self {
        Self {
            shift: u64::BITS - sets.ilog2(),
            fixed: fixed.iter().copied().collect(),
            slots: AtomicU64::new_vec_zeroed(sets * WAYS).expect("address space for 1 MiB"),
            seen: AtomicU32::new_vec_zeroed(sets * WAYS).expect("address space for 512 KiB"),
            learned: AtomicUsize::new(0),
            // Odd, and far from the small factors that a small seed would make.
            factor: (seed ^ 0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    /// How many entries are learned.
    pub fn len(&self) -> usize {
        self.learned.load(Ordering::Relaxed)
    }

    /// How many entries there are, static ones included.
    pub fn total(&self) -> usize {
        self.fixed.len() + self.len()
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
            (word != EMPTY && age <= MAX_AGE).then_some(Entry { mac, remote, age: Some(age) })
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

    /// Two rounds of multiplication by a secret odd factor: addresses count up within a vendor's prefix, and whoever
    /// invents them may not aim at a set.
    fn set(&self, mac: &Mac) -> (&[AtomicU64], &[AtomicU32]) {
        let product = (pack(mac, RemoteIndex(0)) >> REMOTE_BITS).wrapping_mul(self.factor);
        let product = (product ^ product >> 32).wrapping_mul(self.factor);
        let start = (product >> self.shift) as usize * WAYS;
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

const REMOTE_BITS: u32 = u16::BITS;
const REMOTE_MASK: u64 = (1 << REMOTE_BITS) - 1;

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

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: RemoteIndex = RemoteIndex(1);
    const THERE: RemoteIndex = RemoteIndex(2);
    const FIXED: Mac = [2, 0, 0, 0, 0, 0xff];

    fn fdb() -> Fdb {
        with_sets(SETS)
    }

    fn with_sets(sets: usize) -> Fdb {
        Fdb::new(&[(FIXED, HERE)], 0x1234_5678_9abc_def0, sets)
    }

    /// Different for every `n`, never a group address or zero.
    fn mac(n: u64) -> Mac {
        let [_, _, a, b, c, d, e, f] = n.to_be_bytes();
        [a & 0xfc | 2, b, c, d, e, f]
    }

    /// A permutation of the 48-bit numbers: addresses without pattern.
    fn scattered(n: u64) -> Mac {
        mac(n.wrapping_mul(0x5851_f42d_4c95_7f2d) & 0xffff_ffff | n << 34)
    }

    #[test]
    fn the_cap_is_reached_exactly_and_nothing_learned_is_lost() {
        for address in [mac, scattered] {
            let fdb = fdb();
            let learned: Vec<_> = (0..70_000).filter(|n| fdb.learn(&address(*n), HERE, 5) == Learned::New).collect();
            assert_eq!((learned.len(), fdb.len()), (CAPACITY, CAPACITY));
            assert_eq!(fdb.learn(&mac(1 << 42), HERE, 5), Learned::Full);
            assert!(learned.iter().all(|n| fdb.lookup(&address(*n), 5) == Some(HERE)));
            assert_eq!(fdb.entries(5).count(), 1 + CAPACITY);
        }
    }

    #[test]
    fn an_address_is_forgotten_after_300_seconds_and_its_place_is_free_again() {
        let fdb = fdb();
        fdb.learn(&mac(1), HERE, 100);
        fdb.age(400);
        assert_eq!(fdb.lookup(&mac(1), 400), Some(HERE));
        assert_eq!(fdb.lookup(&mac(1), 401), None, "also before the sweep");
        fdb.age(401);
        assert!(fdb.is_empty());
        assert_eq!(fdb.entries(401).count(), 1);
        assert_eq!(fdb.learn(&mac(1), THERE, 401), Learned::New);
    }

    #[test]
    fn a_sighting_keeps_an_address_alive() {
        let fdb = fdb();
        fdb.learn(&mac(1), HERE, 100);
        assert_eq!(fdb.learn(&mac(1), HERE, 350), Learned::Known);
        fdb.age(600);
        assert_eq!(fdb.lookup(&mac(1), 600), Some(HERE));
    }

    #[test]
    fn the_clock_may_wrap_and_workers_may_disagree_by_a_second() {
        let fdb = fdb();
        fdb.learn(&mac(1), HERE, u32::MAX);
        fdb.age(200);
        assert_eq!(fdb.lookup(&mac(1), 200), Some(HERE));
        assert_eq!(fdb.lookup(&mac(1), u32::MAX - 1), Some(HERE));
    }

    #[test]
    fn a_moved_address_is_updated_in_place() {
        let fdb = fdb();
        fdb.learn(&mac(1), HERE, 0);
        assert_eq!(fdb.learn(&mac(1), THERE, 1), Learned::Moved);
        assert_eq!((fdb.lookup(&mac(1), 1), fdb.len()), (Some(THERE), 1));
    }

    #[test]
    fn static_entries_win_and_never_age() {
        let fdb = fdb();
        assert_eq!(fdb.learn(&FIXED, THERE, 0), Learned::Fixed);
        fdb.age(100_000);
        assert_eq!(fdb.lookup(&FIXED, 100_000), Some(HERE));
        assert_eq!(fdb.entries(0).next(), Some(Entry { mac: FIXED, remote: HERE, age: None }));
        fdb.learn(&mac(1), HERE, 0);
        assert_eq!((fdb.total(), fdb.len()), (2, 1));
    }

    #[test]
    fn group_addresses_and_zeros_are_never_learned() {
        let fdb = fdb();
        for mac in [[0xff; 6], [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1], [0; 6]] {
            assert_eq!(fdb.learn(&mac, HERE, 0), Learned::Fixed);
            assert_eq!(fdb.lookup(&mac, 0), None);
        }
        assert!(fdb.is_empty());
    }

    #[test]
    fn a_full_set_refuses_newcomers_and_keeps_what_it_has() {
        let fdb = fdb();
        let set = fdb.set(&mac(0)).0.as_ptr();
        let rivals: Vec<_> = (0..).map(mac).filter(|mac| fdb.set(mac).0.as_ptr() == set).take(WAYS + 1).collect();
        let outcomes: Vec<_> = rivals.iter().map(|mac| fdb.learn(mac, HERE, 0)).collect();
        assert_eq!(outcomes, [[Learned::New; WAYS].as_slice(), &[Learned::Full]].concat());
        assert_eq!(fdb.len(), WAYS);
        assert!(rivals[..WAYS].iter().all(|mac| fdb.lookup(mac, 0) == Some(HERE)));
    }

    #[test]
    fn l3_tunnels_have_none() {
        let fdbs = Fdbs::default();
        assert_eq!(fdbs.learn(TunnelIndex(0), &mac(1), HERE, 0), Learned::Fixed);
        assert_eq!(fdbs.lookup(TunnelIndex(0), &mac(1), 0), None);
    }

    #[test]
    fn concurrent_workers_never_see_an_address_with_anothers_remote() {
        // Two sets for 48 addresses and frequent ageing, so that slots change hands; a remote tells the addresses apart.
        let fdb = with_sets(2);
        let macs: Vec<_> = (0..6 * WAYS as u64).map(mac).collect();
        let remote = |index: usize, generation: u32| RemoteIndex((index * 16) as u16 + (generation % 16) as u16);
        std::thread::scope(|scope| {
            for worker in 0..2 {
                let (fdb, macs) = (&fdb, &macs);
                scope.spawn(move || {
                    for step in 0..20_000u32 {
                        let index = (step as usize * (7 + worker)) % macs.len();
                        let now = step * 40;
                        fdb.learn(&macs[index], remote(index, step), now);
                        for (index, mac) in macs.iter().enumerate() {
                            let found = fdb.lookup(mac, now);
                            assert!(found.is_none_or(|found| usize::from(found.0) / 16 == index));
                        }
                        if step % 5 == 0 {
                            fdb.age(now);
                        }
                        if step % 512 == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
        fdb.age(u32::MAX / 2);
        assert_eq!(fdb.len(), 0, "every place was given back exactly once");
    }
}
