//! What follows when somebody deletes a tunnel's device.
//!
//! `netfwd wg` has no other and ends. A gateway goes on with its other tunnels, and an operator who wonders where his packets
//! are must find a line about it. Every worker meets the deletion, at its own queue of the device; one of them speaks.

use tracing::warn;

use crate::control::StopNotice;

/// What one worker does about it.
pub enum Deletion {
    /// It ends the daemon.
    Ends(StopNotice),
    /// It writes to the log.
    IsLogged,
    /// Another worker does.
    IsKnown,
}

impl Deletion {
    /// The device was deleted.
    pub fn of(&self, device: &str) {
        match self {
            Self::Ends(notice) => notice.deleted(device),
            Self::IsLogged => warn!("tunnel {device}: its device was deleted; the tunnel is down until the next start"),
            Self::IsKnown => {}
        }
    }
}
