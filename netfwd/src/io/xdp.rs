//! The user-space half of the XDP program: loads it, fills its maps, attaches it, reads its counters.
//!
//! One instance per underlay interface, each with maps of its own. Invariants: the program is attached through a
//! bpf_link, so it is gone when the process is, however that dies; generic mode is used only when it was asked for, since it sees
//! merged GRO buffers; a map update replaces entries one by one and never empties the map in between.
//!
//! Deliberately absent: pinning, and sharing an interface with another program (a dispatcher such as libxdp's can be
//! put in front, the kernel then refuses ours with EBUSY and the daemon runs on sockets alone).

use std::collections::HashSet;
use std::error::Error;
use std::os::fd::AsFd;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, XskMap};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod, VerifierLogLevel};
use netfwd_common::abi::{self, Action, Control, Counters, CpuState, Policy};
use netfwd_common::reason::{DropReason, PassReason};
use zerocopy::transmute;

use crate::datapath::table::ForwardingTable;
use crate::ebpf::OBJECT;

use super::xdp_log::XdpLog;

/// The program's name in the object.
const PROGRAM: &str = "netfwd";

type Bytes<const KEY: usize, const VALUE: usize> = HashMap<MapData, [u8; KEY], [u8; VALUE]>;

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The object does not parse, or a map cannot be made.
    #[error("cannot load the eBPF object: {}", chain(.0))]
    Object(EbpfError),
    /// The verifier refused the program, or privileges are missing.
    #[error("the kernel refused the XDP program: {}", chain(.0))]
    Program(ProgramError),
    /// A map operation failed.
    #[error("eBPF map: {}", chain(.0))]
    Map(#[from] MapError),
    /// The log ring is not there, or was taken before.
    #[error("eBPF log: {}", chain(.0))]
    Log(#[from] aya_log::Error),
    /// The object lacks a map or the program.
    #[error("the eBPF object has no `{0}`: it was built from other sources")]
    Missing(&'static str),
    /// The interface does not take the program.
    #[error("cannot attach XDP to {interface} in {mode} mode: {reason}")]
    Attach {
        /// The interface.
        interface: String,
        /// The mode that was tried.
        mode: AttachedMode,
        /// The kernel's own text, and what helps.
        reason: String,
    },
}

// Neither is told as a source: whoever prints causes would print the verifier's pages, and all causes are in the text.
impl From<EbpfError> for XdpError {
    fn from(error: EbpfError) -> Self {
        Self::Object(error)
    }
}

impl From<ProgramError> for XdpError {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

/// How to attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// The best that is safe: native. Where the driver has none, the caller goes on without XDP.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// Behind the driver, on socket buffers: slow, and GRO must be off on the interface.
    Generic,
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// On socket buffers.
    Generic,
}

impl std::fmt::Display for AttachedMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// What the program has counted, summed over CPUs. Each array is indexed by its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpCounters {
    /// Dropped, by [`DropReason`].
    pub drops: [u64; DropReason::COUNT],
    /// Left to the kernel, by [`PassReason`].
    pub passes: [u64; PassReason::COUNT],
    /// Delivered although bad (`verify = "count"`), by [`DropReason`].
    pub tolerated: [u64; DropReason::COUNT],
    /// Every packet, by [`Action`].
    pub actions: [u64; Action::ALL.len()],
}

impl Default for XdpCounters {
    fn default() -> Self {
        Self {
            drops: [0; DropReason::COUNT],
            passes: [0; PassReason::COUNT],
            tolerated: [0; DropReason::COUNT],
            actions: [0; Action::ALL.len()],
        }
    }
}

impl XdpCounters {
    fn add(&mut self, counters: &Counters) {
        let Counters { actions, drops, passes, tolerated } = counters;
        add(&mut self.actions, actions);
        add(&mut self.drops, drops);
        add(&mut self.passes, passes);
        add(&mut self.tolerated, tolerated);
    }

    /// Packets dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason.index()]
    }

    /// Packets passed for `reason`.
    pub fn passed(&self, reason: PassReason) -> u64 {
        self.passes[reason.index()]
    }

    /// Packets that ended in `action`.
    pub fn action(&self, action: Action) -> u64 {
        self.actions[action as usize]
    }
}

