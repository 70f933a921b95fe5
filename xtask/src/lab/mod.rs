//! A laboratory: three network namespaces in a row, and tunnels between the first two.
//!
//! ```text
//!   peer ──────────── underlay ──────────── gateway ─────── LAN ─────── server
//!   10.9.0.1  fd09::1       10.9.0.2  fd09::2 │ 10.20.0.1  fd20::1      10.20.0.2  fd20::2
//!   vx7 10.10.0.1 ═══ VXLAN, VNI 7, 4789 ═══ vx7 10.10.0.2
//!       fd10::1                                  fd10::2
//! ```
//!
//! The peer is the Linux kernel, and it looks like a host behind a wire: checksum and segmentation offloads are off on
//! its end of the underlay, so MTU-sized packets arrive with every checksum finished. The gateway is netfwd
//! ([`Netfwd`]) or the kernel itself ([`Lab::kernel_gateway`]). With a WireGuard tunnel ([`Tunnel::wireguard`]) the far
//! end is a program of others, and another of them may stand in the gateway ([`Lab::wireguard_gateway`]).
//!
//! Invariants: names carry the process id, so labs never meet; everything is removed when the [`Lab`] goes, after a
//! panic too. Deliberately absent: impairment (delay, loss), since the kernels this is built for have no netem.

mod metrics;
mod namespace;
mod netfwd;
pub mod packet_socket;
mod process;
mod tunnel;
mod wire;
mod wireguard;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

pub use metrics::{Metrics, Sample};
pub use namespace::Namespace;
pub use netfwd::{Config, METRICS_ADDRESS, Netfwd, WITHOUT_USO};
pub use process::{Process, output};
pub use tunnel::{Family, Side, Tunnel, TunnelKind};
pub use wire::Wire;
pub use wireguard::{
    Device, DeviceState, FarEnd, KeyPair, Keys, PeerState, Program, WireGuard, generate_preshared, is_listening,
    read_secret, write_secret,
};

/// The underlay device's name in peer and gateway.
pub const UNDERLAY: &str = "under0";
/// The LAN device's name in gateway and server.
pub const LAN: &str = "lan0";

/// What a network card may do for the kernel on sending.
const NO_OFFLOADS: &str =
    "tx off tso off tx-udp-segmentation off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off";
const PEER_HOST: u8 = 1;
const GATEWAY_HOST: u8 = 2;
const LAN4: &str = "10.20.0.0/24";
const LAN6: &str = "fd20::/64";
/// The names that `lab up` uses: peer, gateway, server.
const FIXED_NAMES: [&str; 3] = ["nf-peer", "nf-gw", "nf-server"];

/// May this test make namespaces? Without root it panics, since a skipped test must not look like a passed one; with
/// `NETFWD_SKIP_ROOT_TESTS=1` in the environment it says that it skips, and returns false.
pub fn root_or_skip() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    if std::env::var_os("NETFWD_SKIP_ROOT_TESTS").is_none_or(|value| value != "1") {
        panic!("this test makes network namespaces and needs root; NETFWD_SKIP_ROOT_TESTS=1 skips it");
    }
    eprintln!("SKIPPED, not passed: this test needs root");
    false
}

/// What a lab is to look like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The tunnels; the first one carries the route to the server's network.
    pub tunnels: Vec<Tunnel>,
    /// MTU of the underlay.
    pub underlay_mtu: u32,
    /// Receive and transmit queues of the underlay devices.
    pub queues: u32,
    /// A bad cable: one bit flipped in every n-th tunnel datagram on its way to the gateway.
    pub flip_every: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { tunnels: vec![Tunnel::vxlan("vx7", 7)], underlay_mtu: 1500, queues: 1, flip_every: None }
    }
}

impl Options {
    /// A lab with exactly these tunnels.
    pub fn with_tunnels(tunnels: impl Into<Vec<Tunnel>>) -> Self {
        Self { tunnels: tunnels.into(), ..Self::default() }
    }
}

/// A standing lab.
#[derive(Debug)]
pub struct Lab {
    // The programs end before their namespaces.
    far_ends: Vec<FarEnd>,
    /// The far end of the tunnels.
    pub peer: Namespace,
    /// Where the gateway under test runs.
    pub gateway: Namespace,
    /// A host behind the gateway.
    pub server: Namespace,
    /// The bad cable, if there is one; it ends before its namespace.
    pub wire: Option<Wire>,
    middle: Option<Namespace>,
    options: Options,
    directory: PathBuf,
    keep: bool,
}

impl Lab {
    /// One VXLAN tunnel, `vx7`, over IPv4 at MTU 1500.
    pub fn new() -> Result<Self> {
        Self::with(Options::default())
    }

