//! What people do to the links of WireGuard devices while they exist: give them another MTU, take them down and up again.
//!
//! `wg-quick` sets an MTU a moment after `netfwd wg` has made the device. It has been chosen so that a full packet, sealed, fits
//! the underlay; padded beyond it, it would be fragmented. And a tunnel that was switched off by `ip link set wg0 down` must
//! look so from the other end: no keepalive, no answer to a handshake.
//!
//! Invariants: a device is down until its link is seen up, unless netfwd itself has set that up, and then nothing depends on how soon
//! it is seen; and one that cannot be seen, since it has been moved to another namespace, counts as up and keeps its MTU. A link is known
//! by its index, since the name is the operator's to change. While it is in another namespace, the index may be another interface's
//! here: one that is no TUN device is not obeyed. And where the index is taken in that namespace it gets another one: then it is not
//! followed any more, not even back here.

use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use rtnetlink::MulticastGroup;
use tokio::time::sleep;
use tracing::warn;

use crate::control::links::{Link, Netlink, next_look};
use crate::datapath::tunnel::wireguard::Device;

/// How soon netlink is asked again where it did not answer.
const RETRY: Duration = Duration::from_secs(1);

/// A device with its link.
pub struct Followed {
    index: u32,
    device: Arc<Device>,
    /// What it was told last.
    is_down: bool,
}

impl Followed {
    /// The device whose link has this index.
    pub fn new(index: u32, device: Arc<Device>) -> Self {
        let is_down = device.is_down();
        Self { index, device, is_down }
    }

    /// Tells the device what its link is now, if that can be seen.
    fn note(&mut self, link: Option<&Link>) {
        let link = link.filter(|link| link.is_tun);
        if let Some(link) = link {
            self.device.set_mtu(link.mtu.try_into().unwrap_or(u16::MAX));
        }
        let is_up = link.is_none_or(|link| link.up);
        if is_up == self.is_down {
            self.is_down = !is_up;
            self.device.set_up(is_up);
        }
    }
}

/// Tells every device about its link, for ever; returns at once where there is none.
pub async fn follow(devices: Vec<Followed>) {
    if devices.is_empty() {
        return;
    }
    let (netlink, changes) = match Netlink::open_with_changes(&[MulticastGroup::Link]) {
        Ok(opened) => opened,
        Err(error) => {
            devices.iter().for_each(|followed| followed.device.set_up(true));
            return warn!("devices are taken to be up and to keep their first MTU: netlink: {error}");
        }
    };
    look_on(devices, netlink, changes).await;
}

async fn look_on(mut devices: Vec<Followed>, netlink: Netlink, mut changes: impl Stream<Item = ()> + Unpin) {
    loop {
        let mut is_answered = true;
        for followed in &mut devices {
            match netlink.find_index(followed.index).await {
                Ok(link) => followed.note(link.as_ref()),
                Err(_) => is_answered = false,
            }
        }
        // The change that this look was for may be the last for long.
        if is_answered { next_look(&mut changes).await } else { sleep(RETRY).await }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::datapath::packet::TunnelIndex;
    use crate::datapath::tunnel::wireguard::queue;

    #[test]
    fn a_device_is_down_while_its_link_is_seen_down() {
        let device = Device::new(TunnelIndex(0), queue(1).0);
        device.set_up(false);
        let mut followed = Followed::new(4, device.clone());
        let link = |up| Link { up, mtu: 1300, is_tun: true, ..Link::default() };
        let looks = [Some(false), Some(true), Some(false), None, Some(false), Some(true)];
        let seen = looks.map(|up| {
            followed.note(up.map(link).as_ref());
            device.is_down()
        });
        assert_eq!(seen, [true, false, true, false, true, false]);
        // While it is elsewhere another one may have its index.
        followed.note(Some(&Link { is_tun: false, ..link(false) }));
        assert!(!device.is_down());
        // A deleted device is not seen either.
        device.retire();
        [Some(link(false)), None].iter().for_each(|link| followed.note(link.as_ref()));
        assert!(device.is_down());
    }

    #[test]
    fn a_look_without_an_answer_is_repeated_soon() {
        let device = Device::new(TunnelIndex(0), queue(1).0);
        device.set_up(false);
        // Nobody has this index, which counts as up.
        let followed = vec![Followed::new(i32::MAX as u32, device.clone())];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            // Nobody drives the connection, until the first look has been given up.
            let (connection, netlink) = Netlink::without_answers();
            let looking = tokio::spawn(look_on(followed, netlink, futures_util::stream::pending()));
            sleep(Duration::from_millis(3_200)).await;
            tokio::spawn(connection);
            let deadline = Instant::now() + 3 * RETRY;
            while device.is_down() && Instant::now() < deadline {
                sleep(Duration::from_millis(20)).await;
            }
            looking.abort();
        });
        assert!(!device.is_down());
    }
}
