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
//! Deliberately absent: what ends a run (a shorter packet, PSH, FIN), TCP options other than timestamps, datagrams without a
//! checksum, and batches with a barrier between addresses; they take the long way.

use netfwd_common::wire::{ipv4, ipv6, tcp, udp};
use zerocopy::{FromBytes, Immutable, KnownLayout, transmute_ref};

use super::candidate::examine;
use super::common::{Transport, ipv4_word, ipv6_word, tcp_word};
use super::join::Joining;
use super::tcp::{WITH_TIMESTAMPS, end_of_run};
use super::{Coalescer, MAX_LENGTH, Rules, Run};
use crate::datapath::flow::{AddressPair, Family, locate_ip};
use crate::datapath::packet::{Checksums, InnerPacket, TunnelIndex};
use crate::datapath::stats::Proto;

impl Coalescer {
    /// Appends the last packet of `batch` to its flow's newest run if it is plainly the next; whether it was.
    #[inline(always)]
    pub(super) fn follow(&mut self, batch: &[InnerPacket<'_>]) -> bool {
        let Some(packet) = batch.last().filter(|packet| packet.checksums == Checksums::Verified) else { return false };
        let followed = match locate_ip(packet.link, packet.bytes) {
            _ if !self.pairs.is_quiet() => None,
            // Apart, so that what a TUN carries needs no offset: those packets begin with their IP headers.
            Some((0, Family::V4)) => self.follow_run::<ipv4::Header>(batch, packet, 0),
            Some((0, Family::V6)) => self.follow_run::<ipv6::Header>(batch, packet, 0),
            Some((ip, Family::V4)) => self.follow_run::<ipv4::Header>(batch, packet, ip),
            Some((ip, Family::V6)) => self.follow_run::<ipv6::Header>(batch, packet, ip),
            None => None,
        };
        followed.is_some()
    }

    #[inline(always)]
    fn follow_run<H: Network>(&mut self, batch: &[InnerPacket<'_>], packet: &InnerPacket<'_>, ip: usize) -> Option<()> {
        let (header, segment) = H::ref_from_prefix(packet.bytes.get(ip..)?).ok()?;
        // No header is asked for its length: a datagram too short for a TCP header takes the long way.
        let (l4, options) = segment.split_first_chunk()?;
        let key = header.pair(packet.tunnel).flow(header.protocol(), *l4.first_chunk()?);
        let flow = self.table.find(&key, key.hash(self.rules.hash_secret))?;
        let run = self.runs.get_mut(usize::from(flow.run)).filter(|_| usize::from(flow.run) >= self.written)?;
        let common = &flow.common;
        // A closed run's common fields need not be those of its packets.
        let follows = flow.closed.is_none()
            && common.network == header.word()
            && header.follows(run)
            && match run.proto {
                Proto::Tcp => tcp_follows(&common.transport, run, l4, options),
                _ => udp_follows(&common.transport, run, l4, &self.rules),
            }
            && run.takes_another(packet.bytes.len())
            && usize::from(common.ip) == ip
            && (ip == 0 || batch.get(usize::from(run.first))?.bytes.get(..ip) == packet.bytes.get(..ip));
        if !follows {
            return None;
        }
        let position = (batch.len() - 1) as u16;
        debug_assert!(examine(packet, &self.rules).is_ok_and(|candidate| {
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

/// An IP header without options.
trait Network: FromBytes + Immutable + KnownLayout {
    fn pair(&self, tunnel: TunnelIndex) -> AddressPair;
    fn protocol(&self) -> u8;
    /// As in [`Common`](super::common::Common).
    fn word(&self) -> u64;
    /// Whether what is not in the word, beside the addresses, lets it join this run.
    fn follows(&self, run: &Run) -> bool;
}

impl Network for ipv4::Header {
    #[inline(always)]
    fn pair(&self, tunnel: TunnelIndex) -> AddressPair {
        AddressPair::ipv4(tunnel, self)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn word(&self) -> u64 {
        ipv4_word(self)
    }

    #[inline(always)]
    fn follows(&self, run: &Run) -> bool {
        self.checksum.get() != 0xffff && (self.dont_fragment() || self.id.get() == run.next_id)
    }
}

impl Network for ipv6::Header {
    #[inline(always)]
    fn pair(&self, tunnel: TunnelIndex) -> AddressPair {
        AddressPair::ipv6(tunnel, self)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.next_header
    }

    #[inline(always)]
    fn word(&self) -> u64 {
        ipv6_word(self)
    }

    #[inline(always)]
    fn follows(&self, _: &Run) -> bool {
        true
    }
}

/// Whether a segment's fields are those of the seed and it is the next in sequence.
#[inline(always)]
fn tcp_follows(seed: &Transport, run: &Run, l4: &[u8; tcp::HEADER_LEN], options: &[u8]) -> bool {
    let header: &tcp::Header = transmute_ref!(l4);
    seed.word == tcp_word(header)
        && seed.extra == header.urgent.get()
        && run.next_sequence == header.sequence.get()
        && header.checksum.get() != 0xffff
        && match header.header_len() {
            WITH_TIMESTAMPS => options.first_chunk() == Some(&seed.options),
            header_len => header_len == tcp::HEADER_LEN,
        }
}

/// Whether a datagram is as long as the seed, has a checksum as the seed has, and is not one too many.
#[inline(always)]
fn udp_follows(seed: &Transport, run: &Run, l4: &[u8; tcp::HEADER_LEN], rules: &Rules) -> bool {
    let Some(header) = l4.first_chunk::<{ udp::HEADER_LEN }>() else { return false };
    let header: &udp::Header = transmute_ref!(header);
    header.length.get() == run.layout.end - run.layout.l4
        && header.checksum.get() != 0
        && seed.extra == 0
        && run.count < rules.max_udp_segments
}

impl Run {
    /// Whether a packet as long as the seed, of which there are `available` bytes, has a place here.
    #[inline(always)]
    fn takes_another(&self, available: usize) -> bool {
        usize::from(self.layout.end) <= available && self.length + u32::from(self.gso_size) <= MAX_LENGTH
    }
}
