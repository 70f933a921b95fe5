//! `netfwd wg`: one WireGuard device, in the place of wireguard-go.
//!
//! `wg-quick` starts a program, and as soon as that returns goes on with device and control socket. So the program returns
//! once both exist, or with an error if they never will; the device stays with a process in the background. A process
//! with threads cannot fork and go on, so that is a new process of the same program: its standard output is a pipe that
//! brings one line, "ready", or ends without it.

use std::env;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::setsid;
use rustix::stdio::{dup2_stderr, dup2_stdout};

use crate::cli::{Wg, wg_log_level};
use crate::control::{logging, secrets};
use crate::run::{RunError, run_device};

const READY: &[u8] = b"ready\n";

/// Runs the command; `describe` makes one line of an error.
pub fn run(arguments: &Wg, describe: impl Fn(&RunError) -> String) -> ExitCode {
    if !arguments.foreground && !arguments.background && !wants_foreground() {
        return start_in_background(&arguments.name);
    }
    let level = env::var("LOG_LEVEL").ok();
    logging::start(wg_log_level(level.as_deref()));
    secrets::keep_out_of_core_dumps();
    let in_background = arguments.background;
    if in_background {
        // In a session of its own no terminal's end ends it. It leads no group, so this cannot fail.
        let _ = setsid();
    }
    // An empty one is none, also to wireguard-go.
    let logs = level.is_some_and(|level| !level.is_empty() && level != "silent");
    // Where nobody waits any more, whoever wanted the device has given it up.
    let ready = || if in_background { tell_ready(logs) } else { Ok(()) };
    match run_device(arguments.name.clone(), ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&describe(&error)),
    }
}

fn fail(message: &str) -> ExitCode {
    // The exit code counts, also where nobody takes the message.
    let _ = writeln!(io::stderr(), "{message}");
    ExitCode::FAILURE
}

/// The other way to say `-f`: wireguard-go's, which service files use.
fn wants_foreground() -> bool {
    env::var_os("WG_PROCESS_FOREGROUND").is_some_and(|value| value == "1")
}

/// Starts the process that stays and waits until it is ready; its errors come out where ours would.
fn start_in_background(name: &str) -> ExitCode {
    match try_in_background(name) {
        Ok(true) => ExitCode::SUCCESS,
        // It has said why.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&format!("cannot start in the background: {error}")),
    }
}

fn try_in_background(name: &str) -> io::Result<bool> {
    let mut command = Command::new(env::current_exe()?);
    // The file may be called netfwd-wg, and by that name `wg` would be a device.
    command.arg0("netfwd");
    command.args(["wg", "--background", "--", name]).stdin(Stdio::null()).stdout(Stdio::piped());
    // Wherever it was started may be unmounted.
    command.current_dir("/");
    let mut child = command.spawn()?;
    let mut said = Vec::new();
    if let Some(mut output) = child.stdout.take() {
        // It ends once the other side lets go of it.
        output.read_to_end(&mut said)?;
    }
    if said == READY {
        return Ok(true);
    }
    child.wait()?;
    Ok(false)
}

/// Tells whoever waits, and lets go of his standard streams: a pipe of his would never end otherwise. Only the log stays on
/// his standard error if he asked for one.
fn tell_ready(logs: bool) -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    io::stdout().write_all(READY)?;
    io::stdout().flush()?;
    if !logs {
        dup2_stderr(&null)?;
    }
    Ok(dup2_stdout(&null)?)
}
