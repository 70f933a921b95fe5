//! What UDP adds to the rules.

use netfwd_common::reason::FlushReason;
use netfwd_common::wire::udp::{HEADER_LEN, Header};
use zerocopy::FromBytes;

use super::Rules;
use super::candidate::Transport;
use crate::datapath::flow::Family;
use crate::datapath::packet::Checksums;

/// The field that decides about merging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    /// The datagram has no checksum.
    pub no_checksum: bool,
}

/// Why a datagram goes out alone.
pub(super) enum Refusal {
    /// Its port is excluded, so no run of its flow exists.
    Excluded,
    /// It must not be overtaken.
    Barrier(FlushReason),
}

impl From<FlushReason> for Refusal {
    fn from(reason: FlushReason) -> Self {
        Self::Barrier(reason)
    }
}

/// Takes a datagram apart: its fields and the length of its header.
#[inline]
pub(super) fn examine(
    datagram: &[u8],
    checksums: Checksums,
    family: Family,
    rules: &Rules,
) -> Result<(Transport, u16), Refusal> {
    let (header, payload) = Header::ref_from_prefix(datagram).map_err(|_| FlushReason::Length)?;
    if rules.is_excluded(header.source_port.get()) || rules.is_excluded(header.destination_port.get()) {
        return Err(Refusal::Excluded);
    }
    if usize::from(header.length.get()) != datagram.len() {
        return Err(FlushReason::Length.into());
    }
    let no_checksum = header.checksum.get() == 0;
    if no_checksum {
        may_merge_without_checksum(checksums, family, rules)?;
    } else if checksums != Checksums::Verified {
        return Err(FlushReason::Checksum.into());
    }
    if payload.is_empty() {
        return Err(FlushReason::EmptyPayload.into());
    }
    Ok((Transport::Udp(Fields { no_checksum }), HEADER_LEN as u16))
}

/// The kernel gives every re-split datagram a real checksum, so by default one without stays alone. Over IPv6 zero is an
/// exception that RFC 6935 grants to some tunnels; those datagrams are never touched.
fn may_merge_without_checksum(checksums: Checksums, family: Family, rules: &Rules) -> Result<(), FlushReason> {
    match checksums {
        _ if family == Family::V6 || !rules.udp_zero_checksum => Err(FlushReason::UdpZeroChecksum),
        Checksums::Absent => Ok(()),
        _ => Err(FlushReason::Checksum),
    }
}

impl Fields {
    /// The first of UDP's rules that keeps `packet` out of a run that was seeded by `self`.
    #[inline]
    pub fn refusal(&self, packet: &Self) -> Option<FlushReason> {
        (self != packet).then_some(FlushReason::UdpZeroChecksum)
    }
}
