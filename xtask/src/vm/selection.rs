//! Which tests run in the machine.
//!
//! Emulation is slow, so these are the ones that another kernel can change the outcome of: whether the verifier takes the XDP
//! program and what that decides, each kind of tunnel against the kernel's own device, through AF_XDP and without,
//! and what an older kernel lacks. When all are asked for, the programs of `whole` take the places of theirs here.
//! Deliberately absent: tests whose bounds speak of real hardware.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::kernel::numbers;
use super::plan::{Plan, Step, Tests};
use super::whole::{self, Whole};
use crate::cargo::cargo;

/// Test programs and what of them is run.
const PROGRAMS: [Program; 9] = [
    // Each of them loads the XDP program, which takes the emulated verifier of 6.1 several seconds.
    Program {
        filters: &[
            "verdicts::",
            "wireguard::each",
            "wireguard::zero",
            "lifecycle::attaching",
            "agreement::payloads_of",
        ],
        ..Program::new("xdp_verdicts")
    },
    Program::new("e2e_kernels"),
    // Another verifier looks at the programs that choose a device's queues, too.
    Program::new("tun_steering"),
    Program {
        tests: &[
            "a_flow_keeps_its_queue_wherever_its_other_direction_is_written",
            "flows_spread_over_the_queues_by_their_addresses_and_ports",
            "fragments_stay_together",
        ],
        ..Program::new("tun_round_trip")
    },
    // Before Linux 6.11 this is where `UDP_SEGMENT` is refused.
    Program { tests: &["runs_pass_an_interface_without_checksum_offload"], ..Program::new("udp_io") },
    Program {
        tests: &["vxlan_over_ipv4_carries_both_families", "vxlan_gpe_over_ipv6_carries_both_families"],
        ..Program::new("e2e_traffic")
    },
    Program { tests: &["inner_packets_of_3000_bytes_arrive_as_outer_fragments"], ..Program::new("e2e_fallback") },
    Program { tests: &["arp_and_neighbour_discovery_find_the_other_end_both_ways"], ..Program::new("e2e_l2") },
    Program { since: &[6, 12], ..Program::new("e2e_wireguard_kernel") },
];
/// How long each program may take: many times the minute of the slowest, since this is only there to end what hangs, and a busy
/// host may give an emulator a tenth of a CPU.
const STEP_SECONDS: u64 = 1200;

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Extent {
    /// What another kernel is most likely to change, within minutes.
    Selection,
    /// Everything that another kernel could change.
    All,
}

/// A test program.
struct Program {
    name: &'static str,
    /// The tests wanted, by their full names.
    tests: &'static [&'static str],
    /// Or what is in the names of those that are wanted. All are, when there is neither.
    filters: &'static [&'static str],
    /// The oldest kernel on which it says something new.
    since: &'static [u64],
}

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

/// What was built.
pub struct Built {
    /// Test programs by name.
    tests: BTreeMap<String, PathBuf>,
    /// `netfwd`, which end-to-end tests start.
    daemon: PathBuf,
}

/// Does one of these words, if there are any, occur in the name?
pub fn wants(words: &[String], name: &str) -> bool {
    words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))
}

/// Builds the test programs in which something may be wanted, and the daemon, which every one of them may start.
pub fn build(extent: Extent, words: &[String]) -> Result<Built> {
    // The whole workspace, so that features unify as in `cargo xtask test` and nothing is built twice.
    let mut command = cargo(&["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    for program in programs(extent, words) {
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
    Ok(Built { tests, daemon: daemon.context("cargo did not build the daemon")? })
}

/// Those programs whose names have one of these words; all, if some word is in no program's name and so may be in a test's.
fn programs(extent: Extent, words: &[String]) -> Vec<&'static str> {
    let whole = whole(extent).iter().map(|program| program.name);
    let all: Vec<_> = selected(extent).map(|program| program.name).chain(whole).collect();
    let of_programs = |word: &String| all.iter().any(|name| name.contains(word.as_str()));
    if words.iter().all(of_programs) { all.into_iter().filter(|name| wants(words, name)).collect() } else { all }
}

/// What is left out on a kernel where everything is asked for, and why, in lines for a reader.
pub fn omissions(series: &str, extent: Extent, words: &[String]) -> Vec<String> {
    let (programs, kernel) = (programs(extent, words), numbers(series));
    let of_whole = whole(extent).iter().filter(|program| programs.contains(&program.name));
    let of_whole = of_whole.flat_map(|program| program.omissions(&kernel));
    let everything = extent == Extent::All && words.is_empty();
    of_whole.chain(whole::programs_left_out().filter(|_| everything)).collect()
}

fn whole(extent: Extent) -> &'static [Whole] {
    match extent {
        Extent::Selection => &[],
        Extent::All => &whole::PROGRAMS,
    }
}

