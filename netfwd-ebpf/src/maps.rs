//! The maps, named as `netfwd_common::abi` says, and what the classifier asks of them.
//!
//! A packet asks two arrays of one element, once each, for everything but a match that is not remembered.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, XskMap};
use netfwd_common::abi::{
    Action, Control, CpuState, EndpointEntry, EndpointKey, MAX_ENDPOINTS, MAX_QUEUES, MAX_TUNNELS, NEWEST_SLOTS,
    NetworkKey, Newest, TunnelEntry, TunnelKey,
};
use netfwd_common::classify::Lookup;
use netfwd_common::reason::{DropReason, PassReason};
use zerocopy::transmute;

use crate::cursor::barrier32;

#[map]
static TUNNELS: HashMap<TunnelKey, TunnelEntry> = HashMap::with_max_entries(MAX_TUNNELS, 0);
#[map]
static ENDPOINTS: HashMap<EndpointKey, EndpointEntry> = HashMap::with_max_entries(MAX_ENDPOINTS, 0);
#[map]
static NETWORKS: HashMap<NetworkKey, u8> = HashMap::with_max_entries(MAX_TUNNELS, 0);
#[map]
pub static XSKS: XskMap = XskMap::with_max_entries(MAX_QUEUES, 0);
#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, 0);
#[map]
static CPU_STATE: PerCpuArray<CpuState> = PerCpuArray::with_max_entries(1, 0);

/// What user space has to say.
#[inline(always)]
pub fn control() -> Option<Control> {
    CONTROL.get(0).copied()
}

/// The maps as one packet sees them.
#[derive(Clone, Copy)]
pub struct Maps {
    state: *mut CpuState,
    /// Read before the map of tunnels is asked, while user space changes it after that map: no match is remembered as newer
    /// than it is.
    generation: u32,
}

impl Maps {
    /// This CPU's view.
    #[inline(always)]
    pub fn new(control: &Control) -> Option<Self> {
        Some(Self { state: CPU_STATE.get_ptr_mut(0)?, generation: control.generation })
    }

    /// This CPU's state, for one access.
    #[inline(always)]
    fn state<'a>(self) -> &'a mut CpuState {
        // SAFETY: the element is this CPU's, and XDP programs are not preempted by each other on one CPU.
        unsafe { &mut *self.state }
    }

    #[inline(always)]
    pub fn count_action(&self, action: Action) {
        self.state().counters.actions[action as usize] += 1;
    }

    #[inline(always)]
    pub fn count_pass(&self, reason: PassReason) {
        add_one(&mut self.state().counters.passes, reason.index());
    }

    #[inline(always)]
    pub fn count_drop(&self, reason: DropReason) {
        add_one(&mut self.state().counters.drops, reason.index());
    }

    #[inline(always)]
    pub fn count_tolerated(&self, reason: DropReason) {
        add_one(&mut self.state().counters.tolerated, reason.index());
    }
}

/// The comparison is for the verifier: where it comes to the counting, it has forgotten which reason it is.
#[inline(always)]
fn add_one(counters: &mut [u64], index: usize) {
    if let Some(counter) = counters.get_mut(index) {
        *counter += 1;
    }
}

impl Lookup for Maps {
    #[inline(always)]
    fn tunnel(&self, key: TunnelKey) -> Option<TunnelEntry> {
        let words: [u32; 10] = transmute!(key);
        let slot = (u32::from_be(words[7]) ^ key.vni) as usize % NEWEST_SLOTS;
        let newest = &mut self.state().newest[slot];
        // Word by word, since comparing arrays calls a function that goes byte by byte.
        let differs = |i: usize| newest.key[i] ^ words[i];
        let difference = (0..10).fold(newest.generation ^ self.generation, |all, i| all | differs(i));
        if difference == 0 {
            return Some(newest.entry);
        }
        let entry = find(words)?;
        *newest = Newest { key: words, generation: self.generation, entry, reserved: 0 };
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
fn find(words: [u32; 10]) -> Option<TunnelEntry> {
    // Through the barrier, or the key would be written to the stack for each packet, and not only for those that get here.
    let key: TunnelKey = transmute!(words.map(barrier32));
    // SAFETY: entries are replaced whole by user space; a torn read of one is at worst one misrouted packet that user space rechecks.
    unsafe { TUNNELS.get(key) }.copied()
}
