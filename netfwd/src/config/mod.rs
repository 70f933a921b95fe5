//! Configuration: one TOML file, read into types that cannot be wrong.
//!
//! Everything that a file alone can get wrong is refused here, each fault on one line with file, line and key:
//! `netfwd.toml:14: tunnel.vni: 16777216 is more than 16777215 (24 bits)`. What depends on the machine (interfaces,
//! ports, privileges) is [`control::preflight`](crate::control::preflight)'s.
//!
//! Invariants of a [`Config`]: tunnels have distinct names and distinct (local, port, VNI); one kind per (local, port), and
//! one WireGuard tunnel, and one rule for zero checksums; remotes have the local address' family; static entries and routes point at configured remotes;
//! WireGuard's keys were readable by nobody else, each peer has its own, each prefix belongs to one peer. A configuration
//! shows no secret, whatever prints it.
//!
//! Deliberately absent: defaults that depend on the machine (the MTU stays `None` until an underlay is known), and
//! environment variables or flags that change what the file says.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use netfwd_common::abi::{TunnelKind, Verify};
use netfwd_common::wire::ethernet::Mac;
use toml::de::DeTable;

use crate::datapath::packet::RemoteIndex;

mod document;
mod forwarding;
mod sections;
mod tunnel;
mod value;
mod wireguard;

pub use document::KeyError;
pub use forwarding::overhead;
pub use value::read_prefix;
pub use wireguard::{Endpoint, HostName, Peer, WireGuard};

/// A validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// `[metrics]`.
    pub metrics: Metrics,
    /// `[[underlay]]`, at least one.
    pub underlays: Vec<Underlay>,
    /// `[gro]`.
    pub gro: Gro,
    /// `[[tunnel]]`, at least one; the order gives their indices.
    pub tunnels: Vec<Tunnel>,
}

/// `[metrics]`.
#[derive(Clone, Copy, Debug)]
pub struct Metrics {
    /// Where `/metrics` and `/healthz` are served.
    pub listen: SocketAddr,
    /// Series for each WireGuard peer.
    pub wireguard_peers: bool,
    /// The line of `listen`, for errors.
    pub line: usize,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native where the driver can, else kernel sockets only.
    #[default]
    Auto,
    /// Native or an error.
    Native,
    /// The kernel's generic hook, only when asked for by name.
    Generic,
    /// No XDP: kernel sockets only.
    Off,
}

impl XdpMode {
    /// As the file says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        }
    }
}

/// Whether AF_XDP sockets share memory with the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Where the driver can.
    #[default]
    Auto,
    /// Or an error.
    Require,
    /// Copy mode.
    Off,
}

/// How many receive queues have a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Queues {
    /// All that the interface has.
    #[default]
    All,
    /// The first so many, 1–256.
    Count(u16),
}

/// `[[underlay]]`: an interface that tunnel packets arrive on.
#[derive(Clone, Debug)]
pub struct Underlay {
    /// Interface name.
    pub interface: String,
    /// How XDP is attached.
    pub xdp: XdpMode,
    /// AF_XDP's memory.
    pub zero_copy: ZeroCopy,
    /// How many queues.
    pub queues: Queues,
    /// What happens to bad checksums.
    pub verify: Verify,
    /// Finish partial checksums of local senders.
    pub accept_partial: bool,
    /// Spin instead of sleeping.
    pub busy_poll: bool,
    /// Log lines from XDP.
    pub debug: bool,
    /// The line of `interface`, for errors.
    pub line: usize,
}

/// `[gro]`: what is coalesced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gro {
    /// Merge TCP.
    pub tcp: bool,
    /// Merge UDP.
    pub udp: bool,
    /// UDP ports that are never merged.
    pub udp_exclude_ports: Vec<u16>,
    /// Merge UDP without checksums (IPv4).
    pub udp_zero_checksum: bool,
}

impl Default for Gro {
    fn default() -> Self {
        Self { tcp: true, udp: true, udp_exclude_ports: Vec::new(), udp_zero_checksum: false }
    }
}

/// `[[tunnel]]`: what every kind has, and what its protocol adds.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Device name.
    pub name: String,
    /// Our underlay address. WireGuard: unspecified (`::`) where it listens on all addresses, of both families.
    pub local: IpAddr,
    /// UDP port, ours and, but for WireGuard, the remotes'. WireGuard: 0 where the kernel chooses.
    pub port: u16,
    /// Addresses put on the device.
    pub addresses: Vec<IpNet>,
    /// Device MTU, when configured.
    pub mtu: Option<u16>,
    /// Whether its link is set up; if not, whoever asked for the device does that.
    pub up: bool,
    /// Protocol.
    pub protocol: Protocol,
    /// Lines of the keys that the machine may contradict.
    pub lines: TunnelLines,
}

/// What only tunnels of one family of kinds have.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// VXLAN and VXLAN-GPE.
    Vxlan(Vxlan),
    /// WireGuard.
    WireGuard(WireGuard),
}

