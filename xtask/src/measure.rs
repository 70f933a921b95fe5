//! One load through a lab's gateway, and what it cost.
//!
//! `run` shows it and `bench` records it, so both mean the same by a Gbit/s, a CPU-second and a drop.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use xtask::lab::{Config, Device, Family, KernelGateway, Lab, Metrics, Netfwd, Program, UNDERLAY};
use xtask::load::{Progress, tcp, udp};
use xtask::machine;

/// Payload of one datagram: fits the overlay's MTU over IPv4 and IPv6 underlays.
const DATAGRAM: usize = 1372;

/// What stands in the gateway.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Subject {
    /// netfwd as it ships.
    Netfwd,
    /// Without XDP: everything through the UDP sockets.
    NoXdp,
    /// Without coalescing.
    NoGro,
    /// The kernel's own tunnel device.
    Kernel,
    /// gotatun-cli, for WireGuard.
    Gotatun,
    /// boringtun-cli, for WireGuard.
    Boringtun,
    /// The wireguard-go of this Debian.
    WireguardGo,
    /// A newer wireguard-go, which coalesces.
    WireguardGoGso,
}

impl Subject {
    /// Those for VXLAN, the one to compare with first.
    pub const VXLAN: [Self; 4] = [Self::Netfwd, Self::NoXdp, Self::NoGro, Self::Kernel];
    /// Those for WireGuard, the one to compare with first.
    pub const WIREGUARD: [Self; 5] =
        [Self::Netfwd, Self::Gotatun, Self::Boringtun, Self::WireguardGo, Self::WireguardGoGso];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Netfwd => "netfwd",
            Self::NoXdp => "netfwd, xdp off",
            Self::NoGro => "netfwd, gro off",
            Self::Kernel => "kernel",
            Self::Gotatun | Self::Boringtun | Self::WireguardGo | Self::WireguardGoGso => {
                self.program().map_or("", Program::name)
            }
        }
    }

    /// What runs it, if that is a WireGuard program of others.
    pub fn program(self) -> Option<Program> {
        match self {
            Self::Gotatun => Some(Program::Gotatun),
            Self::Boringtun => Some(Program::Boringtun),
            Self::WireguardGo => Some(Program::WireguardGo),
            Self::WireguardGoGso => Some(Program::WireguardGoGso),
            Self::Netfwd | Self::NoXdp | Self::NoGro | Self::Kernel => None,
        }
    }

    /// Is it netfwd, in whichever form?
    pub fn is_netfwd(self) -> bool {
        matches!(self, Self::Netfwd | Self::NoXdp | Self::NoGro)
    }

    /// Puts it into the lab's gateway.
    pub fn start<'a>(self, lab: &'a Lab, binary: &Path) -> Result<Gateway<'a>> {
        let gateway = match (self, self.program()) {
            (_, Some(program)) => Gateway::WireGuard(lab.wireguard_gateway(program)?),
            (Self::Kernel, _) => Gateway::Kernel(lab.kernel_gateway()?),
            (Self::NoXdp, _) => Gateway::Netfwd(Netfwd::start(lab, binary, &Config::of(lab).xdp("off"))?),
            (Self::NoGro, _) => Gateway::Netfwd(Netfwd::start(lab, binary, &Config::of(lab).gro(false))?),
            _ => Gateway::Netfwd(Netfwd::start(lab, binary, &Config::of(lab))?),
        };
        lab.greet_peer()?;
        Ok(gateway)
    }
}

/// A subject at work.
pub enum Gateway<'a> {
    /// The daemon.
    Netfwd(Netfwd),
    /// The kernel's devices, held for what their drop does.
    Kernel(#[expect(dead_code, reason = "removes the devices when dropped")] KernelGateway<'a>),
    /// A WireGuard program of others.
    WireGuard(Device),
}

