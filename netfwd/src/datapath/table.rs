//! The forwarding table: an immutable snapshot of everything that configuration decides about packets.
//!
//! Workers load it once per batch. Tunnels and their remotes are addressed by index; XDP's metadata carries the same
//! indices. A change of configuration makes a new table and swaps it in.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netfwd_common::abi::{
    EndpointEntry, EndpointKey, FLAG_UDP6_ZERO_CSUM_RX, NetworkKey, TunnelEntry, TunnelKey, TunnelKind, Verify,
    map_ipv4,
};
use netfwd_common::classify::Lookup;
use netfwd_common::wire::ethernet::Mac;

use super::lpm::Routes;
use super::packet::{Link, RemoteIndex, TunnelIndex};

/// One configured tunnel.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Device name, also the `tunnel` label.
    pub name: String,
    /// Protocol.
    pub kind: TunnelKind,
    /// Network identifier; WireGuard: 0.
    pub vni: u32,
    /// Outer source on send, outer destination on receive. WireGuard: unspecified for every address of this machine.
    pub local: IpAddr,
    /// UDP port. On one address it belongs to one WireGuard tunnel alone.
    pub port: u16,
    /// Who may send, and who gets what has no better destination; [`RemoteIndex`] points here. WireGuard: empty, since its peers
    /// may be anywhere.
    pub remotes: Vec<IpAddr>,
    /// L2: learn inner source addresses.
    pub learning: bool,
    /// L2: static entries.
    pub static_macs: Vec<(Mac, RemoteIndex)>,
    /// L3: prefixes and the remotes they lie behind.
    pub routes: Vec<(IpNet, RemoteIndex)>,
    /// Device MTU: the largest inner IP packet.
    pub mtu: u16,
    /// A checksum in the outer UDP header on send; always so over IPv6 unless `udp6_zero_checksum_tx`.
    pub udp_checksum: bool,
    /// Accept a zero outer UDP checksum over IPv6 (RFC 6935).
    pub udp6_zero_checksum_rx: bool,
    /// Send a zero outer UDP checksum over IPv6 (RFC 6935).
    pub udp6_zero_checksum_tx: bool,
    /// DSCP of the outer header, 0 by default.
    pub dscp: u8,
}

impl Tunnel {
    /// What the tunnel carries.
    pub fn link(&self) -> Link {
        if self.kind.is_l2() { Link::Ethernet } else { Link::Ip }
    }

    /// The outer destinations of what is for this tunnel: `local`, or if that is unspecified, `addresses` and what sockets
    /// without an address call theirs.
    fn destinations(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        if !self.local.is_unspecified() {
            return vec![self.local];
        }
        let unspecified = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        addresses.iter().copied().chain(unspecified).collect()
    }

    fn entry(&self, tunnel: usize, remote: usize) -> TunnelEntry {
        TunnelEntry {
            tunnel: tunnel as u16,
            remote: remote as u16,
            kind: self.kind as u8,
            flags: if self.udp6_zero_checksum_rx { FLAG_UDP6_ZERO_CSUM_RX } else { 0 },
            reserved: 0,
        }
    }

    /// The remote's address.
    pub fn remote(&self, index: RemoteIndex) -> Option<IpAddr> {
        self.remotes.get(usize::from(index.0)).copied()
    }
}

/// What ingress does about inner checksums, for what XDP did not look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyPolicy {
    /// Drop, count or tolerate bad checksums.
    pub verify: Verify,
    /// Finish partial checksums instead of treating them as bad.
    pub accept_partial: bool,
}

/// Everything that configuration decides about packets.
#[derive(Debug, Default)]
pub struct ForwardingTable {
    tunnels: Vec<Tunnel>,
    routes: Vec<Routes>,
    by_key: HashMap<TunnelKey, TunnelEntry>,
    /// The ports of `endpoints`, sorted.
    endpoint_ports: Vec<u16>,
    endpoints: HashMap<EndpointKey, EndpointEntry>,
    networks: HashSet<NetworkKey>,
}

impl ForwardingTable {
    /// A table of `tunnels`, whose order gives their indices.
    pub fn new(tunnels: Vec<Tunnel>) -> Self {
        Self::at(tunnels, &[])
    }

