//! May this packet be merged at all?
//!
//! A [`Candidate`] is the answer yes: its lengths agree with each other and with the bytes, its checksums are known to be
//! right, it is no fragment and carries nothing that merging would lose. All later code trusts its offsets. The answer no
//! is a reason; [`Alone`] then says whose runs the packet must not be overtaken by.
//!
//! The rules are those of the table "may this packet be merged at all" in docs/COALESCING.md; one predicate each.

use netfwd_common::reason::FlushReason;
use netfwd_common::wire::{IPPROTO_TCP, IPPROTO_UDP, ipv4, ipv6};
use zerocopy::FromBytes;

use super::common::{Common, Transport, ipv4_word, ipv6_word};
use super::{Rules, tcp, udp};
use crate::datapath::flow::{AddressPair, Family, FlowKey, locate_ip};
use crate::datapath::packet::InnerPacket;
use crate::datapath::stats::Proto;

/// A packet that may be merged, taken apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// What must equal the seed's.
    pub common: Common,
    pub layout: Layout,
    /// TCP: sequence number of the first payload byte. UDP: 0.
    pub sequence: u32,
    /// TCP: the flags. UDP: 0.
    pub flags: u8,
    /// IPv4 identification, if DF is clear.
    pub id: Option<u16>,
}

impl Candidate {
    pub fn proto(&self) -> Proto {
        self.common.key.proto()
    }
}

/// Where the parts of a candidate are. Offsets count from the packet's first byte.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout {
    pub family: Family,
    /// IP header, so also the length of what stands before it.
    pub ip: u16,
    /// TCP or UDP header.
    pub l4: u16,
    /// Payload.
    pub payload: u16,
    /// End of the payload; behind it only padding.
    pub end: u16,
}

impl Layout {
    pub fn payload_len(&self) -> u16 {
        self.end - self.payload
    }
}

/// What TCP and UDP find in their headers.
pub(super) struct Parts {
    pub header_len: u16,
    pub sequence: u32,
    pub flags: u8,
    pub same: Transport,
}

/// Decides about one packet.
#[inline]
pub(super) fn examine(packet: &InnerPacket<'_>, rules: &Rules) -> Result<Candidate, FlushReason> {
    match locate_ip(packet.link, packet.bytes) {
        Some((ip, Family::V4)) => Network::ipv4(packet, ip)?.transport(packet, rules),
        Some((ip, Family::V6)) => Network::ipv6(packet, ip)?.transport(packet, rules),
        None => Err(FlushReason::NotCandidate),
    }
}

/// What the IP header says.
struct Network {
    family: Family,
    ip: usize,
    l4: usize,
    end: usize,
    protocol: u8,
    pair: AddressPair,
    /// [`Common::network`].
    same: u64,
    id: Option<u16>,
}

impl Network {
    #[inline]
    fn ipv4(packet: &InnerPacket<'_>, ip: usize) -> Result<Self, FlushReason> {
        let header = ipv4_header(packet, ip).ok_or(FlushReason::Length)?;
        if is_ipv4_fragment(header) {
            return Err(FlushReason::Fragment);
        }
        if header.version() != 4 || header.header_len() < ipv4::HEADER_LEN {
            return Err(FlushReason::Length);
        }
        if header.header_len() > ipv4::HEADER_LEN {
            return Err(FlushReason::IpOptions);
        }
        // 0xFFFF verifies, being the other zero, but the kernel would write 0x0000 when it cuts.
        if header.checksum.get() == 0xffff {
            return Err(FlushReason::Checksum);
        }
        Ok(Self {
            family: Family::V4,
            ip,
            l4: ip + ipv4::HEADER_LEN,
            end: ip + usize::from(header.total_length.get()),
            protocol: header.protocol,
            pair: AddressPair::ipv4(packet.tunnel, header),
            same: ipv4_word(header),
            // RFC 6864 §4: only without DF does the ID mean anything.
            id: (!header.dont_fragment()).then_some(header.id.get()),
        })
    }

    #[inline]
    fn ipv6(packet: &InnerPacket<'_>, ip: usize) -> Result<Self, FlushReason> {
        let header = ipv6_header(packet, ip).ok_or(FlushReason::Length)?;
        match header.next_header {
            _ if header.version() != 6 => return Err(FlushReason::Length),
            ipv6::FRAGMENT => return Err(FlushReason::Fragment),
            next if ipv6::is_extension(next) => return Err(FlushReason::Ipv6Extension),
            _ => {}
        }
        let l4 = ip + ipv6::HEADER_LEN;
        Ok(Self {
            family: Family::V6,
            ip,
            l4,
            end: l4 + usize::from(header.payload_length.get()),
            protocol: header.next_header,
            pair: AddressPair::ipv6(packet.tunnel, header),
            same: ipv6_word(header),
            id: None,
        })
    }

