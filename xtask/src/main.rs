//! netfwd's development tasks: `cargo xtask setup | run | test | bench | ci | lab`.

mod bench;
mod cargo;
mod ci;
mod lab_command;
mod load_command;
mod measure;
mod run;
mod setup;
mod vm;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// netfwd's development tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing: the eBPF toolchain, and the tools of the lab
    Setup,
    /// Build everything and show the gateway at work in a lab; or run it on real interfaces
    Run {
        /// Run the daemon on this machine's interfaces with this configuration, instead of in a lab
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Show a WireGuard tunnel
        #[arg(long, conflicts_with = "config")]
        wireguard: bool,
        /// How long the demonstration takes, in seconds
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
    },
    /// Run every test: units, properties, the eBPF object, end to end in network namespaces, and on other kernels
    Test {
        /// Only the tests that take minutes, which are left out otherwise
        #[arg(long, conflicts_with = "arguments")]
        slow: bool,
        /// Arguments for the test programs, such as a part of a test's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure: XDP, coalescing, segmentation, and the whole gateway in a lab
    Bench(bench::Arguments),
    /// What is checked before a merge: fmt, clippy, docs with warnings denied, every test
    Ci,
    /// Make or remove a lab for exploring by hand
    #[command(subcommand)]
    Lab(lab_command::Task),
    /// Run tests on other kernels, in emulated machines
    Vm(vm::Arguments),
    /// The init of that machine
    #[command(hide = true)]
    VmGuest,
    /// Send and receive load; for use with `ip netns exec`
    #[command(subcommand, hide = true)]
    Load(load_command::Task),
}

fn main() -> ExitCode {
    match perform(Arguments::parse_from(without_separator(std::env::args_os())).task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `cargo xtask run -- --config FILE` reads like `cargo run -- …`; cargo's alias hands that `--` through to us.
fn without_separator(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<_> = arguments.collect();
    if arguments.get(1).is_some_and(|task| task == "run") && arguments.get(2).is_some_and(|separator| separator == "--")
    {
        arguments.remove(2);
    }
    arguments
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::ensure().and_then(|()| setup::ensure_peers()),
        Task::Run { config: Some(config), .. } => run::on_this_machine(&config),
        Task::Run { config: None, wireguard, seconds } => {
            run::in_a_lab(if wireguard { run::Show::WireGuard } else { run::Show::Vxlan }, seconds)
        }
        Task::Test { slow: true, .. } => setup::ensure_peers().and_then(|()| ci::test_slow()),
        Task::Test { slow: false, arguments } => setup::ensure_peers().and_then(|()| ci::test(&arguments)),
        Task::Bench(arguments) => bench::perform(&arguments),
        Task::Ci => setup::ensure_peers().and_then(|()| ci::all()),
        Task::Lab(task) => lab_command::perform(&task),
        Task::Vm(arguments) => vm::perform(arguments),
        Task::VmGuest => vm::guest(),
        Task::Load(task) => load_command::perform(&task),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_separator_before_the_options_of_run_is_skipped() {
        let arguments = ["xtask", "run", "--", "--config", "gw.toml"].map(OsString::from);
        let parsed = Arguments::try_parse_from(without_separator(arguments.into_iter())).unwrap();
        assert!(matches!(parsed.task, Task::Run { config: Some(config), .. } if config == *"gw.toml"));
    }
}
