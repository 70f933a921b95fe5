//! Egress: from a tunnel's TUN/TAP to the underlay.
//!
//! ```text
//! frame → vnet header → overlay headers → route → segment → encap → DatagramSink
//! ```
//!
//! A frame is looked up once: the segments of a superframe share their flow. What goes to several remotes is cut and
//! wrapped once and sent several times, since only the outer destination differs.
//!
//! Invariants: every frame ends as datagrams handed to the sink or as one drop under a reason; every datagram that the sink
//! could not send is a drop too. Nothing is allocated after [`Egress::new`]. Payload is never copied. What has been wrapped once is
//! not wrapped again: a route to a remote that leads through the tunnel costs the packets, not the gateway.
//!
//! Deliberately absent: ARP, ND and MTU handling. The kernel does them on the device's side, and the underlay's path MTU is
//! the kernel's too.

use std::io::ErrorKind;
use std::net::IpAddr;

use netfwd_common::abi::{EndpointKey, TunnelKind};
use netfwd_common::classify::Lookup;
use netfwd_common::reason::{DropReason, Stage};
use netfwd_common::wire::ethernet::{Mac, is_multicast};
use netfwd_common::wire::vnet;
use zerocopy::FromBytes;

use super::fdb::Fdbs;
use super::offload::{Cut, Offload};
use super::overlay::Overlay;
use super::packet::{Link, RemoteIndex, TunnelIndex};
use super::seam::{DatagramSink, SendFailure, Transmit};
use super::segment::{Superframe, complete_checksum};
use super::stats::{Counters, Direction, Proto};
use super::table::{ForwardingTable, Tunnel, address_bytes};
use super::tunnel::encap::{self, Encapsulation, HEADER_LEN, MAX_PAYLOAD, Run};

/// What egress knows about the world while it works through a batch.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Configuration.
    pub table: &'a ForwardingTable,
    /// Learned addresses.
    pub fdbs: &'a Fdbs,
    /// The worker's counters.
    pub counters: &'a Counters,
    /// Seconds on a monotonic clock, read once per batch.
    pub now_seconds: u32,
}

/// One worker's egress path.
#[derive(Debug)]
pub struct Egress {
    headers: Box<[u8]>,
    flow_seed: u64,
}

/// Why and where a frame ended.
pub(super) struct Refusal(pub(super) Stage, pub(super) DropReason);

impl Egress {
    /// An egress path. `flow_seed` keys the hash that source ports come from: the same for all workers.
    pub fn new(flow_seed: u64) -> Self {
        Self { headers: vec![0; MAX_PAYLOAD].into_boxed_slice(), flow_seed }
    }

    /// Sends one frame read from a tunnel's TUN/TAP: a vnet header and a packet. The frame is scratch afterwards.
    pub fn run(
        &mut self,
        around: &Surroundings<'_>,
        tunnel: TunnelIndex,
        frame: &mut [u8],
        sink: &mut impl DatagramSink,
    ) {
        let outcome = match around.table.get(tunnel) {
            Some(config) => self.forward(around, tunnel, config, frame, sink),
            None => Err(Refusal(Stage::Route, DropReason::NoRoute)),
        };
        if let Err(Refusal(stage, reason)) = outcome {
            around.counters.drops.add(Direction::Egress, stage, reason, 1);
        }
    }

    fn forward(
        &mut self,
        around: &Surroundings<'_>,
        tunnel: TunnelIndex,
        config: &Tunnel,
        frame: &mut [u8],
        sink: &mut impl DatagramSink,
    ) -> Result<(), Refusal> {
        around.counters.tunnel(tunnel).tun_read_frames.add(1);
        let (vnet, packet) =
            vnet::Header::mut_from_prefix(frame).map_err(|_| Refusal(Stage::Tun, DropReason::VnetHeader))?;
        let overlay =
            Overlay::parse(config.link(), packet, self.flow_seed).map_err(|reason| Refusal(Stage::Route, reason))?;
        if is_wrapped_here(around.table, packet, &overlay) {
            return Err(Refusal(Stage::Route, DropReason::Nested));
        }
        let remotes = route(around, tunnel, config, packet, &overlay)?;
        let offload = Offload::parse(vnet, packet, &overlay).map_err(|reason| Refusal(Stage::Segment, reason))?;
        let wrap = Encapsulation::new(config, &overlay);
        let mut replicator = Replicator { wrap: &wrap, remotes, counters: around.counters, tunnel, sink };
        let sent = match offload {
            Offload::None => encap::single(&wrap, packet, None, |run| replicator.send(&run)),
            Offload::Checksum(checksum) => {
                let sum = complete_checksum(packet, checksum);
                encap::single(&wrap, packet, sum, |run| replicator.send(&run))
            }
            Offload::Segment(gso) => {
                let superframe = Superframe::new(gso, packet);
                let sent = encap::superframe(&wrap, &superframe, &mut self.headers, |run| replicator.send(&run));
                sent.inspect(|()| count_segments(around.counters, tunnel, &superframe))
            }
        };
        sent.map_err(|reason| Refusal(Stage::Segment, reason))
    }
}

