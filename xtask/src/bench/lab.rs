//! The whole gateway in a lab, its subjects taking turns: netfwd in three forms and the kernel's VXLAN device; or netfwd
//! and other WireGuard programs, all with the same far end.
//!
//! In every round each subject is started afresh and gets every load, so that a machine that slows down slows all of them
//! down. Every other round goes backwards: what a subject finds depends on who was there before it, and so nobody always
//! follows the same one. What veth makes dearer for us than for the kernel (AF_XDP copies each packet there) is in the
//! figures.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;
use xtask::interrupt;
use xtask::lab::{Family, Lab, Options, Program, Side, Tunnel};
use xtask::load::flood::{self, Cookie, Flood, Sources};
use xtask::load::latency;

use super::Figure;
use crate::cargo;
use crate::measure::{Case, Direction, Gateway, Outcome, Protocol, Subject, measure};

/// In Gbit/s: what the best WireGuard program forwards on a small machine, and half as much again: nothing holds the sender
/// back, and what has to be lost costs the machine something, too.
const UDP_RATES: [f64; 2] = [2.0, 3.0];
/// Forged handshakes a second, and how long they come before anything is measured.
const FLOOD_RATE: u32 = 50_000;
const FLOOD_LEAD: Duration = Duration::from_millis(500);
/// Copy-mode and zero-copy chunks alike.
const UMEM_CHUNK: f64 = 2048.0;
const MIB: f64 = 1_048_576.0;

/// What stands at the other end, and what the table is called.
#[derive(Clone, Copy, Debug)]
pub enum Course {
    /// The kernel's VXLAN device.
    Vxlan,
    /// That WireGuard program.
    WireGuard(Program),
}

impl Course {
    fn lab(self) -> Result<Lab> {
        match self {
            Self::Vxlan => Lab::new(),
            Self::WireGuard(far_end) => Lab::with(Options::with_tunnels([Tunnel::wireguard(far_end)])),
        }
    }

    /// Who takes turns when nobody else is asked for, the one to compare with first.
    pub fn subjects(self) -> &'static [Subject] {
        match self {
            Self::Vxlan => &Subject::VXLAN,
            Self::WireGuard(_) => &Subject::WIREGUARD,
        }
    }

    /// Can it be the gateway there?
    pub fn takes(self, subject: Subject) -> bool {
        subject.is_netfwd() || self.subjects().contains(&subject)
    }

    /// What the table is called.
    pub fn name(self) -> String {
        match self {
            Self::Vxlan => "lab".to_owned(),
            Self::WireGuard(far_end) => format!("wireguard with {} at the far end", far_end.name()),
        }
    }
}

/// What a gateway is given to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Load {
    /// One flow and eight flows of TCP each way
    Tcp,
    /// Bulk UDP each way
    Udp,
    /// One small packet each way, again and again
    RoundTrip,
    /// One TCP flow beside forged handshakes, where there are handshakes
    Flood,
}

impl Load {
    /// All of them, in the order in which they are run.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::RoundTrip, Self::Flood];

