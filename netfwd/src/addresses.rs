//! Addresses that underlays get and lose under a running gateway.
//!
//! A WireGuard tunnel listens on every address unless it is given one, and XDP steers by destination: what is sent to an
//! address that it does not know takes the kernel's socket, which is right but slow. A lease that changes or a service
//! address that moves must not cost the fast path, so the control thread follows them.

use std::sync::Arc;

use rtnetlink::MulticastGroup;
use tracing::warn;

use crate::control::links::{Netlink, next_look};
use crate::wireguard::steering::Steering;

const GROUPS: [MulticastGroup; 2] = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];

/// Tells `steering` the underlays' addresses, for ever; at once returns where no tunnel listens on every address.
pub async fn follow(steering: Arc<Steering>) {
    if !steering.listens_everywhere() {
        return;
    }
    let (netlink, mut changes) = match Netlink::open_with_changes(&GROUPS) {
        Ok(opened) => opened,
        Err(error) => return warn!("what is sent to new addresses will take the kernel's sockets: netlink: {error}"),
    };
    loop {
        // Netlink that does not answer now may do so at the next look.
        if let Ok(links) = netlink.links_with_addresses().await {
            steering.set_addresses(&links);
        }
        next_look(&mut changes).await;
    }
}
