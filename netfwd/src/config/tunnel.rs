//! `[[tunnel]]`: keys of every kind, then those of VXLAN: of both its kinds, of L2, of L3.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netfwd_common::abi::TunnelKind;
use netfwd_common::wire::ethernet::Mac;
use netfwd_common::wire::vxlan::{GPE_PORT, MAX_VNI, PORT};
use toml::Spanned;

use super::document::Section;
use super::value::{
    boolean, device_name, integer, integer16, interface_address, list, mac, one_of, port, prefix, unicast,
};
use super::{Protocol, Tunnel, TunnelLines, Vxlan, wireguard};
use crate::datapath::packet::RemoteIndex;

/// Smallest MTU that IPv4 allows (RFC 791).
const MIN_MTU: u16 = 576;
/// Smallest MTU that IPv6 allows (RFC 8200 §5).
const MIN_MTU_IPV6: u16 = 1280;

const KINDS: [(&str, TunnelKind); 3] = [
    (TunnelKind::Vxlan.as_str(), TunnelKind::Vxlan),
    (TunnelKind::VxlanGpe.as_str(), TunnelKind::VxlanGpe),
    (TunnelKind::WireGuard.as_str(), TunnelKind::WireGuard),
];

/// One tunnel of the configuration `file`; `None` after a fault in something that the rest needs.
pub(super) fn tunnel(section: &mut Section<'_>, file: &Path) -> Option<Tunnel> {
    let name = section.required("name", "the device's name, such as \"vx7\"", device_name);
    let kind = section.required("kind", "\"vxlan\", \"vxlan-gpe\" or \"wireguard\"", |value| one_of(value, &KINDS));
    let addresses = addresses(section);
    let mtu = mtu(section, &addresses);
    let (local, port, protocol) = match kind {
        Some(TunnelKind::WireGuard) => wireguard_tunnel(section, file),
        _ => vxlan_tunnel(section, kind),
    };
    kind?;
    let (protocol, lines) = (protocol?, lines(section));
    Some(Tunnel { name: name?, local: local?, port: port?, addresses, mtu, up: true, protocol, lines })
}

type Particulars = (Option<IpAddr>, Option<u16>, Option<Protocol>);

fn wireguard_tunnel(section: &mut Section<'_>, file: &Path) -> Particulars {
    section.refuse(
        &["vni", "remotes", "route"],
        "only for \"vxlan\" and \"vxlan-gpe\": WireGuard's peers and their allowed_ips are in [[tunnel.peer]]",
    );
    section.refuse(&["learning", "fdb", "mac"], "only for \"vxlan\": wireguard carries IP and knows no MAC addresses");
    section.refuse(
        &["udp_checksum", "udp6_zero_checksum_rx", "udp6_zero_checksum_tx"],
        "only for \"vxlan\" and \"vxlan-gpe\": WireGuard's datagrams always have a checksum",
    );
    section
        .refuse(&["dscp"], "only for \"vxlan\" and \"vxlan-gpe\": WireGuard shows nothing of what it carries but ECN");
    let local = wireguard::local(section);
    let port = section.optional("port", |value| integer16(value, 0..=u16::MAX, " (16 bits)"));
    let port = if section.has("port") { port } else { Some(0) };
    (local, port, wireguard::wireguard(section, local, file).map(Protocol::WireGuard))
}

/// Also of a tunnel whose kind is missing or unknown: its other faults are told at once.
fn vxlan_tunnel(section: &mut Section<'_>, kind: Option<TunnelKind>) -> Particulars {
    if let Some(kind) = kind {
        let why = format!("only for \"wireguard\": {} has neither keys nor peers", kind.as_str());
        section.refuse(&wireguard::KEYS, &why);
    }
    let vni = section.required("vni", "the network identifier", |value| integer(value, 0..=MAX_VNI, " (24 bits)"));
    let local = section.required("local", "this machine's underlay address", unicast);
    let port = section.optional("port", port).or(kind.map(default_port));
    let remotes = remotes(section, local);
    let outer = outer(section, local);
    let l2 = l2(section, kind, remotes.as_deref());
    let routes = routes(section, kind, remotes.as_deref());
    let vxlan = kind.zip(vni).zip(remotes).map(|((kind, vni), remotes)| Vxlan {
        kind,
        vni,
        remotes,
        learning: l2.learning,
        fdb: l2.fdb,
        routes,
        mac: l2.mac,
        udp_checksum: outer.udp_checksum,
        udp6_zero_checksum_rx: outer.udp6_zero_checksum_rx,
        udp6_zero_checksum_tx: outer.udp6_zero_checksum_tx,
        dscp: outer.dscp,
    });
    (local, port, vxlan.map(Protocol::Vxlan))
}

