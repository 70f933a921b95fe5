//! The control socket as its clients see it: a twin of a device behind it, raw text and Debian's `wg` in front of it.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use netfwd::control::uapi::Configurable;
use netfwd::control::uapi::server::{DIRECTORY, SocketError, SocketFile, serve};
use netfwd::datapath::tunnel::wireguard::{DeviceStatus, DeviceUpdate, PeerStatus, PrivateKey};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::sync::oneshot;
use xtask::lab::root_or_skip;

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
const PEER: &str = "58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376";
/// A port that somebody else has.
const TAKEN: u16 = 7;
/// How often a start is looked at.
const STARTS: usize = 2000;

/// A device that only remembers.
#[derive(Default)]
struct Twin(Mutex<DeviceStatus>);

impl Configurable for Twin {
    async fn apply(&self, update: &DeviceUpdate) -> io::Result<()> {
        if update.listen_port == Some(TAKEN) {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
        let mut status = self.0.lock().expect("nobody panicked");
        if let Some(key) = &update.private_key {
            status.private_key = key.clone();
        }
        status.listen_port = update.listen_port.unwrap_or(status.listen_port);
        status.fwmark = update.fwmark.unwrap_or(status.fwmark);
        if update.replace_peers {
            status.peers.clear();
        }
        for change in &update.peers {
            let known = status.peers.iter().position(|peer| peer.public_key == change.public_key);
            match known {
                Some(index) if change.remove => drop(status.peers.remove(index)),
                None if change.remove || change.update_only => {}
                None => status.peers.push(PeerStatus {
                    public_key: change.public_key,
                    preshared_key: change.preshared_key.clone(),
                    endpoint: change.endpoint,
                    persistent_keepalive: change.persistent_keepalive.unwrap_or(0),
                    allowed_ips: change.allowed_ips.iter().map(|change| change.prefix).collect(),
                    last_handshake: None,
                    receive_bytes: 0,
                    transmit_bytes: 0,
                }),
                Some(index) => {
                    let peer = &mut status.peers[index];
                    peer.endpoint = change.endpoint.or(peer.endpoint);
                    peer.persistent_keepalive = change.persistent_keepalive.unwrap_or(peer.persistent_keepalive);
                    if change.replace_allowed_ips {
                        peer.allowed_ips.clear();
                    }
                    for allowed in &change.allowed_ips {
                        peer.allowed_ips.retain(|prefix| *prefix != allowed.prefix);
                        peer.allowed_ips.extend(Some(allowed.prefix).filter(|_| !allowed.remove));
                    }
                }
            }
        }
        Ok(())
    }

    fn status(&self) -> DeviceStatus {
        self.0.lock().expect("nobody panicked").clone()
    }
}

/// A directory that goes with its test.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        Self(std::env::temp_dir().join(format!("netfwd-uapi-{}-{test}", std::process::id())))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server of a twin on a thread of its own, until it is dropped.
struct Server {
    path: PathBuf,
    twin: Arc<Twin>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start(directory: &Path, name: &str) -> Self {
        let (socket, listener) = SocketFile::create_in(directory, name).expect("a socket");
        let twin = Arc::new(Twin::default());
        let (end, ended) = oneshot::channel();
        let (served, name) = (twin.clone(), name.to_owned());
        let path = directory.join(format!("{name}.sock"));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    served = serve(listener, name, served) => served.expect("a socket"),
                    _ = ended => {}
                }
            });
            drop(socket);
        });
        Self { path, twin, end: Some(end), thread: Some(thread) }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).expect("a server");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        stream
    }

    /// What is answered until the server or we have said everything.
    fn say(&self, text: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(text.as_bytes()).expect("read");
        stream.shutdown(Shutdown::Write).expect("connected");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a server that did not panic");
        }
    }
}

#[test]
fn what_was_set_is_told() {
    let directory = Directory::new("told");
    let server = Server::start(&directory.0, "wg0");
    assert_eq!(server.say("get=1\n\n"), "errno=0\n\n");
    let set = format!("set=1\nprivate_key={KEY}\nlisten_port=51820\npublic_key={PEER}\nallowed_ip=10.0.0.0/8\n\n");
    assert_eq!(server.say(&set), "errno=0\n\n");
    let told = server.say("get=1\n\n");
    let zeroes = "0".repeat(64);
    assert_eq!(
        told,
        format!(
            "private_key={KEY}\nlisten_port=51820\npublic_key={PEER}\npreshared_key={zeroes}\nprotocol_version=1\n\
             last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\n\
             persistent_keepalive_interval=0\nallowed_ip=10.0.0.0/8\nerrno=0\n\n"
        )
    );
}

