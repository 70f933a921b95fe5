//! What can be set on a WireGuard device and what it tells about itself: the words that configuration file, control socket
//! and metrics share.
//!
//! A [`DeviceUpdate`] changes only what it names, as `set=1` on the control socket does; the configuration file is one
//! update on an empty device.

use std::net::SocketAddr;
use std::time::SystemTime;

use ipnet::IpNet;

use super::key::{PresharedKey, PrivateKey, PublicKey};

/// A change of a device. Peers are changed in order.
#[derive(Clone, Debug, Default)]
pub struct DeviceUpdate {
    /// `Some(None)` takes the key away: the device then answers nobody.
    pub private_key: Option<Option<PrivateKey>>,
    /// The UDP port to listen on and send from; 0 lets the kernel choose.
    pub listen_port: Option<u16>,
    /// The mark of outgoing datagrams (SO_MARK); 0 for none.
    pub fwmark: Option<u32>,
    /// Forget all peers first.
    pub replace_peers: bool,
    /// Changes of peers.
    pub peers: Vec<PeerUpdate>,
}

/// A change of one peer, which is made if it does not exist.
#[derive(Clone, Debug)]
pub struct PeerUpdate {
    /// Which.
    pub public_key: PublicKey,
    /// Forget it; the rest is then ignored.
    pub remove: bool,
    /// Change nothing if it does not exist.
    pub update_only: bool,
    /// A new key, all zeroes for none.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is, until an authenticated packet says otherwise.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 for none.
    pub persistent_keepalive: Option<u16>,
    /// Forget its allowed IPs first.
    pub replace_allowed_ips: bool,
    /// Changes of its allowed IPs.
    pub allowed_ips: Vec<AllowedIpUpdate>,
}

/// A prefix that a peer gets, or loses. A prefix belongs to one peer: the last one it was given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedIpUpdate {
    /// Host bits are ignored.
    pub prefix: IpNet,
    /// Take it away, if this peer has it.
    pub remove: bool,
}

impl PeerUpdate {
    /// A change that only makes sure that the peer exists.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// A device as `get=1` shows it.
#[derive(Clone, Debug, Default)]
pub struct DeviceStatus {
    /// Its key.
    pub private_key: Option<PrivateKey>,
    /// The port it listens on; 0 while it has no socket.
    pub listen_port: u16,
    /// The mark of its datagrams.
    pub fwmark: u32,
    /// Its peers, in the order in which they came.
    pub peers: Vec<PeerStatus>,
}

/// A peer as `get=1` shows it.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Its identity.
    pub public_key: PublicKey,
    /// The key shared with it.
    pub preshared_key: Option<PresharedKey>,
    /// Where it was last seen or is believed to be.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 for none.
    pub persistent_keepalive: u16,
    /// Its prefixes.
    pub allowed_ips: Vec<IpNet>,
    /// When the last handshake was completed.
    pub last_handshake: Option<SystemTime>,
    /// Bytes received: authenticated datagrams with their headers, as the kernel counts them.
    pub receive_bytes: u64,
    /// Bytes sent.
    pub transmit_bytes: u64,
}
