//! Coalescing: one batch of inner packets in, as few frames as the rules allow out.
//!
//! The problem: a TUN/TAP write costs microseconds however long the frame is, so forty packets of a flow should be one
//! write. The kernel cuts such a superframe again, and must get exactly the packets that came.
//!
//! Invariants (docs/COALESCING.md has the rules, `tests/coalescing_laws.rs` and `coalescing_order.rs` their
//! proof):
//! - *Re-split law.* Cutting every superframe as the kernel does gives the packets back byte for byte, in flow order.
//! - *No laundering.* Only packets whose checksums are [`Checksums::Verified`](super::packet::Checksums) are merged.
//! - Every packet leaves in exactly one frame, every frame has one seed, and every seed one [`FlushReason`].
//! - Inside a flow, order never changes; between flows, frames leave in the order of their seeds.
//! - Nothing is held past the end of a batch, and nothing is allocated.
//!
//! A run is a chain of packet indices, a superframe the seed's headers rewritten into a small buffer and slices of the
//! packets' payloads where they lie. Since the packets stay untouched, a superframe that the kernel refuses is simply
//! written packet by packet.
//!
//! Deliberately absent: timers that would hold runs open between batches, prepending, and a trait: there is one
//! implementation.

use netfwd_common::reason::FlushReason;
use netfwd_common::wire::tcp::{FIN, PSH};

use super::packet::InnerPacket;
use super::seam::FrameSink;
use super::stats::{Counters, Proto};

mod candidate;
mod common;
mod follow;
mod join;
mod output;
mod pairs;
mod table;
mod tcp;
mod udp;

use candidate::{Alone, Barrier, Candidate, Layout, examine};
use join::Joining;
use pairs::PairBarriers;
use table::FlowTable;
use tcp::end_of_run;

/// Most packets that are looked at together; longer batches are cut.
///
/// It also keeps every gather list (two entries more at most) below the kernel's 1024.
pub const MAX_BATCH: usize = 256;

/// Longest superframe, from its IP header on, for both families.
const MAX_LENGTH: u32 = 65_535;

/// What may be merged.
#[derive(Clone, Debug)]
pub struct GroConfig {
    /// Merge TCP.
    pub tcp: bool,
    /// Merge UDP.
    pub udp: bool,
    /// UDP ports, source or destination, whose datagrams are never merged.
    pub udp_exclude_ports: Vec<u16>,
    /// Merge IPv4 datagrams without a checksum among themselves, although the kernel will give them one.
    pub udp_zero_checksum: bool,
    /// Datagrams per superframe: 64, or 128 where a probe showed that the kernel takes them.
    pub max_udp_segments: u16,
    /// Whether the last datagram of a superframe may be shorter: some kernels refuse that.
    pub udp_short_last: bool,
    /// Secret of the flow hash, drawn at random at start so that senders cannot aim for collisions.
    pub hash_secret: u64,
}

impl Default for GroConfig {
    fn default() -> Self {
        Self {
            tcp: true,
            udp: true,
            udp_exclude_ports: Vec::new(),
            udp_zero_checksum: false,
            max_udp_segments: 64,
            udp_short_last: true,
            hash_secret: 0x5bd1_e995_9d1b_58d3,
        }
    }
}

/// [`GroConfig`] in the form that the hot loop asks.
#[derive(Debug)]
struct Rules {
    tcp: bool,
    udp: bool,
    udp_zero_checksum: bool,
    max_udp_segments: u16,
    udp_short_last: bool,
    hash_secret: u64,
    /// One bit per port; empty when no port is excluded.
    excluded: Box<[u64]>,
}

impl Rules {
    fn new(config: &GroConfig) -> Self {
        let words = if config.udp_exclude_ports.is_empty() { 0 } else { 1 << 10 };
        let mut excluded = vec![0u64; words].into_boxed_slice();
        for port in &config.udp_exclude_ports {
            excluded[usize::from(port >> 6)] |= 1 << (port & 63);
        }
        Self {
            tcp: config.tcp,
            udp: config.udp,
            udp_zero_checksum: config.udp_zero_checksum,
            max_udp_segments: config.max_udp_segments,
            udp_short_last: config.udp_short_last,
            hash_secret: config.hash_secret,
            excluded,
        }
    }

