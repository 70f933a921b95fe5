//! Sealing: from inner packets to datagrams.

use std::net::IpAddr;

use netfwd_common::reason::DropReason;

use super::device::Device;
use super::path::Outgoing;
use crate::datapath::segment::Superframe;
use crate::datapath::stats::Counters;

/// What is to be sealed.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// One packet with its checksums complete.
    Packet(&'a [u8]),
    /// A superframe, which is cut on the way.
    Superframe(&'a Superframe<'a>),
}

/// Inner packets of one flow.
#[derive(Clone, Copy, Debug)]
pub struct Inner<'a> {
    /// The inner destination: it decides which peer gets them.
    pub destination: IpAddr,
    /// The inner ECN field, which the outer header gets too (RFC 6040 §4.1, normal mode).
    pub ecn: u8,
    /// The packets.
    pub content: Content<'a>,
}

/// What became of packets that had a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Handed to `emit` as datagrams.
    pub datagrams: usize,
    /// Their inner bytes, padding not counted.
    pub bytes: usize,
    /// Kept until the handshake is through. Those that had to make room are counted as dropped.
    pub staged: usize,
}

/// One worker's sealer: buffers for a superframe.
pub struct Sealer {}

impl Sealer {
    /// A sealer with buffers for a superframe.
    #[expect(clippy::new_without_default, reason = "it allocates")]
    pub fn new() -> Self {
        Self {}
    }

    /// Seals packets for the peer that `inner.destination` belongs to, and gives `emit` runs of equal-sized datagrams.
    ///
    /// Without a session the packets wait for the handshake, which is asked for. Refused are packets that no peer has among
    /// its allowed IPs ([`DropReason::NoPeer`]), whose peer's place is unknown ([`DropReason::NoRoute`]), or that no datagram can
    /// carry ([`DropReason::TooBig`]): counting these is left to the caller; packets that had to make room for newer ones are
    /// counted in `counters`.
    pub fn seal(
        &mut self,
        device: &Device,
        counters: &Counters,
        inner: &Inner<'_>,
        emit: &mut impl FnMut(&Outgoing<'_>),
    ) -> Result<Sealed, DropReason> {
        let _ = (device, counters, inner, emit);
        Err(DropReason::NoPeer)
    }
}
