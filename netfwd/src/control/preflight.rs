//! Preflight: whether this machine can do what the configuration says, before anything is made.
//!
//! A gateway that fails half-way leaves devices and programs behind and an operator with an errno. So everything that
//! can be known beforehand is asked beforehand, and each problem is one line that says where and what would be right.
//!
//! Invariants: nothing is made, and the one thing kept is the metrics listener, so its port cannot be lost in between.
//! Everything but the privileges can be asked without privileges.
//!
//! Deliberately absent: what only trying shows (whether the driver takes the program, whether a device can be made).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use super::links::Link;
use super::running::Held;
use super::uapi;
use super::uapi::server::SocketError;
use crate::config::{Config, Tunnel, Underlay, XdpMode};
use crate::io::ethtool;

/// Smallest MTU that a tunnel may be left with (RFC 791, RFC 8200 §5).
const MIN_MTU: [u16; 2] = [576, 1280];

/// The line of a configuration file that the machine contradicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    file: PathBuf,
    line: usize,
    key: &'static str,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.key)
    }
}

/// One thing that this machine lacks.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The process may not do what it must.
    #[error("no privileges: {missing} missing; run as root, or grant it (AmbientCapabilities= in the systemd unit)")]
    Privileges {
        /// Names of capabilities.
        missing: String,
    },
    /// The kernel has no TUN driver.
    #[error("/dev/net/tun: {error}; load the driver (modprobe tun)")]
    NoTun {
        /// Why not.
        error: io::Error,
    },
    /// An underlay is not there.
    #[error("{at}: no interface \"{interface}\" on this machine; there are {known}")]
    NoInterface {
        /// Where it is configured.
        at: Place,
        /// Its name.
        interface: String,
        /// Those that are there.
        known: String,
    },
    /// Generic XDP sees merged packets, whose headers describe none of those that came.
    #[error(
        "{at}: generic XDP runs behind GRO, which merges tunnel packets before it: turn it off (ethtool -K {interface} gro off), \
         or use xdp = \"native\" or \"off\""
    )]
    GenericBehindGro {
        /// Where it is configured.
        at: Place,
        /// The interface.
        interface: String,
    },
    /// The local address is nobody's.
    #[error("{at}: {local} is no address of this machine; there are {known}")]
    NoAddress {
        /// Where it is configured.
        at: Place,
        /// The address.
        local: IpAddr,
        /// Those that are there, of its family.
        known: String,
    },
    /// The configured MTU does not fit.
    #[error(
        "{at}: {mtu} and {overhead} bytes of tunnel headers are {}, but interface {interface} has MTU {available}: \
         at most {} would fit, or give {interface} MTU {}",
        u32::from(*mtu) + u32::from(*overhead),
        available.saturating_sub(u32::from(*overhead)),
        u32::from(*mtu) + u32::from(*overhead)
    )]
    MtuTooLarge {
        /// Where it is configured.
        at: Place,
        /// The tunnel's MTU.
        mtu: u16,
        /// What the tunnel adds.
        overhead: u16,
        /// The interface that carries it.
        interface: String,
        /// That interface's MTU.
        available: u32,
    },
    /// What the underlay leaves is too little.
    #[error(
        "{at}: interface {interface} has MTU {available}, which leaves {left} after {overhead} bytes of tunnel headers: \
         at least {least} is needed, so give {interface} MTU {}",
        u32::from(*least) + u32::from(*overhead)
    )]
    MtuTooSmall {
        /// Where it would be configured.
        at: Place,
        /// The interface that carries the tunnel.
        interface: String,
        /// That interface's MTU.
        available: u32,
        /// What is left.
        left: u16,
        /// What the tunnel adds.
        overhead: u16,
        /// What is needed.
        least: u16,
    },
    /// Somebody else has the port.
    #[error("{at}: UDP port {port} on {local} is taken by {by}")]
    PortTaken {
        /// Where it is configured.
        at: Place,
        /// The address.
        local: IpAddr,
        /// The port.
        port: u16,
        /// Who has it, as far as is known.
        by: String,
    },
    /// The port cannot be had for another reason.
    #[error("{at}: UDP port {port} on {local}: {error}")]
    PortRefused {
        /// Where it is configured.
        at: Place,
        /// The address.
        local: IpAddr,
        /// The port.
        port: u16,
        /// Why not.
        error: io::Error,
    },
    /// The device's name is taken.
    #[error(
        "{at}: a device \"{name}\" exists already: is netfwd running? Else remove it (ip link del {name}) or rename the tunnel"
    )]
    DeviceExists {
        /// Where it is configured.
        at: Place,
        /// The name.
        name: String,
    },
    /// The device could not have a control socket.
    #[error("{at}: {error}")]
    ControlSocket {
        /// Where it is configured.
        at: Place,
        /// Why not.
        error: SocketError,
    },
    /// The metrics endpoint has no port.
    #[error("{at}: cannot listen on {listen}: {error}")]
    MetricsPort {
        /// Where it is configured.
        at: Place,
        /// The address.
        listen: SocketAddr,
        /// Why not.
        error: io::Error,
    },
}

