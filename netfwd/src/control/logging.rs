//! Logs: one plain line each on stderr, where systemd and terminals want them.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Sets the logger up; `RUST_LOG` wins over `level`. A logger that is already there stays.
pub fn start(level: LevelFilter) {
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second logger in one process is a test's, and the first serves it too.
    let _ = lines.with_ansi(terminal).with_target(false).try_init();
}
