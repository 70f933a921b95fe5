//! Longest-prefix match over a tunnel's routes.
//!
//! One table answers two questions about an L3 tunnel: which remote a destination lies behind (egress), and which inner
//! sources a remote may use (ingress). Keeping them in one structure means that they cannot disagree.
//!
//! Invariants: the most specific prefix wins; a prefix that is configured twice belongs to its last entry. A lookup
//! neither allocates nor fails. IPv4 and IPv6 are separate tries: a v4-mapped IPv6 address is an IPv6 address.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::packet::RemoteIndex;

/// Prefixes and the remotes they lie behind.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    ipv4: PrefixMap<Ipv4Net, RemoteIndex>,
    ipv6: PrefixMap<Ipv6Net, RemoteIndex>,
}

impl Routes {
    /// A table of `routes`; bits behind a prefix's length are ignored.
    pub fn new(routes: &[(IpNet, RemoteIndex)]) -> Self {
        let mut table = Self::default();
        for (prefix, remote) in routes {
            match prefix {
                IpNet::V4(prefix) => table.ipv4.insert(prefix.trunc(), *remote),
                IpNet::V6(prefix) => table.ipv6.insert(prefix.trunc(), *remote),
            };
        }
        table
    }

    /// Whether there is no route at all.
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }

    /// The remote behind the most specific prefix that covers `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<RemoteIndex> {
        match address {
            IpAddr::V4(address) => self.ipv4.get_lpm(&Ipv4Net::from(address)).map(|(_, remote)| *remote),
            IpAddr::V6(address) => self.ipv6.get_lpm(&Ipv6Net::from(address)).map(|(_, remote)| *remote),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes(list: &[(&str, u16)]) -> Routes {
        let list: Vec<_> =
            list.iter().map(|(prefix, remote)| (prefix.parse().unwrap(), RemoteIndex(*remote))).collect();
        Routes::new(&list)
    }

    fn lookup(routes: &Routes, address: &str) -> Option<u16> {
        routes.lookup(address.parse().unwrap()).map(|remote| remote.0)
    }

    #[test]
    fn the_most_specific_prefix_wins() {
        let routes = routes(&[("10.0.0.0/8", 1), ("10.20.0.0/16", 2), ("0.0.0.0/0", 0), ("10.20.30.40/32", 3)]);
        assert_eq!(lookup(&routes, "10.20.30.40"), Some(3));
        assert_eq!(lookup(&routes, "10.20.30.41"), Some(2));
        assert_eq!(lookup(&routes, "10.21.0.1"), Some(1));
        assert_eq!(lookup(&routes, "192.0.2.1"), Some(0));
    }

    #[test]
    fn the_families_are_apart() {
        let routes = routes(&[("0.0.0.0/0", 1), ("2001:db8::/32", 2)]);
        assert_eq!(lookup(&routes, "2001:db8::1"), Some(2));
        assert_eq!(lookup(&routes, "2001:db9::1"), None);
        assert_eq!(lookup(&routes, "::ffff:10.0.0.1"), None);
    }

    #[test]
    fn host_bits_of_a_prefix_are_ignored() {
        assert_eq!(lookup(&routes(&[("10.20.30.40/16", 7)]), "10.20.1.1"), Some(7));
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_search(
            list in prop::collection::vec((any::<u32>(), 0u8..=32, 0u16..8), 0..40),
            addresses in prop::collection::vec(any::<u32>(), 0..40),
        ) {
            let list: Vec<_> = list
                .into_iter()
                .map(|(address, len, remote)| (Ipv4Net::new(address.into(), len).unwrap().trunc(), RemoteIndex(remote)))
                .collect();
            let routes = Routes::new(&list.iter().map(|(net, remote)| (IpNet::V4(*net), *remote)).collect::<Vec<_>>());
            let inside = list.iter().map(|(net, _)| net.broadcast());
            for address in addresses.into_iter().map(Into::into).chain(inside) {
                // `max_by_key` keeps the last of equals, as a repeated prefix does.
                let best = list.iter().filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
                prop_assert_eq!(routes.lookup(IpAddr::V4(address)), best.map(|(_, remote)| *remote));
            }
        }
    }

    #[test]
    fn tables_are_shared_between_workers() {
        fn shared<T: Send + Sync>() {}
        shared::<Routes>();
    }
}
