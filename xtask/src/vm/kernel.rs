//! Debian's kernels, fetched as packages and unpacked beside the build results: nothing is installed.
//!
//! The *cloud* flavour is small, boots in seconds under emulation, and has the network devices as modules. Invariant:
//! what is in the cache is whole, since it is unpacked elsewhere and renamed. Deliberately absent: looking for a newer
//! release of a cached kernel; removing the directory does that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::tools;
use crate::setup;

/// A kernel and its modules.
#[derive(Debug)]
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// What a boot loader loads.
    pub image: PathBuf,
    /// The directory of its modules.
    pub modules: PathBuf,
}

impl Kernel {
    /// The newest kernel of a series, such as `6.12`, out of the cache or from Debian.
    pub fn fetch(series: &str) -> Result<Self> {
        let cache = tools().join("kernels").join(series);
        if !cache.exists() {
            setup::refresh_lists()?;
            let package = newest(series)?;
            eprintln!("vm: fetching {package} (kernel {series} for the virtual machine; it is not installed)");
            let part = cache.with_extension("part");
            fs::remove_dir_all(&part).ok();
            setup::download(&package, &part, &[])?;
            fs::rename(&part, &cache)?;
        }
        Self::unpacked(&cache).with_context(|| format!("{} is not what it should be; remove it", cache.display()))
    }

    fn unpacked(directory: &Path) -> Result<Self> {
        // Debian 12 has /lib/modules, later releases /usr/lib/modules.
        let modules = ["lib/modules", "usr/lib/modules"].map(|path| directory.join(path));
        let modules = modules.iter().find(|path| path.exists()).context("no modules")?;
        let release = fs::read_dir(modules)?.next().context("no modules")??.file_name().to_string_lossy().into_owned();
        let image = directory.join("boot").join(format!("vmlinuz-{release}"));
        if !image.exists() {
            bail!("no {}", image.display());
        }
        Ok(Self { modules: modules.join(&release), image, release })
    }
}

/// The name of the newest package of that series.
fn newest(series: &str) -> Result<String> {
    let pattern = format!(r"^linux-image-{}\.[^ ]*-cloud-amd64$", series.replace('.', r"\."));
    let output = Command::new("apt-cache").args(["search", "--names-only", &pattern]).output();
    let output = output.context("cannot run apt-cache: kernels come from Debian's packages")?;
    let listed = String::from_utf8_lossy(&output.stdout);
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.max_by_key(|name| numbers(name)).map(str::to_owned).with_context(|| {
        format!("apt knows no package linux-image-{series}.*-cloud-amd64; Debian 12 has 6.1 and, in its updates, 6.12")
    })
}

/// The numbers in a name, in their order: 6.12.9 is older than 6.12.10.
pub fn numbers(name: &str) -> Vec<u64> {
    name.split(|character: char| !character.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        let newer = numbers("linux-image-6.12.100+deb12-cloud-amd64");
        assert!(newer > numbers("linux-image-6.12.95+deb12-cloud-amd64"));
        assert!(numbers("linux-image-6.1.0-56-cloud-amd64") > numbers("linux-image-6.1.0-9-cloud-amd64"));
    }
}
