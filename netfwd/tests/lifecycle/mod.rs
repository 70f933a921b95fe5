//! What the tests of the daemon's life share: load that survives the daemon, runs that have to fail, and the question
//! whether anything was left behind.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use xtask::lab::{Config, Family, LAN, Lab, Namespace, Netfwd, UNDERLAY};
use xtask::machine::wait_until;

/// The daemon that cargo built for these tests.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_netfwd"))
}

/// Starts the daemon and waits for its health.
pub fn start(lab: &Lab, config: &Config) -> Netfwd {
    Netfwd::start(lab, binary(), config).unwrap()
}

/// How a run of the daemon ended by itself.
pub struct Ended {
    /// The exit code.
    pub code: Option<i32>,
    /// Everything on standard output and standard error.
    pub text: String,
}

impl Ended {
    /// Without the lines of the log.
    pub fn complaints(&self) -> Vec<&str> {
        self.text.lines().filter(|line| !line.contains(" INFO ")).collect()
    }

    /// It ended with this code and with one line that contains all of `words`.
    pub fn assert_one_line(&self, code: i32, words: &[&str]) {
        let complaints = self.complaints();
        assert!(self.code == Some(code) && complaints.len() == 1, "{:?}:\n{}", self.code, self.text);
        for word in words {
            assert!(complaints[0].contains(word), "no {word:?} in:\n{}", self.text);
        }
    }
}

/// Runs `words` in the gateway, with `netfwd` and `FILE` replaced by the binary and a file of that text, and expects
/// that it ends within some seconds.
pub fn run_to_end(lab: &Lab, words: &str, config: &str) -> Ended {
    let file = lab.directory().join("wrong.toml");
    let log = lab.directory().join("wrong.log");
    std::fs::write(&file, config).unwrap();
    std::fs::remove_file(&log).ok();
    let mut words = words.split_whitespace().map(|word| match word {
        "netfwd" => binary(),
        "FILE" => file.as_path(),
        other => Path::new(other),
    });
    let mut command = lab.gateway.command(words.next().unwrap());
    command.args(words);
    let mut process = lab.gateway.spawn(&mut command, &log).unwrap();
    let status = process.wait(Duration::from_secs(30)).unwrap();
    Ended { code: status.code(), text: process.output() }
}

/// The gateway looks as it did before any daemon ran in it.
pub fn assert_nothing_left(lab: &Lab) {
    let mut left = String::new();
    // The kernel removes some of it a moment after the process.
    let clean = wait_until(Duration::from_secs(10), || {
        left = remains(&lab.gateway).unwrap();
        left.is_empty()
    });
    assert!(clean, "left behind:\n{left}");
}

fn remains(gateway: &Namespace) -> Result<String> {
    let mut left = String::new();
    for link in gateway.ip("-o link show")?.lines() {
        let name = link.split(": ").nth(1).unwrap_or_default().split('@').next().unwrap_or_default();
        if !["lo", UNDERLAY, LAN].contains(&name) || link.contains("xdp") {
            left += &format!("{link}\n");
        }
    }
    for sockets in ["ss -Hanu", "ss -Hanw", "ss -Hltn", "ss -Han --xdp"] {
        left += &gateway.exec(sockets)?;
    }
    Ok(left)
}

/// Is an XDP program on the gateway's underlay?
pub fn has_xdp(lab: &Lab) -> bool {
    lab.gateway.ip(&format!("link show {UNDERLAY}")).unwrap().contains("xdp")
}

/// TCP and UDP both ways through the gateway, which go on whatever happens to it.
pub struct Load {
    stop: Arc<AtomicBool>,
    inward: Arc<AtomicU64>,
    outward: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts it between peer and server.
    pub fn start(lab: &Lab) -> Self {
        let mut load =
            Self { stop: Arc::default(), inward: Arc::default(), outward: Arc::default(), threads: Vec::new() };
        let (inward, outward) = (load.inward.clone(), load.outward.clone());
        load.between(&lab.peer, &lab.server, lab.server_address(Family::V4), inward);
        load.between(&lab.server, &lab.peer, lab.peer_address(Family::V4), outward);
        load
    }

