//! Vetting: is the inner packet what it claims to be?
//!
//! Whatever is merged gets a checksum that the kernel computes, so damage that goes unnoticed here is laundered for ever.
//! XDP has vetted most packets; those that reached user space another way are verified here, by the same rules.
//!
//! Invariants: afterwards every length field lies within the packet and, unless it is bad, padding is gone; [`Checksums::Verified`] means
//! that the IPv4 header and the TCP or UDP checksum were seen to be right. A packet that is merely unusual (not IP, a
//! fragment, options, extension headers, a UDP length below the IP payload) passes as [`Checksums::Unverified`]: it is
//! never merged and never dropped for it.
//!
//! What nearly all packets are (`Plain`) is found out first and fast; a packet is refused only by the long way, which asks
//! everything and would have found a plain packet as good.
//!
//! Only one thing is ever written: an unfinished (*partial*) checksum, when the operator asked for that.

use netfwd_common::abi::{ChecksumVerdict, Verify, map_ipv4};
use netfwd_common::checksum::Sum;
use netfwd_common::cursor::Cursor;
use netfwd_common::reason::DropReason;
use netfwd_common::wire::{IPPROTO_TCP, IPPROTO_UDP, ethernet, ipv4, ipv6, tcp, udp};
use zerocopy::FromBytes;

use super::flow::{Family, locate_ip};
use super::packet::{Checksums, Link};
use super::sum::sum;
use super::table::VerifyPolicy;

/// A packet that may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vetted {
    /// Its length without padding.
    pub len: usize,
    /// What is known of its checksums now.
    pub checksums: Checksums,
    /// What the policy let through.
    pub tolerated: Option<DropReason>,
}

impl Vetted {
    const fn new(len: usize, checksums: Checksums) -> Self {
        Self { len, checksums, tolerated: None }
    }
}

/// Vets the packet in `bytes`, of which XDP found out `verdict`.
///
/// Always inline: returned through memory, the answer's small fields would be written one by one and read as one word,
/// and such a read waits for all the writes.
#[inline(always)]
pub fn vet(bytes: &mut [u8], link: Link, verdict: ChecksumVerdict, policy: VerifyPolicy) -> Result<Vetted, DropReason> {
    // Nearly always. Whatever this does not find in order is looked at closely.
    if let Some(plain) = Plain::parse(bytes, link)
        && (verdict == ChecksumVerdict::Verified || verdict == ChecksumVerdict::Unverified && plain.is_intact())
    {
        return Ok(Vetted::new(plain.end, Checksums::Verified));
    }
    vet_closely(bytes, link, verdict, policy)
}

/// Asks everything, of every kind of packet.
#[inline(never)]
fn vet_closely(
    bytes: &mut [u8],
    link: Link,
    verdict: ChecksumVerdict,
    policy: VerifyPolicy,
) -> Result<Vetted, DropReason> {
    let Some((offset, family)) = locate_ip(link, bytes) else { return vet_non_ip(bytes, link) };
    let inner = Inner::parse(bytes.get(offset..).unwrap_or_default(), family)?;
    let len = offset + inner.len;
    let vetted = match verdict {
        ChecksumVerdict::Verified | ChecksumVerdict::Absent | ChecksumVerdict::Bad => Vetted::new(len, verdict.into()),
        ChecksumVerdict::Unverified | ChecksumVerdict::Partial => {
            let packet = bytes.get_mut(offset..len).unwrap_or_default();
            Vetted { len, ..inner.judge(packet, inner.verify(packet), policy)? }
        }
    };
    // The damage may be in the length itself: what is bad goes on as it came.
    let is_bad = vetted.checksums == Checksums::Bad;
    Ok(if is_bad { Vetted { len: bytes.len(), ..vetted } } else { vetted })
}

/// What nearly all packets are: a whole TCP segment or UDP datagram with a checksum, right behind an IP header without
/// options. It is taken apart in one pass over headers of known length.
struct Plain<'a> {
    /// From the TCP or UDP header to the end of the payload.
    segment: &'a [u8],
    /// Where that end is, from the packet's first byte.
    end: usize,
    /// Of the IPv4 header; IPv6 has no checksum of its own.
    header: Option<Sum>,
    /// Of the pseudo-header.
    pseudo: Sum,
}

