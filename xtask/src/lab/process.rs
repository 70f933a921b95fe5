//! Child processes that do not outlive their owner.
//!
//! Invariant: a [`Process`] is dead and waited for once the value is dropped. Output goes to a file, never to a pipe:
//! a full pipe stops the child, and a test that waits for that child then hangs.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::machine::wait_until;

/// A running child with its output in a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    line: String,
    log: PathBuf,
}

impl Process {
    /// Starts the command; standard output and standard error are appended to `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let line = line_of(command);
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        // A group of its own: Ctrl-C is for us, who then end the child in the ordinary way.
        let child = command.process_group(0).stdout(file.try_clone()?).stderr(file).spawn();
        let child = child.with_context(|| format!("cannot start: {line}"))?;
        Ok(Self { child, line, log: log.to_owned() })
    }

    /// The process id; `ip netns exec` becomes the program, so it is the program's own.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the process has printed so far.
    pub fn output(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Its exit status, if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for: {}", self.line))
    }

    /// Waits for its end; an error with its output when that takes longer than `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let mut status = None;
        wait_until(timeout, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        status.with_context(|| format!("did not end within {timeout:?}: {}\n{}", self.line, self.output()))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).with_context(|| format!("cannot signal: {}", self.line))
    }

    /// Asks it to end with SIGTERM and waits for that.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        self.wait(timeout)
    }

    /// Ends it outright and waits.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("cannot kill: {}", self.line))?;
        self.child.wait().with_context(|| format!("cannot wait for: {}", self.line))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a child that has been waited for already, which is what we want.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs a command to its end and returns what it printed; a failure carries the command line and its error output.
pub fn output(command: &mut Command) -> Result<String> {
    let result = command.output().with_context(|| cannot_run(command))?;
    printed(command, result)
}

/// The same with a text to read, which has to be shorter than a pipe is.
pub fn output_for(command: &mut Command, input: &str) -> Result<String> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().with_context(|| cannot_run(command))?;
    let written = child.stdin.take().context("no input")?.write_all(input.as_bytes());
    let result = child.wait_with_output().with_context(|| cannot_run(command))?;
    // What made it stop reading says more than that it did.
    printed(command, result).and_then(|text| Ok(written.map(|()| text)?))
}

fn cannot_run(command: &Command) -> String {
    format!("cannot run: {} (is it installed? cargo xtask setup)", line_of(command))
}

fn printed(command: &Command, result: Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&result.stdout).into_owned();
    if !result.status.success() {
        let stderr = String::from_utf8_lossy(&result.stderr);
        bail!("{}: {}\n{}{}", line_of(command), result.status, stdout, stderr.trim_end());
    }
    Ok(stdout)
}

/// The command as one would type it.
fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_named_with_its_words() {
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert!(format!("{error:#}").contains("why"));
    }

    #[test]
    fn a_process_ends_with_its_owner() {
        let log = std::env::temp_dir().join(format!("xtask-process-{}", std::process::id()));
        let process = Process::spawn(Command::new("sleep").arg("60"), &log).unwrap();
        let pid = process.id();
        drop(process);
        fs::remove_file(&log).unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