    /// A lab of that shape, under names that no other lab has.
    pub fn with(options: Options) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let stem = format!("nf-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let names = ["peer", "gw", "server"].map(|role| format!("{stem}-{role}"));
        Self::build(options, names.each_ref().map(String::as_str), std::env::temp_dir().join(stem))
    }

    /// A lab under the fixed names `nf-peer`, `nf-gw` and `nf-server` that stays when this value goes.
    pub fn up(options: Options) -> Result<Self> {
        let mut lab = Self::build(options, FIXED_NAMES, std::env::temp_dir().join("nf-lab"))?;
        for namespace in [&mut lab.peer, &mut lab.gateway, &mut lab.server] {
            namespace.keep();
        }
        lab.keep = true;
        Ok(lab)
    }

    fn build(options: Options, [peer, gateway, server]: [&str; 3], directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut lab = Self {
            far_ends: Vec::new(),
            peer: Namespace::create(peer)?,
            gateway: Namespace::create(gateway)?,
            server: Namespace::create(server)?,
            wire: None,
            middle: None,
            options,
            directory,
            keep: false,
        };
        lab.set_parameters()?;
        match lab.options.flip_every {
            None => lab.connect((&lab.peer, UNDERLAY), (&lab.gateway, UNDERLAY), &lab.underlay_link())?,
            Some(every) => lab.connect_by_wire(every)?,
        }
        lab.configure_underlay()?;
        lab.connect_lan()?;
        for (index, tunnel) in lab.options.tunnels.iter().enumerate() {
            match tunnel.kind {
                TunnelKind::WireGuard(wireguard) => {
                    let keys = Keys::generate(tunnel, wireguard, &lab.directory)?;
                    let end = FarEnd::start(keys, tunnel, wireguard, &lab.peer, &lab.directory, index == 0)?;
                    lab.far_ends.push(end);
                }
                _ => tunnel.add_device(Side::Peer, &lab.peer, lab.options.underlay_mtu, index == 0)?,
            }
        }
        Ok(lab)
    }

    /// What the lab was asked to look like.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// A directory for logs and configuration files that goes with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The tunnel of that name.
    pub fn tunnel(&self, name: &str) -> Result<&Tunnel> {
        self.options.tunnels.iter().find(|tunnel| tunnel.name == name).with_context(|| format!("no tunnel {name}"))
    }

    /// The peer's address inside the first tunnel.
    pub fn peer_address(&self, family: Family) -> IpAddr {
        self.options.tunnels[0].address(Side::Peer, family)
    }

    /// The gateway's address inside the first tunnel.
    pub fn gateway_address(&self, family: Family) -> IpAddr {
        self.options.tunnels[0].address(Side::Gateway, family)
    }

