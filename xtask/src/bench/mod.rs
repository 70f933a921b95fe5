//! `cargo xtask bench`: every figure beside what it is to be compared with, from one run.
//!
//! Figures of different runs or machines say little about each other, so each benchmark has all its subjects take turns
//! and the table shows ratios. The small benchmarks are netfwd's own (`netfwd/benches`); the lab is here.

mod lab;
mod report;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use xtask::lab::Program;

use crate::cargo::{cargo, target};
use crate::measure::Subject;
use crate::setup;
use lab::{Course, Extent, Load};

/// What to measure and how long.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which benchmarks; all of them by default
    #[arg(value_enum)]
    benches: Vec<Bench>,
    /// Subjects of the lab or of wireguard; all of them by default
    #[arg(long, value_enum, value_delimiter = ',')]
    subjects: Vec<Subject>,
    /// What they do in lab and wireguard; everything by default
    #[arg(long, value_enum, value_delimiter = ',')]
    loads: Vec<Load>,
    /// The other end of wireguard
    #[arg(long, value_enum, default_value = "wireguard-go-gso")]
    far_end: Subject,
    /// Rounds of lab and wireguard; the figures are medians
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds for each load of lab and wireguard
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Bench {
    /// The XDP program, in ns per packet
    Xdp,
    /// The coalescer beside tun-rs'
    Coalesce,
    /// Segmentation beside tun-rs'
    Segment,
    /// The whole gateway in a lab, beside the kernel's VXLAN device
    Lab,
    /// The same as a WireGuard endpoint, beside other programs for that
    Wireguard,
}

/// One figure.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Figure {
    bench: String,
    case: String,
    subject: String,
    value: f64,
    unit: String,
}

/// Measures, prints a table and writes `bench.json` beside the build results.
pub fn perform(arguments: &Arguments) -> Result<()> {
    let all = [Bench::Xdp, Bench::Coalesce, Bench::Segment, Bench::Lab, Bench::Wireguard];
    let benches = if arguments.benches.is_empty() { &all[..] } else { &arguments.benches };
    setup::ensure()?;
    if benches.contains(&Bench::Wireguard) {
        setup::ensure_all_peers()?;
    }
    let mut figures = Vec::new();
    for bench in benches {
        figures.extend(match bench {
            Bench::Xdp => micro("xdp")?,
            Bench::Coalesce => micro("coalesce")?,
            Bench::Segment => micro("segment")?,
            Bench::Lab => arguments.lab(Course::Vxlan)?,
            Bench::Wireguard => arguments.lab(Course::WireGuard(arguments.far_end()?))?,
        });
    }
    print!("{}", report::tables(&figures));
    write_json(&figures)
}

impl Arguments {
    /// One lab with the subjects that were asked for, as far as they have a place there, or with its usual ones.
    fn lab(&self, course: Course) -> Result<Vec<Figure>> {
        let wanted = if self.subjects.is_empty() { course.subjects() } else { &self.subjects };
        let (subjects, others): (Vec<Subject>, Vec<Subject>) =
            wanted.iter().partition(|subject| course.takes(**subject));
        for subject in others {
            eprintln!("{}: {} has no place there", course.name(), subject.name());
        }
        let wanted = |load: &Load| self.loads.is_empty() || self.loads.contains(load);
        let loads: Vec<Load> = Load::ALL.into_iter().filter(wanted).collect();
        lab::measure_all(course, &subjects, Extent { loads: &loads, rounds: self.rounds, seconds: self.seconds })
    }

    fn far_end(&self) -> Result<Program> {
        self.far_end.program().with_context(|| format!("{} cannot be the far end", self.far_end.name()))
    }
}

/// Runs one of netfwd's own benchmarks, which print a table for people and one JSON object a line for us.
fn micro(name: &str) -> Result<Vec<Figure>> {
    let mut command = cargo(&["bench", "--package", "netfwd", "--bench", name]);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo bench")?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let figures = lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()).collect();
    if !child.wait()?.success() {
        bail!("the benchmark {name} failed");
    }
    Ok(figures)
}

fn write_json(figures: &[Figure]) -> Result<()> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = serde_json::to_string_pretty(&serde_json::json!({
        "machine": { "kernel": kernel.trim(), "cores": cores, "architecture": std::env::consts::ARCH },
        "figures": figures,
    }))?;
    let path = target().join("bench.json");
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    println!("written to {}", path.display());
    Ok(())
}
