//! One queue's loop: the only place where sockets, devices and the data path meet.
//!
//! A worker owns queue *i* of everything: the AF_XDP sockets of the underlays, the UDP sockets of the tunnels, the
//! TUN/TAP queues, its coalescer and its counters. It sleeps in epoll until one of them has something, works off one
//! batch, and looks again, for a few microseconds before it sleeps; nothing is held between batches. It shares with its
//! siblings only what is immutable (the forwarding table), atomic (the forwarding database), the kernel's (the send
//! sockets), or locked once a batch (WireGuard's peers).

use std::io;
use std::iter;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use netfwd_common::reason::{DropReason, Stage};
use rustix::event::{Timespec, epoll};

use crate::control::health::Heartbeat;
use crate::datapath::egress::{Egress, Surroundings};
use crate::datapath::fdb::{Fdbs, Learned};
use crate::datapath::ingress::{Ingress, Origin, Received};
use crate::datapath::packet::TunnelIndex;
use crate::datapath::stats::{Counters, Direction};
use crate::datapath::table::{ForwardingTable, VerifyPolicy, address_bytes};
use crate::datapath::tunnel::decap::SocketOrigin;
use crate::deletion::Deletion;
use crate::io::listen_port::PortSockets;
use crate::io::tun::{READ_LEN, TunQueues};
use crate::io::udp_receive::{ReceiveBuffers, ReceiveSocket};
use crate::io::udp_send::UdpSender;
use crate::io::xsk;
use crate::linger::{Linger, Moved};
use crate::order::{Order, OrderInbox};
use crate::published::FrameGauges;
use crate::wireguard::path::{Onward, PortIndex, WireGuardPath};

/// Packets of one AF_XDP batch, and so the most that can meet in one superframe.
pub const BATCH: usize = 256;
/// How often one batch may find something in the RX ring.
const LOOKS: usize = 8;
/// Superframes read from one device before the others get their turn.
const DEVICE_BURST: usize = 16;
/// Batches of each source that are taken after the stop: half an RX ring.
const DRAIN_ROUNDS: usize = 8;
/// Longest sleep: the pulse stays fresh on an idle gateway.
const IDLE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// An AF_XDP socket and its batch, in as many parts as looks at the ring gave.
pub struct Queue {
    socket: xsk::Socket,
    batch: [xsk::RxBatch; LOOKS],
    verify: VerifyPolicy,
    busy_poll: bool,
    gauges: Arc<FrameGauges>,
}

impl Queue {
    /// A queue whose unverified packets are vetted by `verify`.
    pub fn new(socket: xsk::Socket, verify: VerifyPolicy, busy_poll: bool, gauges: Arc<FrameGauges>) -> Self {
        let batch = std::array::from_fn(|_| socket.batch(BATCH));
        gauges.publish(socket.frame_counts());
        Self { socket, batch, verify, busy_poll, gauges }
    }

    /// Whether its driver is to be polled instead of waited for.
    pub fn is_busy_polled(&self) -> bool {
        self.busy_poll
    }
}

/// A UDP socket on a tunnel's address and port.
pub struct Endpoint {
    /// The socket.
    pub socket: ReceiveSocket,
    /// Its address, as map keys hold it.
    pub local: [u8; 16],
    /// Its port.
    pub port: u16,
    /// How its packets are vetted.
    pub verify: VerifyPolicy,
}

/// What all workers share.
#[derive(Clone)]
pub struct Shared {
    /// Configuration's decisions.
    pub table: Arc<ForwardingTable>,
    /// Learned addresses.
    pub fdbs: Arc<Fdbs>,
    /// The zero of [`Surroundings::now_seconds`].
    pub epoch: Instant,
}

/// What one worker owns.
pub struct Parts {
    /// By underlay; `None` where the kernel's sockets receive alone.
    pub queues: Vec<Option<Queue>>,
    /// One per tunnel address and port.
    pub endpoints: Vec<Endpoint>,
    /// One per tunnel.
    pub devices: TunQueues,
    /// The way out.
    pub sender: UdpSender,
    /// Underlay → overlay.
    pub ingress: Ingress,
    /// Overlay → underlay.
    pub egress: Egress,
    /// Both ways of WireGuard tunnels.
    pub wireguard: WireGuardPath,
    /// What changes while it runs.
    pub orders: OrderInbox,
    /// What it counts.
    pub counters: Arc<Counters>,
    /// Spin instead of sleeping.
    pub busy_poll: bool,
    /// What follows when a device is deleted.
    pub deletion: Deletion,
}

/// One queue's loop.
pub struct Worker {
    shared: Shared,
    parts: Parts,
    poll: OwnedFd,
    buffers: ReceiveBuffers,
    frame: Box<[u8]>,
}

