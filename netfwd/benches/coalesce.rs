//! The coalescer beside tun-rs' GRO: nanoseconds per packet over batches of 256 packets with 1400 bytes each.
//!
//! All get the same packets in the same order, in one process, round by round in turn; the figures are medians.
//!
//! *With verification*: netfwd vets each inner packet (IPv4 header, TCP or UDP checksum) and coalesces it, which is what
//! tun-rs does with inner packets too. tun-rs verifies what it merges and nothing else, so with 256 flows of one packet
//! each it verifies nothing, and the comparison favours it. A further row is the whole of `Ingress::run`: the metadata
//! record, the table, congestion marks, nested tunnels, inner sources and the traffic counters besides;
//! once with verification and once, as in service, of what XDP has verified.
//!
//! *Without*: netfwd coalesces packets that XDP has verified. tun-rs cannot be told to trust its input, so from its
//! figure a checksum pass over the packets that are merged is taken off. Its own AVX2 pass is not exported; netfwd's
//! portable one, which takes longer, stands in, and so takes off too much rather than too little.
//!
//! tun-rs copies each packet and each payload; that is its way of coalescing and is not taken off. Each of its buffers has
//! room for a superframe, since any may become one; restoring them between rounds is outside of the measured time. Its hash maps start each round empty but with their memory.
//!
//! Below, the checksum alone: the portable sum beside the one that user space uses, from the first-level cache, from
//! the second and from memory.

use std::hint::black_box;
use std::io;
use std::net::IpAddr;
use std::time::Instant;

use netfwd::datapath::gro::{Coalescer, GroConfig};
use netfwd::datapath::ingress::{Ingress, Origin, Received};
use netfwd::datapath::packet::{Checksums, InnerPacket, Link, TunnelIndex};
use netfwd::datapath::seam::{FrameSink, OverlayFrame};
use netfwd::datapath::stats::Counters;
use netfwd::datapath::sum::sum;
use netfwd::datapath::table::{ForwardingTable, Tunnel, VerifyPolicy};
use netfwd::datapath::vet::vet;
use netfwd_common::abi::{ChecksumVerdict, METADATA_MAGIC, METADATA_VERSION, Metadata, TunnelKind};
use netfwd_common::checksum::Sum;
use tun_rs::{GROTable, VIRTIO_NET_HDR_LEN};
use zerocopy::IntoBytes;

#[path = "../tests/packets/mod.rs"]
mod packets;
use packets::*;

const BATCH: usize = 256;
const PAYLOAD: usize = 1400;
const ROUNDS: usize = 31;
/// Batches per round, so that a round is long against the clock.
const REPEAT: usize = 20;

/// Looks at every slice's length, as a `writev` would at least have to.
#[derive(Default)]
struct NullSink {
    bytes: usize,
    frames: usize,
}

impl FrameSink for NullSink {
    fn write(&mut self, frame: &OverlayFrame<'_>) -> io::Result<()> {
        self.bytes += frame.slices.iter().map(|slice| slice.len()).sum::<usize>();
        self.frames += 1;
        Ok(())
    }
}

/// `flows` flows, interleaved packet by packet.
fn batch(flows: u16, udp: bool) -> Vec<Vec<u8>> {
    let mut states: Vec<_> = (0..flows)
        .map(|n| {
            let options = if udp { Vec::new() } else { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] };
            Packet { udp, ports: (1000 + n, 80), tcp_options: options, ..Packet::default() }
        })
        .collect();
    let next = |n: usize| {
        let state = &mut states[n % usize::from(flows)];
        *state = state.following(pattern(PAYLOAD, n as u32));
        state.build()
    };
    (0..BATCH).map(next).collect()
}

/// One measured subject: runs `REPEAT` batches and returns nanoseconds per packet.
struct Subject<'a> {
    name: &'static str,
    run: Box<dyn FnMut() -> f64 + 'a>,
    samples: Vec<f64>,
}

