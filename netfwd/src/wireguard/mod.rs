//! WireGuard interfaces in the daemon: ports and steering, the workers' part, the thread for handshakes.
//!
//! ```text
//! AF_XDP, sockets ─▶ path (worker) ─▶ open ─▶ ingress          data never leaves its worker
//! device ─▶ path (worker) ─▶ seal ─▶ listening port
//!                │ handshakes, by a bounded queue
//!                ▼
//!            desk (one thread) ─▶ listening port               handshakes and timers of all interfaces
//! config, control socket ─▶ interface ─▶ port, steering, device
//! ```
//!
//! What the protocol says is [`datapath::tunnel::wireguard`](crate::datapath::tunnel::wireguard)'s; here are the sockets,
//! threads and clocks around it.

mod allowance;
pub mod desk;
pub mod interface;
pub mod path;
pub mod setup;
pub mod steering;

pub use interface::{Interface, InterfaceError};
