//! Encapsulation: tunnel header, outer fields, and runs of equal-sized datagrams.
//!
//! A superframe leaves as few system calls as `UDP_SEGMENT` allows. Headers are written to an arena, payload stays in
//! the read buffer, and a run is a gather list that alternates between them.
//!
//! Invariants: a run has at most [`MAX_DATAGRAMS`] datagrams and [`MAX_PAYLOAD`] bytes of UDP payload; all its datagrams
//! have the size of the first but the last, which may be shorter. So an arena of `MAX_PAYLOAD` bytes always suffices,
//! whatever the headers' length.

use std::io::IoSlice;
use std::net::IpAddr;

use netfwd_common::abi::TunnelKind;
use netfwd_common::checksum::Sum;
use netfwd_common::reason::DropReason;
use netfwd_common::wire::vxlan;
use zerocopy::IntoBytes;

use crate::datapath::overlay::{Overlay, Version};
use crate::datapath::seam::OuterChecksum;
use crate::datapath::segment::Superframe;
use crate::datapath::table::Tunnel;

/// Most datagrams in a run: `UDP_MAX_SEGMENTS` of kernels before 6.9.
pub const MAX_DATAGRAMS: usize = 64;
/// Most bytes of UDP payload in a run and so in a datagram: 65,535 less IPv4 and UDP headers.
pub const MAX_PAYLOAD: usize = 65_507;
/// Length of the tunnel header: both kinds have the same.
pub const HEADER_LEN: usize = vxlan::HEADER_LEN;

/// First of the dynamic ports (RFC 6335 §6), which outer source ports come from.
const FIRST_SOURCE_PORT: u16 = 49_152;

/// The fields around the inner packet that all datagrams of a frame share.
#[derive(Clone, Copy, Debug)]
pub struct Encapsulation {
    /// Tunnel header.
    pub header: [u8; HEADER_LEN],
    /// Outer source address.
    pub local: IpAddr,
    /// Outer destination port.
    pub port: u16,
    /// Outer source port.
    pub source_port: u16,
    /// Outer TOS or traffic class.
    pub tos: u8,
    /// Whether the outer UDP checksum is left out.
    pub zero_checksum: bool,
}

impl Encapsulation {
    /// How `tunnel` wraps a packet.
    pub fn new(tunnel: &Tunnel, overlay: &Overlay) -> Self {
        // RFC 6040 §4.1, normal mode: the outer ECN field is a copy of the inner one, CE included.
        let ecn = overlay.network.map_or(0, |network| network.ecn());
        let zero_checksum = match tunnel.local {
            IpAddr::V4(_) => !tunnel.udp_checksum,
            IpAddr::V6(_) => tunnel.udp6_zero_checksum_tx,
        };
        Self {
            header: tunnel_header(tunnel, overlay),
            local: tunnel.local,
            port: tunnel.port,
            source_port: source_port(overlay.flow_hash),
            tos: tunnel.dscp << 2 | ecn,
            zero_checksum,
        }
    }

    /// What the outer checksum is to be, given the inner packet's sum if it is known without reading it.
    pub fn checksum(&self, inner: Option<Sum>) -> OuterChecksum {
        if self.zero_checksum {
            return OuterChecksum::Zero;
        }
        let header = Sum::ZERO.add(&self.header);
        OuterChecksum::Wanted { payload_sum: inner.map(|inner| (header + inner).fold()) }
    }
}

/// The outer source port of a flow (RFC 7348 §5): one of the 16,384 dynamic ports.
pub fn source_port(flow_hash: u64) -> u16 {
    FIRST_SOURCE_PORT + (flow_hash >> 50) as u16
}

