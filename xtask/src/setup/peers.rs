//! WireGuard programs of others: what netfwd has to get on with, and what it is compared with.
//!
//! Debian has the tools and wireguard-go, crates.io two more, which take a minute or two to build. So the tests do with the
//! one that builds faster, and only the benchmark asks for all.

use std::fs;

use anyhow::{Context, Result, bail};

use super::{apt, fetch_program, find, missing_packages, quietly, refresh_lists};
use crate::cargo::{cargo, tools};

/// WireGuard's own; `wg-quick` wants `nft` and `sysctl` for default routes.
const WIREGUARD: [(&str, &str); 4] =
    [("wg", "wireguard-tools"), ("wireguard-go", "wireguard-go"), ("nft", "nftables"), ("sysctl", "procps")];
/// WireGuard programs of others: the package, the program and its arguments for cargo. The tests need the first, which
/// builds in less than a minute, the benchmark both.
const PEERS: [Peer; 2] = [
    Peer { program: "boringtun-cli", install: ["install", "boringtun-cli", "--version", "0.7.1", "--locked"] },
    Peer { program: "gotatun", install: ["install", "gotatun-cli", "--version", "0.10.2", "--locked"] },
];
/// The Debian whose wireguard-go coalesces, and the name under which it is kept beside the system's own.
const GSO_SUITE: &str = "trixie";
const GSO_PROGRAM: &str = "wireguard-go-gso";

/// Installs what is missing of the WireGuard programs that the tests talk to.
pub fn ensure_peers() -> Result<()> {
    Peers::missing(&PEERS[..1], false).ensure()
}

/// The same with all those that the benchmark compares netfwd with.
pub fn ensure_all_peers() -> Result<()> {
    Peers::missing(&PEERS, true).ensure()
}

struct Peer {
    program: &'static str,
    install: [&'static str; 5],
}

/// WireGuard programs that are not there.
struct Peers {
    packages: Vec<&'static str>,
    built: Vec<&'static Peer>,
    gso: bool,
}

impl Peers {
    fn missing(built: &'static [Peer], gso: bool) -> Self {
        Self {
            packages: missing_packages(&WIREGUARD),
            built: built.iter().filter(|peer| find(peer.program).is_none()).collect(),
            gso: gso && find(GSO_PROGRAM).is_none(),
        }
    }

    fn nothing(&self) -> bool {
        self.packages.is_empty() && self.built.is_empty() && !self.gso
    }

    /// What and why, in one line.
    fn summary(&self) -> String {
        let mut names = self.packages.clone();
        names.extend(self.built.iter().map(|peer| peer.install[1]));
        names.extend(self.gso.then_some("a newer wireguard-go"));
        format!("{} (WireGuard programs of others, to talk to and to compare with)", names.join(" "))
    }

    fn ensure(&self) -> Result<()> {
        if self.nothing() {
            return Ok(());
        }
        if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
            let builds = self.built.iter().map(|peer| format!("\n  cargo {}", peer.install.join(" ")));
            bail!("this machine lacks {}: install it with apt-get and{}", self.summary(), builds.collect::<String>());
        }
        eprintln!("setup: installing {}", self.summary());
        if !self.packages.is_empty() {
            refresh_lists()?;
            quietly(apt(&["install", "--yes", "--no-install-recommends", "-qq"]).args(&self.packages))?;
        }
        for peer in &self.built {
            quietly(&mut cargo(&peer.install))?;
        }
        if self.gso {
            fetch_wireguard_go().context("cannot get a newer wireguard-go")?;
        }
        Ok(())
    }
}

/// Go programs bring their libraries along, so that of a newer Debian runs on an older one. Its package lists go into a
/// directory of their own: nothing else on the machine is to be upgraded to it.
fn fetch_wireguard_go() -> Result<()> {
    let scratch = tools().join("apt");
    fs::create_dir_all(scratch.join("lists/partial"))?;
    fs::create_dir_all(scratch.join("cache/archives/partial"))?;
    let sources = scratch.join("sources.list");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(&sources, format!("deb [signed-by={keyring}] {} {GSO_SUITE} main\n", mirror()?))?;
    let options = [
        format!("-oDir::Etc::sourcelist={}", sources.display()),
        "-oDir::Etc::sourceparts=/dev/null".to_owned(),
        format!("-oDir::State::lists={}", scratch.join("lists").display()),
        format!("-oDir::Cache={}", scratch.join("cache").display()),
    ];
    quietly(apt(&["update", "-qq"]).args(&options))?;
    fetch_program("wireguard-go", "wireguard-go", GSO_PROGRAM, &options)?;
    Ok(fs::remove_dir_all(&scratch)?)
}

/// The mirror that this machine's own packages come from.
fn mirror() -> Result<String> {
    let policy = apt_output(&["indextargets", "--format", "$(REPO_URI) $(ORIGIN)"])?;
    let debian = |line: &&str| line.ends_with(" Debian") && !line.contains("security");
    let line = policy.lines().find(debian).context("this is not Debian")?;
    Ok(line.trim_end_matches(" Debian").to_owned())
}

fn apt_output(arguments: &[&str]) -> Result<String> {
    Ok(String::from_utf8_lossy(&apt(arguments).output().context("cannot run apt-get")?.stdout).into_owned())
}
