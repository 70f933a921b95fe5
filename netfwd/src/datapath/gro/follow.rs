//! The shortcut of bulk traffic: is this packet plainly the next one of its flow's newest run?
//!
//! The problem: the rules of [`candidate`](super::candidate) and [`join`](super::join) are many, and to ask all of them of
//! every packet costs more than what they decide about. But bulk traffic is trains of full-sized packets whose headers
//! equal the seed's, lengths and flags included, but for sequence numbers, IDs and checksums. The seed has been through
//! all the rules, so what equals it is neither asked nor parsed again: a few words are compared where they stand in the
//! packet.
//!
//! Invariants: a packet that takes the shortcut would have joined the same run on the long way (asserted wherever
//! assertions are on); one that does not is simply not decided about. No reason comes from here.
//!
//! Deliberately absent: what ends a run (a shorter packet, PSH, FIN), datagrams without a checksum, and batches with a
//! barrier between addresses; they take the long way.

use netfwd_common::wire::{ipv4, ipv6, tcp, udp};
use zerocopy::FromBytes;

use super::candidate::examine;
use super::common::{ipv4_word, ipv6_word, tcp_word};
use super::join::Joining;
use super::table::Flow;
use super::tcp::{WITH_TIMESTAMPS, end_of_run, options_equal};
use super::{Coalescer, MAX_LENGTH, Rules, Run};
use crate::datapath::flow::{AddressPair, Family, FlowKey, locate_ip};
use crate::datapath::packet::{Checksums, InnerPacket};
use crate::datapath::stats::Proto;

/// The shortest headers that may be looked at without asking for their lengths: IP and TCP without options.
const IPV4_HEADERS: usize = ipv4::HEADER_LEN + tcp::HEADER_LEN;
const IPV6_HEADERS: usize = ipv6::HEADER_LEN + tcp::HEADER_LEN;

/// What the IP header of a packet says, if it is like the seed's.
struct Network {
    key: FlowKey,
    /// As in [`Common`](super::common::Common).
    word: u64,
    /// Where it starts, from the packet's first byte.
    ip: usize,
    /// IPv4 identification, if DF is clear.
    id: Option<u16>,
}

/// What stands behind the IP header: at least as much as a TCP header without options, and the rest.
struct Segment<'a> {
    l4: &'a [u8; tcp::HEADER_LEN],
    rest: &'a [u8],
}