impl<'a> Plain<'a> {
    #[inline(always)]
    fn parse(bytes: &'a [u8], link: Link) -> Option<Self> {
        match locate_ip(link, bytes)? {
            (ip, Family::V4) => Self::parse_ipv4(bytes.get(ip..)?, ip),
            (ip, Family::V6) => Self::parse_ipv6(bytes.get(ip..)?, ip),
        }
    }

    #[inline(always)]
    fn parse_ipv4(bytes: &'a [u8], ip: usize) -> Option<Self> {
        let headers: &[u8; ipv4::HEADER_LEN + tcp::HEADER_LEN] = bytes.first_chunk()?;
        let (header, l4) = ipv4::Header::ref_from_prefix(headers).ok()?;
        let total = usize::from(header.total_length.get());
        let segment = bytes.get(ipv4::HEADER_LEN..total)?;
        let addresses = sum_words::<2>(headers.get(12..)?)?;
        let plain = Self {
            segment,
            end: ip + total,
            header: Some(sum_words::<3>(headers)? + addresses),
            pseudo: addresses.add_u16(u16::from(header.protocol)).add_u16(segment.len() as u16),
        };
        let is_bare = header.version_ihl == ipv4::PLAIN && !header.is_fragment();
        (is_bare && plain.agrees(header.protocol, l4)).then_some(plain)
    }

    #[inline(always)]
    fn parse_ipv6(bytes: &'a [u8], ip: usize) -> Option<Self> {
        let headers: &[u8; ipv6::HEADER_LEN + tcp::HEADER_LEN] = bytes.first_chunk()?;
        let (header, l4) = ipv6::Header::ref_from_prefix(headers).ok()?;
        let len = usize::from(header.payload_length.get());
        let segment = bytes.get(ipv6::HEADER_LEN..)?.get(..len)?;
        let plain = Self {
            segment,
            end: ip + ipv6::HEADER_LEN + len,
            header: None,
            pseudo: sum_words::<8>(headers.get(8..)?)?.add_u16(u16::from(header.next_header)).add_u16(len as u16),
        };
        (header.version() == 6 && plain.agrees(header.next_header, l4)).then_some(plain)
    }

    /// Whether the length in the TCP or UDP header agrees with the segment's, and there is a checksum.
    #[inline(always)]
    fn agrees(&self, protocol: u8, l4: &[u8]) -> bool {
        match protocol {
            IPPROTO_TCP => tcp::Header::ref_from_prefix(l4)
                .is_ok_and(|(header, _)| (tcp::HEADER_LEN..=self.segment.len()).contains(&header.header_len())),
            IPPROTO_UDP => udp::Header::ref_from_prefix(l4).is_ok_and(|(header, _)| {
                let len = usize::from(header.length.get());
                len == self.segment.len() && len >= udp::HEADER_LEN && header.checksum.get() != 0
            }),
            _ => false,
        }
    }

    /// Whether its checksums are right.
    #[inline(always)]
    fn is_intact(&self) -> bool {
        self.header.is_none_or(|header| header.is_valid()) && (self.pseudo + sum(self.segment)).is_valid()
    }
}

/// ARP, LLDP and the like pass through a TAP; a TUN carries nothing but IP.
fn vet_non_ip(bytes: &[u8], link: Link) -> Result<Vetted, DropReason> {
    match link {
        Link::Ethernet if bytes.len() >= ethernet::HEADER_LEN => Ok(Vetted::new(bytes.len(), Checksums::Unverified)),
        _ => Err(DropReason::InnerHeader),
    }
}

/// An inner IP packet whose lengths agree with each other. Offsets count from its IP header.
struct Inner {
    family: Family,
    /// Length of the IP header.
    header_len: usize,
    /// IP header to the end of the payload.
    len: usize,
    content: Content,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Tcp,
    Udp,
    /// Nothing whose checksum could be verified.
    Opaque,
}

