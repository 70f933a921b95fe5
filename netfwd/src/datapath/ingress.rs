//! Ingress: underlay to overlay, one receive batch at a time.
//!
//! ```text
//! frame or datagram → lookup → decap → vet → coalesce → FrameSink
//!                                ↓      ↑
//!                        sealed message → (session) → packet
//! ```
//!
//! A WireGuard message cannot go on before its session has opened it. It is handed out, and the packet that was in it
//! comes back as [`Origin::Session`] in a batch of its own.
//!
//! Invariants: every received packet is written to the sink or counted as one drop under one reason; nothing is held
//! past the end of a batch; the packets' bytes stay where the NIC or the socket left them; a batch allocates nothing.
//!
//! Deliberately absent: sockets, clocks, and the table's lifetime. The caller gives the snapshot to use for this batch
//! and takes its frames back when [`Ingress::run`] has returned.

use std::mem;

use netfwd_common::reason::{DropReason, Stage};
use netfwd_common::wire::ethernet::{self, Mac};

use super::gro::{Coalescer, GroConfig, MAX_BATCH};
use super::packet::{InnerPacket, Link, RemoteIndex, TunnelIndex};
use super::seam::FrameSink;
use super::stats::{Counters, Direction};
use super::table::{ForwardingTable, VerifyPolicy};
use super::tunnel::decap::{
    Decapsulated, LookupCache, Opened, SealedMessage, SocketOrigin, open_frame, open_payload, open_session,
};
use super::vet::vet;

/// Something that arrived from the underlay.
#[derive(Debug)]
pub struct Received<'a> {
    /// The bytes, as [`Origin`] says. Congestion marks and unfinished checksums are written in place.
    pub bytes: &'a mut [u8],
    /// Where they come from.
    pub origin: Origin,
}

/// Where received bytes come from, and so what they start with.
#[derive(Clone, Copy, Debug)]
pub enum Origin {
    /// A whole Ethernet frame from AF_XDP.
    Xdp {
        /// The sixteen bytes in front of the frame, where XDP writes its record.
        metadata: Option<[u8; 16]>,
    },
    /// A UDP payload from a socket; the kernel verified the outer checksum.
    Socket(SocketOrigin),
    /// An inner packet of this tunnel that a WireGuard session opened, congestion mark included.
    Session(TunnelIndex),
}

/// A drop on the way in.
struct Refusal {
    stage: Stage,
    reason: DropReason,
}

/// One worker's way in. All its memory is allocated in [`Ingress::new`].
#[derive(Debug)]
pub struct Ingress {
    coalescer: Coalescer,
    policy: VerifyPolicy,
    packets: Vec<InnerPacket<'static>>,
    learned: RecentlyLearned,
}

impl Ingress {
    /// An ingress path with these rules.
    pub fn new(gro: &GroConfig, policy: VerifyPolicy) -> Self {
        Self {
            coalescer: Coalescer::new(gro),
            policy,
            packets: Vec::with_capacity(MAX_BATCH),
            learned: RecentlyLearned::default(),
        }
    }

    /// Vets by `policy` from the next batch on: underlays may differ.
    pub fn set_policy(&mut self, policy: VerifyPolicy) {
        self.policy = policy;
    }

    /// Takes one receive batch through to the sink.
    ///
    /// Whenever `batch` has nothing more, one frame is written and then it is asked again, so that what arrived meanwhile
    /// still meets its run. Nothing waits for that: the end is when there is neither a packet nor a frame.
    ///
    /// `learn` is told of inner source addresses on learning L2 tunnels, at most once in a while per address and batch;
    /// `sealed` gets the WireGuard messages.
    pub fn run<'a>(
        &mut self,
        table: &ForwardingTable,
        learn: &mut impl FnMut(TunnelIndex, Mac, RemoteIndex),
        sealed: &mut impl FnMut(SealedMessage<'a>),
        counters: &Counters,
        mut batch: impl Iterator<Item = Received<'a>>,
        sink: &mut impl FrameSink,
    ) {
        let mut packets: Vec<InnerPacket<'a>> = mem::take(&mut self.packets);
        let mut cache = LookupCache::default();
        self.learned = RecentlyLearned::default();
        self.coalescer.begin();
        loop {
            while packets.len() < MAX_BATCH
                && let Some(received) = batch.next()
            {
                let accepted = match open(table, &mut cache, received, self.policy) {
                    Ok(Opened::Packet(packet)) => self.accept(table, learn, counters, packet),
                    Ok(Opened::Message(message)) => {
                        if let Some(reason) = message.tolerated {
                            counters.tolerated[reason.index()].add(1);
                        }
                        sealed(message);
                        continue;
                    }
                    Err(reason) => Err(Refusal { stage: Stage::Decap, reason }),
                };
                match accepted {
                    Ok(packet) => packets.push(packet),
                    Err(refusal) => {
                        counters.drops.add(Direction::Ingress, refusal.stage, refusal.reason, 1);
                        continue;
                    }
                }
                self.coalescer.add(&packets, counters);
            }
            if packets.len() == MAX_BATCH {
                self.coalescer.finish(&packets, counters, sink);
                self.coalescer.begin();
                packets.clear();
            } else if !self.coalescer.write_next(&packets, counters, sink) {
                break;
            }
        }
        self.packets = recycle(packets);
    }