    #[inline]
    fn is_excluded(&self, port: u16) -> bool {
        self.excluded.get(usize::from(port >> 6)).is_some_and(|word| word >> (port & 63) & 1 != 0)
    }
}

/// What becomes one frame.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Index of the seed in the batch.
    first: u16,
    /// Index of the newest packet.
    last: u16,
    /// Packets.
    count: u16,
    proto: Proto,
    /// TCP flags of all its packets together.
    flags: u8,
    /// From the IP header on.
    length: u32,
    /// The seed's.
    layout: Layout,
    /// Payload bytes that all packets but the last carry: the seed's.
    gso_size: u16,
    /// TCP: the sequence number behind its end. UDP: 0.
    next_sequence: u32,
    /// The IPv4 ID behind its newest, where IDs count.
    next_id: u16,
}

impl Run {
    fn alone(position: u16, proto: Proto) -> Self {
        Self {
            first: position,
            last: position,
            count: 1,
            proto,
            flags: 0,
            length: 0,
            layout: Layout::default(),
            gso_size: 0,
            next_sequence: 0,
            next_id: 0,
        }
    }

    fn seeded(position: u16, seed: &Candidate) -> Self {
        let mut run = Self::alone(position, seed.proto());
        run.flags = seed.flags;
        run.layout = seed.layout;
        run.gso_size = seed.layout.payload_len();
        run.length = u32::from(seed.layout.end - seed.layout.ip);
        run.next_id = seed.id.unwrap_or_default().wrapping_add(1);
        run.next_sequence = seed.sequence;
        run.advance(seed.layout.payload_len());
        run
    }

    fn advance(&mut self, payload_len: u16) {
        if self.proto == Proto::Tcp {
            self.next_sequence = self.next_sequence.wrapping_add(u32::from(payload_len));
        }
    }

    /// Payload bytes of all packets.
    fn payload_len(&self) -> u32 {
        self.length - u32::from(self.layout.payload - self.layout.ip)
    }
}

/// The coalescer of one worker. All its memory is allocated in [`Coalescer::new`].
#[derive(Debug)]
pub struct Coalescer {
    rules: Rules,
    table: FlowTable,
    runs: Vec<Run>,
    /// How many of them, from the first on, are written: nothing may join those any more.
    written: usize,
    /// For each packet of the batch, the next one of its run.
    next: Box<[u16; MAX_BATCH]>,
    pairs: PairBarriers,
    slices: output::Gather,
}

impl Coalescer {
    /// A coalescer for one worker.
    pub fn new(config: &GroConfig) -> Self {
        Self {
            rules: Rules::new(config),
            table: FlowTable::new(),
            runs: Vec::with_capacity(MAX_BATCH),
            written: 0,
            next: Box::new([0; MAX_BATCH]),
            pairs: PairBarriers::default(),
            slices: output::Gather::new(),
        }
    }

