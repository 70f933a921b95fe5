//! WireGuard devices that share memory instead of a wire: for unit tests, tests of their own and benchmarks.

#![allow(dead_code, reason = "each program uses its part")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use netfwd::datapath::offload::Offload;
use netfwd::datapath::overlay::Overlay;
use netfwd::datapath::packet::{Link, TunnelIndex};
use netfwd::datapath::segment::Superframe;
use netfwd::datapath::stats::Counters;
use netfwd::datapath::table::address_bytes;
use netfwd::datapath::tunnel::decap::{SealedMessage, SocketOrigin};
use netfwd::datapath::tunnel::wireguard::{
    AllowedIpUpdate, Content, Device, DeviceUpdate, Handshakes, Inner, Lanes, Now, Opener, Outgoing, PeerUpdate,
    PrivateKey, PublicKey, QueueReceiver, Sealed, Sealer, queue,
};
use netfwd_common::checksum::Sum;
use netfwd_common::reason::DropReason;
use netfwd_common::wire::vnet;
use netfwd_common::wire::wireguard;
use zerocopy::FromBytes;

/// One end: everything between a socket and a TUN.
pub struct End {
    pub device: Arc<Device>,
    pub queue: QueueReceiver,
    pub opener: Opener,
    pub sealer: Sealer,
    pub handshakes: Handshakes,
    pub counters: Counters,
    pub address: SocketAddr,
    pub key: PrivateKey,
    /// Its queue is filling up.
    pub is_loaded: bool,
}

/// The inner address of end `n`.
pub fn inner(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

impl End {
    /// End `n`, without peers.
    pub fn new(n: u8) -> Self {
        Self::with_key(n, PrivateKey::from_bytes([n; 32]))
    }

    /// The same with that key.
    pub fn with_key(n: u8, key: PrivateKey) -> Self {
        let (sender, queue) = queue(64);
        let device = Device::new(TunnelIndex(0), sender);
        device.apply(&DeviceUpdate { private_key: Some(Some(key.clone())), ..DeviceUpdate::default() });
        Self {
            device,
            queue,
            opener: Opener::new(),
            sealer: Sealer::new(),
            handshakes: Handshakes::new(),
            counters: Counters::new(1),
            address: SocketAddr::new(IpAddr::from([192, 0, 2, n]), 51_820),
            key,
            is_loaded: false,
        }
    }

    /// Its public key.
    pub fn public_key(&self) -> PublicKey {
        self.key.public_key()
    }

    /// The last byte of its addresses.
    pub fn number(&self) -> u8 {
        let IpAddr::V4(address) = self.address.ip() else { unreachable!("ends are at IPv4 addresses") };
        address.octets()[3]
    }

    /// Makes `other` a peer that has its own inner address.
    pub fn know(&self, other: &Self, adjust: impl FnOnce(&mut PeerUpdate)) {
        let prefix = IpNet::from(IpAddr::from(inner(other.number())));
        let mut peer = PeerUpdate {
            endpoint: Some(other.address),
            allowed_ips: vec![AllowedIpUpdate { prefix, remove: false }],
            ..PeerUpdate::new(other.public_key())
        };
        adjust(&mut peer);
        self.update(peer);
    }

    /// Changes one peer.
    pub fn update(&self, peer: PeerUpdate) {
        self.device.apply(&DeviceUpdate { peers: vec![peer], ..DeviceUpdate::default() });
    }

    /// Seals what goes to `to`; what has to leave goes to `emit`.
    pub fn seal_for(
        &mut self,
        to: Ipv4Addr,
        (ecn, content): (u8, Content<'_>),
        mut emit: impl FnMut(&Outgoing<'_>),
    ) -> Result<Sealed, DropReason> {
        let inner = Inner { destination: to.into(), ecn, content };
        let mut emit = |run: &Outgoing<'_>| {
            emit(run);
            run.bytes
        };
        self.sealer.seal(&self.device, &self.counters, &inner, &mut emit)
    }

    /// Takes in a batch; what comes out goes to `deliver`.
    pub fn open<'m>(
        &mut self,
        batch: &mut impl Iterator<Item = SealedMessage<'m>>,
        mut deliver: impl FnMut(&mut [u8]),
    ) {
        while let Some(opened) = self.opener.open(&self.device, &self.counters, batch) {
            opened.for_each(&mut deliver);
        }
    }

    /// The control side's turn.
    pub fn take_turn(&mut self, mut emit: impl FnMut(&Outgoing<'_>)) {
        let Self { device, queue, handshakes, counters, is_loaded, .. } = self;
        let mut emit = |run: &Outgoing<'_>| {
            emit(run);
            run.bytes
        };
        handshakes.run_errands(device, counters, Now::read(), &mut emit);
        while let Some(message) = queue.next(Lanes::ALL) {
            handshakes.receive(device, counters, Now::read(), *is_loaded, &message, &mut emit);
            handshakes.run_errands(device, counters, Now::read(), &mut emit);
        }
    }
}

/// Gives a peer every IPv4 address.
pub fn everything(peer: &mut PeerUpdate) {
    peer.allowed_ips = vec![AllowedIpUpdate { prefix: "0.0.0.0/0".parse().expect("a prefix"), remove: false }];
}

/// A datagram as lookup and outer headers would leave it.
pub fn message(bytes: &mut [u8], from: SocketAddr, to: SocketAddr, ecn: u8) -> Option<SealedMessage<'_>> {
    let origin = SocketOrigin {
        local: address_bytes(to.ip()),
        port: to.port(),
        remote: address_bytes(from.ip()),
        remote_port: from.port(),
        scope: 0,
        ecn,
    };
    let message_type = wireguard::check(bytes).ok()?;
    Some(SealedMessage { tunnel: TunnelIndex(0), message_type, bytes, origin, tolerated: None })
}

