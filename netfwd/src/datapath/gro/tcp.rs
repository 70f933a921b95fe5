//! What TCP adds to the rules.

use netfwd_common::reason::FlushReason;
use netfwd_common::wire::tcp::{ACK, ECE, FIN, HEADER_LEN, Header, PSH};
use zerocopy::FromBytes;

use super::candidate::{Candidate, Transport};
use crate::datapath::packet::Checksums;

/// The fields that decide about merging.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fields {
    /// Sequence number of the first payload byte.
    pub sequence: u32,
    /// Acknowledgement number, window and urgent pointer, compared as one word.
    pub same: u64,
    /// The flags.
    pub flags: u8,
}

/// Takes a TCP segment apart: its fields and the length of its header.
#[inline(always)]
pub(super) fn examine(segment: &[u8], checksums: Checksums) -> Result<(Transport, u16), FlushReason> {
    let (header, _) = Header::ref_from_prefix(segment).map_err(|_| FlushReason::Length)?;
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
    let same = (u64::from(header.acknowledgement.get()) << 32)
        | (u64::from(header.window.get()) << 16)
        | u64::from(header.urgent.get());
    let fields = Fields { sequence: header.sequence.get(), same, flags: header.flags };
    Ok((Transport::Tcp(fields), header_len as u16))
}

/// ACK must be set; PSH, FIN and ECE may be; nothing else, and no reserved bit (AE included, RFC 9768).
fn flags_can_merge(header: &Header) -> bool {
    header.flags & ACK != 0 && header.flags & !(ACK | PSH | FIN | ECE) == 0 && header.offset_reserved & 0xf == 0
}

impl Fields {
    /// Why a segment behind these flags may not join: PSH and FIN end a run.
    pub fn end_of_run(&self) -> Option<FlushReason> {
        match self.flags & (PSH | FIN) {
            0 => None,
            PSH => Some(FlushReason::AfterPush),
            _ => Some(FlushReason::AfterFin),
        }
    }

    /// The first of TCP's rules that keeps `packet` out of a run that was seeded by `self` and ends before sequence
    /// number `next`.
    #[inline]
    pub fn refusal(&self, packet: &Self, next: u32) -> Option<FlushReason> {
        if packet.sequence != next {
            return Some(FlushReason::Sequence);
        }
        if packet.same != self.same {
            return Some(self.difference(packet));
        }
        let differing = (packet.flags ^ self.flags) & !(PSH | FIN);
        (differing != 0).then_some(FlushReason::FlagsDiffer)
    }

    #[cold]
    fn difference(&self, packet: &Self) -> FlushReason {
        let difference = self.same ^ packet.same;
        match difference {
            _ if difference >> 32 != 0 => FlushReason::Acknowledgement,
            _ if difference >> 16 != 0 => FlushReason::Window,
            _ => FlushReason::Urgent,
        }
    }
}

/// Whether both headers carry the same option bytes.
#[inline]
pub(super) fn options_equal(seed: (&Candidate, &[u8]), packet: (&Candidate, &[u8])) -> bool {
    let (a, b) = (options(seed.0, seed.1), options(packet.0, packet.1));
    match (a.first_chunk::<12>(), b.first_chunk::<12>()) {
        // Timestamps with their padding: by far the most common options.
        (Some(x), Some(y)) if a.len() == 12 && b.len() == 12 => x == y,
        _ => a == b,
    }
}

fn options<'a>(candidate: &Candidate, bytes: &'a [u8]) -> &'a [u8] {
    let start = usize::from(candidate.layout.l4) + HEADER_LEN;
    bytes.get(start..usize::from(candidate.layout.payload)).unwrap_or_default()
}
