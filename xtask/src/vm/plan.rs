//! What the guest is to do, and what it says while it does: the only things that host and guest share.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// This program in the guest, which is its init.
pub const GUEST_PROGRAM: &str = "/bin/xtask";
/// Where the guest finds its plan.
pub const PLAN_FILE: &str = "/plan.json";
/// Where the guest finds the paths of its modules, in loading order.
pub const MODULES_FILE: &str = "/modules";
/// What a line of a [`Message`] begins with; every other line is output of a step.
const MARK: &str = "@vm ";

/// Everything the guest does before it ends.
#[derive(Debug, Deserialize, Serialize)]
pub struct Plan {
    /// Programs that the image has to hold, under their own paths.
    pub programs: Vec<PathBuf>,
    /// What is run, one after the other.
    pub steps: Vec<Step>,
}

/// One program that the guest runs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Step {
    /// What it is called in reports.
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// How many tests have to pass: exactly so many, or, when `None`, at least one. Without this, a test that was renamed
    /// would be left out in silence.
    pub tests: Tests,
    /// How long it may take.
    pub seconds: u64,
}

/// What a step's output has to say.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub enum Tests {
    /// It is no test program: its exit status is all.
    None,
    /// At least one test has passed.
    Some,
    /// Exactly so many tests have passed.
    Exactly(u64),
}

/// How a step ended.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Outcome {
    /// With this exit status; signals count as 128 and their number, as in a shell.
    Exit(i32),
    /// It was killed when its time was over.
    TimedOut,
}

/// What the guest tells the host.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Message {
    /// Everything is set up; the kernel is this one.
    Booted { release: String, seconds: f64 },
    /// A step begins.
    Begin { step: String },
    /// A step has ended.
    End { step: String, outcome: Outcome, seconds: f64 },
    /// The guest itself could not go on.
    Broken { why: String },
    /// The last step has ended. Without this message, whatever came before, a run has failed.
    Done,
}

impl Message {
    /// As one line.
    pub fn line(&self) -> String {
        format!("{MARK}{}", serde_json::to_string(self).unwrap_or_default())
    }

    /// Out of a line; `None` if that is output of a step.
    ///
    /// A program that ended within a line leaves its rest in front of the mark.
    pub fn parse(line: &str) -> Option<(&str, Self)> {
        let start = line.find(MARK)?;
        let message = serde_json::from_str(&line[start + MARK.len()..]).ok()?;
        Some((&line[..start], message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_from_output() {
        let message = Message::End { step: "a".to_owned(), outcome: Outcome::Exit(1), seconds: 1.5 };
        assert_eq!(Message::parse(&message.line()), Some(("", message.clone())));
        assert_eq!(Message::parse(&format!("half a line{}", message.line())), Some(("half a line", message)));
        assert_eq!(Message::parse("test a_law ... ok"), None);
        assert_eq!(Message::parse("@vm of something else"), None);
    }
}
