//! WireGuard by netfwd and by others: in user space, all started in the same way, and the kernel's own.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// An implementation, as the name of its program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Program {
    /// Debian's wireguard-go.
    WireguardGo,
    /// The wireguard-go of a newer Debian, which coalesces; `cargo xtask setup` puts it beside the build results.
    WireguardGoGso,
    /// gotatun-cli from crates.io.
    Gotatun,
    /// boringtun-cli from crates.io.
    Boringtun,
    /// `netfwd wg`, the daemon at that path.
    Netfwd(&'static str),
    /// The kernel's own device, which is no program.
    Kernel,
}

impl Program {
    /// Its name in tables and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::WireguardGo => "wireguard-go",
            Self::WireguardGoGso => "wireguard-go-gso",
            Self::Gotatun => "gotatun",
            Self::Boringtun => "boringtun-cli",
            Self::Netfwd(_) => "netfwd wg",
            Self::Kernel => "the kernel",
        }
    }

    /// Where it is.
    pub fn path(self) -> Result<PathBuf> {
        let name = match self {
            Self::Netfwd(path) => return Ok(path.into()),
            other => other.name(),
        };
        let candidates = directories().into_iter().map(|directory| directory.join(name));
        candidates.into_iter().find(|path| path.is_file()).with_context(|| format!("{name} is not installed"))
    }

    /// The arguments that keep it in front with a device of that name.
    pub(super) fn arguments(self, device: &str) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Netfwd(_) => &["wg", "-f", device],
            _ => &["-f", device],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}

/// Where programs are: the path, what `cargo install` made, what set-up put beside the build results, root's path.
fn directories() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let installed = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from).join("bin");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let tools = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(target).join("tools");
    env::split_paths(&path).chain([installed, tools, "/usr/sbin".into()]).collect()
}
