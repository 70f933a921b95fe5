//! Which tests run in the machine when all of them are asked for: the XDP program's verdicts, and the VXLAN gateway's in
//! network namespaces.
//!
//! What a program holds is asked of the program, so a new test is run without being listed here. Invariant: a test that is not
//! run is named here, with the reason. Deliberately absent: WireGuard's own programs, which say little that the kernel
//! decides beyond the selection, and tests whose names begin with `slow_`, which are left out on the host too.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use xtask::lab::output;

use super::plan::{Step, Tests};
use super::selection::wants;

/// Test programs that are run but for a few tests.
pub const PROGRAMS: [Whole; 13] = [
    Whole::new("xdp_verdicts"),
    Whole::new("e2e_l2"),
    Whole::new("e2e_traffic"),
    Whole::new("e2e_fallback"),
    Whole::new("e2e_outer"),
    Whole::new("e2e_edges"),
    Whole::new("e2e_limits"),
    Whole::new("e2e_isolation"),
    Whole::new("e2e_changes"),
    Whole::new("e2e_corruption"),
    Whole::new("e2e_drain"),
    Whole::new("e2e_lifecycle"),
    Whole::new("e2e_metrics"),
];
/// How long a program may take for each of its tests: this only ends what hangs.
const TEST_SECONDS: u64 = 300;
/// What takes minutes on any machine; `cargo xtask test --slow` runs it.
const SLOW: &str = "slow_";

/// A test program.
pub struct Whole {
    pub name: &'static str,
    /// Tests that an emulator cannot hold, by their full names, and why.
    left_out: &'static [(&'static str, &'static str)],
}

impl Whole {
    const fn new(name: &'static str) -> Self {
        Self { name, left_out: &[] }
    }

    /// `None` if none of its tests is wanted.
    pub fn step(&self, path: &Path, words: &[String]) -> Result<Option<Step>> {
        let listed = output(Command::new(path).args(["--list", "--format", "terse"]))?;
        Ok(self.of_tests(&tests(&listed), words)?.map(|(arguments, count)| Step {
            name: self.name.to_owned(),
            program: path.to_owned(),
            arguments,
            tests: Tests::Exactly(count),
            seconds: count * TEST_SECONDS,
        }))
    }

    /// The program's arguments and the number of tests they choose.
    fn of_tests(&self, tests: &[&str], words: &[String]) -> Result<Option<(Vec<String>, u64)>> {
        for (gone, _) in self.left_out.iter().filter(|(name, _)| !tests.contains(name)) {
            bail!("{} has no test {gone} that could be left out", self.name);
        }
        let is_left_out = |test: &str| test.contains(SLOW) || self.left_out.iter().any(|(name, _)| *name == test);
        let all = wants(words, self.name);
        let wanted = tests.iter().filter(|test| !is_left_out(test) && (all || wants(words, test)));
        let names: Vec<String> = wanted.map(|test| (*test).to_owned()).collect();
        let count = names.len() as u64;
        let options = ["--test-threads=1", "--exact"].map(str::to_owned).into_iter();
        Ok((count > 0).then(|| (options.chain(names).collect(), count)))
    }

    /// What is not run, and why, in lines for a reader.
    pub fn omissions(&self) -> impl Iterator<Item = String> {
        self.left_out.iter().map(|(test, why)| format!("{}: without {test}: {why}", self.name))
    }
}

/// The names in `a::law: test`.
fn tests(listed: &str) -> Vec<&str> {
    listed.lines().filter_map(|line| line.strip_suffix(": test")).collect()
}

#[cfg(test)]
mod tests_of_the_choice {
    use super::*;

    const SOME: Whole = Whole { name: "e2e_some", left_out: &[("too_fast", "no emulator is")] };

    fn chosen(listed: &str, words: &[&str]) -> Option<(Vec<String>, u64)> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        SOME.of_tests(&tests(listed), &words).unwrap()
    }

    #[test]
    fn every_test_is_run_but_what_is_slow_or_left_out() {
        let (arguments, count) = chosen("a::law: test\nslow_one: test\ntoo_fast: test\nlaw: test\n", &[]).unwrap();
        assert_eq!((arguments[2..].join(" "), count), ("a::law law".to_owned(), 2));
    }

    #[test]
    fn words_choose_among_them() {
        let listed = "a: test\nb: test\ntoo_fast: test\n";
        assert_eq!(chosen(listed, &["b"]).unwrap().1, 1);
        assert_eq!(chosen(listed, &["some"]).unwrap().1, 2);
        assert_eq!(chosen(listed, &["fast"]), None);
    }

    #[test]
    fn what_is_left_out_has_to_be_there() {
        assert!(SOME.of_tests(&["a"], &[]).unwrap_err().to_string().contains("no test too_fast"));
    }
}
