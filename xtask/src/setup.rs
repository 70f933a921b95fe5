//! `cargo xtask setup`: what the build and the tests need and this machine lacks.
//!
//! The eBPF object needs a compiler with a `core` library for BPF. A rustup nightly with `rust-src` can build one; where
//! there is none, Debian's `rustc-web` brings one ready-made. Either way `bpf-linker` is needed, which wants LLVM.
//!
//! Invariants: with everything in place this says nothing and takes no time, since every other task calls it first;
//! before it installs anything it says what and why in one line; without root or apt it changes nothing and says what
//! to do instead. Deliberately absent: rustup. The toolchain that runs this is the one that builds the daemon.

mod peers;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::cargo::{cargo, home, search_path, tools};
pub use peers::{ensure_all_peers, ensure_peers};

/// Debian's compiler with `core` for BPF.
const COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// What `bpf-linker` is built with.
const LLVM: [&str; 4] = ["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev"];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// Programs of the lab and the packages they are in.
const PROGRAMS: [(&str, &str); 5] =
    [("ethtool", "ethtool"), ("ip", "iproute2"), ("tc", "iproute2"), ("ping", "iputils-ping"), ("tcpdump", "tcpdump")];
const LINKER_INSTALL: [&str; 8] =
    ["install", "bpf-linker", "--version", "0.13.0", "--locked", "--no-default-features", "--features", "llvm-22"];
/// Package lists older than this name versions that the mirrors may have dropped.
const LISTS_FRESH: Duration = Duration::from_secs(24 * 3600);

/// Installs what is missing.
pub fn ensure() -> Result<()> {
    let missing = Missing::on_this_machine();
    if missing.nothing() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
        bail!("{}", missing.advice());
    }
    eprintln!("setup: installing {}", missing.summary());
    missing.install()
}

/// Installs those of these programs that are missing; each comes with the package it is in.
pub fn ensure_programs(programs: &[(&'static str, &'static str)], why: &str) -> Result<()> {
    let packages = missing_packages(programs);
    if packages.is_empty() {
        return Ok(());
    }
    let packages = packages.join(" ");
    let command = format!("apt-get install --no-install-recommends {packages}");
    if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
        bail!("this machine lacks {packages} ({why}).\nOn Debian or Ubuntu, as root:\n  {command}");
    }
    eprintln!("setup: installing {packages} ({why})");
    refresh_lists()?;
    let mut install = apt(&["install", "--yes", "--no-install-recommends", "-qq"]);
    quietly(install.args(packages.split(' '))).with_context(|| format!("try: {command}"))
}

/// The packages of programs that are nowhere.
fn missing_packages(programs: &[(&'static str, &'static str)]) -> Vec<&'static str> {
    let missing = programs.iter().filter(|(program, _)| find(program).is_none());
    let mut packages: Vec<_> = missing.map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

/// Everything that is not there.
struct Missing {
    compiler: bool,
    llvm: bool,
    linker: bool,
    programs: Vec<&'static str>,
    promtool: bool,
}

impl Missing {
    fn on_this_machine() -> Self {
        let linker = find("bpf-linker").is_none();
        Self {
            compiler: !has_nightly_with_source() && !has_debian_core(),
            llvm: linker && !Path::new(LLVM_PREFIX).join("bin/llvm-config").exists(),
            linker,
            programs: missing_packages(&PROGRAMS),
            promtool: find("promtool").is_none(),
        }
    }

    fn nothing(&self) -> bool {
        !self.compiler && !self.linker && self.programs.is_empty() && !self.promtool
    }

