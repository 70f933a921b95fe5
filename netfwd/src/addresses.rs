//! Addresses that underlays get and lose under a running gateway.
//!
//! A WireGuard tunnel listens on every address unless it is given one, and XDP steers by destination: what is sent to an
//! address that it does not know takes the kernel's socket, which is right but slow. A lease that changes or a service
//! address that moves must not cost the fast path, so the control thread follows them.
//!
//! Netlink's events only say when to look: what there is, a look says. Events can be lost, so now and then there is a look
//! without one; and many of them at a time make one look.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::control::links::Netlink;
use crate::wireguard::steering::Steering;

/// The longest time without a look.
const SWEEP: Duration = Duration::from_secs(30);
/// Changes seldom come alone.
const SETTLE: Duration = Duration::from_millis(100);

/// Tells `steering` the underlays' addresses, for ever; at once returns where no tunnel listens on every address.
pub async fn follow(steering: Arc<Steering>) {
    if !steering.listens_everywhere() {
        return;
    }
    let (netlink, mut changes) = match Netlink::open_with_address_changes() {
        Ok(opened) => opened,
        Err(error) => return warn!("what is sent to new addresses will take the kernel's sockets: netlink: {error}"),
    };
    loop {
        // Netlink that does not answer now may do so at the next look.
        if let Ok(links) = netlink.links_with_addresses().await {
            steering.set_addresses(&links);
        }
        if timeout(SWEEP, changes.next()).await == Ok(None) {
            // No more events: then it is the looks alone.
            sleep(SWEEP).await;
        }
        sleep(SETTLE).await;
        while changes.next().now_or_never().flatten().is_some() {}
    }
}
