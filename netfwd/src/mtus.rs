//! MTUs that WireGuard devices are given while they exist: `wg-quick` sets one a moment after `netfwd wg` has made the device.
//!
//! Packets are padded to a multiple of sixteen bytes, but not beyond the device's MTU, which has been chosen so that a full
//! packet, sealed, fits the underlay: padded further it would be fragmented.
//!
//! Deliberately absent: a device that has been moved to another namespace. It keeps the MTU that it had when it was last seen.

use std::sync::Arc;

use rtnetlink::MulticastGroup;
use tracing::warn;

use crate::control::links::{Netlink, next_look};
use crate::datapath::tunnel::wireguard::Device;

/// Tells every device its MTU, for ever; returns at once where there is none.
pub async fn follow(devices: Vec<(String, Arc<Device>)>) {
    if devices.is_empty() {
        return;
    }
    let (netlink, mut changes) = match Netlink::open_with_changes(&[MulticastGroup::Link]) {
        Ok(opened) => opened,
        Err(error) => return warn!("packets are padded as if devices kept their first MTU: netlink: {error}"),
    };
    loop {
        for (name, device) in &devices {
            // One that does not answer now may do so at the next look.
            if let Ok(mtu) = netlink.mtu(name).await {
                device.set_mtu(mtu.try_into().unwrap_or(u16::MAX));
            }
        }
        next_look(&mut changes).await;
    }
}
