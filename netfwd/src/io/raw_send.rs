//! Single datagrams with headers of our own.
//!
//! A UDP socket either checksums everything or nothing. A tunnel wants it per datagram: zero where the configuration
//! says so (RFC 7348 §4.1), or a checksum that follows from headers alone because the inner packet's own checksum makes
//! its sum a constant (local checksum offload, Documentation/networking/checksum-offloads.rst). `IPPROTO_RAW` sockets
//! send what they are given, IP header included.
//!
//! - The source port is the one that the flow's pool socket has, so runs and singles of a flow look alike.
//! - `raw_send_hdrinc` fills in the IPv4 ID and header checksum; over IPv6 (`rawv6_send_hdrinc`) nothing is changed.
//! - A datagram larger than the MTU is refused (EMSGSIZE). So is everything without CAP_NET_RAW. Any error means: let
//!   the pool send it, with a checksum, fragmented by the kernel where needed.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use netfwd_common::checksum::Sum;
use netfwd_common::wire::{ipv4, ipv6, udp};
use rustix::net::{SocketType, ipproto};
use zerocopy::IntoBytes;

use super::gather::total_len;
use super::socket::{self, SocketName};
use super::udp_send::send_patiently;
use crate::datapath::seam::{OuterChecksum, Transmit};

const UDP: u8 = 17;
/// Slices of a single datagram with our own: tunnel header, inner headers and payload are a handful.
const MAX_SLICES: usize = 16;
/// IPv4's default TTL and IPv6's hop limit (RFC 1700; the kernel's vxlan uses the route's, which defaults to this).
const HOP_LIMIT: u8 = 64;
/// SO_SNDBUF.
const SEND_BUFFER: usize = 1 << 20;

/// One worker's raw sockets, one for each local address that the kernel gave one.
#[derive(Debug)]
pub struct RawSender(Box<[(IpAddr, OwnedFd)]>);

impl RawSender {
    /// Raw sockets for `locals`. A refused one leaves one INFO line, and its datagrams to the pool.
    pub fn open(locals: impl Iterator<Item = IpAddr>) -> Self {
        let open = |local| {
            open_raw(local)
                .inspect_err(|error| tracing::info!(%local, %error, "no raw socket: outer checksums are always sent"))
                .ok()
                .map(|socket| (local, socket))
        };
        Self(locals.filter_map(open).collect())
    }

    /// Sends a single datagram from `source_port`.
    pub fn send(&self, transmit: &Transmit<'_>, source_port: u16) -> io::Result<()> {
        let (_, socket) =
            self.0.iter().find(|(local, _)| *local == transmit.local).ok_or(io::ErrorKind::Unsupported)?;
        let headers = Headers::new(transmit, source_port).ok_or(io::ErrorKind::InvalidInput)?;
        let mut storage = [IoSlice::new(&[]); MAX_SLICES];
        let slices = storage.get_mut(..2 + transmit.slices.len()).ok_or(io::ErrorKind::InvalidInput)?;
        (slices[0], slices[1]) = (IoSlice::new(headers.ip.as_bytes()), IoSlice::new(headers.udp.as_bytes()));
        slices[2..].copy_from_slice(transmit.slices);
        // A raw socket's address has no port: over IPv6 the kernel takes that field for a protocol.
        let name = SocketName::new(transmit.remote, 0, transmit.scope);
        send_patiently(socket.as_fd(), &name, slices, &[])
    }
}

fn open_raw(local: IpAddr) -> io::Result<OwnedFd> {
    let socket = socket::open(local, SocketType::RAW, Some(ipproto::RAW))?;
    socket::set_buffer(&socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER)?;
    // Source routing rules must see the address: else singles and runs of a flow could take different ways.
    rustix::net::bind(&socket, &SocketAddr::new(local, 0))?;
    // Drops of the queueing discipline shall be seen. No ICMP error finds its way here: none is about protocol 255.
    match local {
        IpAddr::V4(_) => socket::set_int(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?,
        IpAddr::V6(_) => socket::set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?,
    }
    Ok(socket)
}

/// What stands before a datagram's payload.
struct Headers {
    ip: IpHeader,
    udp: udp::Header,
}

enum IpHeader {
    V4(ipv4::Header),
    V6(ipv6::Header),
}

impl Headers {
    /// `None` if there is no such datagram: too long, families mixed, or a checksum wanted whose sum is not known.
    fn new(transmit: &Transmit<'_>, source_port: u16) -> Option<Self> {
        let length = u16::try_from(total_len(transmit.slices).checked_add(udp::HEADER_LEN)?).ok()?;
        let (ip, pseudo) = match (transmit.local, transmit.remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                let header = ipv4_header(local.octets(), remote.octets(), transmit.tos, length)?;
                let pseudo = Sum::pseudo_ipv4(&header.source, &header.destination, UDP, length);
                (IpHeader::V4(header), pseudo)
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                let header = ipv6_header(local.octets(), remote.octets(), transmit.tos, length);
                let pseudo = Sum::pseudo_ipv6(&header.source, &header.destination, UDP, u32::from(length));
                (IpHeader::V6(header), pseudo)
            }
            _ => return None,
        };
        let mut udp = udp::Header {
            source_port: source_port.into(),
            destination_port: transmit.port.into(),
            length: length.into(),
            checksum: 0.into(),
        };
        if let OuterChecksum::Wanted { payload_sum } = transmit.checksum {
            let sum = pseudo.add(udp.as_bytes()) + Sum::from_raw(u64::from(payload_sum?));
            udp.checksum = sum.checksum().to_udp_bytes().into();
        }
        Some(Self { ip, udp })
    }
}

