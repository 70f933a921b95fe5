//! `netfwd wg` as wg-quick and init scripts meet it: when it returns, what it leaves, and what ends the process that stays.
//! And the same device in `netfwd run`, where a file configures it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use netfwd::control::uapi::server::DIRECTORY;
use netfwd::datapath::tunnel::wireguard::PrivateKey;
use xtask::lab::{Namespace, is_listening, output, root_or_skip, write_secret};
use xtask::machine::wait_until;

const NETFWD: &str = env!("CARGO_BIN_EXE_netfwd");
const PATIENCE: Duration = Duration::from_secs(10);

/// A namespace with a name for one device in it; whatever still serves the device ends with it.
struct Host {
    namespace: Namespace,
    device: String,
}

impl Host {
    fn new(test: &str) -> Option<Self> {
        if !root_or_skip() {
            return None;
        }
        let namespace = Namespace::create(&format!("nf-{}-{test}", std::process::id())).expect("a namespace");
        // Sockets are in one directory for all namespaces.
        let device = format!("nf{}{}", std::process::id() % 10_000_000, &test[..3]);
        Some(Self { namespace, device })
    }

    fn run(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Output {
        // The output ends when nobody has the pipe any more: a process that keeps it would make this wait for ever.
        self.namespace.command(program).args(arguments).stdin(Stdio::null()).output().expect("it starts")
    }

    fn start(&self) {
        let Output { status, stdout, stderr } = self.run(NETFWD, &["wg", &self.device]);
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        assert!(stdout.is_empty() && stderr.is_empty());
        assert!(self.socket().exists() && self.has_link(), "both are there when it returns");
    }

    fn socket(&self) -> PathBuf {
        Path::new(DIRECTORY).join(format!("{}.sock", self.device))
    }

    fn has_link(&self) -> bool {
        self.namespace.exec(&format!("ip link show {}", self.device)).is_ok()
    }

    /// `netfwd wg -f` with a variable that says what is logged, and its link up.
    fn start_in_front(&self, variable: &str, value: &str) -> InFront {
        let file = std::env::temp_dir().join(format!("netfwd-{}", self.device));
        let log = fs::File::create(&file).expect("a file");
        let mut command = self.namespace.command(NETFWD);
        let command = command.args(["wg", "-f", &self.device]).env(variable, value).stderr(log);
        let in_front = InFront { child: command.spawn().expect("it starts"), file };
        assert!(wait_until(PATIENCE, || is_listening(&self.namespace, &self.device)), "no control socket");
        self.set_up();
        in_front
    }

    fn set_up(&self) {
        self.namespace.ip(&format!("link set {} up", self.device)).expect("a link");
    }

    /// The process that serves the device.
    fn server(&self) -> Option<u32> {
        let processes = fs::read_dir("/proc").expect("procfs");
        let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        ids.into_iter().find(|id| {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).collect();
            words.contains(&&b"--background"[..]) && words.contains(&self.device.as_bytes())
        })
    }

    /// What the control socket answers.
    fn say(&self, text: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).expect("a control socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("settable");
        stream.write_all(text.as_bytes()).expect("it reads");
        stream.shutdown(Shutdown::Write).expect("connected");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// The lines of `get=1` that begin with one of these keys.
    fn told(&self, keys: &[&str]) -> Vec<String> {
        let told = self.say("get=1\n\n");
        let is_wanted = |line: &&str| line.split_once('=').is_some_and(|(key, _)| keys.contains(&key));
        told.lines().filter(is_wanted).map(str::to_owned).collect()
    }

    fn assert_gone(&self) {
        let gone = || !self.socket().exists() && !self.has_link() && self.server().is_none();
        assert!(wait_until(PATIENCE, gone), "socket {}, link {}", self.socket().exists(), self.has_link());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(server) = self.server() {
            let _ = Command::new("kill").arg(server.to_string()).status();
        }
    }
}

/// A process that stays in front, and the file that it logs to.
struct InFront {
    child: Child,
    file: PathBuf,
}

impl InFront {
    fn log(&self) -> String {
        fs::read_to_string(&self.file).expect("a file")
    }

