//! What the XDP program costs per packet, by `BPF_PROG_TEST_RUN` with a repeat count, beside an empty program and a
//! bare `bpf_csum_diff` over the same packet; and what the program costs that chooses a device's queue.
//!
//! The subjects take turns within each round, so a change of the machine's speed hits all of them; the figure is the median
//! over the rounds. Repeated runs find the metadata area already grown, so the one helper call that grows it is not
//! in the figure.

#[path = "../tests/support/packets.rs"]
mod packets;

use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::Context as _;
use aya::Ebpf;
use aya::programs::{SocketFilter, TestRun as _, TestRunOptions, Xdp};
use netfwd::datapath::table::{ForwardingTable, Tunnel};
use netfwd::ebpf::STEERING;
use netfwd::io::xdp::XdpProgram;
use netfwd_common::abi::{Policy, TunnelKind};
use packets::{Field, Inner, Outer};

static COMPANION: &[u8] = aya::include_bytes_aligned!(env!("NETFWD_EBPF_BENCH_PATH"));

const ROUNDS: usize = 25;
const REPEAT: u32 = 20_000;

struct Case<'a> {
    name: &'static str,
    subject: &'static str,
    program: Program<'a>,
    frame: Vec<u8>,
    samples: Vec<u64>,
}

/// Of either type.
enum Program<'a> {
    Xdp(&'a Xdp),
    Filter(&'a SocketFilter),
}

impl Case<'_> {
    fn nanoseconds(&self) -> anyhow::Result<u64> {
        let options = TestRunOptions { data_in: Some(&self.frame), repeat: REPEAT, ..TestRunOptions::new() };
        let result = match self.program {
            Program::Xdp(program) => program.test_run(options)?,
            Program::Filter(program) => program.test_run(options)?,
        };
        Ok(result.duration.as_nanos() as u64)
    }
}

