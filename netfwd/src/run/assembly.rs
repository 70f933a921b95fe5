//! What a gateway is made of: devices, ports, sockets, XDP, and each worker's share of them.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use netfwd_common::abi::TunnelKind;
use tracing::info;

use super::{RunError, system};
use crate::config::{self, Config};
use crate::control::StopNotice;
use crate::control::links::Link;
use crate::control::logging::Count;
use crate::datapath::egress::Egress;
use crate::datapath::fdb::Fdbs;
use crate::datapath::gro::GroConfig;
use crate::datapath::ingress::Ingress;
use crate::datapath::stats::Counters;
use crate::datapath::table::{ForwardingTable, Tunnel, VerifyPolicy, address_bytes};
use crate::deletion::Deletion;
use crate::io::tun::{DeviceOptions, OverlayDevice, TX_QUEUE_LEN, TunQueue, TunQueues};
use crate::io::tun_probe::WriteOffloads;
use crate::io::udp_receive::{ReceiveOptions, ReceiveSocket};
use crate::io::udp_send::{SendPool, UdpSender};
use crate::order::{self, OrderInbox, Orders};
use crate::underlay::{self, Underlay};
use crate::wireguard::desk::{Closing, Desk};
use crate::wireguard::path::{Share, WireGuardPath};
use crate::wireguard::setup::Bound;
use crate::wireguard::steering::{Steering, Underlays, underlay_addresses, with_ports};
use crate::wireguard::{self, Interface};
use crate::worker::{Endpoint, Parts, Queue, Shared};

/// Send sockets, and so source ports, of each local address.
const SOURCE_PORTS: usize = 64;
/// Most workers of a gateway without underlays, whose queues would say how many.
const MOST_WORKERS: usize = 8;

/// Everything made, nothing moving yet.
pub struct Gateway {
    pub(super) shared: Shared,
    /// Interface indices, in the tunnels' order.
    pub(super) devices: Vec<u32>,
    pub(super) underlays: Underlays,
    pub(super) workers: Vec<Parts>,
    pub(super) orders: Vec<Orders>,
    pub(super) steering: Arc<Steering>,
    pub(super) interfaces: Vec<Arc<Interface>>,
    pub(super) desk: Desk,
    pub(super) closing: Closing,
}

impl Gateway {
    /// Makes everything that the configuration asks for. XDP comes last: from then on packets arrive.
    pub(super) fn assemble(config: &Config, links: &[Link], mtus: &[u16]) -> Result<Self, RunError> {
        let table = config.forwarding_table(mtus);
        let counts = config.underlays.iter().map(underlay::queue_count).collect::<Result<Vec<_>, _>>()?;
        let workers = counts.iter().copied().max().unwrap_or_else(workers_without_underlay);
        let seed = RandomState::new().hash_one("netfwd");
        let (desk, queue, closing) = Desk::new();
        let ports = wireguard::setup::bind(config, &table, workers, &queue)?;
        let interfaces: Vec<_> = config.underlays.iter().map(|underlay| underlay.interface.as_str()).collect();
        let addresses = underlay_addresses(&interfaces, links);
        let port_of = |tunnel| ports.iter().find(|bound| bound.tunnel() == tunnel).map(|bound| bound.port());
        let table = Arc::new(with_ports(&table, &addresses, port_of));
        let Devices { queues: device_queues, indices, offloads } = open_devices(config, &table, workers)?;
        let gro = gro_config(&config.gro, &offloads, seed);
        let endpoints = open_endpoints(config, links, &table, workers)?;
        let pools = open_pools(&table)?;
        let mut queues: Vec<Vec<Option<Queue>>> = (0..workers).map(|_| Vec::new()).collect();
        let mut underlays = Vec::new();
        let beneath = underlay_links(config, links);
        for (underlay, count) in config.underlays.iter().zip(counts) {
            // Preflight has seen the interface.
            let Some(link) = links.iter().find(|link| link.name == underlay.interface) else { continue };
            let (opened, sockets) = Underlay::open(underlay, link, &beneath, &table, count)?;
            let mut sockets = sockets.into_iter();
            queues.iter_mut().for_each(|queues| queues.push(sockets.next()));
            underlays.push(opened);
        }
        let underlays = Arc::new(Mutex::new(underlays));
        let (orders, inboxes) = order_channels(workers)?;
        let steering = Arc::new(Steering::new(underlays.clone(), addresses, table.clone(), orders.clone()));
        let mut shares: Vec<Vec<Share>> = (0..workers).map(|_| Vec::new()).collect();
        let interfaces = serve(config, links, ports, &steering, &mut shares)?;
        let parts = queues.into_iter().zip(device_queues).zip(endpoints).zip(shares).zip(inboxes).map(
            |((((queues, devices), endpoints), shares), orders)| Parts {
                busy_poll: queues.iter().flatten().any(Queue::is_busy_polled),
                queues,
                endpoints,
                devices,
                sender: UdpSender::new(pools.clone()),
                ingress: Ingress::new(&gro, VerifyPolicy::default()),
                egress: Egress::new(seed),
                wireguard: WireGuardPath::new(shares),
                orders,
                deletion: Deletion::IsKnown,
                counters: Arc::new(Counters::new(table.tunnels().len())),
            },
        );
        let mut workers: Vec<_> = parts.collect();
        if let Some(first) = workers.first_mut() {
            first.deletion = Deletion::IsLogged;
        }
        let fdbs = Arc::new(Fdbs::new(&table, seed));
        Ok(Self {
            shared: Shared { table, fdbs, epoch: Instant::now() },
            devices: indices,
            underlays,
            workers,
            orders,
            steering,
            interfaces,
            desk,
            closing,
        })
    }

