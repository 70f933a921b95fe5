//! One WireGuard device: a program in the foreground in a namespace, or the kernel's own, spoken to with `wg`.
//!
//! Invariant: program, link and UAPI socket are gone once the value is dropped. The sockets are in one directory for all
//! network namespaces, so a device's name has to be unlike any other on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::program::Program;
use crate::interrupt;
use crate::lab::Namespace;
use crate::lab::process::Process;
use crate::machine::wait_until;

/// Where the UAPI sockets are.
const SOCKETS: &str = "/var/run/wireguard";
/// How long device and socket may take to appear.
const START_TIMEOUT: Duration = Duration::from_secs(15);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A running device.
#[derive(Debug)]
pub struct Device {
    /// None for the kernel's own device.
    process: Option<Process>,
    program: Program,
    namespace: String,
    name: String,
}

impl Device {
    /// Starts a program with a device of that name, nothing configured yet; its log goes to that directory.
    pub fn start(program: Program, namespace: &Namespace, name: &str, directory: &Path) -> Result<Self> {
        let process = if program == Program::Kernel {
            namespace.ip(&format!("link add {name} type wireguard")).context(
                "the kernel has no WireGuard of its own; `cargo xtask vm test` boots one that has, in an emulated machine",
            )?;
            None
        } else {
            Some(spawn(program, namespace, name, directory)?)
        };
        let (namespace, name) = (namespace.name().to_owned(), name.to_owned());
        let mut device = Self { process, program, namespace, name };
        device.wait_until_ready()?;
        Ok(device)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let mut ready = false;
        wait_until(START_TIMEOUT, || {
            // The kernel is spoken to without a socket.
            ready = (self.process.is_none() || self.is_listening()) && self.show("").is_ok();
            let ended = |process: &mut Process| process.try_wait().is_ok_and(|status| status.is_some());
            ready || self.process.as_mut().is_none_or(ended) || interrupt::requested()
        });
        if !ready {
            bail!("{} has no device {}:\n{}", self.program.name(), self.name, self.log());
        }
        Ok(())
    }

    fn is_listening(&self) -> bool {
        Namespace::open(&self.namespace).is_ok_and(|namespace| is_listening(&namespace, &self.name))
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What runs it.
    pub fn program(&self) -> Program {
        self.program
    }

    /// The process id, unless it is the kernel's own.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }

    /// `wg show NAME …`.
    pub fn show(&self, what: &str) -> Result<String> {
        self.wg(&format!("show {} {what}", self.name))
    }

    /// `wg set NAME …`.
    pub fn set(&self, what: &str) -> Result<()> {
        self.wg(&format!("set {} {what}", self.name)).map(drop)
    }

    /// `wg setconf NAME FILE`.
    pub fn set_config(&self, file: &Path) -> Result<()> {
        self.wg(&format!("setconf {} {}", self.name, file.display())).map(drop)
    }

    /// `wg …`, split at white space.
    pub fn wg(&self, arguments: &str) -> Result<String> {
        Namespace::open(&self.namespace)?.exec(&format!("wg {arguments}"))
    }

    /// Ends it with SIGTERM; outright if it does not.
    pub fn stop(&mut self) {
        let Some(process) = &mut self.process else {
            // Gone already, or gone with its namespace.
            Namespace::open(&self.namespace).and_then(|space| space.ip(&format!("link delete {}", self.name))).ok();
            return;
        };
        if process.terminate(STOP_TIMEOUT).is_err() {
            process.signal(Signal::KILL).ok();
            process.wait(STOP_TIMEOUT).ok();
        }
        // Not all of them clean up.
        fs::remove_file(socket(&self.name)).ok();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of {} with {}:\n{}", self.program.name(), self.name, self.log());
        }
        self.stop();
    }
}

fn spawn(program: Program, namespace: &Namespace, name: &str, directory: &Path) -> Result<Process> {
    let log = directory.join(format!("{name}.log"));
    fs::remove_file(&log).ok();
    let mut command = namespace.command(program.path()?);
    // Root stays root: there is nobody to drop privileges to.
    command.args(program.arguments(name)).env("WG_SUDO", "true");
    namespace.spawn(&mut command, &log)
}

/// Whether somebody in that namespace listens on a device's UAPI socket. `wg` is not to be asked before: to it, a socket that is
/// bound and does not listen yet, as those of others are for a moment, is one that somebody has left, and it removes it.
/// What the kernel shows is where a socket was bound: netfwd's lies in a directory of its own until it listens.
pub fn is_listening(namespace: &Namespace, name: &str) -> bool {
    let path = format!("/{name}.sock");
    if !socket(name).exists() {
        return false;
    }
    let text = namespace.proc_net("unix").unwrap_or_default();
    // The fourth column is flags, of which `__SO_ACCEPTCON` is one (net/unix/af_unix.c).
    text.lines().any(|line| line.ends_with(&path) && line.split_whitespace().nth(3) == Some("00010000"))
}

/// The UAPI socket of a device.
pub(super) fn socket(name: &str) -> PathBuf {
    Path::new(SOCKETS).join(format!("{name}.sock"))
}
