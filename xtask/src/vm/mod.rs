//! `cargo xtask vm`: the tests on other kernels than this machine's, in an emulated machine.
//!
//! The XDP program must pass the verifiers of the kernels that distributions ship, and the kernel's own tunnel devices,
//! which this machine may lack, are there as peers. So the binaries that the host has built boot with Debian's kernel
//! in an emulator: no disk image, no network, no distribution.
//!
//! Invariants: no root is needed once everything is installed; a failing test, a panic and a hang all end in an error
//! within a bound; a machine on a busy host is slow, not wrong. Deliberately absent: measurements. Emulation is a tenth as fast, and unevenly so.

mod archive;
mod guest;
mod image;
mod kernel;
mod modules;
mod plan;
mod qemu;
mod report;
mod selection;
mod whole;

use std::fs;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

pub use self::guest::run as guest;
use self::kernel::Kernel;
use self::plan::{Plan, Step, Tests};
use self::qemu::{Bounds, Event, Machine};
use self::report::Report;
pub use self::selection::Extent;
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
const BOOT_SECONDS: u64 = 300;
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
    Test {
        /// Not the selection, which keeps within minutes, but the whole verdict table of the XDP program and every test of the
        /// VXLAN gateway in network namespaces that emulation can hold
        #[arg(long)]
        all: bool,
        names: Vec<String>,
    },
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
        Task::Test { all, names } => {
            let extent = if all { Extent::All } else { Extent::Selection };
            test(kernels, extent, &names).map(|totals| println!("── {} passed", totals.passed))
        }
        Task::Run { seconds, with, command } => {
            setup()?;
            let plan = |series| Ok((series, command_plan(&command, with.clone(), seconds)?));
            run_plans(kernels.iter().copied().map(plan).collect::<Result<_>>()?, Extent::Selection).map(drop)
        }
    }
}

/// Builds the tests and runs them on all of these kernels.
pub fn test(kernels: &[&str], extent: Extent, names: &[String]) -> Result<Totals> {
    setup()?;
    let built = selection::build(extent, names)?;
    for series in kernels {
        selection::omissions(series, extent, names).iter().for_each(|line| println!("{series:>5} │ {line}"));
    }
    let plan = |series| Ok((series, selection::plan(&built, series, extent, names)?));
    let plans = kernels.iter().copied().map(plan).collect::<Result<Vec<_>>>()?;
    let plans: Vec<_> = plans.into_iter().filter(|(_, plan)| !plan.steps.is_empty()).collect();
    if plans.is_empty() {
        bail!("no test for Linux {} has {} in its name", kernels.join(" or "), names.join(" or "));
    }
    run_plans(plans, extent)
}

/// Installs the emulator and fetches the kernels, where they are missing.
pub fn prepare() -> Result<()> {
    setup()?;
    KERNELS.iter().try_for_each(|series| Kernel::fetch(series).map(drop))
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

/// Carries out plans on kernels, all at once since an emulator keeps one CPU busy. When one run is no good, it and the others
/// end; but all of everything goes on to its end, since it takes long and is to say all there is.
fn run_plans(plans: Vec<(&str, Plan)>, extent: Extent) -> Result<Totals> {
    let start = Instant::now();
    let prepared = plans.into_iter().map(|(series, plan)| Prepared::new(series, plan, extent));
    let prepared = prepared.collect::<Result<Vec<_>>>()?;
    let stop = AtomicBool::new(false);
    let outcomes: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = prepared.iter().map(|prepared| scope.spawn(|| prepared.run(&stop))).collect();
        running.into_iter().map(|run| run.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let mut totals = Totals::default();
    let mut faults = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(more) => totals.add(&more),
            Err(error) => faults.push(format!("{error:#}")),
        }
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    println!("── all machines have ended well within {:.0} s", start.elapsed().as_secs_f64());
    Ok(totals)
}

/// A machine that is ready to boot.
struct Prepared<'a> {
    series: &'a str,
    kernel: Kernel,
    plan: Plan,
    extent: Extent,
    directory: PathBuf,
    image: PathBuf,
}

impl<'a> Prepared<'a> {
    fn new(series: &'a str, plan: Plan, extent: Extent) -> Result<Self> {
        let kernel = Kernel::fetch(series)?;
        let directory = target().join("vm").join(series);
        let image = image::build(&kernel, &plan, &directory)?;
        Ok(Self { series, kernel, plan, extent, directory, image })
    }

    /// Boots it and passes on what the guest prints.
    fn run(&self, stop: &AtomicBool) -> Result<Totals> {
        let machine = Machine::boot(&self.kernel, &self.image, &self.directory, self.bounds())
            .inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        let mut report = Report::default();
        self.hear_out(&machine, &mut report, stop);
        let last = report.last_lines();
        let judged = report.judge(&self.plan);
        if judged.is_err() && !(self.ends_at_a_fault() && stop.swap(true, Ordering::Relaxed)) {
            let (series, console) = (self.series, machine.console(CONSOLE_LINES));
            eprintln!("── Linux {series}, the guest's last lines:\n{last}\n── and its kernel's:\n{console}");
        }
        if judged.is_ok() {
            // What it leaves behind does not make a good run a bad one.
            fs::remove_dir_all(&self.directory).ok();
        }
        judged.with_context(|| format!("Linux {} in an emulated machine", self.kernel.release))
    }

    fn ends_at_a_fault(&self) -> bool {
        self.extent == Extent::Selection
    }

    fn bounds(&self) -> Bounds {
        let steps = self.plan.steps.iter().map(|step| step.seconds);
        let longest = steps.clone().max().unwrap_or_default();
        let seconds = |steps: u64| Duration::from_secs(BOOT_SECONDS + steps);
        Bounds { whole: seconds(steps.sum()), silence: seconds(longest) }
    }

    /// Listens until the machine ends, its time is over, or something has gone wrong here or in another machine.
    fn hear_out(&self, machine: &Machine, report: &mut Report, stop: &AtomicBool) {
        while !(report.has_faults() && self.ends_at_a_fault()) {
            match machine.next(stop) {
                Event::Line(line) => {
                    for line in report.hear(&line, machine.cpu_time(), &self.plan).iter().flat_map(|text| text.lines())
                    {
                        println!("{:>5} │ {line}", self.series);
                    }
                }
                Event::Ended => return,
                Event::TimedOut => return report.fault("the machine's time was over"),
                Event::Stopped => return report.fault("ended because another machine's run was no good"),
            }
        }
    }
}
