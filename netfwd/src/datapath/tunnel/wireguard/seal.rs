//! Sealing: from inner packets to datagrams, a superframe at a time.
//!
//! ```text
//! destination → allowed IPs → peer ─ lock ─▶ assemble, pad, seal, assemble, pad, seal … ─ unlock ─▶ runs
//! ```
//!
//! Invariants: one lookup and, unless its segments are tiny, one lock of the peer per superframe. Segments keep their order, also
//! across a handshake: while packets wait, all that follow wait behind them. Nothing of ours is allocated per segment: it
//! is assembled in a slab that is whole again once the library has dropped it. The library allocates one buffer for
//! every segment that it seals, and copies into it; those are sent from, or copied to, one send buffer.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::BytesMut;
use gotatun::packet::Packet;
use netfwd_common::reason::{DropReason, Stage};
use netfwd_common::wire::wireguard::OVERHEAD;
use zerocopy::IntoBytes;

use super::allowed_ips::Snapshots;
use super::device::Device;
use super::path::{Outgoing, Path};
use super::peer::{Peer, Session, State};
use super::runs::Runs;
use crate::datapath::segment::Superframe;
use crate::datapath::stats::{Counters, Direction};
use crate::datapath::tunnel::encap::MAX_PAYLOAD;

/// What packets are padded to a multiple of.
const PADDING: usize = 16;

/// What is to be sealed.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// One packet with its checksums complete.
    Packet(&'a [u8]),
    /// A superframe, which is cut on the way.
    Superframe(&'a Superframe<'a>),
}

impl Content<'_> {
    fn packets(&self) -> usize {
        match self {
            Self::Packet(_) => 1,
            Self::Superframe(superframe) => superframe.segments(),
        }
    }

    /// Length of the longest packet.
    fn packet_len(&self) -> usize {
        match self {
            Self::Packet(packet) => packet.len(),
            Self::Superframe(superframe) => superframe.header_len() + superframe.segment_size(),
        }
    }

    /// Writes packet `index` behind what is in `out`.
    fn write(&self, index: usize, out: &mut BytesMut) {
        match self {
            Self::Packet(packet) => out.extend_from_slice(packet),
            Self::Superframe(superframe) => {
                let start = out.len();
                out.resize(start + superframe.header_len(), 0);
                superframe.write_headers(index, &mut out[start..]);
                out.extend_from_slice(superframe.payload(index));
            }
        }
    }
}

/// Inner packets of one flow.
#[derive(Clone, Copy, Debug)]
pub struct Inner<'a> {
    /// The inner destination: it decides which peer gets them.
    pub destination: IpAddr,
    /// The inner ECN field, which the outer header gets too (RFC 6040 §4.1, normal mode).
    pub ecn: u8,
    /// The packets.
    pub content: Content<'a>,
}

/// What became of packets that had a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Handed to `emit` as datagrams.
    pub datagrams: usize,
    /// Their inner bytes, padding not counted.
    pub bytes: usize,
    /// Kept until the handshake is through. Those that had to make room are counted as dropped.
    pub staged: usize,
}

/// One worker's sealer: buffers for a superframe.
pub struct Sealer {
    press: Press,
    runs: Runs,
    snapshots: Snapshots,
}

impl Sealer {
    /// A sealer with buffers for a superframe.
    #[expect(clippy::new_without_default, reason = "it allocates")]
    pub fn new() -> Self {
        Self { press: Press::new(), runs: Runs::new(), snapshots: Snapshots::default() }
    }

