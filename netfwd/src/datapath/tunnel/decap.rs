//! Decapsulation: from what a socket delivered to the inner packet and the tunnel it belongs to.
//!
//! Two ways lead here. A frame from AF_XDP carries a record of what XDP found; its indices and offsets are bounds-checked
//! against the table and the frame, since a wrong record must never become a wrong slice. A payload from a UDP socket was
//! checked by nobody but the kernel's UDP; it gets the same header rules and the same exact match (local address, port,
//! VNI, remote) as XDP applies.
//!
//! Then the rules for both: congestion marks (RFC 6040), inner sources (L3), no nested tunnels.

use netfwd_common::abi::NetworkKey;
use netfwd_common::abi::{
    ChecksumVerdict, EndpointKey, METADATA_MAGIC, METADATA_VERSION, Metadata, Policy, TunnelEntry, TunnelKey,
    TunnelKind,
};
use netfwd_common::classify::{Lookup, Verdict, classify};
use netfwd_common::reason::{DropReason, PassReason};
use netfwd_common::wire::vxlan;

use crate::datapath::ecn;
use crate::datapath::flow::{Family, locate_ip};
use crate::datapath::packet::{Link, RemoteIndex, TunnelIndex};
use crate::datapath::table::{ForwardingTable, VerifyPolicy};
use crate::datapath::vet::{destination_address, source_address, udp_destination_port};

/// A datagram out of its outer headers.
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

/// The outer addresses of a datagram from a UDP socket, as map keys hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOrigin {
    /// Destination: the address the socket is bound to.
    pub local: [u8; 16],
    /// Destination port.
    pub port: u16,
    /// Source.
    pub remote: [u8; 16],
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
) -> Result<Decapsulated<'a>, DropReason> {
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
) -> Result<Decapsulated<'a>, DropReason> {
    let (tunnel, remote) = (TunnelIndex(record.tunnel), RemoteIndex(record.remote));
    let known = table.get(tunnel).filter(|tunnel| tunnel.remote(remote).is_some());
    let verdict = ChecksumVerdict::from_u8(record.checksums);
    let inner = slice(frame, record.inner_offset, record.inner_len);
    let (Some(known), Some(verdict), Some(inner)) = (known, verdict, inner) else {
        return Err(DropReason::BadMetadata);
    };
    Ok(Decapsulated { tunnel, remote, link: known.link(), inner, ecn: record.ecn, verdict, tolerated: None })
}

#[cold]
fn open_classified<'a>(
    table: &ForwardingTable,
    frame: &'a mut [u8],
    policy: VerifyPolicy,
) -> Result<Decapsulated<'a>, DropReason> {
    let policy =
        Policy { verify: policy.verify as u8, accept_partial: policy.accept_partial.into(), ..Policy::default() };
    let delivery = match classify(&*frame, table, &policy) {
        Verdict::Deliver(delivery) => delivery,
        Verdict::Drop(reason) => return Err(reason),
        // XDP steered it here, so it was ours when XDP looked.
        Verdict::Pass(PassReason::TooShort) => return Err(DropReason::Truncated),
        Verdict::Pass(_) => return Err(DropReason::BadMetadata),
    };
    let inner = slice(frame, delivery.inner_offset, delivery.inner_len).ok_or(DropReason::BadLength)?;
    let opened = open_entry(table, &delivery.entry, inner, delivery.ecn)?;
    Ok(Decapsulated { verdict: delivery.checksums, tolerated: delivery.tolerated, ..opened })
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
        let entry = table.tunnel(key)?;
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
) -> Result<Decapsulated<'a>, DropReason> {
    let Some((header, inner)) = payload.split_first_chunk_mut::<{ vxlan::HEADER_LEN }>() else {
        return Err(DropReason::BadLength);
    };
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    let key = TunnelKey { local: origin.local, remote: origin.remote, vni, port: origin.port, reserved: 0 };
    let Some(entry) = cache.tunnel(table, &key) else { return Err(no_match(table, &key, header)) };
    check_header(entry.kind, header, inner)?;
    open_entry(table, &entry, inner, origin.ecn)
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