#[test]
fn requests_on_one_connection_are_answered_in_order_however_they_are_cut() {
    let directory = Directory::new("order");
    let server = Server::start(&directory.0, "wg0");
    let text = format!(
        "set=1\nfwmark=7\n\nget=1\n\nset=1\nfwmark=x\npublic_key={PEER}\n\nset=1\nlisten_port={TAKEN}\n\nget=1\n\n"
    );
    let expected = "errno=0\n\nfwmark=7\nerrno=0\n\nerrno=-22\n\nerrno=-98\n\nfwmark=7\nerrno=0\n\n";
    assert_eq!(server.say(&text), expected);
    let mut stream = server.connect();
    for byte in text.as_bytes() {
        stream.write_all(&[*byte]).expect("read");
    }
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).expect("answers");
    assert_eq!(String::from_utf8_lossy(&answer), expected);
}

#[test]
fn a_refused_request_changes_nothing_of_the_device() {
    let directory = Directory::new("atomic");
    let server = Server::start(&directory.0, "wg0");
    assert_eq!(server.say(&format!("set=1\nfwmark=7\npublic_key={PEER}\nallowed_ip=nowhere\n\n")), "errno=-22\n\n");
    assert_eq!(server.say("set=1\nfwmark 7\n\n"), "errno=-71\n\n");
    assert!(server.twin.status().peers.is_empty() && server.twin.status().fwmark == 0);
}

#[test]
fn lines_and_operations_that_make_no_sense_end_in_bounds() {
    let directory = Directory::new("bounds");
    let server = Server::start(&directory.0, "wg0");
    let long = "x".repeat(1 << 20);
    assert_eq!(server.say(&format!("set=1\n{long}\n\nget=1\n\n")), "errno=-5\n\nerrno=0\n\n");
    assert_eq!(server.say("frob=1\n\n"), "");
    // Ends while we still write: what we write into is closed, or gone.
    let mut stream = server.connect();
    let _ = stream.write_all(long.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty());
    assert_eq!(server.say("get=1\n\n"), "errno=0\n\n", "others are still served");
}

#[test]
fn silent_connections_keep_nobody_out() {
    let directory = Directory::new("silent");
    let server = Server::start(&directory.0, "wg0");
    let silent: Vec<_> = (0..50).map(|_| server.connect()).collect();
    let mut half: Vec<_> = (0..50).map(|_| server.connect()).collect();
    half.iter_mut().for_each(|stream| stream.write_all(b"set=1\nfwmark=9").expect("room"));
    assert_eq!(server.say("get=1\n\n"), "errno=0\n\n");
    drop((silent, half));
    assert_eq!(server.say("get=1\n\n"), "errno=0\n\n", "and half a request changes nothing");
}

#[test]
fn a_thousand_peers_fit_one_request_and_one_answer() {
    let directory = Directory::new("peers");
    let server = Server::start(&directory.0, "wg0");
    let peer =
        |number: usize| format!("public_key={number:064x}\nallowed_ip=10.{}.{}.0/24\n", number / 256, number % 256);
    let set: String = (1..=1000).map(peer).collect();
    assert_eq!(server.say(&format!("set=1\nreplace_peers=true\n{set}\n")), "errno=0\n\n");
    let told = server.say("get=1\n\n");
    assert_eq!(told.matches("public_key=").count(), 1000);
    assert!(told.ends_with("allowed_ip=10.3.232.0/24\nerrno=0\n\n"), "{}", &told[told.len() - 80..]);
}

#[test]
fn the_socket_is_its_owner_s_alone() {
    let directory = Directory::new("mode");
    let server = Server::start(&directory.0, "wg0");
    let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
    let staging = directory.0.join(".netfwd");
    assert_eq!((mode(&directory.0), mode(&staging), mode(&server.path)), (0o700, 0o700, 0o600));
}

