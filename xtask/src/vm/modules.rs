//! Which kernel modules the guest gets, and in which order they are loaded.
//!
//! The package brings no `modules.dep`; that is made where a kernel is installed. But each module names what it needs
//! in its `.modinfo` section (`depends=a,b`), and that is all `depmod` knows of it too. Invariant: a module comes after
//! everything it depends on, once. What is not in the package is either built into the kernel or an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A module as it is loaded.
#[derive(Debug)]
pub struct Module {
    /// Its name with underscores, as `lsmod` shows it.
    pub name: String,
    /// The object, decompressed.
    pub object: Vec<u8>,
}

/// The wanted modules of a kernel and what they need, in loading order.
pub fn in_loading_order(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let files = by_name(directory)?;
    let built_in = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    let built_in: Vec<_> = built_in.lines().map(|line| name_of(Path::new(line))).collect();
    let mut order = Vec::new();
    for name in wanted.iter().filter(|name| !built_in.iter().any(|built_in| built_in == *name)) {
        add(name, &files, &mut order)?;
    }
    Ok(order)
}

/// Dependencies first; module graphs have no cycles and are a handful deep.
fn add(name: &str, files: &BTreeMap<String, PathBuf>, order: &mut Vec<Module>) -> Result<()> {
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some(path) = files.get(name) else { bail!("this kernel has no module {name}") };
    let object = read(path)?;
    for dependency in depends(&object).with_context(|| format!("no kernel module: {}", path.display()))? {
        add(&dependency, files, order)?;
    }
    order.push(Module { name: name.to_owned(), object });
    Ok(())
}

/// Every module below that directory.
fn by_name(directory: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else if entry.file_name().to_string_lossy().contains(".ko") {
                found.insert(name_of(&entry.path()), entry.path());
            }
        }
    }
    Ok(found)
}

/// `kernel/net/ip-x.ko.xz` is `ip_x`.
fn name_of(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output().context("cannot run xz")?;
    if !output.status.success() {
        bail!("xz {}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

/// The names behind `depends=`; `None` for what is no module.
fn depends(object: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = object.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let value = object[start..].split(|byte| *byte == 0).next()?;
    let names = std::str::from_utf8(value).ok()?.split(',').filter(|name| !name.is_empty());
    Some(names.map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(test: &str, modules: &[(&str, &str)]) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("xtask-modules-{test}-{}", std::process::id()));
        fs::create_dir_all(directory.join("kernel/net")).unwrap();
        for (file, depends) in modules {
            let object = format!("ELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(directory.join("kernel/net").join(file), object).unwrap();
        }
        directory
    }

    fn names(directory: &Path, wanted: &[&str]) -> Result<Vec<String>> {
        let modules = in_loading_order(directory, wanted);
        fs::remove_dir_all(directory).unwrap();
        Ok(modules?.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let directory = directory("order", &[("a.ko", "b-c,d"), ("b-c.ko", "d"), ("d.ko", ""), ("e.ko", "")]);
        assert_eq!(names(&directory, &["a", "d"]).unwrap(), ["d", "b_c", "a"]);
    }

    #[test]
    fn what_the_kernel_has_built_in_needs_no_module_and_what_is_nowhere_is_an_error() {
        let with_built_in = directory("built-in", &[("a.ko", "")]);
        fs::write(with_built_in.join("modules.builtin"), "kernel/net/in-kernel.ko\n").unwrap();
        assert_eq!(names(&with_built_in, &["in_kernel", "a"]).unwrap(), ["a"]);
        let without = directory("missing", &[("a.ko", "b")]);
        assert!(names(&without, &["a"]).unwrap_err().to_string().contains("no module b"));
    }
}