/// What verification found.
enum Finding {
    Opaque,
    Verified,
    Absent,
    Partial,
    Wrong(DropReason),
}

impl Inner {
    fn parse(ip: &[u8], family: Family) -> Result<Self, DropReason> {
        let (header_len, len, protocol) = match family {
            Family::V4 => ipv4_lengths(ip),
            Family::V6 => ipv6_lengths(ip),
        }
        .filter(|(header_len, len, _)| header_len <= len && *len <= ip.len())
        .ok_or(DropReason::InnerHeader)?;
        let content = content(ip.get(header_len..len).unwrap_or_default(), protocol)?;
        Ok(Self { family, header_len, len, content })
    }

    /// Sums what can be summed.
    fn verify(&self, packet: &[u8]) -> Finding {
        let (header, segment) = packet.split_at(self.header_len);
        if self.family == Family::V4 && !sum_ipv4_header(header).is_valid() {
            return Finding::Wrong(DropReason::InnerIpChecksum);
        }
        let (Some(pseudo), Some(field)) = (self.pseudo(packet), self.checksum_field(segment)) else {
            return Finding::Opaque;
        };
        if self.content == Content::Udp && field == [0, 0] {
            // RFC 8200 §8.1 lets a receiver drop it over IPv6, RFC 6935 lets tunnels send it: the receiver decides.
            return match self.family {
                Family::V4 => Finding::Absent,
                Family::V6 => Finding::Opaque,
            };
        }
        match (pseudo + sum(segment)).is_valid() {
            true => Finding::Verified,
            false if is_bare_pseudo(field, pseudo) => Finding::Partial,
            false => Finding::Wrong(DropReason::InnerL4Checksum),
        }
    }

    /// Applies the policy.
    fn judge(&self, packet: &mut [u8], finding: Finding, policy: VerifyPolicy) -> Result<Vetted, DropReason> {
        let reason = match finding {
            Finding::Opaque => return Ok(Vetted::new(0, Checksums::Unverified)),
            Finding::Verified => return Ok(Vetted::new(0, Checksums::Verified)),
            Finding::Absent => return Ok(Vetted::new(0, Checksums::Absent)),
            Finding::Partial if policy.accept_partial => {
                self.finish(packet);
                return Ok(Vetted::new(0, Checksums::Verified));
            }
            Finding::Partial => DropReason::PartialChecksum,
            Finding::Wrong(reason) => reason,
        };
        match policy.verify {
            Verify::Drop => Err(reason),
            Verify::Count => Ok(Vetted { len: 0, checksums: Checksums::Bad, tolerated: Some(reason) }),
            Verify::Off => Ok(Vetted::new(0, Checksums::Bad)),
        }
    }

    /// Computes the checksum that a local sender left to a NIC that was never there.
    #[cold]
    fn finish(&self, packet: &mut [u8]) {
        let Some(pseudo) = self.pseudo(packet) else { return };
        let Some(at) = self.checksum_offset() else { return };
        let Some(segment) = packet.get_mut(self.header_len..) else { return };
        if let Some(field) = segment.get_mut(at..at + 2) {
            field.fill(0);
        }
        let checksum = (pseudo + sum(segment)).checksum();
        let bytes = if self.content == Content::Udp { checksum.to_udp_bytes() } else { checksum.to_bytes() };
        if let Some(field) = segment.get_mut(at..at + 2) {
            field.copy_from_slice(&bytes);
        }
    }

    fn pseudo(&self, packet: &[u8]) -> Option<Sum> {
        let protocol = match self.content {
            Content::Tcp => IPPROTO_TCP,
            Content::Udp => IPPROTO_UDP,
            Content::Opaque => return None,
        };
        // RFC 768 and RFC 8200 §8.1: addresses, protocol and length; in both headers the addresses stand together.
        let addresses = match self.family {
            Family::V4 => sum_words::<2>(packet.get(12..)?)?,
            Family::V6 => sum_words::<8>(packet.get(8..)?)?,
        };
        let len = self.len - self.header_len;
        Some(addresses.add_u16(u16::from(protocol)).add_u32(len as u32))
    }