impl<'a> Subject<'a> {
    fn new(name: &'static str, run: impl FnMut() -> f64 + 'a) -> Self {
        Self { name, run: Box::new(run), samples: Vec::new() }
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    fn median(&self) -> f64 {
        self.sorted()[self.samples.len() / 2]
    }

    /// The quietest round: what is left when nothing else runs on the machine.
    fn best(&self) -> f64 {
        self.sorted()[0]
    }
}

fn per_packet(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64 / (BATCH * REPEAT) as f64
}

fn coalesce_only(packets: &[Vec<u8>]) -> impl FnMut() -> f64 {
    let (mut coalescer, counters) = (Coalescer::new(&GroConfig::default()), Counters::new(1));
    let mut sink = NullSink::default();
    move || {
        let inner: Vec<_> = packets.iter().map(|bytes| inner(bytes, Checksums::Verified)).collect();
        let start = Instant::now();
        for _ in 0..REPEAT {
            coalescer.coalesce(black_box(&inner), &counters, &mut sink);
        }
        let time = per_packet(start);
        black_box((sink.bytes, sink.frames));
        time
    }
}

/// Vets and coalesces inner packets of which nothing is known.
fn verify_and_coalesce(packets: &[Vec<u8>]) -> impl FnMut() -> f64 {
    let (mut coalescer, counters) = (Coalescer::new(&GroConfig::default()), Counters::new(1));
    let (policy, mut sink) = (VerifyPolicy::default(), NullSink::default());
    let mut buffers = packets.to_vec();
    move || {
        let start = Instant::now();
        for _ in 0..REPEAT {
            let mut batch = Vec::with_capacity(BATCH);
            coalescer.begin();
            for bytes in black_box(&mut buffers) {
                let vetted = vet(bytes, Link::Ip, ChecksumVerdict::Unverified, policy).expect("the packet is intact");
                batch.push(inner(&bytes[..vetted.len], vetted.checksums));
                coalescer.add(&batch, &counters);
            }
            coalescer.finish(&batch, &counters, &mut sink);
        }
        let time = per_packet(start);
        black_box((sink.bytes, sink.frames));
        time
    }
}

/// The whole way in, of frames whose inner checksums XDP has verified, or not looked at.
fn whole_ingress(packets: &[Vec<u8>], verdict: ChecksumVerdict) -> impl FnMut() -> f64 {
    let mut ingress = Ingress::new(&GroConfig::default(), VerifyPolicy::default());
    let (table, counters, mut sink) = (table(), Counters::new(1), NullSink::default());
    let mut buffers: Vec<_> = packets.iter().map(|packet| (packet.clone(), metadata(packet.len(), verdict))).collect();
    move || {
        let start = Instant::now();
        for _ in 0..REPEAT {
            let batch = black_box(&mut buffers).iter_mut();
            let batch = batch.map(|(bytes, metadata)| Received { bytes, origin: Origin::Xdp { metadata: *metadata } });
            ingress.run(&table, &mut |_, _, _| {}, &mut |_| {}, &counters, batch, &mut sink);
        }
        let time = per_packet(start);
        black_box((sink.bytes, sink.frames));
        time
    }
}

fn metadata(len: usize, verdict: ChecksumVerdict) -> Option<[u8; 16]> {
    let record = Metadata {
        magic: METADATA_MAGIC,
        version: METADATA_VERSION,
        checksums: verdict as u8,
        tunnel: 0,
        remote: 0,
        inner_offset: 0,
        inner_len: len as u16,
        ecn: 0,
        message: 0,
        flow_hash: 0,
    };
    record.as_bytes().try_into().ok()
}

fn table() -> ForwardingTable {
    let local = IpAddr::from([192, 0, 2, 1]);
    ForwardingTable::new(vec![Tunnel {
        name: "bench".to_owned(),
        kind: TunnelKind::VxlanGpe,
        vni: 7,
        local,
        port: 4790,
        remotes: vec![IpAddr::from([192, 0, 2, 2])],
        learning: false,
        static_macs: Vec::new(),
        routes: Vec::new(),
        mtu: 1450,
        udp_checksum: false,
        udp6_zero_checksum_rx: false,
        udp6_zero_checksum_tx: false,
        dscp: 0,
    }])
}

fn inner(bytes: &[u8], checksums: Checksums) -> InnerPacket<'_> {
    InnerPacket { tunnel: TunnelIndex(0), link: Link::Ip, bytes, checksums }
}

fn tun_rs(packets: &[Vec<u8>]) -> impl FnMut() -> f64 {
    let mut table = GROTable::new();
    let framed: Vec<_> = packets.iter().map(|packet| [&[0; VIRTIO_NET_HDR_LEN][..], packet].concat()).collect();
    let mut buffers: Vec<Vec<u8>> = (0..packets.len()).map(|_| Vec::with_capacity(1 << 17)).collect();
    move || {
        let mut nanoseconds = 0;
        for _ in 0..REPEAT {
            for (buffer, packet) in buffers.iter_mut().zip(&framed) {
                buffer.clear();
                buffer.extend_from_slice(packet);
            }
            let start = Instant::now();
            let merged = table.apply_gro(black_box(&mut buffers), VIRTIO_NET_HDR_LEN, true);
            nanoseconds += start.elapsed().as_nanos();
            merged.expect("tun-rs accepts the batch");
        }
        nanoseconds as f64 / (BATCH * REPEAT) as f64
    }
}

/// A checksum pass over what tun-rs verifies: every packet's L4 bytes.
fn checksum_pass(packets: &[Vec<u8>]) -> impl FnMut() -> f64 {
    move || {
        let start = Instant::now();
        for _ in 0..REPEAT {
            for packet in packets {
                black_box(Sum::ZERO.add(&black_box(packet)[20..]).is_valid());
            }
        }
        per_packet(start)
    }
}