    fn packages(&self) -> Vec<&'static str> {
        let compiler = if self.compiler { &COMPILER[..] } else { &[] };
        let llvm = if self.llvm { &LLVM[..] } else { &[] };
        [compiler, llvm, &self.programs].concat()
    }

    /// What and why, in one line.
    fn summary(&self) -> String {
        let mut parts = Vec::new();
        if self.compiler {
            parts.push(format!("{} (compiler for the eBPF program)", COMPILER.join(" ")));
        }
        if self.linker {
            let llvm = if self.llvm { format!("{} and ", LLVM.join(" ")) } else { String::new() };
            parts.push(format!("{llvm}bpf-linker 0.13.0 (linker for the eBPF program, built with cargo)"));
        }
        if !self.programs.is_empty() {
            parts.push(format!("{} (network namespaces for lab and tests)", self.programs.join(" ")));
        }
        if self.promtool {
            parts.push("promtool out of the package prometheus (checks the metrics; nothing is started)".to_owned());
        }
        parts.join("; ")
    }

    /// What to type, for those who have to do it themselves.
    fn advice(&self) -> String {
        let mut lines = vec![format!("this machine lacks {}.", self.summary())];
        let mut packages = self.packages();
        if self.promtool {
            packages.push("prometheus");
        }
        if !packages.is_empty() {
            lines.push(format!(
                "On Debian or Ubuntu, as root:\n  apt-get install --no-install-recommends {}",
                packages.join(" ")
            ));
        }
        if self.compiler {
            lines.push(
                "Instead of the packages *-web, with rustup:\n  rustup toolchain install nightly --component rust-src"
                    .to_owned(),
            );
        }
        if self.linker {
            lines.push(format!("Then, as yourself:\n  LLVM_PREFIX={LLVM_PREFIX} cargo {}", LINKER_INSTALL.join(" ")));
        }
        lines.push("Or run this as root on a machine with apt, and it does all that.".to_owned());
        lines.join("\n")
    }

    fn install(&self) -> Result<()> {
        let packages = self.packages();
        if !packages.is_empty() || self.promtool {
            refresh_lists()?;
        }
        if !packages.is_empty() {
            let mut apt = apt(&["install", "--yes", "--no-install-recommends", "-qq"]);
            quietly(apt.args(&packages)).with_context(|| self.advice())?;
        }
        if self.linker {
            quietly(cargo(&LINKER_INSTALL).env("LLVM_PREFIX", LLVM_PREFIX))?;
        }
        if self.promtool {
            fetch_promtool().context("cannot get promtool")?;
        }
        let left = Self::on_this_machine();
        if !left.nothing() {
            bail!("something is still missing: {}", left.summary());
        }
        Ok(())
    }
}

/// A rustup nightly that can build `core` itself. Looked up on disk, since asking rustup takes longer than all the rest.
fn has_nightly_with_source() -> bool {
    let rustup = env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".rustup")));
    let toolchains = rustup.and_then(|home| fs::read_dir(home.join("toolchains")).ok()).into_iter().flatten().flatten();
    toolchains
        .filter(|entry| is_nightly(&entry.file_name().to_string_lossy()))
        .any(|entry| entry.path().join("lib/rustlib/src/rust/library/Cargo.lock").exists())
}

/// The toolchain that `rustup run nightly` means, `nightly-<host>`, and not one of a date.
fn is_nightly(name: &str) -> bool {
    let host = name.strip_prefix("nightly-");
    host.is_some_and(|host| host.starts_with(|character: char| character.is_ascii_alphabetic()))
}

/// Debian's compiler, its cargo and its `core` for BPF.
fn has_debian_core() -> bool {
    let compiler = ["/usr/bin/rustc", "/usr/bin/cargo"].iter().all(|path| Path::new(path).exists());
    let libraries = fs::read_dir("/usr/lib/rustlib/bpfel-unknown-none/lib");
    let is_core = |name: &str| name.starts_with("libcore-") && name.ends_with(".rlib");
    compiler
        && libraries
            .is_ok_and(|mut dir| dir.any(|entry| entry.is_ok_and(|e| is_core(&e.file_name().to_string_lossy()))))
}

