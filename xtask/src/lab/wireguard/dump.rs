//! What `wg show … dump` says, field by field.

use anyhow::{Context, Result};

use crate::lab::Namespace;

/// A device as `wg` sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceState {
    /// Private key in base64.
    pub private_key: String,
    /// Public key in base64.
    pub public_key: String,
    /// The port it listens on.
    pub listen_port: u16,
    /// Its firewall mark, 0 for none.
    pub fwmark: u32,
    /// Its peers, in the order of `wg`.
    pub peers: Vec<PeerState>,
}

/// A peer as `wg` sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerState {
    /// Public key in base64.
    pub public_key: String,
    /// Preshared key in base64.
    pub preshared_key: Option<String>,
    /// Where its datagrams go.
    pub endpoint: Option<std::net::SocketAddr>,
    /// Prefixes, sorted.
    pub allowed_ips: Vec<String>,
    /// Seconds since 1970, 0 for never.
    pub latest_handshake: u64,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Seconds between keepalives, 0 for none.
    pub persistent_keepalive: u16,
}

impl DeviceState {
    /// Asks `wg`.
    pub fn of(namespace: &Namespace, device: &str) -> Result<Self> {
        let text = namespace.exec(&format!("wg show {device} dump"))?;
        Self::parse(&text).with_context(|| format!("odd output of wg show dump:\n{text}"))
    }

    /// The only peer.
    pub fn peer(&self) -> Result<&PeerState> {
        self.peers.first().filter(|_| self.peers.len() == 1).with_context(|| format!("{} peers", self.peers.len()))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let fields: Vec<_> = lines.next()?.split('\t').collect();
        let [private_key, public_key, listen_port, fwmark] = fields.as_slice() else { return None };
        Some(Self {
            private_key: (*private_key).to_owned(),
            public_key: (*public_key).to_owned(),
            listen_port: listen_port.parse().ok()?,
            fwmark: mark(fwmark)?,
            peers: lines.map(PeerState::parse).collect::<Option<_>>()?,
        })
    }
}

impl PeerState {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<_> = line.split('\t').collect();
        let [public, preshared, endpoint, allowed, handshake, received, sent, keepalive] = fields.as_slice() else {
            return None;
        };
        let mut allowed_ips: Vec<_> = allowed.split(',').filter(|ip| *ip != "(none)").map(str::to_owned).collect();
        allowed_ips.sort_unstable();
        Some(Self {
            public_key: (*public).to_owned(),
            preshared_key: (*preshared != "(none)").then(|| (*preshared).to_owned()),
            endpoint: if *endpoint == "(none)" { None } else { Some(endpoint.parse().ok()?) },
            allowed_ips,
            latest_handshake: handshake.parse().ok()?,
            received: received.parse().ok()?,
            sent: sent.parse().ok()?,
            persistent_keepalive: if *keepalive == "off" { 0 } else { keepalive.parse().ok()? },
        })
    }
}

fn mark(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => (text == "off").then_some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_read() {
        let text = "priv\tpub\t51820\t0xca6c\np1\t(none)\t[fd09::1]:51820\tfd10::/64,10.0.0.0/8\t17\t1\t2\t25\n\
                    p2\tpsk\t(none)\t(none)\t0\t0\t0\toff\n";
        let state = DeviceState::parse(text).unwrap();
        assert_eq!((state.listen_port, state.fwmark, state.peers.len()), (51820, 0xca6c, 2));
        let [first, second] = state.peers.as_slice() else { panic!("two peers") };
        assert_eq!(first.endpoint, "[fd09::1]:51820".parse().ok());
        assert_eq!(first.allowed_ips, ["10.0.0.0/8", "fd10::/64"]);
        assert_eq!((first.latest_handshake, first.received, first.sent, first.persistent_keepalive), (17, 1, 2, 25));
        assert_eq!(
            (second.preshared_key.as_deref(), second.endpoint, second.allowed_ips.len()),
            (Some("psk"), None, 0)
        );
    }
}
