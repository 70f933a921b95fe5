//! A cpio archive in the `newc` format, which the kernel unpacks as its first file system.
//!
//! The format is a header of fixed-width hexadecimal numbers, the name and the content for each file (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`), so writing it takes less than installing `cpio`.
//! Invariants: a directory comes before what is in it, and every path comes once. Deliberately absent: compression,
//! since emulation unpacks slower than it copies; owners, times and hard links.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

const END: &str = "TRAILER!!!";

/// Files by their absolute paths.
#[derive(Debug, Default)]
pub struct Archive {
    // Sorted: `/a` comes before `/a/b`.
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug)]
enum Entry {
    Directory,
    Link(PathBuf),
    File { mode: u32, content: Vec<u8> },
}

impl Archive {
    /// An empty directory, and those above it.
    pub fn directory(&mut self, path: &Path) -> Result<()> {
        if path.components().any(|part| matches!(part, Component::ParentDir | Component::CurDir)) || !path.is_absolute()
        {
            bail!("not a path of the archive: {}", path.display());
        }
        for above in path.ancestors().filter(|above| *above != Path::new("/")) {
            match self.entries.get(above) {
                Some(Entry::Directory) => {}
                Some(_) => bail!("{} is not a directory", above.display()),
                None => drop(self.entries.insert(above.to_owned(), Entry::Directory)),
            }
        }
        Ok(())
    }

    /// A program or library with the content of a file of this machine.
    pub fn program(&mut self, path: &Path, source: &Path) -> Result<()> {
        let content = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        self.insert(path, Entry::File { mode: 0o755, content })
    }

    /// An ordinary file.
    pub fn file(&mut self, path: &Path, content: Vec<u8>) -> Result<()> {
        self.insert(path, Entry::File { mode: 0o644, content })
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &Path, target: &Path) -> Result<()> {
        self.insert(path, Entry::Link(target.to_owned()))
    }

    /// Is there something under this path?
    pub fn contains(&self, path: &Path) -> bool {
        self.entries.contains_key(path)
    }

    fn insert(&mut self, path: &Path, entry: Entry) -> Result<()> {
        self.directory(path.parent().context("a file needs a name")?)?;
        if self.entries.insert(path.to_owned(), entry).is_some() {
            bail!("{} is in the archive twice", path.display());
        }
        Ok(())
    }

    /// Writes the archive.
    pub fn write(&self, output: &mut impl Write) -> io::Result<()> {
        for (number, (path, entry)) in self.entries.iter().enumerate() {
            let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
            match entry {
                Entry::Directory => write_entry(output, number, 0o040_755, &name, &[])?,
                Entry::Link(target) => {
                    write_entry(output, number, 0o120_777, &name, target.as_os_str().as_encoded_bytes())?;
                }
                Entry::File { mode, content } => write_entry(output, number, 0o100_000 | mode, &name, content)?,
            }
        }
        write_entry(output, 0, 0, END, &[])
    }
}

fn write_entry(output: &mut impl Write, number: usize, mode: u32, name: &str, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len()).map_err(|_| io::Error::other(format!("{name} is larger than 4 GiB")))?;
    // Magic, inode, mode, user, group, links, time, size, two device numbers of two parts each, length of the name with
    // its zero byte, and a checksum that this format leaves at zero.
    let header = format!("070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{length:08x}", number + 1, 0, 0, 1, 0);
    let header = format!("{header}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}", 0, 0, 0, 0, name.len() + 1, 0);
    output.write_all(header.as_bytes())?;
    output.write_all(name.as_bytes())?;
    output.write_all(&[0])?;
    pad(output, header.len() + name.len() + 1)?;
    output.write_all(content)?;
    pad(output, content.len())
}

/// Name and content end on a multiple of four bytes.
fn pad(output: &mut impl Write, length: usize) -> io::Result<()> {
    output.write_all(&[0; 3][..length.next_multiple_of(4) - length])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive.file(Path::new("/etc/hosts"), b"hello".to_vec()).unwrap();
        archive.link(Path::new("/init"), Path::new("etc/hosts")).unwrap();
        archive
    }

    /// Name, mode and content of each entry, read the way the kernel does.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * index..14 + 8 * index]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            assert_eq!(&bytes[..6], b"070701");
            let (mode, size, name_len) = (field(1), field(6), field(11));
            let name = String::from_utf8(bytes[110..110 + name_len - 1].to_vec()).unwrap();
            if name == END {
                return entries;
            }
            let start = (110 + name_len).next_multiple_of(4);
            entries.push((name, mode as u32, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_is_written_reads_back_with_directories_first() {
        let mut bytes = Vec::new();
        sample().write(&mut bytes).unwrap();
        let expected =
            [("etc", 0o040_755, &b""[..]), ("etc/hosts", 0o100_644, b"hello"), ("init", 0o120_777, b"etc/hosts")];
        let expected = expected.map(|(name, mode, content)| (name.to_owned(), mode, content.to_vec()));
        assert_eq!(read(&bytes), expected);
    }

    #[test]
    fn nothing_comes_twice_or_below_a_file() {
        let mut archive = sample();
        assert!(archive.file(Path::new("/etc/hosts"), Vec::new()).is_err());
        assert!(archive.file(Path::new("/etc/hosts/more"), Vec::new()).is_err());
        assert!(archive.file(Path::new("/etc/../more"), Vec::new()).is_err());
        assert!(archive.directory(Path::new("/etc")).is_ok());
    }
}
