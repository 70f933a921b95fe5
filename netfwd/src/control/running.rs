//! A netfwd that runs on this machine already, and what it holds.
//!
//! Whoever changes a configuration checks it while the gateway still runs with the old one. Its ports and devices are then
//! taken, but by what is about to be restarted: no fault of the configuration. Only `/proc` tells whose they are.
//!
//! Invariants: a process counts only in this network namespace and under the daemon's own name, and only with what its open
//! descriptors show; what cannot be read (another user's process, without privileges) belongs to nobody known.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The daemon's name in `/proc/PID/comm`.
const NAME: &str = env!("CARGO_PKG_NAME");
/// TCP_LISTEN of include/net/tcp_states.h, as `/proc/net/tcp` prints it.
const LISTENING: &str = "0A";

/// Something that only one program can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// A UDP port.
    Udp(SocketAddr),
    /// A TCP port that is listened on.
    Tcp(SocketAddr),
    /// A TUN or TAP device.
    Device(String),
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "UDP port {} on {}", address.port(), address.ip()),
            Self::Tcp(address) => write!(f, "TCP port {} on {}", address.port(), address.ip()),
            Self::Device(name) => write!(f, "the device {name}"),
        }
    }
}

/// A running netfwd.
#[derive(Debug)]
pub struct Running {
    /// Its process id.
    pub pid: u32,
    sockets: HashSet<u64>,
    devices: HashSet<String>,
}

impl Running {
    /// Every netfwd of this network namespace whose descriptors may be read.
    pub fn all() -> Vec<Self> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|&pid| pid != std::process::id()).filter_map(|pid| Self::read(pid).ok().flatten()).collect()
    }

    /// `None` for any other program.
    fn read(pid: u32) -> io::Result<Option<Self>> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let here = || fs::read_link("/proc/self/ns/net");
        if fs::read_to_string(process.join("comm"))?.trim_end() != NAME
            || fs::read_link(process.join("ns/net"))? != here()?
        {
            return Ok(None);
        }
        let mut running = Self { pid, sockets: HashSet::new(), devices: HashSet::new() };
        for descriptor in fs::read_dir(process.join("fd"))?.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            running.sockets.extend(socket_inode(&target));
            if target == Path::new("/dev/net/tun") {
                let info = fs::read_to_string(process.join("fdinfo").join(descriptor.file_name())).unwrap_or_default();
                running.devices.extend(device_name(&info));
            }
        }
        Ok(Some(running))
    }

    /// Whether it, and nobody else, has this.
    pub fn holds(&self, held: &Held) -> bool {
        let inodes = match held {
            Held::Device(name) => return self.devices.contains(name),
            Held::Udp(address) => bound(*address, "udp", |_| true),
            Held::Tcp(address) => bound(*address, "tcp", |state| state == LISTENING),
        };
        !inodes.is_empty() && inodes.iter().all(|inode| self.sockets.contains(inode))
    }
}

/// `socket:[4711]`.
fn socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The line `iff:` of a TUN descriptor (`tun_chr_show_fdinfo`).
fn device_name(info: &str) -> Option<String> {
    let name = info.lines().find_map(|line| line.strip_prefix("iff:"))?;
    Some(name.trim().to_owned())
}

/// Inodes of the sockets that keep others from binding `address`.
fn bound(address: SocketAddr, protocol: &str, takes: impl Fn(&str) -> bool) -> Vec<u64> {
    let tables = [protocol.to_owned(), format!("{protocol}6")];
    let text = tables.map(|table| fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default());
    let sockets = text.iter().flat_map(|table| table.lines()).filter_map(socket_line);
    // All addresses clash with each of them.
    let clash = |local: SocketAddr| {
        local.port() == address.port()
            && (local.ip() == address.ip() || local.ip().is_unspecified() || address.ip().is_unspecified())
    };
    sockets.filter(|socket| clash(socket.local) && takes(socket.state)).map(|socket| socket.inode).collect()
}

/// A line of `/proc/net/udp` and its like.
#[derive(Debug, PartialEq, Eq)]
struct SocketLine<'a> {
    local: SocketAddr,
    state: &'a str,
    inode: u64,
}

fn socket_line(line: &str) -> Option<SocketLine<'_>> {
    let mut fields = line.split_ascii_whitespace();
    let local = socket_address(fields.nth(1)?)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some(SocketLine { local, state, inode })
}

/// `0200090A:12B5`: words of the address in the machine's byte order, then the port.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (index, bytes) in bytes.chunks_exact_mut(4).enumerate() {
                bytes.copy_from_slice(&word(index * 8)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_table_is_understood() {
        let line =
            "  354: 0200090A:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0";
        let local = "10.9.0.2:4789".parse().expect("an address");
        assert_eq!(socket_line(line), Some(SocketLine { local, state: "07", inode: 4711 }));
        let address = socket_address("000009FD000000000000000002000000:12B5");
        assert_eq!(address, Some("[fd09::2]:4789".parse().expect("an address")));
        let head = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        assert_eq!(socket_line(head), None);
    }

    #[test]
    fn a_tun_descriptor_names_its_device() {
        assert_eq!(device_name("pos:\t0\nflags:\t0104002\nmnt_id:\t25\niff:\tvx7\n").as_deref(), Some("vx7"));
        assert_eq!(device_name("pos:\t0\n"), None);
    }

    /// This process, as if it were a gateway.
    fn this_process() -> Running {
        let descriptors = fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
        let sockets = descriptors.filter_map(|fd| socket_inode(&fs::read_link(fd.path()).ok()?)).collect();
        Running { pid: std::process::id(), sockets, devices: HashSet::new() }
    }

    #[test]
    fn a_port_belongs_to_whoever_has_all_sockets_on_it() {
        let udp = UdpSocket::bind("127.0.0.79:0").expect("a port");
        let tcp = TcpListener::bind("127.0.0.79:0").expect("a port");
        let (udp, tcp) = (udp.local_addr().map(|a| (a, udp)), tcp.local_addr().map(|a| (a, tcp)));
        let ((udp, _keep_udp), (tcp, _keep_tcp)) = (udp.expect("bound"), tcp.expect("bound"));
        let this = this_process();
        assert!(this.holds(&Held::Udp(udp)) && this.holds(&Held::Tcp(tcp)));
        let nobody = Running { pid: 1, sockets: HashSet::new(), devices: HashSet::new() };
        assert!(!nobody.holds(&Held::Udp(udp)) && !nobody.holds(&Held::Tcp(tcp)));
    }

    #[test]
    fn a_free_port_belongs_to_nobody() {
        assert!(!this_process().holds(&Held::Udp("127.0.0.79:1".parse().expect("an address"))));
    }

    #[test]
    fn whoever_has_the_port_on_one_address_keeps_others_from_having_it_on_all() {
        let udp = UdpSocket::bind("127.0.0.79:0").expect("a port");
        let port = udp.local_addr().expect("bound").port();
        for all in ["0.0.0.0", "::"] {
            let all = SocketAddr::new(all.parse().expect("an address"), port);
            assert!(this_process().holds(&Held::Udp(all)), "{all}");
        }
    }
}
