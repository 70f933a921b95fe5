//! WireGuard programs of others: what netfwd has to get on with, and what it is compared with.
//!
//! Debian has the tools and wireguard-go, crates.io two more, which take a minute or two to build. So the tests do with the
//! one that builds faster, and only the benchmark asks for all.

use std::fs;

use anyhow::{Context, Result};

use super::{apt, ensure_programs, fetch_program, find, quietly};
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
    ensure_programs(&WIREGUARD, "WireGuard by others, for netfwd to talk to")?;
    PEERS[..1].iter().try_for_each(Peer::ensure)
}

/// The same with all those that the benchmark compares netfwd with.
pub fn ensure_all_peers() -> Result<()> {
    ensure_programs(&WIREGUARD, "WireGuard by others, for netfwd to talk to")?;
    PEERS.iter().try_for_each(Peer::ensure)?;
    if find(GSO_PROGRAM).is_none() {
        eprintln!("setup: fetching a wireguard-go that coalesces (to compare netfwd with; it is not installed)");
        fetch_wireguard_go().context("cannot get a newer wireguard-go")?;
    }
    Ok(())
}

/// A program that cargo builds.
struct Peer {
    program: &'static str,
    install: [&'static str; 5],
}

impl Peer {
    fn ensure(&self) -> Result<()> {
        if find(self.program).is_none() {
            eprintln!("setup: cargo {} (WireGuard by others, for netfwd to talk to)", self.install.join(" "));
            quietly(&mut cargo(&self.install))?;
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
