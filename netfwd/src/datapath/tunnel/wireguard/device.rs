//! A WireGuard device.

use std::sync::Arc;
use std::time::SystemTime;

use super::queue::QueueSender;
use super::settings::{DeviceStatus, DeviceUpdate};
use super::stats::Stats;
use crate::datapath::packet::TunnelIndex;

/// An endpoint with its peers. All methods take `&self`: workers, control socket and timers share it in an [`Arc`].
pub struct Device {
    tunnel: TunnelIndex,
    stats: Stats,
    _queue: QueueSender,
}

/// How many peers there are, by what is known of them: `netfwd_wg_peers{state}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounts {
    /// Configured.
    pub configured: usize,
    /// With a session, a handshake under way or a keepalive interval: those whose timers run.
    pub active: usize,
}

impl Device {
    /// A device without key and peers. Its handshake messages go to `queue`.
    pub fn new(tunnel: TunnelIndex, queue: QueueSender) -> Arc<Self> {
        Arc::new(Self { tunnel, stats: Stats::default(), _queue: queue })
    }

    /// Which tunnel it is.
    pub fn tunnel(&self) -> TunnelIndex {
        self.tunnel
    }

    /// What it counted.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Padding does not grow packets beyond this: the device's MTU.
    pub fn set_mtu(&self, mtu: u16) {
        let _ = mtu;
    }

    /// Changes key and peers. `listen_port` and `fwmark` are the sockets' matter and ignored here.
    pub fn apply(&self, update: &DeviceUpdate, now: SystemTime) {
        let _ = (update, now);
    }

    /// Key and peers; `listen_port` and `fwmark` are left at 0 for the sockets' owner.
    pub fn status(&self) -> DeviceStatus {
        DeviceStatus::default()
    }

    /// How many peers there are.
    pub fn peer_counts(&self) -> PeerCounts {
        PeerCounts::default()
    }
}