    /// Ends it and returns its log.
    fn end(mut self) -> String {
        output(Command::new("kill").args(["-TERM", &self.child.id().to_string()])).expect("ours");
        self.child.wait().expect("ours");
        let log = self.log();
        fs::remove_file(&self.file).expect("ours");
        log
    }
}

#[test]
fn it_returns_when_device_and_socket_exist_and_ends_with_the_device() {
    let Some(host) = Host::new("del") else { return };
    host.start();
    let shown = host.namespace.exec(&format!("wg show {} listen-port", host.device)).expect("wg");
    assert_ne!(shown.trim(), "0");
    let Output { status, stderr, .. } = host.run(NETFWD, &["wg", &host.device]);
    let said = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("exists already") && said.lines().count() == 1, "{said}");
    assert!(host.socket().exists() && host.has_link(), "the first one is not disturbed");
    host.namespace.exec(&format!("ip link del {}", host.device)).expect("deleted");
    host.assert_gone();
}

/// What Debian's `wg` has no words for: a prefix with a minus takes it away (wireguard-tools since 2025), `update_only` makes no
/// peer, and what is refused has changed nothing.
#[test]
fn a_device_does_what_newer_tools_say() {
    let Some(host) = Host::new("newer") else { return };
    host.start();
    let [one, other] = ["58", "66"].map(|byte| format!("public_key={}\n", byte.repeat(32)));
    let set = |lines: &str| host.say(&format!("set=1\n{lines}\n"));
    assert_eq!(set(&format!("{one}allowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\n")), "errno=0\n\n");
    // Only its owner can lose a prefix.
    assert_eq!(set(&format!("{other}allowed_ip=-fd00::/8\n{one}allowed_ip=-10.0.0.0/8\n")), "errno=0\n\n");
    assert_eq!(set(&format!("{other}remove=true\n")), "errno=0\n\n");
    assert_eq!(set(&format!("{other}update_only=true\nallowed_ip=10.0.0.0/8\n")), "errno=0\n\n");
    let all = ["public_key", "allowed_ip", "fwmark"];
    let expected = [one.trim(), "allowed_ip=fd00::/8"];
    assert_eq!(host.told(&all), expected);
    let taken = host.namespace.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a namespace").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    assert_eq!(set(&format!("fwmark=7\nlisten_port={port}\nreplace_peers=true\n{other}")), "errno=-98\n\n");
    assert_eq!(set(&format!("fwmark=7\n{one}remove=true\n{other}endpoint=nowhere\n")), "errno=-22\n\n");
    assert_eq!(host.told(&all), expected);
    assert_eq!(set(&format!("{one}replace_allowed_ips=true\nallowed_ip=10.1.2.3/16\n")), "errno=0\n\n");
    assert_eq!(host.told(&all), [one.trim(), "allowed_ip=10.1.0.0/16"]);
    host.namespace.exec(&format!("ip link del {}", host.device)).expect("deleted");
    host.assert_gone();
}

/// As with the kernel's device; `wg-quick save` would keep those that the kernel makes up, one more each time.
#[test]
fn a_device_has_no_address_but_those_that_it_is_given() {
    let Some(host) = Host::new("bare") else { return };
    host.start();
    let ip = |arguments: &str| host.namespace.ip(&arguments.replace("NAME", &host.device)).expect("ip");
    for change in ["link set NAME down", "link set NAME up", "address add fd77::1/64 dev NAME"] {
        ip(change);
    }
    let addresses = ip("-brief address show NAME");
    assert_eq!(addresses.split_ascii_whitespace().skip(2).collect::<Vec<_>>(), ["fd77::1/64"], "{addresses}");
}

/// There /proc/sys is read-only.
#[test]
fn nor_has_it_in_a_container() {
    let Some(host) = Host::new("container") else { return };
    let script = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    let started = host.run("unshare", &["--mount", "sh", "-c", script, "sh", NETFWD, "wg", &host.device]);
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    host.set_up();
    let addresses = host.namespace.ip(&format!("-brief address show {}", host.device)).expect("ip");
    assert_eq!(addresses.split_ascii_whitespace().nth(2), None, "{addresses}");
}

