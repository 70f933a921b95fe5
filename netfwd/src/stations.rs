//! MAC addresses that underlays get under a running gateway.
//!
//! XDP takes what is for the underlay's own station and leaves all else to the kernel. An interface that gets another
//! address (`ip link set … address`, a bond that loses a member) would be served by kernel sockets until a restart, which is
//! right but slow; so the control thread follows.

use rtnetlink::MulticastGroup;
use tracing::warn;

use crate::control::links::{Netlink, next_look};
use crate::reattach::lock;
use crate::underlay::Underlay;
use crate::wireguard::steering::Underlays;

/// Tells `underlays` their addresses, for ever; returns at once where none has a program.
pub async fn follow(underlays: Underlays) {
    if !lock(&underlays).iter().any(Underlay::has_program) {
        return;
    }
    let (netlink, mut changes) = match Netlink::open_with_changes(&[MulticastGroup::Link]) {
        Ok(opened) => opened,
        Err(error) => {
            return warn!("an underlay with a new MAC address will take the kernel's sockets: netlink: {error}");
        }
    };
    let interfaces: Vec<String> = lock(&underlays).iter().map(|underlay| underlay.interface().to_owned()).collect();
    loop {
        for (index, interface) in interfaces.iter().enumerate() {
            // Netlink that does not answer now may do so at the next look.
            if let Ok(Some(link)) = netlink.find(interface).await {
                lock(&underlays)[index].follow_station(&link);
            }
        }
        next_look(&mut changes).await;
    }
}
