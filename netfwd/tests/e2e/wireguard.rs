//! What the WireGuard tests share: tunnels to programs of others, and who lost what.
//!
//! Unlike a kernel, those programs lose datagrams when they get no CPU for a while: their sockets and devices have short
//! queues. So a load may miss as much as the far end's own queues have counted, and no more.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use xtask::lab::{Device, DeviceState, Family, FarEnd, Namespace, Options, Program, Side, Tunnel, UNDERLAY};
use xtask::load::udp;
use xtask::machine::{slowness, wait_until};

use super::packets::{Capture, Packet, awaited, bound};
use super::{FAMILIES, Rig, equal, mixed, scaled, tcp_intact, udp_overruns};

/// WireGuard by two other teams.
pub const OTHERS: [Program; 2] = [Program::WireguardGo, Program::Boringtun];
/// Bytes on each TCP connection.
const BYTES: u64 = 4_000_000;
/// Datagrams of each load.
const DATAGRAMS: u64 = 1_000;
/// Handshakes are tried again after five seconds.
pub const HANDSHAKE: Duration = Duration::from_secs(15);
/// A rate that the far ends follow on a busy machine, in Gbit/s.
const RATE: f64 = 0.05;

/// netfwd at the other end of that tunnel.
pub fn start(tunnel: Tunnel) -> Option<Rig> {
    Rig::start(Options::with_tunnels([tunnel]))
}

/// Both families inside, both ways, through a tunnel in which that side has to begin.
pub fn everything_arrives(tunnel: Tunnel, initiator: Side) {
    let Some(rig) = start(tunnel.initiator(initiator)) else { return };
    assert!(rig.answers(initiator, HANDSHAKE), "no session within {HANDSHAKE:?}");
    rig.everything_arrives();
    rig.assert_no_drops();
    assert!(rig.state().peer().expect("one peer").latest_handshake > 0);
    rig.stop();
}

impl Rig {
    /// The first tunnel.
    pub fn tunnel(&self) -> &Tunnel {
        &self.lab.options().tunnels[0]
    }

    /// Keys and device of the far end.
    pub fn far_end(&self) -> &FarEnd {
        self.lab.far_end(&self.tunnel().name).expect("a WireGuard tunnel")
    }

    /// The far end's device.
    pub fn far_device(&self) -> &Device {
        &self.far_end().device
    }

    /// What `wg` says of netfwd's device.
    pub fn state(&self) -> DeviceState {
        DeviceState::of(&self.lab.gateway, &self.tunnel().name).expect("wg show")
    }

    /// What `wg` says of the far end's device.
    pub fn far_state(&self) -> DeviceState {
        DeviceState::of(&self.lab.peer, self.far_device().name()).expect("wg show")
    }

    /// Where netfwd listens.
    pub fn endpoint(&self) -> SocketAddr {
        self.tunnel().endpoint(Side::Gateway)
    }

    /// Does an echo come back to that side within some seconds?
    pub fn answers(&self, from: Side, patience: Duration) -> bool {
        let (namespace, address) = match from {
            Side::Peer => (&self.lab.peer, self.lab.gateway_address(Family::V4)),
            Side::Gateway => (&self.lab.gateway, self.lab.peer_address(Family::V4)),
        };
        let ping = format!("ping -c 1 -W 1 {address}");
        wait_until(patience, || namespace.exec(&ping).is_ok())
    }

    /// Makes a session that the far end has begun.
    pub fn greet(&self) {
        assert!(self.answers(Side::Peer, HANDSHAKE), "no session within {HANDSHAKE:?}:\n{:?}", self.far_state());
        self.wait_until_noted();
    }

    /// A worker confirms a session and answers in it; that there is one is noted by another thread, when it gets to it.
    pub fn wait_until_noted(&self) {
        wait_until(HANDSHAKE, || self.state().peer().expect("one peer").latest_handshake > 0);
    }

    /// TCP and UDP of both families in both directions, every byte compared.
    pub fn everything_arrives(&self) {
        for family in FAMILIES {
            self.tcp_both_ways(family);
            self.udp_both_ways(family);
        }
    }

    /// A few MB on one connection each way.
    pub fn tcp_both_ways(&self, family: Family) {
        let (peer, server) = (&self.lab.peer, &self.lab.server);
        let bytes = scaled(BYTES) / 2;
        tcp_intact(peer, server, self.lab.server_address(family), 2, bytes);
        tcp_intact(server, peer, self.lab.peer_address(family), 2, bytes);
    }

    /// Datagrams of one size and of many.
    pub fn udp_both_ways(&self, family: Family) {
        let (peer, server) = (&self.lab.peer, &self.lab.server);
        for sizes in [equal(), mixed()] {
            self.udp_accounted_for(peer, server, self.lab.server_address(family), sizes.clone());
            self.udp_accounted_for(server, peer, self.lab.peer_address(family), sizes);
        }
    }

    fn udp_accounted_for(&self, from: &Namespace, to: &Namespace, address: IpAddr, sizes: udp::Sizes) {
        let before = self.far_losses();
        let load = udp::Load::of_datagrams(sizes, scaled(DATAGRAMS), RATE / slowness());
        let report = udp::run(from, to, address, &load);
        let report = report.unwrap_or_else(|error| panic!("UDP to {address}: {error:#}"));
        assert!(report.faithful(), "UDP to {address}: {report:?}");
        let excused = self.far_losses() - before;
        assert!(report.lost() <= excused, "UDP to {address}: {report:?}, the far end has lost {excused}");
    }

    /// What the far end's queues have dropped: its sockets' and its devices'.
    pub fn far_losses(&self) -> u64 {
        let Self { lab, .. } = self;
        let devices = [self.far_device().name(), UNDERLAY].map(|device| lab.peer.unsent(device));
        // A cable between two machines has no queue; this one has, and it is the far end that does not empty it.
        let cable = lab.gateway.unsent(UNDERLAY);
        let devices: u64 = devices.into_iter().chain([cable]).map(|count| count.expect("a counter")).sum();
        devices + udp_overruns(&lab.peer)
    }

    /// The encrypted datagrams with data among what was captured in the peer's namespace on its way to netfwd.
    pub fn sealed(&self, capture: &Capture) -> Vec<Vec<u8>> {
        let from = self.tunnel().outer_address(Side::Peer);
        let datagrams = capture.tunnelled(from, self.endpoint().port()).into_iter();
        let payloads = datagrams.map(|packet: Packet| packet.transport[8..].to_vec());
        payloads.filter(|payload| payload.starts_with(&[4, 0, 0, 0]) && payload.len() > 32).collect()
    }

    /// Sends datagrams as they are to netfwd's port, from another port of the peer than WireGuard's.
    pub fn inject(&self, datagrams: impl IntoIterator<Item = Vec<u8>>) {
        let socket = bound(&self.lab.peer, self.tunnel().outer_address(Side::Peer), 0);
        for datagram in datagrams {
            socket.send_to(&datagram, self.endpoint()).expect("a datagram");
        }
    }

    /// The datagrams to a port of the server that come out when something is done, of which there are to be so many.
    pub fn delivered(&self, port: u16, count: usize, action: impl FnOnce(SocketAddr)) -> Vec<Vec<u8>> {
        let address = self.lab.server_address(Family::V4);
        let receiver = bound(&self.lab.server, address, port);
        action((address, port).into());
        awaited(&receiver, count)
    }

    /// Does nothing but the kernel's own noise get lost in netfwd?
    pub fn assert_no_drops(&self) {
        assert_eq!(self.drops(), Vec::<String>::new());
        self.assert_flushes_balance();
    }
}