    /// A deleted device is the end from now on.
    pub(super) fn end_with_device(&mut self, notice: &StopNotice) {
        for parts in &mut self.workers {
            parts.deletion = Deletion::Ends(notice.clone());
        }
    }
}

/// The kernel spreads peers over the workers' sockets.
fn workers_without_underlay() -> usize {
    thread::available_parallelism().map_or(1, |cpus| cpus.get().min(MOST_WORKERS))
}

/// The tunnels' devices.
struct Devices {
    /// By worker.
    queues: Vec<TunQueues>,
    /// Interface indices.
    indices: Vec<u32>,
    /// What the kernel takes on a write.
    offloads: WriteOffloads,
}

/// One device per tunnel.
fn open_devices(config: &Config, table: &ForwardingTable, workers: usize) -> Result<Devices, RunError> {
    let mut by_worker: Vec<Vec<TunQueue>> = (0..workers).map(|_| Vec::new()).collect();
    let (mut indices, mut offloads) = (Vec::new(), WriteOffloads::NONE);
    for (tunnel, configured) in table.tunnels().iter().zip(&config.tunnels) {
        let (device, queues) = OverlayDevice::create(&DeviceOptions {
            name: tunnel.name.clone(),
            link: tunnel.link(),
            queues: workers,
            mtu: tunnel.mtu,
            mac: configured.vxlan().and_then(|vxlan| vxlan.mac),
            addresses: configured.addresses.clone(),
            // As the kernel's device: who is there follows from keys, and there are no neighbours to discover.
            link_local: tunnel.kind != TunnelKind::WireGuard,
            up: configured.up,
            tx_queue_len: TX_QUEUE_LEN,
        })?;
        // One driver serves them all.
        offloads = device.offloads().write;
        indices.push(device.index());
        info!("tunnel {}: {}", tunnel.name, describe(tunnel, &device));
        for (owner, queue) in by_worker.iter_mut().zip(queues) {
            owner.push(queue);
        }
    }
    Ok(Devices { queues: by_worker.into_iter().map(TunQueues::new).collect(), indices, offloads })
}

/// The configured rules, narrowed to what the kernel takes.
fn gro_config(config: &config::Gro, offloads: &WriteOffloads, hash_secret: u64) -> GroConfig {
    GroConfig {
        tcp: config.tcp,
        udp: config.udp && offloads.udp_segments > 1,
        udp_exclude_ports: config.udp_exclude_ports.clone(),
        udp_zero_checksum: config.udp_zero_checksum,
        max_udp_segments: offloads.udp_segments as u16,
        udp_short_last: offloads.udp_short_last,
        hash_secret,
    }
}