    /// Merges what may be merged of `batch` and writes everything to `sink`.
    pub fn coalesce(&mut self, batch: &[InnerPacket<'_>], counters: &Counters, sink: &mut impl FrameSink) {
        for batch in batch.chunks(MAX_BATCH) {
            self.begin();
            for count in 1..=batch.len() {
                self.add(&batch[..count], counters);
            }
            self.finish(batch, counters, sink);
        }
    }

    /// Starts a batch of at most [`MAX_BATCH`] packets.
    ///
    /// [`Self::begin`], [`Self::add`] and [`Self::finish`] are [`Self::coalesce`] in steps, for a caller that has each
    /// packet's headers in the cache when it hands it over.
    pub fn begin(&mut self) {
        self.table.clear();
        self.runs.clear();
        self.written = 0;
        self.pairs.clear();
    }

    /// Takes the last packet of `batch`; those before it are the ones that were added since [`Self::begin`].
    #[inline(always)]
    pub fn add(&mut self, batch: &[InnerPacket<'_>], counters: &Counters) {
        let Some(position) = batch.len().checked_sub(1) else { return };
        if let Some(reason) = self.place(batch, position as u16) {
            counters.gro_flush[reason.index()].add(1);
        }
    }

    /// Writes the first run that is not written yet; whether there was one.
    ///
    /// More packets may be added then: they join the runs that are left, or seed new ones.
    pub fn write_next(&mut self, batch: &[InnerPacket<'_>], counters: &Counters, sink: &mut impl FrameSink) -> bool {
        let is_left = self.written < self.runs.len();
        if is_left {
            self.write_run(self.written, batch, counters, sink);
            self.written += 1;
        }
        is_left
    }

    /// Writes every run, in the order of their seeds.
    pub fn finish(&mut self, batch: &[InnerPacket<'_>], counters: &Counters, sink: &mut impl FrameSink) {
        while self.write_next(batch, counters, sink) {}
    }

    /// Puts a packet into a run; the reason, if it is a new one.
    #[inline(always)]
    fn place(&mut self, batch: &[InnerPacket<'_>], position: u16) -> Option<FlushReason> {
        if self.follow(batch) { None } else { self.decide(batch, position) }
    }

    /// The long way: rule by rule.
    #[inline(never)]
    fn decide(&mut self, batch: &[InnerPacket<'_>], position: u16) -> Option<FlushReason> {
        let packet = &batch[usize::from(position)];
        match examine(packet, &self.rules) {
            Ok(candidate) => self.join_or_seed(batch, position, &candidate),
            Err(reason) => {
                self.stand_alone(position, &Alone::of(packet, reason));
                Some(reason)
            }
        }
    }

    fn join_or_seed(&mut self, batch: &[InnerPacket<'_>], position: u16, candidate: &Candidate) -> Option<FlushReason> {
        let key = &candidate.common.key;
        let (flow, is_new) = self.table.find_or_insert(key, key.hash(self.rules.hash_secret));
        let reason = if is_new || usize::from(flow.run) < self.written {
            FlushReason::FirstInBatch
        } else {
            let run = &mut self.runs[usize::from(flow.run)];
            match (Joining { flow, run, candidate, batch, position, rules: &self.rules }.refusal(&self.pairs)) {
                Some(reason) => reason,
                None => {
                    self.next[usize::from(run.last)] = position;
                    flow.closed = run.append(position, candidate.layout.payload_len(), candidate.flags);
                    return None;
                }
            }
        };
        flow.run = self.runs.len() as u16;
        flow.closed = end_of_run(candidate.flags);
        flow.common = candidate.common;
        self.runs.push(Run::seeded(position, candidate));
        Some(reason)
    }

    /// A packet that may not be merged: a run of its own that closes those before it.
    fn stand_alone(&mut self, position: u16, alone: &Alone) {
        let secret = self.rules.hash_secret;
        match alone.barrier {
            Barrier::None => {}
            Barrier::Pair(pair) => self.pairs.close(position, pair.hash(secret)),
            Barrier::Flow(key) => {
                let (flow, _) = self.table.find_or_insert(&key, key.hash(secret));
                flow.run = self.runs.len() as u16;
                flow.closed = Some(FlushReason::AfterBarrier);
            }
        }
        self.runs.push(Run::alone(position, alone.proto));
    }
}

impl Run {
    /// Takes a packet in; why the run is closed now, if it is.
    #[inline(always)]
    fn append(&mut self, position: u16, payload_len: u16, flags: u8) -> Option<FlushReason> {
        self.last = position;
        self.count += 1;
        self.length += u32::from(payload_len);
        self.flags |= flags;
        self.next_id = self.next_id.wrapping_add(1);
        self.advance(payload_len);
        if flags & (PSH | FIN) == 0 && payload_len == self.gso_size {
            return None;
        }
        Some(after_last(flags))
    }
}

/// Why a run ends whose newest packet is shorter than the others or has PSH or FIN.
#[cold]
fn after_last(flags: u8) -> FlushReason {
    end_of_run(flags).unwrap_or(FlushReason::AfterShort)
}
