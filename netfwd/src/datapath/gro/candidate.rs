//! May this packet be merged at all?
//!
//! A [`Candidate`] is the answer yes: its lengths agree with each other and with the bytes, its checksums are known to be
//! right, it is no fragment and carries nothing that merging would lose. All later code trusts its offsets. The answer no
//! is [`Alone`]: the reason, and whose runs the packet must not be overtaken by.
//!
//! The rules are those of the table "may this packet be merged at all" in docs/COALESCING.md; one predicate each.

use netfwd_common::reason::FlushReason;
use netfwd_common::wire::{IPPROTO_TCP, IPPROTO_UDP, ipv4, ipv6};
use zerocopy::FromBytes;

use super::{Rules, tcp, udp};
use crate::datapath::flow::{AddressPair, Family, FlowHash, FlowKey, locate_ip};
use crate::datapath::packet::InnerPacket;
use crate::datapath::stats::Proto;

/// A packet that may be merged, taken apart. Offsets count from the packet's first byte.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Candidate {
    pub layout: Layout,
    /// TOS and TTL or their IPv6 twins, DF and flow label: as [`Ipv4Fields`] packs them, compared as one word.
    pub network: u64,
    /// IPv4 identification, if DF is clear.
    pub id: Option<u16>,
    pub transport: Transport,
}

/// Where the parts of a candidate are.
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

/// What TCP and UDP add.
#[derive(Clone, Copy, Debug)]
pub(super) enum Transport {
    Tcp(tcp::Fields),
    Udp(udp::Fields),
}

impl Default for Transport {
    fn default() -> Self {
        Self::Udp(udp::Fields::default())
    }
}

impl Transport {
    pub fn proto(&self) -> Proto {
        match self {
            Self::Tcp(_) => Proto::Tcp,
            Self::Udp(_) => Proto::Udp,
        }
    }
}

/// A packet that goes out alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alone {
    pub reason: FlushReason,
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

/// The wire's IPv4 header, as far as it decides about merging.
struct Ipv4Fields<'a>(&'a ipv4::Header);

impl Ipv4Fields<'_> {
    /// A fragment, or the reserved bit, which no re-split would reproduce with certainty.
    fn is_fragment(&self) -> bool {
        self.0.fragment.get() & !ipv4::DF != 0
    }

    fn word(&self) -> u64 {
        let [tos, ttl] = [self.0.tos, self.0.ttl].map(u64::from);
        tos | (ttl << 8) | (u64::from(self.0.dont_fragment()) << 16)
    }

    /// RFC 6864 §4: only without DF does the ID mean anything.
    fn id(&self) -> Option<u16> {
        (!self.0.dont_fragment()).then_some(self.0.id.get())
    }
}

/// Why two packets' `network` words of one family differ.
#[cold]
pub(super) fn network_difference(family: Family, seed: u64, packet: u64) -> FlushReason {
    let difference = seed ^ packet;
    match family {
        Family::V4 if difference & 0xff != 0 => FlushReason::Tos,
        Family::V4 if difference & 0xff00 != 0 => FlushReason::Ttl,
        Family::V4 => FlushReason::DontFragment,
        Family::V6 if difference & 0x0ff0_0000 != 0 => FlushReason::Tos,
        Family::V6 if difference >> 32 != 0 => FlushReason::Ttl,
        Family::V6 => FlushReason::FlowLabel,
    }
}

/// Decides about one packet.
#[inline(always)]
pub(super) fn examine(packet: &InnerPacket<'_>, rules: &Rules) -> Result<(FlowKey, Candidate), Alone> {
    match locate_ip(packet.link, packet.bytes) {
        Some((ip, Family::V4)) => examine_ipv4(packet, ip, rules),
        Some((ip, Family::V6)) => examine_ipv6(packet, ip, rules),
        None => Err(Alone { reason: FlushReason::NotCandidate, proto: Proto::Other, barrier: Barrier::None }),
    }
}

#[inline(always)]
fn examine_ipv4(packet: &InnerPacket<'_>, ip: usize, rules: &Rules) -> Result<(FlowKey, Candidate), Alone> {
    let Ok((header, _)) = ipv4::Header::ref_from_prefix(packet.bytes.get(ip..).unwrap_or_default()) else {
        return Err(headless());
    };
    let pair = AddressPair::ipv4(packet.tunnel, header);
    let fields = Ipv4Fields(header);
    let proto = proto(header.protocol);
    if fields.is_fragment() {
        return Err(Alone { reason: FlushReason::Fragment, proto, barrier: Barrier::Pair(pair) });
    }
    let l4 = ip + header.header_len();
    let end = ip + usize::from(header.total_length.get());
    let subject = Subject { packet, pair, protocol: header.protocol, l4, end };
    if header.version() != 4 || header.header_len() < ipv4::HEADER_LEN {
        return Err(Alone { reason: FlushReason::Length, proto, barrier: Barrier::Pair(pair) });
    }
    subject.refuse_if(header.header_len() > ipv4::HEADER_LEN, FlushReason::IpOptions)?;
    // 0xFFFF verifies, being the other zero, but the kernel would write 0x0000 when it cuts.
    subject.refuse_if(header.checksum.get() == 0xffff, FlushReason::Checksum)?;
    subject.transport(rules, Family::V4, ip, fields.word(), fields.id())
}

