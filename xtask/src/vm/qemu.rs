//! The emulator: a machine of two CPUs in software, which take turns, bounded in time, that ends with its guest.
//!
//! No hardware virtualization, since the machines this runs on are virtual themselves. Invariants: the emulator is dead
//! when [`Machine`] goes, and when this program is killed; nothing waits longer than the bound, or for a guest that has
//! said nothing for too long. Deliberately absent: disks, network cards, a display.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xtask::machine::process_cpu_time;

use super::kernel::Kernel;
use super::plan::GUEST_PROGRAM;

/// The CPUs take turns in one thread. With a thread each, a CPU now and then executes a breakpoint of the kernel's code
/// patching (`text_poke_bp`, static keys) after the other has taken it away, which the kernel takes for an oops.
const ACCELERATOR: &str = "tcg,thread=single";
/// A machine with five-level page tables makes 6.12 panic under emulation.
const CPU: &str = "max,la57=off";

/// Enough for the archive twice, the workers' buffers and two kernels' worth of sockets.
const MEMORY: &str = "2048";

/// How often somebody who waits for a line looks whether to go on.
const GLANCE: Duration = Duration::from_millis(200);
/// A panic ends the machine at once, and what only costs time under emulation is off.
const PARAMETERS: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic \
    nokaslr mitigations=off init_on_alloc=0 apparmor=0 audit=0";

/// A running machine.
pub struct Machine {
    child: Child,
    lines: Receiver<String>,
    deadline: Instant,
    silence: Duration,
    console: PathBuf,
}

/// How long a machine may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From its boot to its end.
    pub whole: Duration,
    /// From one line to the next.
    pub silence: Duration,
}

/// What came next.
pub enum Event {
    /// A line from the guest.
    Line(String),
    /// The machine has ended.
    Ended,
    /// Its time is over.
    TimedOut,
    /// Nobody wants to know any more.
    Stopped,
}

impl Machine {
    /// Starts the kernel with that file system; its console goes to a file in `directory`.
    pub fn boot(kernel: &Kernel, image: &Path, directory: &Path, bounds: Bounds) -> Result<Self> {
        let console = directory.join("console.log");
        // It goes with the thread that has started it, also where no destructor runs.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        let line = format!("{PARAMETERS} rdinit={GUEST_PROGRAM} -- vm-guest");
        command
            .args(["-machine", "pc", "-accel", ACCELERATOR, "-cpu", CPU, "-smp", "2", "-m", MEMORY])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"])
            .args(["-append", &line])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(image);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.context("cannot start qemu-system-x86_64")?;
        let lines = read_lines(child.stdout.take().context("no output")?);
        Ok(Self { child, lines, deadline: Instant::now() + bounds.whole, silence: bounds.silence, console })
    }

    /// Waits for what comes next, until `stop` is set.
    pub fn next(&self, stop: &AtomicBool) -> Event {
        let deadline = self.deadline.min(Instant::now() + self.silence);
        loop {
            match self.lines.recv_timeout(GLANCE) {
                Ok(line) => return Event::Line(line),
                Err(RecvTimeoutError::Disconnected) => return Event::Ended,
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => return Event::TimedOut,
                Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => return Event::Stopped,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// What the emulator has used so far; nothing when it has ended.
    pub fn cpu_time(&self) -> Duration {
        process_cpu_time(self.child.id()).unwrap_or_default()
    }

    /// The kernel's last words.
    pub fn console(&self, lines: usize) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A pipe cannot be read with a deadline, a channel can.
fn read_lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
