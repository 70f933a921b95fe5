//! From what a device is to the answer's text.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use zeroize::Zeroizing;

use crate::datapath::tunnel::wireguard::{DeviceStatus, PeerStatus};

/// Room for the lines of the device, and for those of a peer without its allowed IPs: the longest that they can get.
const DEVICE_LEN: usize = 160;
const PEER_LEN: usize = 512;
/// Room for one allowed IP: `allowed_ip=` and 39 + 4 characters.
const ALLOWED_IP_LEN: usize = 56;

/// The answer to `set=1`, and to what was refused; `errno` is positive, and negative on the wire as wireguard-go has it.
pub fn status_line(errno: i32) -> String {
    format!("errno={}\n\n", -errno)
}

/// The answer to `get=1`, in the order of wireguard-go.
pub fn device(status: &DeviceStatus) -> Zeroizing<String> {
    // Text that never moves leaves no copy of a key behind.
    let mut text = Zeroizing::new(String::with_capacity(room(status)));
    if let Some(key) = &status.private_key {
        pair(&mut text, "private_key", key.to_hex().as_str());
    }
    if status.listen_port != 0 {
        pair(&mut text, "listen_port", status.listen_port);
    }
    if status.fwmark != 0 {
        pair(&mut text, "fwmark", status.fwmark);
    }
    for peer in &status.peers {
        write_peer(&mut text, peer);
    }
    text.push_str(&status_line(0));
    text
}

fn room(status: &DeviceStatus) -> usize {
    let peer = |peer: &PeerStatus| PEER_LEN + peer.allowed_ips.len() * ALLOWED_IP_LEN;
    DEVICE_LEN + status.peers.iter().map(peer).sum::<usize>()
}

fn pair(text: &mut String, key: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{key}={value}");
}

fn write_peer(text: &mut String, peer: &PeerStatus) {
    pair(text, "public_key", peer.public_key.to_hex());
    match &peer.preshared_key {
        Some(key) => pair(text, "preshared_key", key.to_hex().as_str()),
        None => pair(text, "preshared_key", "0".repeat(64)),
    }
    pair(text, "protocol_version", 1);
    if let Some(endpoint) = peer.endpoint {
        pair(text, "endpoint", endpoint);
    }
    let since = peer.last_handshake.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or(Duration::ZERO);
    pair(text, "last_handshake_time_sec", since.as_secs());
    pair(text, "last_handshake_time_nsec", since.subsec_nanos());
    pair(text, "tx_bytes", peer.transmit_bytes);
    pair(text, "rx_bytes", peer.receive_bytes);
    pair(text, "persistent_keepalive_interval", peer.persistent_keepalive);
    for prefix in &peer.allowed_ips {
        pair(text, "allowed_ip", prefix);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::datapath::tunnel::wireguard::{PresharedKey, PrivateKey, PublicKey};

    fn peer() -> PeerStatus {
        PeerStatus {
            public_key: PublicKey([0xb1; 32]),
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
            last_handshake: None,
            receive_bytes: 0,
            transmit_bytes: 0,
        }
    }

    #[test]
    fn an_empty_device_is_only_a_status() {
        assert_eq!(device(&DeviceStatus::default()).as_str(), "errno=0\n\n");
    }

    #[test]
    fn a_device_is_told_in_wireguard_go_s_order() {
        let full = PeerStatus {
            preshared_key: Some(PresharedKey::from_bytes([7; 32])),
            endpoint: Some("[fe80::1%3]:51820".parse().expect("an address")),
            persistent_keepalive: 25,
            allowed_ips: vec!["10.0.0.0/8".parse().expect("a prefix"), "fd00::/8".parse().expect("a prefix")],
            last_handshake: Some(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5)),
            receive_bytes: 11,
            transmit_bytes: 12,
            ..peer()
        };
        let status = DeviceStatus {
            private_key: Some(PrivateKey::from_bytes([0xa0; 32])),
            listen_port: 51820,
            fwmark: 0xca6c,
            peers: vec![full, peer()],
        };
        let (private, public, preshared) = ("a0".repeat(32), "b1".repeat(32), "07".repeat(32));
        let expected = format!(
            "private_key={private}\nlisten_port=51820\nfwmark=51820\n\
             public_key={public}\npreshared_key={preshared}\nprotocol_version=1\nendpoint=[fe80::1%3]:51820\n\
             last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\ntx_bytes=12\nrx_bytes=11\n\
             persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\n\
             public_key={public}\npreshared_key={}\nprotocol_version=1\nlast_handshake_time_sec=0\n\
             last_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\npersistent_keepalive_interval=0\nerrno=0\n\n",
            "00".repeat(32)
        );
        assert_eq!(device(&status).as_str(), expected);
    }

    #[test]
    fn the_text_never_outgrows_its_room() {
        let longest = PeerStatus {
            preshared_key: Some(PresharedKey::from_bytes([7; 32])),
            endpoint: Some("[fe80:1111:2222:3333:4444:5555:6666:7777%4294967295]:65535".parse().expect("an address")),
            persistent_keepalive: u16::MAX,
            allowed_ips: vec!["1111:2222:3333:4444:5555:6666:7777:8888/128".parse().expect("a prefix"); 9],
            last_handshake: Some(SystemTime::UNIX_EPOCH + Duration::new(i64::MAX as u64, 999_999_999)),
            receive_bytes: u64::MAX,
            transmit_bytes: u64::MAX,
            ..peer()
        };
        let status = DeviceStatus {
            private_key: Some(PrivateKey::from_bytes([1; 32])),
            listen_port: u16::MAX,
            fwmark: u32::MAX,
            peers: vec![longest; 3],
        };
        let text = device(&status);
        assert!(text.len() <= room(&status), "{} of {}", text.len(), room(&status));
    }

    #[test]
    fn errors_are_negative_as_wireguard_go_s() {
        assert_eq!(status_line(libc::EINVAL), "errno=-22\n\n");
    }
}
