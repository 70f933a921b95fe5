//! A hub with ten thousand peers, of whom a thousand come back at the same moment, as after its restart.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::noise::{Tunn, TunnResult};
use gotatun::packet::{Packet, WgKind};
use gotatun::x25519;
use netfwd::control::uapi::server::DIRECTORY;
use netfwd::datapath::tunnel::wireguard::PrivateKey;
use netfwd_common::checksum::Sum;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use xtask::lab::{Namespace, root_or_skip};
use xtask::machine::{resident_bytes, slowness, wait_until};
use zerocopy::IntoBytes;

const NETFWD: &str = env!("CARGO_BIN_EXE_netfwd");
/// Configured peers.
const PEERS: u16 = 10_000;
/// Those that come back.
const ACTIVE: u16 = 1_000;
/// Under load senders have to prove their address, with their next try: after five seconds (REKEY_TIMEOUT). The others are for what
/// queues lose on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often somebody whose packet was not answered sends another.
const AGAIN: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(250);
/// Memory of an active and of an idle peer at most, and what workers and lists grow by whatever peers there are.
const PER_ACTIVE: u64 = 16 << 10;
const PER_IDLE: u64 = 1 << 10;
const ONCE: u64 = 8 << 20;
const HUB: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ECHO: u16 = 5001;

/// The private key of peer `n`; that of the hub comes after all of them.
fn secret(n: u16) -> [u8; 32] {
    let [high, low] = n.to_be_bytes();
    std::array::from_fn(|at| match at {
        8 => high,
        9 => low,
        _ => 7,
    })
}

fn key(n: u16) -> PrivateKey {
    PrivateKey::from_bytes(secret(n))
}

/// The inner address of peer `n`; outside it is at 127.1 instead of 10.1.
fn inner(n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(10, 1, high, low)
}

/// A daemon with all those peers.
struct Hub {
    namespace: Namespace,
    device: String,
    process: u32,
}

impl Hub {
    fn start() -> Self {
        let namespace = Namespace::create(&format!("nf-{}-many", std::process::id())).expect("a namespace");
        let device = format!("nf{}many", std::process::id());
        namespace.exec("ip link set lo up").expect("up");
        namespace.exec(&format!("{NETFWD} wg {device}")).expect("a device");
        namespace.exec(&format!("ip address add {HUB}/8 dev {device}")).expect("an address");
        namespace.exec(&format!("ip link set {device} up")).expect("up");
        let process = namespace.processes().expect("processes")[0].as_raw_nonzero().get().unsigned_abs();
        Self { namespace, device, process }
    }

    fn configure(&self, port: u16) {
        let mut text = format!("set=1\nprivate_key={}\nlisten_port={port}\n", key(PEERS).to_hex().as_str());
        for n in 0..PEERS {
            let public = key(n).public_key().to_hex();
            writeln!(text, "public_key={public}\nallowed_ip={}/32", inner(n)).expect("room");
        }
        let socket = Path::new(DIRECTORY).join(format!("{}.sock", self.device));
        let mut stream = UnixStream::connect(socket).expect("a control socket");
        stream.write_all(text.as_bytes()).expect("it reads");
        stream.shutdown(Shutdown::Write).expect("connected");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, "errno=0\n\n");
    }

    /// Sends back whatever has come out of the tunnel.
    fn echo(socket: &UdpSocket) {
        let mut payload = [0; 64];
        while let Ok((len, from)) = socket.recv_from(&mut payload) {
            // What finds no room is asked for again.
            let _ = socket.send_to(&payload[..len], from);
        }
    }

    fn resident(&self) -> u64 {
        resident_bytes(self.process).expect("a process")
    }

    /// Peers with a handshake, as `wg` says.
    fn established(&self) -> usize {
        let shown = self.namespace.exec(&format!("wg show {} latest-handshakes", self.device)).expect("wg");
        shown.lines().filter(|line| !line.ends_with("\t0")).count()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // It ends with its device.
        let _ = self.namespace.exec(&format!("ip link del {}", self.device));
    }
}

/// A peer with nothing but the protocol.
struct Spoke {
    number: u16,
    tunn: Tunn,
    socket: UdpSocket,
    sent: Option<Instant>,
    is_answered: bool,
}

