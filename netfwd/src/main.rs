//! netfwd: parse, wire up, run.
//!
//! Exit codes: 0 a good end, 1 the system, 2 the command line or the configuration.

use std::io::{self, Write};
use std::process::ExitCode;

use netfwd::cli::{Cli, Command, ConfigFile, log_level};
use netfwd::config::Config;
use netfwd::control::{logging, secrets};

/// The system cannot do what the configuration says.
const SYSTEM: u8 = 1;
/// The configuration is wrong; clap uses the same for the command line.
const CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    match Cli::read(std::env::args_os()).command {
        Command::Run { config, verbose } => {
            logging::start(log_level(verbose));
            with_config(config, |config| netfwd::run::run(config).map_err(|error| one_line(&error)))
        }
        Command::Wg(arguments) => netfwd::wg::run(&arguments, |error| one_line(error)),
        Command::Check { config } => with_config(config, |config| {
            let summary = netfwd::check::check(&config).map_err(|error| one_line(&error))?;
            io::stdout().write_all(summary.as_bytes()).map_err(|error| format!("cannot print the summary: {error}"))
        }),
    }
}

fn with_config(config: ConfigFile, command: impl FnOnce(Config) -> Result<(), String>) -> ExitCode {
    let (code, message) = match Config::load(&config.file) {
        Err(errors) => (CONFIGURATION, errors.to_string()),
        Ok(config) => match with_secrets_kept(config, command) {
            Err(message) => (SYSTEM, message),
            Ok(()) => return ExitCode::SUCCESS,
        },
    };
    // The exit code counts, also where nobody takes the message.
    let _ = writeln!(io::stderr(), "{message}");
    ExitCode::from(code)
}

fn with_secrets_kept(config: Config, command: impl FnOnce(Config) -> Result<(), String>) -> Result<(), String> {
    if config.has_secrets() {
        secrets::keep_out_of_core_dumps();
    }
    command(config)
}

/// An error with its causes, leaving out those that it has already told.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