fn lines(section: &Section<'_>) -> TunnelLines {
    TunnelLines {
        name: section.line_of("name"),
        local: section.line_of("local"),
        port: section.line_of("port"),
        mtu: section.line_of("mtu"),
    }
}

fn default_port(kind: TunnelKind) -> u16 {
    match kind {
        TunnelKind::Vxlan => PORT,
        TunnelKind::VxlanGpe => GPE_PORT,
        // The kernel chooses, as for `wg`.
        TunnelKind::WireGuard => 0,
    }
}

pub(super) fn family(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "IPv4" } else { "IPv6" }
}

/// The remotes, after refusing an empty list, duplicates, the other family and ourselves.
fn remotes(section: &mut Section<'_>, local: Option<IpAddr>) -> Option<Vec<IpAddr>> {
    let what = "the other ends' underlay addresses, such as [\"10.9.0.1\"]";
    let remotes = section.required("remotes", what, |value| list(value, "\"10.9.0.1\"", unicast))?;
    if remotes.is_empty() {
        section.fault("remotes", "is empty, so nobody may send: name at least one remote");
    }
    for remote in &remotes {
        if let Some(message) = local.and_then(|local| wrong_remote(*remote.get_ref(), local)) {
            section.fault_at(remote.span(), "remotes", message);
        }
    }
    Some(distinct(section, "remotes", remotes))
}

fn wrong_remote(remote: IpAddr, local: IpAddr) -> Option<String> {
    if remote == local {
        return Some(format!("{remote} is the local address: name the other end's"));
    }
    let other_family = remote.is_ipv4() != local.is_ipv4();
    other_family.then(|| {
        format!("{remote} is {} but local = \"{local}\" is {}", family(remote.is_ipv4()), family(local.is_ipv4()))
    })
}

fn addresses(section: &mut Section<'_>) -> Vec<IpNet> {
    let addresses = section.optional("addresses", |value| list(value, "\"10.10.0.2/24\"", interface_address));
    distinct(section, "addresses", addresses.unwrap_or_default())
}

/// A list's items, after refusing those that it names twice.
fn distinct<T: Copy + Eq + Hash + Display>(section: &Section<'_>, key: &str, items: Vec<Spanned<T>>) -> Vec<T> {
    let mut seen = HashSet::new();
    for item in items.iter().filter(|item| !seen.insert(*item.get_ref())) {
        section.fault_at(item.span(), key, format!("{} is listed twice", item.get_ref()));
    }
    items.into_iter().map(Spanned::into_inner).collect()
}

fn remote_index(section: &mut Section<'_>, remotes: Option<&[IpAddr]>) -> Option<RemoteIndex> {
    let address = section.required("remote", "one of the tunnel's remotes", unicast)?;
    let remotes = remotes?;
    let Some(index) = remotes.iter().position(|remote| *remote == address) else {
        let known = remotes.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        section.fault("remote", format!("{address} is not one of the tunnel's remotes: {known}"));
        return None;
    };
    // More than 65,536 remotes are refused as a whole.
    Some(RemoteIndex(index as u16))
}

struct L2 {
    learning: bool,
    fdb: Vec<(Mac, RemoteIndex)>,
    mac: Option<Mac>,
}

