//! Opening: from sealed messages to inner packets, a batch at a time.
//!
//! Three passes: every message is copied once, into a pooled buffer, and assigned to its peer (one lock of the session
//! indices for the batch); every peer's messages are opened in a row (one lock per peer); then what came out is checked in the
//! order of arrival, which is the order in which it leaves.
//!
//! Invariants: what leaves is authentic, was not there before, and has a source among its peer's allowed IPs; padding is gone
//! and the outer congestion mark is in the inner header. A message that is refused is counted under one reason and leaves
//! no trace. Nothing is allocated per message: buffers are pieces of one slab that is used again when the batch is gone, also
//! those that the library drops because it refuses what is in them.
//!
//! Deliberately absent: inner checksums. The tag proves the path, not what the sender's host put in; vetting comes next.

use std::mem;
use std::net::IpAddr;
use std::slice;
use std::sync::Arc;

use bytes::BytesMut;
use gotatun::noise::TunnResult;
use gotatun::noise::errors::WireGuardError;
use gotatun::packet::{Packet, WgKind};
use netfwd_common::reason::{DropReason, Stage};
use netfwd_common::wire::wireguard::{CookieReply, Data, MessageType, Response};
use netfwd_common::wire::{ipv4, ipv6};
use zerocopy::FromBytes;

use super::allowed_ips::{AllowedIps, Snapshots};
use super::device::Device;
use super::path::Path;
use super::peer::{Peer, State};
use super::queue::Message;
use super::sessions::ByIndex;
use crate::datapath::ecn;
use crate::datapath::flow::{Family, locate_ip};
use crate::datapath::packet::Link;
use crate::datapath::stats::{Counters, Direction};
use crate::datapath::tunnel::decap::{SealedMessage, SocketOrigin};

/// Most messages that are opened at once; as many packets meet in a superframe.
pub const MAX_BATCH: usize = 256;
/// Room for a batch of ordinary messages.
const SLAB: usize = 512 << 10;
/// The largest message: while there is room for one, another is taken.
const MAX_MESSAGE: usize = 1 << 16;

/// One worker's opener: buffers for a batch.
pub struct Opener {
    slab: BytesMut,
    slots: Vec<Slot>,
    groups: Groups,
    snapshots: Snapshots,
}

/// A message on its way, in a piece of the slab.
struct Slot {
    bytes: BytesMut,
    origin: SocketOrigin,
    /// The session index it names.
    receiver: u32,
    /// Its length, sealed.
    len: u32,
    /// The next one of the same peer.
    next: Option<u16>,
    /// Length of the inner packet that came out, if it may leave.
    inner: usize,
}

impl Opener {
    /// An opener with buffers for [`MAX_BATCH`] messages of ordinary size.
    #[expect(clippy::new_without_default, reason = "it allocates half a mebibyte")]
    pub fn new() -> Self {
        Self {
            slab: BytesMut::with_capacity(SLAB),
            slots: Vec::with_capacity(MAX_BATCH),
            groups: Groups::new(),
            snapshots: Snapshots::default(),
        }
    }

