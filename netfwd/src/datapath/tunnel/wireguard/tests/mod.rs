//! Devices that talk to each other over a wire that is a vector.

mod batch;
mod handshake;
mod scale;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use netfwd_common::checksum::Sum;
use netfwd_common::reason::{DropReason, Stage};
use netfwd_common::wire::wireguard::{self, MessageType};

use super::*;
use crate::datapath::packet::TunnelIndex;
use crate::datapath::stats::{Counters, Direction};
use crate::datapath::table::address_bytes;
use crate::datapath::tunnel::decap::{SealedMessage, SocketOrigin};

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

/// A device, both its sides, and where it is.
struct Host {
    key: PrivateKey,
    device: Arc<Device>,
    queue: QueueReceiver,
    opener: Opener,
    sealer: Sealer,
    handshakes: Handshakes,
    counters: Counters,
    address: SocketAddr,
    /// Its queue is filling up.
    is_loaded: bool,
    /// What it has sent.
    wire: Vec<Sent>,
}

/// The inner address of host `n`.
fn inner(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

impl Host {
    /// Host `n`, without peers.
    fn new(n: u8) -> Self {
        let key = PrivateKey::from_bytes([n; 32]);
        let (sender, queue) = queue(64);
        let device = Device::new(TunnelIndex(0), sender);
        device.apply(&DeviceUpdate { private_key: Some(Some(key.clone())), ..DeviceUpdate::default() });
        Self {
            key,
            device,
            queue,
            opener: Opener::new(),
            sealer: Sealer::new(),
            handshakes: Handshakes::new(),
            counters: Counters::new(1),
            address: SocketAddr::new(IpAddr::from([192, 0, 2, n]), 51_820),
            is_loaded: false,
            wire: Vec::new(),
        }
    }

    /// Two hosts that know each other.
    fn pair() -> (Self, Self) {
        let (mut a, mut b) = (Self::new(1), Self::new(2));
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

    fn public_key(&self) -> PublicKey {
        self.key.public_key()
    }

    /// The last byte of the host's addresses.
    fn number(&self) -> u8 {
        let IpAddr::V4(address) = self.address.ip() else { unreachable!("hosts are at IPv4 addresses") };
        address.octets()[3]
    }

    /// Makes `other` a peer.
    fn know(&mut self, other: &Self, adjust: impl FnOnce(&mut PeerUpdate)) {
        let prefix = ipnet::IpNet::from(IpAddr::from(inner(other.number())));
        let mut peer = PeerUpdate {
            endpoint: Some(other.address),
            allowed_ips: vec![AllowedIpUpdate { prefix, remove: false }],
            ..PeerUpdate::new(other.public_key())
        };
        adjust(&mut peer);
        self.update(peer);
    }

    fn update(&self, peer: PeerUpdate) {
        self.device.apply(&DeviceUpdate { peers: vec![peer], ..DeviceUpdate::default() });
    }

    fn status(&self, peer: PublicKey) -> PeerStatus {
        self.device.status().peers.into_iter().find(|status| status.public_key == peer).unwrap()
    }

    /// Sends a packet into the tunnel.
    fn send(&mut self, destination: Ipv4Addr, packet: &[u8]) -> Result<Sealed, DropReason> {
        self.seal(&Inner { destination: destination.into(), ecn: packet[1] & 3, content: Content::Packet(packet) })
    }

    fn seal(&mut self, inner: &Inner<'_>) -> Result<Sealed, DropReason> {
        let (from, wire) = (self.address, &mut self.wire);
        let sealed = self.sealer.seal(&self.device, &self.counters, inner, &mut |run| put(from, wire, run));
        self.work();
        sealed
    }

    /// Takes a batch of datagrams in; the inner packets that came out.
    fn receive(&mut self, datagrams: &[Sent]) -> Vec<Vec<u8>> {
        self.receive_marked(datagrams, 0)
    }

    fn receive_marked(&mut self, datagrams: &[Sent], ecn: u8) -> Vec<Vec<u8>> {
        let mut datagrams = datagrams.to_vec();
        let mut packets = Vec::new();
        let mut batch = datagrams.iter_mut().filter_map(|sent| message(sent, ecn));
        while let Some(opened) = self.opener.open(&self.device, &self.counters, &mut batch) {
            packets.extend(opened.map(|packet| packet.to_vec()));
        }
        self.work();
        packets
    }

    /// The control side's turn.
    fn work(&mut self) {
        let Self { device, queue, handshakes, counters, address, is_loaded, wire, .. } = self;
        let mut emit = |run: &Outgoing<'_>| put(*address, wire, run);
        handshakes.run_errands(device, counters, Now::read(), &mut emit);
        while let Some(message) = queue.next(Lanes::ALL) {
            handshakes.receive(device, counters, Now::read(), *is_loaded, &message, &mut emit);
            handshakes.run_errands(device, counters, Now::read(), &mut emit);
        }
        handshakes.run_errands(device, counters, Now::read(), &mut emit);
    }

    fn tick(&mut self) {
        let Self { device, handshakes, counters, address, wire, .. } = self;
        handshakes.tick(device, counters, Now::read(), &mut |run| put(*address, wire, run));
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

/// As lookup and outer headers would leave it.
fn message(sent: &mut Sent, ecn: u8) -> Option<SealedMessage<'_>> {
    let origin = SocketOrigin {
        local: address_bytes(sent.to.ip()),
        port: sent.to.port(),
        remote: address_bytes(sent.from.ip()),
        remote_port: sent.from.port(),
        ecn,
    };
    let message_type = wireguard::check(&sent.bytes).ok()?;
    Some(SealedMessage { tunnel: TunnelIndex(0), message_type, bytes: &mut sent.bytes, origin, tolerated: None })
}

/// Carries datagrams to and fro until both are silent; what came out of the tunnel at each.
fn exchange(a: &mut Host, b: &mut Host) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        if a.wire.is_empty() && b.wire.is_empty() {
            return (at_a, at_b);
        }
        at_b.extend(b.receive(&std::mem::take(&mut a.wire)));
        at_a.extend(a.receive(&std::mem::take(&mut b.wire)));
    }
    panic!("they do not stop talking");
}

/// An IPv4 packet of an experimental protocol, from host to host.
fn packet(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (20 + payload.len() as u16).to_be_bytes();
    let header = [[0x45, 0, high, low], [0, 0, 0x40, 0], [64, 253, 0, 0], inner(from).octets(), inner(to).octets()];
    let mut packet = header.concat();
    let checksum = Sum::ZERO.add(&packet).checksum();
    packet[10..12].copy_from_slice(&checksum.to_bytes());
    packet.extend_from_slice(payload);
    packet
}