/// Whether a packet is a datagram of our own tunnels, which comes back since the route to its remote leads through one of them
/// (`vxlan_xmit_one` calls that a circular route). Wrapped again it would come back for ever, and in ever more fragments.
///
/// Of a fragmented one the first fragment is known; the others are, once they are wrapped.
fn is_wrapped_here(table: &ForwardingTable, packet: &[u8], overlay: &Overlay) -> bool {
    let Some(network) = &overlay.network else { return false };
    let Some(port) = network.udp_destination_port(packet).filter(|&port| table.is_endpoint_port(port)) else {
        return false;
    };
    let source = network.source(packet).map(address_bytes);
    let endpoint = source.and_then(|local| table.endpoint(&EndpointKey { local, port, reserved: 0 }));
    // A WireGuard peer's port says nothing of ours.
    endpoint.is_some_and(|endpoint| endpoint.kind != TunnelKind::WireGuard as u8)
}

/// The remotes that a packet goes to, at least one.
fn route<'t>(
    around: &Surroundings<'_>,
    tunnel: TunnelIndex,
    config: &'t Tunnel,
    packet: &[u8],
    overlay: &Overlay,
) -> Result<&'t [IpAddr], Refusal> {
    let remotes = match config.link() {
        Link::Ethernet => packet.first_chunk().and_then(|mac| {
            let known = lookup_mac(around, tunnel, mac).and_then(|remote| one_remote(config, remote));
            known.or(Some(config.remotes.as_slice()))
        }),
        Link::Ip => overlay
            .network
            .and_then(|network| around.table.route(tunnel, network.destination))
            .and_then(|remote| one_remote(config, remote)),
    };
    remotes.filter(|remotes| !remotes.is_empty()).ok_or(Refusal(Stage::Route, DropReason::NoRoute))
}

fn lookup_mac(around: &Surroundings<'_>, tunnel: TunnelIndex, mac: &Mac) -> Option<RemoteIndex> {
    if is_multicast(mac) { None } else { around.fdbs.lookup(tunnel, mac, around.now_seconds) }
}

fn one_remote(config: &Tunnel, RemoteIndex(index): RemoteIndex) -> Option<&[IpAddr]> {
    config.remotes.get(usize::from(index)).map(std::slice::from_ref)
}

pub(super) fn count_segments(counters: &Counters, tunnel: TunnelIndex, superframe: &Superframe<'_>) {
    let proto = match superframe.cut() {
        Cut::Tcp => Proto::Tcp,
        Cut::Udp => Proto::Udp,
    };
    counters.tunnel(tunnel).tso_output_packets[proto as usize].add(superframe.segments() as u64);
}

/// Sends each run to every remote (head-end replication).
struct Replicator<'a, S> {
    wrap: &'a Encapsulation,
    remotes: &'a [IpAddr],
    counters: &'a Counters,
    tunnel: TunnelIndex,
    sink: &'a mut S,
}

impl<S: DatagramSink> Replicator<'_, S> {
    fn send(&mut self, run: &Run<'_>) {
        for remote in self.remotes {
            let transmit = Transmit {
                local: self.wrap.local,
                remote: *remote,
                port: self.wrap.port,
                scope: 0,
                source_port: self.wrap.source_port,
                tos: self.wrap.tos,
                segment_size: run.segment_size,
                datagrams: run.datagrams,
                slices: run.slices,
                checksum: run.checksum,
            };
            let lost = send(self.sink, &transmit, self.counters);
            self.count_sent(run, lost);
        }
    }

    fn count_sent(&self, run: &Run<'_>, lost: usize) {
        let datagrams = run.datagrams - lost;
        // Which ones were lost is not known: each counts as one of the run's full size.
        let bytes = run.bytes.saturating_sub(lost * run.segment_size).saturating_sub(datagrams * HEADER_LEN);
        let tunnel = self.counters.tunnel(self.tunnel);
        tunnel.transmit_packets.add(datagrams as u64);
        tunnel.transmit_bytes.add(bytes as u64);
    }
}

/// Sends a run and counts what goes wrong; how many datagrams were lost.
pub fn send(sink: &mut impl DatagramSink, transmit: &Transmit<'_>, counters: &Counters) -> usize {
    let Err(SendFailure { lost, error }) = sink.send(transmit) else { return 0 };
    let lost = lost.min(transmit.datagrams);
    let reason = match error.raw_os_error() {
        Some(libc::ENOBUFS) => DropReason::SendQueueFull,
        _ if error.kind() == ErrorKind::WouldBlock => DropReason::SendQueueFull,
        _ => DropReason::SendError,
    };
    counters.udp_send_errors.count(&error);
    counters.drops.add(Direction::Egress, Stage::Send, reason, lost as u64);
    lost
}