/// The loaded program with its maps. Dropping it detaches.
pub struct XdpProgram {
    // Fields drop in order: the interface is left before the maps go.
    link: Option<XdpLink>,
    tunnels: Bytes<40, 8>,
    endpoints: Bytes<20, 4>,
    networks: Bytes<24, 1>,
    sockets: XskMap<MapData>,
    /// A [`Control`]; [`Self::control`] is what it holds.
    control_map: Array<MapData, [u8; size_of::<Control>()]>,
    /// A [`CpuState`] for each CPU.
    states: PerCpuArray<MapData, [u8; size_of::<CpuState>()]>,
    control: Control,
    ebpf: Ebpf,
}

impl XdpProgram {
    /// Loads the program and fills its maps.
    pub fn load(table: &ForwardingTable, policy: Policy) -> Result<Self, XdpError> {
        // Errors and statistics, not each instruction: a signal during verification ends it with EAGAIN, upon which aya
        // asks for the log and tries again with ever larger buffers; with all instructions in it that takes seconds.
        let mut ebpf = EbpfLoader::new().verifier_log_level(VerifierLogLevel::STATS).load(OBJECT)?;
        let mut program = Self {
            link: None,
            tunnels: take(&mut ebpf, abi::TUNNELS)?,
            endpoints: take(&mut ebpf, abi::ENDPOINTS)?,
            networks: take(&mut ebpf, abi::NETWORKS)?,
            sockets: take(&mut ebpf, abi::XSKS)?,
            control_map: take(&mut ebpf, abi::CONTROL)?,
            states: take(&mut ebpf, abi::CPU_STATE)?,
            control: Control::default(),
            ebpf,
        };
        program.set_policy(policy)?;
        program.update_table(table)?;
        program.program_mut()?.load().inspect_err(|error| tracing::debug!("{error}"))?;
        Ok(program)
    }

    /// Changes the switches, from the next packet on.
    pub fn set_policy(&mut self, policy: Policy) -> Result<(), XdpError> {
        self.set_control(Control { policy, ..self.control })
    }

    /// The switches as they are.
    pub fn policy(&self) -> Policy {
        self.control.policy
    }

    fn set_control(&mut self, control: Control) -> Result<(), XdpError> {
        let value: [u8; size_of::<Control>()] = transmute!(control);
        self.control_map.set(0, value, 0)?;
        self.control = control;
        Ok(())
    }

    /// Makes the maps agree with `table`. New entries go in before old ones go out.
    pub fn update_table(&mut self, table: &ForwardingTable) -> Result<(), XdpError> {
        let replaced = self.replace_entries(table);
        // Last, and also when only some entries could be replaced: whatever the program remembers is void now.
        let generation = self.control.generation.wrapping_add(1).max(1);
        self.set_control(Control { generation, ..self.control })?;
        replaced
    }

    fn replace_entries(&mut self, table: &ForwardingTable) -> Result<(), XdpError> {
        let tunnels = table.entries().map(|(key, entry)| (transmute!(*key), transmute!(*entry)));
        replace(&mut self.tunnels, tunnels)?;
        replace(&mut self.networks, table.networks().map(|key| (transmute!(*key), [1])))?;
        let endpoints = table.endpoints().map(|(key, entry)| (transmute!(*key), transmute!(*entry)));
        replace(&mut self.endpoints, endpoints)
    }

    /// Attaches to an interface by name. An earlier attachment is given up first.
    pub fn attach(&mut self, interface: &str, mode: AttachMode) -> Result<AttachedMode, XdpError> {
        let (attached, flag) = match mode {
            AttachMode::Auto | AttachMode::Native => (AttachedMode::Native, XdpMode::Driver),
            AttachMode::Generic => (AttachedMode::Generic, XdpMode::Skb),
        };
        self.detach();
        let program = self.program_mut()?;
        let link = program.attach(interface, flag).and_then(|id| program.take_link(id));
        let link = link.map_err(|error| XdpError::Attach {
            interface: interface.to_owned(),
            mode: attached,
            reason: attach_reason(&error),
        })?;
        self.link = Some(link);
        Ok(attached)
    }

    /// Detaches, if attached.
    pub fn detach(&mut self) {
        self.link = None;
    }

    /// Steers `queue` into an AF_XDP socket that is bound to this interface and queue.
    pub fn register_socket(&mut self, queue: u32, socket: impl AsFd) -> Result<(), XdpError> {
        Ok(self.sockets.set(queue, socket.as_fd(), 0)?)
    }

    /// Leaves `queue` to the kernel again. The kernel does the same by itself when a socket closes.
    pub fn unregister_socket(&mut self, queue: u32) -> Result<(), XdpError> {
        Ok(self.sockets.unset(queue)?)
    }

