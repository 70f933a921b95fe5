//! What the control thread does for WireGuard interfaces: their control sockets, the names of their peers, and what becomes
//! of their devices.
//!
//! Invariant: everything here is a task of the control thread, so changes of one interface follow each other, and none
//! waits for a name.

use std::io;
use std::sync::Arc;

use super::uapi::Configurable;
use super::uapi::server::{self, SocketError, SocketFile};
use super::{Control, StopNotice};
use crate::config::{self, HostName};
use crate::datapath::tunnel::wireguard::{DeviceStatus, DeviceUpdate, PublicKey};
use crate::wireguard::Interface;

mod device;
mod names;

/// What happens when the device is deleted or its control socket removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disappearance {
    /// Nothing: it is one of many, and the workers say what they cannot do without.
    Stays,
    /// The daemon ends well: that is how `wg-quick down` and others ask it to.
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
    let ends = (disappearance == Disappearance::Ends).then(|| notice.clone());
    if let Some(notice) = ends.clone() {
        runtime.spawn(device::end_without_socket(socket.place().clone(), notice));
    }
    runtime.spawn(device::watch(name.to_owned(), interface.clone(), ends));
    Ok(Attached { _socket: socket })
}
