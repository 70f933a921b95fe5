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
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use netfwd_common::checksum::Sum;
use rustix::net::{SocketType, ipproto};

use super::gather::total_len;
use super::socket::{self, SocketName};
use super::udp_send::send_patiently;
use crate::datapath::seam::{OuterChecksum, Transmit};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
/// Slices of a single datagram: tunnel header, inner headers and payload are a handful.
const MAX_SLICES: usize = 16;
/// IPv4's default TTL and IPv6's hop limit (RFC 1700; the kernel's vxlan uses the route's, which defaults to this).
const HOP_LIMIT: u8 = 64;
/// SO_SNDBUF.
const SEND_BUFFER: usize = 1 << 20;

/// One worker's raw sockets, as far as the kernel gives them.
#[derive(Debug)]
pub struct RawSender {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl RawSender {
    /// Raw sockets for the families among `locals`. A refused one leaves one INFO line, and its datagrams to the pool.
    pub fn open(locals: impl Iterator<Item = IpAddr>) -> Self {
        let mut sender = Self { v4: None, v6: None };
        for local in locals {
            let socket = if local.is_ipv4() { &mut sender.v4 } else { &mut sender.v6 };
            if socket.is_none() {
                *socket = open_raw(local)
                    .inspect_err(
                        |error| tracing::info!(%local, %error, "no raw socket: outer checksums are always sent"),
                    )
                    .ok();
            }
        }
        sender
    }

    /// Sends a single datagram from `source_port`.
    pub fn send(&self, transmit: &Transmit<'_>, source_port: u16) -> io::Result<()> {
        let mut storage = [0; IPV6_LEN + UDP_LEN];
        let (socket, headers) = match (transmit.local, &self.v4, &self.v6) {
            (IpAddr::V4(_), Some(socket), _) => (socket, storage.get_mut(..IPV4_LEN + UDP_LEN)),
            (IpAddr::V6(_), _, Some(socket)) => (socket, storage.get_mut(..IPV6_LEN + UDP_LEN)),
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let headers = headers.ok_or(io::ErrorKind::InvalidInput)?;
        write_headers(headers, transmit, source_port).ok_or(io::ErrorKind::InvalidInput)?;
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let (first, payload) = slices.split_at_mut(1);
        first[0] = IoSlice::new(headers);
        let payload = payload.get_mut(..transmit.slices.len()).ok_or(io::ErrorKind::InvalidInput)?;
        payload.copy_from_slice(transmit.slices);
        // A raw socket's address has no port: over IPv6 the kernel takes that field for a protocol.
        let name = SocketName::new(transmit.remote, 0);
        send_patiently(socket.as_fd(), &name, &slices[..=transmit.slices.len()], &[])
    }
}

fn open_raw(local: IpAddr) -> io::Result<OwnedFd> {
    let socket = socket::open(local, SocketType::RAW, Some(ipproto::RAW))?;
    socket::set_buffer(&socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER)?;
    // Drops of the queueing discipline shall be seen. No ICMP error finds its way here: none is about protocol 255.
    match local {
        IpAddr::V4(_) => socket::set_int(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?,
        IpAddr::V6(_) => socket::set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?,
    }
    Ok(socket)
}

/// Writes IP and UDP headers that fill `headers`; `None` if the datagram cannot be.
fn write_headers(headers: &mut [u8], transmit: &Transmit<'_>, source_port: u16) -> Option<()> {
    let udp_len = u16::try_from(total_len(transmit.slices).checked_add(UDP_LEN)?).ok()?;
    let (ip, udp) = headers.split_at_mut_checked(headers.len().checked_sub(UDP_LEN)?)?;
    let pseudo = match (transmit.local, transmit.remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            let total_len = udp_len.checked_add(IPV4_LEN as u16)?;
            put(ip, &[&[0x45, transmit.tos], &total_len.to_be_bytes(), &[0; 4], &[HOP_LIMIT, 17, 0, 0]]);
            put(ip.get_mut(12..)?, &[&local.octets(), &remote.octets()]);
            Sum::pseudo_ipv4(&local.octets(), &remote.octets(), 17, udp_len)
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            let first = (6 << 28) | (u32::from(transmit.tos) << 20);
            put(ip, &[&first.to_be_bytes(), &udp_len.to_be_bytes(), &[17, HOP_LIMIT]]);
            put(ip.get_mut(8..)?, &[&local.octets(), &remote.octets()]);
            Sum::pseudo_ipv6(&local.octets(), &remote.octets(), 17, u32::from(udp_len))
        }
        _ => return None,
    };
    let ports = [source_port.to_be_bytes(), transmit.port.to_be_bytes()];
    put(udp, &[&ports[0], &ports[1], &udp_len.to_be_bytes(), &[0, 0]]);
    let checksum = match transmit.checksum {
        OuterChecksum::Zero => [0, 0],
        OuterChecksum::Wanted { payload_sum } => {
            (pseudo.add(udp) + Sum::from_raw(u64::from(payload_sum?))).checksum().to_udp_bytes()
        }
    };
    put(udp.get_mut(6..)?, &[&checksum]);
    Some(())
}

/// Copies `fields` one after the other to the start of `header`, as far as they fit.
fn put(header: &mut [u8], fields: &[&[u8]]) {
    for (to, from) in header.iter_mut().zip(fields.iter().copied().flatten()) {
        *to = *from;
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
            source_port: 50_000,
            tos: 2,
            segment_size: total_len(slices),
            datagrams: 1,
            slices,
            checksum,
        }
    }

    #[test]
    fn a_checksum_from_the_payload_sum_completes_the_datagram() {
        let payload: Vec<u8> = (0..101).collect();
        let slices = [IoSlice::new(&payload[..33]), IoSlice::new(&payload[33..])];
        let payload_sum = Some(Sum::ZERO.add(&payload).fold());
        for v6 in [false, true] {
            let transmit = transmit(v6, &slices, OuterChecksum::Wanted { payload_sum });
            let ip_len = if v6 { IPV6_LEN } else { IPV4_LEN };
            let mut headers = vec![0; ip_len + UDP_LEN];
            write_headers(&mut headers, &transmit, 50_001).unwrap();
            let addresses = if v6 { &headers[8..40] } else { &headers[12..20] };
            let pseudo = Sum::ZERO.add(addresses).add_u16(17).add_u16(109);
            assert!(pseudo.add(&headers[ip_len..]).add(&payload).is_valid());
            assert_eq!(headers[ip_len..ip_len + 2], 50_001u16.to_be_bytes());
        }
    }

    #[test]
    fn zero_is_zero_and_families_do_not_mix() {
        let slices = [IoSlice::new(b"payload")];
        let mut zero = transmit(false, &slices, OuterChecksum::Zero);
        let mut headers = [0xff; 28];
        write_headers(&mut headers, &zero, 50_001).unwrap();
        assert_eq!(headers[26..], [0, 0]);
        assert_eq!(headers[..4], [0x45, 2, 0, 35]);
        zero.remote = "fd00::1".parse().unwrap();
        assert_eq!(write_headers(&mut headers, &zero, 50_001), None);
    }

    #[test]
    fn a_checksum_without_its_sum_cannot_be_sent_raw() {
        let slices = [IoSlice::new(b"payload")];
        let wanted = transmit(false, &slices, OuterChecksum::Wanted { payload_sum: None });
        assert_eq!(write_headers(&mut [0; 28], &wanted, 50_001), None);
    }
}