/// Those of which a part is run.
fn selected(extent: Extent) -> impl Iterator<Item = &'static Program> {
    let is_whole = move |name| whole(extent).iter().any(|program| program.name == name);
    PROGRAMS.iter().filter(move |program| !is_whole(program.name))
}

/// What to run on a kernel: everything chosen, or what of it contains one of these words, which may be nothing.
pub fn plan(built: &Built, series: &str, extent: Extent, words: &[String]) -> Result<Plan> {
    let kernel = numbers(series);
    let mut steps = Vec::new();
    for program in selected(extent).filter(|program| kernel.as_slice() >= program.since) {
        steps.extend(built.path(program.name).and_then(|path| program.step(path, words)));
    }
    for program in whole(extent) {
        if let Some(path) = built.path(program.name) {
            steps.extend(program.step(path, &kernel, words)?);
        }
    }
    let programs = steps.iter().map(|step| step.program.clone()).chain([built.daemon.clone()]).collect();
    Ok(Plan { programs, steps })
}

impl Built {
    /// Where that program is, if something in it may be wanted.
    fn path(&self, program: &str) -> Option<&Path> {
        self.tests.get(program).map(PathBuf::as_path)
    }
}

impl Program {
    /// All tests of that program on every kernel, one after the other.
    const fn new(name: &'static str) -> Self {
        Self { name, tests: &[], filters: &[], since: &[] }
    }

    /// `None` if none of its tests is wanted.
    fn step(&self, path: &Path, words: &[String]) -> Option<Step> {
        let all = wants(words, self.name);
        let tests: Vec<&str> = self.tests.iter().copied().filter(|test| all || wants(words, test)).collect();
        if !all && tests.is_empty() {
            return None;
        }
        let mut arguments = vec!["--test-threads=1".to_owned()];
        arguments.extend(self.filters.iter().map(|filter| (*filter).to_owned()));
        let expected = if self.tests.is_empty() {
            Tests::Some
        } else {
            arguments.push("--exact".to_owned());
            arguments.extend(tests.iter().map(|test| (*test).to_owned()));
            Tests::Exactly(tests.len() as u64)
        };
        let (name, program) = (self.name.to_owned(), path.to_owned());
        Some(Step { name, program, arguments, tests: expected, seconds: STEP_SECONDS })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(program: &str, words: &[&str]) -> Option<(Vec<String>, Tests)> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let program = PROGRAMS.iter().find(|candidate| candidate.name == program).unwrap();
        program.step(Path::new("/a"), &words).map(|step| (step.arguments, step.tests))
    }

    #[test]
    fn chosen_tests_are_named_exactly_and_counted() {
        let (words, tests) = arguments("e2e_traffic", &[]).unwrap();
        assert_eq!(words[..2], ["--test-threads=1", "--exact"]);
        assert_eq!(tests, Tests::Exactly(words.len() as u64 - 2));
        assert_eq!(arguments("xdp_verdicts", &[]).unwrap().1, Tests::Some);
    }

    #[test]
    fn words_choose_programs_or_tests() {
        assert_eq!(arguments("xdp_verdicts", &["verdicts"]).unwrap().1, Tests::Some);
        assert_eq!(arguments("e2e_traffic", &["e2e"]), arguments("e2e_traffic", &[]));
        assert_eq!(arguments("e2e_traffic", &["gpe_over"]).unwrap().1, Tests::Exactly(1));
        assert_eq!(arguments("e2e_traffic", &["verdicts"]), None);
        assert_eq!(arguments("e2e_kernels", &["e2e_l2"]), None);
    }

    #[test]
    fn only_programs_in_which_something_may_be_wanted_are_built() {
        let programs = |extent, word: &str| programs(extent, &[word.to_owned()]);
        assert_eq!(programs(Extent::Selection, "e2e_l2"), ["e2e_l2"]);
        assert_eq!(programs(Extent::Selection, "gpe_over").len(), PROGRAMS.len());
        assert_eq!(programs(Extent::Selection, "e2e_outer").len(), PROGRAMS.len());
        assert_eq!(programs(Extent::All, "e2e_outer"), ["e2e_outer"]);
    }

    #[test]
    fn a_program_is_run_in_part_or_as_a_whole_and_never_twice() {
        let mut all = programs(Extent::All, &[]);
        all.sort_unstable();
        assert!(all.is_sorted_by(|one, next| one < next), "{all:?}");
        assert!(PROGRAMS.iter().all(|program| all.contains(&program.name)));
    }
}
