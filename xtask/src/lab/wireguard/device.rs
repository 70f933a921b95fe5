//! One WireGuard device: a program in the foreground in a namespace, spoken to with `wg`.
//!
//! Invariant: program, link and UAPI socket are gone once the value is dropped. The sockets are in one directory for all
//! network namespaces, so a device's name has to be unlike any other on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
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
    process: Process,
    program: Program,
    namespace: String,
    name: String,
}

impl Device {
    /// Starts a program with a device of that name, nothing configured yet; its log goes to that directory.
    pub fn start(program: Program, namespace: &Namespace, name: &str, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        fs::remove_file(&log).ok();
        let mut command = namespace.command(program.path()?);
        // Root stays root: there is nobody to drop privileges to.
        command.args(program.arguments(name)).env("WG_SUDO", "true");
        let process = namespace.spawn(&mut command, &log)?;
        let (namespace, name) = (namespace.name().to_owned(), name.to_owned());
        let mut device = Self { process, program, namespace, name };
        device.wait_until_ready()?;
        Ok(device)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let mut ready = false;
        wait_until(START_TIMEOUT, || {
            ready = socket(&self.name).exists() && self.show("").is_ok();
            ready || self.process.try_wait().is_ok_and(|status| status.is_some()) || interrupt::requested()
        });
        if !ready {
            bail!("{} has no device {}:\n{}", self.program.name(), self.name, self.log());
        }
        Ok(())
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What runs it.
    pub fn program(&self) -> Program {
        self.program
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.process.output()
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
        if self.process.terminate(STOP_TIMEOUT).is_err() {
            self.process.signal(Signal::KILL).ok();
            self.process.wait(STOP_TIMEOUT).ok();
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

/// The UAPI socket of a device.
pub(super) fn socket(name: &str) -> PathBuf {
    Path::new(SOCKETS).join(format!("{name}.sock"))
}
