//! May this packet join this flow's newest run?
//!
//! The rules are those of the table of that name in docs/COALESCING.md, asked in that order for the first that says no.

use netfwd_common::reason::FlushReason;

use super::candidate::Candidate;
use super::pairs::PairBarriers;
use super::table::Flow;
use super::{MAX_LENGTH, Rules, Run, tcp};
use crate::datapath::packet::InnerPacket;
use crate::datapath::stats::Proto;

/// A packet in front of its flow's newest run.
#[derive(Clone, Copy)]
pub(super) struct Joining<'a> {
    pub flow: &'a Flow,
    pub run: &'a Run,
    pub candidate: &'a Candidate,
    pub batch: &'a [InnerPacket<'a>],
    pub position: u16,
    pub rules: &'a Rules,
}

impl Joining<'_> {
    /// The first rule that keeps the packet out.
    pub fn refusal(&self, pairs: &PairBarriers) -> Option<FlushReason> {
        let (seed, packet) = (&self.flow.common, &self.candidate.common);
        if pairs.closed_since(self.run.last, packet.key.pair().hash(self.rules.hash_secret)) {
            return Some(FlushReason::AfterBarrier);
        }
        self.flow
            .closed
            .or_else(|| (!self.ethernet_equal()).then_some(FlushReason::Ethernet))
            .or_else(|| seed.network_difference(packet))
            .or_else(|| self.transport_refusal())
            .or_else(|| self.ip_id_refusal())
            .or_else(|| self.room_refusal())
    }

    fn transport_refusal(&self) -> Option<FlushReason> {
        let (seed, packet) = (&self.flow.common.transport, &self.candidate.common.transport);
        if self.run.proto != Proto::Tcp {
            return seed.udp_difference(packet);
        }
        if self.candidate.sequence != self.run.next_sequence {
            return Some(FlushReason::Sequence);
        }
        seed.tcp_difference(packet).or_else(|| (!self.options_equal()).then_some(FlushReason::TcpOptions))
    }

    /// With DF clear the kernel numbers the segments from the seed's ID on (`inet_gso_segment`).
    fn ip_id_refusal(&self) -> Option<FlushReason> {
        self.candidate.id.filter(|&id| id != self.run.next_id).map(|_| FlushReason::IpId)
    }

    /// Whether the payload still fits.
    fn room_refusal(&self) -> Option<FlushReason> {
        let (run, payload) = (self.run, self.candidate.layout.payload_len());
        let is_udp = run.proto == Proto::Udp;
        match run.gso_size {
            gso_size if payload > gso_size => Some(FlushReason::LongerSegment),
            _ if run.length + u32::from(payload) > MAX_LENGTH => Some(FlushReason::MaxLength),
            _ if is_udp && run.count >= self.rules.max_udp_segments => Some(FlushReason::MaxSegments),
            gso_size if is_udp && payload < gso_size && !self.rules.udp_short_last => Some(FlushReason::ShortSegment),
            _ => None,
        }
    }

    /// On TAP, everything in front of the IP header is equal: both addresses, tags, EtherType.
    fn ethernet_equal(&self) -> bool {
        let len = usize::from(self.candidate.layout.ip);
        let (seed, packet) = self.bytes();
        self.flow.common.ip == self.candidate.common.ip && seed.get(..len) == packet.get(..len)
    }

    fn options_equal(&self) -> bool {
        let (seed, packet) = self.bytes();
        tcp::options_equal(&self.candidate.layout, seed, packet)
    }

    fn bytes(&self) -> (&[u8], &[u8]) {
        (self.batch[usize::from(self.run.first)].bytes, self.batch[usize::from(self.position)].bytes)
    }
}
