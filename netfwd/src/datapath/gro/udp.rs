//! What UDP adds to the rules.

use netfwd_common::reason::FlushReason;
use netfwd_common::wire::udp::{HEADER_LEN, Header};
use zerocopy::FromBytes;

use super::Rules;
use super::candidate::Parts;
use super::common::Transport;
use crate::datapath::flow::Family;
use crate::datapath::packet::Checksums;

/// Takes a datagram apart.
#[inline]
pub(super) fn examine(
    datagram: &[u8],
    checksums: Checksums,
    family: Family,
    rules: &Rules,
) -> Result<Parts, FlushReason> {
    let (header, payload) = Header::ref_from_prefix(datagram).map_err(|_| FlushReason::Length)?;
    if rules.is_excluded(header.source_port.get()) || rules.is_excluded(header.destination_port.get()) {
        return Err(FlushReason::PortExcluded);
    }
    if usize::from(header.length.get()) != datagram.len() {
        return Err(FlushReason::Length);
    }
    let no_checksum = header.checksum.get() == 0;
    if no_checksum {
        may_merge_without_checksum(checksums, family, rules)?;
    } else if checksums != Checksums::Verified {
        return Err(FlushReason::Checksum);
    }
    if payload.is_empty() {
        return Err(FlushReason::EmptyPayload);
    }
    let same = Transport { extra: u16::from(no_checksum), ..Transport::default() };
    Ok(Parts { header_len: HEADER_LEN as u16, sequence: 0, flags: 0, same })
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