    #[inline]
    fn transport(&self, packet: &InnerPacket<'_>, rules: &Rules) -> Result<Candidate, FlushReason> {
        let is_tcp = self.protocol == IPPROTO_TCP;
        if !is_tcp && self.protocol != IPPROTO_UDP {
            return Err(FlushReason::NotCandidate);
        }
        if !(if is_tcp { rules.tcp } else { rules.udp }) {
            return Err(FlushReason::Disabled);
        }
        let segment = packet.bytes.get(self.l4..self.end).ok_or(FlushReason::Length)?;
        let parts = if is_tcp {
            tcp::examine(segment, packet.checksums)?
        } else {
            udp::examine(segment, packet.checksums, self.family, rules)?
        };
        // A packet fits a datagram, but let no caller's longer slice wrap an offset.
        let end = u16::try_from(self.end).map_err(|_| FlushReason::Length)?;
        let (ip, l4) = (self.ip as u16, self.l4 as u16);
        let ports = segment.first_chunk().copied().unwrap_or_default();
        let key = self.pair.flow(self.protocol, ports);
        Ok(Candidate {
            common: Common { key, network: self.same, transport: parts.same, ip },
            layout: Layout { family: self.family, ip, l4, payload: l4 + parts.header_len, end },
            sequence: parts.sequence,
            flags: parts.flags,
            id: self.id,
        })
    }
}

#[inline]
fn ipv4_header<'a>(packet: &InnerPacket<'a>, ip: usize) -> Option<&'a ipv4::Header> {
    let (header, _) = ipv4::Header::ref_from_prefix(packet.bytes.get(ip..)?).ok()?;
    Some(header)
}

#[inline]
fn ipv6_header<'a>(packet: &InnerPacket<'a>, ip: usize) -> Option<&'a ipv6::Header> {
    let (header, _) = ipv6::Header::ref_from_prefix(packet.bytes.get(ip..)?).ok()?;
    Some(header)
}

/// A fragment, or the reserved bit, which no re-split would reproduce with certainty.
#[inline]
fn is_ipv4_fragment(header: &ipv4::Header) -> bool {
    header.fragment.get() & !ipv4::DF != 0
}

/// A packet that goes out alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alone {
    pub proto: Proto,
    pub barrier: Barrier,
}

/// Whose runs a packet that goes out alone closes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Barrier {
    /// Nobody's: no run can belong to its flow.
    None,
    /// Its flow's.
    Flow(FlowKey),
    /// Those of every flow between its addresses: which flow it belongs to cannot be read from it.
    Pair(AddressPair),
}

impl Alone {
    /// Of a packet that [`examine`] refused for `reason`.
    pub fn of(packet: &InnerPacket<'_>, reason: FlushReason) -> Self {
        let unknown = Self { proto: Proto::Other, barrier: Barrier::None };
        match locate_ip(packet.link, packet.bytes) {
            Some((ip, Family::V4)) => ipv4_header(packet, ip).map(|header| {
                let pair = AddressPair::ipv4(packet.tunnel, header);
                let is_plain =
                    !is_ipv4_fragment(header) && header.version() == 4 && header.header_len() >= ipv4::HEADER_LEN;
                let l4 = is_plain.then_some(ip + header.header_len());
                Self::behind_ip(packet, reason, pair, header.protocol, l4)
            }),
            Some((ip, Family::V6)) => ipv6_header(packet, ip).map(|header| {
                let pair = AddressPair::ipv6(packet.tunnel, header);
                let is_plain = header.version() == 6 && !ipv6::is_extension(header.next_header);
                let l4 = is_plain.then_some(ip + ipv6::HEADER_LEN);
                Self::behind_ip(packet, reason, pair, header.next_header, l4)
            }),
            None => None,
        }
        // Less than an IP header: no stack accepts it, so it belongs to no flow.
        .unwrap_or(unknown)
    }

    /// A barrier for its flow if the ports can be read, else for its address pair.
    fn behind_ip(
        packet: &InnerPacket<'_>,
        reason: FlushReason,
        pair: AddressPair,
        protocol: u8,
        l4: Option<usize>,
    ) -> Self {
        let proto = Proto::of(protocol);
        let ports = l4.and_then(|l4| packet.bytes.get(l4..)).and_then(|l4| l4.first_chunk::<4>());
        let barrier = match (reason, ports) {
            // Nothing of the kind is ever merged, so there is no run that it could be overtaken by.
            (FlushReason::Disabled | FlushReason::NotCandidate | FlushReason::PortExcluded, _) => Barrier::None,
            (_, None) => Barrier::Pair(pair),
            (_, Some(_)) if proto == Proto::Other => Barrier::None,
            (_, Some(ports)) => Barrier::Flow(pair.flow(protocol, *ports)),
        };
        Self { proto, barrier }
    }
}