#[inline(always)]
fn examine_ipv6(packet: &InnerPacket<'_>, ip: usize, rules: &Rules) -> Result<(FlowKey, Candidate), Alone> {
    let Ok((header, _)) = ipv6::Header::ref_from_prefix(packet.bytes.get(ip..).unwrap_or_default()) else {
        return Err(headless());
    };
    let pair = AddressPair::ipv6(packet.tunnel, header);
    let alone = |reason| Err(Alone { reason, proto: proto(header.next_header), barrier: Barrier::Pair(pair) });
    match header.next_header {
        _ if header.version() != 6 => return alone(FlushReason::Length),
        ipv6::FRAGMENT => return alone(FlushReason::Fragment),
        next if ipv6::is_extension(next) => return alone(FlushReason::Ipv6Extension),
        _ => {}
    }
    let l4 = ip + ipv6::HEADER_LEN;
    let end = l4 + usize::from(header.payload_length.get());
    let subject = Subject { packet, pair, protocol: header.next_header, l4, end };
    let word = u64::from(header.version_class_label.get()) | (u64::from(header.hop_limit) << 32);
    subject.transport(rules, Family::V6, ip, word, None)
}

/// A packet whose network header was read.
pub(super) struct Subject<'a> {
    packet: &'a InnerPacket<'a>,
    pair: AddressPair,
    protocol: u8,
    l4: usize,
    end: usize,
}

impl Subject<'_> {
    #[inline(always)]
    fn transport(
        &self,
        rules: &Rules,
        family: Family,
        ip: usize,
        network: u64,
        id: Option<u16>,
    ) -> Result<(FlowKey, Candidate), Alone> {
        let proto = proto(self.protocol);
        let (enabled, protocol) = match proto {
            Proto::Tcp => (rules.tcp, FlushReason::Disabled),
            Proto::Udp => (rules.udp, FlushReason::Disabled),
            Proto::Other => (false, FlushReason::NotCandidate),
        };
        if !enabled {
            return Err(Alone { reason: protocol, proto, barrier: Barrier::None });
        }
        let Some(segment) = self.packet.bytes.get(self.l4..self.end) else {
            return Err(self.alone(FlushReason::Length));
        };
        let (transport, header_len) = if proto == Proto::Tcp {
            tcp::examine(segment, self.packet.checksums).map_err(|reason| self.alone(reason))?
        } else {
            udp::examine(segment, self.packet.checksums, family, rules).map_err(|refusal| match refusal {
                udp::Refusal::Excluded => self.unordered(FlushReason::PortExcluded),
                udp::Refusal::Barrier(reason) => self.alone(reason),
            })?
        };
        let ports = segment.first_chunk().copied().unwrap_or_default();
        // A packet fits a datagram, but let no caller's longer slice wrap an offset.
        let Ok(end) = u16::try_from(self.end) else {
            return Err(self.alone(FlushReason::Length));
        };
        let l4 = self.l4 as u16;
        let layout = Layout { family, ip: ip as u16, l4, payload: l4 + header_len, end };
        Ok((self.pair.flow(self.protocol, ports), Candidate { layout, network, id, transport }))
    }

    fn refuse_if(&self, refused: bool, reason: FlushReason) -> Result<(), Alone> {
        if refused { Err(self.alone(reason)) } else { Ok(()) }
    }

    /// A barrier for its flow if the ports can be read, else for its address pair.
    #[cold]
    fn alone(&self, reason: FlushReason) -> Alone {
        let proto = proto(self.protocol);
        let ports = self.packet.bytes.get(self.l4..).and_then(|l4| l4.first_chunk::<4>());
        let barrier = match ports {
            Some(ports) if proto != Proto::Other => Barrier::Flow(self.pair.flow(self.protocol, *ports)),
            Some(_) => Barrier::None,
            None => Barrier::Pair(self.pair),
        };
        Alone { reason, proto, barrier }
    }

    fn unordered(&self, reason: FlushReason) -> Alone {
        Alone { reason, proto: proto(self.protocol), barrier: Barrier::None }
    }
}

/// Less than an IP header: no stack accepts it, so it belongs to no flow.
#[cold]
fn headless() -> Alone {
    Alone { reason: FlushReason::Length, proto: Proto::Other, barrier: Barrier::None }
}

fn proto(protocol: u8) -> Proto {
    match protocol {
        IPPROTO_TCP => Proto::Tcp,
        IPPROTO_UDP => Proto::Udp,
        _ => Proto::Other,
    }
}

/// A flow's key with its hashes.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowId {
    pub key: FlowKey,
    pub hash: FlowHash,
}
