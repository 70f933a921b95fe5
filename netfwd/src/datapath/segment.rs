//! Cutting superframes: what the kernel's `tcp_gso_segment` and `__udp_gso_segment` would have done.
//!
//! A TUN/TAP with offloads hands over one packet of up to 64 KiB for what the wire will see as forty-five. Each segment
//! gets its own copy of the headers, with lengths, sequence number, IPv4 ID, flags and checksums of its own; its payload
//! stays where it is and is read once, for the checksum.
//!
//! Invariants: the segments' payloads concatenated are the superframe's payload. Each segment's checksums are those
//! that a full computation would give, provided the superframe's field held its pseudo-header sum. CWR is on the first
//! segment only (RFC 3168 §6.1.2), FIN and PSH on the last only. Header sums are computed once per superframe and adjusted
//! per segment (RFC 1624).
//!
//! The pseudo-header sum is taken from the superframe's checksum field and corrected for the length, as the kernel does:
//! behind an IPv6 routing header the addresses in the packet are not the ones it covers.

use netfwd_common::checksum::Sum;
use netfwd_common::wire::{ipv6, tcp};

use super::offload::{Checksum, Cut, Gso};
use super::overlay::{Version, load};
use super::sum::sum;

/// A superframe ready to be cut.
#[derive(Clone, Copy, Debug)]
pub struct Superframe<'f> {
    gso: Gso,
    headers: &'f [u8],
    payload: &'f [u8],
    segments: usize,
    /// The pseudo-header without its length.
    pseudo: Sum,
    /// IPv4 header without total length, ID and checksum.
    network: Sum,
    /// Pseudo-header and transport header without lengths, sequence number, flags and checksum.
    transport: Sum,
    id: u16,
    sequence: u32,
    flags: u8,
}

impl<'f> Superframe<'f> {
    /// Prepares `packet`, which [`Gso`] was parsed from.
    pub fn new(gso: Gso, packet: &'f [u8]) -> Self {
        let (headers, payload) = packet.split_at_checked(gso.payload).unwrap_or((packet, &[]));
        let field = gso.transport + usize::from(gso.cut.checksum_offset());
        let length = Sum::ZERO.add_u32((packet.len().saturating_sub(gso.transport)) as u32);
        let pseudo = sum_of::<2>(headers, field).subtract(length);
        let transport = Sum::ZERO.add(headers.get(gso.transport..).unwrap_or_default()).subtract(length);
        let (sequence, flags, transport) = match gso.cut {
            Cut::Tcp => {
                let sequence = u32::from_be_bytes(load(headers, gso.transport + 4).unwrap_or_default());
                let [flags] = load(headers, gso.transport + 13).unwrap_or_default();
                (sequence, flags, transport.subtract(Sum::ZERO.add_u32(sequence).add_u16(flags.into())))
            }
            Cut::Udp => (0, 0, transport.subtract(sum_of::<2>(headers, gso.transport + 4))),
        };
        let (id, network) = match gso.version {
            Version::V4 => ipv4_constants(headers, &gso),
            Version::V6 => (0, Sum::ZERO),
        };
        let segments = payload.len().div_ceil(gso.size).max(1);
        Self { gso, headers, payload, segments, pseudo, network, transport, id, sequence, flags }
    }

    /// How many segments it makes, at least one.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Length of each segment's headers.
    pub fn header_len(&self) -> usize {
        self.headers.len()
    }

    /// Payload bytes of each segment but the last.
    pub fn segment_size(&self) -> usize {
        self.gso.size.min(self.payload.len())
    }

    /// Transport protocol.
    pub fn cut(&self) -> Cut {
        self.gso.cut
    }