impl Spoke {
    fn new(number: u16, hub: SocketAddr) -> Self {
        let own = x25519::StaticSecret::from(secret(number));
        let limiter = Arc::new(RateLimiter::new(&x25519::PublicKey::from(&own), 100));
        let tunn = Tunn::new(own, key(PEERS).public_key().0.into(), None, None, IndexTable::from_os_rng(), limiter);
        let [_, _, high, low] = inner(number).octets();
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 1, high, low), 0)).expect("a port");
        socket.connect(hub).expect("an address");
        socket.set_nonblocking(true).expect("settable");
        Self { number, tunn, socket, sent: None, is_answered: false }
    }

    fn send(&self, message: impl Into<WgKind>) {
        // A full queue is like a cable that loses it.
        let _ = self.socket.send(Packet::from(message.into()).as_bytes());
    }

    fn begin(&mut self) {
        let initiation = self.tunn.format_handshake_initiation(false).expect("none is under way");
        self.send(initiation);
    }

    fn tick(&mut self) {
        if let Ok(Some(message)) = self.tunn.update_timers() {
            self.send(message);
        }
        if !self.is_answered && self.sent.is_some_and(|sent| sent.elapsed() > AGAIN) {
            self.speak();
        }
    }

    /// Sends a packet to the hub, if there is a session.
    fn speak(&mut self) {
        let packet = Packet::copy_from(udp_packet(inner(self.number), &self.number.to_be_bytes()).as_slice());
        if let Ok(sealed) = self.tunn.encapsulate_with_session(packet.into_bytes()) {
            self.sent = Some(Instant::now());
            self.send(sealed);
        }
    }

    fn listen(&mut self) {
        let mut bytes = [0; 256];
        while let Ok(len) = self.socket.recv(&mut bytes) {
            let message = Packet::copy_from(&bytes[..len]).into_bytes().try_into_wg().expect("a message");
            let is_response = matches!(message, WgKind::HandshakeResp(_));
            match self.tunn.handle_incoming_packet(message) {
                TunnResult::WriteToNetwork(message) => self.send(message),
                TunnResult::WriteToTunnel(packet) if packet.len() > 28 => {
                    assert_eq!(packet[28..30], self.number.to_be_bytes(), "somebody else's answer");
                    self.is_answered = true;
                }
                // The errors are answers to an older try.
                TunnResult::WriteToTunnel(_) | TunnResult::Done | TunnResult::Err(_) => {}
            }
            if is_response {
                self.speak();
            }
        }
    }
}

/// A datagram without a checksum to the hub's echo.
fn udp_packet(from: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let len = |headers: usize| (headers + payload.len()) as u16;
    let [high, low] = len(28).to_be_bytes();
    let mut ip = [[0x45, 0, high, low], [0, 0, 0x40, 0], [64, 17, 0, 0], from.octets(), HUB.octets()].concat();
    let checksum = Sum::ZERO.add(&ip).checksum();
    ip[10..12].copy_from_slice(&checksum.to_bytes());
    let udp = [ECHO, ECHO, len(8), 0].map(u16::to_be_bytes).concat();
    [ip, udp, payload.to_vec()].concat()
}

/// Each has a socket.
fn raise_limit() {
    let limit = Rlimit { current: getrlimit(Resource::Nofile).maximum, ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).expect("a limit up to the hard one");
}

/// All begin at once; how long it takes until each has had an answer through the tunnel.
fn come_back(spokes: &mut [Spoke], echo: &UdpSocket, patience: Duration) -> Duration {
    let (start, mut next_tick) = (Instant::now(), Instant::now() + TICK);
    spokes.iter_mut().for_each(Spoke::begin);
    while spokes.iter().any(|spoke| !spoke.is_answered) {
        let waiting = spokes.iter().filter(|spoke| !spoke.is_answered).count();
        assert!(start.elapsed() < patience, "{waiting} of {ACTIVE} have no answer after {patience:?}");
        Hub::echo(echo);
        spokes.iter_mut().for_each(Spoke::listen);
        if Instant::now() >= next_tick {
            next_tick = Instant::now() + TICK;
            spokes.iter_mut().for_each(Spoke::tick);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

#[test]
fn a_thousand_of_ten_thousand_peers_come_back_at_once() {
    if !root_or_skip() {
        return;
    }
    raise_limit();
    let (hub, port) = (Hub::start(), 51_820);
    let before = hub.resident();
    let configured = Instant::now();
    hub.configure(port);
    let configured = configured.elapsed();
    let (echo, mut spokes) = hub
        .namespace
        .run(|| {
            let echo = UdpSocket::bind((HUB, ECHO)).expect("a port");
            echo.set_nonblocking(true).expect("settable");
            let spokes: Vec<_> = (0..ACTIVE).map(|n| Spoke::new(n, (Ipv4Addr::LOCALHOST, port).into())).collect();
            (echo, spokes)
        })
        .expect("a namespace");
    let took = come_back(&mut spokes, &echo, PATIENCE.mul_f64(slowness()));
    let grown = hub.resident().saturating_sub(before);
    eprintln!("{PEERS} peers configured in {configured:?}, {ACTIVE} back after {took:?}, {grown} bytes more");
    assert!(wait_until(PATIENCE, || hub.established() == usize::from(ACTIVE)), "{} peers", hub.established());
    let allowed = u64::from(ACTIVE) * PER_ACTIVE + u64::from(PEERS) * PER_IDLE + ONCE;
    assert!(grown <= allowed, "{grown} bytes more, not {allowed}");
}