fn measure(case: &str, packets: &[Vec<u8>]) {
    let mut subjects = [
        Subject::new("netfwd", coalesce_only(packets)),
        Subject::new("netfwd, verifying", verify_and_coalesce(packets)),
        Subject::new("tun-rs, verifying", tun_rs(packets)),
        Subject::new("checksum pass", checksum_pass(packets)),
        Subject::new("netfwd, whole ingress", whole_ingress(packets, ChecksumVerdict::Unverified)),
        Subject::new("netfwd, whole ingress of what XDP verified", whole_ingress(packets, ChecksumVerdict::Verified)),
    ];
    take_turns(&mut subjects);
    let [trusting, verifying, peer, pass, whole, verified] = [0, 1, 2, 3, 4, 5].map(|n| subjects[n].median());
    let peer_trusting = peer - pass * merged_share(packets);
    eprintln!(
        "{case:<14} {trusting:>8.1} {peer_trusting:>12.1} {:>7.1}× {verifying:>14.1} {peer:>10.1} {:>7.1}× \
         {whole:>14.1} {:>7.1}× {verified:>13.1}",
        peer_trusting / trusting,
        peer / verifying,
        peer / whole,
    );
    let best = subjects.iter().map(|subject| format!("{} {:.1}", subject.name, subject.best())).collect::<Vec<_>>();
    eprintln!("{:<14} {} frames; quietest round: {}", "", frames(packets), best.join(", "));
    for subject in &subjects {
        report(case, subject.name, subject.median());
    }
    report(case, "tun-rs, checksum pass taken off", peer_trusting);
}

/// Round by round, after two to warm up.
fn take_turns(subjects: &mut [Subject<'_>]) {
    for round in 0..ROUNDS + 2 {
        for subject in &mut *subjects {
            let sample = (subject.run)();
            if round >= 2 {
                subject.samples.push(sample);
            }
        }
    }
}

/// The checksum alone, over `count` packets that lie one behind the other.
fn measure_sums(case: &str, count: usize) {
    let packets: Vec<_> = (0..count).map(|n| pattern(PAYLOAD + 20, n as u32)).collect();
    let mut subjects = [
        Subject::new("portable sum", sum_pass(&packets, |bytes| Sum::ZERO.add(bytes))),
        Subject::new("user-space sum", sum_pass(&packets, sum)),
    ];
    take_turns(&mut subjects);
    let [portable, fast] = [0, 1].map(|n| subjects[n].median());
    eprintln!("{case:<22} {portable:>8.1} {fast:>8.1} {:>7.1}×", portable / fast);
    for subject in &subjects {
        report(case, subject.name, subject.median());
    }
}

fn sum_pass(packets: &[Vec<u8>], sum: impl Fn(&[u8]) -> Sum) -> impl FnMut() -> f64 {
    let turns = (BATCH * REPEAT).div_ceil(packets.len());
    move || {
        let start = Instant::now();
        for _ in 0..turns {
            for packet in packets {
                black_box(sum(black_box(packet)).is_valid());
            }
        }
        start.elapsed().as_nanos() as f64 / (packets.len() * turns) as f64
    }
}

fn report(case: &str, subject: &str, value: f64) {
    let line = serde_json::json!({
        "bench": "coalesce", "case": case, "subject": subject,
        "value": (value * 10.0).round() / 10.0, "unit": "ns/packet",
    });
    println!("{line}");
}

/// The share of packets that end up in superframes: all of them, or none where each flow has one packet.
fn merged_share(packets: &[Vec<u8>]) -> f64 {
    if frames(packets) < packets.len() { 1.0 } else { 0.0 }
}

/// Frames that leave the coalescer for one batch.
fn frames(packets: &[Vec<u8>]) -> usize {
    let inner: Vec<_> = packets.iter().map(|bytes| inner(bytes, Checksums::Verified)).collect();
    let (counters, mut sink) = (Counters::new(1), NullSink::default());
    Coalescer::new(&GroConfig::default()).coalesce(&inner, &counters, &mut sink);
    sink.frames
}

fn main() {
    eprintln!("ns per packet, batches of {BATCH} × {PAYLOAD} bytes, median of {ROUNDS} rounds");
    eprintln!("tun-rs verifies what it merges: `tun-rs*` is its figure less a checksum pass over the merged packets");
    eprintln!(
        "{:<14} {:>8} {:>12} {:>8} {:>14} {:>10} {:>8} {:>14} {:>8} {:>13}",
        "case", "netfwd", "tun-rs*", "", "netfwd+verify", "tun-rs", "", "whole+verify", "", "whole ingress"
    );
    for udp in [false, true] {
        for flows in [1, 16, 256] {
            let packets = batch(flows, udp);
            let case = format!("{} {flows} flow{}", if udp { "udp" } else { "tcp" }, if flows == 1 { "" } else { "s" });
            measure(&case, &packets);
        }
    }
    eprintln!("\n{:<22} {:>8} {:>8}", "sum of 1420 bytes", "portable", "netfwd");
    for (case, count) in
        [("sum, first-level cache", 1), ("sum, second-level cache", BATCH), ("sum, memory", 64 * BATCH)]
    {
        measure_sums(case, count);
    }
}
