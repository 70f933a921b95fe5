//! WireGuard: an endpoint whose peers are found by session index and by allowed IPs.
//!
//! Handshakes, sessions, timers, cookies and replay windows are a library's (`gotatun`); peers, allowed IPs, roaming, the
//! index → peer map and what is queued while a handshake runs are kept here.

pub mod key;
pub mod settings;

pub use key::{PresharedKey, PrivateKey, PublicKey};
pub use settings::{AllowedIpUpdate, DeviceStatus, DeviceUpdate, PeerStatus, PeerUpdate};