    /// The payload of segment `index`, where it lies in the superframe.
    pub fn payload(&self, index: usize) -> &'f [u8] {
        let start = (index * self.gso.size).min(self.payload.len());
        let end = (start + self.gso.size).min(self.payload.len());
        &self.payload[start..end]
    }

    /// Writes the headers of segment `index` to `out`, [`Self::header_len`] bytes.
    pub fn write_headers(&self, index: usize, out: &mut [u8]) {
        let payload = self.payload(index);
        out.copy_from_slice(self.headers);
        self.write_network(index, payload.len(), out);
        match self.gso.cut {
            Cut::Tcp => self.write_tcp(index, payload, out),
            Cut::Udp => self.write_udp(payload, out),
        }
    }

    /// The one's complement sum of segment `index` from its headers alone (local checksum offload): a transport segment
    /// with a right checksum sums to the complement of its pseudo-header. `headers` is what [`Self::write_headers`] wrote.
    pub fn sum(&self, index: usize, headers: &[u8]) -> Sum {
        let length = headers.len().saturating_sub(self.gso.transport) + self.payload(index).len();
        let before = headers.get(..self.gso.transport).unwrap_or_default();
        Sum::ZERO.add(before).subtract(self.pseudo.add_u32(length as u32))
    }

    fn write_network(&self, index: usize, payload: usize, out: &mut [u8]) {
        let at = self.gso.network;
        match self.gso.version {
            Version::V4 => {
                let length = (out.len() - at + payload) as u16;
                let id = self.id.wrapping_add(index as u16);
                store(out, at + 2, length.to_be_bytes());
                store(out, at + 4, id.to_be_bytes());
                store(out, at + 10, self.network.add_u16(length).add_u16(id).checksum().to_bytes());
            }
            // Extension headers are payload (RFC 8200 §3).
            Version::V6 => {
                let length = (out.len() - at - ipv6::HEADER_LEN + payload) as u16;
                store(out, at + 4, length.to_be_bytes());
            }
        }
    }

    fn write_tcp(&self, index: usize, payload: &[u8], out: &mut [u8]) {
        let at = self.gso.transport;
        let length = out.len() - at + payload.len();
        let sequence = self.sequence.wrapping_add((index * self.gso.size) as u32);
        let first = if index == 0 { self.flags } else { self.flags & !tcp::CWR };
        let flags = if index + 1 == self.segments { first } else { first & !(tcp::FIN | tcp::PSH) };
        let total = self.transport.add_u32(sequence).add_u16(flags.into()).add_u32(length as u32) + sum(payload);
        store(out, at + 4, sequence.to_be_bytes());
        store(out, at + 13, [flags]);
        store(out, at + 16, total.checksum().to_bytes());
    }

    fn write_udp(&self, payload: &[u8], out: &mut [u8]) {
        let at = self.gso.transport;
        let length = (out.len() - at + payload.len()) as u16;
        // Once for the header, once for the pseudo-header.
        let total = self.transport.add_u16(length).add_u16(length) + sum(payload);
        store(out, at + 4, length.to_be_bytes());
        store(out, at + 6, total.checksum().to_udp_bytes());
    }
}

/// Completes a lone packet's checksum in place and returns the packet's one's complement sum, from what stands before
/// the checksummed part alone. No sum if that part starts at an odd offset, where sums do not add up.
pub fn complete_checksum(packet: &mut [u8], Checksum { start, field }: Checksum) -> Option<Sum> {
    let seed = sum_of::<2>(packet, field);
    let checksum = sum(packet.get(start..)?).checksum();
    // Only UDP has its checksum at 6, and for UDP zero would say "none" (RFC 768).
    let is_udp = field - start == usize::from(Cut::Udp.checksum_offset());
    store(packet, field, if is_udp { checksum.to_udp_bytes() } else { checksum.to_bytes() });
    let aligned = start % 2 == 0 && (field - start) % 2 == 0;
    aligned.then(|| Sum::ZERO.add(packet.get(..start).unwrap_or_default()).subtract(seed))
}

fn ipv4_constants(headers: &[u8], gso: &Gso) -> (u16, Sum) {
    let id = load(headers, gso.network + 4).unwrap_or_default();
    let sum = Sum::ZERO
        .add(headers.get(gso.network..gso.transport).unwrap_or_default())
        .subtract(sum_of::<2>(headers, gso.network + 2))
        .subtract(Sum::ZERO.add(&id))
        .subtract(sum_of::<2>(headers, gso.network + 10));
    (u16::from_be_bytes(id), sum)
}

fn sum_of<const N: usize>(bytes: &[u8], offset: usize) -> Sum {
    load::<N>(bytes, offset).map_or(Sum::ZERO, |bytes| Sum::ZERO.add(&bytes))
}

fn store<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    if let Some(slot) = bytes.get_mut(offset..).and_then(|rest| rest.first_chunk_mut()) {
        *slot = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completed_packet_s_sum_follows_from_its_head_or_is_not_told() {
        let packet: Vec<u8> = (1..=60).collect();
        for (start, offset) in (0..40).flat_map(|start| (0..18).map(move |offset| (start, offset))) {
            let mut completed = packet.clone();
            let sum = complete_checksum(&mut completed, Checksum { start, field: start + offset });
            let is_aligned = start % 2 == 0 && offset % 2 == 0;
            assert_eq!(sum.is_some(), is_aligned, "{start} + {offset}");
            // One number, whichever of its two zeroes.
            let right = |sum: Sum| sum.fold() % 0xffff == Sum::ZERO.add(&completed).fold() % 0xffff;
            assert!(sum.is_none_or(right), "{start} + {offset}");
        }
    }
}
