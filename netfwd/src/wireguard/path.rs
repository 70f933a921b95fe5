//! A worker's part of all WireGuard interfaces: the way in from sealed messages, the way out to them.
//!
//! ```text
//! AF_XDP: ingress ─▶ sealed messages ─┐
//! listening port ─▶ sealed messages ──┴▶ open ─▶ ingress: vet ─▶ coalesce ─▶ TUN
//! TUN ─▶ segment ─▶ seal ─▶ listening port
//! ```
//!
//! Invariants: messages keep their order from the batch to the TUN; nothing is held between batches; a worker receives on
//! and sends from sockets of its own.

use std::mem;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use netfwd_common::reason::{DropReason, Stage};
use netfwd_common::wire::wireguard;

use crate::datapath::ingress::{Ingress, Origin, Received};
use crate::datapath::packet::TunnelIndex;
use crate::datapath::sealed::SealedEgress;
use crate::datapath::seam::FrameSink;
use crate::datapath::stats::{Counters, Direction};
use crate::datapath::table::{ForwardingTable, VerifyPolicy, address_bytes};
use crate::datapath::tunnel::decap::{SealedMessage, SocketOrigin};
use crate::datapath::tunnel::wireguard::{Device, Opener};
use crate::io::listen_port::PortSockets;
use crate::io::udp_receive::{Datagram, ReceiveBuffers, ReceiveSocket};

/// What a worker has of one interface.
pub struct Share {
    /// Its tunnel.
    pub tunnel: TunnelIndex,
    /// Its peers and keys, shared.
    pub device: Arc<Device>,
    /// The worker's own sockets.
    pub sockets: PortSockets,
    /// How what comes from sockets is vetted.
    pub verify: VerifyPolicy,
}

/// Names one socket among those of all shares: a tunnel and a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortIndex(pub usize);

impl PortIndex {
    /// Most sockets of one share: one per family.
    const FAMILIES: usize = 2;

    fn new(tunnel: TunnelIndex, family: usize) -> Self {
        Self(usize::from(tunnel.0) * Self::FAMILIES + family)
    }

    /// Whose it is.
    pub fn tunnel(self) -> TunnelIndex {
        TunnelIndex((self.0 / Self::FAMILIES) as u16)
    }

    fn family(self) -> usize {
        self.0 % Self::FAMILIES
    }
}

/// Where opened packets go on.
pub struct Onward<'w, S> {
    /// The table of this batch.
    pub table: &'w ForwardingTable,
    /// Vetting and coalescing.
    pub ingress: &'w mut Ingress,
    /// What the worker counts.
    pub counters: &'w Counters,
    /// The devices.
    pub sink: &'w mut S,
}

/// One worker's part of all interfaces.
pub struct WireGuardPath {
    /// By tunnel.
    shares: Vec<Option<Share>>,
    opener: Option<Opener>,
    egress: Option<SealedEgress>,
    /// Always empty: the allocation for a batch.
    messages: Vec<SealedMessage<'static>>,
}

impl WireGuardPath {
    /// A worker's part of these interfaces. Without any it costs nothing.
    pub fn new(shares: Vec<Share>) -> Self {
        let any = !shares.is_empty();
        let mut by_tunnel = Vec::new();
        for share in shares {
            let index = usize::from(share.tunnel.0);
            by_tunnel.resize_with(by_tunnel.len().max(index + 1), || None);
            by_tunnel[index] = Some(share);
        }
        Self {
            shares: by_tunnel,
            opener: any.then(Opener::new),
            egress: any.then(SealedEgress::new),
            messages: Vec::with_capacity(if any { crate::worker::BATCH } else { 0 }),
        }
    }

    /// Every socket, to be watched.
    pub fn receivers(&self) -> impl Iterator<Item = (PortIndex, &ReceiveSocket)> {
        self.shares.iter().flatten().flat_map(|share| {
            let receivers = share.sockets.receivers.iter().enumerate();
            receivers.map(|(family, socket)| (PortIndex::new(share.tunnel, family), socket))
        })
    }

    /// Receives and sends on other sockets from now on.
    pub fn change_port(&mut self, tunnel: TunnelIndex, sockets: PortSockets) {
        if let Some(Some(share)) = self.shares.get_mut(usize::from(tunnel.0)) {
            share.sockets = sockets;
        }
    }

    /// The sockets of one interface.
    pub fn receivers_of(&self, tunnel: TunnelIndex) -> impl Iterator<Item = (PortIndex, &ReceiveSocket)> {
        self.receivers().filter(move |(index, _)| index.tunnel() == tunnel)
    }

    /// The device was deleted: its peers are to notice, and to look for another way.
    pub fn silence(&self, tunnel: TunnelIndex) {
        if let Some(Some(share)) = self.shares.get(usize::from(tunnel.0)) {
            share.device.retire();
        }
    }

