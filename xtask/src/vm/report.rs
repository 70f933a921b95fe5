//! What the guest said, judged.
//!
//! Invariant: a run is good only if the guest said so to the end — every step begun and ended, each with status 0 and as many
//! tests passed as it was to have — so a panic, a hang or a lost line is a failure without being recognized as such.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Result, bail};

use super::plan::{Message, Outcome, Plan, Step, Tests};
use crate::ci::Totals;

/// What has been heard so far.
#[derive(Debug, Default)]
pub struct Report {
    /// The tests of all steps.
    pub totals: Totals,
    /// Why the run is no good.
    faults: Vec<String>,
    current: Totals,
    ended: Vec<String>,
    done: bool,
    /// What the emulator had used when the current step began.
    used: Duration,
    last: VecDeque<String>,
}

/// How many of the guest's lines are told again when something went wrong: what a failed test has to say, mostly.
const LAST_LINES: usize = 120;

impl Report {
    /// Takes one line, heard when the emulator had used that much CPU time; returns what of it a reader wants to see.
    pub fn hear(&mut self, line: &str, used: Duration, plan: &Plan) -> Option<String> {
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
        let Some((rest, message)) = Message::parse(line) else {
            self.current.read(line);
            return Some(line.to_owned());
        };
        let text = match message {
            Message::Booted { release, seconds } => format!("Linux {release}, up after {seconds:.1} s"),
            Message::Begin { step } => {
                self.current = Totals::default();
                self.used = used;
                format!("── {step}")
            }
            Message::End { step, outcome, seconds } => {
                self.end(&step, &outcome, plan);
                let used = used.saturating_sub(self.used).as_secs_f64();
                format!("── {step}: {} in {seconds:.1} s, {used:.1} s of CPU time", words(&outcome))
            }
            Message::Broken { why } => {
                self.faults.push(format!("the guest could not go on: {why}"));
                return None;
            }
            Message::Done => {
                self.done = true;
                return None;
            }
        };
        Some(if rest.is_empty() { text } else { format!("{rest}\n{text}") })
    }

    /// Is it clear already that this is no good run?
    pub fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// What came last, line by line.
    pub fn last_lines(&self) -> String {
        self.last.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// Something else went wrong.
    pub fn fault(&mut self, fault: &str) {
        self.faults.push(fault.to_owned());
    }

    fn end(&mut self, name: &str, outcome: &Outcome, plan: &Plan) {
        self.ended.push(name.to_owned());
        self.totals.add(&self.current);
        if *outcome != Outcome::Exit(0) {
            self.faults.push(format!("{name}: {}", words(outcome)));
        }
        let passed = self.current.passed;
        match plan.steps.iter().find(|step| step.name == name).map(|step| step.tests) {
            None => self.faults.push(format!("{name}: no such step")),
            Some(Tests::Some) if passed == 0 => self.faults.push(format!("{name}: no test has passed")),
            Some(Tests::Exactly(count)) if passed != count => {
                self.faults.push(format!("{name}: {passed} tests have passed, and it has {count}"));
            }
            Some(_) => {}
        }
    }

    /// The machine has ended: was it a good run?
    pub fn judge(mut self, plan: &Plan) -> Result<Totals> {
        // With a fault, nobody has listened to the end.
        if self.faults.is_empty() {
            let missing = |step: &&Step| !self.ended.contains(&step.name);
            let missing: Vec<_> = plan.steps.iter().filter(missing).map(|step| step.name.as_str()).collect();
            if !missing.is_empty() {
                self.faults.push(format!("never ended: {}", missing.join(", ")));
            }
            if !self.done {
                self.faults.push("the guest did not get to its end".to_owned());
            }
        }
        if !self.faults.is_empty() {
            bail!("{}", self.faults.join("; "));
        }
        Ok(self.totals)
    }
}

fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Exit(0) => "good".to_owned(),
        Outcome::Exit(status) => format!("exit status {status}"),
        Outcome::TimedOut => "killed when its time was over".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(tests: Tests) -> Plan {
        let step = Step { name: "a".to_owned(), program: "/a".into(), arguments: Vec::new(), tests, seconds: 1 };
        Plan { programs: Vec::new(), steps: vec![step] }
    }

    fn judged(tests: Tests, lines: &[&str], outcome: Outcome, last: &[Message]) -> Result<Totals> {
        let plan = plan(tests);
        let mut report = Report::default();
        report.hear(&Message::Begin { step: "a".to_owned() }.line(), Duration::ZERO, &plan);
        lines.iter().for_each(|line| drop(report.hear(line, Duration::ZERO, &plan)));
        report.hear(&Message::End { step: "a".to_owned(), outcome, seconds: 1.0 }.line(), Duration::ZERO, &plan);
        last.iter().for_each(|message| drop(report.hear(&message.line(), Duration::ZERO, &plan)));
        report.judge(&plan)
    }

    const PASSED: &str = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
    const DONE: &[Message] = &[Message::Done];

    #[test]
    fn a_run_is_good_when_every_step_was_and_the_guest_got_to_its_end() {
        assert_eq!(judged(Tests::Some, &[PASSED], Outcome::Exit(0), DONE).unwrap().passed, 3);
        assert!(judged(Tests::None, &[], Outcome::Exit(0), DONE).is_ok());
        assert!(judged(Tests::Exactly(3), &[PASSED], Outcome::Exit(0), DONE).is_ok());
    }

    #[test]
    fn a_failed_step_a_hang_and_a_panic_are_failures() {
        let failed = judged(Tests::Some, &[PASSED], Outcome::Exit(101), DONE);
        assert!(failed.unwrap_err().to_string().contains("exit status 101"));
        assert!(judged(Tests::Some, &[PASSED], Outcome::TimedOut, DONE).is_err());
        let silent = judged(Tests::Some, &[PASSED], Outcome::Exit(0), &[]);
        assert!(silent.unwrap_err().to_string().contains("did not get to its end"));
        let broken = [Message::Broken { why: "no module".to_owned() }, Message::Done];
        assert!(judged(Tests::Some, &[PASSED], Outcome::Exit(0), &broken).is_err());
    }

    #[test]
    fn steps_that_ran_no_test_or_not_all_are_failures() {
        assert!(judged(Tests::Some, &[], Outcome::Exit(0), DONE).is_err());
        assert!(judged(Tests::Exactly(4), &[PASSED], Outcome::Exit(0), DONE).is_err());
        let never = Report::default().judge(&plan(Tests::Some)).unwrap_err().to_string();
        assert!(never.contains("never ended: a"), "{never}");
    }
}