    fn figures(self, subject: Subject, lab: &Lab, gateway: &Gateway<'_>, seconds: f64) -> Result<Vec<Figure>> {
        match self {
            Self::Tcp => bulk(subject, lab, gateway, &[1, 8].map(|flows| Protocol::Tcp { flows }), seconds),
            Self::Udp => bulk(subject, lab, gateway, &UDP_RATES.map(|rate| Protocol::Udp { rate }), seconds),
            Self::RoundTrip => round_trips(subject, lab, seconds),
            Self::Flood => floods(subject, lab, gateway, seconds),
        }
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'a> {
    /// What each subject does.
    pub loads: &'a [Load],
    /// How often.
    pub rounds: usize,
    /// How long each load lasts.
    pub seconds: f64,
}

/// Every load for every subject: medians over the rounds.
pub fn measure_all(course: Course, subjects: &[Subject], extent: Extent<'_>) -> Result<Vec<Figure>> {
    if !rustix::process::geteuid().is_root() {
        bail!("the lab is made of network namespaces, which need root");
    }
    let ours = subjects.iter().any(|subject| subject.is_netfwd());
    let binary = if ours { cargo::build_netfwd()? } else { PathBuf::new() };
    interrupt::install();
    let mut lab = course.lab()?;
    let mut samples = Vec::new();
    for round in 1..=extent.rounds {
        for subject in turns(subjects, round) {
            eprintln!("{}: round {round} of {}, {}", course.name(), extent.rounds, subject.name());
            lab.restart_far_ends()?;
            let figures = measure_subject(&lab, subject, &binary, extent)?;
            samples.extend(figures.into_iter().map(|figure| Figure { bench: course.name(), ..figure }));
            if interrupt::requested() {
                bail!("stopped; the namespaces are removed");
            }
        }
    }
    Ok(medians(&samples))
}

/// The order of a round.
fn turns(subjects: &[Subject], round: usize) -> Vec<Subject> {
    let mut turns = subjects.to_vec();
    if round.is_multiple_of(2) {
        turns.reverse();
    }
    turns
}

fn measure_subject(lab: &Lab, subject: Subject, binary: &Path, extent: Extent<'_>) -> Result<Vec<Figure>> {
    let gateway = subject.start(lab, binary)?;
    let mut figures = Vec::new();
    for load in extent.loads {
        figures.extend(load.figures(subject, lab, &gateway, extent.seconds)?);
        if interrupt::requested() {
            return Ok(figures);
        }
    }
    figures.extend(memory(subject, &gateway)?);
    gateway.stop()?;
    Ok(figures)
}

/// Each of these both ways.
fn bulk(
    subject: Subject,
    lab: &Lab,
    gateway: &Gateway<'_>,
    protocols: &[Protocol],
    seconds: f64,
) -> Result<Vec<Figure>> {
    let directions = [Direction::Ingress, Direction::Egress];
    let pairs = protocols.iter().flat_map(|&protocol| directions.map(|direction| (protocol, direction)));
    let mut figures = Vec::new();
    for (protocol, direction) in pairs {
        let case = Case { protocol, direction, seconds };
        figures.extend(figures_of(subject, case, &measure(lab, gateway, case, |_| {})?));
        if interrupt::requested() {
            break;
        }
    }
    Ok(figures)
}

fn figures_of(subject: Subject, case: Case, outcome: &Outcome) -> Vec<Figure> {
    let mut figures = vec![
        figure(subject, &case.name(), outcome.gigabits, "Gbit/s"),
        figure(subject, &case.name(), outcome.cpu_per_gigabyte, "CPU-seconds per GB, whole machine"),
    ];
    if let Some(losses) = outcome.losses {
        figures.push(figure(subject, &case.name(), losses.total * 100.0, "% of datagrams lost"));
        let before = losses.before.map(|share| (share * 100.0, "% of datagrams lost before the gateway"));
        figures.extend(before.map(|(value, unit)| figure(subject, &case.name(), value, unit)));
    }
    if let Some(process) = outcome.process_per_gigabyte {
        figures.push(figure(subject, &case.name(), process, "CPU-seconds per GB, the gateway's process"));
    }
    if subject.is_netfwd() {
        let ratio = if case.direction == Direction::Ingress { outcome.counts.merged } else { outcome.counts.cut };
        figures.push(figure(subject, &case.name(), ratio, "packets per frame at the device"));
    }
    figures
}

/// One small packet each way, again and again, with nothing else on the line.
fn round_trips(subject: Subject, lab: &Lab, seconds: f64) -> Result<Vec<Figure>> {
    let duration = Duration::from_secs_f64(seconds);
    let report = latency::run(&lab.peer, &lab.server, lab.server_address(Family::V4), duration)?;
    let micros = |case: &str, time: Duration| figure(subject, case, time.as_secs_f64() * 1e6, "µs");
    Ok(vec![micros("round trip, p50", report.p50), micros("round trip, p99", report.p99)])
}

fn floods(subject: Subject, lab: &Lab, gateway: &Gateway<'_>, seconds: f64) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for cookie in [Cookie::Absent, Cookie::Wrong] {
        if let Some(flood) = flood(lab, cookie, seconds)? {
            figures.extend(under_flood(subject, lab, gateway, flood)?);
        }
    }
    Ok(figures)
}

