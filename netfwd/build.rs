//! Builds the eBPF objects that `netfwd::ebpf` embeds.
//!
//! The BPF target needs a `core` of its own, and there are two ways to one: a rustup nightly with rust-src compiles it, and
//! Debian packages it ready-made (`libstd-rust-web-dev-bpf`) for Debian's own rustc. Whichever is installed is used,
//! nightly first. Cargo's environment describes the build of the host, so nothing of it may leak into this one.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TARGET: &str = "bpfel-unknown-none";
/// Binaries of the eBPF crate, and the variables that tell the crate's targets where they are.
const OBJECTS: [(&str, &str); 3] = [
    ("netfwd", "NETFWD_EBPF_OBJECT_PATH"),
    ("steering", "NETFWD_EBPF_STEERING_PATH"),
    ("bench", "NETFWD_EBPF_BENCH_PATH"),
];
/// The first of them, built elsewhere.
const OVERRIDE: &str = "NETFWD_EBPF_OBJECT";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let netfwd = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?);
    let workspace = netfwd.parent().ok_or("the package lies in a workspace")?;
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    if let Some(path) = env::var_os(OVERRIDE) {
        return use_objects(Path::new(&path), &out);
    }
    let source = workspace.join("netfwd-ebpf");
    for part in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", source.join(part).display());
    }
    println!("cargo::rerun-if-changed={}", workspace.join("netfwd-common/src").display());
    let target_dir = out.join("ebpf");
    build(&Toolchain::find()?, &source, &target_dir)?;
    for (binary, variable) in OBJECTS {
        println!("cargo::rustc-env={variable}={}", target_dir.join(TARGET).join("release").join(binary).display());
    }
    Ok(())
}

/// Takes objects as they are: the one given, and beside it `steering`, which must be there, and `bench`, which need not.
fn use_objects(path: &Path, out: &Path) -> Result<(), String> {
    let netfwd = given(path)?;
    let steering = given(&netfwd.with_file_name("steering"))?;
    let mut bench = netfwd.with_file_name("bench");
    if !bench.exists() {
        bench = out.join("no-bench-object");
        fs::write(&bench, []).map_err(|error| format!("{}: {error}", bench.display()))?;
    }
    for ((_, variable), path) in OBJECTS.iter().zip([netfwd, steering, bench]) {
        println!("cargo::rustc-env={variable}={}", path.display());
    }
    Ok(())
}

fn given(path: &Path) -> Result<PathBuf, String> {
    println!("cargo::rerun-if-changed={}", path.display());
    path.canonicalize().map_err(|error| format!("{OVERRIDE}: {}: {error}", path.display()))
}

/// What can compile for the BPF target.
enum Toolchain {
    /// A rustup nightly with rust-src.
    Nightly,
    /// Debian's rustc and cargo with the prebuilt `core`.
    Debian,
}

impl Toolchain {
    fn find() -> Result<Self, String> {
        if nightly_has_source() {
            Ok(Self::Nightly)
        } else if debian_has_core() {
            Ok(Self::Debian)
        } else {
            Err("The eBPF program cannot be built: neither a rustup nightly with rust-src nor Debian's rustc with its \
                 BPF library is installed. `cargo xtask setup` installs what is missing; by hand it is either `rustup \
                 toolchain install nightly --component rust-src`, or `apt-get install rustc-web cargo-web \
                 libstd-rust-web-dev-bpf`, and `cargo install bpf-linker` in both cases. Or set NETFWD_EBPF_OBJECT to \
                 an object built elsewhere, which has the object `steering` beside it."
                .to_owned())
        }
    }

    fn cargo(&self) -> Command {
        match self {
            Self::Nightly => {
                let mut command = clean(Command::new("rustup"));
                command.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
                command
            }
            Self::Debian => {
                let mut command = clean(Command::new("/usr/bin/cargo"));
                // Bootstrap: the BPF target's assembler and attributes are not stable, in either toolchain.
                command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1").arg("build");
                command
            }
        }
    }
}

fn nightly_has_source() -> bool {
    sysroot(clean(Command::new("rustup")).args(["run", "nightly", "rustc"]))
        .is_some_and(|root| root.join("lib/rustlib/src/rust/library/Cargo.lock").exists())
}

fn debian_has_core() -> bool {
    Path::new("/usr/bin/cargo").exists()
        && sysroot(&mut clean(Command::new("/usr/bin/rustc")))
            .is_some_and(|root| root.join("lib/rustlib").join(TARGET).join("lib").exists())
}

fn sysroot(command: &mut Command) -> Option<PathBuf> {
    let output = command.args(["--print", "sysroot"]).output().ok().filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

fn build(toolchain: &Toolchain, source: &Path, target_dir: &Path) -> Result<(), String> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| "x86_64".to_owned());
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit arithmetic, which every kernel since 5.1 knows: without it each word is shifted up and down to extend it.
        "-Ctarget-cpu=v3".to_owned(),
    ];
    let mut command = toolchain.cargo();
    command
        .args(["--release", "--locked", "--bins", "--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .current_dir(source)
        .env("PATH", path_with_linker()?)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("The eBPF build failed: {command:?}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// PATH with bpf-linker's directory in front, wherever `cargo install` has put it.
fn path_with_linker() -> Result<OsString, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let installed = [cargo_home, home].into_iter().flatten().map(|directory| directory.join("bin"));
    let directory = env::split_paths(&path).chain(installed).find(|directory| directory.join("bpf-linker").exists());
    let directory = directory.ok_or(
        "bpf-linker is neither in PATH nor in cargo's bin directory: `cargo xtask setup` installs it (by hand: `cargo \
         install bpf-linker`).",
    )?;
    env::join_paths(std::iter::once(directory).chain(env::split_paths(&path))).map_err(|error| error.to_string())
}

/// Takes the host build out of a command's environment.
fn clean(mut command: Command) -> Command {
    const KEPT: [&str; 5] = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_"];
    const CLEARED: [&str; 6] =
        ["RUSTC", "RUSTFLAGS", "RUSTDOCFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN"];
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let of_cargo = text.starts_with("CARGO") && !KEPT.iter().any(|kept| text.starts_with(kept));
        if of_cargo || CLEARED.contains(&text) {
            command.env_remove(&name);
        }
    }
    command
}