    /// Where the checksum is, from the start of the segment.
    fn checksum_offset(&self) -> Option<usize> {
        match self.content {
            Content::Tcp => Some(usize::from(tcp::CHECKSUM_OFFSET)),
            Content::Udp => Some(usize::from(udp::CHECKSUM_OFFSET)),
            Content::Opaque => None,
        }
    }

    fn checksum_field(&self, segment: &[u8]) -> Option<[u8; 2]> {
        segment.get(self.checksum_offset()?..)?.first_chunk().copied()
    }
}

/// Header length, total length, and the protocol if the payload is all of a datagram's right behind a plain header.
fn ipv4_lengths(ip: &[u8]) -> Option<(usize, usize, Option<u8>)> {
    let (header, _) = ipv4::Header::ref_from_prefix(ip).ok()?;
    if header.version() != 4 || header.header_len() < ipv4::HEADER_LEN {
        return None;
    }
    let plain = header.header_len() == ipv4::HEADER_LEN && !header.is_fragment();
    Some((header.header_len(), usize::from(header.total_length.get()), plain.then_some(header.protocol)))
}

fn ipv6_lengths(ip: &[u8]) -> Option<(usize, usize, Option<u8>)> {
    let (header, _) = ipv6::Header::ref_from_prefix(ip).ok()?;
    let len = ipv6::HEADER_LEN + usize::from(header.payload_length.get());
    // An extension header is neither TCP nor UDP.
    (header.version() == 6).then_some((ipv6::HEADER_LEN, len, Some(header.next_header)))
}

fn content(segment: &[u8], protocol: Option<u8>) -> Result<Content, DropReason> {
    match protocol {
        Some(IPPROTO_TCP) if tcp_lengths_agree(segment) => Ok(Content::Tcp),
        Some(IPPROTO_UDP) => udp_content(segment),
        Some(IPPROTO_TCP) => Err(DropReason::InnerHeader),
        _ => Ok(Content::Opaque),
    }
}

fn tcp_lengths_agree(segment: &[u8]) -> bool {
    tcp::Header::ref_from_prefix(segment)
        .is_ok_and(|(header, _)| (tcp::HEADER_LEN..=segment.len()).contains(&header.header_len()))
}

/// A UDP length below the IP payload leaves a surplus area (RFC 9868): unusual, not wrong.
fn udp_content(datagram: &[u8]) -> Result<Content, DropReason> {
    let (header, _) = udp::Header::ref_from_prefix(datagram).map_err(|_| DropReason::InnerHeader)?;
    match usize::from(header.length.get()) {
        length if length == datagram.len() => Ok(Content::Udp),
        length if (udp::HEADER_LEN..datagram.len()).contains(&length) => Ok(Content::Opaque),
        _ => Err(DropReason::InnerHeader),
    }
}

/// The sum of the first `N` words: a number that is known beforehand spares the loop.
#[inline(always)]
fn sum_words<const N: usize>(bytes: &[u8]) -> Option<Sum> {
    bytes.load_words::<N>(0).map(|words| Sum::ZERO.add_words(words))
}

fn sum_ipv4_header(header: &[u8]) -> Sum {
    match header.len() {
        ipv4::HEADER_LEN => sum_words::<5>(header).unwrap_or(Sum::ZERO),
        _ => Sum::ZERO.add(header),
    }
}

/// Whether a checksum field holds the folded, not complemented sum of the pseudo-header, in either form of zero.
fn is_bare_pseudo(field: [u8; 2], pseudo: Sum) -> bool {
    let (field, folded) = (u16::from_ne_bytes(field), pseudo.fold());
    field == folded || (matches!(field, 0 | 0xffff) && matches!(folded, 0 | 0xffff))
}