fn describe(tunnel: &Tunnel, device: &OverlayDevice) -> String {
    let Tunnel { kind, vni, local, port, mtu, remotes, .. } = tunnel;
    let what = match kind {
        TunnelKind::WireGuard if local.is_unspecified() => format!("on every address, port {port}, MTU {mtu}"),
        TunnelKind::WireGuard => format!("on {local} port {port}, MTU {mtu}"),
        TunnelKind::Vxlan | TunnelKind::VxlanGpe => {
            format!("VNI {vni} on {local} port {port}, MTU {mtu}, {}", Count(remotes.len(), "remote"))
        }
    };
    let offloads = device.offloads();
    let read = if offloads.read_udp { "read" } else { "none read" };
    let written = Count(offloads.write.udp_segments, "segment");
    format!("{} {what}, UDP superframes: {written} written, {read}", kind.as_str())
}

/// A socket per tunnel address and port and worker, by worker.
fn open_endpoints(
    config: &Config,
    links: &[Link],
    table: &ForwardingTable,
    workers: usize,
) -> Result<Vec<Vec<Endpoint>>, RunError> {
    let mut by_worker: Vec<Vec<Endpoint>> = (0..workers).map(|_| Vec::new()).collect();
    let mut seen: Vec<SocketAddr> = Vec::new();
    for tunnel in in_the_clear(table) {
        let address = SocketAddr::new(tunnel.local, tunnel.port);
        if seen.contains(&address) {
            continue;
        }
        seen.push(address);
        let shares = |other: &&Tunnel| SocketAddr::new(other.local, other.port) == address;
        let udp6_zero_checksum_rx = table.tunnels().iter().filter(shares).any(|other| other.udp6_zero_checksum_rx);
        let options = ReceiveOptions { udp6_zero_checksum_rx, ..ReceiveOptions::at(address) };
        let sockets = ReceiveSocket::bind_group(&options, workers)?;
        let verify = verify_policy(config, links, tunnel.local);
        for (owner, socket) in by_worker.iter_mut().zip(sockets) {
            let local = address_bytes(tunnel.local);
            owner.push(Endpoint { socket, local, port: tunnel.port, verify });
        }
    }
    Ok(by_worker)
}

/// The tunnels whose packets are not sealed.
fn in_the_clear(table: &ForwardingTable) -> impl Iterator<Item = &Tunnel> {
    table.tunnels().iter().filter(|tunnel| tunnel.kind != TunnelKind::WireGuard)
}

/// A way to tell each worker something.
fn order_channels(workers: usize) -> Result<(Vec<Orders>, Vec<OrderInbox>), RunError> {
    let channels: io::Result<Vec<_>> = (0..workers).map(|_| order::channel()).collect();
    Ok(channels.map_err(system("eventfd"))?.into_iter().unzip())
}

/// The WireGuard interfaces; each worker gets its share of them.
fn serve(
    config: &Config,
    links: &[Link],
    ports: Vec<Bound>,
    steering: &Arc<Steering>,
    shares: &mut [Vec<Share>],
) -> Result<Vec<Arc<Interface>>, RunError> {
    let mut interfaces = Vec::new();
    for bound in ports {
        let verify = verify_policy(config, links, bound.local());
        interfaces.push(Arc::new(bound.serve(steering, shares, verify)?));
    }
    Ok(interfaces)
}

/// The policy of the first underlay that what is sent to this address may arrive on.
fn verify_policy(config: &Config, links: &[Link], local: IpAddr) -> VerifyPolicy {
    let beneath = underlay_links(config, links);
    let first = beneath.iter().find(|link| underlay::may_arrive(local, link, &beneath));
    let underlay = first.and_then(|link| config.underlays.iter().find(|underlay| underlay.interface == link.name));
    underlay.map(underlay::verify_policy).unwrap_or_default()
}

/// The underlays' interfaces, in the configuration's order.
fn underlay_links<'l>(config: &Config, links: &'l [Link]) -> Vec<&'l Link> {
    let link_of = |underlay: &config::Underlay| links.iter().find(|link| link.name == underlay.interface);
    config.underlays.iter().filter_map(link_of).collect()
}

/// A pool of send sockets per local address; WireGuard sends from its own port.
fn open_pools(table: &ForwardingTable) -> Result<Vec<Arc<SendPool>>, RunError> {
    let mut locals: Vec<IpAddr> = in_the_clear(table).map(|tunnel| tunnel.local).collect();
    locals.sort_unstable();
    locals.dedup();
    Ok(locals.into_iter().map(|local| SendPool::open(local, SOURCE_PORTS).map(Arc::new)).collect::<Result<_, _>>()?)
}