/// As with the kernel's device and wireguard-go's: who is still configuring it is not heard of.
#[test]
fn a_device_is_down_and_silent_until_somebody_sets_its_link_up() {
    let Some(host) = Host::new("quiet") else { return };
    host.namespace.ip("link set lo up").expect("ip");
    let peer = host.namespace.run(|| UdpSocket::bind("127.0.0.1:0")).expect("the namespace").expect("a port");
    host.start();
    let flags = || host.namespace.ip(&format!("-brief link show {}", host.device)).expect("ip");
    assert!(!flags().contains("UP"), "{}", flags());
    let (own, other) = ("01".repeat(32), PrivateKey::from_bytes([2; 32]).public_key().to_hex());
    let endpoint = peer.local_addr().expect("bound");
    let answer = host.say(&format!(
        "set=1\nprivate_key={own}\npublic_key={other}\nendpoint={endpoint}\npersistent_keepalive_interval=1\n\n"
    ));
    assert_eq!(answer, "errno=0\n\n");
    peer.set_read_timeout(Some(Duration::from_millis(1_500))).expect("settable");
    let mut message = [0; 256];
    assert!(peer.recv(&mut message).is_err(), "the first keepalive was due at once");
    host.set_up();
    peer.set_read_timeout(Some(PATIENCE)).expect("settable");
    assert_eq!(peer.recv(&mut message).expect("an initiation"), 148);
}

#[test]
fn removing_the_socket_ends_it() {
    let Some(host) = Host::new("socket") else { return };
    host.start();
    fs::remove_file(host.socket()).expect("there");
    host.assert_gone();
}

#[test]
fn sigterm_ends_it_and_a_killed_one_s_socket_is_replaced() {
    let Some(host) = Host::new("term") else { return };
    for signal in ["-TERM", "-INT"] {
        host.start();
        let server = host.server().expect("a process").to_string();
        output(Command::new("kill").args([signal, &server])).expect("ours");
        host.assert_gone();
    }
    host.start();
    let server = host.server().expect("a process").to_string();
    output(Command::new("kill").args(["-KILL", &server])).expect("ours");
    assert!(wait_until(PATIENCE, || !host.has_link()), "the kernel takes the device away");
    assert!(host.socket().exists(), "nobody could remove it");
    host.start();
}

#[test]
fn a_hangup_is_a_good_end_too_unless_it_is_to_be_ignored() {
    let Some(host) = Host::new("hup") else { return };
    for (disposition, ends) in [("--default-signal=HUP", true), ("--ignore-signal=HUP", false)] {
        let started = host.run("env", &[disposition, NETFWD, "wg", &host.device]);
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        let server = host.server().expect("a process").to_string();
        output(Command::new("kill").args(["-HUP", &server])).expect("ours");
        if !ends {
            assert!(!wait_until(Duration::from_millis(500), || !host.has_link()), "it has ended");
            host.namespace.exec(&format!("ip link del {}", host.device)).expect("deleted");
        }
        host.assert_gone();
    }
}

#[test]
fn the_process_that_stays_keeps_no_directory_busy() {
    let Some(host) = Host::new("cwd") else { return };
    let mut command = host.namespace.command(NETFWD);
    assert!(command.args(["wg", &host.device]).current_dir("/proc/self").status().expect("it starts").success());
    let server = host.server().expect("a process");
    assert_eq!(fs::read_link(format!("/proc/{server}/cwd")).expect("procfs"), Path::new("/"));
}

#[test]
fn the_name_netfwd_wg_takes_the_device_alone_as_wg_quick_gives_it() {
    let Some(host) = Host::new("name") else { return };
    // Beside the program, since hard links stay within a file system.
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("netfwd-wg-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let [symbolic, hard] = ["symbolic", "hard"].map(|kind| {
        let place = directory.join(kind);
        fs::create_dir(&place).expect("a directory");
        place.join("netfwd-wg")
    });
    std::os::unix::fs::symlink(NETFWD, &symbolic).expect("a new link");
    fs::hard_link(NETFWD, &hard).expect("a new link");
    let results = [symbolic, hard].map(|program| {
        let result = host.run(&program, &[&host.device]);
        let is_there = host.socket().exists() && host.has_link();
        let _ = host.namespace.exec(&format!("ip link del {}", host.device));
        host.assert_gone();
        (result, is_there)
    });
    fs::remove_dir_all(&directory).expect("ours");
    for (Output { status, stderr, .. }, is_there) in results {
        assert!(status.success() && is_there, "{}", String::from_utf8_lossy(&stderr));
    }
}