/// The source address in the IP header at the start of `ip`.
pub(super) fn source_address(ip: &[u8], family: Family) -> Option<std::net::IpAddr> {
    match family {
        Family::V4 => ipv4::Header::ref_from_prefix(ip).ok().map(|(header, _)| header.source.into()),
        Family::V6 => ipv6::Header::ref_from_prefix(ip).ok().map(|(header, _)| header.source.into()),
    }
}

/// The destination address in the IP header at the start of `ip`, as map keys hold it.
pub(super) fn destination_address(ip: &[u8], family: Family) -> Option<[u8; 16]> {
    match family {
        Family::V4 => ipv4::Header::ref_from_prefix(ip).ok().map(|(header, _)| map_ipv4(header.destination)),
        Family::V6 => ipv6::Header::ref_from_prefix(ip).ok().map(|(header, _)| header.destination),
    }
}

/// The destination port of a UDP datagram at the start of `ip`.
///
/// `None` for everything else, and for all but a datagram's first fragment, which have no ports.
#[inline]
pub(super) fn udp_destination_port(ip: &[u8], family: Family) -> Option<u16> {
    let (is_udp, header_len) = match family {
        Family::V4 => {
            let (header, _) = ipv4::Header::ref_from_prefix(ip).ok()?;
            let is_whole = header.fragment.get() & ipv4::OFFSET_MASK == 0;
            (header.protocol == IPPROTO_UDP && is_whole, header.header_len())
        }
        Family::V6 => {
            let (header, _) = ipv6::Header::ref_from_prefix(ip).ok()?;
            if ipv6::is_extension(header.next_header) {
                let offset = udp_behind_extensions(ip, header.next_header)?;
                (true, offset)
            } else {
                (header.next_header == IPPROTO_UDP, ipv6::HEADER_LEN)
            }
        }
    };
    let segment = ip.get(header_len..).filter(|_| is_udp)?;
    udp::Header::ref_from_prefix(segment).ok().map(|(header, _)| header.destination_port.get())
}

