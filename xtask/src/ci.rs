//! `cargo xtask test` and `cargo xtask ci`.
//!
//! Invariant: what needs root and has none is never passed over in silence. Deliberately absent: a second build for
//! release; the tests run the daemon as the `dev` profile builds it, with overflow checks.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cargo::{cargo, succeed, workspace};
use crate::setup;
use crate::vm;

/// The end-to-end tests share the machine's cores with the traffic they make, so they run one by one.
const STEPS: [(&str, &[&str], &[&str]); 3] = [
    ("units and properties", &["--lib", "--bins"], &["--skip", SLOW]),
    ("the eBPF object and network namespaces", &["--test", "*"], &["--test-threads=1", "--skip", SLOW, "--skip", VM]),
    ("examples in the documentation", &["--doc"], &[]),
];

/// Tests in a module of this name take minutes each: the protocol's own times are what they are about, or millions of cases. The test
/// harness looks for the text anywhere in a name, so a prefix would be found in others' names, too.
const SLOW: &str = "slow::";
/// Tests whose names begin like this need another kernel than this machine may have; they run in an emulated machine.
const VM: &str = "vm_";

/// The slow tests and nothing else.
pub fn test_slow() -> Result<()> {
    setup::ensure()?;
    check_root()?;
    let programs = ["--lib", "--test", "e2e_*", "--test", "hostile"];
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    command.args(programs).args(["--", "--test-threads=1"]);
    let totals = run_tests(command.arg(SLOW))?;
    if totals.failed > 0 || totals.broken {
        bail!("{} passed, {} failed", totals.passed, totals.failed);
    }
    println!("── {} passed, {} failed", totals.passed, totals.failed);
    Ok(())
}

/// Everything there is to test, but what is slow; with arguments for the test programs, only here and not on other kernels.
pub fn test(arguments: &[String]) -> Result<()> {
    setup::ensure()?;
    let elsewhere = arguments.is_empty();
    if elsewhere {
        // Before all else, since what cannot be fetched would come to light at the very end.
        vm::prepare()?;
    }
    check_root()?;
    let start = Instant::now();
    let mut totals = Totals::default();
    for (name, targets, options) in STEPS {
        eprintln!("── {name}");
        let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
        command.args(targets).arg("--").args(options).args(arguments);
        totals.add(&run_tests(&mut command)?);
    }
    if elsewhere {
        eprintln!("── other kernels, in emulated machines");
        totals.add(&on_other_kernels());
    }
    let seconds = start.elapsed().as_secs();
    let line = format!("{} passed, {} failed, {} ignored in {seconds} s", totals.passed, totals.failed, totals.ignored);
    if totals.failed > 0 || totals.broken {
        let broken = "; a test program did not build or did not end well, or an emulated machine did not";
        bail!("{line}{}", if totals.broken { broken } else { "" });
    }
    println!("── {line}{}", if is_root() { "" } else { " — WITHOUT the tests that need root" });
    Ok(())
}

/// A machine that did not end well makes the whole run a failure, without hiding what was counted before.
fn on_other_kernels() -> Totals {
    vm::test(&vm::KERNELS, vm::Extent::Selection, &[]).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        Totals { broken: true, ..Totals::default() }
    })
}

/// Formatting, lints and documentation with warnings denied, then [`test`].
pub fn all() -> Result<()> {
    setup::ensure()?;
    setup::check_components()?;
    step("fmt", &mut cargo(&["fmt", "--all", "--check"]))?;
    if Path::new(&workspace().join("netfwd-ebpf/Cargo.toml")).exists() {
        step("fmt of the eBPF crate", cargo(&["fmt", "--check"]).current_dir(workspace().join("netfwd-ebpf")))?;
    }
    step("clippy", &mut cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    step("docs", doc.env("RUSTDOCFLAGS", "--deny warnings"))?;
    test(&[])
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("── {name}");
    succeed(command).with_context(|| format!("{name} found something"))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn check_root() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let skip = std::env::var_os("NETFWD_SKIP_ROOT_TESTS").is_some_and(|value| value == "1");
    if !skip {
        bail!(
            "most of netfwd's tests load an eBPF program or make network namespaces, and this is not root.\n\
             Run them as root (sudo -E env PATH=$PATH cargo xtask test), or set NETFWD_SKIP_ROOT_TESTS=1 to leave them out."
        );
    }
    eprintln!(
        "{0}\n  NOT ROOT: every test that needs root is skipped, as NETFWD_SKIP_ROOT_TESTS=1 asks.\n{0}",
        "═".repeat(90)
    );
    Ok(())
}

/// What test programs have said about their tests.
#[derive(Debug, Default, PartialEq)]
pub struct Totals {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
    /// Cargo failed for another reason than a failed test.
    broken: bool,
}

impl Totals {
    /// Adds what others have said.
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.broken |= other.broken;
    }

    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    pub fn read(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let count = |word: &str| -> u64 {
            let before = result.split(word).next().unwrap_or_default();
            before.trim_end().rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        self.passed += count(" passed");
        self.failed += count(" failed");
        self.ignored += count(" ignored");
    }
}

/// Runs cargo test, passing its output on, and adds up what it says.
fn run_tests(command: &mut Command) -> Result<Totals> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let mut totals = Totals::default();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        totals.read(&line);
    }
    totals.broken = !child.wait()?.success() && totals.failed == 0;
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_up_over_test_programs() {
        let mut totals = Totals::default();
        totals.read("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        totals.read("test result: FAILED. 12 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        totals.read("test a_law ... ok");
        assert_eq!(totals, Totals { passed: 15, failed: 2, ignored: 1, broken: false });
    }
}
