//! Where XDP and the workers find a WireGuard tunnel: at which port of which addresses.
//!
//! A WireGuard port can change while packets flow, by `wg set`, and an underlay can get other addresses. Then XDP's maps and
//! the workers' table have to follow: the maps entry by entry, the table as a whole. Until they have, packets take the
//! kernel's socket, which has them already.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{debug, warn};

use crate::control::links::Link;
use crate::datapath::packet::TunnelIndex;
use crate::datapath::table::ForwardingTable;
use crate::order::{Order, Orders};
use crate::underlay::Underlay;

/// The gateway's underlays, which scrapes ask too.
pub type Underlays = Arc<Mutex<Vec<Underlay>>>;

/// What has to know about ports and addresses.
pub struct Steering {
    underlays: Underlays,
    current: Mutex<Current>,
    workers: Vec<Orders>,
}

struct Current {
    table: Arc<ForwardingTable>,
    /// Of the underlays: what a tunnel that listens everywhere is entered for.
    addresses: Vec<IpAddr>,
}

impl Steering {
    /// Steers to `workers`, which start with `table`, made for these addresses.
    pub fn new(
        underlays: Underlays,
        addresses: Vec<IpAddr>,
        table: Arc<ForwardingTable>,
        workers: Vec<Orders>,
    ) -> Self {
        Self { underlays, current: Mutex::new(Current { table, addresses }), workers }
    }

    /// The workers, in the order of their sockets.
    pub fn workers(&self) -> &[Orders] {
        &self.workers
    }

    /// Whether any tunnel listens on every address there is.
    pub fn listens_everywhere(&self) -> bool {
        lock(&self.current).table.tunnels().iter().any(|tunnel| tunnel.local.is_unspecified())
    }

    /// A tunnel listens on another port from now on.
    pub fn set_port(&self, tunnel: TunnelIndex, port: u16) {
        self.change(&mut lock(&self.current), |index| (index == tunnel).then_some(port));
    }

    /// The underlays have the addresses that these links have.
    pub fn set_addresses(&self, links: &[Link]) {
        let addresses = {
            let underlays = lock(&self.underlays);
            let interfaces: Vec<&str> = underlays.iter().map(Underlay::interface).collect();
            underlay_addresses(&interfaces, links)
        };
        let mut current = lock(&self.current);
        if current.addresses != addresses {
            debug!("the underlays' addresses are now {addresses:?}");
            current.addresses = addresses;
            self.change(&mut current, |_| None);
        }
    }

    fn change(&self, current: &mut Current, port: impl Fn(TunnelIndex) -> Option<u16>) {
        current.table = Arc::new(with_ports(&current.table, &current.addresses, port));
        for underlay in lock(&self.underlays).iter_mut() {
            underlay.update_table(&current.table);
        }
        for worker in &self.workers {
            if !worker.give(Order::Table(current.table.clone())) {
                warn!("a worker does not take orders: it goes on with the ports and addresses of before");
            }
        }
    }
}

/// The addresses of these interfaces, sorted, without link-local ones: XDP does not tell by which interface a packet came, so
/// those take the kernel's socket.
pub fn underlay_addresses(interfaces: &[&str], links: &[Link]) -> Vec<IpAddr> {
    let is_link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let underlays = links.iter().filter(|link| interfaces.contains(&link.name.as_str()));
    let addresses = underlays.flat_map(|link| link.addresses.iter().copied());
    let mut addresses: Vec<_> = addresses.filter(|address| !is_link_local(address)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_underlay_can_be_told_apart_by_is_its_address() {
        let addresses =
            |all: &[&str]| all.iter().map(|text| text.parse().expect("an address")).collect::<Vec<IpAddr>>();
        let link =
            |name: &str, all: &[&str]| Link { name: name.to_owned(), addresses: addresses(all), ..Link::default() };
        let links = [
            link("eth0", &["fd00::2", "fe80::2", "10.9.0.2"]),
            link("lan0", &["192.168.0.1"]),
            link("eth1", &["10.9.0.2", "10.9.0.3"]),
        ];
        let found = underlay_addresses(&["eth1", "eth0"], &links);
        assert_eq!(found, addresses(&["10.9.0.2", "10.9.0.3", "fd00::2"]));
    }
}
