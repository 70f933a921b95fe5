//! What WireGuard devices count, and on demand each of their peers.
//!
//! Peers come and go and may be ten thousand, so their series are only exported where they are asked for, and then for so
//! many: those with the lowest keys, so that a peer has its series always or never.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Family, Scrape};
use crate::datapath::tunnel::wireguard::stats::{HandshakeResult, Role};
use crate::datapath::tunnel::wireguard::{Device, PeerStatus};

/// Peers of one tunnel that have series of their own.
const MAX_PEERS: usize = 1000;

impl Device {
    /// Adds the counts of the device `tunnel`; with `peers`, those of its peers.
    pub fn report(&self, tunnel: &str, peers: bool, scrape: &mut Scrape) {
        let (stats, counts) = (self.stats(), self.peer_counts());
        for role in Role::ALL {
            for result in HandshakeResult::ALL {
                let count = stats.handshakes(role, result);
                scrape.add(Family::WgHandshakes, &[tunnel, role.as_str(), result.as_str()], count);
            }
        }
        let idle = counts.configured.saturating_sub(counts.active);
        scrape.add(Family::WgPeers, &[tunnel, "active"], counts.active as u64);
        scrape.add(Family::WgPeers, &[tunnel, "idle"], idle as u64);
        scrape.add(Family::WgCookieReplies, &[tunnel], stats.cookie_replies());
        scrape.add(Family::WgUnderLoad, &[tunnel], stats.under_load().into());
        if peers {
            report_peers(tunnel, self.status().peers, scrape);
        }
    }
}

pub(super) fn report_peers(tunnel: &str, mut peers: Vec<PeerStatus>, scrape: &mut Scrape) {
    peers.sort_unstable_by_key(|peer| peer.public_key);
    scrape.add(Family::WgPeersUnseen, &[tunnel], peers.len().saturating_sub(MAX_PEERS) as u64);
    for peer in peers.iter().take(MAX_PEERS) {
        let key = peer.public_key.to_string();
        let labels = [tunnel, key.as_str()];
        scrape.add_float(Family::WgLastHandshake, &labels, timestamp(peer.last_handshake));
        scrape.add(Family::WgPeerReceiveBytes, &labels, peer.receive_bytes);
        scrape.add(Family::WgPeerTransmitBytes, &labels, peer.transmit_bytes);
    }
}

fn timestamp(time: Option<SystemTime>) -> f64 {
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::metrics::tests::{text_of, value};
    use crate::datapath::tunnel::wireguard::PublicKey;

    pub fn peer(number: u16) -> PeerStatus {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        PeerStatus {
            public_key: PublicKey(key),
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
            last_handshake: (number == 1).then(|| UNIX_EPOCH + std::time::Duration::from_millis(1_500)),
            receive_bytes: number.into(),
            transmit_bytes: 7,
        }
    }

    #[test]
    fn series_of_peers_are_bounded_and_the_rest_is_counted() {
        // In any order: which peers are seen depends on their keys alone.
        let peers: Vec<_> = (0..1003).rev().map(peer).collect();
        let text = text_of(move |scrape: &mut Scrape| report_peers("wg0", peers.clone(), scrape));
        assert_eq!(value(&text, r#"netfwd_wg_peers_unseen{tunnel="wg0"}"#), Some(3.0));
        let series = text.lines().filter(|line| line.starts_with("netfwd_wg_peer_receive_bytes_total{")).count();
        assert_eq!(series, MAX_PEERS);
        let of = |family: &str, number: u16| {
            let key = peer(number).public_key;
            value(&text, &format!(r#"{family}{{tunnel="wg0",peer="{key}"}}"#))
        };
        assert_eq!(of("netfwd_wg_peer_receive_bytes_total", 999), Some(999.0));
        assert_eq!(of("netfwd_wg_peer_receive_bytes_total", 1000), None);
        assert_eq!(of("netfwd_wg_peer_transmit_bytes_total", 1), Some(7.0));
        assert_eq!(of("netfwd_wg_last_handshake_timestamp_seconds", 1), Some(1.5));
        assert_eq!(of("netfwd_wg_last_handshake_timestamp_seconds", 2), Some(0.0));
    }
}
