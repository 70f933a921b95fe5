//! Egress of WireGuard tunnels: from a tunnel's TUN to sealed datagrams.
//!
//! ```text
//! frame → vnet header → overlay headers → peer → segment → seal → DatagramSink
//! ```
//!
//! As in [`egress`](super::egress) a frame is looked up once, since the segments of a superframe share their flow; here it is
//! also sealed under one lock.
//!
//! Invariants: every frame ends as datagrams handed to the sink, as packets that wait for a handshake, or as one drop under a
//! reason; every datagram that the sink could not send is a drop too. What is itself on its way to the peer's endpoint is not sealed for
//! that peer: it comes back since the route there leads through the tunnel (`send4` in the kernel's wireguard/socket.c says ELOOP).

use std::net::{IpAddr, Ipv4Addr};

use netfwd_common::reason::{DropReason, Stage};
use netfwd_common::wire::vnet;
use netfwd_common::wire::wireguard::OVERHEAD;
use zerocopy::FromBytes;

use super::egress::{Refusal, count_segments, send};
use super::offload::Offload;
use super::overlay::Overlay;
use super::packet::{Link, TunnelIndex};
use super::seam::{DatagramSink, OuterChecksum, Transmit};
use super::segment::{Superframe, complete_checksum};
use super::stats::{Counters, Direction};
use super::tunnel::wireguard::path::HANDSHAKE_TOS;
use super::tunnel::wireguard::{Content, Device, Inner, Outgoing, Sealer};

/// One worker's egress path for WireGuard.
pub struct SealedEgress {
    sealer: Sealer,
}

impl SealedEgress {
    /// An egress path with its buffers.
    #[expect(clippy::new_without_default, reason = "it allocates")]
    pub fn new() -> Self {
        Self { sealer: Sealer::new() }
    }

    /// Sends one frame read from the TUN of `device`: a vnet header and a packet. The frame is scratch afterwards.
    pub fn run(&mut self, device: &Device, counters: &Counters, frame: &mut [u8], sink: &mut impl DatagramSink) {
        if let Err(Refusal(stage, reason)) = self.forward(device, counters, frame, sink) {
            counters.drops.add(Direction::Egress, stage, reason, 1);
        }
    }

    fn forward(
        &mut self,
        device: &Device,
        counters: &Counters,
        frame: &mut [u8],
        sink: &mut impl DatagramSink,
    ) -> Result<(), Refusal> {
        let tunnel = device.tunnel();
        counters.tunnel(tunnel).tun_read_frames.add(1);
        let (vnet, packet) =
            vnet::Header::mut_from_prefix(frame).map_err(|_| Refusal(Stage::Tun, DropReason::VnetHeader))?;
        let overlay = Overlay::parse(Link::Ip, packet, 0).map_err(|reason| Refusal(Stage::Route, reason))?;
        let network = overlay.network.ok_or(Refusal(Stage::Route, DropReason::NotIp))?;
        let offload = Offload::parse(vnet, packet, &overlay).map_err(|reason| Refusal(Stage::Segment, reason))?;
        let (destination, ecn) = (network.destination, network.ecn());
        // Of a fragmented datagram the first fragment is known; the others are, once they are sealed.
        let wrapped_for = network.udp_destination_port(packet).map(|port| (destination, port));
        let mut emit = |outgoing: &Outgoing<'_>| match (outgoing.path.remote.ip(), outgoing.path.remote.port()) {
            remote if wrapped_for == Some(remote) => {
                counters.drops.add(Direction::Egress, Stage::Route, DropReason::Nested, outgoing.datagrams as u64);
                0
            }
            _ => transmit(sink, outgoing, tunnel, counters),
        };
        let mut seal = |content| self.sealer.seal(device, counters, &Inner { destination, ecn, content }, &mut emit);
        let sealed = match offload {
            Offload::None => seal(Content::Packet(packet)),
            Offload::Checksum(checksum) => {
                complete_checksum(packet, checksum);
                seal(Content::Packet(packet))
            }
            Offload::Segment(gso) => {
                let superframe = Superframe::new(gso, packet);
                seal(Content::Superframe(&superframe)).inspect(|_| count_segments(counters, tunnel, &superframe))
            }
        };
        sealed.map(drop).map_err(|reason| Refusal(stage_of(reason), reason))
    }
}

fn stage_of(reason: DropReason) -> Stage {
    match reason {
        DropReason::NoPeer | DropReason::NoRoute => Stage::Route,
        DropReason::TooBig => Stage::Segment,
        _ => Stage::Crypto,
    }
}

/// Sends a peer's datagrams from the listening port; how many bytes left. Those that carry packets are counted as the tunnel's.
pub fn transmit(
    sink: &mut impl DatagramSink,
    outgoing: &Outgoing<'_>,
    tunnel: TunnelIndex,
    counters: &Counters,
) -> usize {
    let Outgoing { path, tos, slices, segment_size, datagrams, bytes } = *outgoing;
    let transmit = Transmit {
        local: path.local.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        remote: path.remote.ip(),
        port: path.remote.port(),
        scope: path.scope(),
        source_port: 0,
        tos,
        segment_size,
        datagrams,
        slices,
        checksum: OuterChecksum::Wanted { payload_sum: None },
    };
    let lost = send(sink, &transmit, counters);
    // Which ones were lost is not known: each counts as one of the run's full size.
    let bytes_sent = bytes.saturating_sub(lost * segment_size);
    let is_keepalive = segment_size <= OVERHEAD;
    if tos != HANDSHAKE_TOS && !is_keepalive {
        let sent = datagrams - lost;
        let inner = bytes_sent.saturating_sub(sent * OVERHEAD);
        let tunnel = counters.tunnel(tunnel);
        tunnel.transmit_packets.add(sent as u64);
        tunnel.transmit_bytes.add(inner as u64);
    }
    bytes_sent
}
