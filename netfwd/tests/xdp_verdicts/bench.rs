//! The loaded program with a socket, the table it works on, and what one test run gives.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use aya::programs::{TestRun as _, TestRunOptions};
use netfwd::datapath::packet::RemoteIndex;
use netfwd::datapath::table::{ForwardingTable, Tunnel};
use netfwd::io::xdp::{XdpCounters, XdpProgram};
use netfwd_common::abi::{Action, METADATA_MAGIC, METADATA_VERSION, Metadata, Policy, TunnelKind, Verify};
use netfwd_common::classify::{Delivery, Verdict, classify};
use zerocopy::FromBytes as _;

const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_REDIRECT: u32 = 4;

/// Both families, every kind, and a second tunnel with the same inner addresses. The first WireGuard tunnel listens everywhere.
pub fn table() -> ForwardingTable {
    let tunnel = |name: &str, kind, vni, local: &str, port, remote: &str, zero| Tunnel {
        name: name.to_owned(),
        kind,
        vni,
        local: local.parse().unwrap(),
        port,
        remotes: vec!["192.0.2.1".parse().unwrap(), remote.parse().unwrap()],
        learning: true,
        static_macs: Vec::new(),
        routes: vec![("0.0.0.0/0".parse().unwrap(), RemoteIndex(1))],
        mtu: 1450,
        udp_checksum: false,
        udp6_zero_checksum_rx: zero,
        udp6_zero_checksum_tx: false,
        dscp: 0,
    };
    let wireguard = |name: &str, local: &str, port, zero| Tunnel {
        remotes: Vec::new(),
        ..tunnel(name, TunnelKind::WireGuard, 0, local, port, "192.0.2.1", zero)
    };
    let tunnels = vec![
        tunnel("vx7", TunnelKind::Vxlan, 7, "10.9.0.2", 4789, "10.9.0.1", false),
        tunnel("vx8", TunnelKind::Vxlan, 8, "10.9.0.2", 4789, "10.9.0.3", false),
        tunnel("gpe9", TunnelKind::VxlanGpe, 9, "10.9.0.2", 4790, "10.9.0.1", false),
        tunnel("vx7v6", TunnelKind::Vxlan, 7, "fd09::2", 4789, "fd09::1", false),
        tunnel("gpe9v6", TunnelKind::VxlanGpe, 9, "fd09::2", 4790, "fd09::1", true),
        wireguard("wg0", "::", 51820, false),
        wireguard("wg1", "fd09::2", 51821, true),
    ];
    ForwardingTable::at(tunnels, &["10.9.0.2", "fd09::2"].map(|address| address.parse().unwrap()))
}

/// The program with an AF_XDP socket on the only queue of a test run.
pub struct Bench {
    pub xdp: XdpProgram,
    pub table: ForwardingTable,
    policy: Policy,
    socket: OwnedFd,
}

/// What one run gave.
#[derive(Debug)]
pub struct Run {
    pub action: u32,
    pub metadata: Option<Metadata>,
    pub counted: XdpCounters,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        let table = table();
        let xdp = XdpProgram::load(&table, policy).unwrap_or_else(|error| panic!("{error}"));
        // SAFETY: a plain system call without pointers.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "AF_XDP socket: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor was just made and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut bench = Self { xdp, table, policy, socket };
        bench.xdp.register_socket(0, &bench.socket).unwrap();
        bench
    }

    /// What a new one is like, without troubling the verifier.
    fn renewed(mut self, policy: Policy) -> Self {
        self.xdp.update_table(&self.table).unwrap();
        self.xdp.register_socket(0, &self.socket).unwrap();
        self.set_policy(policy);
        self
    }

    pub fn set_policy(&mut self, policy: Policy) {
        self.xdp.set_policy(policy).unwrap();
        self.policy = policy;
    }

    pub fn run(&self, frame: &[u8]) -> Run {
        let before = self.xdp.counters().unwrap();
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = self.xdp.program().unwrap().test_run(options).unwrap_or_else(|error| panic!("{error:?}"));
        let size = result.data_size_out as usize;
        let metadata = size.checked_sub(frame.len()).filter(|&len| len > 0).map(|len| {
            assert_eq!(len, size_of::<Metadata>());
            Metadata::read_from_bytes(&out[..len]).unwrap()
        });
        assert_eq!(&out[size - frame.len()..size], frame, "the packet itself must not be changed");
        Run { action: result.return_value, metadata, counted: difference(&self.xdp.counters().unwrap(), &before) }
    }

    /// Runs both parsers, checks that they agree in every respect, and gives back the verdict.
    pub fn verdict(&self, frame: &[u8]) -> Verdict {
        let verdict = classify(frame, &self.table, &self.policy);
        let run = self.run(frame);
        match verdict {
            Verdict::Pass(reason) => {
                assert_eq!(run.action, XDP_PASS, "{verdict:?} {run:?}");
                assert_eq!(run.counted.passed(reason), 1, "{verdict:?} {run:?}");
                assert_eq!(total(&run.counted), [1, 0, 0, 1], "{verdict:?} {run:?}");
            }
            Verdict::Drop(reason) => {
                assert_eq!(run.action, XDP_DROP, "{verdict:?} {run:?}");
                assert_eq!(run.counted.dropped(reason), 1, "{verdict:?} {run:?}");
                assert_eq!(total(&run.counted), [0, 1, 0, 1], "{verdict:?} {run:?}");
            }
            Verdict::Deliver(delivery) => {
                assert_eq!(run.action, XDP_REDIRECT, "{verdict:?} {run:?}");
                assert_eq!(run.metadata, Some(record(&delivery)));
                assert_eq!(run.counted.action(Action::Redirect), 1);
                let tolerated = u64::from(delivery.tolerated.is_some());
                assert_eq!(total(&run.counted), [0, 0, tolerated, 1], "{verdict:?} {run:?}");
            }
        }
        verdict
    }

    pub fn delivery(&self, frame: &[u8]) -> Delivery {
        match self.verdict(frame) {
            Verdict::Deliver(delivery) => delivery,
            other => panic!("not delivered: {other:?}"),
        }
    }
}

