//! Two daemons with a WireGuard tunnel between them: does anything pass, by which way, and whole?
//!
//! What other implementations and the kernel say to ours is another program's matter.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netfwd::datapath::tunnel::wireguard::PrivateKey;
use xtask::lab::{Metrics, Namespace, Process, output, root_or_skip};
use xtask::load::{tcp, udp};
use xtask::machine::wait_until;

/// The daemon under test.
const NETFWD: &str = env!("CARGO_BIN_EXE_netfwd");
const METRICS: &str = "127.0.0.1:9477";
const PORT: u16 = 51820;
const PATIENCE: Duration = Duration::from_secs(20);
/// Two private keys: 32 bytes of 0x11 and of 0x22.
const KEYS: [&str; 2] =
    ["ERERERERERERERERERERERERERERERERERERERERERE=", "IiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiI="];

/// Two hosts with a wire, and a daemon on each. Daemons go before their namespaces.
struct Pair {
    daemons: [Process; 2],
    hosts: [Namespace; 2],
    /// Devices: control sockets know no network namespaces, so no two on this machine may have one name.
    devices: [String; 2],
    directory: PathBuf,
}

impl Pair {
    fn start(name: &str, xdp: &str) -> Option<Self> {
        if !root_or_skip() {
            return None;
        }
        let stem = format!("nf-{}-{name}", std::process::id());
        let directory = std::env::temp_dir().join(&stem);
        fs::create_dir_all(&directory).expect("a directory");
        let hosts = [0, 1].map(|host| Namespace::create(&format!("{stem}-{host}")).expect("a namespace"));
        connect(&hosts);
        let devices = [0, 1].map(|host| format!("{name}{:x}{host}", std::process::id()));
        let daemons = [0, 1].map(|host| {
            let configuration = configuration(host, &devices[host], &directory, xdp);
            start_daemon(&hosts[host], host, &directory, &configuration)
        });
        let pair = Self { daemons, hosts, devices, directory };
        for host in 0..2 {
            let ready = wait_until_ready(|| pair.get(host, "/healthz").is_some());
            assert!(ready, "netfwd {host}:\n{}", pair.daemons[host].output());
        }
        Some(pair)
    }

    fn get(&self, host: usize, path: &str) -> Option<String> {
        self.hosts[host].run(|| http_get(path).ok()).expect("a namespace")
    }

    fn metrics(&self, host: usize) -> Metrics {
        Metrics::parse(&self.get(host, "/metrics").expect("a scrape"))
    }

    /// Packets that came through AF_XDP.
    fn redirected(&self, host: usize) -> f64 {
        self.metrics(host).metric("netfwd_xdp_packets_total", &[("action", "redirect")])
    }

    /// Sends that much by TCP and asserts that it came as it was sent.
    fn tcp(&self, from: usize, bytes: u64) {
        let [one, two] = [&self.hosts[from], &self.hosts[1 - from]];
        let report = tcp::run(one, two, inside(1 - from), tcp::Load::of_bytes(1, bytes)).expect("TCP");
        assert!(report.intact() && report.received == bytes, "{report:?}");
    }

    /// Sends datagrams slowly and asserts that each came once and in order.
    fn udp(&self, from: usize, datagrams: u64) {
        let [one, two] = [&self.hosts[from], &self.hosts[1 - from]];
        let load = udp::Load::of_datagrams(udp::Sizes::Equal(1350), datagrams, 0.1);
        let report = udp::run(one, two, inside(1 - from), &load).expect("UDP");
        assert!(report.faithful() && report.lost() == 0, "{report:?}");
    }

    fn everything(&self) {
        for host in 0..2 {
            for _ in 0..3 {
                // One at a time: for the last of several, ping waits no longer than twice what the others took.
                self.hosts[host].exec(&format!("ping -c 1 -W 10 {}", inside(1 - host))).expect("an answer");
            }
        }
        for host in 0..2 {
            self.tcp(host, 20_000_000);
            self.udp(host, 2_000);
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in 0..2 {
                eprintln!("netfwd {host}:\n{}", self.daemons[host].output());
                let text = self.get(host, "/metrics").unwrap_or_default();
                text.lines()
                    .filter(|line| !line.starts_with('#') && !line.ends_with(" 0"))
                    .for_each(|line| eprintln!("{line}"));
            }
        }
        fs::remove_dir_all(&self.directory).ok();
    }
}

fn wait_until_ready(ready: impl Fn() -> bool) -> bool {
    let mut is_ready = false;
    wait_until(PATIENCE, || {
        is_ready = ready();
        is_ready
    });
    is_ready
}