    /// Seals packets for the peer that `inner.destination` belongs to, and gives `emit` runs of equal-sized datagrams.
    ///
    /// Without a session the packets wait for the handshake, which is asked for. Refused are packets that no peer has among
    /// its allowed IPs ([`DropReason::NoPeer`]), whose peer's place is unknown ([`DropReason::NoRoute`]), or that no datagram can
    /// carry ([`DropReason::TooBig`]): counting these is left to the caller; packets that had to make room for newer ones are
    /// counted in `counters`.
    pub fn seal(
        &mut self,
        device: &Device,
        counters: &Counters,
        inner: &Inner<'_>,
        emit: &mut impl FnMut(&Outgoing<'_>) -> usize,
    ) -> Result<Sealed, DropReason> {
        let peer = self.snapshots.of(device.tunnel(), &device.allowed_ips).lookup(inner.destination);
        let peer = peer.ok_or(DropReason::NoPeer)?;
        if inner.content.packet_len() + OVERHEAD + PADDING > MAX_PAYLOAD {
            return Err(DropReason::TooBig);
        }
        let mut job = Job { device, counters, peer, inner, mtu: device.mtu(), next: 0, sealed: Sealed::default() };
        while job.next < inner.content.packets() {
            let path = job.work(&mut self.press, &mut self.runs)?;
            peer.count_transmitted(self.runs.emit(path, emit));
        }
        Ok(job.sealed)
    }
}

/// A superframe on its way.
struct Job<'a> {
    device: &'a Device,
    counters: &'a Counters,
    peer: &'a Arc<Peer>,
    inner: &'a Inner<'a>,
    mtu: usize,
    next: usize,
    sealed: Sealed,
}

impl Job<'_> {
    /// Seals as many packets as `runs` has room for, under one lock.
    fn work(&mut self, press: &mut Press, runs: &mut Runs) -> Result<Path, DropReason> {
        let Inner { ecn, content, .. } = self.inner;
        let mut state = self.peer.lock();
        if state.is_removed {
            return Err(DropReason::NoPeer);
        }
        let path = state.path.ok_or(DropReason::NoRoute)?;
        let room = content.packet_len() + PADDING + OVERHEAD;
        while self.next < content.packets() && runs.has_room(room) {
            let is_held_back = !state.staged.is_empty() || state.awaits_confirmation();
            let session = state.session.as_mut().filter(|_| !is_held_back);
            content.write(self.next, press.begin());
            match press.seal(session, self.mtu, |datagram| runs.push(*ecn, datagram)) {
                Some(bytes) => {
                    self.sealed.datagrams += 1;
                    self.sealed.bytes += bytes;
                }
                None => {
                    self.stage(press, &mut state);
                    break;
                }
            }
            self.next += 1;
        }
        Ok(path)
    }

    /// Keeps the packets that are left until there is a session.
    fn stage(&mut self, press: &mut Press, state: &mut State) {
        let Inner { ecn, content, .. } = self.inner;
        let mut dropped = 0;
        for index in self.next..content.packets() {
            let packet = press.begin();
            content.write(index, packet);
            dropped += state.staged.push(&self.device.budget, *ecn, packet);
            self.sealed.staged += 1;
        }
        self.next = content.packets();
        self.counters.drops.add(Direction::Egress, Stage::Crypto, DropReason::QueueFull, dropped as u64);
        if !state.is_initiating {
            state.is_initiating = true;
            self.device.ask_for(self.peer);
        }
    }
}

/// Where a packet is assembled and sealed: always in the same bytes, which stay in the cache.
pub(super) struct Press(BytesMut);

impl Press {
    pub(super) fn new() -> Self {
        Self(BytesMut::with_capacity(MAX_PAYLOAD))
    }

    /// Where the next packet is to be written.
    pub(super) fn begin(&mut self) -> &mut BytesMut {
        self.0.clear();
        if !self.0.try_reclaim(MAX_PAYLOAD) {
            self.0 = BytesMut::with_capacity(MAX_PAYLOAD);
        }
        &mut self.0
    }

    /// Pads and seals what was written; its length without padding. `None`: there is no session to do it with.
    pub(super) fn seal(
        &mut self,
        session: Option<&mut Session>,
        mtu: usize,
        push: impl FnOnce(&[u8]),
    ) -> Option<usize> {
        let len = self.0.len();
        self.0.resize(padded(len, mtu), 0);
        // The library drops its packet: a part of the slab, so that the memory is not lost.
        let sealed = session?.encapsulate_with_session(Packet::from_bytes(self.0.split())).ok()?;
        push(sealed.as_bytes());
        Some(len)
    }
}

/// The length of a padded packet: a multiple of sixteen, but not beyond the MTU (`calculate_skb_padding`).
fn padded(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(PADDING).min(mtu).max(len)
}