fn tunnel_header(tunnel: &Tunnel, overlay: &Overlay) -> [u8; HEADER_LEN] {
    let (flags, next_protocol) = match (tunnel.kind, overlay.network.map(|network| network.version)) {
        (TunnelKind::Vxlan, _) => (vxlan::FLAG_VNI, 0),
        (TunnelKind::VxlanGpe, Some(Version::V4)) => (GPE_FLAGS, vxlan::GPE_NEXT_IPV4),
        (TunnelKind::VxlanGpe, Some(Version::V6)) => (GPE_FLAGS, vxlan::GPE_NEXT_IPV6),
        // An L3 tunnel's packets always have an IP header: others were refused when they were parsed.
        (TunnelKind::VxlanGpe, None) => (vxlan::FLAG_VNI, 0),
        // WireGuard packets are sealed, not wrapped: they take another way. Every receiver refuses a header without flags.
        (TunnelKind::WireGuard, _) => (0, 0),
    };
    let [_, vni @ ..] = tunnel.vni.to_be_bytes();
    let header = vxlan::Header { flags, reserved: [0; 2], next_protocol, vni, reserved2: 0 };
    let mut bytes = [0; HEADER_LEN];
    bytes.copy_from_slice(header.as_bytes());
    bytes
}

const GPE_FLAGS: u8 = vxlan::FLAG_VNI | vxlan::GPE_FLAG_NEXT_PROTOCOL;

/// Datagrams to be sent with one system call.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// UDP payloads back to back.
    pub slices: &'a [IoSlice<'a>],
    /// UDP payload bytes of each datagram but the last.
    pub segment_size: usize,
    /// How many.
    pub datagrams: usize,
    /// UDP payload bytes of all of them.
    pub bytes: usize,
    /// Outer checksum.
    pub checksum: OuterChecksum,
}

/// Wraps a lone packet, whose one's complement sum may be known.
pub fn single(
    wrap: &Encapsulation,
    packet: &[u8],
    sum: Option<Sum>,
    emit: impl FnOnce(Run<'_>),
) -> Result<(), DropReason> {
    let bytes = HEADER_LEN + packet.len();
    if bytes > MAX_PAYLOAD {
        return Err(DropReason::TooBig);
    }
    let slices = [IoSlice::new(&wrap.header), IoSlice::new(packet)];
    emit(Run { slices: &slices, segment_size: bytes, datagrams: 1, bytes, checksum: wrap.checksum(sum) });
    Ok(())
}

/// Cuts a superframe and wraps its segments, run after run. `arena` holds a run's headers, [`MAX_PAYLOAD`] bytes.
pub fn superframe(
    wrap: &Encapsulation,
    frame: &Superframe<'_>,
    arena: &mut [u8],
    mut emit: impl FnMut(Run<'_>),
) -> Result<(), DropReason> {
    let size = HEADER_LEN + frame.header_len() + frame.segment_size();
    if size > MAX_PAYLOAD {
        return Err(DropReason::TooBig);
    }
    let per_run = MAX_DATAGRAMS.min(MAX_PAYLOAD / size);
    let segments = frame.segments();
    for first in (0..segments).step_by(per_run) {
        emit_run(wrap, frame, first..segments.min(first + per_run), arena, &mut emit);
    }
    Ok(())
}

fn emit_run(
    wrap: &Encapsulation,
    frame: &Superframe<'_>,
    segments: std::ops::Range<usize>,
    arena: &mut [u8],
    emit: &mut impl FnMut(Run<'_>),
) {
    let stride = HEADER_LEN + frame.header_len();
    let (first, datagrams) = (segments.start, segments.len());
    for (index, headers) in segments.zip(arena.chunks_exact_mut(stride)) {
        let (tunnel, inner) = headers.split_at_mut(HEADER_LEN);
        tunnel.copy_from_slice(&wrap.header);
        frame.write_headers(index, inner);
    }
    let mut slices = [IoSlice::new(&[]); 2 * MAX_DATAGRAMS];
    let mut bytes = 0;
    for ((index, headers), pair) in
        (first..).zip(arena.chunks_exact(stride)).zip(slices.chunks_exact_mut(2)).take(datagrams)
    {
        let payload = frame.payload(index);
        bytes += headers.len() + payload.len();
        pair.copy_from_slice(&[IoSlice::new(headers), IoSlice::new(payload)]);
    }
    let lone = (datagrams == 1).then(|| frame.sum(first, arena.get(HEADER_LEN..stride).unwrap_or_default()));
    emit(Run {
        slices: slices.get(..2 * datagrams).unwrap_or_default(),
        segment_size: bytes.min(stride + frame.segment_size()),
        datagrams,
        bytes,
        checksum: wrap.checksum(lone),
    });
}
