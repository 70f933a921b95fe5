//! Wiring: from a configuration to a running gateway.

use crate::config::Config;
use crate::control::metrics::Metrics;
use crate::control::preflight::{self, Problems};
use crate::control::{Control, Stop, StopNotice};

/// Why the gateway did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine cannot do what the configuration says.
    #[error(transparent)]
    Preflight(#[from] Problems),
    /// A system call failed.
    #[error("{0}")]
    System(#[from] std::io::Error),
    /// A part of the gateway cannot go on.
    #[error("{0}")]
    Failure(String),
}

/// Runs the gateway until it is told to end.
pub fn run(config: Config) -> Result<(), RunError> {
    preflight::privileges(&config)?;
    let mut control = Control::start()?;
    let ready = preflight::check(&config, &control.links()?)?;
    let table = config.forwarding_table(&ready.mtus);
    match control.serve(ready.listener, Metrics::new(&table), Default::default(), &StopNotice::default()) {
        Stop::Signal(_) => Ok(()),
        Stop::Failure(reason) => Err(RunError::Failure(reason)),
    }
}