/// Where a UDP header is behind IPv6 extension headers (RFC 8200 §4), if one is there.
#[cold]
fn udp_behind_extensions(ip: &[u8], first: u8) -> Option<usize> {
    let (mut protocol, mut offset) = (first, ipv6::HEADER_LEN);
    // Every turn moves on by at least eight bytes, so the packet's end ends the walk.
    while ipv6::is_extension(protocol) {
        let [next, length, fragment @ ..] = *ip.get(offset..)?.first_chunk::<4>()?;
        offset += match protocol {
            ipv6::FRAGMENT if u16::from_be_bytes(fragment) & !7 != 0 => return None,
            ipv6::FRAGMENT => 8,
            ipv6::AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        protocol = next;
    }
    (protocol == IPPROTO_UDP).then_some(offset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A TCP segment or UDP datagram with `payload` bytes, and padding behind it.
    fn padded(v6: bool, udp: bool, payload: usize, padding: usize) -> Vec<u8> {
        let header_len = if udp { udp::HEADER_LEN } else { tcp::HEADER_LEN };
        let len = (header_len + payload) as u16;
        let protocol = if udp { IPPROTO_UDP } else { IPPROTO_TCP };
        let mut packet = if v6 {
            [&[0x60, 0, 0, 0], len.to_be_bytes().as_slice(), &[protocol, 64], &[0xfd; 32]].concat()
        } else {
            let total = (len + 20).to_be_bytes();
            [&[0x45, 0], total.as_slice(), &[0, 1, 0x40, 0, 64, protocol, 0, 0], &[10, 0, 0, 1, 10, 0, 0, 2]].concat()
        };
        let l4 = packet.len();
        packet.resize(l4 + usize::from(len) + padding, 7);
        match udp {
            true => packet[l4 + 4..l4 + 6].copy_from_slice(&len.to_be_bytes()),
            false => packet[l4 + 12] = 0x50,
        }
        packet
    }

    /// Puts checksums where whoever believes the lengths looks for them, so that lengths are all that can be wrong.
    fn finish(packet: &mut [u8]) -> Option<()> {
        let is_v6 = packet[0] >> 4 == 6;
        let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        let (l4, end, protocol) = if is_v6 { (40, 40 + word(4), packet[6]) } else { (20, word(2), packet[9]) };
        if !is_v6 {
            packet[10..12].fill(0);
            let checksum = Sum::ZERO.add(&packet[..20]).checksum();
            packet[10..12].copy_from_slice(&checksum.to_bytes());
        }
        let field = l4 + if protocol == IPPROTO_UDP { 6 } else { 16 };
        packet.get_mut(field..field + 2)?.fill(0);
        let addresses = if is_v6 { 8..40 } else { 12..20 };
        let len = end.checked_sub(l4)? as u32;
        let sum = Sum::ZERO.add(&packet[addresses]).add_u16(protocol.into()).add_u32(len).add(packet.get(l4..end)?);
        packet.get_mut(field..field + 2)?.copy_from_slice(&sum.checksum().to_udp_bytes());
        Some(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_short_way_accepts_nothing_that_the_long_way_would_not(
            (v6, udp, zero, verified) in any::<(bool, bool, bool, bool)>(),
            (payload, padding) in (0usize..40, 0usize..40),
            lies in prop::collection::vec((0usize..13, any::<u8>(), any::<bool>()), 0..3),
        ) {
            let mut packet = padded(v6, udp, payload, padding);
            let l4 = if v6 { 40 } else { 20 };
            for (at, value, is_near) in lies {
                // Version, lengths, fragments, protocol; UDP length, data offset.
                let at = [0, 2, 3, 4, 5, 6, 6, 7, 9, l4 + 4, l4 + 5, l4 + 12, l4 + 12][at];
                if let Some(byte) = packet.get_mut(at) {
                    *byte = if is_near { byte.wrapping_add(value % 9).wrapping_sub(4) } else { value };
                }
            }
            finish(&mut packet);
            if let Some(field) = packet.get_mut(l4 + 6..l4 + 8).filter(|_| udp && zero) {
                field.fill(0);
            }
            let verdict = if verified { ChecksumVerdict::Verified } else { ChecksumVerdict::Unverified };
            let policy = VerifyPolicy::default();
            let long = vet_closely(&mut packet.clone(), Link::Ip, verdict, policy);
            prop_assert_eq!(vet(&mut packet, Link::Ip, verdict, policy), long);
        }
    }

    #[test]
    fn a_datagram_shorter_than_its_header_is_malformed_though_all_lengths_agree() {
        for (v6, length_at) in [(false, 3), (true, 5)] {
            let mut packet = padded(v6, true, 0, 20);
            let l4 = if v6 { 40 } else { 20 };
            packet[length_at] -= 2;
            packet[l4 + 5] -= 2;
            finish(&mut packet);
            for verdict in [ChecksumVerdict::Verified, ChecksumVerdict::Unverified] {
                let vetted = vet(&mut packet, Link::Ip, verdict, VerifyPolicy::default());
                assert_eq!(vetted, Err(DropReason::InnerHeader), "IPv6: {v6}, {verdict:?}");
            }
        }
    }

    #[test]
    fn a_udp_port_is_found_behind_extension_headers() {
        let mut ip = vec![0; ipv6::HEADER_LEN];
        (ip[0], ip[6]) = (0x60, ipv6::HOP_BY_HOP);
        ip.extend([ipv6::DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0]);
        ip.extend([ipv6::FRAGMENT, 0, 0, 0, 0, 0, 0, 0]);
        ip.extend([IPPROTO_UDP, 0, 0, 1, 0, 0, 0, 9]);
        ip.extend([0x12, 0x34, 0x12, 0xb5, 0, 8, 0, 0]);
        assert_eq!(udp_destination_port(&ip, Family::V6), Some(4789));
        for len in 0..ip.len() {
            assert_eq!(udp_destination_port(&ip[..len], Family::V6), None, "cut to {len} bytes");
        }
        ip[ipv6::HEADER_LEN + 19] = 9;
        assert_eq!(udp_destination_port(&ip, Family::V6), None, "a later fragment has no ports");
    }
}
