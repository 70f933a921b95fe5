//! The shortcut of bulk traffic: is this packet plainly the next one of its flow's newest run?
//!
//! The problem: the rules of [`candidate`](super::candidate) and [`join`](super::join) are many, and to ask all of them of
//! every packet costs more than what they decide about. But bulk traffic is trains of packets whose headers equal the
//! seed's but for a few fields, and the seed has been through all the rules. So what equals the seed need not be asked
//! again: a few words are compared where they stand in the packet, and only what may differ is looked at.
//!
//! Invariants: a packet that takes the shortcut would have joined the same run on the long way (asserted wherever
//! assertions are on); one that does not is simply not decided about. No reason comes from here.
//!
//! Deliberately absent: datagrams without a checksum and batches with a barrier between addresses; they take the long way.

use netfwd_common::wire::{ipv4, ipv6, tcp, udp};
use zerocopy::FromBytes;

use super::candidate::examine;
use super::common::{ipv4_word, ipv6_word, tcp_word};
use super::join::Joining;
use super::table::Flow;
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
    /// IP header, TCP or UDP header, end of the payload: from the packet's first byte.
    ip: usize,
    l4: usize,
    end: usize,
    /// IPv4 identification, if DF is clear.
    id: Option<u16>,
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
        let headers: &[u8; IPV4_HEADERS] = packet.bytes.get(ip..)?.first_chunk()?;
        let (header, l4) = ipv4::Header::ref_from_prefix(headers).ok()?;
        if header.checksum.get() == 0xffff {
            return None;
        }
        let network = Network {
            key: AddressPair::ipv4(packet.tunnel, header).flow(header.protocol, *l4.first_chunk()?),
            word: ipv4_word(header),
            ip,
            l4: ip + ipv4::HEADER_LEN,
            end: ip + usize::from(header.total_length.get()),
            id: (!header.dont_fragment()).then_some(header.id.get()),
        };
        self.follow_run(batch, position, &network, l4.first_chunk()?)
    }

    #[inline(always)]
    fn follow_ipv6(&mut self, batch: &[InnerPacket<'_>], position: u16, ip: usize) -> Option<()> {
        let packet = &batch[usize::from(position)];
        let headers: &[u8; IPV6_HEADERS] = packet.bytes.get(ip..)?.first_chunk()?;
        let (header, l4) = ipv6::Header::ref_from_prefix(headers).ok()?;
        let network = Network {
            key: AddressPair::ipv6(packet.tunnel, header).flow(header.next_header, *l4.first_chunk()?),
            word: ipv6_word(header),
            ip,
            l4: ip + ipv6::HEADER_LEN,
            end: ip + ipv6::HEADER_LEN + usize::from(header.payload_length.get()),
            id: None,
        };
        self.follow_run(batch, position, &network, l4.first_chunk()?)
    }

    #[inline(always)]
    fn follow_run(
        &mut self,
        batch: &[InnerPacket<'_>],
        position: u16,
        network: &Network,
        l4: &[u8; tcp::HEADER_LEN],
    ) -> Option<()> {
        let flow = self.table.find(&network.key, network.key.hash(self.rules.hash_secret))?;
        let run = self.runs.get_mut(usize::from(flow.run)).filter(|_| usize::from(flow.run) >= self.written)?;
        let bytes = batch[usize::from(position)].bytes;
        // A closed run's common fields need not be those of its packets.
        if flow.closed.is_some() || flow.common.network != network.word || usize::from(flow.common.ip) != network.ip {
            return None;
        }
        let is_tcp = run.proto == Proto::Tcp;
        let flags = if is_tcp { tcp_follows(flow, run, l4)? } else { udp_follows(flow, network, l4)? };
        let payload_len = run.next_payload_len(network, bytes.len(), &self.rules)?;
        let seed = || batch[usize::from(run.first)].bytes;
        if network.ip != 0 && seed().get(..network.ip) != bytes.get(..network.ip) {
            return None;
        }
        if is_tcp && !options_follow(flow, run, seed, bytes) {
            return None;
        }
        debug_assert!(examine(&batch[usize::from(position)], &self.rules).is_ok_and(|candidate| {
            let joining = Joining { flow, run, candidate: &candidate, batch, position, rules: &self.rules };
            joining.refusal(&self.pairs).is_none() && candidate.layout.payload_len() == payload_len
        }));
        self.next[usize::from(run.last)] = position;
        if let Some(reason) = run.append(position, payload_len, flags) {
            flow.closed = Some(reason);
        }
        Some(())
    }
}

/// Whether a segment's fields are those of the seed and it is the next in sequence; its flags.
#[inline(always)]
fn tcp_follows(flow: &Flow, run: &Run, l4: &[u8; tcp::HEADER_LEN]) -> Option<u8> {
    let header = tcp::Header::ref_from_bytes(l4).ok()?;
    let is_next = flow.common.transport.word == tcp_word(header)
        && run.next_sequence == header.sequence.get()
        && flow.common.transport.extra == header.urgent.get()
        && header.checksum.get() != 0xffff;
    is_next.then_some(header.flags)
}

/// Whether a datagram's length is that of its packet and it has a checksum as the seed has; no flags.
#[inline(always)]
fn udp_follows(flow: &Flow, network: &Network, l4: &[u8; tcp::HEADER_LEN]) -> Option<u8> {
    let (header, _) = udp::Header::ref_from_prefix(l4).ok()?;
    let is_whole = network.l4 + usize::from(header.length.get()) == network.end;
    (is_whole && header.checksum.get() != 0 && flow.common.transport.extra == 0).then_some(0)
}

impl Run {
    /// The packet's payload, if there is one, it is all there, and this run has room for it.
    #[inline(always)]
    fn next_payload_len(&self, network: &Network, available: usize, rules: &Rules) -> Option<u16> {
        // The headers are as long as the seed's.
        let payload = network.end.checked_sub(usize::from(self.layout.payload))?;
        let gso_size = usize::from(self.gso_size);
        let is_room = network.end <= available
            && (1..=gso_size).contains(&payload)
            && self.length + payload as u32 <= MAX_LENGTH
            && network.id.is_none_or(|id| id == self.next_id)
            && (self.proto == Proto::Tcp
                || (self.count < rules.max_udp_segments && (payload == gso_size || rules.udp_short_last)));
        is_room.then_some(payload as u16)
    }
}

/// Whether a segment, whose header is as long as the seed's, carries the same option bytes.
#[inline(always)]
fn options_follow<'a>(flow: &Flow, run: &Run, seed: impl Fn() -> &'a [u8], packet: &[u8]) -> bool {
    let start = usize::from(run.layout.l4) + tcp::HEADER_LEN;
    let end = usize::from(run.layout.payload);
    match end - start {
        12 => packet.get(start..end) == Some(&flow.common.transport.options[..]),
        0 => true,
        _ => seed().get(start..end) == packet.get(start..end),
    }
}
