//! From configuration to the forwarding table.

use std::net::IpAddr;

use netfwd_common::abi::TunnelKind;
use netfwd_common::wire::{ethernet, ipv4, ipv6, udp, vxlan};

use super::{Config, Tunnel};
use crate::datapath::table::{self, ForwardingTable};

/// Bytes that a tunnel puts around an inner IP packet, from the outer IP header on.
///
/// IPv4: 50 for VXLAN, 36 for GPE; IPv6: 70 and 56.
pub const fn overhead(kind: TunnelKind, local: IpAddr) -> u16 {
    let outer = if local.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    let inner = if kind.is_l2() { ethernet::HEADER_LEN } else { 0 };
    (outer + udp::HEADER_LEN + vxlan::HEADER_LEN + inner) as u16
}

impl Tunnel {
    /// Bytes around an inner IP packet, from the outer IP header on.
    pub fn overhead(&self) -> u16 {
        overhead(self.kind, self.local)
    }

    fn resolved(&self, mtu: u16) -> table::Tunnel {
        table::Tunnel {
            name: self.name.clone(),
            kind: self.kind,
            vni: self.vni,
            local: self.local,
            port: self.port,
            remotes: self.remotes.clone(),
            learning: self.learning,
            static_macs: self.fdb.clone(),
            routes: self.routes.clone(),
            mtu,
            udp_checksum: self.udp_checksum,
            udp6_zero_checksum_rx: self.udp6_zero_checksum_rx,
            udp6_zero_checksum_tx: self.udp6_zero_checksum_tx,
            dscp: self.dscp,
        }
    }
}

impl Config {
    /// The table, with each tunnel's MTU from `mtu`: the configured one or what its underlay leaves.
    pub fn forwarding_table(&self, mtu: impl Fn(&Tunnel) -> u16) -> ForwardingTable {
        ForwardingTable::new(self.tunnels.iter().map(|tunnel| tunnel.resolved(mtu(tunnel))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_what_the_headers_add_up_to() {
        let v4 = IpAddr::from([10, 9, 0, 2]);
        let v6 = "fd00::2".parse().unwrap();
        let all = [TunnelKind::Vxlan, TunnelKind::VxlanGpe].map(|kind| (overhead(kind, v4), overhead(kind, v6)));
        assert_eq!(all, [(50, 70), (36, 56)]);
    }
}
