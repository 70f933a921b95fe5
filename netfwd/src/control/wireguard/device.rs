//! What becomes of a device: its MTU changes (`wg-quick` sets it), it is deleted (`ip link del`), its control socket is
//! removed. The latter two are how a userspace WireGuard is told to go.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tracing::info;

use crate::control::StopNotice;
use crate::control::links::{self, Change};
use crate::control::uapi::server::Place;
use crate::wireguard::Interface;

/// How often somebody looks whether the socket is still there.
const LOOK: Duration = Duration::from_millis(250);

/// Follows the device's MTU; its end is the daemon's, if there is a notice to give.
pub(super) async fn watch(name: String, interface: Arc<Interface>, ends: Option<StopNotice>) {
    let mut changes = match links::changes(name.clone()).await {
        Ok(changes) => changes,
        Err(error) => return info!("{name}: changes of its MTU go unnoticed: {error}"),
    };
    while let Some(change) = changes.next().await {
        match (change, &ends) {
            (Change::Mtu(mtu), _) => interface.device().set_mtu(mtu.try_into().unwrap_or(u16::MAX)),
            (Change::Gone, Some(notice)) => return notice.end("the device was deleted"),
            (Change::Gone, None) => return,
        }
    }
}

/// Ends the daemon when its control socket is removed.
pub(super) async fn end_without_socket(socket: Place, notice: StopNotice) {
    while !socket.is_gone() {
        tokio::time::sleep(LOOK).await;
    }
    notice.end("the control socket was removed");
}
