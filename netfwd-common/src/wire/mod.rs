//! One file per header. Every struct is the header's exact byte layout: multi-byte fields are types of the wire's byte order
//! (big-endian but for WireGuard), so a value is converted exactly where it is used and alignment never matters.

pub mod ethernet;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod udp;
pub mod vnet;
pub mod vxlan;
pub mod wireguard;

/// IP protocol number of TCP (RFC 9293).
pub const IPPROTO_TCP: u8 = 6;
/// IP protocol number of UDP (RFC 768).
pub const IPPROTO_UDP: u8 = 17;