impl IpHeader {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::V4(header) => header.as_bytes(),
            Self::V6(header) => header.as_bytes(),
        }
    }
}

/// ID and checksum are left to the kernel.
fn ipv4_header(source: [u8; 4], destination: [u8; 4], tos: u8, udp_length: u16) -> Option<ipv4::Header> {
    Some(ipv4::Header {
        version_ihl: 0x45,
        tos,
        total_length: udp_length.checked_add(ipv4::HEADER_LEN as u16)?.into(),
        id: 0.into(),
        fragment: 0.into(),
        ttl: HOP_LIMIT,
        protocol: UDP,
        checksum: 0.into(),
        source,
        destination,
    })
}

fn ipv6_header(source: [u8; 16], destination: [u8; 16], tos: u8, udp_length: u16) -> ipv6::Header {
    ipv6::Header {
        version_class_label: ((6 << 28) | (u32::from(tos) << 20)).into(),
        payload_length: udp_length.into(),
        next_header: UDP,
        hop_limit: HOP_LIMIT,
        source,
        destination,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transmit<'a>(v6: bool, slices: &'a [IoSlice<'a>], checksum: OuterChecksum) -> Transmit<'a> {
        let (local, remote) = if v6 { ("fd00::1", "fd00::2") } else { ("10.9.0.1", "10.9.0.2") };
        Transmit {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            port: 4789,
            scope: 0,
            source_port: 50_000,
            tos: 2,
            segment_size: total_len(slices),
            datagrams: 1,
            slices,
            checksum,
        }
    }

    fn bytes(transmit: &Transmit<'_>) -> Option<Vec<u8>> {
        Headers::new(transmit, 50_001).map(|headers| [headers.ip.as_bytes(), headers.udp.as_bytes()].concat())
    }

    #[test]
    fn a_checksum_from_the_payload_sum_completes_the_datagram() {
        let payload: Vec<u8> = (0..101).collect();
        let slices = [IoSlice::new(&payload[..33]), IoSlice::new(&payload[33..])];
        let payload_sum = Some(Sum::ZERO.add(&payload).fold());
        for v6 in [false, true] {
            let headers = bytes(&transmit(v6, &slices, OuterChecksum::Wanted { payload_sum })).unwrap();
            let (addresses, udp) =
                if v6 { (&headers[8..40], &headers[40..]) } else { (&headers[12..20], &headers[20..]) };
            let pseudo = Sum::ZERO.add(addresses).add_u16(17).add_u16(109);
            assert!(pseudo.add(udp).add(&payload).is_valid());
            assert_eq!(udp[..6], [0xc3, 0x51, 0x12, 0xb5, 0, 109]);
        }
    }

    #[test]
    fn zero_is_zero_and_families_do_not_mix() {
        let slices = [IoSlice::new(b"payload")];
        let mut zero = transmit(false, &slices, OuterChecksum::Zero);
        let headers = bytes(&zero).unwrap();
        assert_eq!(headers[26..], [0, 0]);
        assert_eq!(headers[..4], [0x45, 2, 0, 35]);
        zero.remote = "fd00::1".parse().unwrap();
        assert_eq!(bytes(&zero), None);
    }

    #[test]
    fn a_checksum_without_its_sum_cannot_be_sent_raw() {
        let slices = [IoSlice::new(b"payload")];
        assert_eq!(bytes(&transmit(false, &slices, OuterChecksum::Wanted { payload_sum: None })), None);
    }

    #[test]
    fn a_datagram_too_long_for_its_length_field_is_refused() {
        let payload = vec![0; 65_508];
        for (len, v6, fits) in [(65_507, false, true), (65_508, false, false), (65_508, true, true)] {
            let slices = [IoSlice::new(&payload[..len])];
            assert_eq!(bytes(&transmit(v6, &slices, OuterChecksum::Zero)).is_some(), fits, "{len} {v6}");
        }
    }
}
