//! What nobody in his right mind sends: packets, frames, messages and texts that are nearly right.
//!
//! A property test shrinks what it finds but takes its time; here the generator is a few multiplications, so that ten million
//! packets or frames are a matter of minutes even with the assertions and overflow checks of the `dev` profile, which are
//! most of what is tested: that is what the slow tests do (`cargo xtask test --slow`). The rest is that everything that goes
//! in comes out or is counted, once. `NETFWD_CASES` says how many the other tests take.

mod packets;
mod wireguard;

use std::io;
use std::net::IpAddr;
use std::path::Path;

use netfwd::config::Config;
use netfwd::control::uapi::request::Reader;
use netfwd::datapath::egress::{Egress, Surroundings};
use netfwd::datapath::fdb::Fdbs;
use netfwd::datapath::gro::GroConfig;
use netfwd::datapath::ingress::{Ingress, Origin, Received};
use netfwd::datapath::packet::{RemoteIndex, TunnelIndex};
use netfwd::datapath::sealed::SealedEgress;
use netfwd::datapath::seam::{DatagramSink, FrameSink, OverlayFrame, SendFailure, Transmit};
use netfwd::datapath::stats::{Counters, Direction};
use netfwd::datapath::table::{ForwardingTable, Tunnel, VerifyPolicy, address_bytes};
use netfwd::datapath::tunnel::decap::SocketOrigin;
use netfwd::datapath::tunnel::wireguard::AllowedIpUpdate;
use netfwd_common::abi::{METADATA_MAGIC, METADATA_VERSION, Metadata, TunnelKind, Verify};
use netfwd_common::reason::{DropReason, Stage};
use packets::*;
use wireguard::{End, Wire};
use zerocopy::IntoBytes;

/// So many of each kind.
fn cases() -> usize {
    std::env::var("NETFWD_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(20_000)
}

/// How many the slow tests take.
const MANY: usize = 10_000_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Numbers that lengths and offsets go wrong at.
    fn odd_byte(&mut self, byte: u8) -> u8 {
        match self.below(6) {
            0 => 0,
            1 => 0xff,
            2 => byte.wrapping_add(1),
            3 => byte.wrapping_sub(1),
            4 => byte ^ 1 << self.below(8),
            _ => self.next() as u8,
        }
    }

    /// Changes up to three bytes, mostly of the first `head`, and now and then the length.
    fn spoil(&mut self, bytes: &mut Vec<u8>, head: usize) {
        for _ in 0..self.below(4) {
            let within = if self.one_in(4) { bytes.len() } else { head.min(bytes.len()) };
            if within > 0 {
                let at = self.below(within);
                bytes[at] = self.odd_byte(bytes[at]);
            }
        }
        match self.below(8) {
            0 => bytes.truncate(self.below(bytes.len() + 1)),
            1 => bytes.resize(bytes.len() + self.below(40), 0),
            _ => {}
        }
    }
}

const LOCAL: [u8; 4] = [192, 0, 2, 1];
const REMOTE: [u8; 4] = [192, 0, 2, 2];
const KINDS: [(TunnelKind, u16); 3] =
    [(TunnelKind::Vxlan, 4789), (TunnelKind::VxlanGpe, 4790), (TunnelKind::WireGuard, 51820)];

fn table() -> ForwardingTable {
    let tunnel = |(kind, port): (TunnelKind, u16)| Tunnel {
        name: kind.as_str().into(),
        kind,
        vni: if kind == TunnelKind::WireGuard { 0 } else { 7 },
        local: LOCAL.into(),
        port,
        remotes: if kind == TunnelKind::WireGuard { Vec::new() } else { vec![REMOTE.into()] },
        learning: true,
        static_macs: Vec::new(),
        routes: if kind == TunnelKind::VxlanGpe {
            ["10.0.0.0/8", "fd00::/8"].map(|prefix| (prefix.parse().expect("a prefix"), RemoteIndex(0))).into()
        } else {
            Vec::new()
        },
        mtu: 1450,
        udp_checksum: true,
        udp6_zero_checksum_rx: false,
        udp6_zero_checksum_tx: false,
        dscp: 0,
    };
    ForwardingTable::new(KINDS.map(tunnel).into())
}

