//! Wiring: from a configuration to a running gateway.

use crate::config::Config;
use crate::control::Control;
use crate::control::preflight::{self, Problems};

/// Why the gateway did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine cannot do what the configuration says.
    #[error(transparent)]
    Preflight(#[from] Problems),
    /// A system call failed.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Runs the gateway until it is told to end.
pub fn run(config: Config) -> Result<(), RunError> {
    preflight::privileges(&config)?;
    let control = Control::start()?;
    preflight::check(&config, &control.links()?)?;
    Ok(())
}
