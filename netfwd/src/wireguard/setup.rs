//! From configured tunnels to interfaces, and the share of each worker.

use std::net::IpAddr;
use std::sync::Arc;

use super::interface::{Interface, InterfaceError};
use super::path::Share;
use super::steering::Steering;
use crate::config::Config;
use crate::datapath::packet::TunnelIndex;
use crate::datapath::table::{ForwardingTable, VerifyPolicy};
use crate::datapath::tunnel::wireguard::{Device, DeviceUpdate, QueueSender};
use crate::io::listen_port::ListenPort;
use crate::io::socket::SocketError;

/// A WireGuard tunnel whose port is bound, and which nobody serves yet.
pub struct Bound {
    tunnel: TunnelIndex,
    local: IpAddr,
    device: Arc<Device>,
    port: ListenPort,
    update: DeviceUpdate,
}

/// Binds the port of every WireGuard tunnel.
pub fn bind(
    config: &Config,
    table: &ForwardingTable,
    workers: usize,
    queue: &QueueSender,
) -> Result<Vec<Bound>, SocketError> {
    let mut all = Vec::new();
    for ((index, tunnel), configured) in (0..).map(TunnelIndex).zip(table.tunnels()).zip(&config.tunnels) {
        let Some(wireguard) = configured.wireguard() else { continue };
        let port = ListenPort::bind(tunnel.local, tunnel.port, wireguard.fwmark, workers)?;
        let device = Device::new(index, queue.clone());
        device.set_mtu(tunnel.mtu);
        device.set_up(configured.up);
        let update = wireguard.update(port.number);
        all.push(Bound { tunnel: index, local: tunnel.local, device, port, update });
    }
    Ok(all)
}

impl Bound {
    /// Its tunnel.
    pub fn tunnel(&self) -> TunnelIndex {
        self.tunnel
    }

    /// The address that it listens on.
    pub fn local(&self) -> IpAddr {
        self.local
    }

    /// The port's number, which the kernel may have chosen.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// Makes it an interface with the peers that the configuration names; each worker gets its share.
    pub fn serve(
        mut self,
        steering: &Arc<Steering>,
        workers: &mut [Vec<Share>],
        verify: VerifyPolicy,
    ) -> Result<Interface, InterfaceError> {
        let Self { tunnel, local, device, port, update } = &mut self;
        let interface = Interface::new(*tunnel, *local, device.clone(), port, steering.clone());
        // It has its port, and there is none before that.
        let _former = interface.apply(update)?;
        for (owner, sockets) in workers.iter_mut().zip(port.workers.drain(..)) {
            owner.push(Share { tunnel: *tunnel, device: device.clone(), sockets, verify });
        }
        Ok(interface)
    }
}