/// Inner packets of a few flows, one after the other.
struct Flows(Vec<Packet>);

impl Flows {
    fn new() -> Self {
        let flow = |n: u16| Packet {
            v6: n & 1 != 0,
            udp: n & 2 != 0,
            ports: (1000 + n / 4, 2000),
            sequence: u32::MAX - 3000,
            tcp_options: if n & 4 != 0 { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { Vec::new() },
            payload: pattern(60, n.into()),
            ..Packet::default()
        };
        Self((0..8).map(flow).collect())
    }

    fn next(&mut self, random: &mut Random) -> Vec<u8> {
        let flow = random.below(8);
        let len = if random.one_in(8) { random.below(80) } else { 60 };
        self.0[flow] = self.0[flow].following(pattern(len, random.next() as u32));
        if random.one_in(16) {
            self.0[flow].flags = random.next() as u8 | ACK;
        }
        let packet = self.0[flow].build();
        self.0[flow].flags = ACK;
        packet
    }
}

/// A whole frame around a tunnel's payload, from the outer Ethernet header on.
fn outer(port: u16, payload: &[u8]) -> Vec<u8> {
    let udp_len = (8 + payload.len()) as u16;
    let mut ip = [&[0x45, 0], (20 + udp_len).to_be_bytes().as_slice(), &[0, 0, 0, 0, 64, 17, 0, 0]].concat();
    ip.extend([REMOTE, LOCAL].concat());
    fix_ipv4_checksum(&mut ip);
    let udp = [50_000u16.to_be_bytes(), port.to_be_bytes(), udp_len.to_be_bytes(), [0, 0]].concat();
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0], ip.as_slice(), &udp, payload].concat()
}

fn origin(port: u16, ecn: u8) -> SocketOrigin {
    let [local, remote] = [LOCAL, REMOTE].map(|address| address_bytes(IpAddr::from(address)));
    SocketOrigin { local, port, remote, remote_port: 50_000, scope: 0, ecn }
}

/// Something that arrives, at first right and then spoilt.
fn arrival(random: &mut Random, flows: &mut Flows) -> (Vec<u8>, Origin) {
    let (tunnel, mut inner) = (random.below(3), flows.next(random));
    if random.one_in(3) {
        random.spoil(&mut inner, 64);
    }
    let port = KINDS[tunnel].1;
    let mut payload = match tunnel {
        0 if inner.is_empty() => Vec::new(),
        0 => [&[8, 0, 0, 0, 0, 0, 7, 0], ethernet(&inner, 1, &[7][..random.below(2)]).as_slice()].concat(),
        1 => {
            let next = if inner.first().is_some_and(|byte| byte >> 4 == 6) { 2 } else { 1 };
            [&[12, 0, 0, next, 0, 0, 7, 0], inner.as_slice()].concat()
        }
        _ => {
            let kind = [1, 2, 3, 4, 4, 4][random.below(6)];
            let mut message = vec![0; [148, 92, 64, 16 + 16 * random.below(8)][usize::from(kind) - 1]];
            message[0] = kind;
            message
        }
    };
    let ecn = random.below(4) as u8;
    match random.below(5) {
        0 if tunnel != 2 => {
            random.spoil(&mut payload, 60);
            (payload, Origin::Socket(origin(port, ecn)))
        }
        1 => (inner, Origin::Session(TunnelIndex(2))),
        2 => {
            let mut frame = outer(port, &payload);
            random.spoil(&mut frame, 120);
            (frame, Origin::Xdp { metadata: None })
        }
        _ => {
            let frame = outer(port, &payload);
            let back = if tunnel == 2 { 0 } else { 8 };
            let record = Metadata {
                magic: METADATA_MAGIC,
                version: METADATA_VERSION,
                checksums: random.below(6) as u8,
                tunnel: tunnel as u16,
                remote: 0,
                inner_offset: 42 + back,
                inner_len: (payload.len() as u16).saturating_sub(back),
                ecn,
                message: if tunnel == 2 { payload[0] } else { 0 },
                flow_hash: 0,
            };
            let mut record = record.as_bytes().to_vec();
            let len = record.len();
            for _ in 0..random.below(3) {
                let at = random.below(len);
                record[at] = random.odd_byte(record[at]);
            }
            (frame, Origin::Xdp { metadata: record.try_into().ok() })
        }
    }
}

