//! Devices that talk to each other over a wire that is a vector.

mod batch;
mod changes;
mod handshake;
mod scale;

/// What tests and benchmarks outside this crate use too.
#[path = "../../../../../tests/wireguard/mod.rs"]
mod ends;

use std::mem;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ends::{End, inner, packet_between as packet};
use gotatun::noise::TimerParams;
use netfwd_common::reason::{DropReason, Stage};
use netfwd_common::wire::wireguard::{self, MessageType};

use super::*;
use crate::datapath::stats::Direction;

/// A datagram on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    from: SocketAddr,
    to: SocketAddr,
    tos: u8,
    bytes: Vec<u8>,
}

impl Sent {
    fn kind(&self) -> MessageType {
        wireguard::check(&self.bytes).unwrap()
    }
}

/// An end, and what it has sent.
struct Host {
    end: End,
    wire: Vec<Sent>,
}

impl Deref for Host {
    type Target = End;

    fn deref(&self) -> &End {
        &self.end
    }
}

impl DerefMut for Host {
    fn deref_mut(&mut self) -> &mut End {
        &mut self.end
    }
}

impl Host {
    /// Host `n`, without peers.
    fn new(n: u8) -> Self {
        Self { end: End::new(n), wire: Vec::new() }
    }

    /// Two hosts that know each other.
    fn pair() -> (Self, Self) {
        let (a, b) = (Self::new(1), Self::new(2));
        a.know(&b, |_| {});
        b.know(&a, |_| {});
        (a, b)
    }

    /// Two hosts with a session that `a` asked for.
    fn connected() -> (Self, Self) {
        let (mut a, mut b) = Self::pair();
        a.connect(&mut b);
        (a, b)
    }

    fn connect(&mut self, b: &mut Self) {
        let a = self;
        a.send(inner(2), &packet(1, 2, b"first")).unwrap();
        assert_eq!(exchange(a, b).1, [packet(1, 2, b"first")]);
    }

    fn status(&self, peer: PublicKey) -> PeerStatus {
        self.device.status().peers.into_iter().find(|status| status.public_key == peer).unwrap()
    }

    /// Sends a packet into the tunnel.
    fn send(&mut self, destination: Ipv4Addr, packet: &[u8]) -> Result<Sealed, DropReason> {
        let Self { end, wire } = self;
        let from = end.address;
        let sealed = end.seal_for(destination, (packet[1] & 3, Content::Packet(packet)), |run| put(from, wire, run));
        self.work();
        sealed
    }

    /// Takes a batch of datagrams in; the inner packets that came out.
    fn receive(&mut self, datagrams: &[Sent]) -> Vec<Vec<u8>> {
        self.receive_marked(datagrams, 0)
    }

    fn receive_marked(&mut self, datagrams: &[Sent], ecn: u8) -> Vec<Vec<u8>> {
        let (mut datagrams, mut packets) = (datagrams.to_vec(), Vec::new());
        let mut batch = datagrams.iter_mut().filter_map(|sent| ends::message(&mut sent.bytes, sent.from, sent.to, ecn));
        self.open(&mut batch, |packet| packets.push(packet.to_vec()));
        self.work();
        packets
    }

    /// The control side's turn.
    fn work(&mut self) {
        let Self { end, wire } = self;
        let from = end.address;
        end.take_turn(|run| put(from, wire, run));
    }

    fn tick(&mut self) {
        let Self { end, wire } = self;
        let End { device, handshakes, counters, address, .. } = end;
        handshakes.tick(device, counters, Now::read(), &mut |run| {
            put(*address, wire, run);
            run.bytes
        });
    }

    fn drops(&self, direction: Direction, stage: Stage, reason: DropReason) -> u64 {
        self.counters.drops.get(direction, stage, reason)
    }

    fn handshakes(&self, role: Role, result: HandshakeResult) -> u64 {
        self.device.stats().handshakes(role, result)
    }
}

fn put(from: SocketAddr, wire: &mut Vec<Sent>, run: &Outgoing<'_>) {
    let bytes: Vec<u8> = run.slices.iter().flat_map(|slice| slice.iter().copied()).collect();
    assert_eq!(bytes.len(), run.bytes);
    assert_eq!(bytes.len().div_ceil(run.segment_size), run.datagrams);
    let from = run.path.local.map_or(from, |local| SocketAddr::new(local, from.port()));
    let sent = |bytes: &[u8]| Sent { from, to: run.path.remote, tos: run.tos, bytes: bytes.to_vec() };
    wire.extend(bytes.chunks(run.segment_size).map(sent));
}

/// Carries datagrams to and fro until both are silent; what came out of the tunnel at each.
fn exchange(a: &mut Host, b: &mut Host) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        if a.wire.is_empty() && b.wire.is_empty() {
            return (at_a, at_b);
        }
        at_b.extend(b.receive(&mem::take(&mut a.wire)));
        at_a.extend(a.receive(&mem::take(&mut b.wire)));
    }
    panic!("they do not stop talking");
}

const SHORT: Duration = Duration::from_millis(30);

/// Retries and rekeys after moments.
fn hurried() -> TimerParams {
    TimerParams { rekey_timeout: SHORT..=SHORT, rekey_after_time: SHORT..=SHORT, ..TimerParams::default() }
}

fn hurried_pair() -> (Host, Host) {
    let (a, b) = Host::pair();
    a.device.set_timers(hurried());
    b.device.set_timers(hurried());
    (a, b)
}

fn kinds(sent: &[Sent]) -> Vec<MessageType> {
    sent.iter().map(Sent::kind).collect()
}

fn take(host: &mut Host) -> Vec<Sent> {
    std::mem::take(&mut host.wire)
}

impl Host {
    /// The initiation with which `other` wants another session.
    fn wire_for_rekey(&self, other: &mut Self) -> Sent {
        sleep(2 * SHORT);
        loop {
            other.send(inner(self.number()), &packet(other.number(), self.number(), b"more")).unwrap();
            other.tick();
            let sent = take(other);
            if let Some(initiation) = sent.into_iter().find(|sent| sent.kind() == MessageType::Initiation) {
                return initiation;
            }
        }
    }
}

/// Ticks until something is sent.
fn tick_until_sent(host: &mut Host) {
    let start = Instant::now();
    while host.wire.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "nothing is sent");
        sleep(Duration::from_millis(5));
        host.tick();
    }
}
