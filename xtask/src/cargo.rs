//! Calling cargo, and where its results are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The top of the workspace.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    let directory = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    workspace().join(directory)
}

/// Tools that set-up put beside the build results, because the system's packages bring too much with them.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// Where programs are looked for: the path, our tools, what `cargo install` made, what only root's path may hold.
pub fn search_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".cargo")));
    let more = [Some(tools()), installed.map(|home| home.join("bin")), Some("/usr/sbin".into())];
    env::split_paths(&path).chain(more.into_iter().flatten()).collect()
}

/// The user's directory.
pub fn home() -> Option<PathBuf> {
    env::var_os("HOME").map(PathBuf::from)
}

/// A cargo command in the workspace, with [`search_path`] as its path.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace());
    if let Ok(path) = env::join_paths(search_path()) {
        command.env("PATH", path);
    }
    command
}

/// Runs a command with its output on the terminal; an error if it fails.
pub fn succeed(command: &mut Command) -> Result<()> {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let line = format!("{} {}", command.get_program().to_string_lossy(), words.join(" "));
    let status = command.status().with_context(|| format!("cannot run: {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// Builds the daemon as it ships and returns its path.
pub fn build_netfwd() -> Result<PathBuf> {
    succeed(&mut cargo(&["build", "--release", "--package", "netfwd", "--bin", "netfwd"]))?;
    Ok(target().join("release/netfwd"))
}