    /// Opens the next messages of `batch`, all for `device`: `None` when there are none left.
    ///
    /// Call it again until then: it takes at most [`MAX_BATCH`] messages, and no more than its buffers hold. Handshake
    /// messages go to the device's queue. What is dropped is counted in `counters`; the rest comes out of [`Opened`].
    pub fn open<'m>(
        &mut self,
        device: &Device,
        counters: &Counters,
        batch: &mut impl Iterator<Item = SealedMessage<'m>>,
    ) -> Option<Opened<'_>> {
        self.reclaim();
        let any = self.take(device, counters, batch);
        self.groups.open(device, counters, &mut self.slots);
        self.admit(device, counters);
        any.then(|| Opened(self.slots.iter_mut()))
    }

    /// Drops the last batch's buffers, and so has the whole slab again.
    fn reclaim(&mut self) {
        self.slots.clear();
        self.groups.clear();
        self.slab.clear();
        if !self.slab.try_reclaim(SLAB) {
            self.slab = BytesMut::with_capacity(SLAB);
        }
    }

    /// Takes messages in; whether there were any.
    fn take<'m>(
        &mut self,
        device: &Device,
        counters: &Counters,
        batch: &mut impl Iterator<Item = SealedMessage<'m>>,
    ) -> bool {
        let sessions = device.sessions.read();
        let mut any = false;
        while self.slots.len() < MAX_BATCH && self.slab.capacity() >= MAX_MESSAGE {
            let Some(message) = batch.next() else { break };
            any = true;
            let taken = match message.message_type {
                MessageType::Data => self.take_data(&sessions, &message).map_err(|reason| (Stage::Crypto, reason)),
                _ => enqueue(device, &sessions, &message).map_err(|reason| (Stage::Handshake, reason)),
            };
            if let Err((stage, reason)) = taken {
                counters.drops.add(Direction::Ingress, stage, reason, 1);
            }
        }
        any
    }

    fn take_data(&mut self, sessions: &ByIndex, message: &SealedMessage<'_>) -> Result<(), DropReason> {
        let (header, _) = Data::ref_from_prefix(message.bytes).map_err(|_| DropReason::BadLength)?;
        let receiver = header.receiver.get();
        let peer = sessions.get(&receiver).ok_or(DropReason::NoSession)?;
        let len = message.bytes.len();
        // The library would refuse it with an allocation.
        if !(Data::MIN_LEN..MAX_MESSAGE).contains(&len) {
            return Err(DropReason::BadLength);
        }
        self.groups.add(peer, &mut self.slots);
        self.slab.extend_from_slice(message.bytes);
        let (bytes, origin) = (self.slab.split(), message.origin);
        self.slots.push(Slot { bytes, origin, receiver, len: len as u32, next: None, inner: 0 });
        Ok(())
    }

    /// Checks what came out, in the order of arrival.
    fn admit(&mut self, device: &Device, counters: &Counters) {
        if self.slots.is_empty() {
            return;
        }
        let allowed_ips = self.snapshots.of(device.tunnel(), &device.allowed_ips);
        let mut known = KnownSource::default();
        for group in &self.groups.list {
            known.forget();
            let mut next = Some(group.first);
            while let Some(slot) = next.and_then(|at| self.slots.get_mut(usize::from(at))) {
                next = slot.next;
                if slot.bytes.is_empty() {
                    continue;
                }
                match admit(&mut slot.bytes, slot.origin.ecn, allowed_ips, &group.peer, &mut known) {
                    Ok(len) => slot.inner = len,
                    Err(reason) => counters.drops.add(Direction::Ingress, Stage::Crypto, reason, 1),
                }
            }
        }
    }
}

/// Inner packets in the order of arrival: authentic, inside their peer's allowed IPs, with the outer congestion mark
/// (RFC 6040) and without padding. Their checksums are not verified.
pub struct Opened<'a>(slice::IterMut<'a, Slot>);

impl<'a> Iterator for Opened<'a> {
    type Item = &'a mut [u8];

    fn next(&mut self) -> Option<&'a mut [u8]> {
        let slot = self.0.find(|slot| slot.inner != 0)?;
        slot.bytes.get_mut(..slot.inner)
    }
}

/// Hands a handshake message to the control side, unless it answers nothing of ours.
fn enqueue(device: &Device, sessions: &ByIndex, message: &SealedMessage<'_>) -> Result<(), DropReason> {
    let path = Path::back_to(&message.origin);
    let is_known = match answered(message)? {
        Some(index) if !sessions.contains_key(&index) => return Err(DropReason::NoSession),
        Some(_) => true,
        None => device.places.contains(&path.remote),
    };
    let queue = device.queue();
    let lane = queue.lane_for(message.bytes, &path.remote, is_known).ok_or(DropReason::HandshakeQueueFull)?;
    let message = Message::new(device.tunnel(), path, lane, message.bytes).ok_or(DropReason::BadLength)?;
    if queue.send(message) { Ok(()) } else { Err(DropReason::HandshakeQueueFull) }
}