/// What became ready.
#[derive(Clone, Copy)]
enum Ready {
    Stop,
    Queue(usize),
    Endpoint(usize),
    Device(usize),
    Port(PortIndex),
    Orders,
}

impl Ready {
    fn token(self) -> u64 {
        let (kind, index) = match self {
            Self::Stop => (0, 0),
            Self::Queue(index) => (1, index),
            Self::Endpoint(index) => (2, index),
            Self::Device(index) => (3, index),
            Self::Port(PortIndex(index)) => (4, index),
            Self::Orders => (5, 0),
        };
        (kind << 32) | index as u64
    }

    fn from_token(token: u64) -> Self {
        let index = (token & 0xffff_ffff) as usize;
        match token >> 32 {
            1 => Self::Queue(index),
            2 => Self::Endpoint(index),
            3 => Self::Device(index),
            4 => Self::Port(PortIndex(index)),
            5 => Self::Orders,
            _ => Self::Stop,
        }
    }
}

impl Worker {
    /// Watches everything in `parts`, and `stop`, whose readability ends [`Self::run`].
    pub fn new(shared: Shared, parts: Parts, stop: &OwnedFd) -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (buffers, frame) = (ReceiveBuffers::new(), vec![0; READ_LEN].into());
        let worker = Self { shared, parts, poll, buffers, frame };
        worker.watch(stop, Ready::Stop)?;
        for (index, queue) in worker.parts.queues.iter().enumerate() {
            if let Some(queue) = queue {
                worker.watch(&queue.socket, Ready::Queue(index))?;
            }
        }
        for (index, endpoint) in worker.parts.endpoints.iter().enumerate() {
            worker.watch(&endpoint.socket, Ready::Endpoint(index))?;
        }
        for (index, device) in worker.parts.devices.iter().enumerate() {
            worker.watch(device, Ready::Device(index))?;
        }
        for (index, socket) in worker.parts.wireguard.receivers() {
            worker.watch(socket, Ready::Port(index))?;
        }
        worker.watch(&worker.parts.orders, Ready::Orders)?;
        Ok(worker)
    }

    fn watch(&self, source: impl AsFd, ready: Ready) -> io::Result<()> {
        let token = epoll::EventData::new_u64(ready.token());
        Ok(epoll::add(&self.poll, source, token, epoll::EventFlags::IN)?)
    }

    /// Works until told to stop, then takes what has arrived so far and gives everything back.
    pub fn run(mut self, heartbeat: &Heartbeat) -> io::Result<()> {
        let mut events = Vec::with_capacity(64);
        let mut linger = Linger::new(Instant::now());
        loop {
            let now = Instant::now();
            heartbeat.beat(now);
            self.wait(&mut events, linger.is_awake(now))?;
            let started = Instant::now();
            let Some(moved) = self.round(&events, started)? else { return self.drain() };
            if !events.is_empty() || self.parts.busy_poll {
                let ended = Instant::now();
                self.parts.counters.busy_nanoseconds.add(ended.duration_since(started).as_nanos() as u64);
                linger.served(moved, started, ended);
            }
        }
    }

    /// Sleeps until something is ready, or only looks.
    fn wait(&self, events: &mut Vec<epoll::Event>, is_awake: bool) -> io::Result<()> {
        for queue in self.parts.queues.iter().flatten() {
            queue.socket.wake_if_needed();
        }
        let timeout = if self.parts.busy_poll || is_awake { &NO_WAIT } else { &IDLE };
        events.clear();
        match epoll::wait(&self.poll, rustix::buffer::spare_capacity(events), Some(timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Serves everything that is ready; what it moved, or nothing if this was the last round.
    fn round(&mut self, events: &[epoll::Event], started: Instant) -> io::Result<Option<Moved>> {
        let (mut inward, mut outward) = (0, 0);
        if self.parts.busy_poll {
            // The driver is polled by the receive call, so nothing may become readable before it.
            inward += (0..self.parts.queues.len()).map(|index| self.serve(Ready::Queue(index), started)).sum::<usize>();
        }
        for event in events {
            match Ready::from_token(event.data.u64()) {
                Ready::Stop => return Ok(None),
                Ready::Orders => self.take_orders(started)?,
                device @ Ready::Device(_) => outward += self.serve(device, started),
                underlay => inward += self.serve(underlay, started),
            }
        }
        Ok(Some(Moved { bytes: inward + outward, inward: inward > 0 }))
    }

    /// Works off a batch of what is ready; how many bytes it was.
    fn serve(&mut self, ready: Ready, now: Instant) -> usize {
        let now_seconds = now.duration_since(self.shared.epoch).as_secs() as u32;
        match ready {
            Ready::Stop | Ready::Orders => 0,
            Ready::Queue(index) => self.ingress_queue(index, now_seconds),
            Ready::Endpoint(index) => self.ingress_endpoint(index, now_seconds),
            Ready::Device(index) => self.egress_device(index, now_seconds),
            Ready::Port(index) => self.ingress_port(index),
        }
    }

    /// Seldom: a port changed, an underlay was deleted or is back.
    fn take_orders(&mut self, now: Instant) -> io::Result<()> {
        self.parts.orders.silence();
        while let Some(order) = self.parts.orders.next() {
            match order {
                Order::Table(table) => self.shared.table = table,
                Order::Port { tunnel, sockets } => self.change_port(tunnel, sockets)?,
                Order::QueueLost { underlay } => self.drop_queue(underlay, now),
                Order::QueueAttached { underlay, queue } => {
                    self.drop_queue(underlay, now);
                    self.take_queue(underlay, *queue)?;
                }
            }
        }
        self.parts.busy_poll = self.parts.queues.iter().flatten().any(Queue::is_busy_polled);
        Ok(())
    }

    fn change_port(&mut self, tunnel: TunnelIndex, sockets: PortSockets) -> io::Result<()> {
        // By hand: epoll watches a socket as long as anyone has a descriptor of it.
        for (_, socket) in self.parts.wireguard.receivers_of(tunnel) {
            let _ = epoll::delete(&self.poll, socket);
        }
        self.parts.wireguard.change_port(tunnel, sockets);
        for (index, socket) in self.parts.wireguard.receivers_of(tunnel) {
            self.watch(socket, Ready::Port(index))?;
        }
        Ok(())
    }

    /// What its ring still holds arrived before the loss.
    fn drop_queue(&mut self, underlay: usize, now: Instant) {
        for _ in 0..DRAIN_ROUNDS * 2 {
            self.serve(Ready::Queue(underlay), now);
        }
        if let Some(queue) = self.parts.queues.get_mut(underlay).and_then(Option::take) {
            let _ = epoll::delete(&self.poll, &queue.socket);
        }
    }

    fn take_queue(&mut self, underlay: usize, queue: Queue) -> io::Result<()> {
        self.watch(&queue.socket, Ready::Queue(underlay))?;
        if let Some(place) = self.parts.queues.get_mut(underlay) {
            *place = Some(queue);
        }
        Ok(())
    }

    /// NIC → AF_XDP → lookup → decap (or open) → vet → coalesce → TUN/TAP.
    ///
    /// The driver hands packets over in portions that it chooses (veth: 64), which would cut a sender's superframe in two.
    /// So a batch that still has room takes what arrived while its packets were coalesced and its frames written.
    fn ingress_queue(&mut self, index: usize, now_seconds: u32) -> usize {
        let Parts { queues, devices, ingress, counters, wireguard, .. } = &mut self.parts;
        let Shared { table, fdbs, .. } = &self.shared;
        let Some(queue) = queues.get_mut(index).and_then(Option::as_mut) else { return 0 };
        let Queue { socket, batch, busy_poll, .. } = queue;
        // Polled, the driver has put its portion into the ring on this very thread: there is nothing to look for.
        let looks = if *busy_poll { 1 } else { LOOKS };
        let refused_before = socket.refused();
        let mut moved = 0;
        let received = look_by_look(socket, &mut batch[..looks]).map(|frame| {
            moved += frame.bytes.len();
            Received { bytes: frame.bytes, origin: Origin::Xdp { metadata: frame.metadata } }
        });
        let mut learn = |tunnel, mac, remote| {
            let outcome = fdbs.learn(tunnel, &mac, remote, now_seconds);
            counters.tunnel(tunnel).fdb_full.add(u64::from(outcome == Learned::Full));
        };
        ingress.set_policy(queue.verify);
        let mut sealed = wireguard.messages();
        ingress.run(table, &mut learn, &mut |message| sealed.push(message), counters, received, devices);
        wireguard.deliver(sealed, Onward { table, ingress, counters, sink: devices });
        count_refused(counters, refused_before, queue.socket.refused());
        for part in &mut queue.batch {
            queue.socket.release(part);
        }
        queue.gauges.publish(queue.socket.frame_counts());
        moved
    }

    /// Kernel → UDP socket → lookup → decap → vet → coalesce → TUN/TAP.
    fn ingress_endpoint(&mut self, index: usize, now_seconds: u32) -> usize {
        let Parts { endpoints, devices, ingress, counters, .. } = &mut self.parts;
        let Shared { table, fdbs, .. } = &self.shared;
        let Some(endpoint) = endpoints.get_mut(index) else { return 0 };
        let (local, port) = (endpoint.local, endpoint.port);
        let dropped_before = endpoint.socket.drops();
        // An error here is a pending ICMP message or a signal: the next call sees the datagrams.
        let Ok(batch) = endpoint.socket.receive(&mut self.buffers) else { return 0 };
        let mut moved = 0;
        let received = batch.map(|datagram| {
            moved += datagram.payload.len();
            let origin = SocketOrigin {
                local,
                port,
                remote: address_bytes(datagram.remote),
                remote_port: datagram.port,
                scope: datagram.scope,
                ecn: datagram.tos & 3,
            };
            Received { bytes: datagram.payload, origin: Origin::Socket(origin) }
        });
        let mut learn = |tunnel, mac, remote| {
            let outcome = fdbs.learn(tunnel, &mac, remote, now_seconds);
            counters.tunnel(tunnel).fdb_full.add(u64::from(outcome == Learned::Full));
        };
        ingress.set_policy(endpoint.verify);
        // No port serves both kinds, so there are no sealed messages here.
        ingress.run(table, &mut learn, &mut |_| {}, counters, received, devices);
        counters.udp_receive_drops.add(endpoint.socket.drops() - dropped_before);
        moved
    }

    /// Kernel → UDP socket → open → vet → coalesce → TUN.
    fn ingress_port(&mut self, index: PortIndex) -> usize {
        let Parts { devices, ingress, counters, wireguard, .. } = &mut self.parts;
        let table = &self.shared.table;
        wireguard.receive(index, &mut self.buffers, Onward { table, ingress, counters, sink: devices })
    }

    /// TUN/TAP → route → segment → encap (or seal) → UDP socket.
    fn egress_device(&mut self, index: usize, now_seconds: u32) -> usize {
        let Parts { devices, egress, sender, counters, wireguard, deletion, .. } = &mut self.parts;
        let around = Surroundings { table: &self.shared.table, fdbs: &self.shared.fdbs, counters, now_seconds };
        let tunnel = TunnelIndex(index as u16);
        let Some(device) = devices.get_mut(tunnel) else { return 0 };
        let mut moved = 0;
        for _ in 0..DEVICE_BURST {
            match device.read(&mut self.frame) {
                Ok(Some(len)) => {
                    let frame = &mut self.frame[..len.min(READ_LEN)];
                    moved += frame.len();
                    match wireguard.carries(tunnel) {
                        true => wireguard.seal(tunnel, frame, counters),
                        false => egress.run(&around, tunnel, frame, sender),
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    counters.tunnel(tunnel).tun_errors.count(&error);
                    // Someone deleted the device: its queue would stay readable for ever. At the end it is read once more.
                    if error.raw_os_error() == Some(libc::EBADFD) && epoll::delete(&self.poll, device).is_ok() {
                        wireguard.silence(tunnel);
                        if let Some(config) = self.shared.table.get(tunnel) {
                            deletion.of(&config.name);
                        }
                    }
                    break;
                }
            }
        }
        moved
    }

    /// What arrived before XDP was detached and the stop was seen still goes out, within bounds.
    fn drain(mut self) -> io::Result<()> {
        let now = Instant::now();
        let queues = (0..self.parts.queues.len()).map(Ready::Queue);
        let endpoints = (0..self.parts.endpoints.len()).map(Ready::Endpoint);
        let ports = self.parts.wireguard.receivers().map(|(index, _)| Ready::Port(index));
        let devices = (0..self.parts.devices.iter().count()).map(Ready::Device);
        let sources: Vec<_> = queues.chain(endpoints).chain(ports).chain(devices).collect();
        for _ in 0..DRAIN_ROUNDS {
            for &source in &sources {
                self.serve(source, now);
            }
        }
        Ok(())
    }
}

/// Packets as long as there are some, one part of a batch per look that found any. After a `None` there may be more later.
fn look_by_look<'a>(
    socket: &'a mut xsk::Socket,
    parts: &'a mut [xsk::RxBatch],
) -> impl Iterator<Item = xsk::Received<'a>> {
    let (mut room, mut parts, mut packets) = (BATCH, parts.iter_mut(), None);
    let mut empty = parts.next();
    iter::from_fn(move || {
        loop {
            if let Some(packet) = packets.as_mut().and_then(Iterator::next) {
                return Some(packet);
            }
            let part = empty.take()?;
            let arrived = socket.recv(part, room);
            if arrived == 0 {
                empty = Some(part);
                return None;
            }
            room -= arrived;
            (packets, empty) = (Some(part.iter_mut()), parts.next());
        }
    })
}

/// What the socket itself refused is a drop like any other.
fn count_refused(counters: &Counters, before: xsk::Refused, after: xsk::Refused) {
    for (reason, packets) in [
        (DropReason::XskDescriptor, after.invalid_descriptors - before.invalid_descriptors),
        (DropReason::Unassembled, after.unassembled - before.unassembled),
    ] {
        if packets > 0 {
            counters.drops.add(Direction::Ingress, Stage::Decap, reason, packets);
        }
    }
}