fn main() -> anyhow::Result<()> {
    // SAFETY: a plain system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        anyhow::bail!("running an eBPF program needs root");
    }
    let mut xdp = XdpProgram::load(&table()?, Policy::default())?;
    let socket = xdp_socket()?;
    xdp.register_socket(0, &socket)?;
    let mut companion = Ebpf::load(COMPANION).context("the benchmark's companion object")?;
    for name in ["empty", "csum_diff", "sum"] {
        let program: &mut Xdp = companion.program_mut(name).context("no such program")?.try_into()?;
        program.load()?;
    }
    let companion =
        |name| -> anyhow::Result<&Xdp> { Ok(companion.program(name).context("no such program")?.try_into()?) };
    let (ours, empty, csum_diff, sum) =
        (xdp.program()?, companion("empty")?, companion("csum_diff")?, companion("sum")?);

    let mut steering = Ebpf::load(STEERING).context("the object for steering")?;
    for (_, program) in steering.programs_mut() {
        <&mut SocketFilter>::try_from(program)?.load()?;
    }
    let steering = |name: &str| -> anyhow::Result<Program<'_>> {
        Ok(Program::Filter(steering.program(name).context("no such program")?.try_into()?))
    };

    // 1450 bytes in all: the figure that is promised.
    let tcp = || Outer::vxlan4(7).frame(&Inner::tcp4(1450 - 50 - 14 - 40).ethernet(0));
    let zero = || Outer::vxlan4(7).checksum(Field::Zero).frame(&Inner::tcp4(1450 - 50 - 14 - 40).ethernet(0));
    // 1408 bytes of message, so that the frame has 1450 as well.
    let data = Outer::wireguard4(51820).datagram(&packets::wireguard(4, 1450 - 42));
    let case = |name, subject, program, frame| Case {
        name,
        subject,
        program: Program::Xdp(program),
        frame,
        samples: Vec::new(),
    };
    // A test run takes an Ethernet header away from such a program's packet.
    let queue = |name, program: &str, packet: &[u8]| -> anyhow::Result<Case<'_>> {
        let frame = [&[0; 12][..], &[0x88, 0xb5], packet].concat();
        Ok(Case { name, subject: "steering", program: steering(program)?, frame, samples: Vec::new() })
    };
    let mut cases = vec![
        case("1450 B vxlan tcp", "empty", empty, tcp()),
        case("1450 B vxlan tcp", "netfwd", ours, tcp()),
        case("1450 B vxlan tcp, outer zero", "netfwd", ours, zero()),
        case("1450 B vxlan tcp", "payload loop", sum, tcp()),
        case("1450 B vxlan tcp", "bpf_csum_diff", csum_diff, tcp()),
        case("64 B inner vxlan udp", "netfwd", ours, Outer::vxlan4(7).frame(&Inner::udp4(64 - 42).ethernet(0))),
        case("1450 B vxlan udp in ipv6 in ipv6", "netfwd", ours, {
            Outer::vxlan6(7).frame(&Inner::udp6(1450 - 70 - 14 - 48).ethernet(0))
        }),
        case("1450 B gpe tcp", "netfwd", ours, Outer::gpe4(9, 1).frame(&Inner::tcp4(1450 - 50 - 40).bytes())),
        case("1450 B wireguard data", "netfwd", ours, data),
        case("wireguard initiation", "netfwd", ours, Outer::wireguard4(51820).datagram(&packets::wireguard(1, 148))),
        case("not ours: udp", "netfwd", ours, packets::ethernet([10, 0, 0, 1].into(), 0, &Inner::udp4(100).bytes())),
        case("unknown vni", "netfwd", ours, Outer::vxlan4(99).frame(&Inner::udp4(22).ethernet(0))),
        case("bad inner header", "netfwd", ours, Outer::vxlan4(7).frame(&[0; 13])),
        case("not ours: tcp", "netfwd", ours, packets::ethernet([10, 0, 0, 1].into(), 0, &Inner::tcp4(100).bytes())),
        queue("queue of a tun: tcp over ipv4", "tun", &Inner::tcp4(1400).bytes())?,
        queue("queue of a tun: tcp over ipv6", "tun", &Inner::tcp6(1400).bytes())?,
        queue("queue of a tap: tcp over ipv4", "tap", &Inner::tcp4(1400).ethernet(0))?,
        queue("queue of a tap: tcp over ipv6", "tap", &Inner::tcp6(1400).ethernet(0))?,
    ];
    for _ in 0..ROUNDS {
        for case in &mut cases {
            case.samples.push(case.nanoseconds()?);
        }
    }
    eprintln!("{:<36} {:<14} {:>9} {:>9}", "case", "subject", "ns/packet", "least");
    for case in &mut cases {
        case.samples.sort_unstable();
        let median = case.samples[ROUNDS / 2];
        eprintln!("{:<36} {:<14} {median:>9} {:>9}", case.name, case.subject, case.samples[0]);
        let line = serde_json::json!({
            "bench": "xdp", "case": case.name, "subject": case.subject, "value": median, "unit": "ns/packet",
        });
        println!("{line}");
    }
    Ok(())
}

fn table() -> anyhow::Result<ForwardingTable> {
    let tunnel = |kind, vni, port, [local, remote]: [&str; 2]| -> anyhow::Result<Tunnel> {
        Ok(Tunnel {
            name: format!("bench{vni}"),
            kind,
            vni,
            local: local.parse()?,
            port,
            remotes: vec![remote.parse()?],
            learning: false,
            static_macs: Vec::new(),
            routes: Vec::new(),
            mtu: 1450,
            udp_checksum: true,
            udp6_zero_checksum_rx: false,
            udp6_zero_checksum_tx: false,
            dscp: 0,
        })
    };
    let wireguard =
        Tunnel { remotes: Vec::new(), ..tunnel(TunnelKind::WireGuard, 0, 51820, ["10.9.0.2", "10.9.0.1"])? };
    Ok(ForwardingTable::new(vec![
        tunnel(TunnelKind::Vxlan, 7, 4789, ["10.9.0.2", "10.9.0.1"])?,
        tunnel(TunnelKind::Vxlan, 7, 4789, ["fd09::2", "fd09::1"])?,
        tunnel(TunnelKind::VxlanGpe, 9, 4790, ["10.9.0.2", "10.9.0.1"])?,
        wireguard,
    ]))
}

/// An AF_XDP socket for the map; a test run does not deliver to it.
fn xdp_socket() -> anyhow::Result<OwnedFd> {
    // SAFETY: a plain system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    anyhow::ensure!(fd >= 0, "AF_XDP socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just made and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
