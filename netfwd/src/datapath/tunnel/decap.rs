//! Decapsulation: from what a socket delivered to the inner packet and the tunnel it belongs to.
//!
//! Two ways lead here. A frame from AF_XDP carries a record of what XDP found; its indices and offsets are bounds-checked
//! against the table and the frame, since a wrong record must never become a wrong slice. A payload from a UDP socket was
//! checked by nobody but the kernel's UDP; it gets the same header rules and the same exact match (local address, port,
//! VNI, remote) as XDP applies.
//!
//! Then the rules for both: congestion marks (RFC 6040), inner sources (L3), no nested tunnels.
//!
//! A WireGuard message is opened by nobody here: it comes out as [`SealedMessage`], with its shape checked and with where it
//! came from, since its peer may have moved.

use netfwd_common::abi::{
    ChecksumVerdict, EndpointKey, METADATA_MAGIC, METADATA_VERSION, Metadata, NetworkKey, Policy, TunnelEntry,
    TunnelKey, TunnelKind, map_ipv4,
};
use netfwd_common::classify::{Lookup, Verdict, classify};
use netfwd_common::reason::{DropReason, PassReason};
use netfwd_common::wire::wireguard::{self, MessageType};
use netfwd_common::wire::{ipv4, ipv6, udp, vxlan};
use zerocopy::FromBytes as _;

use crate::datapath::ecn;
use crate::datapath::flow::{Family, locate_ip};
use crate::datapath::packet::{Link, RemoteIndex, TunnelIndex};
use crate::datapath::table::{ForwardingTable, VerifyPolicy};
use crate::datapath::vet::{destination_address, source_address, udp_destination_port};

/// A datagram out of its outer headers, by what its tunnel carries.
#[derive(Debug)]
pub enum Opened<'a> {
    /// A packet in the clear.
    Packet(Decapsulated<'a>),
    /// A WireGuard message.
    Message(SealedMessage<'a>),
}

/// A WireGuard message whose type and length fit each other; nothing in it is authentic yet.
#[derive(Debug)]
pub struct SealedMessage<'a> {
    /// Whose it is.
    pub tunnel: TunnelIndex,
    /// What it claims to be.
    pub message_type: MessageType,
    /// From its type on.
    pub bytes: &'a mut [u8],
    /// Where it came from and to which of our addresses, and the outer ECN field.
    pub origin: SocketOrigin,
    /// What the policy let through, where that was not counted in XDP.
    pub tolerated: Option<DropReason>,
}

/// A datagram out of its outer headers and its tunnel header.
#[derive(Debug)]
pub struct Decapsulated<'a> {
    /// Whose it is.
    pub tunnel: TunnelIndex,
    /// Who sent it.
    pub remote: RemoteIndex,
    /// What `inner` starts with.
    pub link: Link,
    /// The inner packet.
    pub inner: &'a mut [u8],
    /// The outer ECN field.
    pub ecn: u8,
    /// What XDP, or the classifier in its place, found out about the inner checksums.
    pub verdict: ChecksumVerdict,
    /// What the policy let through, where that was not counted in XDP.
    pub tolerated: Option<DropReason>,
}

/// The outer addresses of a datagram, as map keys hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOrigin {
    /// Destination: for a datagram from a socket, the address that is bound.
    pub local: [u8; 16],
    /// Destination port.
    pub port: u16,
    /// Source.
    pub remote: [u8; 16],
    /// Source port.
    pub remote_port: u16,
    /// Index of the interface that a link-local source is on; 0 for all others.
    pub scope: u32,
    /// Outer ECN field.
    pub ecn: u8,
}

/// Opens a whole Ethernet frame from AF_XDP.
///
/// A record with another magic or version was not written by our XDP program; then, as without one, the frame is
/// classified here.
#[inline]
pub fn open_frame<'a>(
    table: &ForwardingTable,
    frame: &'a mut [u8],
    metadata: Option<[u8; 16]>,
    policy: VerifyPolicy,
) -> Result<Opened<'a>, DropReason> {
    match metadata.map(|bytes| -> Metadata { zerocopy::transmute!(bytes) }) {
        Some(record) if record.magic == METADATA_MAGIC && record.version == METADATA_VERSION => {
            open_recorded(table, frame, &record)
        }
        _ => open_classified(table, frame, policy),
    }
}

