//! The binary from outside: exit codes, and one clear line on stderr.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// A configuration file that goes with its test.
struct ConfigFile(PathBuf);

impl ConfigFile {
    fn new(name: &str, text: &str) -> Self {
        let file = std::env::temp_dir().join(format!("netfwd-cli-{}-{name}.toml", std::process::id()));
        std::fs::write(&file, text).expect("the temporary directory is writable");
        Self(file)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("plain path")
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn netfwd(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netfwd")).args(arguments).output().expect("the binary starts")
}

fn assert_ends(output: &Output, code: i32, stderr: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.trim_end()), (Some(code), stderr));
}

/// A tunnel over the loopback interface, which every machine has.
fn loopback(port: u16, extra: &str) -> String {
    format!(
        "[metrics]\nlisten = \"127.0.0.1:0\"\n[[underlay]]\ninterface = \"lo\"\nxdp = \"off\"\n[[tunnel]]\nname = \"nfcli7\"\n\
         kind = \"vxlan\"\nvni = 7\nlocal = \"127.0.0.78\"\nport = {port}\nremotes = [\"10.9.0.1\"]\n{extra}"
    )
}

#[test]
fn the_version_is_told() {
    // The latter is what `netfwd-wg --version` is.
    for (arguments, name) in [(&["--version"][..], "netfwd"), (&["wg", "--version"], "netfwd-wg")] {
        let output = netfwd(arguments);
        assert!(output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn a_wrong_command_line_exits_2() {
    for arguments in [&["fly"][..], &["run"], &["check", "--confg", "x"], &[]] {
        assert_eq!(netfwd(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_wrong_configuration_exits_2_with_its_line() {
    let file = ConfigFile::new("vni", &loopback(47101, "").replace("vni = 7", "vni = 16777216"));
    let line = format!("{}:9: tunnel.vni: 16777216 is more than 16777215 (24 bits)", file.path());
    assert_ends(&netfwd(&["check", "--config", file.path()]), 2, &line);
    assert_ends(&netfwd(&["run", "--config", file.path()]), 2, &line);
}

#[test]
fn the_exit_code_is_the_same_when_nobody_takes_what_is_said() {
    let nowhere = || std::fs::File::options().write(true).open("/dev/full").expect("a device that is always full");
    let check = |file: &ConfigFile| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netfwd"));
        command.args(["check", "--config", file.path()]);
        command
    };
    let wrong = ConfigFile::new("unheard", &loopback(47120, "").replace("vni = 7", "vni = 16777216"));
    assert_eq!(check(&wrong).stderr(nowhere()).status().expect("the binary starts").code(), Some(2));
    let right = ConfigFile::new("unread", &loopback(47120, ""));
    let output = check(&right).stdout(nowhere()).output().expect("the binary starts");
    assert_ends(&output, 1, "cannot print the summary: No space left on device (os error 28)");
}

#[test]
fn a_missing_file_exits_2() {
    let line = "no/such.toml: cannot be read: No such file or directory (os error 2)";
    assert_ends(&netfwd(&["run", "--config", "no/such.toml"]), 2, line);
}

#[test]
fn a_missing_interface_exits_1() {
    let file = ConfigFile::new("interface", &loopback(47102, "").replace("\"lo\"", "\"nosuch0\""));
    let output = netfwd(&["check", "--config", file.path()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let line = format!("{}:4: underlay.interface: no interface \"nosuch0\" on this machine; there are lo", file.path());
    assert!(said.starts_with(&line), "{said}");
}

#[test]
fn an_interface_too_small_for_the_mtu_exits_1() {
    let file = ConfigFile::new("mtu", &loopback(47103, "mtu = 65535\n"));
    let line =
        format!("{}:13: tunnel.mtu: 65535 and 50 bytes of tunnel headers are 65585, but interface lo has", file.path());
    let output = netfwd(&["check", "--config", file.path()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.starts_with(&line), "{said}");
}

#[test]
fn a_taken_port_exits_1_and_is_named() {
    let taken = UdpSocket::bind(("127.0.0.78", 0)).expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let file = ConfigFile::new("port", &loopback(port, ""));
    let line = format!(
        "{}:11: tunnel.port: UDP port {port} on 127.0.0.78 is taken by another program (ss -ulpn 'sport = :{port}' names it)",
        file.path()
    );
    assert_ends(&netfwd(&["check", "--config", file.path()]), 1, &line);
}

#[test]
fn a_right_configuration_is_summed_up() {
    let file = ConfigFile::new("right", &loopback(47104, "mtu = 1450\n"));
    let output = netfwd(&["check", "--config", file.path()]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.starts_with("underlay lo: MTU "), "{said}");
    assert!(
        said.contains("tunnel nfcli7: vxlan VNI 7, 127.0.0.78 port 47104, 1 remote, TAP with MTU 1450\n"),
        "{said}"
    );
}

#[test]
fn a_wireguard_tunnel_is_summed_up_without_its_secret() {
    let key = ConfigFile::new("wireguard-key", "WAmgVYXkbT2bCtdcDwolI88/iVi/aV3/PHcUBTQSYmo=\n");
    std::fs::set_permissions(&key.0, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
    let text = format!(
        "[metrics]\nlisten = \"127.0.0.1:0\"\n[[underlay]]\ninterface = \"lo\"\nxdp = \"off\"\n[[tunnel]]\nname = \"nfcli8\"\n\
         kind = \"wireguard\"\nprivate_key_file = \"{}\"\nmtu = 1420\n[[tunnel.peer]]\n\
         public_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n",
        key.path()
    );
    let file = ConfigFile::new("wireguard", &text);
    let output = netfwd(&["check", "--config", file.path()]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = "tunnel nfcli8: wireguard, any address any port, public key ";
    assert!(said.contains(line) && said.contains("=, 1 peer, TUN with MTU 1420\n"), "{said}");
    assert!(!said.contains("WAmgVYXk"), "{said}");
}

/// Root, or a loud end; `NETFWD_SKIP_ROOT_TESTS=1` makes it a loud skip.
fn root_or_skip(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let skip = std::env::var_os("NETFWD_SKIP_ROOT_TESTS").is_some_and(|value| value == "1");
    assert!(root || skip, "{test} needs root; NETFWD_SKIP_ROOT_TESTS=1 skips it");
    if !root {
        eprintln!("SKIPPED without root: {test}");
    }
    root
}

#[test]
fn without_privileges_run_exits_1_and_names_what_is_missing() {
    if !root_or_skip("without_privileges_run_exits_1_and_names_what_is_missing") {
        return;
    }
    let file = ConfigFile::new("privileges", &loopback(47105, "").replace("xdp = \"off\"\n", ""));
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-all", "--inh-caps", "-all", env!("CARGO_BIN_EXE_netfwd")])
        .args(["run", "--config", file.path()])
        .output()
        .expect("setpriv is installed (util-linux)");
    let line = "no privileges: CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON missing; run as root, or grant it \
                (AmbientCapabilities= in the systemd unit)";
    assert_ends(&output, 1, line);
}

/// A network namespace that goes with its test.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let namespace = Self(format!("nfcli{}-{name}", std::process::id()));
        ip(&["netns", "add", &namespace.0]);
        namespace
    }

    /// A command in it.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    fn check(&self, file: &ConfigFile) -> Output {
        let mut command = self.command(env!("CARGO_BIN_EXE_netfwd"));
        command.args(["check", "--config", file.path()]).output().expect("ip is installed")
    }

    fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.0], arguments].concat());
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("ip is installed (iproute2)");
    assert!(status.success(), "ip {arguments:?}");
}

#[test]
fn a_kernel_vxlan_device_on_the_port_is_named() {
    if !root_or_skip("a_kernel_vxlan_device_on_the_port_is_named") {
        return;
    }
    let namespace = Namespace::new("kernel");
    namespace.ip(&["link", "set", "lo", "up"]);
    namespace.ip(&["link", "add", "kvx0", "type", "vxlan", "id", "9", "dstport", "4789", "local", "127.0.0.1"]);
    namespace.ip(&["link", "set", "kvx0", "up"]);
    let file = ConfigFile::new("kernel", &loopback(4789, "").replace("127.0.0.78", "127.0.0.1"));
    let output = namespace.check(&file);
    let line = format!(
        "{}:11: tunnel.port: UDP port 4789 on 127.0.0.1 is taken by the kernel's VXLAN device kvx0",
        file.path()
    );
    assert_ends(&output, 1, &line);
}

/// A process that ends with its test.
struct Background(Child);

impl Background {
    /// Waits until it has said `line` on stderr.
    fn start(command: &mut Command, line: &str) -> Self {
        let mut background = Self(command.stderr(Stdio::piped()).spawn().expect("it starts"));
        let said = BufReader::new(background.0.stderr.take().expect("a pipe"));
        let mut before = Vec::new();
        for text in said.lines().map_while(Result::ok) {
            if text.contains(line) {
                return background;
            }
            before.push(text);
        }
        panic!("it ended without saying {line:?}: {before:?}");
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_a_running_netfwd_holds_is_a_note_and_what_another_program_holds_a_fault() {
    if !root_or_skip("what_a_running_netfwd_holds_is_a_note_and_what_another_program_holds_a_fault") {
        return;
    }
    let namespace = Namespace::new("running");
    namespace.ip(&["link", "set", "lo", "up"]);
    let text = loopback(4789, "").replace("127.0.0.1:0", "127.0.0.1:9477");
    let file = ConfigFile::new("running", &text);
    let mut run = namespace.command(env!("CARGO_BIN_EXE_netfwd"));
    // `ip netns exec` becomes the program it starts.
    let running = Background::start(run.args(["run", "--config", file.path()]), "ready");
    let output = namespace.check(&file);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let note = format!(
        "note: netfwd runs here already (process {}) and has the device nfcli7, UDP port 4789 on 127.0.0.78, TCP port 9477 \
         on 127.0.0.1: it must end before another starts\n",
        running.0.id()
    );
    assert!(said.ends_with(&note), "{said}");
    // A second start is refused all the same.
    let mut run = namespace.command(env!("CARGO_BIN_EXE_netfwd"));
    let output = run.args(["run", "--config", file.path()]).output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));

    // What else is wrong is still a fault, and the only one that is told.
    let worse = ConfigFile::new("worse", &text.replace("vni = 7", "vni = 7\nmtu = 65535"));
    let output = namespace.check(&worse);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.lines().count() == 1 && said.contains("tunnel.mtu"), "{said}");

    drop(running);
    let inside = xtask::lab::Namespace::open(&namespace.0).expect("it is there");
    let _other = inside.run(|| TcpListener::bind("127.0.0.1:9477")).expect("inside").expect("a free port");
    let output = namespace.check(&file);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("cannot listen on 127.0.0.1:9477"), "{said}");
}