/// Handshakes from nowhere, where there are handshakes; answers to them lead away.
fn flood(lab: &Lab, cookie: Cookie, seconds: f64) -> Result<Option<Flood>> {
    let Some(tunnel) = lab.options().tunnels.iter().find(|tunnel| lab.far_end(&tunnel.name).is_ok()) else {
        return Ok(None);
    };
    lab.gateway.ip(&format!("route replace {} via {}", flood::SOURCE_PREFIX, tunnel.outer_address(Side::Peer)))?;
    Ok(Some(Flood {
        target: tunnel.endpoint(Side::Gateway),
        public_key: lab.far_end(&tunnel.name)?.keys.gateway.public_bytes()?,
        cookie,
        sources: Sources::Many,
        rate: FLOOD_RATE,
        duration: Duration::from_secs_f64(seconds),
    }))
}

/// What is left of one TCP flow meanwhile, beside what it was just before.
fn under_flood(subject: Subject, lab: &Lab, gateway: &Gateway<'_>, flood: Flood) -> Result<Vec<Figure>> {
    let seconds = flood.duration.as_secs_f64();
    let case = Case { protocol: Protocol::Tcp { flows: 1 }, direction: Direction::Ingress, seconds };
    let undisturbed = measure(lab, gateway, case, |_| {})?;
    let longer = Flood { duration: flood.duration + FLOOD_LEAD, ..flood };
    let (outcome, sent) = thread::scope(|scope| {
        let flood = scope.spawn(|| flood::run(&lab.peer, &longer));
        thread::sleep(FLOOD_LEAD);
        let outcome = measure(lab, gateway, case, |_| {});
        let sent = flood.join().map_err(|_| anyhow!("the flood panicked"))??;
        Ok::<_, anyhow::Error>((outcome?, sent))
    })?;
    let kind = if flood.cookie == Cookie::Absent { "" } else { " with wrong cookies" };
    let name = format!("TCP peer → server, 1 flow, under {FLOOD_RATE} forged handshakes/s{kind}");
    Ok(vec![
        figure(subject, &name, outcome.gigabits, "Gbit/s"),
        figure(subject, &name, outcome.gigabits / undisturbed.gigabits * 100.0, "% of the goodput just before"),
        figure(
            subject,
            &format!("forged handshakes{kind} that left"),
            sent as f64 / longer.duration.as_secs_f64(),
            "a second",
        ),
    ])
}

/// Resident memory after all that traffic, and what of it the UMEM may take.
fn memory(subject: Subject, gateway: &Gateway<'_>) -> Result<Vec<Figure>> {
    let Some(resident) = gateway.resident_bytes() else { return Ok(Vec::new()) };
    let mut figures = vec![figure(subject, "resident", resident as f64 / MIB, "MiB")];
    if subject.is_netfwd() {
        let umem = gateway.metrics()?.sum("netfwd_xsk_umem_frames") * UMEM_CHUNK;
        figures.push(figure(subject, "of which UMEM, at most", umem / MIB, "MiB"));
    }
    Ok(figures)
}

fn figure(subject: Subject, case: &str, value: f64, unit: &str) -> Figure {
    let [bench, case, subject, unit] = ["lab", case, subject.name(), unit].map(str::to_owned);
    Figure { bench, case, subject, value, unit }
}

/// The median of the samples that differ only in their values, in order of first appearance.
fn medians(samples: &[Figure]) -> Vec<Figure> {
    let same = |one: &Figure, two: &Figure| Figure { value: two.value, ..one.clone() } == *two;
    let mut figures: Vec<Figure> = Vec::new();
    for sample in samples {
        if figures.iter().any(|figure| same(figure, sample)) {
            continue;
        }
        let mut values: Vec<f64> =
            samples.iter().filter(|other| same(sample, other)).map(|other| other.value).collect();
        values.sort_by(f64::total_cmp);
        figures.push(Figure { value: values[values.len() / 2], ..sample.clone() });
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_always_follows_the_same_one() {
        let subjects = [Subject::Netfwd, Subject::Gotatun, Subject::Boringtun];
        let [first, second] = [1, 2].map(|round| turns(&subjects, round));
        assert_eq!(first, subjects);
        assert_eq!(second, [Subject::Boringtun, Subject::Gotatun, Subject::Netfwd]);
    }

    #[test]
    fn rounds_become_medians() {
        let sample = |value| figure(Subject::Kernel, "case", value, "unit");
        assert_eq!(medians(&[sample(3.0), sample(1.0), sample(2.0)]), vec![sample(2.0)]);
    }
}
