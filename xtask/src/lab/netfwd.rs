//! netfwd in a lab's gateway: its configuration, its process, its metrics.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::metrics::Metrics;
use super::process::Process;
use super::tunnel::Tunnel;
use super::{Lab, Namespace, Options, UNDERLAY};
use crate::interrupt;
use crate::machine::{slowness, wait_until};

/// Where the daemon's metrics are, inside the gateway's namespace.
pub const METRICS_ADDRESS: &str = "127.0.0.1:9477";

/// The daemon's line about TUN devices without UDP segmentation offload.
pub const WITHOUT_USO: &str = "the kernel has no UDP segmentation offload for TUN";

/// How long the daemon may take to be ready; generous, for a debug build on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// The daemon promises to end within two seconds of SIGTERM; the rest is for a busy machine.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// netfwd's configuration for a lab, to be changed line by line.
#[derive(Clone, Debug)]
pub struct Config {
    underlay: Vec<String>,
    gro: Vec<String>,
    tunnels: Vec<String>,
    extra: String,
}

impl Config {
    /// The configuration that fits the lab's peer, everything else at its default.
    pub fn of(lab: &Lab) -> Self {
        let Options { tunnels, underlay_mtu, .. } = lab.options();
        let text = |tunnel: &Tunnel| match lab.far_end(&tunnel.name) {
            Ok(wireguard) => wireguard.keys.netfwd_config(tunnel),
            Err(_) => tunnel.config(*underlay_mtu),
        };
        Self {
            underlay: Vec::new(),
            gro: Vec::new(),
            tunnels: tunnels.iter().map(text).collect(),
            extra: String::new(),
        }
    }

    /// `[[underlay]] xdp = "…"`.
    pub fn xdp(self, mode: &str) -> Self {
        self.underlay_line(&format!("xdp = \"{mode}\""))
    }

    /// `[gro]` on or off for both protocols.
    pub fn gro(mut self, on: bool) -> Self {
        self.gro.push(format!("tcp = {on}\nudp = {on}"));
        self
    }

    /// One more line for `[[underlay]]`.
    pub fn underlay_line(mut self, line: &str) -> Self {
        self.underlay.push(line.to_owned());
        self
    }

    /// One more line for `[gro]`.
    pub fn gro_line(mut self, line: &str) -> Self {
        self.gro.push(line.to_owned());
        self
    }

    /// Text for the end of the file.
    pub fn extra(mut self, text: &str) -> Self {
        self.extra.push_str(text);
        self.extra.push('\n');
        self
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let section = |lines: &[String]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        format!(
            "[metrics]\nlisten = \"{METRICS_ADDRESS}\"\n\n[[underlay]]\ninterface = \"{UNDERLAY}\"\n{}\n[gro]\n{}\n{}\n{}",
            section(&self.underlay),
            section(&self.gro),
            self.tunnels.join("\n"),
            self.extra,
        )
    }
}

/// A running daemon, killed when this value goes.
#[derive(Debug)]
pub struct Netfwd {
    process: Process,
    gateway: String,
    config: PathBuf,
}

impl Netfwd {
    /// Starts that binary in the lab's gateway and waits until it says that it is ready.
    pub fn start(lab: &Lab, binary: &Path, config: &Config) -> Result<Self> {
        Self::start_with(lab, binary, &config.text(), &[])
    }

    /// The same with the configuration as text, and environment variables.
    pub fn start_with(lab: &Lab, binary: &Path, config: &str, environment: &[(&str, &str)]) -> Result<Self> {
        let path = lab.directory().join("netfwd.toml");
        fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
        let log = lab.directory().join("netfwd.log");
        fs::remove_file(&log).ok();
        let mut command = lab.gateway.command(binary);
        command.arg("run").arg("--config").arg(&path).envs(environment.iter().copied());
        let process = lab.gateway.spawn(&mut command, &log)?;
        let mut netfwd = Self { process, gateway: lab.gateway.name().to_owned(), config: path };
        netfwd.wait_until_ready()?;
        lab.forget_neighbours()?;
        Ok(netfwd)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let mut ready = false;
        wait_until(START_TIMEOUT, || {
            ready = self.get("/healthz").is_ok();
            ready || !self.is_running() || interrupt::requested()
        });
        if let Some(status) = self.process.try_wait()? {
            bail!("netfwd ended at once ({status}):\n{}", self.log());
        }
        if !ready {
            bail!("netfwd was not ready within {START_TIMEOUT:?}:\n{}", self.log());
        }
        Ok(())
    }

    /// The daemon's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The configuration file it was started with.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Did it find a kernel that takes no UDP superframes, so that only TCP is coalesced?
    pub fn lacks_uso(&self) -> bool {
        self.log().contains(WITHOUT_USO)
    }

    /// Has it not ended yet?
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// The body of a GET from its metrics server; an error for any status but 200.
    pub fn get(&self, path: &str) -> Result<String> {
        Namespace::open(&self.gateway)?.run(|| http_get(METRICS_ADDRESS, path))?
    }

    /// Scrapes its metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        self.get("/metrics").map(|text| Metrics::parse(&text))
    }

    /// Asks it to end with SIGTERM and waits, a few seconds at most.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.terminate(STOP_TIMEOUT)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Ends it outright, as `kill -9` does.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process.kill()
    }
}

/// As much of HTTP as it takes to scrape.
fn http_get(address: &str, path: &str) -> Result<String> {
    let address: SocketAddr = address.parse()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1).mul_f64(slowness()))?;
    stream.set_read_timeout(Some(Duration::from_secs(5).mul_f64(slowness())))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        bail!("GET {path}: {status} {}", body.trim());
    }
    Ok(body.to_owned())
}