impl Gateway<'_> {
    /// A scrape; only netfwd has one to offer.
    pub fn metrics(&self) -> Result<Metrics> {
        match self {
            Self::Netfwd(netfwd) => netfwd.metrics(),
            Self::Kernel(_) | Self::WireGuard(_) => Ok(Metrics::default()),
        }
    }

    fn process(&self) -> Option<u32> {
        match self {
            Self::Netfwd(netfwd) => Some(netfwd.id()),
            Self::WireGuard(device) => device.id(),
            Self::Kernel(_) => None,
        }
    }

    /// Resident memory in bytes, of a process.
    pub fn resident_bytes(&self) -> Option<u64> {
        machine::resident_bytes(self.process()?).ok()
    }

    /// The CPU time that it has had, of a process.
    fn cpu_time(&self) -> Option<Duration> {
        machine::process_cpu_time(self.process()?).ok()
    }

    /// Ends it in the ordinary way.
    pub fn stop(self) -> Result<()> {
        // The others end when dropped.
        if let Self::Netfwd(mut netfwd) = self {
            let status = netfwd.stop()?;
            if !status.success() {
                return Err(anyhow!("netfwd ended with {status}:\n{}", netfwd.log()));
            }
        }
        Ok(())
    }
}

/// Which way the payload goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// Peer to server: decapsulated and coalesced.
    Ingress,
    /// Server to peer: segmented and encapsulated.
    Egress,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    /// Bulk TCP on that many connections.
    Tcp { flows: u32 },
    /// Datagrams of one size at that many Gbit/s.
    Udp { rate: f64 },
}

/// One load.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What is sent.
    pub protocol: Protocol,
    /// Which way.
    pub direction: Direction,
    /// For how long.
    pub seconds: f64,
}

impl Case {
    /// Its name in tables.
    pub fn name(&self) -> String {
        let way = if self.direction == Direction::Ingress { "peer → server" } else { "server → peer" };
        match self.protocol {
            Protocol::Tcp { flows: 1 } => format!("TCP {way}, 1 flow"),
            Protocol::Tcp { flows } => format!("TCP {way}, {flows} flows"),
            Protocol::Udp { rate } => format!("UDP {way}, {rate} Gbit/s offered"),
        }
    }
}

/// What came out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Gbit/s of payload received.
    pub gigabits: f64,
    /// CPU-seconds of the whole machine for each GB of payload.
    pub cpu_per_gigabyte: f64,
    /// CPU-seconds of the gateway's process for each GB of payload. What soft interrupts do for it is not in it.
    pub process_per_gigabyte: Option<f64>,
    /// What the gateway counted meanwhile.
    pub counts: Counts,
    /// What became of datagrams that never came; of TCP nothing is known here.
    pub losses: Option<Losses>,
}

/// Shares of the datagrams sent that were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// All of them.
    pub total: f64,
    /// Those that never reached the gateway: what the far end could not take. The peer's kernel sends datagrams one by one,
    /// so they can be counted there; on the way out superframes leave, and this is not known.
    pub before: Option<f64>,
}

impl Losses {
    fn of(report: &udp::Report, arrived: Option<u64>) -> Self {
        let share = |part: u64| part as f64 / report.sent.max(1) as f64;
        Self {
            total: share(report.lost()),
            before: arrived.map(|arrived| share(report.lost().min(report.sent.saturating_sub(arrived)))),
        }
    }
}

/// Growth of the daemon's counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Inner packets for each frame written to the device.
    pub merged: f64,
    /// Inner packets for each frame read from the device.
    pub cut: f64,
    /// Everything dropped, wherever.
    pub drops: f64,
}

impl Counts {
    /// What happened between two scrapes.
    pub fn between(before: &Metrics, after: &Metrics) -> Self {
        let growth = |name: &str| after.growth(before, name, &[]);
        let ratio = |packets: f64, frames: f64| if frames > 0.0 { packets / frames } else { 0.0 };
        let drops = [
            "netfwd_drops_total",
            "netfwd_tun_queue_drops_total",
            "netfwd_udp_receive_drops_total",
            "netfwd_xsk_rx_dropped_total",
            "netfwd_xsk_rx_ring_full_total",
        ];
        Self {
            merged: ratio(growth("netfwd_gro_input_packets_total"), growth("netfwd_gro_output_frames_total")),
            cut: ratio(growth("netfwd_tso_output_packets_total"), growth("netfwd_tun_read_frames_total")),
            drops: drops.into_iter().map(growth).sum(),
        }
    }
}

