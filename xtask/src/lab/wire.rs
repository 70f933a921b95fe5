//! A bad cable: a fourth namespace between peer and gateway that flips a bit now and then.
//!
//! The flip happens after the sender's checksums and before the gateway, where a wire would do it. Only payload is hit,
//! only in whole datagrams to a tunnel's port on their way to the gateway, so that the number of flips is the number
//! of packets that the gateway has to refuse for their inner checksum.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::namespace::Namespace;
use super::packet_socket::{self, Frames};

/// The cable's end at the peer.
pub(super) const PEER_END: &str = "to-peer";
/// The cable's end at the gateway.
pub(super) const GATEWAY_END: &str = "to-gateway";

/// Shorter frames may have no payload in their last bytes.
const SHORTEST: usize = 300;
/// The flipped bit is among the last bytes, far behind every header.
const REACH: u64 = 100;

/// Forwards frames both ways until it is dropped.
#[derive(Debug)]
pub struct Wire {
    flips: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Wire {
    /// Starts forwarding in a namespace that has the two ends; every n-th datagram to one of `ports` gets a flipped bit.
    pub(super) fn start(namespace: &Namespace, every: u64, ports: Vec<u16>) -> Result<Self> {
        let end = |device| packet_socket::open(device, Frames::InAndOut).map(Arc::new);
        let ends = || Ok::<_, io::Error>((end(PEER_END)?, end(GATEWAY_END)?));
        let (peer, gateway) = namespace.run(ends)?.context("packet sockets for the cable")?;
        let mut wire = Self { flips: Arc::default(), lost: Arc::default(), stop: Arc::default(), threads: Vec::new() };
        let mut tamper = Tamper { every, ports, seen: 0, flips: Arc::clone(&wire.flips) };
        let direction = |from: &Arc<OwnedFd>, to: &Arc<OwnedFd>| Direction {
            from: Arc::clone(from),
            to: Arc::clone(to),
            lost: Arc::clone(&wire.lost),
            stop: Arc::clone(&wire.stop),
        };
        let (inward, outward) = (direction(&peer, &gateway), direction(&gateway, &peer));
        wire.threads.push(std::thread::spawn(move || inward.forward(|frame| tamper.pass(frame))));
        wire.threads.push(std::thread::spawn(move || outward.forward(|_| {})));
        Ok(wire)
    }

    /// Bits flipped so far.
    pub fn flips(&self) -> u64 {
        self.flips.load(Ordering::Relaxed)
    }

    /// Frames that could not be sent on: a full queue loses them, as cables' ends do.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Ok(Err(error)) = thread.join() {
                eprintln!("lab: the cable: {error:#}");
            }
        }
    }
}

/// One way along the cable.
struct Direction {
    from: Arc<OwnedFd>,
    to: Arc<OwnedFd>,
    lost: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Direction {
    fn forward(&self, mut change: impl FnMut(&mut [u8])) -> Result<()> {
        let mut frame = vec![0; 1 << 16];
        while !self.stop.load(Ordering::Relaxed) {
            let length = match recv(&self.from, &mut frame[..], RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::NETDOWN) => continue,
                Err(error) => return Err(error).context("receiving"),
            };
            change(&mut frame[..length]);
            if send(&self.to, &frame[..length], SendFlags::empty()).is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

struct Tamper {
    every: u64,
    ports: Vec<u16>,
    seen: u64,
    flips: Arc<AtomicU64>,
}

impl Tamper {
    fn pass(&mut self, frame: &mut [u8]) {
        if frame.len() < SHORTEST || !udp_port(frame).is_some_and(|port| self.ports.contains(&port)) {
            return;
        }
        self.seen += 1;
        if self.seen.is_multiple_of(self.every) {
            // Other bytes and other bits each time, the same ones in each run.
            let from_end = 1 + self.seen.wrapping_mul(31) % REACH;
            let at = frame.len() - from_end as usize;
            frame[at] ^= 1 << (self.seen / self.every % 8);
            self.flips.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The destination port of an unfragmented UDP datagram without IP options.
fn udp_port(frame: &[u8]) -> Option<u16> {
    let half = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    match (half(12)?, frame.get(14)?) {
        (0x0800, 0x45) if frame.get(23)? == &17 && half(20)? & 0x3fff == 0 => half(36),
        (0x86dd, _) if frame.get(20)? == &17 => half(56),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet, IPv4 and UDP headers with that destination port, and zeroes up to 400 bytes.
    fn datagram(port: u16) -> Vec<u8> {
        let mut frame = vec![0; 400];
        (frame[12], frame[14], frame[23]) = (0x08, 0x45, 17);
        frame[36..38].copy_from_slice(&port.to_be_bytes());
        frame
    }

    #[test]
    fn one_bit_in_every_nth_tunnel_datagram() {
        let mut tamper = Tamper { every: 10, ports: vec![4789], seen: 0, flips: Arc::default() };
        let mut flipped = 0;
        for _ in 0..100 {
            let mut frame = datagram(4789);
            tamper.pass(&mut frame);
            flipped += frame.iter().zip(datagram(4789)).map(|(one, two)| (one ^ two).count_ones()).sum::<u32>();
            let mut other = datagram(53);
            tamper.pass(&mut other);
            assert_eq!(other, datagram(53));
        }
        assert_eq!((flipped, tamper.flips.load(Ordering::Relaxed)), (10, 10));
    }
}