pub fn total(counters: &XdpCounters) -> [u64; 4] {
    [
        counters.passes.iter().sum(),
        counters.drops.iter().sum(),
        counters.tolerated.iter().sum(),
        counters.actions.iter().sum(),
    ]
}

fn record(delivery: &Delivery) -> Metadata {
    Metadata {
        magic: METADATA_MAGIC,
        version: METADATA_VERSION,
        checksums: delivery.checksums as u8,
        tunnel: delivery.entry.tunnel,
        remote: delivery.entry.remote,
        inner_offset: delivery.inner_offset,
        inner_len: delivery.inner_len,
        ecn: delivery.ecn,
        message: delivery.message.map_or(0, |message| message as u8),
        flow_hash: delivery.flow_hash,
    }
}

fn difference(after: &XdpCounters, before: &XdpCounters) -> XdpCounters {
    fn minus<const N: usize>(after: &[u64; N], before: &[u64; N]) -> [u64; N] {
        std::array::from_fn(|i| after[i] - before[i])
    }
    XdpCounters {
        drops: minus(&after.drops, &before.drops),
        passes: minus(&after.passes, &before.passes),
        tolerated: minus(&after.tolerated, &before.tolerated),
        actions: minus(&after.actions, &before.actions),
    }
}

/// One test at a time; between tests, the program for the next. The verifier takes a third of a second for it, and seconds in an
/// emulated machine.
static LOADED: Mutex<Option<Bench>> = Mutex::new(None);

/// Runs `test` on a loaded program in its first state, unless there is no root and that is said to be all right.
///
/// Policy, table and socket are put back; a test that takes something else from the program wants one of its own.
pub fn with_program(policy: Policy, test: impl FnOnce(&mut Bench)) {
    if !root_or_skip() {
        return;
    }
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    // Taken out: a test that fails leaves nothing to the others.
    let mut bench = loaded.take().map_or_else(|| Bench::new(policy), |bench| bench.renewed(policy));
    test(&mut bench);
    *loaded = Some(bench);
}

/// The same on a program that is gone after the test.
pub fn with_program_of_its_own(policy: Policy, test: impl FnOnce(&mut Bench)) {
    if !root_or_skip() {
        return;
    }
    let _turn = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    test(&mut Bench::new(policy));
}

fn root_or_skip() -> bool {
    // SAFETY: a plain system call without arguments.
    let is_root = unsafe { libc::geteuid() } == 0;
    if !is_root {
        assert!(
            std::env::var_os("NETFWD_SKIP_ROOT_TESTS").is_some_and(|value| value == "1"),
            "this test loads an eBPF program and needs root; NETFWD_SKIP_ROOT_TESTS=1 skips it"
        );
        eprintln!("SKIPPED for want of root: XDP verdicts");
    }
    is_root
}

pub const COUNT: Policy = Policy { verify: Verify::Count as u8, ..DROP };
pub const OFF: Policy = Policy { verify: Verify::Off as u8, ..DROP };
pub const DROP: Policy =
    Policy { verify: Verify::Drop as u8, accept_partial: 0, debug: 0, frame_limit: 0, station: [0; 2] };
pub const PARTIAL: Policy = Policy { accept_partial: 1, ..DROP };
