//! The document's sections, and what must hold between them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use netfwd_common::abi::{MAX_ENDPOINTS, MAX_QUEUES, MAX_TUNNELS, TunnelKind, Verify};
use toml::Spanned;
use toml::de::DeValue;

use super::document::{Parsed, Section};
use super::value::{boolean, integer16, interface_name, list, listen, one_of, port};
use super::{Config, Gro, Metrics, Queues, Tunnel, Underlay, XdpMode, ZeroCopy, tunnel};

pub(super) const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9477);

/// The whole document; `None` if a section had a fault that leaves nothing to return.
pub(super) fn config(mut root: Section<'_>, file: &Path) -> Option<Config> {
    let metrics = metrics(root.table("metrics"));
    let underlays = underlays(root.tables("underlay"));
    let gro = root.table("gro").map_or_else(Gro::default, gro);
    let tunnels = tunnels(root.tables("tunnel"), &underlays, file);
    for (key, what) in [
        ("underlay", "at least one [[underlay]] with interface = \"…\" (xdp = \"off\" uses kernel sockets only)"),
        ("tunnel", "at least one [[tunnel]]"),
    ] {
        if root.lacks(key) {
            root.fault(key, format!("missing: {what}"));
        }
    }
    root.finish();
    Some(Config { file: file.into(), metrics, underlays, gro, tunnels: tunnels? })
}

fn metrics(section: Option<Section<'_>>) -> Metrics {
    let Some(mut section) = section else {
        return Metrics { listen: DEFAULT_LISTEN, wireguard_peers: false, line: 1 };
    };
    let listen = section.optional("listen", listen).unwrap_or(DEFAULT_LISTEN);
    let wireguard_peers = section.optional("wireguard_peers", boolean).unwrap_or(false);
    let line = section.line_of("listen");
    section.finish();
    Metrics { listen, wireguard_peers, line }
}

fn gro(mut section: Section<'_>) -> Gro {
    let default = Gro::default();
    let tcp = section.optional("tcp", boolean).unwrap_or(default.tcp);
    let udp = section.optional("udp", boolean).unwrap_or(default.udp);
    let ports = section.optional("udp_exclude_ports", |value| list(value, "53, 443", port)).unwrap_or_default();
    let udp_exclude_ports = ports.into_iter().map(Spanned::into_inner).collect();
    let udp_zero_checksum = section.optional("udp_zero_checksum", boolean).unwrap_or(default.udp_zero_checksum);
    section.finish();
    Gro { tcp, udp, udp_exclude_ports, udp_zero_checksum }
}

fn underlays(sections: Vec<Section<'_>>) -> Vec<Underlay> {
    let mut seen = HashMap::new();
    let mut underlays = Vec::new();
    for mut section in sections {
        let name = section.required("interface", "the interface that tunnel packets arrive on", interface_name);
        if let Some(first) = name.clone().and_then(|name| seen.insert(name, section.line_of("interface"))) {
            section.fault("interface", format!("already an underlay in line {first}"));
        }
        underlays.push(underlay(section, name.unwrap_or_default()));
    }
    underlays
}

fn underlay(mut section: Section<'_>, interface: String) -> Underlay {
    const XDP: [(&str, XdpMode); 4] =
        [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic), ("off", XdpMode::Off)];
    const ZERO_COPY: [(&str, ZeroCopy); 3] =
        [("auto", ZeroCopy::Auto), ("require", ZeroCopy::Require), ("off", ZeroCopy::Off)];
    const VERIFY: [(&str, Verify); 3] = [("drop", Verify::Drop), ("count", Verify::Count), ("off", Verify::Off)];
    let underlay = Underlay {
        interface,
        xdp: section.optional("xdp", |value| one_of(value, &XDP)).unwrap_or_default(),
        zero_copy: section.optional("zero_copy", |value| one_of(value, &ZERO_COPY)).unwrap_or_default(),
        queues: section.optional("queues", queues).unwrap_or_default(),
        verify: section.optional("verify", |value| one_of(value, &VERIFY)).unwrap_or_default(),
        accept_partial: section.optional("accept_partial", boolean).unwrap_or(false),
        busy_poll: section.optional("busy_poll", boolean).unwrap_or(false),
        debug: section.optional("debug", boolean).unwrap_or(false),
        line: section.line_of("interface"),
    };
    section.finish();
    underlay
}

fn queues(value: &Spanned<DeValue<'_>>) -> Parsed<Queues> {
    if value.get_ref().is_str() {
        return one_of(value, &[("all", Queues::All)]).map_err(|mut fault| {
            fault.message.push_str(&format!(", nor a number from 1 to {MAX_QUEUES}"));
            fault
        });
    }
    integer16(value, 1..=MAX_QUEUES as u16, " queues").map(Queues::Count)
}

