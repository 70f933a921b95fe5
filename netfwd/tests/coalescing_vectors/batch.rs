//! A batch of packets on its way through the coalescer.

use netfwd::datapath::gro::{Coalescer, GroConfig};
use netfwd::datapath::packet::{Checksums, InnerPacket, Link, TunnelIndex};
use netfwd::datapath::stats::Counters;
use netfwd_common::reason::FlushReason;

use crate::packets::*;

/// One batch through the coalescer.
pub struct Batch {
    pub config: GroConfig,
    pub ethernet: bool,
    pub packets: Vec<(u16, Vec<u8>, Checksums)>,
    pub sink: Sink,
    pub counters: Counters,
}

impl Batch {
    pub fn new() -> Self {
        Self {
            config: GroConfig::default(),
            ethernet: false,
            packets: Vec::new(),
            sink: Sink::default(),
            counters: Counters::new(4),
        }
    }

    pub fn of(packets: impl IntoIterator<Item = Packet>) -> Self {
        packets.into_iter().fold(Self::new(), |batch, packet| batch.and(packet.build()))
    }

    pub fn and(self, bytes: Vec<u8>) -> Self {
        self.and_tagged(0, bytes, Checksums::Verified)
    }

    pub fn and_tagged(mut self, tunnel: u16, bytes: Vec<u8>, checksums: Checksums) -> Self {
        self.packets.push((tunnel, bytes, checksums));
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut GroConfig)) -> Self {
        change(&mut self.config);
        self
    }

    pub fn on_tap(mut self) -> Self {
        self.ethernet = true;
        self
    }

    /// Runs it, checks that it re-splits into what came in, in order, and returns the packets per frame.
    pub fn run(&mut self) -> Vec<usize> {
        let frames = self.run_unchecked();
        let mut out: Vec<(TunnelIndex, Vec<u8>)> = Vec::new();
        for frame in &self.sink.frames {
            out.extend(resplit(frame, self.ethernet).into_iter().map(|packet| (frame.tunnel, packet)));
        }
        assert_eq!(out.len(), self.packets.len(), "every packet comes out exactly once");
        let mut expected: Vec<_> = self.packets.iter().map(|(t, bytes, _)| (TunnelIndex(*t), bytes.clone())).collect();
        let clean = |list: &mut Vec<(TunnelIndex, Vec<u8>)>, ethernet| {
            for (_, packet) in list.iter_mut() {
                if packet.len() >= 20 && ones_sum(&[&packet[..20]]) == 0xffff {
                    *packet = without_atomic_id(packet, ethernet);
                }
            }
            list.sort();
        };
        if !self.ethernet {
            clean(&mut out, false);
            clean(&mut expected, false);
            assert_eq!(out, expected);
        }
        frames
    }

    pub fn run_unchecked(&mut self) -> Vec<usize> {
        let link = if self.ethernet { Link::Ethernet } else { Link::Ip };
        let batch: Vec<_> = self
            .packets
            .iter()
            .map(|(tunnel, bytes, checksums)| InnerPacket {
                tunnel: TunnelIndex(*tunnel),
                link,
                bytes,
                checksums: *checksums,
            })
            .collect();
        Coalescer::new(&self.config).coalesce(&batch, &self.counters, &mut self.sink);
        self.sink.frames.iter().map(|frame| frame.packets).collect()
    }

    pub fn reason(&self, reason: FlushReason) -> u64 {
        self.counters.gro_flush[reason.index()].get()
    }
}

/// `count` consecutive segments of `len` bytes.
pub fn train(first: Packet, count: usize, len: usize) -> Vec<Packet> {
    let mut train = vec![first.with_payload(pattern(len, 0))];
    for n in 1..count {
        let next = train[n - 1].following(pattern(len, n as u32));
        train.push(next);
    }
    train
}

/// Three segments in which `change` alters the middle one: it and what follows may not join.
pub fn change_in_mid_run(first: Packet, change: impl Fn(&mut Packet)) -> Batch {
    let mut train = train(first, 4, 100);
    for packet in &mut train[2..] {
        change(packet);
    }
    Batch::of(train)
}
