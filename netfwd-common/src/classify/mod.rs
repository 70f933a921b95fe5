//! Outer (and inner) headers → [`Verdict`]: the one parser of the XDP program, user space, tests and fuzzers.
//!
//! Two errors are possible and both hurt: to take a packet that was the kernel's, and to drop or launder one of ours.
//! So everything that is not positively ours passes; of ours only what is provably bad is dropped; what is merely unusual
//! is delivered with [`ChecksumVerdict::Unverified`].
//!
//! Invariants: no panic on any bytes; each payload byte is summed at most once, for the outer and the inner checksum
//! together; offsets in a [`Delivery`] lie within the frame.
//!
//! Deliberately absent: reassembly, option parsing, nested tunnels (an inner packet is only an inner packet here), ECN
//! (RFC 6040 needs to rewrite, so it belongs to decapsulation), per-remote inner prefixes (user space has the trie), and
//! everything about WireGuard that needs a key.

mod exact;
mod inner;
mod outer;
mod tunnel;
mod verify;

use crate::abi::{
    ChecksumVerdict, EndpointEntry, EndpointKey, NetworkKey, Policy, TunnelEntry, TunnelKey, TunnelKind, Verify,
};
use crate::cursor::Cursor;
use crate::reason::{DropReason, PassReason};
use crate::wire::wireguard::MessageType;
use crate::wire::{udp, vxlan};

use exact::{Match, beyond_linear};
use outer::Outer;
use tunnel::Content;

/// The forwarding state that classification asks: BPF maps there, hash maps here.
pub trait Lookup {
    /// The tunnel and remote that a datagram belongs to.
    ///
    /// The key comes by value: only a map that has to be asked needs it in memory.
    fn tunnel(&self, key: TunnelKey) -> Option<TunnelEntry>;

    /// Whether we listen on an address and port at all. Asked only after [`Self::tunnel`] found nothing.
    fn endpoint(&self, key: &EndpointKey) -> Option<EndpointEntry>;

    /// Whether a tunnel has this VNI, whoever its remotes are. Asked only to name the reason of a drop.
    fn network(&self, key: &NetworkKey) -> bool;
}

/// What is to become of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not positively ours: the kernel's.
    Pass(PassReason),
    /// Ours and provably bad.
    Drop(DropReason),
    /// Ours.
    Deliver(Delivery),
}

/// A frame of ours, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The exact match.
    pub entry: TunnelEntry,
    /// Where the inner packet or the WireGuard message starts, from the start of the frame.
    pub inner_offset: u16,
    /// Length of the inner packet, Ethernet header included for L2, or of the message; outer padding excluded.
    pub inner_len: u16,
    /// Outer ECN field.
    pub ecn: u8,
    /// What is known of the inner checksums, or of the outer ones around a WireGuard message.
    pub checksums: ChecksumVerdict,
    /// With `verify = "count"`: the reason that would have dropped it.
    pub tolerated: Option<DropReason>,
    /// Folded hash of the inner flow, or of a WireGuard data message's receiver index; 0 when there is none.
    pub flow_hash: u16,
    /// The type of a WireGuard message.
    pub message: Option<MessageType>,
}

/// Why a frame is not delivered.
#[derive(Clone, Copy)]
enum Refusal {
    Pass(PassReason),
    Drop(DropReason),
}

/// Classifies an Ethernet frame as it came from the wire.
#[inline(always)]
pub fn classify(frame: impl Cursor, lookup: &impl Lookup, policy: &Policy) -> Verdict {
    match delivery(frame, lookup, policy) {
        Ok(delivery) => Verdict::Deliver(delivery),
        Err(Refusal::Pass(reason)) => Verdict::Pass(reason),
        Err(Refusal::Drop(reason)) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn delivery(frame: impl Cursor, lookup: &impl Lookup, policy: &Policy) -> Result<Delivery, Refusal> {
    let (outer, Match { header, entry }) = outer::parse(frame, lookup)?;
    if !outer::is_for_us(frame, policy.station) {
        return Err(Refusal::Pass(PassReason::OtherStation));
    }
    let kind = TunnelKind::from_u8(entry.kind).ok_or(Refusal::Drop(DropReason::UnknownVni))?;
    let content = tunnel::check(kind, &header)?;
    let behind_header = outer.udp_offset + udp::HEADER_LEN + vxlan::HEADER_LEN;
    let len_behind_header = len_behind_header(frame, &outer)?;
    outer::check_zero_checksum(&outer, entry.flags)?;
    let inner = inner::parse(frame.skip(behind_header), content, len_behind_header, &header)?;
    let finding = if policy.verify == Verify::Off as u8 {
        verify::Finding::UNVERIFIED
    } else {
        verify::verify(&outer, &header, &inner, policy)
    };
    if let Some(reason) = finding.fault
        && policy.verify == Verify::Drop as u8
    {
        return Err(Refusal::Drop(reason));
    }
    // A message's own first bytes are looked at like a tunnel header, but are part of it.
    let (message, back) = match content {
        Content::Sealed(message) => (Some(message), vxlan::HEADER_LEN),
        _ => (None, 0),
    };
    Ok(Delivery {
        entry,
        inner_offset: (behind_header - back) as u16,
        inner_len: (len_behind_header + back) as u16,
        ecn: outer.ecn,
        checksums: finding.checksums,
        tolerated: finding.fault,
        flow_hash: inner.flow_hash,
        message,
    })
}

/// Bytes behind the tunnel header, once all length fields agree with each other and with the frame.
///
/// A UDP length below the IP payload is legal (RFC 9868's surplus area) and the surplus is not ours to look at.
#[inline(always)]
fn len_behind_header(frame: impl Cursor, outer: &Outer) -> Result<usize, Refusal> {
    if outer.udp_offset + outer.udp_length > outer.ip_end {
        return Err(Refusal::Drop(DropReason::BadLength));
    }
    if outer.ip_end > frame.len() {
        return Err(beyond_linear(frame.total_len(), outer.ip_end));
    }
    outer.udp_length.checked_sub(udp::HEADER_LEN + vxlan::HEADER_LEN).ok_or(Refusal::Drop(DropReason::BadLength))
}
