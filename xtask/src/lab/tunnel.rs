//! The tunnels of a lab: one description for the device at the peer, another implementation's device in the gateway, and
//! netfwd's configuration, so that the three cannot disagree.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::namespace::Namespace;
use super::wireguard::WireGuard;
use super::{GATEWAY_HOST, LAN4, LAN6, PEER_HOST, underlay_address};

/// An address family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What the tunnel speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TunnelKind {
    /// VXLAN: Ethernet inside (RFC 7348).
    Vxlan,
    /// VXLAN with the Generic Protocol Extension: IP inside.
    VxlanGpe,
    /// WireGuard.
    WireGuard(WireGuard),
}

/// Which end of the tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The far end, never netfwd's unless a test asks for that.
    Peer,
    /// The gateway: netfwd, or another in its place.
    Gateway,
}

/// One tunnel between peer and gateway.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// The device's name on both sides, but see [`Tunnel::device_name`].
    pub name: String,
    /// What it speaks.
    pub kind: TunnelKind,
    /// The network identifier.
    pub vni: u32,
    /// The UDP port on both sides.
    pub port: u16,
    /// The family of the outer addresses.
    pub underlay: Family,
    /// Overlay network n is `10.n.0.0/24` and `fd<n>::/64`; the peer is host 1, the gateway host 2.
    pub overlay: u8,
    /// MTU of the device on both sides; by default the underlay's less the overhead.
    pub mtu: Option<u32>,
    /// Does the kernel's side send outer UDP checksums? Over IPv4 it does not by default; over IPv6 it always does,
    /// unless `device_options` say otherwise.
    pub outer_checksum: bool,
    /// More words for `ip link add … type vxlan`, at the peer.
    pub device_options: String,
    /// More lines for netfwd's `[[tunnel]]`.
    pub config_lines: String,
}

impl Tunnel {
    /// A VXLAN tunnel on port 4789 over IPv4, on overlay network 10.
    pub fn vxlan(name: &str, vni: u32) -> Self {
        Self {
            name: name.to_owned(),
            kind: TunnelKind::Vxlan,
            vni,
            port: 4789,
            underlay: Family::V4,
            overlay: 10,
            mtu: None,
            outer_checksum: false,
            device_options: String::new(),
            config_lines: String::new(),
        }
    }

    /// A VXLAN-GPE tunnel on port 4790 over IPv4, on overlay network 10.
    pub fn vxlan_gpe(name: &str, vni: u32) -> Self {
        Self { kind: TunnelKind::VxlanGpe, port: 4790, ..Self::vxlan(name, vni) }
    }

    /// The same over another family.
    pub fn over(self, underlay: Family) -> Self {
        Self { underlay, ..self }
    }

    /// The same on another overlay network.
    pub fn overlay(self, overlay: u8) -> Self {
        Self { overlay, ..self }
    }

    /// The same on another port.
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// The same with another MTU on both devices.
    pub fn mtu(self, mtu: u32) -> Self {
        Self { mtu: Some(mtu), ..self }
    }

    /// The same with outer UDP checksums from the kernel's side.
    pub fn outer_checksum(self, outer_checksum: bool) -> Self {
        Self { outer_checksum, ..self }
    }

    /// The same with one more line in netfwd's `[[tunnel]]`.
    pub fn config_line(mut self, line: &str) -> Self {
        self.config_lines.push_str(line);
        self.config_lines.push('\n');
        self
    }

