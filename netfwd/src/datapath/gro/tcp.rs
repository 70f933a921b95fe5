//! What TCP adds to the rules.

use netfwd_common::reason::FlushReason;
use netfwd_common::wire::tcp::{ACK, ECE, FIN, HEADER_LEN, Header, PSH};
use zerocopy::FromBytes;

use super::candidate::{Layout, Parts};
use super::common::{Transport, tcp_word};
use crate::datapath::packet::Checksums;

/// Length of a header with the options that nearly all segments carry: timestamps with their padding.
pub(super) const WITH_TIMESTAMPS: usize = HEADER_LEN + 12;

/// Takes a TCP segment apart.
#[inline]
pub(super) fn examine(segment: &[u8], checksums: Checksums) -> Result<Parts, FlushReason> {
    let (header, rest) = Header::ref_from_prefix(segment).map_err(|_| FlushReason::Length)?;
    let header_len = header.header_len();
    if header_len < HEADER_LEN || header_len > segment.len() {
        return Err(FlushReason::Length);
    }
    // 0xFFFF verifies, being the other zero, but the kernel would write 0x0000 when it cuts.
    if checksums != Checksums::Verified || header.checksum.get() == 0xffff {
        return Err(FlushReason::Checksum);
    }
    if !flags_can_merge(header) {
        return Err(FlushReason::TcpFlags);
    }
    if header_len == segment.len() {
        return Err(FlushReason::EmptyPayload);
    }
    let options = match rest.first_chunk() {
        Some(options) if header_len == WITH_TIMESTAMPS => *options,
        _ => [0; 12],
    };
    let same = Transport { word: tcp_word(header), options, extra: header.urgent.get() };
    Ok(Parts { header_len: header_len as u16, sequence: header.sequence.get(), flags: header.flags, same })
}

/// ACK must be set; PSH, FIN and ECE may be; nothing else, and no reserved bit (AE included, RFC 9768).
fn flags_can_merge(header: &Header) -> bool {
    let field = u16::from_be_bytes([header.offset_reserved & 0xf, header.flags]);
    field & !u16::from(PSH | FIN | ECE) == u16::from(ACK)
}

/// Why nothing may join behind a segment with these flags: PSH and FIN end a run.
#[inline]
pub(super) fn end_of_run(flags: u8) -> Option<FlushReason> {
    match flags & (PSH | FIN) {
        0 => None,
        PSH => Some(FlushReason::AfterPush),
        _ => Some(FlushReason::AfterFin),
    }
}

/// Whether both segments, whose headers are equally long, carry the same option bytes.
pub(super) fn options_equal(layout: &Layout, seed: &[u8], packet: &[u8]) -> bool {
    let options = usize::from(layout.l4) + HEADER_LEN..usize::from(layout.payload);
    seed.get(options.clone()) == packet.get(options)
}
