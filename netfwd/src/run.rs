//! Wiring: from a configuration to a running gateway.

use crate::config::Config;

/// Why the gateway did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A system call failed.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Runs the gateway until it is told to end.
pub fn run(_config: Config) -> Result<(), RunError> {
    Ok(())
}