    /// Admits and vets a decapsulated packet.
    #[inline]
    fn accept<'a>(
        &mut self,
        table: &ForwardingTable,
        learn: &mut impl FnMut(TunnelIndex, Mac, RemoteIndex),
        counters: &Counters,
        mut opened: Decapsulated<'a>,
    ) -> Result<InnerPacket<'a>, Refusal> {
        opened.admit(table).map_err(|reason| Refusal { stage: Stage::Decap, reason })?;
        let Decapsulated { tunnel, remote, link, inner, verdict, tolerated, .. } = opened;
        let vetted = vet(inner, link, verdict, self.policy).map_err(|reason| Refusal { stage: Stage::Vet, reason })?;
        if let Some(reason) = tolerated.or(vetted.tolerated) {
            counters.tolerated[reason.index()].add(1);
        }
        let bytes: &'a [u8] = inner.get(..vetted.len).unwrap_or_default();
        if link == Link::Ethernet && table.get(tunnel).is_some_and(|tunnel| tunnel.learning) {
            self.learned.see(tunnel, bytes, remote, learn);
        }
        let received = counters.tunnel(tunnel);
        received.receive_packets.add(1);
        received.receive_bytes.add(bytes.len() as u64);
        Ok(InnerPacket { tunnel, link, bytes, checksums: vetted.checksums })
    }
}

/// Lookup and outer headers.
#[inline]
fn open<'a>(
    table: &ForwardingTable,
    cache: &mut LookupCache,
    received: Received<'a>,
    policy: VerifyPolicy,
) -> Result<Opened<'a>, DropReason> {
    match received.origin {
        Origin::Xdp { metadata } => open_frame(table, received.bytes, metadata, policy),
        Origin::Socket(origin) => open_payload(table, cache, received.bytes, &origin),
        Origin::Session(tunnel) => Ok(Opened::Packet(open_session(tunnel, received.bytes))),
    }
}

/// Empties a vector and changes its element's lifetime. Collecting in place keeps the allocation.
fn recycle(mut packets: Vec<InnerPacket<'_>>) -> Vec<InnerPacket<'static>> {
    packets.clear();
    packets.into_iter().map(|packet| InnerPacket { bytes: &[], ..packet }).collect()
}

/// The addresses learned in this batch: a bulk flow's is reported once, not per packet.
///
/// It forgets at the end of the batch, so that entries in use never age out.
#[derive(Debug, Default)]
struct RecentlyLearned([Option<(TunnelIndex, Mac, RemoteIndex)>; RecentlyLearned::SLOTS]);

impl RecentlyLearned {
    const SLOTS: usize = 16;

    #[inline]
    fn see(
        &mut self,
        tunnel: TunnelIndex,
        frame: &[u8],
        remote: RemoteIndex,
        learn: &mut impl FnMut(TunnelIndex, Mac, RemoteIndex),
    ) {
        let Some(source) = frame.get(6..).and_then(|rest| rest.first_chunk::<6>()) else { return };
        if ethernet::is_multicast(source) || *source == [0; 6] {
            return;
        }
        let entry = Some((tunnel, *source, remote));
        let slot = &mut self.0[usize::from(source[4] ^ source[5]) % Self::SLOTS];
        if *slot != entry {
            *slot = entry;
            learn(tunnel, *source, remote);
        }
    }
}