/// Takes now this and refuses now that; knows how many packets it was given.
struct Counting<'a> {
    random: &'a mut Random,
    packets: u64,
}

impl FrameSink for Counting<'_> {
    fn write(&mut self, frame: &OverlayFrame<'_>) -> io::Result<()> {
        if self.random.one_in(10) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.packets += frame.packets as u64;
        if frame.packets > 1 {
            let bytes = frame.slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let (packets, slices) = (frame.packets, frame.slices.len());
            // It also checks everything that the kernel would.
            let written = Written { tunnel: frame.tunnel, packets, bytes, slices };
            assert_eq!(resplit(&written, frame.tunnel == TunnelIndex(0)).len(), frame.packets);
        }
        Ok(())
    }
}

fn drops(counters: &Counters, direction: Direction) -> u64 {
    let one_stage = |stage| DropReason::ALL.iter().map(move |reason| counters.drops.get(direction, stage, *reason));
    Stage::ALL.into_iter().flat_map(one_stage).sum()
}

#[test]
fn whatever_arrives_is_delivered_or_counted_once() {
    take_in(cases(), 1);
}

fn take_in(mut left: usize, seed: u64) {
    let (table, mut random, mut flows) = (table(), Random(seed), Flows::new());
    let mut ingress = Ingress::new(&GroConfig::default(), VerifyPolicy::default());
    let mut sink_random = Random(seed + 1);
    while left > 0 {
        let count = (1 + random.below(300)).min(left);
        left -= count;
        let mut arrivals: Vec<_> =
            (0..count).map(|_| (!random.one_in(20)).then(|| arrival(&mut random, &mut flows))).collect();
        let came = arrivals.iter().flatten().count() as u64;
        let verify = [Verify::Drop, Verify::Count, Verify::Off][random.below(3)];
        // A partial checksum that is accepted is a checksum that is computed: not for what is to be cut byte by byte.
        ingress.set_policy(VerifyPolicy { verify, accept_partial: random.one_in(4) });
        let (counters, mut messages) = (Counters::new(3), 0);
        let mut sink = Counting { random: &mut sink_random, packets: 0 };
        let mut looks = arrivals.iter_mut().peekable();
        while looks.peek().is_some() {
            let received = std::iter::from_fn(|| {
                let (bytes, origin) = looks.next()?.as_mut()?;
                Some(Received { bytes, origin: *origin })
            });
            ingress.run(&table, &mut |_, _, _| {}, &mut |_| messages += 1, &counters, received, &mut sink);
        }
        assert_eq!(sink.packets + messages + drops(&counters, Direction::Ingress), came);
    }
}

/// Checks that what it is given is what one call can send.
#[derive(Default)]
struct Strict {
    runs: u64,
}

impl DatagramSink for Strict {
    fn send(&mut self, transmit: &Transmit<'_>) -> Result<(), SendFailure> {
        let bytes: usize = transmit.slices.iter().map(|slice| slice.len()).sum();
        assert!((1..=64).contains(&transmit.datagrams) && bytes <= 65_507, "{transmit:?}");
        assert_eq!(bytes.div_ceil(transmit.segment_size), transmit.datagrams, "{transmit:?}");
        self.runs += 1;
        Ok(())
    }
}

