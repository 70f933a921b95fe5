//! The exact match of a datagram: local address, port, VNI and remote must all be configured; of a WireGuard message, whose
//! peer may roam, local address and port.
//!
//! Each family asks the maps right where it has read its addresses. Nobody needs them afterwards, and carried along they
//! would crowd everything else onto the stack of the XDP program.

use zerocopy::transmute;

use crate::abi::{EndpointKey, NetworkKey, TunnelEntry, TunnelKey, TunnelKind};
use crate::cursor::Cursor;
use crate::reason::{DropReason, PassReason};
use crate::wire::{udp, vxlan};

use super::outer::Outer;
use super::{Lookup, Refusal, tunnel};

/// Sixteen bytes, IPv4 v4-mapped, in memory order.
pub(super) type Address = [u32; 4];

/// What the map keys are made of, as words: written to the BPF stack four bytes at a time.
pub(super) struct Origin {
    pub local: Address,
    pub remote: Address,
    pub port: u16,
}

impl Origin {
    /// Every key ends with the port and two zero bytes.
    #[inline(always)]
    fn port_word(&self) -> u32 {
        transmute!([self.port, 0])
    }

    #[inline(always)]
    fn tunnel_key(&self, vni: u32) -> TunnelKey {
        let ([a, b, c, d], [e, f, g, h]) = (self.local, self.remote);
        transmute!([a, b, c, d, e, f, g, h, vni, self.port_word()])
    }

    /// [`TunnelKey::roaming`].
    #[inline(always)]
    fn roaming_key(&self) -> TunnelKey {
        let [a, b, c, d] = self.local;
        transmute!([a, b, c, d, 0, 0, 0, 0, 0, self.port_word()])
    }

    /// Whether the remote is in `fe80::/10` (RFC 4291 §2.5.6).
    #[inline(always)]
    fn is_remote_link_local(&self) -> bool {
        self.remote[0] & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be()
    }

    #[inline(always)]
    fn endpoint_key(&self) -> EndpointKey {
        let [a, b, c, d] = self.local;
        transmute!([a, b, c, d, self.port_word()])
    }

    #[inline(always)]
    fn network_key(&self, vni: u32) -> NetworkKey {
        let [a, b, c, d] = self.local;
        transmute!([a, b, c, d, vni, self.port_word()])
    }
}

/// A tunnel header and whose it is.
pub(super) struct Match {
    pub header: tunnel::Header,
    pub entry: TunnelEntry,
}

/// Finds the tunnel of a datagram whose UDP header lies `offset` bytes behind `packet`.
#[inline(always)]
pub(super) fn find(
    packet: impl Cursor,
    offset: usize,
    outer: &Outer,
    origin: &Origin,
    lookup: &impl Lookup,
) -> Result<Match, Refusal> {
    let header = match packet.load_words(offset + udp::HEADER_LEN) {
        Some(header) if outer.udp_length >= udp::HEADER_LEN + vxlan::HEADER_LEN => tunnel::Header(header),
        _ => return Err(no_tunnel_header(packet, lookup, outer, offset, origin)),
    };
    // Written out twice rather than with a chosen key: choosing costs more than the rest of the lookup.
    let entry = match header.message_type() {
        None => lookup.tunnel(origin.tunnel_key(header.vni())),
        Some(_) => match lookup.tunnel(origin.roaming_key()) {
            // Roaming, its peer is answered where it spoke from, and a frame does not tell by which interface that is.
            Some(_) if origin.is_remote_link_local() => return Err(Refusal::Pass(PassReason::LinkLocal)),
            entry => entry,
        },
    };
    match entry {
        Some(entry) => Ok(Match { header, entry }),
        None => Err(no_match(lookup, origin, &header)),
    }
}

/// A datagram too short for a tunnel header is ours only if its address and port are.
#[cold]
#[inline(always)]
fn no_tunnel_header(
    packet: impl Cursor,
    lookup: &impl Lookup,
    outer: &Outer,
    offset: usize,
    origin: &Origin,
) -> Refusal {
    if lookup.endpoint(&origin.endpoint_key()).is_none() {
        return Refusal::Pass(PassReason::NotOurs);
    }
    if outer.udp_length < udp::HEADER_LEN + vxlan::HEADER_LEN {
        return Refusal::Drop(DropReason::BadLength);
    }
    let packet_offset = outer.udp_offset - offset;
    beyond_linear(packet_offset + packet.total_len(), outer.ip_end)
}

/// Why there is no match. The header rules still come first: a VNI means something only behind a valid header.
#[cold]
#[inline(always)]
fn no_match(lookup: &impl Lookup, origin: &Origin, header: &tunnel::Header) -> Refusal {
    let Some(endpoint) = lookup.endpoint(&origin.endpoint_key()) else {
        return Refusal::Pass(PassReason::NotOurs);
    };
    if let Some(kind) = TunnelKind::from_u8(endpoint.kind)
        && let Err(refusal) = tunnel::check(kind, header)
    {
        return refusal;
    }
    let known = lookup.network(&origin.network_key(header.vni()));
    Refusal::Drop(if known { DropReason::RemoteNotAllowed } else { DropReason::UnknownVni })
}

/// A packet of ours that claims more than can be read: in fragments of the XDP buffer it is whole, otherwise cut short.
#[cold]
#[inline(always)]
pub(super) fn beyond_linear(total_len: usize, ip_end: usize) -> Refusal {
    if ip_end <= total_len { Refusal::Pass(PassReason::Frags) } else { Refusal::Drop(DropReason::Truncated) }
}
