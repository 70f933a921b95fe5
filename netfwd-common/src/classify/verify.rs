//! Outer and inner checksums from one pass over the payload.
//!
//! The outer UDP sum is its own headers plus the inner headers plus the inner segment, and the inner L4 sum is its
//! pseudo-header plus the same segment. So the segment is summed once and both verdicts follow.
//!
//! Senders on this machine (veth, tap, virtio) leave CHECKSUM_PARTIAL: the field holds the bare pseudo-header sum, since
//! nobody thought that it would meet a wire. That is told apart from corruption, for either header; one packet in 65,535
//! has a right checksum that is this sum as well, and nothing tells whether such a packet is corrupt or unfinished.
//!
//! Of a WireGuard message the outer checksums are all: inside, only the tag tells.

use crate::abi::{ChecksumVerdict, Policy};
use crate::checksum::Sum;
use crate::cursor::Cursor;
use crate::reason::DropReason;

use super::inner::{Inner, L4};
use super::outer::Outer;
use super::tunnel::Header;

/// What the sums say.
pub(super) struct Finding {
    pub checksums: ChecksumVerdict,
    /// What is wrong, if anything is.
    pub fault: Option<DropReason>,
}

impl Finding {
    pub const UNVERIFIED: Self = Self::good(ChecksumVerdict::Unverified);

    const fn good(checksums: ChecksumVerdict) -> Self {
        Self { checksums, fault: None }
    }

    const fn bad(reason: DropReason) -> Self {
        Self { checksums: ChecksumVerdict::Bad, fault: Some(reason) }
    }
}

/// Verifies every checksum that the packet has.
#[inline(always)]
pub(super) fn verify(outer: &Outer, header: &Header, inner: &Inner<impl Cursor>, policy: &Policy) -> Finding {
    let body = if outer.udp_checksum != 0 || inner.l4.is_checked() {
        // Lengths have been checked: the cursor only declines what is too long for it.
        let Some(body) = inner.body.sum(inner.len) else { return unsummed(outer) };
        body
    } else {
        Sum::ZERO
    };
    let around = outer.sum + header.sum() + inner.headers + trailer(inner);
    let all_right = outer.header.is_valid()
        && inner.header.is_valid()
        && (outer.udp_checksum == 0 || (around + body).is_valid())
        && (!inner.l4.is_checked() || (inner.pseudo + body).is_valid());
    if all_right { verdict(inner.l4, outer) } else { fault(outer, inner, body, around, policy) }
}

/// A packet too long to be summed here.
#[cold]
#[inline(always)]
fn unsummed(outer: &Outer) -> Finding {
    if outer.header.is_valid() { Finding::UNVERIFIED } else { Finding::bad(DropReason::OuterIpChecksum) }
}

/// What is known of a packet in which nothing is wrong.
#[inline(always)]
fn verdict(l4: L4, outer: &Outer) -> Finding {
    match l4 {
        L4::Tcp | L4::Udp => Finding::good(ChecksumVerdict::Verified),
        L4::Absent => Finding::good(ChecksumVerdict::Absent),
        L4::Opaque => Finding::UNVERIFIED,
        L4::Sealed if outer.udp_checksum == 0 => Finding::good(ChecksumVerdict::Absent),
        L4::Sealed => Finding::good(ChecksumVerdict::Verified),
    }
}

/// What is wrong with a packet, or unfinished.
#[cold]
#[inline(always)]
fn fault(outer: &Outer, inner: &Inner<impl Cursor>, body: Sum, around: Sum, policy: &Policy) -> Finding {
    if !outer.header.is_valid() {
        return Finding::bad(DropReason::OuterIpChecksum);
    }
    let complete = (inner.pseudo + body).is_valid();
    let inner_partial = inner.l4.is_checked() && !complete && is_bare_pseudo(inner.checksum(), inner.pseudo);
    // Local checksum offload (`lco_csum`): the outer checksum may have been computed for the finished inner one, with
    // which segment and pseudo-header add up to nothing.
    let finished = Sum::ZERO.subtract(inner.pseudo);
    let outer_right =
        outer.udp_checksum == 0 || (around + body).is_valid() || inner_partial && (around + finished).is_valid();
    if !outer_right && !is_bare_pseudo(outer.udp_checksum, outer.pseudo) {
        return Finding::bad(DropReason::OuterUdpChecksum);
    }
    if !inner.header.is_valid() {
        return Finding::bad(DropReason::InnerIpChecksum);
    }
    if (inner_partial || !outer_right) && policy.accept_partial == 0 {
        return Finding::bad(DropReason::PartialChecksum);
    }
    if inner_partial || inner.l4 == L4::Sealed {
        return Finding::good(ChecksumVerdict::Partial);
    }
    if inner.l4.is_checked() && !complete {
        return Finding::bad(DropReason::InnerL4Checksum);
    }
    verdict(inner.l4, outer)
}

/// The sum of the bytes behind the segment, as they count when the segment has an odd length.
#[inline(always)]
fn trailer(inner: &Inner<impl Cursor>) -> Sum {
    if inner.trailer == 0 {
        return Sum::ZERO;
    }
    let sum = inner.body.skip(inner.len).sum(inner.trailer).unwrap_or(Sum::ZERO);
    // RFC 1071 §2(B): a sum over bytes moved by one is the swapped sum.
    if inner.len % 2 == 1 { Sum::from_raw(u64::from(sum.fold().swap_bytes())) } else { sum }
}

/// Whether a checksum field holds the folded, not complemented pseudo-header sum, in either representation of zero.
#[inline(always)]
fn is_bare_pseudo(field: u16, pseudo: Sum) -> bool {
    let folded = pseudo.fold();
    field == folded || (field == 0 || field == 0xffff) && (folded == 0 || folded == 0xffff)
}