fn outside(host: usize) -> IpAddr {
    Ipv4Addr::new(10, 9, 0, host as u8 + 1).into()
}

fn inside(host: usize) -> IpAddr {
    Ipv4Addr::new(10, 10, 0, host as u8 + 1).into()
}

fn connect(hosts: &[Namespace; 2]) {
    let [one, two] = hosts.each_ref().map(Namespace::name);
    let add = format!("link add name under0 netns {one} type veth peer name under0 netns {two}");
    output(std::process::Command::new("ip").args(add.split_whitespace())).expect("a veth pair");
    for (index, host) in hosts.iter().enumerate() {
        host.ip(&format!("address add {}/24 dev under0", outside(index))).expect("an address");
        host.ip("link set under0 up").expect("a link");
        // A sender that leaves checksums to its network card leaves them unfinished on a veth; GRO brings NAPI.
        host.exec("ethtool -K under0 tx off gro on").expect("offloads");
    }
}

fn start_daemon(namespace: &Namespace, host: usize, directory: &Path, configuration: &str) -> Process {
    let file = directory.join(format!("{host}.toml"));
    fs::write(&file, configuration).expect("a configuration");
    let mut command = namespace.command(NETFWD);
    command.arg("run").arg("--config").arg(&file);
    namespace.spawn(&mut command, &directory.join(format!("{host}.log"))).expect("a daemon")
}

fn configuration(host: usize, device: &str, directory: &Path, xdp: &str) -> String {
    let key = directory.join(format!("{host}.key"));
    fs::write(&key, KEYS[host]).expect("a key file");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("its mode");
    let peer = PrivateKey::from_base64(KEYS[1 - host]).expect("a key").public_key();
    let (own, other, other_outside) = (inside(host), inside(1 - host), outside(1 - host));
    format!(
        "[metrics]\nlisten = \"{METRICS}\"\n[[underlay]]\ninterface = \"under0\"\nxdp = \"{xdp}\"\n\
         [[tunnel]]\nname = \"{device}\"\nkind = \"wireguard\"\nprivate_key_file = \"{}\"\nport = {PORT}\n\
         addresses = [\"{own}/24\"]\n\
         [[tunnel.peer]]\npublic_key = \"{peer}\"\nendpoint = \"{other_outside}:{PORT}\"\nallowed_ips = [\"{other}/32\"]\n",
        key.display(),
    )
}

fn http_get(path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(METRICS)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (_, body) = response.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(body.to_owned())
}

#[test]
fn two_daemons_carry_everything_whole_through_af_xdp() {
    let Some(pair) = Pair::start("wgx", "native") else { return };
    pair.everything();
    for host in 0..2 {
        let metrics = pair.metrics(host);
        let redirected = pair.redirected(host);
        assert!(redirected >= 20_000_000.0 / 1400.0, "{redirected} packets came through AF_XDP");
        let label = [("tunnel", pair.devices[host].as_str())];
        assert!(metrics.metric("netfwd_receive_bytes_total", &label) >= 20_000_000.0);
        assert!(metrics.metric("netfwd_transmit_bytes_total", &label) >= 20_000_000.0);
    }
}

#[test]
fn two_daemons_carry_everything_whole_through_kernel_sockets() {
    let Some(pair) = Pair::start("wgk", "off") else { return };
    pair.everything();
}

#[test]
fn a_port_changes_under_traffic_and_xdp_follows() {
    let Some(pair) = Pair::start("wgp", "native") else { return };
    pair.tcp(0, 5_000_000);
    let is_moved = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_moved.load(Ordering::Relaxed) {
                pair.tcp(0, 20_000_000);
            }
            // The other end learns of a port from what comes from there.
            pair.tcp(0, 5_000_000);
        });
        for port in [PORT + 1, PORT + 2, PORT, PORT + 3] {
            std::thread::sleep(Duration::from_millis(100));
            pair.hosts[0].exec(&format!("wg set {} listen-port {port}", pair.devices[0])).expect("another port");
        }
        is_moved.store(true, Ordering::Relaxed);
    });
    let shown = pair.hosts[0].exec(&format!("wg show {} listen-port", pair.devices[0])).expect("a port");
    assert_eq!(shown.trim(), (PORT + 3).to_string());
    let before = pair.redirected(0);
    pair.tcp(1, 5_000_000);
    let redirected = pair.redirected(0) - before;
    assert!(redirected >= 5_000_000.0 / 1400.0, "{redirected} packets for the new port came through AF_XDP");
    // Nobody has the ports of before any more.
    let free = pair.hosts[0].run(|| std::net::UdpSocket::bind(("0.0.0.0", PORT)).is_ok());
    assert!(free.expect("a namespace"), "the first port is still taken");
}