/// A frame as a TUN or TAP would hand it over, spoilt.
fn frame(random: &mut Random, flows: &mut Flows, is_tap: bool) -> Vec<u8> {
    let mut packet = flows.next(random);
    if random.one_in(64) {
        // Long enough for every bound; the lengths in it are wrong then.
        packet.resize(random.below(70_000).max(packet.len()), 9);
    }
    let (v6, udp) = (packet[0] >> 4 == 6, packet[if packet[0] >> 4 == 6 { 6 } else { 9 }] == 17);
    let link = if is_tap { 14 } else { 0 };
    let l4 = link + if v6 { 40 } else { 20 };
    let packet = if is_tap { ethernet(&packet, 1, &[]) } else { packet };
    let (gso_type, offset) = match (udp, v6) {
        (true, _) => (5u8, 6u16),
        (false, false) => (1, 16),
        (false, true) => (4, 16),
    };
    let gso_type = if random.one_in(3) { 0 } else { gso_type | if random.one_in(4) { 0x80 } else { 0 } };
    let gso_size = if random.one_in(4) { random.next() as u16 } else { 1 + random.below(70) as u16 };
    let words = [0, gso_size, l4 as u16, offset].map(u16::to_ne_bytes).concat();
    let mut frame = [&[u8::from(!random.one_in(6)), gso_type], words.as_slice(), &packet].concat();
    random.spoil(&mut frame, 90);
    frame
}

#[test]
fn whatever_a_device_hands_over_is_sent_or_counted_once() {
    send_out(cases(), 3);
}

fn send_out(count: usize, seed: u64) {
    let (table, mut random, mut flows) = (table(), Random(seed), Flows::new());
    let (fdbs, counters, mut egress) = (Fdbs::new(&table, 1), Counters::new(3), Egress::new(2));
    for _ in 0..count {
        let tunnel = random.below(2);
        let mut frame = frame(&mut random, &mut flows, tunnel == 0);
        let (mut sink, before) = (Strict::default(), drops(&counters, Direction::Egress));
        let around = Surroundings { table: &table, fdbs: &fdbs, counters: &counters, now_seconds: 1 };
        egress.run(&around, TunnelIndex(tunnel as u16), &mut frame, &mut sink);
        assert_eq!(drops(&counters, Direction::Egress) - before, u64::from(sink.runs == 0), "{frame:02x?}");
    }
}

#[test]
fn whatever_a_wireguard_device_hands_over_is_sealed_or_counted_once() {
    let [end, peer] = End::connected();
    end.know(&peer, |update| {
        let everything = ["0.0.0.0/0", "::/0"].map(|prefix| prefix.parse().expect("a prefix"));
        update.allowed_ips = everything.map(|prefix| AllowedIpUpdate { prefix, remove: false }).into();
    });
    let (mut random, mut flows, mut egress) = (Random(4), Flows::new(), SealedEgress::new());
    let (counters, mut sealed) = (Counters::new(1), 0);
    for _ in 0..cases() / 4 {
        let mut frame = frame(&mut random, &mut flows, false);
        let (mut sink, before) = (Strict::default(), drops(&counters, Direction::Egress));
        egress.run(&end.device, &counters, &mut frame, &mut sink);
        assert_eq!(drops(&counters, Direction::Egress) - before, u64::from(sink.runs == 0), "{frame:02x?}");
        sealed += usize::from(sink.runs > 0);
    }
    assert!(sealed > cases() / 20, "{sealed} were sealed: most are nearly right");
}

/// Every message of the protocol, cut at every byte and with every bit of its first bytes flipped; and what was sealed is
/// opened as it was or not at all.
#[test]
fn no_spoilt_wireguard_message_opens() {
    let mut random = Random(5);
    let [mut a, mut b] = End::connected();
    let stranger = End::new(0);
    for _ in 0..cases() / 200 {
        let mut wire = Wire::default();
        a.send(&wireguard::packet(random.below(200)), &mut wire).expect("a peer");
        let mut spoilt = Vec::new();
        for sealed in wire.datagrams() {
            spoilt.extend((0..sealed.len()).map(|len| sealed[..len].to_vec()));
            spoilt.extend((0..128).map(|bit| {
                let mut flipped = sealed.to_vec();
                flipped[bit / 8 % sealed.len()] ^= 1 << (bit % 8);
                flipped
            }));
        }
        for kind in 1..4u8 {
            let len = [148, 92, 64][usize::from(kind) - 1];
            spoilt.extend((0..len + 2).map(|len| {
                let mut message: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
                message.iter_mut().zip([kind, 0, 0, 0]).for_each(|(byte, value)| *byte = value);
                message
            }));
        }
        for message in spoilt {
            let mut one = Wire::default();
            one.put_message(&message);
            b.receive(&mut one, stranger.address, |packet| panic!("{packet:02x?} came out"));
            b.work(&mut Wire::default());
        }
    }
}