    /// What has been counted since loading.
    pub fn counters(&self) -> Result<XdpCounters, XdpError> {
        let mut sums = XdpCounters::default();
        for state in self.states.get(&0, 0)?.iter() {
            let state: CpuState = transmute!(*state);
            sums.add(&state.counters);
        }
        Ok(sums)
    }

    /// The reading end of the program's debug lines, once.
    pub fn take_log(&mut self) -> Result<XdpLog, XdpError> {
        Ok(XdpLog::new(&mut self.ebpf)?)
    }

    /// The kernel's program, for test runs.
    pub fn program(&self) -> Result<&Xdp, XdpError> {
        let program = self.ebpf.program(PROGRAM).ok_or(XdpError::Missing(PROGRAM))?;
        Ok(program.try_into()?)
    }

    fn program_mut(&mut self) -> Result<&mut Xdp, XdpError> {
        let program = self.ebpf.program_mut(PROGRAM).ok_or(XdpError::Missing(PROGRAM))?;
        Ok(program.try_into()?)
    }
}

/// Takes a map out of the object, as its type.
fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, XdpError> {
    Ok(ebpf.take_map(name).ok_or(XdpError::Missing(name))?.try_into()?)
}

/// Makes `map` hold exactly `entries`.
fn replace<const KEY: usize, const VALUE: usize>(
    map: &mut Bytes<KEY, VALUE>,
    entries: impl Iterator<Item = ([u8; KEY], [u8; VALUE])>,
) -> Result<(), XdpError>
where
    [u8; KEY]: Pod,
    [u8; VALUE]: Pod,
{
    let mut stale: HashSet<[u8; KEY]> = map.keys().collect::<Result<_, _>>()?;
    for (key, value) in entries {
        stale.remove(&key);
        map.insert(key, value, 0)?;
    }
    for key in stale {
        map.remove(&key)?;
    }
    Ok(())
}

/// Adds each count.
fn add(sums: &mut [u64], counts: &[u64]) {
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum += count;
    }
}

/// The kernel's words, with what an operator can do about the common cases.
fn attach_reason(error: &ProgramError) -> String {
    let text = chain(error);
    let hint = match os_error(error) {
        Some(libc::EBUSY) => " (another XDP program is attached: `ip link set dev … xdp off` removes it)",
        Some(libc::EOPNOTSUPP) => " (the driver has no native XDP; `xdp = \"generic\"` works everywhere, slowly)",
        Some(libc::EPERM) => " (CAP_NET_ADMIN and CAP_BPF are needed)",
        Some(libc::EINVAL | libc::ERANGE) => " (often the MTU, LRO, or the number of queues)",
        _ => "",
    };
    text + hint
}

/// The number of the system error at the end of an error's chain.
fn os_error(error: &(dyn Error + 'static)) -> Option<i32> {
    let own = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    own.or_else(|| os_error(error.source()?))
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent errors repeat their cause, and a refusal by the verifier tells it in the middle.
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    without_verifier_output(&text)
}

/// The verifier explains itself in thousands of lines of which the last says what was wrong, before its statistics.
fn without_verifier_output(text: &str) -> String {
    let Some((before, output)) = text.split_once("Verifier output:") else { return text.to_owned() };
    let is_statistics =
        |line: &str| ["verification time", "stack depth", "processed "].iter().any(|start| line.starts_with(start));
    let lines = output.lines().map(str::trim);
    match lines.rev().find(|line| !line.is_empty() && !is_statistics(line)) {
        Some(verdict) => format!("{before}The verifier says: {verdict}"),
        None => before.trim_end_matches([' ', '.']).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_the_verifier_is_one_line_with_its_verdict() {
        let refused = "BPF_PROG_LOAD returned Permission denied (os error 13). Verifier output: ";
        let output = "0: R1=ctx() R10=fp0\n; fn (main.rs:1)\n0: (bf) r6 = r1\nR0 pointer arithmetic prohibited\n\
                      verification time 12 usec\nstack depth 88+0\nprocessed 2 insns (limit 1000000) total_states 0\n";
        assert_eq!(
            without_verifier_output(&format!("{refused}{output}")),
            "BPF_PROG_LOAD returned Permission denied (os error 13). The verifier says: R0 pointer arithmetic prohibited"
        );
        assert_eq!(without_verifier_output(refused), "BPF_PROG_LOAD returned Permission denied (os error 13)");
        assert_eq!(without_verifier_output("something else"), "something else");
    }
}