#[test]
fn a_dead_process_socket_is_replaced_and_a_live_one_is_not() {
    let directory = Directory::new("stale");
    fs::create_dir_all(&directory.0).expect("a directory");
    let path = directory.0.join("wg0.sock");
    drop(UnixListener::bind(&path).expect("a socket that stays behind"));
    let server = Server::start(&directory.0, "wg0");
    assert_eq!(server.say("get=1\n\n"), "errno=0\n\n");
    let error = SocketFile::create_in(&directory.0, "wg0").expect_err("a live server");
    assert!(matches!(&error, SocketError::InUse(taken) if *taken == path), "{error}");
    assert_eq!(server.say("get=1\n\n"), "errno=0\n\n", "the live server is still reached");
    drop(server);
    assert!(!path.exists());
    fs::write(&path, "precious").expect("written");
    assert!(matches!(SocketFile::create_in(&directory.0, "wg0"), Err(SocketError::NoSocket(_))));
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}

#[test]
fn only_our_own_socket_is_removed_at_the_end() {
    let directory = Directory::new("own");
    let (first, listener) = SocketFile::create_in(&directory.0, "wg0").expect("a socket");
    assert!(!first.place().is_gone());
    let path = directory.0.join("wg0.sock");
    fs::rename(&path, directory.0.join("moved")).expect("ours");
    assert!(first.place().is_gone());
    let (second, _listener) = SocketFile::create_in(&directory.0, "wg0").expect("a successor's socket");
    drop((first, listener));
    assert!(path.exists() && !second.place().is_gone());
}

/// Looks as `wg` does for devices in a directory, again and again; what refuses a connection it would remove.
#[derive(Default)]
struct Looker {
    looks: AtomicU64,
    ends: AtomicBool,
}

impl Looker {
    /// The first one that refuses, if any does before the end.
    fn look(&self, directory: &Path) -> Option<PathBuf> {
        while !self.ends.load(Ordering::SeqCst) {
            let entries = fs::read_dir(directory).expect("a directory").flatten().map(|entry| entry.path());
            let mut devices = entries.filter(|path| path.extension().is_some_and(|end| end == "sock"));
            if let Some(path) = devices.find(|path| refuses(path)) {
                return Some(path);
            }
            self.looks.fetch_add(1, Ordering::SeqCst);
        }
        None
    }

    /// Waits until the look that is under way is over, and another one.
    fn wait_for_look(&self, thread: &ScopedJoinHandle<'_, Option<PathBuf>>) {
        let before = self.looks.load(Ordering::SeqCst);
        while self.looks.load(Ordering::SeqCst) < before + 2 && !thread.is_finished() {
            thread::yield_now();
        }
    }
}

/// Ends a looker, after a panic too.
struct End<'l>(&'l Looker);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.ends.store(true, Ordering::SeqCst);
    }
}

/// Without waiting where too many others wait.
fn refuses(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket");
    connect(&socket, &SocketAddrUnix::new(path).expect("short")) == Err(rustix::io::Errno::CONNREFUSED)
}

#[test]
fn wg_never_finds_a_socket_that_does_not_listen_yet() {
    let directory = Directory::new("early");
    fs::create_dir_all(&directory.0).expect("a directory");
    let looker = Looker::default();
    let refused = thread::scope(|scope| {
        let looking = scope.spawn(|| looker.look(&directory.0));
        let end = End(&looker);
        for _ in 0..STARTS {
            let (socket, listener) = SocketFile::create_in(&directory.0, "wg0").expect("a socket");
            looker.wait_for_look(&looking);
            drop(socket);
            // Whoever has found it is still heard.
            looker.wait_for_look(&looking);
            drop(listener);
        }
        drop(end);
        looking.join().expect("no panic")
    });
    assert_eq!(refused, None, "refused a connection");
}

/// The moment is short, and a looker may miss it. Where a socket was bound can be told for good.
#[test]
fn a_socket_is_bound_where_wg_does_not_look() {
    let directory = Directory::new("bound");
    let (_socket, listener) = SocketFile::create_in(&directory.0, "wg0").expect("a socket");
    let bound = listener.local_addr().expect("bound");
    assert_eq!(bound.as_pathname(), Some(&*directory.0.join(".netfwd/wg0.sock")));
}

