//! The guest's first and only file system: programs of this machine with the libraries they need, and kernel modules.
//!
//! The guest runs the very binaries that the host has built, under the paths they have here, so that a path compiled
//! into a test still leads somewhere. Symbols for debuggers are left out: they are nine tenths of a test program, and
//! the guest's memory has to hold the archive twice. Deliberately absent: a distribution. `busybox` is the rest.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use xtask::lab::output;

use super::archive::Archive;
use super::kernel::Kernel;
use super::modules;
use super::plan::{GUEST_PROGRAM, MODULES_FILE, PLAN_FILE, Plan};
use crate::setup;

/// Programs of the lab, beside `busybox`.
const PROGRAMS: [&str; 5] = ["ip", "tc", "ethtool", "ping", "wg"];
/// Where the guest looks for programs.
pub const SEARCH_PATH: &str = "/usr/bin:/bin";
const DIRECTORIES: [&str; 7] = ["/dev", "/proc", "/sys", "/run/netns", "/tmp", "/root", "/var"];
/// The network devices of tests and lab.
const MODULES: [&str; 18] = [
    "veth",
    "tun",
    "vxlan",
    "wireguard",
    "geneve",
    "ip_gre",
    "ip6_gre",
    "ipip",
    "sit",
    "fou",
    "fou6",
    "dummy",
    "ifb",
    "macvlan",
    "8021q",
    "sch_ingress",
    "sch_netem",
    "sch_tbf",
];

/// Puts the image together and returns the file.
pub fn build(kernel: &Kernel, plan: &Plan, directory: &Path) -> Result<PathBuf> {
    let scratch = directory.join("stripped");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let mut image = Image { archive: Archive::default(), scratch };
    for directory in DIRECTORIES {
        image.archive.directory(Path::new(directory))?;
    }
    image.archive.link(Path::new("/var/run"), Path::new("/run"))?;
    image.busybox()?;
    image.programs(plan)?;
    image.modules(kernel)?;
    image.archive.file(Path::new(PLAN_FILE), serde_json::to_vec_pretty(plan)?)?;
    let path = directory.join("initramfs.cpio");
    let mut file = BufWriter::new(fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?);
    image.archive.write(&mut file)?;
    file.flush()?;
    Ok(path)
}

struct Image {
    archive: Archive,
    scratch: PathBuf,
}

impl Image {
    /// `busybox` under each name it answers to, unless the real program is there.
    fn busybox(&mut self) -> Result<()> {
        let busybox = find("busybox")?;
        self.with_libraries(Path::new("/bin/busybox"), &busybox)?;
        for name in output(Command::new(&busybox).arg("--list"))?.lines().filter(|name| !PROGRAMS.contains(name)) {
            if name != "busybox" {
                self.archive.link(&Path::new("/bin").join(name), Path::new("busybox"))?;
            }
        }
        Ok(())
    }

    fn programs(&mut self, plan: &Plan) -> Result<()> {
        for name in PROGRAMS {
            self.with_libraries(&Path::new("/usr/bin").join(name), &find(name)?)?;
        }
        // Cargo may have put another build in this program's place since it started; this is what runs.
        let this = self.scratch.join("xtask-running");
        fs::copy("/proc/self/exe", &this).context("cannot copy this program")?;
        self.stripped(Path::new(GUEST_PROGRAM), &this)?;
        for program in &plan.programs {
            self.stripped(program, program)?;
        }
        Ok(())
    }

    fn modules(&mut self, kernel: &Kernel) -> Result<()> {
        let mut paths = String::new();
        for module in modules::in_loading_order(&kernel.modules, &MODULES)? {
            let path = format!("/lib/modules/{}.ko", module.name);
            self.archive.file(Path::new(&path), module.object)?;
            paths.push_str(&path);
            paths.push('\n');
        }
        self.archive.file(Path::new(MODULES_FILE), paths.into_bytes())
    }

    /// A program without its debugging symbols.
    fn stripped(&mut self, path: &Path, source: &Path) -> Result<()> {
        let stripped =
            self.scratch.join(source.file_name().context("a program has a name")?).with_extension("stripped");
        output(Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(source))?;
        self.with_libraries(path, &stripped)
    }

    fn with_libraries(&mut self, path: &Path, source: &Path) -> Result<()> {
        self.archive.program(path, source)?;
        for library in libraries(source)? {
            if !self.archive.contains(&library) {
                self.archive.program(&library, &library)?;
            }
        }
        Ok(())
    }
}

fn find(program: &str) -> Result<PathBuf> {
    setup::find(program).with_context(|| format!("there is no {program} here: cargo xtask setup"))
}

/// What the dynamic loader would load, itself included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    if !listed.status.success() {
        let text = String::from_utf8_lossy(&listed.stderr).into_owned() + &String::from_utf8_lossy(&listed.stdout);
        // A static program needs none; ldd calls that a failure.
        return if text.contains("not a dynamic") {
            Ok(Vec::new())
        } else {
            bail!("ldd {}: {text}", program.display())
        };
    }
    paths_in(&String::from_utf8_lossy(&listed.stdout))
}

/// `libc.so.6 => /lib/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`, and `linux-vdso.so.1 (0x…)`, which is no file.
fn paths_in(listed: &str) -> Result<Vec<PathBuf>> {
    if let Some(line) = listed.lines().find(|line| line.contains("not found")) {
        bail!("a library is missing: {}", line.trim());
    }
    let paths = listed.lines().filter_map(|line| line.rsplit("=> ").next()?.split_whitespace().next());
    Ok(paths.filter(|path| path.starts_with('/')).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_the_loader_would_load() {
        let listed = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(paths_in(listed).unwrap(), expected);
        assert!(paths_in("\tlibelf.so.1 => not found\n").is_err());
        assert_eq!(paths_in("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
    }
}