    /// A table for a machine with these underlay addresses: where a tunnel listens that has an unspecified address.
    ///
    /// What arrives at an address that is missing here, since it is new, takes the way through the kernel's socket.
    pub fn at(tunnels: Vec<Tunnel>, addresses: &[IpAddr]) -> Self {
        let routes = tunnels.iter().map(|tunnel| Routes::new(&tunnel.routes)).collect();
        let mut endpoint_ports: Vec<u16> = tunnels.iter().map(|tunnel| tunnel.port).collect();
        endpoint_ports.sort_unstable();
        endpoint_ports.dedup();
        let mut table = Self { routes, endpoint_ports, ..Self::default() };
        for (index, tunnel) in tunnels.iter().enumerate() {
            for destination in tunnel.destinations(addresses) {
                table.insert(index, tunnel, address_bytes(destination));
            }
        }
        Self { tunnels, ..table }
    }

    /// Enters a tunnel for what is sent to `local`.
    fn insert(&mut self, index: usize, tunnel: &Tunnel, local: [u8; 16]) {
        let Tunnel { kind, vni, port, .. } = *tunnel;
        let endpoint = EndpointKey { local, port, reserved: 0 };
        self.endpoints.insert(endpoint, EndpointEntry { kind: kind as u8, reserved: [0; 3] });
        if kind == TunnelKind::WireGuard {
            self.by_key.insert(TunnelKey::roaming(local, port), tunnel.entry(index, 0));
            return;
        }
        self.networks.insert(NetworkKey { local, vni, port, reserved: 0 });
        for (remote_index, remote) in tunnel.remotes.iter().enumerate() {
            let key = TunnelKey { local, remote: address_bytes(*remote), vni, port, reserved: 0 };
            self.by_key.insert(key, tunnel.entry(index, remote_index));
        }
    }

    /// All tunnels, in index order.
    pub fn tunnels(&self) -> &[Tunnel] {
        &self.tunnels
    }

    /// The tunnel at `index`; indices from the metadata record are not trusted.
    pub fn get(&self, index: TunnelIndex) -> Option<&Tunnel> {
        self.tunnels.get(usize::from(index.0))
    }

    /// The remote behind the longest prefix of an L3 tunnel that covers `address`.
    pub fn route(&self, index: TunnelIndex, address: IpAddr) -> Option<RemoteIndex> {
        self.routes.get(usize::from(index.0))?.lookup(address)
    }

    /// All exact-match entries: what the BPF map is filled with.
    pub fn entries(&self) -> impl Iterator<Item = (&TunnelKey, &TunnelEntry)> {
        self.by_key.iter()
    }

    /// All VNIs, whoever their remotes are: what the BPF map is filled with.
    pub fn networks(&self) -> impl Iterator<Item = &NetworkKey> {
        self.networks.iter()
    }

    /// All endpoints: what the BPF map is filled with, and the sockets to open.
    pub fn endpoints(&self) -> impl Iterator<Item = (&EndpointKey, &EndpointEntry)> {
        self.endpoints.iter()
    }

    /// Whether `remote` may use `address` as an inner source: the tunnel's routes lead back to it. A tunnel without
    /// routes has no such list.
    pub fn inner_source_allowed(&self, index: TunnelIndex, remote: RemoteIndex, address: IpAddr) -> bool {
        let routes = self.routes.get(usize::from(index.0));
        routes.is_some_and(|routes| routes.is_empty() || routes.lookup(address) == Some(remote))
    }

    /// Whether some endpoint has this UDP port: spares most packets the look at [`Lookup::endpoint`].
    pub fn is_endpoint_port(&self, port: u16) -> bool {
        self.endpoint_ports.binary_search(&port).is_ok()
    }
}

impl Lookup for ForwardingTable {
    fn tunnel(&self, key: TunnelKey) -> Option<TunnelEntry> {
        self.by_key.get(&key).copied()
    }

    fn endpoint(&self, key: &EndpointKey) -> Option<EndpointEntry> {
        self.endpoints.get(key).copied()
    }

    fn network(&self, key: &NetworkKey) -> bool {
        self.networks.contains(key)
    }
}

/// An address as map keys hold it: sixteen bytes, IPv4 v4-mapped.
pub fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => map_ipv4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}