#[test]
fn of_starts_at_once_one_gets_the_name_whatever_the_dead_have_left() {
    let directory = Directory::new("at-once");
    let path = directory.0.join("wg0.sock");
    for _ in 0..STARTS / 10 {
        fs::create_dir_all(directory.0.join(".netfwd")).expect("a directory");
        for left in [&path, &directory.0.join(".netfwd/wg0.sock")] {
            drop(UnixListener::bind(left).expect("a socket that stays behind"));
        }
        let mut started = thread::scope(|scope| {
            let start = || SocketFile::create_in(&directory.0, "wg0");
            let threads = [(); 4].map(|()| scope.spawn(start));
            Vec::from(threads.map(|thread| thread.join().expect("no panic")))
        });
        let place = started.iter().position(Result::is_ok).expect("one of them");
        let one = started.swap_remove(place).expect("it is");
        assert!(started.iter().all(|other| matches!(other, Err(SocketError::InUse(_)))), "{started:?}");
        assert!(!one.0.place().is_gone() && UnixStream::connect(&path).is_ok());
        drop(one);
        assert_eq!(fs::read_dir(directory.0.join(".netfwd")).expect("a directory").count(), 0);
    }
}

/// Runs `wg`, which knows sockets in one directory only.
fn wg(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("wg").args(arguments).output().expect("wg is installed (wireguard-tools)");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn wg_shows_and_changes_the_device() {
    if !root_or_skip() {
        return;
    }
    let directory = Directory::new("wg");
    fs::create_dir_all(&directory.0).expect("a directory");
    let name = format!("nfuapi{}", std::process::id() % 1_000_000);
    let server = Server::start(Path::new(DIRECTORY), &name);
    let file = directory.0.join("wg.conf");
    let private = "WAmgVYXkbT2bCtdcDwolI88/iVi/aV3/PHcUBTQSYmo=";
    let [one, two] = ["xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="];
    let peer = |key: &str, prefix: &str| format!("[Peer]\nPublicKey = {key}\nAllowedIPs = {prefix}\n");
    let write = |text: &str| {
        fs::write(&file, text).expect("written");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("ours");
        file.to_str().expect("plain").to_owned()
    };
    let run = |arguments: &[&str]| {
        let (good, said) = wg(arguments);
        assert!(good, "wg {arguments:?}: {said}");
        said
    };
    let interface = format!("[Interface]\nPrivateKey = {private}\nListenPort = 51820\nFwMark = 0xca6c\n");
    run(&["setconf", &name, &write(&format!("{interface}{}", peer(one, "10.1.0.0/16, fd00::/64")))]);
    let public = PrivateKey::from_base64(private).expect("a key").public_key().to_string();
    assert_eq!(run(&["show", &name, "public-key"]).trim(), public);
    assert_eq!(run(&["show", &name, "listen-port"]).trim(), "51820");
    assert_eq!(run(&["show", &name, "fwmark"]).trim(), "0xca6c");
    assert_eq!(run(&["show", &name, "allowed-ips"]).trim(), format!("{one}\t10.1.0.0/16 fd00::/64"));
    run(&["addconf", &name, &write(&peer(two, "10.2.0.0/16"))]);
    run(&["set", &name, "peer", two, "endpoint", "192.0.2.1:7", "persistent-keepalive", "25"]);
    let shown = run(&["showconf", &name]);
    for line in
        [&format!("PrivateKey = {private}"), "Endpoint = 192.0.2.1:7", "PersistentKeepalive = 25", "FwMark = 0xca6c"]
    {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    // Takes the first peer away and leaves the second one as it is.
    run(&["syncconf", &name, &write(&format!("{interface}{}", peer(two, "10.3.0.0/16")))]);
    assert_eq!(run(&["show", &name, "allowed-ips"]).trim(), format!("{two}\t10.3.0.0/16"));
    run(&["set", &name, "private-key", "/dev/null", "peer", two, "remove"]);
    assert!(server.twin.status().peers.is_empty() && server.twin.status().private_key.is_none());
    let (good, said) = wg(&["set", &name, "listen-port", &TAKEN.to_string()]);
    assert!(!good && said.contains("Address already in use"), "{said}");
}
