//! Two WireGuard devices that share memory instead of a wire, for tests and benchmarks.
#![allow(dead_code)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use netfwd::datapath::offload::Offload;
use netfwd::datapath::overlay::Overlay;
use netfwd::datapath::packet::{Link, TunnelIndex};
use netfwd::datapath::segment::Superframe;
use netfwd::datapath::stats::Counters;
use netfwd::datapath::table::address_bytes;
use netfwd::datapath::tunnel::decap::{SealedMessage, SocketOrigin};
use netfwd::datapath::tunnel::wireguard::{
    AllowedIpUpdate, Content, Device, DeviceUpdate, Handshakes, Inner, Lanes, Now, Opener, Outgoing, PeerUpdate,
    PrivateKey, QueueReceiver, Sealed, Sealer, queue,
};
use netfwd_common::reason::DropReason;
use netfwd_common::wire::vnet;
use netfwd_common::wire::wireguard;
use zerocopy::FromBytes;

/// The inner destination of all packets, and their source.
pub const INNER: [&str; 2] = ["10.0.0.1", "10.0.0.2"];

/// One end: everything between a socket and a TUN.
pub struct End {
    pub device: Arc<Device>,
    pub queue: QueueReceiver,
    pub opener: Opener,
    pub sealer: Sealer,
    pub handshakes: Handshakes,
    pub counters: Counters,
    pub address: SocketAddr,
    key: PrivateKey,
}

impl End {
    /// End `n`, 0 or 1, without peers.
    pub fn new(n: u8) -> Self {
        let key = PrivateKey::from_bytes([n + 1; 32]);
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
            address: SocketAddr::new(IpAddr::from([192, 0, 2, n + 1]), 51_820),
            key,
        }
    }

    /// Its private key.
    pub fn private_key(&self) -> &PrivateKey {
        &self.key
    }

    /// Makes `other` a peer that has all addresses.
    pub fn know(&self, other: &Self) {
        let allowed_ips = vec![AllowedIpUpdate { prefix: "0.0.0.0/0".parse().unwrap(), remove: false }];
        let peer = PeerUpdate { endpoint: Some(other.address), allowed_ips, ..PeerUpdate::new(other.key.public_key()) };
        self.device.apply(&DeviceUpdate { peers: vec![peer], ..DeviceUpdate::default() });
    }

    /// Two ends with a session.
    pub fn connected() -> [Self; 2] {
        let [mut a, mut b] = [Self::new(0), Self::new(1)];
        a.know(&b);
        b.know(&a);
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
        [a, b]
    }

    /// Seals a packet.
    pub fn send(&mut self, packet: &[u8], wire: &mut Wire) -> Result<Sealed, DropReason> {
        self.seal(Content::Packet(packet), wire).inspect(|_| self.work(wire))
    }

    /// Seals what goes to the other end.
    pub fn seal(&mut self, content: Content<'_>, wire: &mut Wire) -> Result<Sealed, DropReason> {
        let inner = Inner { destination: INNER[1].parse().unwrap(), ecn: 0, content };
        self.sealer.seal(&self.device, &self.counters, &inner, &mut |run| wire.put(run))
    }

    /// Takes all datagrams off the wire as one batch; what comes out goes to `deliver`.
    pub fn receive(&mut self, wire: &mut Wire, from: SocketAddr, mut deliver: impl FnMut(&mut [u8])) {
        let origin = SocketOrigin {
            local: address_bytes(self.address.ip()),
            port: self.address.port(),
            remote: address_bytes(from.ip()),
            remote_port: from.port(),
            ecn: 0,
        };
        let mut batch = wire.datagrams().filter_map(|bytes| {
            let message_type = wireguard::check(bytes).ok()?;
            Some(SealedMessage { tunnel: TunnelIndex(0), message_type, bytes, origin, tolerated: None })
        });
        while let Some(opened) = self.opener.open(&self.device, &self.counters, &mut batch) {
            opened.for_each(&mut deliver);
        }
        drop(batch);
        wire.clear();
    }

    /// The control side's turn.
    pub fn work(&mut self, wire: &mut Wire) {
        let Self { device, queue, handshakes, counters, .. } = self;
        let mut emit = |run: &Outgoing<'_>| wire.put(run);
        handshakes.run_errands(device, counters, Now::read(), &mut emit);
        while let Some(message) = queue.next(Lanes::ALL) {
            handshakes.receive(device, counters, Now::read(), false, &message, &mut emit);
        }
        handshakes.run_errands(device, counters, Now::read(), &mut emit);
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

/// A packet for the other end.
pub fn packet(payload: usize) -> Vec<u8> {
    let [high, low] = (20 + payload as u16).to_be_bytes();
    let mut packet = [[0x45, 0, high, low], [0, 0, 0x40, 0], [64, 253, 0, 0], [10, 0, 0, 1], [10, 0, 0, 2]].concat();
    packet.resize(20 + payload, 7);
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