    /// The address of one side inside the tunnel.
    pub fn address(&self, side: Side, family: Family) -> IpAddr {
        let host = host(side);
        match family {
            Family::V4 => Ipv4Addr::new(10, self.overlay, 0, host).into(),
            Family::V6 => Ipv6Addr::new(prefix6(self.overlay), 0, 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    /// The outer address of one side.
    pub fn outer_address(&self, side: Side) -> IpAddr {
        underlay_address(self.underlay, host(side))
    }

    /// The device's name on one side. Those of WireGuard differ, since their UAPI sockets share a directory.
    pub fn device_name(&self, side: Side) -> String {
        let suffix = if matches!(self.kind, TunnelKind::WireGuard(_)) && side == Side::Peer { "p" } else { "" };
        format!("{}{suffix}", self.name)
    }

    /// Bytes around the inner IP packet, the padding of WireGuard left out.
    pub fn overhead(&self) -> u32 {
        let ip = if self.underlay == Family::V4 { 20 } else { 40 };
        let tunnel = match self.kind {
            TunnelKind::Vxlan => 8 + 14,
            TunnelKind::VxlanGpe => 8,
            TunnelKind::WireGuard(_) => 16 + 16,
        };
        ip + 8 + tunnel
    }

    /// The devices' MTU for that underlay.
    pub fn device_mtu(&self, underlay_mtu: u32) -> u32 {
        self.mtu.unwrap_or(underlay_mtu - self.overhead())
    }

    /// Makes the kernel's device on one side; `with_lan` routes the server's network into it (at the peer).
    pub(super) fn add_device(
        &self,
        side: Side,
        namespace: &Namespace,
        underlay_mtu: u32,
        with_lan: bool,
    ) -> Result<()> {
        let name = &self.name;
        let mut lines = vec![format!("link add {name} mtu {} {}", self.device_mtu(underlay_mtu), self.link_type(side))];
        // A connected route would win over the one that says where packets go.
        let connected = if self.kind == TunnelKind::VxlanGpe { " noprefixroute" } else { "" };
        for family in [Family::V4, Family::V6] {
            let length = if family == Family::V4 { 24 } else { 64 };
            lines.push(format!("address add {}/{length} dev {name} nodad{connected}", self.address(side, family)));
        }
        lines.push(format!("link set {name} up"));
        lines.extend(self.routes(side, with_lan).into_iter().map(|route| format!("route replace {route}")));
        namespace.ip_lines(&lines)
    }

    fn link_type(&self, side: Side) -> String {
        let (port, options) = (self.port, if side == Side::Peer { self.device_options.as_str() } else { "" });
        let checksum = if self.outer_checksum { "udpcsum" } else { "noudpcsum" };
        match self.kind {
            TunnelKind::Vxlan => {
                let (local, remote) = (self.outer_address(side), self.outer_address(other(side)));
                format!("type vxlan id {} local {local} remote {remote} dstport {port} {checksum} {options}", self.vni)
            }
            // The kernel has GPE only in collect-metadata mode: routes say where packets go.
            TunnelKind::VxlanGpe => format!("type vxlan dstport {port} external gpe {options}"),
            TunnelKind::WireGuard(_) => "type wireguard".to_owned(),
        }
    }

    fn routes(&self, side: Side, with_lan: bool) -> Vec<String> {
        let far = |family| self.address(other(side), family);
        let lan = with_lan && side == Side::Peer;
        let name = &self.name;
        match self.kind {
            TunnelKind::Vxlan if lan => {
                vec![format!("{LAN4} via {}", far(Family::V4)), format!("{LAN6} via {}", far(Family::V6))]
            }
            TunnelKind::Vxlan | TunnelKind::WireGuard(_) => Vec::new(),
            TunnelKind::VxlanGpe => {
                let overlays = [format!("10.{}.0.0/24", self.overlay), format!("{:x}::/64", prefix6(self.overlay))];
                let lans = if lan { vec![LAN4.to_owned(), LAN6.to_owned()] } else { Vec::new() };
                let encap = self.encap(side);
                overlays.into_iter().chain(lans).map(|prefix| format!("{prefix} {encap} dev {name}")).collect()
            }
        }
    }

    /// The light-weight tunnel part of a route.
    fn encap(&self, side: Side) -> String {
        let (ip, options) = match self.underlay {
            Family::V4 if self.outer_checksum => ("ip", "ttl 64 csum"),
            Family::V4 => ("ip", "ttl 64"),
            Family::V6 => ("ip6", "hoplimit 64 csum"),
        };
        let (local, remote) = (self.outer_address(side), self.outer_address(other(side)));
        format!("encap {ip} id {} src {local} dst {remote} {options}", self.vni)
    }

    /// netfwd's `[[tunnel]]` for the gateway's side, of tunnels without keys.
    pub(super) fn config(&self, underlay_mtu: u32) -> String {
        let kind = if self.kind == TunnelKind::Vxlan { "vxlan" } else { "vxlan-gpe" };
        let (local, remote) = (self.outer_address(Side::Gateway), self.outer_address(Side::Peer));
        let (v4, v6) = (self.address(Side::Gateway, Family::V4), self.address(Side::Gateway, Family::V6));
        let mut text = format!(
            "[[tunnel]]\nname = \"{}\"\nkind = \"{kind}\"\nvni = {}\nlocal = \"{local}\"\nport = {}\nremotes = [\"{remote}\"]\n\
             addresses = [\"{v4}/24\", \"{v6}/64\"]\nmtu = {}\n{}",
            self.name,
            self.vni,
            self.port,
            self.device_mtu(underlay_mtu),
            self.config_lines,
        );
        if self.kind == TunnelKind::VxlanGpe {
            for prefix in [format!("10.{}.0.0/24", self.overlay), format!("{:x}::/64", prefix6(self.overlay))] {
                text += &format!("[[tunnel.route]]\nprefix = \"{prefix}\"\nremote = \"{remote}\"\n");
            }
        }
        text
    }
}

fn host(side: Side) -> u8 {
    if side == Side::Peer { PEER_HOST } else { GATEWAY_HOST }
}

pub(super) fn other(side: Side) -> Side {
    if side == Side::Peer { Side::Gateway } else { Side::Peer }
}

/// The first group of overlay network n: its decimal digits read as hexadecimal ones, so 10 becomes `fd10`.
fn prefix6(overlay: u8) -> u16 {
    let (tens, ones) = (u16::from(overlay / 10), u16::from(overlay % 10));
    0xfd00 | ((tens % 10) << 4) | ones
}

#[cfg(test)]
mod tests {
    use super::super::wireguard::Program;
    use super::*;

    #[test]
    fn overlay_ten_is_fd10() {
        let tunnel = Tunnel::vxlan("vx7", 7);
        assert_eq!(tunnel.address(Side::Gateway, Family::V6).to_string(), "fd10::2");
        assert_eq!(tunnel.address(Side::Peer, Family::V4).to_string(), "10.10.0.1");
    }

    #[test]
    fn overhead_is_what_stands_before_the_inner_packet() {
        assert_eq!(Tunnel::vxlan("a", 1).overhead(), 50);
        assert_eq!(Tunnel::vxlan("a", 1).over(Family::V6).overhead(), 70);
        assert_eq!(Tunnel::vxlan_gpe("a", 1).overhead(), 36);
        assert_eq!(Tunnel::wireguard(Program::WireguardGo).overhead(), 60);
    }
}
