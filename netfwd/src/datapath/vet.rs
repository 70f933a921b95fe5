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
//! Only one thing is ever written: an unfinished (*partial*) checksum, when the operator asked for that.

use netfwd_common::abi::{ChecksumVerdict, Verify};
use netfwd_common::checksum::Sum;
use netfwd_common::cursor::Cursor;
use netfwd_common::reason::DropReason;
use netfwd_common::wire::{IPPROTO_TCP, IPPROTO_UDP, ethernet, ipv4, ipv6, tcp, udp};
use zerocopy::{FromBytes, IntoBytes};

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
#[inline]
pub fn vet(bytes: &mut [u8], link: Link, verdict: ChecksumVerdict, policy: VerifyPolicy) -> Result<Vetted, DropReason> {
    let Some((offset, family)) = locate_ip(link, bytes) else { return vet_non_ip(bytes, link) };
    let inner = Inner::parse(bytes.get(offset..).unwrap_or_default(), family)?;
    let len = offset + inner.len;
    let vetted = match verdict {
        ChecksumVerdict::Verified | ChecksumVerdict::Absent | ChecksumVerdict::Bad => Vetted::new(len, verdict.into()),
        ChecksumVerdict::Unverified | ChecksumVerdict::Partial => {
            let packet = bytes.get_mut(offset..len).unwrap_or_default();
            let finding = inner.verify(packet);
            Vetted { len, ..inner.judge(packet, finding, policy)? }
        }
    };
    // The damage may be in the length itself: what is bad goes on as it came.
    let is_bad = vetted.checksums == Checksums::Bad;
    Ok(if is_bad { Vetted { len: bytes.len(), ..vetted } } else { vetted })
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
    #[inline]
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
    #[inline]
    fn verify(&self, packet: &[u8]) -> Finding {
        let (header, segment) = packet.split_at(self.header_len);
        if self.family == Family::V4 && !sum_ipv4_header(header).is_valid() {
            return Finding::Wrong(DropReason::InnerIpChecksum);
        }
        let (Some(pseudo), Some(field)) = (self.pseudo(packet), self.checksum_field(segment)) else {
            return Finding::Opaque;
        };
        if self.content == Content::Udp && field == [0, 0] {
            // RFC 8200 §8.1: over IPv6 the checksum is not optional.
            return match self.family {
                Family::V4 => Finding::Absent,
                Family::V6 => Finding::Wrong(DropReason::InnerL4Checksum),
            };
        }
        match (pseudo + sum(segment)).is_valid() {
            true => Finding::Verified,
            false if is_bare_pseudo(field, pseudo) => Finding::Partial,
            false => Finding::Wrong(DropReason::InnerL4Checksum),
        }
    }

    /// Applies the policy.
    #[inline]
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

    #[inline]
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
#[inline]
fn sum_words<const N: usize>(bytes: &[u8]) -> Option<Sum> {
    bytes.load_words::<N>(0).map(|words| Sum::ZERO.add_words(words))
}

#[inline]
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

/// The destination of a UDP datagram at the start of `ip`: address as map keys hold it, and port.
///
/// `None` for everything else, and for fragments, whose ports cannot be trusted to be there.
pub(super) fn udp_destination(ip: &[u8], family: Family) -> Option<([u8; 16], u16)> {
    let (address, header_len) = match family {
        Family::V4 => {
            let (header, _) = ipv4::Header::ref_from_prefix(ip).ok()?;
            let is_udp = header.protocol == IPPROTO_UDP && header.fragment.get() & ipv4::OFFSET_MASK == 0;
            is_udp.then(|| (netfwd_common::abi::map_ipv4(header.destination), header.header_len()))?
        }
        Family::V6 => {
            let (header, _) = ipv6::Header::ref_from_prefix(ip).ok()?;
            (header.next_header == IPPROTO_UDP).then_some((header.destination, header.as_bytes().len()))?
        }
    };
    let (header, _) = udp::Header::ref_from_prefix(ip.get(header_len..)?).ok()?;
    Some((address, header.destination_port.get()))
}