/// Where a program is.
pub fn find(program: &str) -> Option<PathBuf> {
    search_path().into_iter().map(|directory| directory.join(program)).find(|candidate| candidate.is_file())
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

/// `apt-get update`, if it was not done lately.
pub fn refresh_lists() -> Result<()> {
    let directory = Path::new("/var/lib/apt/lists");
    let mut entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let any = entries.any(|entry| entry.file_name().to_string_lossy().contains("_Packages"));
    // The lists themselves carry the mirror's time, the directory that of the last update here.
    let updated = fs::metadata(directory).and_then(|data| data.modified()).ok();
    let fresh = updated.is_some_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age < LISTS_FRESH));
    if any && fresh { Ok(()) } else { quietly(&mut apt(&["update", "-qq"])) }
}

/// The package's daemon would be started and come back at every boot, so only the one program is taken out of it.
fn fetch_promtool() -> Result<()> {
    fetch_program("prometheus", "promtool", "promtool", &[])
}

/// Puts one program out of a package among our tools, without installing the package.
fn fetch_program(package: &str, program: &str, name: &str, options: &[String]) -> Result<()> {
    let tools = tools();
    let scratch = tools.join(package);
    download(package, &scratch, options)?;
    fs::rename(scratch.join("usr/bin").join(program), tools.join(name))?;
    fs::remove_dir_all(&scratch)?;
    Ok(())
}

/// Unpacks a package into a directory, without installing it.
pub fn download(package: &str, directory: &Path, options: &[String]) -> Result<()> {
    fs::create_dir_all(directory)?;
    quietly(apt(&["download", "-qq", package]).args(options).current_dir(directory))?;
    let mut files = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
    let file = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let file = file.context("apt-get downloaded nothing")?;
    quietly(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(directory))?;
    fs::remove_file(&file)?;
    Ok(())
}

/// Runs a command and shows what it printed only if it fails.
fn quietly(command: &mut Command) -> Result<()> {
    let line = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {line}"))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        bail!("{line}: {}\n{}", output.status, String::from_utf8_lossy(&text).trim_end());
    }
    Ok(())
}

/// Says which of the toolchain's components are missing; they come with rustup's default profile.
pub fn check_components() -> Result<()> {
    let missing: Vec<_> = ["fmt", "clippy"]
        .into_iter()
        .filter(|component| !cargo(&[component, "--version"]).output().is_ok_and(|output| output.status.success()))
        .map(|component| if component == "fmt" { "rustfmt" } else { component })
        .collect();
    if !missing.is_empty() {
        bail!("the toolchain lacks {0}: rustup component add {0}", missing.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Missing =
        Missing { compiler: false, llvm: false, linker: false, programs: Vec::new(), promtool: false };

    #[test]
    fn a_nightly_of_a_date_is_not_the_nightly() {
        assert!(is_nightly("nightly-x86_64-unknown-linux-gnu"));
        assert!(!is_nightly("nightly-2026-01-01-x86_64-unknown-linux-gnu"));
        assert!(!is_nightly("stable-x86_64-unknown-linux-gnu"));
    }

    #[test]
    fn what_is_missing_is_said_in_one_line() {
        let missing = Missing { compiler: true, llvm: true, linker: true, programs: vec!["ethtool"], promtool: true };
        let summary = missing.summary();
        assert_eq!(summary.lines().count(), 1);
        for word in ["rustc-web", "llvm-22-dev", "bpf-linker", "ethtool", "prometheus"] {
            assert!(summary.contains(word), "{word} is not in: {summary}");
        }
    }

    #[test]
    fn advice_can_be_typed() {
        let advice = Missing { linker: true, llvm: true, ..NOTHING }.advice();
        assert!(advice.contains("apt-get install --no-install-recommends llvm-22-dev"), "{advice}");
        assert!(advice.contains("LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker"), "{advice}");
        assert!(!advice.contains("rust-src"), "{advice}");
    }
}