/// The index of ours that a handshake message answers to.
fn answered(message: &SealedMessage<'_>) -> Result<Option<u32>, DropReason> {
    let bytes = &*message.bytes;
    let receiver = match message.message_type {
        MessageType::Response => Response::ref_from_bytes(bytes).ok().map(|response| response.receiver),
        MessageType::CookieReply => CookieReply::ref_from_bytes(bytes).ok().map(|reply| reply.receiver),
        MessageType::Initiation | MessageType::Data => return Ok(None),
    };
    receiver.map(|index| Some(index.get())).ok_or(DropReason::BadLength)
}

/// The messages of a batch by peer.
struct Groups {
    list: Vec<Group>,
    /// Open addressing by the peer's address: 1 + index into `list`.
    table: Box<[u16; Self::SLOTS]>,
}

/// One peer's messages: a chain through the slots.
struct Group {
    peer: Arc<Peer>,
    first: u16,
    last: u16,
}

impl Groups {
    /// Twice as many as there can be groups.
    const SLOTS: usize = 2 * MAX_BATCH;

    fn new() -> Self {
        Self { list: Vec::with_capacity(MAX_BATCH), table: Box::new([0; Self::SLOTS]) }
    }

    fn clear(&mut self) {
        self.list.clear();
        self.table.fill(0);
    }

    /// Appends the message that is about to be the last of `slots` to its peer's chain.
    fn add(&mut self, peer: &Arc<Peer>, slots: &mut [Slot]) {
        let new = slots.len() as u16;
        let known = usize::from(*self.entry(peer));
        match self.list.get_mut(known.wrapping_sub(1)) {
            Some(group) => {
                if let Some(last) = slots.get_mut(usize::from(group.last)) {
                    last.next = Some(new);
                }
                group.last = new;
            }
            None => {
                self.list.push(Group { peer: Arc::clone(peer), first: new, last: new });
                let index = self.list.len() as u16;
                *self.entry(peer) = index;
            }
        }
    }

    /// The table's entry for a peer: its own, or the free one where it belongs.
    fn entry(&mut self, peer: &Arc<Peer>) -> &mut u16 {
        // Allocations are aligned: the low bits say nothing.
        let mut at = (Arc::as_ptr(peer).addr() / 64).wrapping_mul(0x9e37_79b9) % Self::SLOTS;
        loop {
            match self.list.get(usize::from(self.table[at]).wrapping_sub(1)) {
                Some(group) if !Arc::ptr_eq(&group.peer, peer) => at = (at + 1) % Self::SLOTS,
                _ => return &mut self.table[at],
            }
        }
    }

    /// Opens every peer's messages under one lock of that peer.
    fn open(&self, device: &Device, counters: &Counters, slots: &mut [Slot]) {
        for group in &self.list {
            group.open(device, counters, slots);
        }
    }
}

impl Group {
    fn open(&self, device: &Device, counters: &Counters, slots: &mut [Slot]) {
        let mut state = self.peer.lock();
        let (mut newest, mut received, mut keepalives) = (None, 0, 0);
        let mut next = Some(self.first);
        while let Some(slot) = next.and_then(|at| slots.get_mut(usize::from(at))) {
            next = slot.next;
            match slot.open(&mut state) {
                Ok(()) => {
                    newest = Some(slot.origin);
                    received += slot.len as usize;
                    keepalives += u64::from(slot.bytes.is_empty());
                    state.confirm(slot.receiver);
                }
                Err(reason) => counters.drops.add(Direction::Ingress, Stage::Crypto, reason, 1),
            }
        }
        if let Some(origin) = newest {
            state.follow(Path::back_to(&origin));
        }
        let is_confirmed = state.is_confirmed;
        drop(state);
        self.peer.count_received(received);
        device.stats().count_keepalives(keepalives);
        if is_confirmed {
            device.ask_for(&self.peer);
        }
    }
}