/// Where it is a pipe, its reader waits for its end.
#[test]
fn the_caller_s_stderr_is_kept_for_a_log_that_was_asked_for_alone() {
    let Some(host) = Host::new("stderr") else { return };
    let file = std::env::temp_dir().join(format!("netfwd-stderr-{}", std::process::id()));
    let kept = ["silent", "", "error", "verbose"].map(|level| {
        let mut command = host.namespace.command(NETFWD);
        let command = command.args(["wg", &host.device]).env("LOG_LEVEL", level);
        let status = command.stderr(fs::File::create(&file).expect("a file")).status().expect("it starts");
        let server = host.server().filter(|_| status.success()).expect("a process");
        let stderr = fs::read_link(format!("/proc/{server}/fd/2")).expect("procfs");
        host.namespace.exec(&format!("ip link del {}", host.device)).expect("deleted");
        host.assert_gone();
        stderr
    });
    fs::remove_file(&file).expect("ours");
    let null = Path::new("/dev/null");
    assert_eq!(kept, [null, null, &file, &file]);
}

#[test]
fn an_error_that_nobody_reads_is_an_error_all_the_same() {
    let Some(host) = Host::new("unread") else { return };
    for option in ["-f", "--background"] {
        let (nobody, stderr) = std::io::pipe().expect("a pipe");
        drop(nobody);
        let mut command = host.namespace.command(NETFWD);
        let status = command.args(["wg", option, "lo"]).stdout(Stdio::null()).stderr(stderr).status();
        assert_eq!(status.expect("it starts").code(), Some(1), "{option}");
    }
}

#[test]
fn in_the_foreground_it_stays_and_a_signal_is_a_good_end() {
    let Some(host) = Host::new("front") else { return };
    // wireguard-go's way to say it, which service files use, does as well.
    for (option, variable) in [(&["-f"][..], "0"), (&[], "1")] {
        let mut command = host.namespace.command(NETFWD);
        command.arg("wg").args(option).arg(&host.device).env("WG_PROCESS_FOREGROUND", variable);
        let mut child = command.spawn().expect("it starts");
        assert!(wait_until(PATIENCE, || host.socket().exists() && host.has_link()));
        assert!(child.try_wait().expect("ours").is_none(), "it has gone to the background");
        output(Command::new("kill").args(["-TERM", &child.id().to_string()])).expect("ours");
        assert!(child.wait().expect("ours").success());
        host.assert_gone();
    }
}

#[test]
fn nothing_stays_for_a_caller_who_did_not_wait() {
    let Some(host) = Host::new("alone") else { return };
    let mut command = host.namespace.command(NETFWD);
    let mut child =
        command.args(["wg", "--background", &host.device]).stdout(Stdio::piped()).spawn().expect("it starts");
    drop(child.stdout.take());
    assert!(wait_until(PATIENCE, || child.try_wait().expect("ours").is_some()), "it stays");
    assert!(!child.wait().expect("ours").success());
    host.assert_gone();
}

/// The most bytes that a core dump of a process may have, and what the process could raise that to.
fn core_limits(process: u32) -> [String; 2] {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).expect("procfs");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a limit");
    let mut words = line.split_ascii_whitespace().map(str::to_owned);
    [(); 2].map(|()| words.next().expect("a limit"))
}

/// Its memory has keys in it, and so would a core dump have.
#[test]
fn neither_core_dumps_nor_debuggers_see_its_memory() {
    let Some(host) = Host::new("dump") else { return };
    // Root without the one capability that opens every process.
    let limited = |program: &str| {
        let mut command = host.namespace.command("setpriv");
        command.args(["--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", program]);
        command
    };
    // Opening its memory for reading, as debuggers do.
    let looks_into = |id: u32| {
        limited("head").args(["-c", "0", &format!("/proc/{id}/mem")]).output().expect("head").status.success()
    };
    let mut netfwd = limited(NETFWD).args(["wg", "-f", &host.device]).spawn().expect("it starts");
    let mut other = limited("sleep").arg("60").spawn().expect("it starts");
    let ready = wait_until(PATIENCE, || host.socket().exists() && host.has_link());
    let core = core_limits(netfwd.id());
    let seen = [looks_into(other.id()), looks_into(netfwd.id())];
    for child in [&mut netfwd, &mut other] {
        output(Command::new("kill").args(["-TERM", &child.id().to_string()])).expect("ours");
        child.wait().expect("ours");
    }
    assert!(ready);
    assert_eq!(seen, [true, false], "another process of that user, and netfwd");
    assert_eq!(core, ["0", "0"]);
    host.assert_gone();
}

