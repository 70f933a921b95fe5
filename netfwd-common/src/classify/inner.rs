//! The inner packet: what of it can be verified, and where that lies.
//!
//! Only TCP and UDP directly behind a plain IP header are taken apart. Everything else that may legally travel (ARP,
//! fragments, options, other protocols) is [`Inner::opaque`]: its bytes count for the outer checksum only.

use zerocopy::transmute;

use crate::checksum::Sum;
use crate::cursor::Cursor;
use crate::flow_hash::{fold, mix};
use crate::reason::DropReason;
use crate::wire::wireguard::MessageType;
use crate::wire::{IPPROTO_TCP, IPPROTO_UDP, ethernet, ipv4, ipv6, tcp, udp, vxlan};

use super::Refusal;
use super::outer::{Link, parse_link, pseudo};
use super::tunnel::{Content, Header};

/// An inner packet, ready to be summed.
#[derive(Clone, Copy)]
pub(super) struct Inner<C> {
    /// The L4 segment, or all of an opaque packet.
    pub body: C,
    pub len: usize,
    /// Bytes behind the segment: padding of short Ethernet frames.
    pub trailer: usize,
    /// Sum of the inner headers in front of `body`.
    pub headers: Sum,
    pub l4: L4,
    /// The inner IPv4 header, or something valid where there is no checksum.
    pub header: Sum,
    /// Pseudo-header of the segment.
    pub pseudo: Sum,
    pub flow_hash: u16,
}

/// What is known of the checksum of the segment before it is summed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum L4 {
    Tcp,
    /// UDP with a checksum.
    Udp,
    /// UDP without one, over IPv4.
    Absent,
    /// Not taken apart.
    Opaque,
    /// Cannot be taken apart: the outer checksum is all there is to see.
    Sealed,
}

impl<C: Cursor> Inner<C> {
    /// A packet that is delivered unverified.
    #[inline(always)]
    fn opaque(body: C, len: usize) -> Self {
        // A new start for the verifier and the compiler both: what leads here shares nothing with the usual way.
        Self::whole(L4::Opaque, body.skip(0), len)
    }

    /// The rest of a WireGuard message, whose session takes the place of a flow.
    #[inline(always)]
    fn sealed(body: C, len: usize, message: MessageType, header: &Header) -> Self {
        let flow_hash = if message == MessageType::Data { fold(mix(0, header.receiver())) } else { 0 };
        Self { flow_hash, ..Self::whole(L4::Sealed, body.skip(0), len) }
    }

    /// The segment's checksum field in memory order: read again where it is needed, which is not for a packet that is right.
    #[inline(always)]
    pub fn checksum(&self) -> u16 {
        let offset = if self.l4 == L4::Tcp { tcp::CHECKSUM_OFFSET } else { udp::CHECKSUM_OFFSET };
        self.body.load_u16(usize::from(offset)).unwrap_or_default().to_be()
    }

    #[inline(always)]
    fn whole(l4: L4, body: C, len: usize) -> Self {
        Self { body, len, trailer: 0, headers: Sum::ZERO, l4, header: Sum::VALID, pseudo: Sum::ZERO, flow_hash: 0 }
    }
}

impl L4 {
    /// Whether the segment has a checksum that can be verified.
    #[inline(always)]
    pub fn is_checked(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }
}

const BAD: Refusal = Refusal::Drop(DropReason::InnerHeader);

/// Parses the `len` bytes at `packet`, behind `header`, which the caller has found within the frame.
#[inline(always)]
pub(super) fn parse<C: Cursor>(packet: C, content: Content, len: usize, header: &Header) -> Result<Inner<C>, Refusal> {
    let (content, link) = match content {
        Content::Sealed(message) if message.allows_len(vxlan::HEADER_LEN + len) => {
            return Ok(Inner::sealed(packet, len, message, header));
        }
        Content::Sealed(_) => return Err(Refusal::Drop(DropReason::BadLength)),
        Content::Ethernet if len < ethernet::HEADER_LEN => return Err(BAD),
        Content::Ethernet => match parse_link(packet) {
            Some(link) if link.ethertype == ethernet::ETHERTYPE_IPV4 => (Content::Ipv4, link),
            Some(link) if link.ethertype == ethernet::ETHERTYPE_IPV6 => (Content::Ipv6, link),
            _ => return Ok(Inner::opaque(packet, len)),
        },
        content => (content, Link::NONE),
    };
    // A tag may have led beyond the packet into outer padding.
    let Some(available) = len.checked_sub(link.len) else { return Err(BAD) };
    let ip = packet.skip(link.len);
    let network = match content {
        Content::Ipv6 => Some(parse_ipv6(ip, available)?),
        _ => parse_ipv4(ip, available)?,
    };
    let Some(network) = network else { return Ok(Inner::opaque(packet, len)) };
    let trailer = available - network.header_len - network.payload_len;
    let body = ip.skip(network.header_len);
    let transport = parse_l4(body, &network)?;
    if transport.l4 == L4::Opaque {
        return Ok(Inner::opaque(packet, len));
    }
    Ok(Inner {
        body,
        len: network.payload_len,
        trailer,
        headers: network.sum + link.sum,
        l4: transport.l4,
        header: network.header,
        pseudo: network.pseudo,
        flow_hash: fold(transport.hash),
    })
}

