//! Which tests run in the machine.
//!
//! Emulation is slow, so these are the ones that another kernel can change the outcome of: whether the verifier takes the XDP
//! program and what that decides, each kind of tunnel against the kernel's own device, through AF_XDP and without,
//! and what an older kernel lacks. Deliberately absent: tests whose bounds speak of real hardware.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::plan::{Plan, Step, Tests};
use crate::cargo::cargo;

/// A test program, its tests that are wanted (all when there are none), and how long they may take.
const TESTS: [(&str, &[&str], u64); 3] =
    [("xdp_verdicts", &[], 120), ("e2e_traffic", &[], 300), ("e2e_fallback", &[], 300)];

/// What cargo says about each thing that it has built.
#[derive(Deserialize)]
struct Artifact {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The programs that were built, by name.
pub struct Programs {
    tests: BTreeMap<String, PathBuf>,
    daemon: PathBuf,
}

/// Builds the test programs and the daemon, which every one of them may start.
pub fn build() -> Result<Programs> {
    // The whole workspace, so that features unify as in `cargo xtask test` and nothing is built twice.
    let mut command = cargo(&["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    for (program, ..) in TESTS {
        command.args(["--test", program]);
    }
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let mut tests = BTreeMap::new();
    let mut daemon = None;
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        // Other messages than about artifacts have no such fields.
        let Ok(Artifact { target, executable: Some(path) }) = serde_json::from_str(&line?) else { continue };
        match target.kind.first().map(String::as_str) {
            Some("test") => drop(tests.insert(target.name, path)),
            Some("bin") if target.name == "netfwd" => daemon = Some(path),
            _ => {}
        }
    }
    if !child.wait()?.success() {
        bail!("the tests do not build");
    }
    Ok(Programs { tests, daemon: daemon.context("cargo did not build the daemon")? })
}

/// What to run on a kernel: everything chosen, or what of it contains one of these words.
pub fn plan(programs: &Programs, series: &str, names: &[String]) -> Result<Plan> {
    let mut plan = Plan { programs: vec![programs.daemon.clone()], steps: Vec::new() };
    for (program, tests, seconds) in TESTS {
        let path = programs.tests.get(program).with_context(|| format!("cargo did not build {program}"))?;
        plan.programs.push(path.clone());
        let _ = (series, tests);
        let mut arguments = vec!["--test-threads=1".to_owned()];
        arguments.extend(names.iter().cloned());
        plan.steps.push(Step {
            name: program.to_owned(),
            program: path.clone(),
            arguments,
            tests: if names.is_empty() { Tests::Some } else { Tests::None },
            seconds,
        });
    }
    Ok(plan)
}