/// Two ends, 1 and 2, and a wire that costs no allocation.
impl End {
    /// Two ends with a session.
    pub fn connected() -> [Self; 2] {
        let mut ends = [Self::new(1), Self::new(2)];
        Self::connect(&mut ends);
        ends
    }

    /// Has two ends know each other as having every IPv4 address, and the first one begin a session.
    pub fn connect([a, b]: &mut [Self; 2]) {
        a.know(b, everything);
        b.know(a, everything);
        let (mut from_a, mut from_b) = (Wire::default(), Wire::default());
        a.send(&packet(1), &mut from_a).expect("a peer");
        for _ in 0..4 {
            b.receive(&mut from_a, a.address, |_| {});
            b.work(&mut from_b);
            a.receive(&mut from_b, b.address, |_| {});
            a.work(&mut from_a);
        }
        let sent = a.send(&packet(1), &mut from_a).expect("a peer");
        assert_eq!(sent.datagrams, 1, "there is no session");
    }

    /// Seals a packet for end 2.
    pub fn send(&mut self, packet: &[u8], wire: &mut Wire) -> Result<Sealed, DropReason> {
        self.seal(Content::Packet(packet), wire).inspect(|_| self.work(wire))
    }

    /// Seals what goes to end 2.
    pub fn seal(&mut self, content: Content<'_>, wire: &mut Wire) -> Result<Sealed, DropReason> {
        self.seal_for(inner(2), (0, content), |run| wire.put(run))
    }

    /// Takes all datagrams off the wire as one batch; what comes out goes to `deliver`.
    pub fn receive(&mut self, wire: &mut Wire, from: SocketAddr, deliver: impl FnMut(&mut [u8])) {
        let to = self.address;
        self.open(&mut wire.datagrams().filter_map(|bytes| message(bytes, from, to, 0)), deliver);
        wire.clear();
    }

    /// The control side's turn.
    pub fn work(&mut self, wire: &mut Wire) {
        self.take_turn(|run| wire.put(run));
    }
}

/// Datagrams on their way. Its memory is allocated at first and then used again.
#[derive(Default)]
pub struct Wire {
    bytes: Vec<u8>,
    lens: Vec<usize>,
}

impl Wire {
    /// Takes a run in.
    pub fn put(&mut self, run: &Outgoing<'_>) {
        run.slices.iter().for_each(|slice| self.bytes.extend_from_slice(slice));
        let mut rest = run.bytes;
        for _ in 0..run.datagrams {
            let len = rest.min(run.segment_size);
            self.lens.push(len);
            rest -= len;
        }
    }

    /// Takes one datagram in, whatever it is.
    pub fn put_message(&mut self, message: &[u8]) {
        self.bytes.extend_from_slice(message);
        self.lens.push(message.len());
    }

    /// The datagrams.
    pub fn datagrams(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let mut rest = self.bytes.as_mut_slice();
        self.lens.iter().map(move |len| {
            let (datagram, behind) = std::mem::take(&mut rest).split_at_mut(*len);
            rest = behind;
            datagram
        })
    }

    /// Sends the last datagram once more.
    pub fn repeat_last(&mut self) {
        if let Some(len) = self.lens.last().copied() {
            self.bytes.extend_from_within(self.bytes.len() - len..);
            self.lens.push(len);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lens.len()
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.lens.clear();
    }
}

/// A packet from end 1 to end 2.
pub fn packet(payload: usize) -> Vec<u8> {
    packet_between(1, 2, &vec![7; payload])
}

/// An IPv4 packet of an experimental protocol, from end to end.
pub fn packet_between(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (20 + payload.len() as u16).to_be_bytes();
    let header = [[0x45, 0, high, low], [0, 0, 0x40, 0], [64, 253, 0, 0], inner(from).octets(), inner(to).octets()];
    let mut packet = header.concat();
    let checksum = Sum::ZERO.add(&packet).checksum();
    packet[10..12].copy_from_slice(&checksum.to_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// Reads a frame as egress does: a vnet header and a superframe.
pub fn superframe(frame: &[u8]) -> Superframe<'_> {
    let (vnet, packet) = vnet::Header::ref_from_prefix(frame).expect("a vnet header");
    let overlay = Overlay::parse(Link::Ip, packet, 1).expect("a packet");
    match Offload::parse(vnet, packet, &overlay).expect("an offload") {
        Offload::Segment(gso) => Superframe::new(gso, packet),
        other => panic!("no superframe: {other:?}"),
    }
}