impl Slot {
    /// Opens the message in place: afterwards `bytes` is what was sealed, padding included, or empty.
    fn open(&mut self, state: &mut State) -> Result<(), DropReason> {
        let packet = Packet::from_bytes(mem::take(&mut self.bytes));
        let session = state.session.as_mut().ok_or(DropReason::NoSession)?;
        let message = packet.try_into_wg().map_err(|_| DropReason::BadLength)?;
        let WgKind::Data(message) = message else { return Err(DropReason::TunnelHeader) };
        match session.handle_incoming_packet(WgKind::Data(message)) {
            TunnResult::WriteToTunnel(mut packet) => {
                self.bytes = mem::take(packet.buf_mut());
                Ok(())
            }
            TunnResult::Err(error) => Err(refusal(&error)),
            // Data is never answered.
            TunnResult::Done | TunnResult::WriteToNetwork(_) => Err(DropReason::NoSession),
        }
    }
}

impl State {
    /// The first message in a session that we answered for shows that the peer has it, too.
    fn confirm(&mut self, receiver: u32) {
        if self.unconfirmed == Some(receiver) {
            self.unconfirmed = None;
            (self.is_confirmed, self.is_established) = (true, true);
        }
    }
}

/// The reason that stands for a refusal of the library's.
pub(super) fn refusal(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter | WireGuardError::WrongTai64nTimestamp => {
            DropReason::Replay
        }
        WireGuardError::NoCurrentSession
        | WireGuardError::ConnectionExpired
        | WireGuardError::WrongIndex
        | WireGuardError::UnexpectedPacket => DropReason::NoSession,
        WireGuardError::InvalidAeadTag
        | WireGuardError::InvalidMac
        | WireGuardError::WrongKey
        | WireGuardError::InvalidTai64nTimestamp => DropReason::Auth,
        WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::WrongPacketType
        | WireGuardError::InvalidPacket
        | WireGuardError::LockFailed => DropReason::BadLength,
    }
}

/// The source that was last found to be its sender's: packets come in trains.
#[derive(Default)]
struct KnownSource(Option<IpAddr>);

impl KnownSource {
    fn forget(&mut self) {
        self.0 = None;
    }
}

/// Applies the congestion mark and checks the source; the packet's length without padding.
fn admit(
    packet: &mut [u8],
    outer_ecn: u8,
    allowed_ips: &AllowedIps,
    peer: &Arc<Peer>,
    known: &mut KnownSource,
) -> Result<usize, DropReason> {
    let (_, family) = locate_ip(Link::Ip, packet).ok_or(DropReason::InnerHeader)?;
    let (len, source) = length_and_source(packet, family).ok_or(DropReason::InnerHeader)?;
    if known.0 != Some(source) {
        let owner = allowed_ips.lookup(source).filter(|owner| Arc::ptr_eq(owner, peer));
        owner.ok_or(DropReason::InnerSourceDenied)?;
        known.0 = Some(source);
    }
    if !ecn::propagate(packet, family, outer_ecn) {
        return Err(DropReason::EcnCeNotEct);
    }
    Ok(len)
}

/// What the header claims, if the packet is long enough for it.
fn length_and_source(packet: &[u8], family: Family) -> Option<(usize, IpAddr)> {
    let (len, source) = match family {
        Family::V4 => {
            let (header, _) = ipv4::Header::ref_from_prefix(packet).ok()?;
            (usize::from(header.total_length.get()), IpAddr::from(header.source))
        }
        Family::V6 => {
            let (header, _) = ipv6::Header::ref_from_prefix(packet).ok()?;
            (ipv6::HEADER_LEN + usize::from(header.payload_length.get()), IpAddr::from(header.source))
        }
    };
    (len <= packet.len() && len != 0).then_some((len, source))
}
