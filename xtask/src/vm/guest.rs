//! The guest's init: mounts, loads modules, runs the plan's steps, says how each ended, and switches the machine off.
//!
//! Invariants: each step has a bound, and no process of one step lives on in the next; the last word is `Done` or
//! `Broken`, and then the machine ends, whatever happened. It talks on a serial port of its own, since the kernel's
//! messages would cut through its lines on the first. Deliberately absent: everything an ordinary init does.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait};
use xtask::lab::output;

use super::image::SEARCH_PATH;
use super::plan::{MODULES_FILE, Message, Outcome, PLAN_FILE, Plan, Step};

/// The serial port that the host reads.
const PORT: &str = "/dev/ttyS1";
/// How many times slower than a machine of its own the end-to-end tests may take this one to be, on a quiet host.
const SLOWNESS: f64 = 8.0;
/// Seconds in which the kernel is up there.
const QUIET_BOOT: f64 = 5.0;
/// A host may be more loaded than that, but what is measured once is not to stretch everything without bounds.
const MOST_SLOWNESS: f64 = 32.0;
/// How often init looks whether a step has ended; each look costs the emulator.
const STEP_POLL: Duration = Duration::from_millis(100);
const MOUNTS: [[&str; 3]; 4] =
    [["devtmpfs", "dev", "/dev"], ["proc", "proc", "/proc"], ["sysfs", "sys", "/sys"], ["tmpfs", "run", "/run"]];

/// Does everything and switches off.
pub fn run() -> Result<()> {
    if !rustix::process::getpid().is_init() {
        bail!("this is the init of a virtual machine, and here is another init");
    }
    let result = carry_out();
    if let Err(error) = &result {
        eprintln!("guest: {error:#}");
    }
    // The host has told the emulator to end where a machine would start again; that needs no power management.
    busybox(&["reboot", "-f"])
}

fn carry_out() -> Result<()> {
    for [kind, source, target] in MOUNTS {
        busybox(&["mount", "-t", kind, source, target])?;
    }
    let mut port = File::options().write(true).open(PORT).with_context(|| format!("cannot open {PORT}"))?;
    let result = run_plan(&mut port);
    let last = match result {
        Ok(()) => Message::Done,
        Err(error) => Message::Broken { why: format!("{error:#}") },
    };
    // Closing the port waits until its buffer is empty.
    say(&mut port, &last)
}

fn busybox(words: &[&str]) -> Result<()> {
    // Not /dev/null as input: the first mount is what brings that.
    output(Command::new("/bin/busybox").args(words).stdin(Stdio::inherit())).map(drop)
}

fn run_plan(port: &mut File) -> Result<()> {
    let plan: Plan = serde_json::from_slice(&fs::read(PLAN_FILE)?).context("no plan")?;
    for module in fs::read_to_string(MODULES_FILE)?.lines() {
        busybox(&["insmod", module])?;
    }
    output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let seconds = uptime()?;
    say(port, &Message::Booted { release, seconds })?;
    let slowness = slowness(seconds);
    for step in &plan.steps {
        say(port, &Message::Begin { step: step.name.clone() })?;
        let start = Instant::now();
        let outcome = perform(step, slowness, port)?;
        clean_up()?;
        let seconds = start.elapsed().as_secs_f64();
        say(port, &Message::End { step: step.name.clone(), outcome, seconds })?;
    }
    Ok(())
}

fn say(port: &mut File, message: &Message) -> Result<()> {
    writeln!(port, "{}", message.line()).with_context(|| format!("cannot write to {PORT}"))
}

/// Seconds since the kernel started.
fn uptime() -> Result<f64> {
    let text = fs::read_to_string("/proc/uptime")?;
    text.split_whitespace().next().and_then(|seconds| seconds.parse().ok()).context("odd /proc/uptime")
}

/// A host that has other work lets its emulators run now and then; how long the boot took tells how seldom.
fn slowness(boot_seconds: f64) -> f64 {
    (SLOWNESS * boot_seconds / QUIET_BOOT).clamp(SLOWNESS, MOST_SLOWNESS)
}

/// Runs one program with its output on the port.
fn perform(step: &Step, slowness: f64, port: &File) -> Result<Outcome> {
    let mut command = Command::new(&step.program);
    command.args(&step.arguments).stdout(port.try_clone()?).stderr(port.try_clone()?).process_group(0);
    command.env_clear().env("PATH", SEARCH_PATH).env("HOME", "/root").current_dir("/root");
    command.env("NETFWD_SLOWNESS", slowness.to_string());
    let child = command.spawn().with_context(|| format!("cannot start {}", step.program.display()))?;
    let pid = Pid::from_child(&child);
    let deadline = Instant::now() + Duration::from_secs(step.seconds);
    while Instant::now() < deadline {
        if let Some(status) = reap(pid)? {
            return Ok(Outcome::Exit(status));
        }
        thread::sleep(STEP_POLL);
    }
    kill_process_group(pid, Signal::KILL).ok();
    Ok(Outcome::TimedOut)
}

/// Takes leave of one process that has ended, if there is one: orphans come to init. The status if it was `pid`.
fn reap(pid: Pid) -> Result<Option<i32>> {
    match wait(WaitOptions::NOHANG) {
        Ok(Some((ended, status))) if ended == pid => Ok(Some(exit_status(status))),
        Ok(_) | Err(rustix::io::Errno::CHILD) => Ok(None),
        Err(error) => Err(error).context("cannot wait"),
    }
}

fn exit_status(status: WaitStatus) -> i32 {
    let status = ExitStatus::from_raw(status.as_raw());
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Ends what a step has left running and removes its namespaces.
fn clean_up() -> Result<()> {
    // "Process group 1" is what kill(2) calls everybody but the caller and init, which are the same here.
    kill_process_group(Pid::INIT, Signal::KILL).ok();
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    output(Command::new("ip").args(["-all", "netns", "delete"])).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_boot_stretches_what_the_tests_wait_for_within_bounds() {
        assert_eq!([1.0, 5.0, 10.0, 1000.0].map(slowness), [8.0, 8.0, 16.0, 32.0]);
    }
}
