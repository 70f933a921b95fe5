//! What the kernel left undone on a frame it handed over: the vnet header, believed only as far as the frame bears it out.
//!
//! The kernel's transmit path stops early when a device offers offloads: TCP and UDP payload may come uncut, and a
//! checksum field may hold only the pseudo-header's sum. The virtio-net header says which. It is read from a device that
//! root can write to, so every offset in it is compared with the packet itself before anything is cut or written.
//!
//! Invariants: the offsets inside [`Checksum`] and [`Gso`] lie within the packet they were parsed from.
//! [`Offload::parse`] never looks at `hdr_len`: for forwarded frames the kernel puts the length of the skb's linear part
//! there (`tun_put_user` → `virtio_net_hdr_from_skb`).
//!
//! Deliberately absent: UFO (`VIRTIO_NET_HDR_GSO_UDP`, fragments instead of datagrams), which is never negotiated.

use netfwd_common::reason::DropReason;
use netfwd_common::wire::{IPPROTO_TCP, IPPROTO_UDP, tcp, udp, vnet};
use zerocopy::FromBytes;

use super::overlay::{Network, Overlay, Transport, Version};

/// What is left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Nothing: the packet goes as it is.
    None,
    /// One checksum.
    Checksum(Checksum),
    /// Cutting, and every segment's checksums.
    Segment(Gso),
}

/// A checksum that holds only its pseudo-header sum so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// The first byte it covers.
    pub start: usize,
    /// Where it stands.
    pub field: usize,
}

/// The transport protocols that can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A TCP superframe.
    Tcp,
    /// A UDP superframe: each segment is a datagram.
    Udp,
}

/// A superframe's shape. All offsets are from the start of the packet and in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Transport protocol.
    pub cut: Cut,
    /// Family of the IP header.
    pub version: Version,
    /// Where the IP header starts.
    pub network: usize,
    /// Where the TCP or UDP header starts.
    pub transport: usize,
    /// Where the payload starts.
    pub payload: usize,
    /// Payload bytes per segment, at least 1.
    pub size: usize,
}

impl Offload {
    /// Reads the vnet header against the packet behind it.
    pub fn parse(header: &vnet::Header, packet: &[u8], overlay: &Overlay) -> Result<Self, DropReason> {
        let needs_checksum = header.flags & vnet::NEEDS_CSUM != 0;
        match (header.gso_type, needs_checksum) {
            (vnet::GSO_NONE, false) => Ok(Self::None),
            (vnet::GSO_NONE, true) => Checksum::parse(header, packet).map(Self::Checksum),
            // virtio 1.2 §5.1.6.4.1: a superframe always needs its checksum; without that, cutting would invent one.
            (_, false) => Err(DropReason::VnetHeader),
            (_, true) => Gso::parse(header, packet, overlay).map(Self::Segment).ok_or(DropReason::VnetHeader),
        }
    }
}

impl Checksum {
    fn parse(header: &vnet::Header, packet: &[u8]) -> Result<Self, DropReason> {
        let start = usize::from(header.csum_start.get());
        let field = start + usize::from(header.csum_offset.get());
        if field + 2 > packet.len() {
            return Err(DropReason::VnetHeader);
        }
        Ok(Self { start, field })
    }
}

impl Gso {
    fn parse(header: &vnet::Header, packet: &[u8], overlay: &Overlay) -> Option<Self> {
        let Network { version, offset: network, transport, .. } = overlay.network?;
        let Transport { protocol, offset: transport } = transport?;
        let cut = match (header.gso_type & !vnet::GSO_ECN, version, protocol) {
            (vnet::GSO_TCPV4, Version::V4, IPPROTO_TCP) | (vnet::GSO_TCPV6, Version::V6, IPPROTO_TCP) => Cut::Tcp,
            (vnet::GSO_UDP_L4, _, IPPROTO_UDP) => Cut::Udp,
            _ => return None,
        };
        let size = usize::from(header.gso_size.get());
        let starts_there = usize::from(header.csum_start.get()) == transport;
        if size == 0 || !starts_there || header.csum_offset.get() != cut.checksum_offset() {
            return None;
        }
        let payload = transport + cut.header_len(packet.get(transport..)?)?;
        (payload <= packet.len()).then_some(Self { cut, version, network, transport, payload, size })
    }
}

impl Cut {
    /// Where the checksum stands in the transport header.
    pub const fn checksum_offset(self) -> u16 {
        match self {
            Self::Tcp => tcp::CHECKSUM_OFFSET,
            Self::Udp => udp::CHECKSUM_OFFSET,
        }
    }

    fn header_len(self, transport: &[u8]) -> Option<usize> {
        match self {
            Self::Tcp => {
                let (header, _) = tcp::Header::ref_from_prefix(transport).ok()?;
                (header.header_len() >= tcp::HEADER_LEN).then_some(header.header_len())
            }
            Self::Udp => Some(udp::HEADER_LEN),
        }
    }
}
