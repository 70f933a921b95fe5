//! From configuration to the forwarding table.

use std::net::{IpAddr, Ipv4Addr};

use netfwd_common::abi::TunnelKind;
use netfwd_common::wire::{ethernet, ipv4, ipv6, udp, vxlan, wireguard};

use super::{Config, Protocol, Tunnel, WireGuard};
use crate::datapath::table::{self, ForwardingTable};

/// Bytes that a tunnel puts around an inner IP packet, from the outer IP header on.
///
/// IPv4: 50 for VXLAN, 36 for GPE, 60 for WireGuard; IPv6: 70, 56 and 80.
pub const fn overhead(kind: TunnelKind, local: IpAddr) -> u16 {
    let outer = if local.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    let tunnel = match kind {
        TunnelKind::Vxlan => vxlan::HEADER_LEN + ethernet::HEADER_LEN,
        TunnelKind::VxlanGpe => vxlan::HEADER_LEN,
        TunnelKind::WireGuard => wireguard::OVERHEAD,
    };
    (outer + udp::HEADER_LEN + tunnel) as u16
}

impl Tunnel {
    /// Bytes around an inner IP packet, from the outer IP header on. A WireGuard tunnel that listens everywhere counts for
    /// IPv6 unless all its peers are known to be on IPv4.
    pub fn overhead(&self) -> u16 {
        let over_ipv4 = self.local.is_unspecified() && self.wireguard().is_some_and(WireGuard::is_over_ipv4);
        overhead(self.kind(), if over_ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { self.local })
    }

    /// At least so many: of a WireGuard tunnel that listens everywhere, those over IPv4.
    pub fn least_overhead(&self) -> u16 {
        overhead(self.kind(), if self.local.is_unspecified() { Ipv4Addr::UNSPECIFIED.into() } else { self.local })
    }

    fn resolved(&self, mtu: u16) -> table::Tunnel {
        let bare = table::Tunnel {
            name: self.name.clone(),
            kind: self.kind(),
            vni: 0,
            local: self.local,
            port: self.port,
            remotes: Vec::new(),
            learning: false,
            static_macs: Vec::new(),
            routes: Vec::new(),
            mtu,
            udp_checksum: true,
            udp6_zero_checksum_rx: false,
            udp6_zero_checksum_tx: false,
            dscp: 0,
        };
        match &self.protocol {
            Protocol::WireGuard(_) => bare,
            Protocol::Vxlan(vxlan) => table::Tunnel {
                vni: vxlan.vni,
                remotes: vxlan.remotes.clone(),
                learning: vxlan.learning,
                static_macs: vxlan.fdb.clone(),
                routes: vxlan.routes.clone(),
                udp_checksum: vxlan.udp_checksum,
                udp6_zero_checksum_rx: vxlan.udp6_zero_checksum_rx,
                udp6_zero_checksum_tx: vxlan.udp6_zero_checksum_tx,
                dscp: vxlan.dscp,
                ..bare
            },
        }
    }
}

impl Config {
    /// The table; `mtus` are the device MTUs in the tunnels' order, as preflight found them.
    pub fn forwarding_table(&self, mtus: &[u16]) -> ForwardingTable {
        debug_assert_eq!(mtus.len(), self.tunnels.len());
        ForwardingTable::new(self.tunnels.iter().zip(mtus).map(|(tunnel, &mtu)| tunnel.resolved(mtu)).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::datapath::packet::RemoteIndex;

    #[test]
    fn overhead_is_what_the_headers_add_up_to() {
        let v4 = IpAddr::from([10, 9, 0, 2]);
        let v6 = "fd00::2".parse().unwrap();
        let all = [TunnelKind::Vxlan, TunnelKind::VxlanGpe, TunnelKind::WireGuard];
        assert_eq!(all.map(|kind| (overhead(kind, v4), overhead(kind, v6))), [(50, 70), (36, 56), (60, 80)]);
    }

    const TUNNELS: &str = r#"
        underlay = [{ interface = "eth0" }]

        [[tunnel]]
        name = "vx6"
        kind = "vxlan"
        vni = 6
        local = "fd00::2"
        remotes = ["fd00::1", "fd00::3"]
        udp6_zero_checksum_rx = true
        [[tunnel.fdb]]
        mac = "02:00:00:00:00:0a"
        remote = "fd00::3"

        [[tunnel]]
        name = "gpe8"
        kind = "vxlan-gpe"
        vni = 8
        local = "10.9.0.2"
        remotes = ["10.9.0.1"]
        [[tunnel.route]]
        prefix = "10.20.0.0/16"
        remote = "10.9.0.1"
    "#;

    fn table(text: &str) -> ForwardingTable {
        Config::parse(text, Path::new("gw.toml")).expect("valid").forwarding_table(&[1430, 1464])
    }

    #[test]
    fn tunnels_keep_their_order_and_get_their_mtu() {
        let table = table(TUNNELS);
        let tunnels: Vec<_> = table.tunnels().iter().map(|tunnel| (tunnel.name.as_str(), tunnel.mtu)).collect();
        assert_eq!(tunnels, [("vx6", 1430), ("gpe8", 1464)]);
        assert_eq!((table.entries().count(), table.endpoints().count()), (3, 2));
    }

    #[test]
    fn static_entries_and_routes_point_at_their_remote() {
        let table = table(TUNNELS);
        assert_eq!(table.tunnels()[0].static_macs, [([2, 0, 0, 0, 0, 10], RemoteIndex(1))]);
        assert_eq!(table.tunnels()[1].routes, [("10.20.0.0/16".parse().expect("a prefix"), RemoteIndex(0))]);
    }

    #[test]
    fn a_checksum_is_sent_over_ipv6_unless_zero_is_asked_for() {
        let zeros =
            |text: &str| table(text).tunnels().iter().map(|tunnel| tunnel.udp6_zero_checksum_tx).collect::<Vec<_>>();
        assert_eq!(zeros(TUNNELS), [false, false]);
        assert_eq!(zeros(&TUNNELS.replace("zero_checksum_rx", "zero_checksum_tx")), [true, false]);
    }
}