#[inline]
fn open_recorded<'a>(
    table: &ForwardingTable,
    frame: &'a mut [u8],
    record: &Metadata,
) -> Result<Opened<'a>, DropReason> {
    let (tunnel, remote) = (TunnelIndex(record.tunnel), RemoteIndex(record.remote));
    let known = table.get(tunnel);
    if known.is_some_and(|tunnel| tunnel.kind == TunnelKind::WireGuard) {
        let message_type = MessageType::from_u32(record.message.into()).ok_or(DropReason::BadMetadata)?;
        let shape = Shape { offset: record.inner_offset, len: record.inner_len, ecn: record.ecn, message_type };
        return open_message(tunnel, frame, shape).map(Opened::Message);
    }
    let known = known.filter(|tunnel| tunnel.remote(remote).is_some());
    let verdict = ChecksumVerdict::from_u8(record.checksums);
    let inner = slice(frame, record.inner_offset, record.inner_len);
    let (Some(known), Some(verdict), Some(inner)) = (known, verdict, inner) else {
        return Err(DropReason::BadMetadata);
    };
    let (link, ecn) = (known.link(), record.ecn);
    Ok(Opened::Packet(Decapsulated { tunnel, remote, link, inner, ecn, verdict, tolerated: None }))
}

#[cold]
fn open_classified<'a>(
    table: &ForwardingTable,
    frame: &'a mut [u8],
    policy: VerifyPolicy,
) -> Result<Opened<'a>, DropReason> {
    let policy =
        Policy { verify: policy.verify as u8, accept_partial: policy.accept_partial.into(), ..Policy::default() };
    let delivery = match classify(&*frame, table, &policy) {
        Verdict::Deliver(delivery) => delivery,
        Verdict::Drop(reason) => return Err(reason),
        // XDP steered it here, so it was ours when XDP looked.
        Verdict::Pass(PassReason::TooShort) => return Err(DropReason::Truncated),
        Verdict::Pass(_) => return Err(DropReason::BadMetadata),
    };
    let (offset, len, ecn) = (delivery.inner_offset, delivery.inner_len, delivery.ecn);
    if let Some(message_type) = delivery.message {
        let shape = Shape { offset, len, ecn, message_type };
        let opened = open_message(TunnelIndex(delivery.entry.tunnel), frame, shape)?;
        return Ok(Opened::Message(SealedMessage { tolerated: delivery.tolerated, ..opened }));
    }
    let inner = slice(frame, offset, len).ok_or(DropReason::BadLength)?;
    let opened = open_entry(table, &delivery.entry, inner, ecn)?;
    Ok(Opened::Packet(Decapsulated { verdict: delivery.checksums, tolerated: delivery.tolerated, ..opened }))
}

/// Where in a frame a WireGuard message is said to be.
struct Shape {
    offset: u16,
    len: u16,
    ecn: u8,
    message_type: MessageType,
}

#[inline]
fn open_message(tunnel: TunnelIndex, frame: &mut [u8], shape: Shape) -> Result<SealedMessage<'_>, DropReason> {
    let Shape { offset, len, ecn, message_type } = shape;
    let origin = origin(frame, usize::from(offset), ecn).ok_or(DropReason::BadMetadata)?;
    let bytes = slice(frame, offset, len).filter(|bytes| message_type.allows_len(bytes.len()));
    let bytes = bytes.ok_or(DropReason::BadMetadata)?;
    Ok(SealedMessage { tunnel, message_type, bytes, origin, tolerated: None })
}

