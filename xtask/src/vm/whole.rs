//! Which tests run in the machine when all of them are asked for: the XDP program's verdicts, and the VXLAN gateway's in
//! network namespaces.
//!
//! What a program holds is asked of the program, so a new test is run without being listed here. Invariant: a test that is not
//! run is named here, with the reason. Deliberately absent: WireGuard's own programs, which say little that the kernel
//! decides beyond the selection, and tests in modules named `slow`, which are left out on the host too.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use xtask::lab::output;

use super::plan::{Step, Tests};
use super::selection::wants;

/// Test programs that are run but for a few tests.
pub const PROGRAMS: [Whole; 11] = [
    Whole::new("xdp_verdicts"),
    Whole::new("e2e_l2"),
    Whole::new("e2e_outer"),
    Whole::new("e2e_traffic"),
    Whole::new("e2e_fallback"),
    Whole { left_out: &[LeftOut::everywhere("a_lonely_packet_does_not_wait", QUICK)], ..Whole::new("e2e_edges") },
    Whole {
        left_out: &[LeftOut {
            test: "nonsense_in_the_rx_ring_is_dropped_with_its_reason_and_what_is_behind_it_arrives",
            why: "the kernel lets nobody map the rings of a bound AF_XDP socket before Linux 6.4 (`xsk_mmap`: EBUSY)",
            since: Some(&[6, 4]),
        }],
        ..Whole::new("e2e_limits")
    },
    Whole::new("e2e_isolation"),
    Whole {
        left_out: &[LeftOut::everywhere("a_route_to_the_endpoint_through_wireguard_makes_no_storm", WIREGUARD_GO)],
        ..Whole::new("e2e_changes")
    },
    Whole {
        left_out: &[
            LeftOut::everywhere("the_end_delivers_what_is_queued_on_sockets_of_wireguard", WIREGUARD_GO),
            LeftOut::everywhere("the_end_delivers_what_wireguard_has_in_an_af_xdp_ring", WIREGUARD_GO),
        ],
        ..Whole::new("e2e_drain")
    },
    Whole::new("e2e_corruption"),
];
/// Programs of the VXLAN gateway that are not run, and why.
const LEFT_OUT: [(&str, &str); 2] = [
    ("e2e_lifecycle", "seconds in which real hardware ends; and it needs setpriv, prlimit, ss and coreutils' timeout"),
    ("e2e_metrics", "bounds of memory and rates on real hardware; and it needs promtool"),
];
const QUICK: &str = "its milliseconds are those of real hardware";
const WIREGUARD_GO: &str = "it is about WireGuard, and needs wireguard-go";
/// How long a program may take for each of its tests: this only ends what hangs.
const TEST_SECONDS: u64 = 300;
/// What takes minutes on any machine; `cargo xtask test --slow` runs it.
const SLOW: &str = "slow::";

/// A test program.
pub struct Whole {
    pub name: &'static str,
    left_out: &'static [LeftOut],
}

/// A test that is not run.
struct LeftOut {
    /// Its full name.
    test: &'static str,
    why: &'static str,
    /// The oldest kernel that it is run on, if there is one.
    since: Option<&'static [u64]>,
}

impl LeftOut {
    /// Where an emulator cannot hold it.
    const fn everywhere(test: &'static str, why: &'static str) -> Self {
        Self { test, why, since: None }
    }

    fn applies(&self, kernel: &[u64]) -> bool {
        self.since.is_none_or(|since| kernel < since)
    }
}

impl Whole {
    const fn new(name: &'static str) -> Self {
        Self { name, left_out: &[] }
    }

    /// `None` if none of its tests is wanted.
    pub fn step(&self, path: &Path, kernel: &[u64], words: &[String]) -> Result<Option<Step>> {
        let listed = output(Command::new(path).args(["--list", "--format", "terse"]))?;
        Ok(self.of_tests(&tests(&listed), kernel, words)?.map(|(arguments, count)| Step {
            name: self.name.to_owned(),
            program: path.to_owned(),
            arguments,
            tests: Tests::Exactly(count),
            seconds: count * TEST_SECONDS,
        }))
    }