    /// The server's address.
    pub fn server_address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 20, 0, 2).into(),
            Family::V6 => Ipv6Addr::new(0xfd20, 0, 0, 0, 0, 0, 0, 2).into(),
        }
    }

    /// Puts the kernel's own tunnel devices into the gateway, for as long as the returned value lives.
    pub fn kernel_gateway(&self) -> Result<KernelGateway<'_>> {
        let gateway = KernelGateway { lab: self };
        for tunnel in &self.options.tunnels {
            tunnel.add_device(Side::Gateway, &self.gateway, self.options.underlay_mtu, false)?;
        }
        self.forget_neighbours()?;
        Ok(gateway)
    }

    /// Makes the peer forget what it learned of the gateway's devices; a new device has a new MAC address.
    pub fn forget_neighbours(&self) -> Result<()> {
        for tunnel in &self.options.tunnels {
            self.peer.ip(&format!("neighbour flush dev {}", tunnel.device_name(Side::Peer)))?;
        }
        Ok(())
    }

    /// Deletes the underlay's devices, as a driver does that is unloaded.
    pub fn delete_underlay(&self) -> Result<()> {
        self.gateway.ip(&format!("link delete {UNDERLAY}")).map(drop)
    }

    /// Makes them again, with names and addresses as before.
    pub fn restore_underlay(&self) -> Result<()> {
        self.connect((&self.peer, UNDERLAY), (&self.gateway, UNDERLAY), &self.underlay_link())?;
        self.configure_underlay()
    }

    fn set_parameters(&self) -> Result<()> {
        for namespace in [&self.peer, &self.gateway, &self.server] {
            for scope in ["all", "default"] {
                namespace.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), 0)?;
                namespace.sysctl(&format!("net.ipv6.conf.{scope}.accept_dad"), 0)?;
            }
        }
        self.gateway.sysctl("net.ipv4.ip_forward", 1)?;
        self.gateway.sysctl("net.ipv6.conf.all.forwarding", 1)
    }

    /// Link options of the underlay's devices.
    fn underlay_link(&self) -> String {
        let Options { underlay_mtu: mtu, queues, .. } = self.options;
        format!("mtu {mtu} numrxqueues {queues} numtxqueues {queues}")
    }

    fn connect_by_wire(&mut self, every: u64) -> Result<()> {
        let middle = Namespace::create(&format!("{}-wire", self.gateway.name().trim_end_matches("-gw")))?;
        middle.sysctl("net.ipv6.conf.default.disable_ipv6", 1)?;
        let options = self.underlay_link();
        self.connect((&self.peer, UNDERLAY), (&middle, wire::PEER_END), &options)?;
        self.connect((&middle, wire::GATEWAY_END), (&self.gateway, UNDERLAY), &options)?;
        // A cable keeps the order.
        [wire::PEER_END, wire::GATEWAY_END].into_iter().try_for_each(|end| middle.receive_on_one_cpu(end))?;
        // A packet socket takes frames as they are: nothing may be left for a device to finish.
        self.gateway.exec(&format!("ethtool -K {UNDERLAY} {NO_OFFLOADS}"))?;
        let ports = self.options.tunnels.iter().map(|tunnel| tunnel.port).collect();
        self.wire = Some(Wire::start(&middle, every, ports)?);
        self.middle = Some(middle);
        Ok(())
    }

    fn configure_underlay(&self) -> Result<()> {
        for (namespace, host) in [(&self.peer, PEER_HOST), (&self.gateway, GATEWAY_HOST)] {
            let (v4, v6) = (underlay_address(Family::V4, host), underlay_address(Family::V6, host));
            namespace.ip_lines(&[
                format!("address add {v4}/24 dev {UNDERLAY}"),
                format!("address add {v6}/64 dev {UNDERLAY} nodad"),
            ])?;
            // As a network card would: it also turns NAPI on, which native XDP on veth wants on both ends.
            namespace.exec(&format!("ethtool -K {UNDERLAY} gro on"))?;
        }
        // With nothing left to the device, the kernel finishes inner and outer checksums and cuts superframes itself.
        self.peer.exec(&format!("ethtool -K {UNDERLAY} {NO_OFFLOADS}"))?;
        Ok(())
    }

    fn connect_lan(&self) -> Result<()> {
        self.connect((&self.gateway, LAN), (&self.server, LAN), "")?;
        for (namespace, host) in [(&self.gateway, 1), (&self.server, 2)] {
            namespace.ip_lines(&[
                format!("address add 10.20.0.{host}/24 dev {LAN}"),
                format!("address add fd20::{host}/64 dev {LAN} nodad"),
            ])?;
            namespace.exec(&format!("ethtool -K {LAN} gro on"))?;
        }
        self.server.ip_lines(&["10.20.0.1", "fd20::1"].map(|gateway| format!("route add default via {gateway}")))
    }

    /// A veth pair, both ends up.
    fn connect(&self, one: (&Namespace, &str), two: (&Namespace, &str), options: &str) -> Result<()> {
        let end =
            |(namespace, device): (&Namespace, &str)| format!("name {device} netns {} {options}", namespace.name());
        let add = format!("link add {} type veth peer {}", end(one), end(two));
        output(Command::new("ip").args(add.split_whitespace()))?;
        for (namespace, device) in [one, two] {
            namespace.ip(&format!("link set {device} up"))?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep {
            wireguard::remove_sockets(&self.options.tunnels);
            // The namespaces remove themselves. Logs of a failed test were printed by whoever failed.
            fs::remove_dir_all(&self.directory).ok();
        }
    }
}

/// The kernel's own tunnel devices standing in for netfwd.
#[derive(Debug)]
pub struct KernelGateway<'a> {
    lab: &'a Lab,
}

impl Drop for KernelGateway<'_> {
    fn drop(&mut self) {
        for tunnel in &self.lab.options.tunnels {
            self.lab.gateway.ip(&format!("link delete {}", tunnel.name)).ok();
        }
    }
}

/// Removes the lab of [`Lab::up`], and what labs of processes that were killed have left. Returns the names.
pub fn down() -> Result<Vec<String>> {
    let listed = output(Command::new("ip").args(["netns", "list"]))?;
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    let mut removed = Vec::new();
    for name in names.filter(|name| FIXED_NAMES.contains(name) || is_orphan(name)) {
        namespace::remove(name)?;
        removed.push(name.to_owned());
    }
    fs::remove_dir_all(std::env::temp_dir().join("nf-lab")).ok();
    Ok(removed)
}

/// Is this `nf-<pid>-…` of a process that is no more?
fn is_orphan(name: &str) -> bool {
    let pid = name.strip_prefix("nf-").and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// The underlay address of host 1 or 2.
fn underlay_address(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 9, 0, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, host.into()).into(),
    }
}