/// Requests as `wg` makes them, with lines cut, doubled, swapped and spoilt.
#[test]
fn no_request_text_makes_the_reader_panic() {
    let key = "a0".repeat(32);
    let lines = [
        "set=1".to_owned(),
        "get=1".to_owned(),
        String::new(),
        format!("private_key={key}"),
        format!("public_key={key}"),
        format!("preshared_key={key}"),
        "listen_port=51820".to_owned(),
        "fwmark=4294967295".to_owned(),
        "replace_peers=true".to_owned(),
        "endpoint=[fe80::1%eth0]:51820".to_owned(),
        "endpoint=192.0.2.1:51820".to_owned(),
        "persistent_keepalive_interval=25".to_owned(),
        "replace_allowed_ips=true".to_owned(),
        "allowed_ip=-10.0.0.0/8".to_owned(),
        "allowed_ip=fd00::/8".to_owned(),
        "protocol_version=1".to_owned(),
        "update_only=true".to_owned(),
        "remove=true".to_owned(),
    ];
    let mut random = Random(6);
    let mut reader = Reader::new(|_| Some(1));
    for _ in 0..cases() {
        let mut line = lines[random.below(lines.len())].clone().into_bytes();
        if random.one_in(3) {
            let len = line.len();
            random.spoil(&mut line, len);
        }
        let ended = if random.one_in(50) { reader.long_line().is_err() } else { reader.line(&line).is_err() };
        if ended || random.one_in(100) {
            let _ = reader.end(random.one_in(2));
            reader = Reader::new(|_| Some(1));
        }
    }
}

/// Files with every construct, spoilt.
#[test]
fn no_file_makes_the_reading_panic() {
    let right = "[metrics]\nlisten = \"127.0.0.1:9477\"\n[[underlay]]\ninterface = \"eth0\"\nqueues = 0xff\nxdp = \"off\"\n\
                 [gro]\nudp_exclude_ports = [53, 443]\n[[tunnel]]\nname = \"vx7\"\nkind = \"vxlan\"\nvni = 7\n\
                 local = \"10.9.0.2\"\nport = 4789\nremotes = [\"10.9.0.1\"]\naddresses = [\"10.10.0.2/24\"]\nmtu = 1_450\n\
                 [[tunnel.fdb]]\nmac = \"02:00:00:00:00:01\"\nremote = \"10.9.0.1\"\n[[tunnel]]\nname = \"gpe8\"\n\
                 kind = \"vxlan-gpe\"\nvni = 8\nlocal = \"fd00::2\"\nremotes = [\"fd00::1\"]\n[[tunnel.route]]\n\
                 prefix = \"10.20.0.0/16\"\nremote = \"fd00::1\"\n[[tunnel]]\nname = \"wg0\"\nkind = \"wireguard\"\n\
                 private_key_file = \"no/such\"\n[[tunnel.peer]]\npublic_key = \"xTIB\"\nendpoint = \"a.example:1\"\n\
                 allowed_ips = [\"10.0.0.0/8\"]\npersistent_keepalive = \"off\"\n";
    let mut random = Random(7);
    for _ in 0..cases() / 50 {
        let mut bytes = right.as_bytes().to_vec();
        let len = bytes.len();
        random.spoil(&mut bytes, len);
        if random.one_in(3) {
            let (from, to) = (random.below(bytes.len() + 1), random.below(bytes.len() + 1));
            bytes.copy_within(from.min(to)..from.max(to), 0);
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Err(errors) = Config::parse(&text, Path::new("gw.toml")) {
            assert!(errors.to_string().lines().all(|line| line.starts_with("gw.toml:")), "{errors}");
        }
    }
}

/// Minutes each: only `cargo xtask test --slow` runs what is in a module of this name.
mod slow {
    use super::*;

    #[test]
    fn ten_million_arrivals_are_delivered_or_counted_once() {
        take_in(MANY, 8);
    }

    #[test]
    fn ten_million_frames_are_sent_or_counted_once() {
        send_out(MANY, 10);
    }
}