fn l2(section: &mut Section<'_>, kind: Option<TunnelKind>, remotes: Option<&[IpAddr]>) -> L2 {
    if let Some(kind) = kind.filter(|kind| !kind.is_l2()) {
        for key in ["learning", "fdb", "mac"].into_iter().filter(|key| section.has(key)) {
            section.fault(key, format!("only for \"vxlan\": {} carries IP and knows no MAC addresses", kind.as_str()));
        }
    }
    let learning = section.optional("learning", boolean).unwrap_or(true);
    let device_mac = section.optional("mac", mac);
    let mut seen = HashMap::new();
    let mut fdb = Vec::new();
    for mut entry in section.tables("fdb") {
        let address = entry.required("mac", "the station's MAC address", mac);
        if let Some(first) = address.and_then(|address| seen.insert(address, entry.line_of("mac"))) {
            entry.fault("mac", format!("already has an entry in line {first}"));
        }
        let remote = remote_index(&mut entry, remotes);
        fdb.extend(address.zip(remote));
        entry.finish();
    }
    L2 { learning: learning && kind.is_some_and(TunnelKind::is_l2), fdb, mac: device_mac }
}

fn routes(
    section: &mut Section<'_>,
    kind: Option<TunnelKind>,
    remotes: Option<&[IpAddr]>,
) -> Vec<(IpNet, RemoteIndex)> {
    match kind {
        Some(kind) if kind.is_l2() && section.has("route") => {
            section.fault(
                "route",
                "only for \"vxlan-gpe\": vxlan carries Ethernet, where the kernel routes over the device",
            );
        }
        Some(kind) if !kind.is_l2() && section.lacks("route") => {
            section.fault(
                "route",
                "missing: at least one [[tunnel.route]] with prefix and remote; nothing passes without",
            );
        }
        _ => {}
    }
    let mut seen = HashMap::new();
    let mut routes = Vec::new();
    for mut entry in section.tables("route") {
        let network = entry.required("prefix", "what lies behind the remote, such as \"10.20.0.0/16\"", prefix);
        if let Some(first) = network.and_then(|network| seen.insert(network, entry.line_of("prefix"))) {
            entry.fault("prefix", format!("already has a route in line {first}"));
        }
        let remote = remote_index(&mut entry, remotes);
        routes.extend(network.zip(remote));
        entry.finish();
    }
    routes
}

/// How the outer header is written.
struct Outer {
    udp_checksum: bool,
    udp6_zero_checksum_rx: bool,
    udp6_zero_checksum_tx: bool,
    dscp: u8,
}

fn outer(section: &mut Section<'_>, local: Option<IpAddr>) -> Outer {
    let udp_checksum = section.optional("udp_checksum", boolean);
    let udp6_zero_checksum_rx = section.optional("udp6_zero_checksum_rx", boolean).unwrap_or(false);
    let udp6_zero_checksum_tx = section.optional("udp6_zero_checksum_tx", boolean).unwrap_or(false);
    let dscp = section.optional("dscp", |value| integer16(value, 0..=63, " (6 bits)")).unwrap_or(0) as u8;
    if local.is_some_and(|local| local.is_ipv6()) && udp_checksum == Some(false) {
        section.fault(
            "udp_checksum",
            "over IPv6 the checksum is mandatory; udp6_zero_checksum_tx = true is the exception (RFC 6935)",
        );
    }
    let zeroes = [("udp6_zero_checksum_rx", udp6_zero_checksum_rx), ("udp6_zero_checksum_tx", udp6_zero_checksum_tx)];
    for (key, _) in zeroes.into_iter().filter(|(_, set)| *set && local.is_some_and(|local| local.is_ipv4())) {
        section.fault(key, "only over IPv6, and local is IPv4 (where a zero checksum is always accepted)");
    }
    Outer { udp_checksum: udp_checksum.unwrap_or(false), udp6_zero_checksum_rx, udp6_zero_checksum_tx, dscp }
}

fn mtu(section: &mut Section<'_>, addresses: &[IpNet]) -> Option<u16> {
    let mtu = section.optional("mtu", |value| integer16(value, MIN_MTU..=u16::MAX, ""))?;
    if let Some(address) = addresses.iter().find(|address| address.addr().is_ipv6()).filter(|_| mtu < MIN_MTU_IPV6) {
        section.fault("mtu", format!("{mtu} is less than the {MIN_MTU_IPV6} that IPv6 needs, and {address} is IPv6"));
    }
    Some(mtu)
}
