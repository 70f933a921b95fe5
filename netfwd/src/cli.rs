//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use crate::io::tun::{DeviceError, check_name};

/// An eBPF/XDP accelerated tunnel gateway
#[derive(Debug, Parser)]
#[command(name = "netfwd", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Forward packets until SIGINT, SIGTERM or SIGHUP
    Run {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigFile,
        /// Log more: -v debug, -vv trace (RUST_LOG wins)
        #[arg(short, long, visible_alias = "debug", action = clap::ArgAction::Count)]
        verbose: u8,
    },
    /// Make a WireGuard device that wg and wg-quick configure, in the place of wireguard-go
    ///
    /// Returns once the device and its control socket exist; they stay until the link is deleted, the socket removed, or
    /// SIGTERM, SIGINT or SIGHUP comes. LOG_LEVEL (verbose, error, silent) and WG_PROCESS_FOREGROUND=1 mean what they mean to wireguard-go. Under the name netfwd-wg (a
    /// symbolic link) the program is this command: what WG_QUICK_USERSPACE_IMPLEMENTATION wants.
    Wg(Wg),
    /// Check a configuration, and whether this machine can do what it says
    Check {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigFile,
    },
}

/// Which device, and how.
#[derive(Debug, Args)]
pub struct Wg {
    /// Stay in the foreground
    #[arg(short, long)]
    pub foreground: bool,
    /// Be the background process of another one, which waits to hear on standard output that all is ready
    #[arg(long, hide = true, conflicts_with = "foreground")]
    pub background: bool,
    /// The device's name
    #[arg(value_name = "INTERFACE", value_parser = interface_name)]
    pub name: String,
}

fn interface_name(name: &str) -> Result<String, DeviceError> {
    check_name(name).map(|()| name.to_owned())
}

/// Which configuration.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The configuration file (TOML)
    #[arg(long = "config", value_name = "FILE")]
    pub file: PathBuf,
}

/// The name under which the program is `netfwd wg`: `wg-quick` calls one program with one argument, the device's name.
const WG_NAME: &str = "netfwd-wg";

impl Cli {
    /// Reads a command line, whose first word is the program's name. Faults end the process, as does a wish for help.
    pub fn read(words: impl Iterator<Item = OsString>) -> Self {
        Self::parse_from(expand(words))
    }
}

/// Puts the command in, where the program's name says it.
fn expand(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<_> = words.collect();
    if words.first().is_some_and(|name| Path::new(name).file_name() == Some(WG_NAME.as_ref())) {
        // Usage and errors then show a command that there is.
        words.splice(..1, ["netfwd".into(), "wg".into()]);
    }
    words
}

/// The log level that wireguard-go's LOG_LEVEL asks for; what is unusual by default.
pub fn wg_log_level(value: Option<&str>) -> LevelFilter {
    match value {
        Some("verbose" | "debug") => LevelFilter::DEBUG,
        Some("error") => LevelFilter::ERROR,
        Some("silent") => LevelFilter::OFF,
        _ => LevelFilter::WARN,
    }
}

/// The log level that so many `-v` ask for.
pub fn log_level(verbose: u8) -> LevelFilter {
    match verbose {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> impl Iterator<Item = OsString> {
        line.split(' ').map(OsString::from)
    }

    #[test]
    fn the_name_netfwd_wg_is_the_command_wg() {
        for line in ["netfwd-wg wg0", "/usr/local/bin/netfwd-wg wg0", "netfwd wg wg0"] {
            let cli = Cli::try_parse_from(expand(words(line))).expect(line);
            assert!(matches!(cli.command, Command::Wg(Wg { foreground: false, name, .. }) if name == "wg0"), "{line}");
        }
        let cli = Cli::try_parse_from(expand(words("netfwd-wg -f wg0"))).expect("right");
        assert!(matches!(cli.command, Command::Wg(Wg { foreground: true, .. })));
        let error = Cli::try_parse_from(expand(words("netfwd-wg"))).expect_err("no name").to_string();
        assert!(error.contains("Usage: netfwd wg <INTERFACE>"), "{error}");
        // A directory of that name says nothing.
        assert!(Cli::try_parse_from(expand(words("netfwd-wg/netfwd wg0"))).is_err());
    }
}
