//! The maps, named as `netfwd_common::abi` says, and what the classifier asks of them.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, XskMap};
use netfwd_common::abi::{
    Action, EndpointEntry, EndpointKey, MAX_ENDPOINTS, MAX_QUEUES, MAX_TUNNELS, NetworkKey, Policy, TunnelEntry,
    TunnelKey,
};
use netfwd_common::classify::Lookup;
use netfwd_common::reason::{DropReason, PassReason};

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
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DropReason::COUNT as u32, 0);
#[map]
pub static PASSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(PassReason::COUNT as u32, 0);
#[map]
pub static TOLERATED: PerCpuArray<u64> = PerCpuArray::with_max_entries(DropReason::COUNT as u32, 0);
#[map]
pub static ACTIONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Action::ALL.len() as u32, 0);

/// The forwarding state behind the maps.
pub struct Maps;

impl Lookup for Maps {
    #[inline(always)]
    fn tunnel(&self, key: &TunnelKey) -> Option<TunnelEntry> {
        // SAFETY: entries are replaced whole by user space; a torn read of one is at worst one misrouted packet that user space rechecks.
        unsafe { TUNNELS.get(key) }.copied()
    }

    #[inline(always)]
    fn endpoint(&self, key: &EndpointKey) -> Option<EndpointEntry> {
        // SAFETY: as above.
        unsafe { ENDPOINTS.get(key) }.copied()
    }

    #[inline(always)]
    fn network(&self, key: &NetworkKey) -> bool {
        // SAFETY: as above.
        unsafe { NETWORKS.get(key) }.is_some()
    }
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
