//! One network namespace, from its making to its removal.
//!
//! Invariant: a namespace made by [`Namespace::create`] is gone once the value is dropped, after a panic too, unless
//! [`Namespace::keep`] was called, with every process in it. Deliberately absent: mount, PID and user namespaces. Only the network is virtual.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::process::{Process, output, output_for};

/// A named network namespace, as `ip netns` knows it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    remove: bool,
}

impl Namespace {
    /// Makes the namespace and brings its loopback device up.
    pub fn create(name: &str) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("network namespaces need root: run this as root (sudo -E cargo xtask …)");
        }
        output(Command::new("ip").args(["netns", "add", name]))?;
        let namespace = Self { name: name.to_owned(), remove: true };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A namespace that exists already, and that stays when this value goes.
    pub fn open(name: &str) -> Result<Self> {
        if !Path::new(&path_of(name)).exists() {
            bail!("there is no network namespace {name}");
        }
        Ok(Self { name: name.to_owned(), remove: false })
    }

    /// The name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves the namespace standing when this value goes.
    pub fn keep(&mut self) {
        self.remove = false;
    }

    /// `ip -n NAME …`; the arguments are split at white space.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        output(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// `ip -n NAME …` for each of these lines, in one process.
    pub fn ip_lines(&self, lines: &[String]) -> Result<()> {
        let text = lines.join("\n") + "\n";
        output_for(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), &text)
            .map(drop)
            .with_context(|| format!("in {}:\n{text}", self.name))
    }

    /// `tc -n NAME …`; the arguments are split at white space.
    pub fn tc(&self, arguments: &str) -> Result<String> {
        output(Command::new("tc").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// Runs a command line in the namespace to its end and returns what it printed; the line is split at white space. In
    /// /sys it sees the caller's namespace.
    pub fn exec(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        // `ip netns exec` would be one more program, and mount /sys.
        self.run(|| output(Command::new(program).args(words)))?.with_context(|| format!("in {}", self.name))
    }

    /// A command that will run in the namespace, with a /sys to go with it and standard input closed.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program).stdin(Stdio::null());
        command
    }

    /// Starts a command made by [`Namespace::command`] with its output going to the file `log`.
    pub fn spawn(&self, command: &mut Command, log: &Path) -> Result<Process> {
        Process::spawn(command, log)
    }

    /// Sets a `net.*` parameter, written with dots or slashes.
    pub fn sysctl(&self, key: &str, value: impl ToString) -> Result<()> {
        // Interface names may hold dots, so slashes are left alone when there are any.
        let path = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
        let (path, value) = (format!("/proc/sys/{path}"), value.to_string());
        self.run(|| fs::write(&path, &value))?
            .with_context(|| format!("cannot write {value} to {path} in {}", self.name))
    }

    /// A file of `/proc/net`, such as `dev` or `snmp`, as it is in this namespace.
    pub fn proc_net(&self, file: &str) -> Result<String> {
        // `/proc/net` itself is the first thread's.
        let path = format!("/proc/thread-self/net/{file}");
        self.run(|| fs::read_to_string(&path))?.with_context(|| format!("cannot read {path} in {}", self.name))
    }

    /// Frames that a device has received.
    pub fn arrived(&self, device: &str) -> Result<u64> {
        self.device_counter(device, 1)
    }

    /// Frames that a device was to send and has dropped.
    pub fn unsent(&self, device: &str) -> Result<u64> {
        self.device_counter(device, 11)
    }

    /// Eight numbers about receiving: bytes, packets, errors, drops and four more; then as many about sending
    /// (net/core/net-procfs.c).
    fn device_counter(&self, device: &str, column: usize) -> Result<u64> {
        let text = self.proc_net("dev")?;
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'));
        let counter = line.and_then(|counters| counters.split_whitespace().nth(column)?.parse().ok());
        counter.with_context(|| format!("no counters of {device} in:\n{text}"))
    }

    /// One of the counters in `/sys/class/net/<device>/statistics`.
    pub fn statistic(&self, device: &str, counter: &str) -> Result<u64> {
        // /sys shows the namespace it was mounted in, so `ip netns exec` has to mount it afresh.
        let text = output(self.command("cat").arg(format!("/sys/class/net/{device}/statistics/{counter}")))?;
        text.trim().parse().with_context(|| format!("{device}: odd counter {counter}: {text}"))
    }

    /// Has one CPU process everything that a device receives (RPS), whichever it came to.
    ///
    /// Queues between a device and a socket are per CPU (the backlog of a device without NAPI, a tunnel device's
    /// `gro_cells`), so where a CPU stops for a while, as an emulator's do, what was sent later overtakes on another.
    pub fn receive_on_one_cpu(&self, device: &str) -> Result<()> {
        let script =
            format!("for mask in /sys/class/net/{device}/queues/rx-*/rps_cpus; do echo 1 > $mask || exit; done");
        output(self.command("sh").args(["-c", &script])).map(drop)
    }

    /// The processes whose first thread is in the namespace.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        processes_in(&self.name)
    }

    /// Runs a closure on a fresh thread inside the namespace and waits for it. Sockets it opens stay in the namespace.
    pub fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| enter(&self.name).map(|()| task()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread inside the namespace.
    pub fn thread<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let name = self.name.clone();
        thread::spawn(move || enter(&name).and_then(|()| task()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.remove
            && let Err(error) = remove(&self.name)
        {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Removes a namespace and ends what runs in it, such as a daemon that a failed test has left: a namespace lives on
/// without its name while a process is in it.
pub(super) fn remove(name: &str) -> Result<()> {
    for pid in processes_in(name)? {
        // It may have ended in the meantime.
        kill_process(pid, Signal::TERM).ok();
    }
    output(Command::new("ip").args(["netns", "delete", name])).map(drop)
}

fn processes_in(name: &str) -> Result<Vec<Pid>> {
    let pids = output(Command::new("ip").args(["netns", "pids", name]))?;
    Ok(pids.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)).collect())
}

/// Where `ip netns` keeps the handle of a namespace.
fn path_of(name: &str) -> String {
    format!("/run/netns/{name}")
}

/// Moves the calling thread for good, hence only ever a fresh one.
fn enter(name: &str) -> Result<()> {
    let path = path_of(name);
    let handle = fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&handle), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter the network namespace {name}"))
}
