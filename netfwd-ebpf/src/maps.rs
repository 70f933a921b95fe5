//! The maps, named as `netfwd_common::abi` says, and what the classifier asks of them.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, XskMap};
use netfwd_common::abi::{
    Action, EndpointEntry, EndpointKey, MAX_ENDPOINTS, MAX_QUEUES, MAX_TUNNELS, NetworkKey, Policy, TunnelEntry,
    TunnelKey,
};
use netfwd_common::classify::Lookup;
use netfwd_common::reason::{DropReason, PassReason};
use zerocopy::transmute;

#[map]
static TUNNELS: HashMap<TunnelKey, TunnelEntry> = HashMap::with_max_entries(MAX_TUNNELS, 0);
#[map]
static ENDPOINTS: HashMap<EndpointKey, EndpointEntry> = HashMap::with_max_entries(MAX_ENDPOINTS, 0);
#[map]
static NETWORKS: HashMap<NetworkKey, u8> = HashMap::with_max_entries(MAX_TUNNELS, 0);
#[map]
pub static XSKS: XskMap = XskMap::with_max_entries(MAX_QUEUES, 0);
#[map]
static POLICY: Array<Policy> = Array::with_max_entries(1, 0);
#[map]
static GENERATION: Array<u32> = Array::with_max_entries(1, 0);
/// The newest matches of each CPU: an exact match costs as much as summing half a packet, and datagrams come in trains.
#[map]
static NEWEST: PerCpuArray<Newest> = PerCpuArray::with_max_entries(NEWEST_SLOTS, 0);
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DropReason::COUNT as u32, 0);
#[map]
pub static PASSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(PassReason::COUNT as u32, 0);
#[map]
pub static TOLERATED: PerCpuArray<u64> = PerCpuArray::with_max_entries(DropReason::COUNT as u32, 0);
#[map]
pub static ACTIONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Action::ALL.len() as u32, 0);

/// A power of two: remote and VNI choose the slot.
const NEWEST_SLOTS: u32 = 64;

/// A remembered match, good while the generation lasts.
struct Newest {
    key: [u32; 10],
    generation: u32,
    entry: TunnelEntry,
}

/// The forwarding state behind the maps.
pub struct Maps;

impl Lookup for Maps {
    #[inline(always)]
    fn tunnel(&self, key: &TunnelKey) -> Option<TunnelEntry> {
        // Read before the map is asked, while user space changes it after the map: no entry is remembered as newer than it is.
        // 0 is the generation of empty slots.
        let generation = GENERATION.get(0).copied().unwrap_or_default();
        let words: [u32; 10] = transmute!(*key);
        let Some(slot) = NEWEST.get_ptr_mut((u32::from_be(words[7]) ^ key.vni) % NEWEST_SLOTS) else {
            return find(key);
        };
        // SAFETY: the slot is this CPU's, and XDP programs are not preempted by each other on one CPU.
        let slot = unsafe { &mut *slot };
        // Word by word, since comparing arrays calls a function that goes byte by byte.
        let differs = |i: usize| slot.key[i] ^ words[i];
        let difference = (0..10).fold(slot.generation ^ generation, |all, i| all | differs(i));
        if difference == 0 && generation != 0 {
            return Some(slot.entry);
        }
        let entry = find(key)?;
        *slot = Newest { key: words, generation, entry };
        Some(entry)
    }

    #[inline(always)]
    fn endpoint(&self, key: &EndpointKey) -> Option<EndpointEntry> {
        // SAFETY: as in `find`.
        unsafe { ENDPOINTS.get(key) }.copied()
    }

    #[inline(always)]
    fn network(&self, key: &NetworkKey) -> bool {
        // SAFETY: as in `find`.
        unsafe { NETWORKS.get(key) }.is_some()
    }
}

/// An exact match, asked of the map.
#[inline(always)]
fn find(key: &TunnelKey) -> Option<TunnelEntry> {
    // SAFETY: entries are replaced whole by user space; a torn read of one is at worst one misrouted packet that user space rechecks.
    unsafe { TUNNELS.get(key) }.copied()
}

/// The interface's switches; an array's only element is always there.
#[inline(always)]
pub fn policy() -> Policy {
    POLICY.get(0).copied().unwrap_or_default()
}

/// Adds one to this CPU's slot.
#[inline(always)]
pub fn count(counters: &PerCpuArray<u64>, index: usize) {
    if let Some(slot) = counters.get_ptr_mut(index as u32) {
        // SAFETY: the slot is this CPU's, and XDP programs are not preempted by each other on one CPU.
        unsafe { *slot += 1 }
    }
}
