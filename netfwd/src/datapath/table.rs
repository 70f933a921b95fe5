//! The forwarding table: an immutable snapshot of everything that configuration decides about packets.
//!
//! Workers load it once per batch. Tunnels and their remotes are addressed by index; XDP's metadata carries the same
//! indices. A change of configuration makes a new table and swaps it in.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netfwd_common::abi::{
    EndpointEntry, EndpointKey, FLAG_UDP6_ZERO_CSUM_RX, TunnelEntry, TunnelKey, TunnelKind, Verify, map_ipv4,
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
    /// Network identifier.
    pub vni: u32,
    /// Outer source on send, outer destination on receive.
    pub local: IpAddr,
    /// UDP port.
    pub port: u16,
    /// Who may send, and who gets what has no better destination; [`RemoteIndex`] points here.
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
}

impl ForwardingTable {
    /// A table of `tunnels`, whose order gives their indices.
    pub fn new(tunnels: Vec<Tunnel>) -> Self {
        let routes = tunnels.iter().map(|tunnel| Routes::new(&tunnel.routes)).collect();
        let mut table = Self { tunnels, routes, ..Self::default() };
        for (index, tunnel) in table.tunnels.iter().enumerate() {
            let local = address_bytes(tunnel.local);
            table.endpoints.insert(
                EndpointKey { local, port: tunnel.port, reserved: 0 },
                EndpointEntry { kind: tunnel.kind as u8, reserved: [0; 3] },
            );
            for (remote_index, remote) in tunnel.remotes.iter().enumerate() {
                let key = TunnelKey {
                    local,
                    remote: address_bytes(*remote),
                    vni: tunnel.vni,
                    port: tunnel.port,
                    reserved: 0,
                };
                let entry = TunnelEntry {
                    tunnel: index as u16,
                    remote: remote_index as u16,
                    kind: tunnel.kind as u8,
                    flags: if tunnel.udp6_zero_checksum_rx { FLAG_UDP6_ZERO_CSUM_RX } else { 0 },
                    reserved: 0,
                };
                table.by_key.insert(key, entry);
            }
        }
        table.endpoint_ports = table.tunnels.iter().map(|tunnel| tunnel.port).collect();
        table.endpoint_ports.sort_unstable();
        table.endpoint_ports.dedup();
        table
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
    fn tunnel(&self, key: &TunnelKey) -> Option<TunnelEntry> {
        self.by_key.get(key).copied()
    }

    fn endpoint(&self, key: &EndpointKey) -> Option<EndpointEntry> {
        self.endpoints.get(key).copied()
    }
}

/// An address as map keys hold it: sixteen bytes, IPv4 v4-mapped.
pub fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => map_ipv4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}