    /// The program's arguments and the number of tests they choose.
    fn of_tests(&self, tests: &[&str], kernel: &[u64], words: &[String]) -> Result<Option<(Vec<String>, u64)>> {
        if let Some(gone) = self.left_out.iter().find(|left_out| !tests.contains(&left_out.test)) {
            bail!("{} has no test {} that could be left out", self.name, gone.test);
        }
        let left_out: Vec<_> = self.left_out(kernel).map(|left_out| left_out.test).collect();
        let is_left_out = |test: &str| test.contains(SLOW) || left_out.contains(&test);
        let all = wants(words, self.name);
        let wanted = tests.iter().filter(|test| !is_left_out(test) && (all || wants(words, test)));
        let names: Vec<String> = wanted.map(|test| (*test).to_owned()).collect();
        let count = names.len() as u64;
        let options = ["--test-threads=1", "--exact"].map(str::to_owned).into_iter();
        Ok((count > 0).then(|| (options.chain(names).collect(), count)))
    }

    fn left_out(&self, kernel: &[u64]) -> impl Iterator<Item = &'static LeftOut> {
        self.left_out.iter().filter(|left_out| left_out.applies(kernel))
    }

    /// Which of its tests are not run on that kernel, and why, in lines for a reader.
    pub fn omissions(&self, kernel: &[u64]) -> impl Iterator<Item = String> {
        self.left_out(kernel).map(|left_out| format!("{} without {}: {}", self.name, left_out.test, left_out.why))
    }
}

/// Which programs are not run, and why, in lines for a reader.
pub fn programs_left_out() -> impl Iterator<Item = String> {
    LEFT_OUT.iter().map(|(program, why)| format!("without {program}: {why}"))
}

/// The names in `a::law: test`.
fn tests(listed: &str) -> Vec<&str> {
    listed.lines().filter_map(|line| line.strip_suffix(": test")).collect()
}

#[cfg(test)]
mod tests_of_the_choice {
    use super::*;

    const SOME: Whole = Whole {
        name: "e2e_some",
        left_out: &[
            LeftOut::everywhere("too_fast", "no emulator is"),
            LeftOut { test: "new", why: "it was not there", since: Some(&[6, 4]) },
        ],
    };

    fn chosen_on(kernel: &[u64], listed: &str, words: &[&str]) -> Option<(Vec<String>, u64)> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        SOME.of_tests(&tests(listed), kernel, &words).unwrap()
    }

    #[test]
    fn every_test_is_run_but_what_is_slow_or_left_out() {
        let listed = "a::law: test\nslow::one: test\ntoo_fast: test\nnew: test\nlaw: test\n";
        let (arguments, count) = chosen_on(&[6, 12], listed, &[]).unwrap();
        assert_eq!((arguments[2..].join(" "), count), ("a::law new law".to_owned(), 3));
        let (arguments, count) = chosen_on(&[6, 1], listed, &[]).unwrap();
        assert_eq!((arguments[2..].join(" "), count), ("a::law law".to_owned(), 2));
    }

    #[test]
    fn words_choose_among_them() {
        let chosen = |words: &[&str]| chosen_on(&[6, 1], "a: test\nb: test\ntoo_fast: test\nnew: test\n", words);
        assert_eq!(chosen(&["b"]).unwrap().1, 1);
        assert_eq!(chosen(&["some"]).unwrap().1, 2);
        assert_eq!(chosen(&["fast"]), None);
    }

    #[test]
    fn what_is_left_out_has_to_be_there() {
        assert!(SOME.of_tests(&["a"], &[], &[]).unwrap_err().to_string().contains("no test too_fast"));
    }
}