/// Also where every crate says all it can, a handshake is tried and requests are refused.
#[test]
fn no_log_line_holds_a_key_however_much_is_logged() {
    let Some(host) = Host::new("log") else { return };
    host.namespace.exec("ip link set lo up").expect("up");
    let in_front = host.start_in_front("RUST_LOG", "trace");
    let [private, preshared] = [0x11, 0x42].map(|byte| std::array::from_fn::<u8, 32, _>(|at| byte + at as u8));
    let [private_hex, preshared_hex] = [private, preshared].map(|key| PrivateKey::from_bytes(key).to_hex());
    let (private_hex, preshared_hex) = (private_hex.as_str(), preshared_hex.as_str());
    let peer = "public_key=09".to_owned() + &"0".repeat(62);
    let words = "persistent_keepalive_interval=1\nendpoint=127.0.0.1:9\nallowed_ip=10.1.0.0/16";
    let set = format!("set=1\nprivate_key={private_hex}\n{peer}\npreshared_key={preshared_hex}\n{words}\n\n");
    assert_eq!(host.say(&set), "errno=0\n\n");
    for wrong in [format!("private_key={private_hex}0"), format!("{peer}\npreshared_key={preshared_hex} ")] {
        assert_eq!(host.say(&format!("set=1\n{wrong}\n\n")), "errno=-22\n\n");
    }
    let initiated = wait_until(PATIENCE, || host.told(&["tx_bytes"]) == ["tx_bytes=148"]);
    let log = in_front.end();
    assert!(initiated && log.contains("Sending handshake_initiation"), "{log}");
    for key in [private, preshared] {
        let shown = [
            PrivateKey::from_bytes(key).clamped().to_hex().to_string(),
            PrivateKey::from_bytes(key).to_hex().to_string(),
            STANDARD.encode(key),
            format!("{key:?}"),
        ];
        // Parts of it are too much.
        assert!(!shown.iter().any(|text| log.to_lowercase().contains(&text.to_lowercase()[8..32])), "{log}");
    }
    host.assert_gone();
}

/// A device of `netfwd wg` has no metrics, so it is the log that tells why there is no session.
#[test]
fn a_verbose_log_says_who_is_asked_and_who_is_turned_away() {
    let Some(host) = Host::new("why") else { return };
    host.namespace.exec("ip link set lo up").expect("up");
    let in_front = host.start_in_front("LOG_LEVEL", "verbose");
    let (private, peer) = ("11".repeat(32), "09".to_owned() + &"00".repeat(31));
    let set = format!("set=1\nprivate_key={private}\npublic_key={peer}\n");
    assert_eq!(host.say(&format!("{set}endpoint=127.0.0.1:9\npersistent_keepalive_interval=1\n\n")), "errno=0\n\n");
    let [port] = &host.told(&["listen_port"])[..] else { panic!("no port") };
    let port: u16 = port.trim_start_matches("listen_port=").parse().expect("a port");
    let stranger = host.namespace.run(|| UdpSocket::bind("127.0.0.1:0")).expect("a namespace").expect("a port");
    let mut initiation = [0; 148];
    initiation[0] = 1;
    let from = stranger.local_addr().expect("bound");
    let mut key = [0; 32];
    key[0] = 9;
    let asked = format!("peer {} is asked for a session", STANDARD.encode(key));
    let turned_away = format!("a handshake message from {from} was dropped: auth");
    let told = || in_front.log();
    let is_asked = wait_until(PATIENCE, || told().contains(&asked));
    // From then on it is up.
    stranger.send_to(&initiation, ("127.0.0.1", port)).expect("sent");
    let said = is_asked && wait_until(PATIENCE, || told().contains(&turned_away));
    let told = in_front.end();
    assert!(said, "{told}");
}