/// All tunnels, or `None` if one of them is not complete.
fn tunnels(sections: Vec<Section<'_>>, underlays: &[Underlay], file: &Path) -> Option<Vec<Tunnel>> {
    let mut seen = Seen::default();
    let mut tunnels = Vec::new();
    let mut complete = true;
    for mut section in sections {
        let tunnel = tunnel::tunnel(&mut section, file);
        match tunnel {
            Some(tunnel) => {
                seen.check(&section, &tunnel, underlays);
                tunnels.push(tunnel);
            }
            None => complete = false,
        }
        section.finish();
    }
    complete.then_some(tunnels)
}

/// What earlier tunnels have taken, with their lines.
#[derive(Default)]
struct Seen {
    names: HashMap<String, usize>,
    networks: HashMap<(IpAddr, u16, u32), usize>,
    endpoints: Vec<Endpoint>,
    zero_checksums: HashMap<(IpAddr, u16), (bool, usize)>,
    pairs: usize,
}

/// Who has an address and port.
struct Endpoint {
    local: IpAddr,
    port: u16,
    kind: TunnelKind,
    line: usize,
}

impl Seen {
    /// Refuses what an earlier tunnel, or an underlay, already is.
    fn check(&mut self, section: &Section<'_>, tunnel: &Tunnel, underlays: &[Underlay]) {
        let Tunnel { name, local, port, .. } = tunnel;
        let line = tunnel.lines.name;
        if let Some(first) = self.names.insert(name.clone(), line) {
            section.fault("name", format!("\"{name}\" is already the tunnel of line {first}: device names are unique"));
        }
        if underlays.iter().any(|underlay| underlay.interface == *name) {
            section.fault("name", format!("\"{name}\" is an underlay interface: the tunnel needs a name of its own"));
        }
        if let Some(vni) = tunnel.vxlan().map(|vxlan| vxlan.vni)
            && let Some(first) = self.networks.insert((*local, *port, vni), line)
        {
            section.fault("vni", format!("{vni} at {local} port {port} is already the tunnel of line {first}"));
        }
        self.check_endpoint(section, Endpoint { local: *local, port: *port, kind: tunnel.kind(), line });
        self.check_zero_checksums(section, tunnel);
        self.check_limits(section, tunnel);
    }

    /// One kind per address and port; of WireGuard, where only keys tell tunnels apart, one tunnel.
    fn check_endpoint(&mut self, section: &Section<'_>, endpoint: Endpoint) {
        let Endpoint { local, port, kind, .. } = endpoint;
        match self.endpoints.iter().find(|other| other.overlaps(&endpoint)) {
            Some(Endpoint { local, kind: other, line, .. }) if *other != kind => {
                let address = if local.is_unspecified() { "every address'".to_owned() } else { local.to_string() };
                let other = other.as_str();
                let message =
                    format!("{address} port {port} is {other} since line {line}: one kind per address and port");
                section.fault("kind", message);
            }
            Some(Endpoint { line, .. }) if kind == TunnelKind::WireGuard => {
                let message = format!("{port} is already the WireGuard tunnel's of line {line}: each needs its own");
                section.fault("port", message);
            }
            _ => {}
        }
        if !self.endpoints.iter().any(|other| (other.local, other.port) == (local, port)) {
            self.endpoints.push(endpoint);
        }
    }

    /// Tunnels of one address and port share the kernel's socket, which accepts zero checksums for all of them or for none.
    fn check_zero_checksums(&mut self, section: &Section<'_>, tunnel: &Tunnel) {
        let Some(accepts) = tunnel.vxlan().map(|vxlan| vxlan.udp6_zero_checksum_rx) else { return };
        let place = (tunnel.local, tunnel.port);
        let (first, line) = *self.zero_checksums.entry(place).or_insert((accepts, tunnel.lines.name));
        if first != accepts {
            let message = format!(
                "is {first} for the tunnel of line {line}, which has the same address and port: one socket, one rule"
            );
            section.fault("udp6_zero_checksum_rx", message);
        }
    }

    fn check_limits(&mut self, section: &Section<'_>, tunnel: &Tunnel) {
        self.pairs += tunnel.vxlan().map_or(1, |vxlan| vxlan.remotes.len());
        if self.pairs > MAX_TUNNELS as usize {
            section.fault("remotes", format!("more than {MAX_TUNNELS} remotes in all tunnels together"));
        }
        if self.endpoints.len() > MAX_ENDPOINTS as usize {
            section.fault("local", format!("more than {MAX_ENDPOINTS} different local addresses and ports"));
        }
    }
}

impl Endpoint {
    /// Whether one datagram could be for both.
    fn overlaps(&self, other: &Self) -> bool {
        let everywhere = self.local.is_unspecified() || other.local.is_unspecified();
        self.port != 0 && self.port == other.port && (everywhere || self.local == other.local)
    }
}