/// Runs one load; `each_second` sees the bytes received so far, about once a second while it is sent.
pub fn measure(lab: &Lab, gateway: &Gateway<'_>, case: Case, mut each_second: impl FnMut(u64)) -> Result<Outcome> {
    let progress = Arc::new(Progress::default());
    let before = gateway.metrics()?;
    let (cpu, process) = (machine::cpu_time()?, gateway.cpu_time());
    let arrived = lab.gateway.arrived(UNDERLAY)?;
    let report = thread::scope(|scope| {
        let load = scope.spawn(|| send(lab, case, Arc::clone(&progress)));
        let began = Instant::now();
        let mut shown = 0.0;
        while !load.is_finished() {
            thread::sleep(Duration::from_millis(20));
            // The receiver waits for the last datagrams after that: no second of load.
            if shown + 1.0 <= case.seconds && began.elapsed().as_secs_f64() >= shown + 1.0 {
                shown += 1.0;
                each_second(progress.bytes());
            }
        }
        load.join().map_err(|_| anyhow!("the load panicked"))?
    })?;
    let per_gigabyte = |time: Duration| time.as_secs_f64() / (report.bytes() as f64 / 1e9);
    let cpu_per_gigabyte = per_gigabyte(machine::cpu_time()?.saturating_sub(cpu));
    let process = process.zip(gateway.cpu_time()).map(|(before, after)| after.saturating_sub(before));
    let counts = Counts::between(&before, &gateway.metrics()?);
    let arrived = lab.gateway.arrived(UNDERLAY)? - arrived;
    Ok(Outcome {
        gigabits: report.gigabits(),
        cpu_per_gigabyte,
        process_per_gigabyte: process.map(per_gigabyte),
        counts,
        losses: report.losses((case.direction == Direction::Ingress).then_some(arrived)),
    })
}

/// What the receiver says.
enum Report {
    Tcp(tcp::Report),
    Udp(udp::Report),
}

impl Report {
    fn gigabits(&self) -> f64 {
        match self {
            Self::Tcp(report) => report.gigabits(),
            Self::Udp(report) => report.gigabits(),
        }
    }

    /// Of payload.
    fn bytes(&self) -> u64 {
        match self {
            Self::Tcp(report) => report.received,
            Self::Udp(report) => report.bytes,
        }
    }

    fn losses(&self, arrived: Option<u64>) -> Option<Losses> {
        match self {
            Self::Tcp(_) => None,
            Self::Udp(report) => Some(Losses::of(report, arrived)),
        }
    }
}

fn send(lab: &Lab, case: Case, progress: Arc<Progress>) -> Result<Report> {
    let (from, to, address) = match case.direction {
        Direction::Ingress => (&lab.peer, &lab.server, lab.server_address(Family::V4)),
        Direction::Egress => (&lab.server, &lab.peer, lab.peer_address(Family::V4)),
    };
    match case.protocol {
        Protocol::Tcp { flows } => {
            let load = tcp::Load::for_seconds(flows, case.seconds);
            tcp::run_watched(from, to, address, load, progress).map(Report::Tcp)
        }
        Protocol::Udp { rate } => {
            let load = udp::Load::for_seconds(DATAGRAM, case.seconds, rate);
            udp::run_watched(from, to, address, &load, progress).map(Report::Udp)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_before_the_gateway_are_part_of_all_losses() {
        let report = udp::Report { sent: 100, received: 60, ..udp::Report::default() };
        assert_eq!(Losses::of(&report, Some(70)), Losses { total: 0.4, before: Some(0.3) });
        // A keepalive and a handshake have arrived, too.
        assert_eq!(Losses::of(&report, Some(102)), Losses { total: 0.4, before: Some(0.0) });
        assert_eq!(Losses::of(&report, None), Losses { total: 0.4, before: None });
    }
}