#[test]
fn a_name_that_is_none_is_an_error_on_the_caller_s_stderr() {
    let Some(host) = Host::new("none") else { return };
    let Output { status, stderr, .. } = host.run(NETFWD, &["wg", "a/b"]);
    let said = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("is no interface name"), "{said}");
}

/// Control sockets are in one directory for all namespaces, so a device of that name may be served without being seen.
#[test]
fn a_name_that_is_served_in_another_namespace_is_a_fault_that_check_finds() {
    let Some(host) = Host::new("elsewhere") else { return };
    host.start();
    let other = Namespace::create(&format!("nf-{}-elsewhere2", std::process::id())).expect("a namespace");
    let directory = std::env::temp_dir().join(format!("netfwd-wg-elsewhere-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    write_secret(&directory.join("wg0.key"), "WAmgVYXkbT2bCtdcDwolI88/iVi/aV3/PHcUBTQSYmo=").expect("written");
    let config = directory.join("gateway.toml");
    let text = format!(
        "[[underlay]]\ninterface = \"lo\"\nxdp = \"off\"\n[[tunnel]]\nname = \"{}\"\nkind = \"wireguard\"\n\
         private_key_file = \"wg0.key\"\n",
        host.device
    );
    fs::write(&config, text).expect("written");
    let file = config.display().to_string();
    let checked = other.command(NETFWD).args(["check", "--config", &file]).output().expect("it starts");
    fs::remove_dir_all(&directory).expect("ours");
    let (said, socket) = (String::from_utf8_lossy(&checked.stderr), host.socket());
    let expected =
        format!("{file}:5: tunnel.name: {}: another process serves a WireGuard device of that name", socket.display());
    assert_eq!((checked.status.code(), said.trim_end()), (Some(1), expected.as_str()));
    host.namespace.exec(&format!("ip link del {}", host.device)).expect("deleted");
    host.assert_gone();
}

#[test]
fn a_configured_tunnel_has_a_control_socket_and_finds_its_peers_by_name() {
    let Some(host) = Host::new("run") else { return };
    host.namespace.exec("ip link set lo up").expect("up");
    let directory = std::env::temp_dir().join(format!("netfwd-wg-run-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let private = "WAmgVYXkbT2bCtdcDwolI88/iVi/aV3/PHcUBTQSYmo=";
    write_secret(&directory.join("wg0.key"), private).expect("written");
    let peer = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    let config = directory.join("gateway.toml");
    let text = format!(
        "[metrics]\nwireguard_peers = true\n[[underlay]]\ninterface = \"lo\"\nxdp = \"off\"\n[[tunnel]]\nname = \"{}\"\n\
         kind = \"wireguard\"\nprivate_key_file = \"wg0.key\"\nlocal = \"127.0.0.1\"\nport = 51820\nmtu = 1420\n\
         [[tunnel.peer]]\npublic_key = \"{peer}\"\nallowed_ips = [\"10.1.0.0/16\"]\nendpoint = \"localhost:7\"\n",
        host.device
    );
    fs::write(&config, text).expect("written");
    let mut command = host.namespace.command(NETFWD);
    let mut child = command.args(["run", "--config"]).arg(&config).spawn().expect("it starts");
    assert!(wait_until(PATIENCE, || is_listening(&host.namespace, &host.device)), "no control socket");
    let endpoint = || host.namespace.exec(&format!("wg show {} endpoints", host.device)).unwrap_or_default();
    // The address of the other family, ::1, cannot be reached from 127.0.0.1.
    let found = wait_until(PATIENCE, || endpoint().trim() == format!("{peer}\t127.0.0.1:7"));
    let shown = host.namespace.exec(&format!("wg showconf {}", host.device)).unwrap_or_default();
    let core = core_limits(child.id());
    output(Command::new("kill").args(["-TERM", &child.id().to_string()])).expect("ours");
    let status = child.wait().expect("ours");
    fs::remove_dir_all(&directory).expect("ours");
    assert!(found, "{}", endpoint());
    assert_eq!(core, ["0", "0"], "it has read a key");
    assert!(shown.contains("ListenPort = 51820") && shown.contains("AllowedIPs = 10.1.0.0/16"), "{shown}");
    assert!(status.success());
    host.assert_gone();
}