    /// Whether this tunnel's packets are to be sealed.
    pub fn carries(&self, tunnel: TunnelIndex) -> bool {
        matches!(self.shares.get(usize::from(tunnel.0)), Some(Some(_)))
    }

    /// An empty list for the sealed messages of a batch.
    pub fn messages<'m>(&mut self) -> Vec<SealedMessage<'m>> {
        mem::take(&mut self.messages)
    }

    /// Opens the messages of a batch and sends them onward.
    pub fn deliver<S: FrameSink>(&mut self, mut messages: Vec<SealedMessage<'_>>, mut onward: Onward<'_, S>) {
        let mut rest = messages.drain(..).peekable();
        while let Some(tunnel) = rest.peek().map(|message| message.tunnel) {
            let mut same = std::iter::from_fn(|| rest.next_if(|message| message.tunnel == tunnel));
            match (self.shares.get(usize::from(tunnel.0)), &mut self.opener) {
                (Some(Some(share)), Some(opener)) => open(opener, share, &mut same, &mut onward),
                // Unless XDP's record names another tunnel than it steers by.
                _ => onward.counters.drops.add(
                    Direction::Ingress,
                    Stage::Decap,
                    DropReason::BadMetadata,
                    same.count() as u64,
                ),
            }
        }
        drop(rest);
        self.messages = recycle(messages);
    }

    /// Opens what one socket has, and sends it onward; how many bytes it was.
    pub fn receive<S: FrameSink>(
        &mut self,
        index: PortIndex,
        buffers: &mut ReceiveBuffers,
        mut onward: Onward<'_, S>,
    ) -> usize {
        let (Some(Some(share)), Some(opener)) = (self.shares.get_mut(usize::from(index.tunnel().0)), &mut self.opener)
        else {
            return 0;
        };
        let Some(socket) = share.sockets.receivers.get_mut(index.family()) else { return 0 };
        let dropped_before = socket.drops();
        let received = socket.receive(buffers);
        onward.counters.udp_receive_drops.add(socket.drops() - dropped_before);
        let Some(batch) = received.ok().filter(|batch| !batch.is_empty()) else {
            // What woke us was an ICMP error.
            socket.drain_errors();
            return 0;
        };
        let port = share.sockets.number;
        let counters = onward.counters;
        onward.ingress.set_policy(share.verify);
        let share = &*share;
        let mut moved = 0;
        let mut messages = batch.filter_map(|datagram| {
            moved += datagram.payload.len();
            sealed(share.tunnel, port, datagram, counters)
        });
        open(opener, share, &mut messages, &mut onward);
        moved
    }

    /// Seals a frame from the TUN and sends it.
    pub fn seal(&mut self, tunnel: TunnelIndex, frame: &mut [u8], counters: &Counters) {
        if let (Some(Some(share)), Some(egress)) = (self.shares.get_mut(usize::from(tunnel.0)), &mut self.egress) {
            egress.run(&share.device, counters, frame, &mut share.sockets.sender);
        }
    }
}

/// Opens messages of one interface, batch by batch.
fn open<'m, S: FrameSink>(
    opener: &mut Opener,
    share: &Share,
    messages: &mut impl Iterator<Item = SealedMessage<'m>>,
    onward: &mut Onward<'_, S>,
) {
    let Onward { table, ingress, counters, sink } = onward;
    while let Some(opened) = opener.open(&share.device, counters, messages) {
        let packets = opened.map(|bytes| Received { bytes, origin: Origin::Session(share.tunnel) });
        ingress.run(table, &mut |_, _, _| {}, &mut |_| {}, counters, packets, *sink);
    }
}

/// Empties a vector and changes its element's lifetime. Collecting in place keeps the allocation.
fn recycle(mut messages: Vec<SealedMessage<'_>>) -> Vec<SealedMessage<'static>> {
    messages.clear();
    messages.into_iter().map(|message| SealedMessage { bytes: &mut [], ..message }).collect()
}

/// A datagram from a socket as a message; one that cannot be a message is a drop.
fn sealed<'a>(
    tunnel: TunnelIndex,
    port: u16,
    datagram: Datagram<'a>,
    counters: &Counters,
) -> Option<SealedMessage<'a>> {
    let Datagram { payload, remote, port: remote_port, scope, destination, tos } = datagram;
    let message_type = wireguard::check(payload)
        .inspect_err(|reason| counters.drops.add(Direction::Ingress, Stage::Decap, *reason, 1))
        .ok()?;
    let local = address_bytes(destination.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    let origin = SocketOrigin { local, port, remote: address_bytes(remote), remote_port, scope, ecn: tos & 3 };
    Some(SealedMessage { tunnel, message_type, bytes: payload, origin, tolerated: None })
}