/// An inner IP header.
struct Network {
    header_len: usize,
    payload_len: usize,
    protocol: u8,
    is_ipv6: bool,
    sum: Sum,
    pseudo: Sum,
    /// [`Inner::header`].
    header: Sum,
    hash: u64,
}

/// None: a fragment, or options.
#[inline(always)]
fn parse_ipv4(packet: impl Cursor, available: usize) -> Result<Option<Network>, Refusal> {
    if available < ipv4::HEADER_LEN {
        return Err(BAD);
    }
    let words: [u32; 5] = packet.load_words(0).ok_or(BAD)?;
    let ip: ipv4::Header = transmute!(words);
    let addresses = [words[3], words[4]];
    let total = usize::from(ip.total_length.get());
    if total > available || total < ipv4::HEADER_LEN {
        return Err(BAD);
    }
    if ip.version_ihl != ipv4::PLAIN || ip.is_fragment() {
        let valid = ip.version() == 4 && (ipv4::HEADER_LEN..=total).contains(&ip.header_len());
        return if valid { Ok(None) } else { Err(BAD) };
    }
    let payload_len = total - ipv4::HEADER_LEN;
    let sum = Sum::ZERO.add_words(words);
    Ok(Some(Network {
        header_len: ipv4::HEADER_LEN,
        payload_len,
        protocol: ip.protocol,
        is_ipv6: false,
        sum,
        pseudo: pseudo(addresses, ip.protocol, payload_len as u16),
        header: sum,
        hash: addresses.into_iter().fold(u64::from(ip.protocol), mix),
    }))
}

#[inline(always)]
fn parse_ipv6(packet: impl Cursor, available: usize) -> Result<Network, Refusal> {
    if available < ipv6::HEADER_LEN {
        return Err(BAD);
    }
    let words: [u32; 10] = packet.load_words(0).ok_or(BAD)?;
    let ip: ipv6::Header = transmute!(words);
    let [_, _, addresses @ ..] = words;
    let payload_len = usize::from(ip.payload_length.get());
    if ip.version() != 6 || payload_len > available - ipv6::HEADER_LEN {
        return Err(BAD);
    }
    Ok(Network {
        header_len: ipv6::HEADER_LEN,
        payload_len,
        // An extension header is neither TCP nor UDP, which ends it in `parse_l4`.
        protocol: ip.next_header,
        is_ipv6: true,
        sum: Sum::ZERO.add_words(words),
        pseudo: pseudo(addresses, ip.next_header, payload_len as u16),
        header: Sum::VALID,
        hash: addresses.into_iter().fold(u64::from(ip.next_header), mix),
    })
}

/// A TCP or UDP header.
struct Transport {
    l4: L4,
    /// Of the flow.
    hash: u64,
}

impl Transport {
    const OPAQUE: Self = Self { l4: L4::Opaque, hash: 0 };
}

#[inline(always)]
fn parse_l4(segment: impl Cursor, network: &Network) -> Result<Transport, Refusal> {
    match network.protocol {
        IPPROTO_TCP => parse_tcp(segment, network),
        IPPROTO_UDP => parse_udp(segment, network),
        _ => Ok(Transport::OPAQUE),
    }
}

#[inline(always)]
fn parse_tcp(packet: impl Cursor, network: &Network) -> Result<Transport, Refusal> {
    if network.payload_len < tcp::HEADER_LEN {
        return Err(BAD);
    }
    let words: [u32; 5] = packet.load_words(0).ok_or(BAD)?;
    let header: tcp::Header = transmute!(words);
    if header.header_len() < tcp::HEADER_LEN || header.header_len() > network.payload_len {
        return Err(BAD);
    }
    Ok(Transport { l4: L4::Tcp, hash: mix(network.hash, words[0]) })
}

#[inline(always)]
fn parse_udp(packet: impl Cursor, network: &Network) -> Result<Transport, Refusal> {
    if network.payload_len < udp::HEADER_LEN {
        return Err(BAD);
    }
    let words: [u32; 2] = packet.load_words(0).ok_or(BAD)?;
    let header: udp::Header = transmute!(words);
    let length = usize::from(header.length.get());
    if length < udp::HEADER_LEN || length > network.payload_len {
        return Err(BAD);
    }
    let checksum: u16 = transmute!(header.checksum);
    // A surplus area (RFC 9868) is unusual, not wrong. Without a checksum over IPv6 the receiver decides: RFC 8200 §8.1 lets it
    // drop the datagram, RFC 6935 lets tunnels send it.
    if length != network.payload_len || (checksum == 0 && network.is_ipv6) {
        return Ok(Transport::OPAQUE);
    }
    let l4 = if checksum == 0 { L4::Absent } else { L4::Udp };
    Ok(Transport { l4, hash: mix(network.hash, words[0]) })
}
