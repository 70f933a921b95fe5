//! netfwd's control socket beside wireguard-go's: random requests to both, what they answer, and what they tell of themselves then.
//!
//! A refusal leaves netfwd as it was and wireguard-go half-way, so there that is led back to what netfwd tells, said as a request.
//!
//! Not asked for, since Debian's wireguard-go is another than today's: prefixes taken away with a minus, and the interfaces of endpoints. Nor
//! what both know how to do in their own ways: one key of the device twice, and a peer that takes another's prefix and drops it again.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use netfwd::control::uapi::server::DIRECTORY;
use netfwd::datapath::tunnel::wireguard::PrivateKey;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use xtask::lab::{Device, DeviceState, Namespace, Program, root_or_skip};
use xtask::machine::wait_until;

const REQUESTS: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(10);
/// From here on the kernel chooses ports.
const CHOSEN: u16 = 32768;
const ACCEPTED: &str = "errno=0\n\n";
const PORT_TAKEN: &str = "listen_port=4001";
const FAULTS: [&str; 16] = [
    PORT_TAKEN,
    "listen_port=65536",
    "private_key=11",
    "public_key=xx",
    "fwmark=0x1",
    "replace_peers=false",
    "remove=1",
    "update_only=",
    "preshared_key=",
    "endpoint=localhost:7",
    "endpoint=192.0.2.1",
    "allowed_ip=10.0.0.0",
    "allowed_ip=010.0.0.0/8",
    "persistent_keepalive_interval=off",
    "rx_bytes=0",
    "no pair",
];

/// What a device tells, sorted, without what traffic changes: its own lines under no key, those of each peer under its own.
type Told = BTreeMap<String, Vec<String>>;

/// A device in a namespace of its own, where somebody has a port.
struct Subject {
    device: Device,
    namespace: Namespace,
    _taken: UdpSocket,
}

#[derive(Clone, Debug)]
struct Request {
    lines: Vec<String>,
    /// The end of the connection in the place of the blank line.
    ends: bool,
    /// Bytes that are written at a time.
    piece: usize,
}

impl Subject {
    fn start(program: Program, label: &str) -> Self {
        let id = std::process::id();
        let namespace = Namespace::create(&format!("nf-{id}-uapi-{label}")).expect("a namespace");
        let taken = namespace.run(|| UdpSocket::bind("0.0.0.0:4001")).expect("a namespace").expect("a port");
        let name = format!("nfu{}{label}", id % 10_000_000);
        let device = Device::start(program, &namespace, &name, &std::env::temp_dir()).expect("a device");
        namespace.ip(&format!("link set {name} up")).expect("a link");
        let subject = Self { device, namespace, _taken: taken };
        // wireguard-go listens once it has heard of its link.
        assert!(wait_until(PATIENCE, || subject.told()[""].iter().any(|line| line.starts_with("listen_port="))));
        subject
    }

