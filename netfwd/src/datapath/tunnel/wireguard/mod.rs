//! WireGuard: an endpoint whose peers are found by session index and by allowed IPs.
//!
//! Handshakes, sessions, timers, cookies and replay windows are a library's (`gotatun`); peers, allowed IPs, roaming, the
//! index → peer map and what is queued while a handshake runs are kept here.
//!
//! ```text
//! ingress   sealed messages ─▶ Opener ─▶ inner packets in pooled buffers
//!                                │ types 1–3
//!                                ▼
//! control                      queue ─▶ Handshakes ─▶ Outgoing
//!                                ▲ "needs a handshake"
//! egress    packet, superframe ─▶ Sealer ─▶ Outgoing
//! ```

mod allowed_ips;
pub mod device;
pub mod handshake;
mod identity;
pub mod key;
pub mod open;
pub mod path;
mod peer;
mod places;
pub mod queue;
mod runs;
pub mod seal;
mod sessions;
pub mod settings;
mod staged;
pub mod stats;
mod turned_away;

pub use device::{Device, PeerCounts};
pub use handshake::{Handshakes, Now, TICK};
pub use key::{PresharedKey, PrivateKey, PublicKey};
pub use open::{Opened, Opener};
pub use path::{Outgoing, Path};
pub use queue::{Lane, Lanes, MEMORY, Message, QueueReceiver, QueueSender, queue};
pub use seal::{Content, Inner, Sealed, Sealer};
pub use settings::{AllowedIpUpdate, DeviceStatus, DeviceUpdate, PeerStatus, PeerUpdate};
pub use stats::{HandshakeResult, Role, Stats};

#[cfg(test)]
mod tests;
