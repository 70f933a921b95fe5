//! Where datagrams of a peer come from and go to.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::datapath::tunnel::decap::SocketOrigin;

/// DSCP AF41 without ECN: what the kernel marks handshake messages with (`HANDSHAKE_DSCP`).
pub const HANDSHAKE_TOS: u8 = 0x88;

/// A peer's address, and the one of ours that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Where the peer is.
    pub remote: SocketAddr,
    /// Which of our addresses it wrote to last, so that the answer comes from there. `None`: the kernel chooses, since none is
    /// known yet, the peer's place was configured, or the kernel's choice is what the peer writes to.
    pub local: Option<IpAddr>,
}

impl Path {
    /// A path to a configured place.
    pub const fn to(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }

    /// The way back to where a message came from.
    pub fn back_to(origin: &SocketOrigin) -> Self {
        let local = address(origin.local);
        let remote = match address(origin.remote) {
            IpAddr::V4(v4) => SocketAddr::new(v4.into(), origin.remote_port),
            IpAddr::V6(v6) => SocketAddrV6::new(v6, origin.remote_port, 0, origin.scope).into(),
        };
        Self { remote, local: Some(local).filter(|local| !local.is_unspecified()) }
    }

    /// Index of the interface that a link-local peer is on; 0 for all others.
    pub fn scope(&self) -> u32 {
        if let SocketAddr::V6(remote) = self.remote { remote.scope_id() } else { 0 }
    }
}

/// An address out of a map key: IPv4 is v4-mapped there.
fn address(bytes: [u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
}

/// Datagrams for one peer, ready to be sent with one system call: `segment_size` bytes each, the last may be shorter. Whoever is
/// given them to send says how many of their bytes left.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// To whom, from which of our addresses.
    pub path: Path,
    /// Outer TOS or traffic class: the inner ECN field (RFC 6040), or [`HANDSHAKE_TOS`].
    pub tos: u8,
    /// The datagrams' bytes back to back.
    pub slices: &'a [IoSlice<'a>],
    /// Bytes of each datagram but the last.
    pub segment_size: usize,
    /// How many datagrams: at most 64.
    pub datagrams: usize,
    /// Bytes of all of them: at most 65,507.
    pub bytes: usize,
}