    fn say(&self, request: &str, piece: usize, ends: bool) -> String {
        let path = Path::new(DIRECTORY).join(format!("{}.sock", self.device.name()));
        let mut stream = UnixStream::connect(path).expect("a control socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("settable");
        // wireguard-go answers to a fault at once and may read no further.
        let _ = request.as_bytes().chunks(piece).try_for_each(|piece| stream.write_all(piece));
        if ends {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let (mut reader, mut answer) = (BufReader::new(stream), String::new());
        while !answer.ends_with("\n\n") && reader.read_line(&mut answer).expect("an answer") > 0 {}
        answer
    }

    fn set(&self, request: &Request) -> String {
        let lines: String = request.lines.iter().map(|line| format!("{line}\n")).collect();
        self.say(&format!("set=1\n{lines}{}", if request.ends { "" } else { "\n" }), request.piece, request.ends)
    }

    /// The lines that can be said back.
    fn lines(&self) -> Vec<String> {
        let told_only = ["last_handshake_time", "tx_bytes", "rx_bytes", "errno"];
        let answer = self.say("get=1\n\n", usize::MAX, false);
        let lines =
            answer.lines().filter(|line| !line.is_empty() && !told_only.iter().any(|key| line.starts_with(key)));
        lines.map(str::to_owned).collect()
    }

    fn told(&self) -> Told {
        let (mut told, mut peer) = (Told::from([(String::new(), Vec::new())]), String::new());
        for line in self.lines() {
            match line.split_once('=') {
                Some(("public_key", key)) => peer = key.to_owned(),
                Some(("listen_port", port)) if port.parse::<u16>().is_ok_and(|port| port >= CHOSEN) => {
                    told.entry(peer.clone()).or_default().push("listen_port=chosen".to_owned());
                    continue;
                }
                _ => {}
            }
            told.entry(peer.clone()).or_default().push(line);
        }
        told.values_mut().for_each(|lines| lines.sort_unstable());
        told
    }

    /// Makes it what another tells.
    fn follow(&self, other: &Self) {
        let blank = [format!("private_key={}", "0".repeat(64)), "fwmark=0".to_owned(), "replace_peers=true".to_owned()];
        let lines = blank.into_iter().chain(other.lines()).collect();
        assert_eq!(self.set(&Request { lines, ends: false, piece: usize::MAX }), ACCEPTED);
    }

    /// What `wg` makes of it, without what traffic changes.
    fn state(&self) -> DeviceState {
        let mut state = DeviceState::of(&self.namespace, self.device.name()).expect("wg show");
        state.listen_port = 0;
        state.peers.iter_mut().for_each(|peer| (peer.sent, peer.received) = (0, 0));
        state.peers.sort_unstable_by(|one, other| one.public_key.cmp(&other.public_key));
        state
    }
}

fn one_of(key: &'static str, values: &[&str]) -> BoxedStrategy<String> {
    let lines: Vec<_> = values.iter().map(|value| format!("{key}={value}")).collect();
    select(lines).boxed()
}

/// Some of them in any order.
fn some(lines: impl IntoIterator<Item = BoxedStrategy<String>>) -> impl Strategy<Value = Vec<String>> {
    let lines: Vec<_> = lines.into_iter().map(|line| prop::option::weighted(0.25, line)).collect();
    lines.prop_map(|lines| lines.into_iter().flatten().collect::<Vec<_>>()).prop_shuffle()
}

/// Few keys and prefixes, so that requests speak of what there is.
fn keys() -> [String; 3] {
    ["11", "a5", "ff"].map(|byte| byte.repeat(32))
}

fn device_part() -> impl Strategy<Value = Vec<String>> {
    let zero = "0".repeat(64);
    let own: Vec<_> = keys().into_iter().chain([zero]).collect();
    let own: Vec<_> = own.iter().map(String::as_str).collect();
    some([
        one_of("private_key", &own),
        one_of("listen_port", &["0", "1001", "1002"]),
        one_of("fwmark", &["0", "7", "4294967295"]),
        one_of("replace_peers", &["true"]),
    ])
}

fn peer_part() -> impl Strategy<Value = Vec<String>> {
    let ours = keys().map(|key| PrivateKey::from_hex(&key).expect("a key").public_key().to_hex());
    let others = ["b1", "B2", "b3"].map(|byte| byte.repeat(32));
    let preshared = [keys()[0].clone(), "0".repeat(64)];
    let public = select([ours, others].concat()).prop_map(|key| format!("public_key={key}"));
    let changes = some([
        one_of("remove", &["true"]),
        one_of("update_only", &["true"]),
        one_of("preshared_key", &preshared.each_ref().map(String::as_str)),
        one_of("endpoint", &["192.0.2.1:51820", "[2001:db8::1]:00007", "0.0.0.0:0", "255.255.255.255:65535"]),
        one_of("persistent_keepalive_interval", &["0", "025", "65535"]),
        one_of("replace_allowed_ips", &["true"]),
        one_of("protocol_version", &["1"]),
    ]);
    let v4 = one_of("allowed_ip", &["0.0.0.0/0", "10.1.2.3/8", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"]);
    let v6 = one_of("allowed_ip", &["::/0", "FD00::1/8", "fd00::/64", "fd00::1/128", "::ffff:10.0.0.0/104"]);
    let allowed = prop::collection::vec(prop_oneof![v4, v6], 0..4);
    (public, changes, allowed).prop_map(|(public, changes, allowed)| [vec![public], changes, allowed].concat())
}

fn request() -> impl Strategy<Value = Request> {
    let peers = prop::collection::vec(peer_part(), 0..4);
    let fault = prop::option::weighted(0.2, (any::<Index>(), select(FAULTS.to_vec())));
    let piece = prop_oneof![4 => Just(usize::MAX), 1 => 1..100_usize];
    (device_part(), peers, fault, prop::bool::weighted(0.2), piece).prop_map(|(device, peers, fault, ends, piece)| {
        let mut lines = [device, peers.concat()].concat();
        if let Some((place, fault)) = fault {
            lines.retain(|line| fault != PORT_TAKEN || !line.starts_with("listen_port="));
            lines.insert(place.index(lines.len() + 1), fault.to_owned());
        }
        Request { lines, ends, piece }
    })
}

#[test]
fn netfwd_answers_and_becomes_what_wireguard_go_does() {
    if !root_or_skip() {
        return;
    }
    let netfwd = Subject::start(Program::Netfwd(env!("CARGO_BIN_EXE_netfwd")), "n");
    let other = Subject::start(Program::WireguardGo, "g");
    let (mut runner, requests, mut refused) = (TestRunner::deterministic(), request(), 0);
    for number in 0..REQUESTS {
        let request = requests.new_tree(&mut runner).expect("requests").current();
        let before = netfwd.told();
        let answer = netfwd.set(&request);
        assert_eq!(answer, other.set(&request), "{request:#?} for {before:#?}");
        if answer != ACCEPTED {
            refused += 1;
            assert_eq!(netfwd.told(), before, "{request:#?} was refused");
            other.follow(&netfwd);
        }
        assert_eq!(netfwd.told(), other.told(), "{request:#?} for {before:#?}");
        if number % 20 == 0 {
            assert_eq!(netfwd.state(), other.state(), "{request:#?}");
        }
    }
    assert!((REQUESTS / 10..REQUESTS / 2).contains(&refused), "{refused} of {REQUESTS} were refused");
}
