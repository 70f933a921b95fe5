//! The control socket of a WireGuard device: the cross-platform protocol that `wg` and its kin speak.
//!
//! A request is `get=1` or `set=1`, lines `key=value`, and a blank line; several may follow each other on one connection. The
//! protocol (<https://www.wireguard.com/xplatform/#configuration-protocol>) leaves open what wireguard-go's `device/uapi.go`
//! decides: keys that are unknown or have a wrong value are `EINVAL`, lines that are none `EPROTO`, an unknown operation ends
//! the connection.
//!
//! Invariants: reading and writing the text is sans-IO; whatever holds secrets in text is zeroed when it is dropped and
//! never moves while it grows; a request changes everything that it says or, with a fault in it, nothing (wireguard-go stops
//! half-way); lines, peers and connections are bounded.
//!
//! Deliberately absent: secrets in errors and logs. An error says which key was wrong, never what it was.

pub mod request;
pub mod response;
pub mod server;
mod staging;

use std::io;

use crate::datapath::tunnel::wireguard::{DeviceStatus, DeviceUpdate};

/// What a control socket speaks for.
pub trait Configurable: Send + Sync {
    /// Changes the device; the error's number is the answer. Changes that come meanwhile have to wait.
    fn apply(&self, update: &DeviceUpdate) -> impl Future<Output = io::Result<()>> + Send;

    /// What the device is now.
    fn status(&self) -> DeviceStatus;
}
