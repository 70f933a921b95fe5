//! Outer and inner checksums from one pass over the payload.
//!
//! The outer UDP sum is its own headers plus the inner headers plus the inner segment, and the inner L4 sum is its
//! pseudo-header plus the same segment. So the segment is summed once and both verdicts follow.
//!
//! Senders on this machine (veth, tap, virtio) leave CHECKSUM_PARTIAL: the field holds the bare pseudo-header sum, since
//! nobody thought that it would meet a wire. That is told apart from corruption, for either header.
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
    if !outer.header_intact {
        return Finding::bad(DropReason::OuterIpChecksum);
    }
    let body = if outer.udp_checksum != 0 || inner.l4 == L4::Checked {
        // Lengths have been checked: the cursor only declines what is too long for it.
        let Some(body) = inner.body.sum(inner.len) else { return Finding::UNVERIFIED };
        body
    } else {
        Sum::ZERO
    };
    let complete = (inner.pseudo + body).is_valid();
    let inner_partial = inner.l4 == L4::Checked && !complete && is_bare_pseudo(inner.checksum, inner.pseudo);
    let outer_partial = match outer_state(outer, header, inner, body, inner_partial) {
        OuterState::Intact => false,
        OuterState::Partial => true,
        OuterState::Wrong => return Finding::bad(DropReason::OuterUdpChecksum),
    };
    if !inner.header_intact {
        return Finding::bad(DropReason::InnerIpChecksum);
    }
    if (inner_partial || outer_partial) && policy.accept_partial == 0 {
        return Finding::bad(DropReason::PartialChecksum);
    }
    match inner.l4 {
        L4::Opaque => Finding::UNVERIFIED,
        L4::Sealed if outer_partial => Finding::good(ChecksumVerdict::Partial),
        L4::Sealed if outer.udp_checksum == 0 => Finding::good(ChecksumVerdict::Absent),
        L4::Sealed => Finding::good(ChecksumVerdict::Verified),
        L4::Absent => Finding::good(ChecksumVerdict::Absent),
        L4::Checked if inner_partial => Finding::good(ChecksumVerdict::Partial),
        L4::Checked if complete => Finding::good(ChecksumVerdict::Verified),
        L4::Checked => Finding::bad(DropReason::InnerL4Checksum),
    }
}

enum OuterState {
    Intact,
    Partial,
    Wrong,
}

#[inline(always)]
fn outer_state(
    outer: &Outer,
    header: &Header,
    inner: &Inner<impl Cursor>,
    body: Sum,
    inner_partial: bool,
) -> OuterState {
    if outer.udp_checksum == 0 {
        return OuterState::Intact;
    }
    let around = outer.sum + header.sum() + inner.headers + trailer(inner);
    // Local checksum offload (`lco_csum`): the outer checksum may have been computed for the finished inner one, with
    // which segment and pseudo-header add up to nothing.
    let finished = Sum::ZERO.subtract(inner.pseudo);
    if (around + body).is_valid() || inner_partial && (around + finished).is_valid() {
        OuterState::Intact
    } else if is_bare_pseudo(outer.udp_checksum, outer.pseudo) {
        OuterState::Partial
    } else {
        OuterState::Wrong
    }
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