    fn between(&mut self, from: &Namespace, to: &Namespace, address: IpAddr, count: Arc<AtomicU64>) {
        let listener = to.run(|| TcpListener::bind("0.0.0.0:0")).unwrap().unwrap();
        let target = SocketAddr::new(address, listener.local_addr().unwrap().port());
        let stop = || self.stop.clone();
        let threads = [
            to.thread({
                let stop = stop();
                move || sink(&listener, &stop, &count)
            }),
            from.thread({
                let stop = stop();
                move || pour(target, &stop)
            }),
            from.thread({
                let stop = stop();
                move || spray(target, &stop)
            }),
        ];
        self.threads.extend(threads);
    }

    /// Waits until some more MiB of TCP have arrived at both ends; panics when that takes longer than `patience`.
    pub fn wait_for_mebibytes(&self, mebibytes: u64, patience: Duration) -> Duration {
        let start = Instant::now();
        let now = || [&self.inward, &self.outward].map(|count| count.load(Ordering::Relaxed));
        let before = now();
        let grown = || now().iter().zip(before).all(|(now, before)| now - before >= mebibytes << 20);
        assert!(wait_until(patience, grown), "{before:?} bytes became only {:?} in {patience:?}", now());
        start.elapsed()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// Reads every connection that comes.
fn sink(listener: &TcpListener, stop: &AtomicBool, count: &AtomicU64) -> Result<()> {
    listener.set_nonblocking(true)?;
    thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((socket, _)) => drop(scope.spawn(move || swallow(socket, stop, count))),
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    });
    Ok(())
}

fn swallow(mut socket: TcpStream, stop: &AtomicBool, count: &AtomicU64) {
    socket.set_nonblocking(false).ok();
    socket.set_read_timeout(Some(Duration::from_millis(200))).ok();
    let mut buffer = vec![0; 1 << 18];
    while !stop.load(Ordering::Relaxed) {
        match socket.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => drop(count.fetch_add(length as u64, Ordering::Relaxed)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Writes as fast as it goes, on a new connection whenever the old one stands still.
fn pour(target: SocketAddr, stop: &AtomicBool) -> Result<()> {
    let chunk = vec![0x5a; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut socket) = TcpStream::connect_timeout(&target, Duration::from_millis(500)) else {
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        socket.set_write_timeout(Some(Duration::from_millis(300)))?;
        while !stop.load(Ordering::Relaxed) && socket.write(&chunk).is_ok() {}
    }
    Ok(())
}

/// Some thousand datagrams a second of several sizes, to a port where nobody listens.
fn spray(target: SocketAddr, stop: &AtomicBool) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let bytes = [0xa5; 1300];
    while !stop.load(Ordering::Relaxed) {
        for size in [1300, 1300, 1300, 700, 20] {
            socket.send_to(&bytes[..size], target).ok();
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A TCP connection between peer and gateway beside all tunnels, as an operator's SSH would be.
pub struct Conversation {
    near: TcpStream,
    far: TcpStream,
    spoken: u64,
}

impl Conversation {
    /// Connects.
    pub fn open(lab: &Lab) -> Self {
        let listener = lab.gateway.run(|| TcpListener::bind("10.9.0.2:22")).unwrap().unwrap();
        let target = listener.local_addr().unwrap();
        let near = lab.peer.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(5))).unwrap().unwrap();
        let (far, _) = listener.accept().unwrap();
        for end in [&near, &far] {
            end.set_nodelay(true).unwrap();
            end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        Self { near, far, spoken: 0 }
    }

    /// A word each way.
    pub fn speak(&mut self) {
        self.spoken += 1;
        let word = self.spoken.to_le_bytes();
        let mut heard = [0; 8];
        self.near.write_all(&word).unwrap();
        self.far.read_exact(&mut heard).unwrap();
        self.far.write_all(&heard).unwrap();
        self.near.read_exact(&mut heard).unwrap();
        assert_eq!(heard, word);
    }
}