/// The outer addresses of a frame whose UDP payload starts at `payload`.
#[inline]
fn origin(frame: &[u8], payload: usize, ecn: u8) -> Option<SocketOrigin> {
    let (offset, family) = locate_ip(Link::Ethernet, frame)?;
    let ip = frame.get(offset..payload)?;
    let (remote, local, udp) = match family {
        Family::V4 => {
            let (header, rest) = ipv4::Header::ref_from_prefix(ip).ok()?;
            (map_ipv4(header.source), map_ipv4(header.destination), rest)
        }
        Family::V6 => {
            let (header, rest) = ipv6::Header::ref_from_prefix(ip).ok()?;
            (header.source, header.destination, rest)
        }
    };
    let udp = udp::Header::ref_from_bytes(udp).ok()?;
    let (remote_port, port) = (udp.source_port.get(), udp.destination_port.get());
    // What comes from a link-local address, or is sent to one, comes by a socket, which knows the interface.
    Some(SocketOrigin { local, port, remote, remote_port, scope: 0, ecn })
}

fn slice(frame: &mut [u8], offset: u16, len: u16) -> Option<&mut [u8]> {
    frame.get_mut(usize::from(offset)..)?.get_mut(..usize::from(len))
}

fn open_entry<'a>(
    table: &ForwardingTable,
    entry: &TunnelEntry,
    inner: &'a mut [u8],
    ecn: u8,
) -> Result<Decapsulated<'a>, DropReason> {
    let (tunnel, remote) = (TunnelIndex(entry.tunnel), RemoteIndex(entry.remote));
    let link = table.get(tunnel).ok_or(DropReason::UnknownVni)?.link();
    Ok(Decapsulated { tunnel, remote, link, inner, ecn, verdict: ChecksumVerdict::Unverified, tolerated: None })
}

/// The newest exact match: datagrams come in trains, so most lookups repeat the one before.
#[derive(Clone, Copy, Debug, Default)]
pub struct LookupCache(Option<(TunnelKey, TunnelEntry)>);

impl LookupCache {
    fn tunnel(&mut self, table: &ForwardingTable, key: &TunnelKey) -> Option<TunnelEntry> {
        if let Some((cached, entry)) = &self.0
            && cached == key
        {
            return Some(*entry);
        }
        let entry = table.tunnel(*key)?;
        self.0 = Some((*key, entry));
        Some(entry)
    }
}

/// Opens the payload of a datagram from a UDP socket. `cache` must not outlive the table.
#[inline]
pub fn open_payload<'a>(
    table: &ForwardingTable,
    cache: &mut LookupCache,
    payload: &'a mut [u8],
    origin: &SocketOrigin,
) -> Result<Opened<'a>, DropReason> {
    let begins_message = |word: &[u8; 4]| MessageType::from_word(u32::from_ne_bytes(*word)).is_some();
    if payload.first_chunk().is_some_and(begins_message) {
        return open_sealed_payload(table, cache, payload, origin).map(Opened::Message);
    }
    let Some((header, inner)) = payload.split_first_chunk_mut::<{ vxlan::HEADER_LEN }>() else {
        return Err(DropReason::BadLength);
    };
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    let key = TunnelKey { local: origin.local, remote: origin.remote, vni, port: origin.port, reserved: 0 };
    let Some(entry) = cache.tunnel(table, &key) else { return Err(no_match(table, &key, header)) };
    check_header(entry.kind, header, inner)?;
    open_entry(table, &entry, inner, origin.ecn).map(Opened::Packet)
}

/// What a WireGuard session opened, congestion mark included. Its tag proves who sent it, not what that host's own network
/// put into it.
#[inline]
pub fn open_session(tunnel: TunnelIndex, inner: &mut [u8]) -> Decapsulated<'_> {
    let (remote, verdict) = (RemoteIndex(0), ChecksumVerdict::Unverified);
    Decapsulated { tunnel, remote, link: Link::Ip, inner, ecn: ecn::NOT_ECT, verdict, tolerated: None }
}

