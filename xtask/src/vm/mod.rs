//! `cargo xtask vm`: the tests on other kernels than this machine's, in an emulated machine.
//!
//! The XDP program must pass the verifiers of the kernels that distributions ship, and the kernel's own tunnel devices,
//! which this machine may lack, are there as peers. So the binaries that the host has built boot with Debian's kernel
//! in an emulator: no disk image, no network, no distribution.
//!
//! Invariants: no root is needed once everything is installed; a failing test, a panic and a hang all end in an error
//! within a bound. Deliberately absent: measurements. Emulation is a tenth as fast, and unevenly so.

mod archive;
mod guest;
mod image;
mod kernel;
mod modules;
mod plan;
mod qemu;
mod report;
mod selection;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;

pub use self::guest::run as guest;
use self::kernel::Kernel;
use self::plan::{Plan, Step, Tests};
use self::qemu::{Event, Machine};
use self::report::Report;
use crate::cargo::target;
use crate::ci::Totals;
use crate::setup;

/// The kernels that netfwd promises to run on, oldest first.
pub const KERNELS: [&str; 2] = ["6.1", "6.12"];
/// Programs of emulator and image, and the packages they are in.
const PROGRAMS: [(&str, &str); 8] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("wg", "wireguard-tools"),
    ("xz", "xz-utils"),
    ("strip", "binutils"),
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("ping", "iputils-ping"),
];
/// What a boot may take on a busy machine, beside the steps; 5 on a quiet one.
const BOOT_SECONDS: u64 = 120;
/// How much of the kernel's console is shown when something went wrong: a panic with its trace.
const CONSOLE_LINES: usize = 40;

/// Which kernels, and what to do there.
#[derive(clap::Args)]
pub struct Arguments {
    /// The series of Debian's kernel, such as 6.12; by default every one that netfwd is tested on
    #[arg(long, value_name = "SERIES", value_delimiter = ',')]
    kernel: Vec<String>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the tests that are chosen for virtual machines, or those whose names contain one of these words
    Test { names: Vec<String> },
    /// Run a command, such as `ip link` or a program under its path here
    Run {
        /// Seconds it may take
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// More programs for the image, which have the same path there as here
        #[arg(long)]
        with: Vec<PathBuf>,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
}

pub fn perform(arguments: Arguments) -> Result<()> {
    let kernels: Vec<&str> = arguments.kernel.iter().map(String::as_str).collect();
    let kernels = if kernels.is_empty() { &KERNELS[..] } else { &kernels[..] };
    match arguments.task {
        Task::Test { names } => test(kernels, &names).map(|totals| println!("── {} passed", totals.passed)),
        Task::Run { seconds, with, command } => {
            setup()?;
            let plan = command_plan(&command, with, seconds)?;
            kernels.iter().try_for_each(|series| run_plan(series, &plan).map(drop))
        }
    }
}

/// Builds the tests and runs them on each of these kernels.
pub fn test(kernels: &[&str], names: &[String]) -> Result<Totals> {
    setup()?;
    let built = selection::build()?;
    let mut totals = Totals::default();
    let mut faults = Vec::new();
    for series in kernels {
        match selection::plan(&built, series, names).and_then(|plan| run_plan(series, &plan)) {
            Ok(more) => totals.add(&more),
            Err(error) => faults.push(format!("{error:#}")),
        }
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(totals)
}

fn setup() -> Result<()> {
    setup::ensure_programs(&PROGRAMS, "emulator and programs of the virtual machine with other kernels")
}

fn command_plan(command: &[String], mut programs: Vec<PathBuf>, seconds: u64) -> Result<Plan> {
    let (program, arguments) = command.split_first().context("no command")?;
    let (name, arguments) = (command.join(" "), arguments.to_vec());
    let program = PathBuf::from(program);
    if program.is_absolute() {
        programs.push(program.clone());
    }
    Ok(Plan { programs, steps: vec![Step { name, program, arguments, tests: Tests::None, seconds }] })
}

/// Boots that kernel with that plan and passes on what the guest prints.
fn run_plan(series: &str, plan: &Plan) -> Result<Totals> {
    let kernel = Kernel::fetch(series)?;
    let directory = target().join("vm").join(series);
    let image = image::build(&kernel, plan, &directory)?;
    let bound = Duration::from_secs(BOOT_SECONDS + plan.steps.iter().map(|step| step.seconds).sum::<u64>());
    let machine = Machine::boot(&kernel, &image, &directory, bound)?;
    let judged = hear_out(&machine, series, plan).judge(plan);
    if judged.is_err() {
        eprintln!("── the last of the kernel's own lines:\n{}", machine.console(CONSOLE_LINES));
        return judged.with_context(|| format!("Linux {} in an emulated machine", kernel.release));
    }
    fs::remove_dir_all(&directory)?;
    judged
}

/// Listens until the machine ends, or its time is over.
fn hear_out(machine: &Machine, series: &str, plan: &Plan) -> Report {
    let mut report = Report::default();
    loop {
        match machine.next() {
            Event::Line(line) => {
                for line in report.hear(&line, plan).iter().flat_map(|text| text.lines()) {
                    println!("{series:>5} │ {line}");
                }
            }
            Event::Ended => return report,
            Event::TimedOut => {
                report.fault("the machine's time was over");
                return report;
            }
        }
    }
}