impl Coalescer {
    /// Appends the packet to its flow's newest run if it is plainly the next; whether it was.
    #[inline(always)]
    pub(super) fn follow(&mut self, batch: &[InnerPacket<'_>], position: u16) -> bool {
        let packet = &batch[usize::from(position)];
        let followed = match locate_ip(packet.link, packet.bytes) {
            _ if packet.checksums != Checksums::Verified || !self.pairs.is_quiet() => None,
            Some((ip, Family::V4)) => self.follow_ipv4(batch, position, ip),
            Some((ip, Family::V6)) => self.follow_ipv6(batch, position, ip),
            None => None,
        };
        followed.is_some()
    }

    #[inline(always)]
    fn follow_ipv4(&mut self, batch: &[InnerPacket<'_>], position: u16, ip: usize) -> Option<()> {
        let packet = &batch[usize::from(position)];
        let (headers, rest) = packet.bytes.get(ip..)?.split_first_chunk::<IPV4_HEADERS>()?;
        let (header, l4) = ipv4::Header::ref_from_prefix(headers).ok()?;
        if header.checksum.get() == 0xffff {
            return None;
        }
        let network = Network {
            key: AddressPair::ipv4(packet.tunnel, header).flow(header.protocol, *l4.first_chunk()?),
            word: ipv4_word(header),
            ip,
            id: (!header.dont_fragment()).then_some(header.id.get()),
        };
        self.follow_run(batch, position, &network, &Segment { l4: l4.first_chunk()?, rest })
    }

    #[inline(always)]
    fn follow_ipv6(&mut self, batch: &[InnerPacket<'_>], position: u16, ip: usize) -> Option<()> {
        let packet = &batch[usize::from(position)];
        let (headers, rest) = packet.bytes.get(ip..)?.split_first_chunk::<IPV6_HEADERS>()?;
        let (header, l4) = ipv6::Header::ref_from_prefix(headers).ok()?;
        let network = Network {
            key: AddressPair::ipv6(packet.tunnel, header).flow(header.next_header, *l4.first_chunk()?),
            word: ipv6_word(header),
            ip,
            id: None,
        };
        self.follow_run(batch, position, &network, &Segment { l4: l4.first_chunk()?, rest })
    }

    #[inline(always)]
    fn follow_run(
        &mut self,
        batch: &[InnerPacket<'_>],
        position: u16,
        network: &Network,
        segment: &Segment<'_>,
    ) -> Option<()> {
        let flow = self.table.find(&network.key, network.key.hash(self.rules.hash_secret))?;
        let run = self.runs.get_mut(usize::from(flow.run)).filter(|_| usize::from(flow.run) >= self.written)?;
        let bytes = batch[usize::from(position)].bytes;
        let seed = || batch[usize::from(run.first)].bytes;
        // A closed run's common fields need not be those of its packets.
        let follows = flow.closed.is_none()
            && flow.common.network == network.word
            && usize::from(flow.common.ip) == network.ip
            && match run.proto {
                Proto::Tcp => tcp_follows(flow, run, segment, || options_equal(&run.layout, seed(), bytes)),
                _ => udp_follows(flow, run, segment),
            }
            && run.takes_another(network.id, bytes.len(), &self.rules)
            && (network.ip == 0 || seed().get(..network.ip) == bytes.get(..network.ip));
        if !follows {
            return None;
        }
        debug_assert!(examine(&batch[usize::from(position)], &self.rules).is_ok_and(|candidate| {
            let joining = Joining { flow, run, candidate: &candidate, batch, position, rules: &self.rules };
            joining.refusal(&self.pairs).is_none()
                && candidate.layout.payload_len() == run.gso_size
                && end_of_run(candidate.flags).is_none()
        }));
        self.next[usize::from(run.last)] = position;
        run.append(position, run.gso_size, 0);
        Some(())
    }
}

/// Whether a segment's fields are those of the seed and it is the next in sequence.
#[inline(always)]
fn tcp_follows(flow: &Flow, run: &Run, segment: &Segment<'_>, options_equal: impl Fn() -> bool) -> bool {
    let Ok(header) = tcp::Header::ref_from_bytes(segment.l4) else { return false };
    let seed = &flow.common.transport;
    seed.word == tcp_word(header)
        && seed.extra == header.urgent.get()
        && run.next_sequence == header.sequence.get()
        && header.checksum.get() != 0xffff
        && match header.header_len() {
            WITH_TIMESTAMPS => segment.rest.first_chunk() == Some(&seed.options),
            tcp::HEADER_LEN => true,
            _ => options_equal(),
        }
}

/// Whether a datagram is as long as the seed and has a checksum as the seed has.
#[inline(always)]
fn udp_follows(flow: &Flow, run: &Run, segment: &Segment<'_>) -> bool {
    udp::Header::ref_from_prefix(segment.l4).is_ok_and(|(header, _)| {
        header.length.get() == run.layout.end - run.layout.l4
            && header.checksum.get() != 0
            && flow.common.transport.extra == 0
    })
}

impl Run {
    /// Whether a packet as long as the seed, of which there are `available` bytes, has a place here.
    #[inline(always)]
    fn takes_another(&self, id: Option<u16>, available: usize, rules: &Rules) -> bool {
        usize::from(self.layout.end) <= available
            && self.length + u32::from(self.gso_size) <= MAX_LENGTH
            && id.is_none_or(|id| id == self.next_id)
            && (self.proto == Proto::Tcp || self.count < rules.max_udp_segments)
    }
}