/// Opens a payload that begins like a WireGuard message; on another tunnel's port that is an invalid header.
fn open_sealed_payload<'a>(
    table: &ForwardingTable,
    cache: &mut LookupCache,
    payload: &'a mut [u8],
    origin: &SocketOrigin,
) -> Result<SealedMessage<'a>, DropReason> {
    let entry = cache.tunnel(table, &TunnelKey::roaming(origin.local, origin.port));
    let entry = entry.filter(|entry| entry.kind == TunnelKind::WireGuard as u8).ok_or(DropReason::TunnelHeader)?;
    let message_type = wireguard::check(payload)?;
    let tunnel = TunnelIndex(entry.tunnel);
    Ok(SealedMessage { tunnel, message_type, bytes: payload, origin: *origin, tolerated: None })
}

/// The strict header rules of a tunnel's kind.
fn check_header(kind: u8, header: &[u8; vxlan::HEADER_LEN], inner: &[u8]) -> Result<(), DropReason> {
    match TunnelKind::from_u8(kind) {
        Some(TunnelKind::Vxlan) => vxlan::check_vxlan(header).map(|_| ()),
        Some(TunnelKind::VxlanGpe) => {
            let gpe = vxlan::check_gpe(header)?;
            let agrees = inner.first().is_some_and(|byte| byte >> 4 == gpe.ip_version);
            if agrees { Ok(()) } else { Err(DropReason::InnerHeader) }
        }
        // A message would have been taken for one before.
        Some(TunnelKind::WireGuard) => Err(DropReason::TunnelHeader),
        None => Err(DropReason::UnknownVni),
    }
}

/// Why there is no exact match. A VNI means something only behind a valid header, so that comes first.
#[cold]
fn no_match(table: &ForwardingTable, key: &TunnelKey, header: &[u8; vxlan::HEADER_LEN]) -> DropReason {
    let endpoint = EndpointKey { local: key.local, port: key.port, reserved: 0 };
    let rules = match table.endpoint(&endpoint).and_then(|endpoint| TunnelKind::from_u8(endpoint.kind)) {
        Some(TunnelKind::Vxlan) => vxlan::check_vxlan(header).map(|_| ()),
        Some(TunnelKind::VxlanGpe) => vxlan::check_gpe(header).map(|_| ()),
        Some(TunnelKind::WireGuard) => Err(DropReason::TunnelHeader),
        None => Ok(()),
    };
    let network = NetworkKey { local: key.local, vni: key.vni, port: key.port, reserved: 0 };
    match rules {
        Err(reason) => reason,
        Ok(()) if table.network(&network) => DropReason::RemoteNotAllowed,
        Ok(()) => DropReason::UnknownVni,
    }
}

impl Decapsulated<'_> {
    /// Applies what decapsulation demands of the inner packet: the outer congestion mark goes into it, its source must
    /// lie behind its remote (L3), and it must not be for one of our own endpoints.
    #[inline]
    pub fn admit(&mut self, table: &ForwardingTable) -> Result<(), DropReason> {
        let Some((offset, family)) = locate_ip(self.link, self.inner) else { return Ok(()) };
        let Some(ip) = self.inner.get_mut(offset..) else { return Ok(()) };
        if is_nested(table, ip, family) {
            return Err(DropReason::Nested);
        }
        if self.link == Link::Ip
            && let Some(source) = source_address(ip, family)
            && !table.inner_source_allowed(self.tunnel, self.remote, source)
        {
            return Err(DropReason::InnerSourceDenied);
        }
        if !ecn::propagate(ip, family, self.ecn) {
            return Err(DropReason::EcnCeNotEct);
        }
        Ok(())
    }
}

/// Whether the inner packet would come back to one of our tunnels: a loop, or a way around the exact match.
#[inline]
fn is_nested(table: &ForwardingTable, ip: &[u8], family: Family) -> bool {
    let Some(port) = udp_destination_port(ip, family).filter(|&port| table.is_endpoint_port(port)) else {
        return false;
    };
    destination_address(ip, family)
        .is_some_and(|local| table.endpoint(&EndpointKey { local, port, reserved: 0 }).is_some())
}
