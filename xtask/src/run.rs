//! `cargo xtask run`: the gateway at work, for someone who sees it for the first time.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use xtask::interrupt;
use xtask::lab::{Lab, METRICS_ADDRESS, Options, Program, Tunnel};

use crate::measure::{Case, Counts, Direction, Gateway, Losses, Outcome, Protocol, Subject, measure};
use crate::{cargo, setup};

/// Offered load of the UDP part: what one core of a small machine forwards without loss.
const UDP_RATE: f64 = 1.0;

/// Builds the daemon and becomes it.
pub fn on_this_machine(config: &Path) -> Result<()> {
    setup::ensure()?;
    let config = config.canonicalize().with_context(|| format!("cannot read {}", config.display()))?;
    let binary = cargo::build_netfwd()?;
    let error = Command::new(&binary).arg("run").arg("--config").arg(config).exec();
    Err(error).with_context(|| format!("cannot run {}", binary.display()))
}

/// What the demonstration is about: the tunnel, and what stands beside netfwd.
#[derive(Clone, Copy)]
pub enum Show {
    /// The kernel's VXLAN device at the far end and beside netfwd.
    Vxlan,
    /// wireguard-go at the far end and beside netfwd.
    WireGuard,
}

impl Show {
    fn lab(self) -> Result<Lab> {
        match self {
            Self::Vxlan => Lab::new(),
            Self::WireGuard => Lab::with(Options::with_tunnels([Tunnel::wireguard(Program::WireguardGo)])),
        }
    }

    fn subjects(self) -> [Subject; 2] {
        match self {
            Self::Vxlan => [Subject::Netfwd, Subject::Kernel],
            Self::WireGuard => [Subject::Netfwd, Subject::WireguardGo],
        }
    }

    fn far_end(self) -> &'static str {
        match self {
            Self::Vxlan => "kernel VXLAN",
            Self::WireGuard => "wireguard-go",
        }
    }
}

/// Shows the gateway in a lab, and another one beside it.
pub fn in_a_lab(show: Show, seconds: f64) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the lab is made of network namespaces, which need root: sudo -E env PATH=$PATH cargo xtask run");
    }
    setup::ensure()?;
    if matches!(show, Show::WireGuard) {
        setup::ensure_peers()?;
    }
    let binary = cargo::build_netfwd()?;
    interrupt::install();
    let mut lab = show.lab()?;
    println!(
        "peer ({}) ══ gateway ── server: three network namespaces, MTU 1500, no offloads at the peer",
        show.far_end()
    );
    let mut columns = Vec::new();
    for subject in show.subjects() {
        lab.restart_far_ends()?;
        columns.push(perform(&lab, subject, &binary, seconds)?);
        if interrupt::requested() {
            println!("\nstopped; the namespaces are removed");
            return Ok(());
        }
    }
    summarize(&cases(seconds), show.subjects(), &columns);
    Ok(())
}

/// Two thirds of the time for TCP, one third for UDP.
fn cases(seconds: f64) -> [Case; 4] {
    let both = |protocol, share| {
        [Direction::Ingress, Direction::Egress].map(|direction| Case { protocol, direction, seconds: seconds * share })
    };
    let [tcp_in, tcp_out] = both(Protocol::Tcp { flows: 1 }, 0.3);
    let [udp_in, udp_out] = both(Protocol::Udp { rate: UDP_RATE }, 0.2);
    [tcp_in, tcp_out, udp_in, udp_out]
}

/// Every case through one subject, a line a second.
fn perform(lab: &Lab, subject: Subject, binary: &Path, seconds: f64) -> Result<Vec<Outcome>> {
    let gateway = subject.start(lab, binary)?;
    announce(lab, &gateway);
    let mut outcomes = Vec::new();
    for case in cases(seconds).into_iter().take_while(|_| !interrupt::requested()) {
        let (mut bytes_before, mut before) = (0, gateway.metrics()?);
        let outcome = measure(lab, &gateway, case, |bytes| {
            let now = gateway.metrics().unwrap_or_default();
            print_line(case, (bytes - bytes_before) as f64 * 8e-9, Counts::between(&before, &now));
            (bytes_before, before) = (bytes, now);
        })?;
        outcomes.push(outcome);
    }
    gateway.stop()?;
    Ok(outcomes)
}

fn announce(lab: &Lab, gateway: &Gateway<'_>) {
    let name = lab.gateway.name();
    match gateway {
        Gateway::Netfwd(netfwd) => {
            println!("\nnetfwd, process {}, in the namespace {name}:", netfwd.id());
            netfwd.log().lines().for_each(|line| println!("  {line}"));
            println!(
                "metrics: http://{METRICS_ADDRESS}/metrics (ip netns exec {name} curl -s http://{METRICS_ADDRESS}/metrics)"
            );
        }
        Gateway::Kernel(_) => println!("\nthe kernel's own VXLAN device in the namespace {name}:"),
        Gateway::WireGuard(device) => {
            let process = device.id().map(|id| format!(", process {id},")).unwrap_or_default();
            println!("\n{}{process} in the namespace {name}:", device.program().name());
        }
    }
    println!("{:>13} {:>13}  packets merged   packets cut  drops", "peer → server", "server → peer");
}

fn print_line(case: Case, gigabits: f64, counts: Counts) {
    let (inward, outward) = match case.direction {
        Direction::Ingress => (format!("{gigabits:.2} Gbit/s"), String::new()),
        Direction::Egress => (String::new(), format!("{gigabits:.2} Gbit/s")),
    };
    let per_frame = |ratio: f64| if ratio > 0.0 { format!("{ratio:.1} a frame") } else { "–".to_owned() };
    let protocol = if matches!(case.protocol, Protocol::Tcp { .. }) { "TCP" } else { "UDP" };
    let (merged, cut) = (per_frame(counts.merged), per_frame(counts.cut));
    println!("{inward:>13} {outward:>13}  {merged:>14} {cut:>13}  {:>5}  {protocol}", counts.drops);
}

fn summarize(cases: &[Case], subjects: [Subject; 2], columns: &[Vec<Outcome>]) {
    let [first, second] = subjects.map(Subject::name);
    println!("\n{:36} {first:>40} {second:>40}", "");
    for (row, case) in cases.iter().enumerate() {
        let cells: Vec<String> = columns.iter().filter_map(|column| column.get(row)).map(cell).collect();
        println!("{:36} {}", case.name(), cells.iter().map(|cell| format!("{cell:>40}")).collect::<Vec<_>>().join(" "));
    }
    for (subject, column) in subjects.iter().zip(columns) {
        for (case, outcome) in cases.iter().zip(column) {
            if let Some(Losses { total, before: Some(before) }) = outcome.losses.filter(|losses| losses.total > 0.0) {
                let [total, before] = [total, before].map(|share| share * 100.0);
                println!(
                    "{}, {}: of {total:.1} % lost {before:.1} never reached the gateway.",
                    case.name(),
                    subject.name()
                );
            }
        }
    }
    println!("CPU-seconds are the whole machine's, load tool and veth pairs included, for each GB of payload.");
    println!("AF_XDP on veth copies each packet where the kernel's own path does not: see cargo xtask bench.");
}

fn cell(outcome: &Outcome) -> String {
    let lost = outcome.losses.map(|losses| losses.total * 100.0).filter(|percent| *percent > 0.0);
    let lost = lost.map(|percent| format!(", {percent:.1} % lost")).unwrap_or_default();
    format!("{:.2} Gbit/s, {:.2} CPU-s/GB{lost}", outcome.gigabits, outcome.cpu_per_gigabyte)
}
