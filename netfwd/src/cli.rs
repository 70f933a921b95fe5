//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

/// An eBPF/XDP accelerated tunnel gateway
#[derive(Debug, Parser)]
#[command(name = "netfwd", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Forward packets until SIGINT or SIGTERM
    Run {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigFile,
        /// Log more: -v debug, -vv trace (RUST_LOG wins)
        #[arg(short, long, visible_alias = "debug", action = clap::ArgAction::Count)]
        verbose: u8,
    },
    /// Check a configuration, and whether this machine can do what it says
    Check {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigFile,
    },
}

/// Which configuration.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The configuration file (TOML)
    #[arg(long = "config", value_name = "FILE")]
    pub file: PathBuf,
}

/// The log level that so many `-v` ask for.
pub fn log_level(verbose: u8) -> LevelFilter {
    match verbose {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}