/// Keys of `vxlan` and `vxlan-gpe`.
#[derive(Clone, Debug)]
pub struct Vxlan {
    /// Which of the two.
    pub kind: TunnelKind,
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// Who may send, and the head-end replication list; not empty, no duplicates.
    pub remotes: Vec<IpAddr>,
    /// L2: learn inner MACs.
    pub learning: bool,
    /// L2: static forwarding entries.
    pub fdb: Vec<(Mac, RemoteIndex)>,
    /// L3: routes, at least one.
    pub routes: Vec<(IpNet, RemoteIndex)>,
    /// L2: MAC of the device, when configured.
    pub mac: Option<Mac>,
    /// Outer checksum on send, over IPv4.
    pub udp_checksum: bool,
    /// Accept zero outer checksums over IPv6.
    pub udp6_zero_checksum_rx: bool,
    /// Send zero outer checksums over IPv6.
    pub udp6_zero_checksum_tx: bool,
    /// Outer DSCP.
    pub dscp: u8,
}

/// MTU of a WireGuard device whose underlay is not known: room for IPv6 outside (`wg_setup`).
pub const DEVICE_MTU: u16 = 1420;

impl Tunnel {
    /// The kind, as packets and labels know it.
    pub fn kind(&self) -> TunnelKind {
        match &self.protocol {
            Protocol::Vxlan(vxlan) => vxlan.kind,
            Protocol::WireGuard(_) => TunnelKind::WireGuard,
        }
    }

    /// What only VXLAN tunnels have.
    pub fn vxlan(&self) -> Option<&Vxlan> {
        match &self.protocol {
            Protocol::Vxlan(vxlan) => Some(vxlan),
            Protocol::WireGuard(_) => None,
        }
    }

    /// What only WireGuard tunnels have.
    pub fn wireguard(&self) -> Option<&WireGuard> {
        match &self.protocol {
            Protocol::WireGuard(wireguard) => Some(wireguard),
            Protocol::Vxlan(_) => None,
        }
    }
}

/// Lines of a tunnel's keys, for errors; the section's where a key is absent.
#[derive(Clone, Copy, Debug)]
pub struct TunnelLines {
    /// Of `name`.
    pub name: usize,
    /// Of `local`.
    pub local: usize,
    /// Of `port`.
    pub port: usize,
    /// Of `mtu`.
    pub mtu: usize,
}

/// Why a file is not a configuration; displayed with one line per fault.
#[derive(Debug, thiserror::Error)]
pub enum ConfigErrors {
    /// The file could not be read.
    #[error("{}: cannot be read: {error}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The file says something wrong.
    #[error("{}", Lines { file, errors })]
    Keys {
        /// The file.
        file: PathBuf,
        /// At least one, by line.
        errors: Vec<KeyError>,
    },
}

struct Lines<'a> {
    file: &'a Path,
    errors: &'a [KeyError],
}

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, KeyError { line, key, message }) in self.errors.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            let colon = if key.is_empty() { "" } else { ": " };
            write!(f, "{newline}{}:{line}: {key}{colon}{message}", self.file.display())?;
        }
        Ok(())
    }
}

impl Config {
    /// One WireGuard device without key or peers, over kernel sockets: what its control socket is to configure.
    pub fn of_device(name: String) -> Self {
        let wireguard = WireGuard { private_key: None, fwmark: 0, peers: Vec::new() };
        let tunnel = Tunnel {
            name,
            local: Ipv6Addr::UNSPECIFIED.into(),
            port: 0,
            addresses: Vec::new(),
            mtu: None,
            up: false,
            protocol: Protocol::WireGuard(wireguard),
            lines: TunnelLines { name: 0, local: 0, port: 0, mtu: 0 },
        };
        let metrics = Metrics { listen: sections::DEFAULT_LISTEN, wireguard_peers: false, line: 0 };
        Self { file: PathBuf::new(), metrics, underlays: Vec::new(), gro: Gro::default(), tunnels: vec![tunnel] }
    }

    /// Whether it holds keys, which must not end up in a core dump.
    pub fn has_secrets(&self) -> bool {
        self.tunnels.iter().any(|tunnel| tunnel.wireguard().is_some())
    }

    /// Wipes the keys that the files held, once devices have copies of their own.
    pub fn forget_secrets(&mut self) {
        for tunnel in &mut self.tunnels {
            if let Protocol::WireGuard(wireguard) = &mut tunnel.protocol {
                wireguard.private_key = None;
                wireguard.peers.iter_mut().for_each(|peer| peer.preshared_key = None);
            }
        }
    }

    /// Reads and validates a file.
    pub fn load(file: &Path) -> Result<Self, ConfigErrors> {
        let source = std::fs::read_to_string(file).map_err(|error| ConfigErrors::Read { file: file.into(), error })?;
        Self::parse(&source, file)
    }

    /// Validates the text of `file`.
    pub fn parse(source: &str, file: &Path) -> Result<Self, ConfigErrors> {
        let report = document::Report::new(source);
        let config = match DeTable::parse(source) {
            Ok(document) => sections::config(document::Section::root(&report, document.get_ref()), file),
            Err(error) => {
                let offset = error.span().map_or(0, |span| span.start);
                report.fault(offset, "", error.message().lines().collect::<Vec<_>>().join(", "));
                None
            }
        };
        match (config, report.into_errors()) {
            (Some(config), errors) if errors.is_empty() => Ok(config),
            (_, errors) => Err(ConfigErrors::Keys { file: file.into(), errors }),
        }
    }
}
