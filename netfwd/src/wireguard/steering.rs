//! Where XDP and the workers find a WireGuard tunnel: at which port of which addresses.
//!
//! A WireGuard port can change while packets flow, by `wg set`. Then XDP's maps and the workers' table have to follow: the
//! maps entry by entry, the table as a whole. Until they have, packets for the new port take the kernel's socket, which has
//! it already.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use crate::datapath::packet::TunnelIndex;
use crate::datapath::table::ForwardingTable;
use crate::order::{Order, Orders};
use crate::underlay::Underlay;

/// The gateway's underlays, which scrapes ask too.
pub type Underlays = Arc<Mutex<Vec<Underlay>>>;

/// What has to know about ports.
pub struct Steering {
    underlays: Underlays,
    /// Of the underlays: what a tunnel that listens everywhere is entered for.
    addresses: Vec<IpAddr>,
    table: Mutex<Arc<ForwardingTable>>,
    workers: Vec<Orders>,
}

impl Steering {
    /// Steers to `workers`, which start with `table`.
    pub fn new(
        underlays: Underlays,
        addresses: Vec<IpAddr>,
        table: Arc<ForwardingTable>,
        workers: Vec<Orders>,
    ) -> Self {
        Self { underlays, addresses, table: Mutex::new(table), workers }
    }

    /// The workers, in the order of their sockets.
    pub fn workers(&self) -> &[Orders] {
        &self.workers
    }

    /// A tunnel listens on another port from now on.
    pub fn set_port(&self, tunnel: TunnelIndex, port: u16) {
        let mut table = lock(&self.table);
        *table = Arc::new(with_ports(&table, &self.addresses, |index| (index == tunnel).then_some(port)));
        for underlay in lock(&self.underlays).iter_mut() {
            underlay.update_table(&table);
        }
        for worker in &self.workers {
            if !worker.give(Order::Table(table.clone())) {
                warn!("a worker does not take orders: it goes on with the ports of before");
            }
        }
    }
}

/// The same tunnels, some of them at other ports.
pub fn with_ports(
    table: &ForwardingTable,
    addresses: &[IpAddr],
    port: impl Fn(TunnelIndex) -> Option<u16>,
) -> ForwardingTable {
    let mut tunnels = table.tunnels().to_vec();
    for (index, tunnel) in (0..).map(TunnelIndex).zip(&mut tunnels) {
        tunnel.port = port(index).unwrap_or(tunnel.port);
    }
    ForwardingTable::at(tunnels, addresses)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