impl Problem {
    /// What it is that somebody else has, if that is the problem.
    pub fn held(&self) -> Option<Held> {
        match self {
            Self::PortTaken { local, port, .. } => Some(Held::Udp(SocketAddr::new(*local, *port))),
            Self::MetricsPort { listen, error, .. } if error.kind() == io::ErrorKind::AddrInUse => {
                Some(Held::Tcp(*listen))
            }
            Self::DeviceExists { name, .. } => Some(Held::Device(name.clone())),
            _ => None,
        }
    }
}

/// All problems, one line each.
#[derive(Debug)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Whether a moment's patience may cure them all: names and ports that a killed predecessor still holds.
    pub fn may_pass(&self) -> bool {
        use Problem::{ControlSocket, DeviceExists, MetricsPort, PortTaken};
        let may_pass = |problem: &Problem| {
            matches!(problem, ControlSocket { .. } | DeviceExists { .. } | PortTaken { .. } | MetricsPort { .. })
        };
        self.0.iter().all(may_pass)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Problems {}

/// What preflight found out for the start.
#[derive(Debug)]
pub struct Ready {
    /// The device MTU of each tunnel, in the configuration's order.
    pub mtus: Vec<u16>,
    /// The metrics endpoint's socket, already listening.
    pub listener: TcpListener,
}

/// Everything that was found.
#[derive(Debug)]
pub struct Findings {
    /// The device MTU of each tunnel, in the configuration's order, but for those with a problem.
    pub mtus: Vec<u16>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    listener: Option<TcpListener>,
}

/// [`examine`], for a start: with any problem there is none.
pub fn check(config: &Config, links: &[Link]) -> Result<Ready, Problems> {
    let Findings { mtus, problems, listener } = examine(config, links);
    match listener {
        Some(listener) if problems.is_empty() => Ok(Ready { mtus, listener }),
        _ => Err(Problems(problems)),
    }
}

/// Everything that can be asked without privileges, about `links` and this machine's ports.
pub fn examine(config: &Config, links: &[Link]) -> Findings {
    let mut problems = Vec::new();
    let mut note = |problem: Option<Problem>| problems.extend(problem);
    for underlay in &config.underlays {
        note(missing_interface(config, underlay, links));
        note(generic_behind_gro(config, underlay));
    }
    let mut mtus = Vec::new();
    for (index, tunnel) in config.tunnels.iter().enumerate() {
        note(existing_device(config, tunnel, links).or_else(|| control_socket(config, tunnel)));
        match missing_address(config, tunnel, links) {
            // Without the address nothing can be said about its port.
            Some(problem) => note(Some(problem)),
            None if shares_endpoint(tunnel, &config.tunnels[..index]) => {}
            None => note(unusable_port(config, tunnel, links)),
        }
        match mtu(config, tunnel, links) {
            Ok(mtu) => mtus.push(mtu),
            Err(problem) => note(problem),
        }
    }
    let listen = config.metrics.listen;
    let at = || place(&config.file, config.metrics.line, "metrics.listen");
    let listener = TcpListener::bind(listen).map_err(|error| Problem::MetricsPort { at: at(), listen, error });
    let listener = listener.map_err(|problem| problems.push(problem)).ok();
    Findings { mtus, problems, listener }
}

/// What the process or the kernel lacks to run this configuration at all.
pub fn privileges(config: &Config) -> Result<(), Problems> {
    let mut problems = Vec::new();
    let has = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let xdp = config.underlays.iter().any(|underlay| underlay.xdp != XdpMode::Off);
    let in_the_clear = config.tunnels.iter().any(|tunnel| tunnel.wireguard().is_none());
    let missing = missing_capabilities(has, xdp, in_the_clear);
    if !missing.is_empty() {
        problems.push(Problem::Privileges { missing: missing.join(", ") });
    }
    if let Err(error) = std::fs::metadata("/dev/net/tun") {
        problems.push(Problem::NoTun { error });
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

fn missing_capabilities(has: CapabilitySet, xdp: bool, in_the_clear: bool) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !has.contains(CapabilitySet::NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    // AF_XDP, and the raw sockets of tunnels in the clear; WireGuard on kernel sockets does with what wireguard-go has.
    if (xdp || in_the_clear) && !has.contains(CapabilitySet::NET_RAW) {
        missing.push("CAP_NET_RAW");
    }
    if xdp && !has.intersects(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN) {
        missing.push("CAP_BPF");
    }
    // The verifier's bounds tracking asks for it.
    if xdp && !has.intersects(CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN) {
        missing.push("CAP_PERFMON");
    }
    missing
}

fn place(file: &Path, line: usize, key: &'static str) -> Place {
    Place { file: file.into(), line, key }
}

fn listed(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

fn missing_interface(config: &Config, underlay: &Underlay, links: &[Link]) -> Option<Problem> {
    let interface = underlay.interface.clone();
    let known = || listed(links.iter().map(|link| link.name.clone()));
    let at = || place(&config.file, underlay.line, "underlay.interface");
    let absent = links.iter().all(|link| link.name != interface);
    absent.then(|| Problem::NoInterface { at: at(), interface, known: known() })
}

fn generic_behind_gro(config: &Config, underlay: &Underlay) -> Option<Problem> {
    let merges = || ethtool::merges_on_receive(&underlay.interface).unwrap_or(false);
    let broken = underlay.xdp == XdpMode::Generic && merges();
    let at = place(&config.file, underlay.line, "underlay.xdp");
    broken.then(|| Problem::GenericBehindGro { at, interface: underlay.interface.clone() })
}

fn existing_device(config: &Config, tunnel: &Tunnel, links: &[Link]) -> Option<Problem> {
    let name = tunnel.name.clone();
    let at = place(&config.file, tunnel.lines.name, "tunnel.name");
    links.iter().any(|link| link.name == name).then_some(Problem::DeviceExists { at, name })
}

/// Where there is no device of that name, a control socket is that of another network namespace.
fn control_socket(config: &Config, tunnel: &Tunnel) -> Option<Problem> {
    let error = tunnel.wireguard().and_then(|_| uapi::server::obstacle(&tunnel.name))?;
    Some(Problem::ControlSocket { at: place(&config.file, tunnel.lines.name, "tunnel.name"), error })
}

fn missing_address(config: &Config, tunnel: &Tunnel, links: &[Link]) -> Option<Problem> {
    let local = tunnel.local;
    let mut all = links.iter().flat_map(|link| &link.addresses);
    // All of 127.0.0.0/8 is local, whatever is configured on lo; a WireGuard tunnel may listen on all there are.
    if local.is_loopback() || local.is_unspecified() || all.any(|address| *address == local) {
        return None;
    }
    let same_family = |link: &Link| -> Vec<String> {
        let addresses = link.addresses.iter().filter(|address| address.is_ipv4() == local.is_ipv4());
        addresses.map(|address| format!("{address} ({})", link.name)).collect()
    };
    let known = listed(links.iter().flat_map(same_family));
    Some(Problem::NoAddress { at: place(&config.file, tunnel.lines.local, "tunnel.local"), local, known })
}

fn shares_endpoint(tunnel: &Tunnel, earlier: &[Tunnel]) -> bool {
    earlier.iter().any(|other| (other.local, other.port) == (tunnel.local, tunnel.port))
}

/// Binds the port as nobody else may have it, and lets it go again.
fn unusable_port(config: &Config, tunnel: &Tunnel, links: &[Link]) -> Option<Problem> {
    let Tunnel { local, port, .. } = *tunnel;
    let bound = match UdpSocket::bind((local, port)) {
        // A machine without IPv6 has an IPv4 port.
        Err(error) if local.is_unspecified() && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
        }
        bound => bound,
    };
    let error = bound.err()?;
    let at = place(&config.file, tunnel.lines.port, "tunnel.port");
    if error.kind() != io::ErrorKind::AddrInUse {
        return Some(Problem::PortRefused { at, local, port, error });
    }
    let kernel = links.iter().find(|link| link.vxlan_port == Some(port));
    let by = kernel.map_or_else(
        || format!("another program (ss -ulpn 'sport = :{port}' names it)"),
        |link| format!("the kernel's VXLAN device {}", link.name),
    );
    Some(Problem::PortTaken { at, local, port, by })
}

/// The interface whose MTU limits a tunnel: the one with its local address, else the smallest underlay.
fn carrier<'l>(config: &Config, tunnel: &Tunnel, links: &'l [Link]) -> Option<&'l Link> {
    let is_underlay = |link: &&Link| config.underlays.iter().any(|underlay| underlay.interface == link.name);
    // An address on lo says nothing of the way out.
    let has_address = |link: &&Link| !link.leads_nowhere && link.addresses.contains(&tunnel.local);
    links.iter().find(has_address).or_else(|| links.iter().filter(is_underlay).min_by_key(|link| link.mtu))
}

/// The tunnel's MTU; `Err(None)` when no interface is there to say, which is another problem's line.
fn mtu(config: &Config, tunnel: &Tunnel, links: &[Link]) -> Result<u16, Option<Problem>> {
    let link = carrier(config, tunnel, links).ok_or(None)?;
    // Who names an MTU may know more of where his peers are.
    let overhead = if tunnel.mtu.is_some() { tunnel.least_overhead() } else { tunnel.overhead() };
    let available = link.mtu.min(u16::MAX.into());
    let at = place(&config.file, tunnel.lines.mtu, "tunnel.mtu");
    let interface = link.name.clone();
    let left = (available as u16).saturating_sub(overhead);
    if let Some(mtu) = tunnel.mtu {
        let fits = mtu <= left;
        return if fits {
            Ok(mtu)
        } else {
            Err(Some(Problem::MtuTooLarge { at, mtu, overhead, interface, available }))
        };
    }
    let least = MIN_MTU[usize::from(tunnel.addresses.iter().any(|address| address.addr().is_ipv6()))];
    if left < least {
        return Err(Some(Problem::MtuTooSmall { at, interface, available, left, overhead, least }));
    }
    Ok(left)
}

#[cfg(test)]
mod tests;
