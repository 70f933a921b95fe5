//! What the control thread does for WireGuard interfaces: their control sockets, and the names of their peers.
//!
//! Invariant: everything here is a task of the control thread, so changes of one interface follow each other, and none
//! waits for a name.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::uapi::Configurable;
use super::uapi::server::{self, Place, SocketError, SocketFile};
use super::{Control, StopNotice};
use crate::config::{self, HostName};
use crate::datapath::tunnel::wireguard::{DeviceStatus, DeviceUpdate, PublicKey};
use crate::wireguard::Interface;

mod names;

/// How often somebody looks whether the socket is still there.
const LOOK: Duration = Duration::from_millis(250);

/// What happens when the control socket is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disappearance {
    /// Nothing: the interface is configured by a file.
    Stays,
    /// The daemon ends well: removing the socket asks it to, as it asks wireguard-go.
    Ends,
}

/// An interface as the control thread has it; its control socket goes with it.
#[derive(Debug)]
pub struct Attached {
    _socket: SocketFile,
}

impl Configurable for Interface {
    fn apply(&self, update: &DeviceUpdate) -> io::Result<()> {
        Interface::apply(self, update).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    fn status(&self) -> DeviceStatus {
        Interface::status(self)
    }
}

/// Ends the daemon when its control socket is removed.
async fn end_without(socket: Place, notice: StopNotice) {
    while !socket.is_gone() {
        tokio::time::sleep(LOOK).await;
    }
    notice.end("the control socket was removed");
}

/// Makes the control socket of `interface`, whose device is `name`, and looks after it as long as the control thread serves.
pub fn attach(
    control: &Control,
    name: &str,
    interface: &Arc<Interface>,
    configured: &config::WireGuard,
    disappearance: (Disappearance, &StopNotice),
) -> Result<Attached, SocketError> {
    let (socket, listener) = SocketFile::create(name)?;
    let runtime = control.runtime();
    runtime.spawn(server::serve(listener, name.to_owned(), interface.clone()));
    let names: Vec<(PublicKey, HostName)> = configured.names().map(|(key, name)| (key, name.clone())).collect();
    if !names.is_empty() {
        runtime.spawn(names::follow(name.to_owned(), names, interface.clone()));
    }
    let (disappearance, notice) = disappearance;
    if disappearance == Disappearance::Ends {
        runtime.spawn(end_without(socket.place().clone(), notice.clone()));
    }
    Ok(Attached { _socket: socket })
}
