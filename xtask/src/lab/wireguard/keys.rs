//! Key pairs of one run, made by `wg`, in files that only root reads.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::lab::process::output;

/// A private key in a file, and its public key.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// The file with the private key in base64, mode 0600.
    pub private_file: PathBuf,
    /// The public key in base64.
    pub public: String,
}

impl KeyPair {
    /// A fresh pair; the private key goes to that file.
    pub fn generate(private_file: &Path) -> Result<Self> {
        let private = output(Command::new("wg").arg("genkey"))?;
        write_secret(private_file, &private)?;
        let public = public_of(&private)?;
        Ok(Self { private_file: private_file.to_owned(), public })
    }

    /// The public key itself.
    pub fn public_bytes(&self) -> Result<[u8; 32]> {
        decode(&self.public).with_context(|| format!("not a key: {}", self.public))
    }

    /// The private key in base64.
    pub fn private(&self) -> Result<String> {
        read_secret(&self.private_file)
    }
}

/// A fresh preshared key in that file.
pub fn generate_preshared(file: &Path) -> Result<()> {
    write_secret(file, &output(Command::new("wg").arg("genpsk"))?)
}

/// A key out of a file.
pub fn read_secret(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text.trim().to_owned())
}

/// Writes a file that only its owner reads.
pub fn write_secret(file: &Path, text: &str) -> Result<()> {
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file);
    let mut opened = opened.with_context(|| format!("cannot write {}", file.display()))?;
    Ok(opened.write_all(text.as_bytes())?)
}

fn public_of(private: &str) -> Result<String> {
    let mut command = Command::new("wg");
    let mut child = command.arg("pubkey").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("wg pubkey")?;
    child.stdin.take().context("no input")?.write_all(private.as_bytes())?;
    let result = child.wait_with_output()?;
    if !result.status.success() {
        bail!("wg pubkey: {}", result.status);
    }
    Ok(String::from_utf8(result.stdout)?.trim().to_owned())
}

/// 32 bytes from 43 digits of base64 and one `=`.
fn decode(text: &str) -> Option<[u8; 32]> {
    let digit = |character: u8| match character {
        b'A'..=b'Z' => Some(character - b'A'),
        b'a'..=b'z' => Some(character - b'a' + 26),
        b'0'..=b'9' => Some(character - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::new();
    for group in text.strip_suffix('=')?.as_bytes().chunks(4) {
        let bits = group.iter().try_fold(0_u32, |bits, character| Some(bits << 6 | u32::from(digit(*character)?)))?;
        // Four digits are 24 bits, three are 18 of which two are padding.
        let bits = bits << (6 * (4 - group.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_32_bytes() {
        assert_eq!(
            decode("AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="),
            Some(std::array::from_fn(|at| at as u8 + 1))
        );
        assert_eq!(decode("AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHw=="), None);
    }

    #[test]
    fn a_secret_is_its_owners_alone() {
        let file = std::env::temp_dir().join(format!("xtask-secret-{}", std::process::id()));
        write_secret(&file, "secret\n").unwrap();
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!((mode & 0o777, read_secret(&file).unwrap()), (0o600, "secret".to_owned()));
        fs::remove_file(&file).unwrap();
    }
}
