//! `netfwd wg` in the role of wireguard-go, and `wg-quick` with it: devices that come and go with their links.

mod e2e;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;
use std::time::Duration;

use e2e::wireguard::HANDSHAKE;
use e2e::{FAMILIES, NETFWD, tcp_intact, turn};
use rustix::process::Signal;
use xtask::lab::{Device, DeviceState, Lab, Options, Program, Side, Tunnel, UNDERLAY, root_or_skip, write_secret};
use xtask::machine::wait_until;

/// How long starting and ending may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where the peer is for a gateway that has nothing but a default route.
const FAR4: &str = "192.0.2.1";

/// A lab with wireguard-go at the far end and nothing in the gateway yet.
struct Quick {
    lab: Lab,
    _turn: MutexGuard<'static, ()>,
}

impl Quick {
    fn new() -> Option<Self> {
        if !root_or_skip() {
            return None;
        }
        let turn = turn();
        let tunnel = Tunnel::wireguard(Program::WireguardGo).initiator(Side::Gateway);
        Some(Self { lab: Lab::with(Options::with_tunnels([tunnel])).expect("a lab"), _turn: turn })
    }

    fn name(&self) -> &str {
        &self.lab.options().tunnels[0].name
    }

    fn socket(&self) -> PathBuf {
        Path::new("/var/run/wireguard").join(format!("{}.sock", self.name()))
    }

    /// Runs a command in the gateway to its end, its output in a file: a daemon must not hold a pipe open for ever.
    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = self.lab.gateway.command(program);
        command.args(arguments).env("WG_QUICK_USERSPACE_IMPLEMENTATION", self.implementation());
        let log = self.lab.directory().join("run.log");
        let mut process = self.lab.gateway.spawn(&mut command, &log).expect("a process");
        let status = process.wait(PATIENCE).expect("an end");
        assert!(status.success(), "{program} {arguments:?}: {status}\n{}", process.output());
    }

    /// The variable holds the name of one program, which is given the device alone: by that name netfwd knows what is meant.
    fn implementation(&self) -> PathBuf {
        let link = self.lab.directory().join("netfwd-wg");
        if !link.is_symlink() {
            symlink(NETFWD, &link).expect("a new link");
        }
        link
    }

    /// A file for wg-quick: everything of these prefixes goes to the peer, which is at that address.
    fn config(&self, endpoint: &str, allowed: &str) -> String {
        let keys = &self.lab.far_end(self.name()).expect("a far end").keys;
        let file = self.lab.directory().join(format!("{}.conf", self.name()));
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.10.0.2/24, fd10::2/64\n\n[Peer]\nPublicKey = {}\nEndpoint = \
             {endpoint}:51820\nAllowedIPs = {allowed}\n",
            keys.gateway.private().expect("a key"),
            keys.peer.public,
        );
        write_secret(&file, &text).expect("a file");
        file.display().to_string()
    }

    fn exists(&self) -> bool {
        self.lab.gateway.ip(&format!("link show {}", self.name())).is_ok()
    }

    /// Device, socket and process are no more.
    fn assert_gone(&self) {
        let running = || self.lab.gateway.processes().expect("processes").len();
        let gone = wait_until(PATIENCE, || running() == 0 && !self.socket().exists() && !self.exists());
        assert!(gone, "{} processes, socket {}, device {}", running(), self.socket().exists(), self.exists());
    }

    fn everything_arrives(&self) {
        self.lab.greet_peer().expect("an answer");
        for family in FAMILIES {
            tcp_intact(&self.lab.peer, &self.lab.server, self.lab.server_address(family), 1, 4_000_000);
            tcp_intact(&self.lab.server, &self.lab.peer, self.lab.peer_address(family), 1, 4_000_000);
        }
    }

    fn foreground(&self) -> Device {
        self.lab.wireguard_gateway(Program::Netfwd(NETFWD)).expect("a device")
    }
}

#[test]
fn a_device_in_the_foreground_is_configured_by_wg_and_ends_on_sigterm() {
    let Some(quick) = Quick::new() else { return };
    let mut device = quick.foreground();
    quick.everything_arrives();
    device.stop();
    quick.assert_gone();
}

#[test]
fn a_device_ends_with_its_link() {
    let Some(quick) = Quick::new() else { return };
    let _device = quick.foreground();
    quick.lab.gateway.ip(&format!("link delete {}", quick.name())).expect("the end");
    quick.assert_gone();
}

#[test]
fn what_a_killed_process_left_is_in_nobodys_way() {
    let Some(quick) = Quick::new() else { return };
    let killed = quick.foreground();
    let pid = rustix::process::Pid::from_raw(killed.id().expect("it runs") as i32).expect("a process");
    rustix::process::kill_process(pid, Signal::KILL).expect("the end");
    assert!(wait_until(PATIENCE, || !quick.exists()), "the link stays");
    assert!(quick.socket().exists(), "nobody could have removed it");
    let _device = quick.foreground();
    quick.everything_arrives();
}

#[test]
fn a_daemon_is_ready_when_its_command_returns() {
    let Some(quick) = Quick::new() else { return };
    quick.run(NETFWD, &["wg", quick.name()]);
    assert!(quick.exists() && quick.socket().exists());
    assert_eq!(DeviceState::of(&quick.lab.gateway, quick.name()).expect("wg show").peers, []);
    assert_eq!(quick.lab.gateway.processes().expect("processes").len(), 1);
    quick.lab.gateway.ip(&format!("link delete {}", quick.name())).expect("the end");
    quick.assert_gone();
}

/// README's commands, with this lab's device, file and address in the places of the example's.
#[test]
fn the_commands_for_a_device_of_its_own_in_the_readme_lead_to_a_tunnel_that_carries() {
    let Some(quick) = Quick::new() else { return };
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).expect("a README");
    let from = readme.find("\nnetfwd wg wg0\n").expect("the example");
    let (up, down) = readme[from..].split_once("ip link del wg0").expect("its end");
    assert!(!up.contains("```") && down.contains("```"), "{up}");
    let file = quick.config("10.9.0.1", "10.10.0.0/24, fd10::/64");
    let commands =
        up.replace("wg-quick strip wg0", &format!("wg-quick strip {file}")).replace("10.10.0.1", "10.10.0.2");
    let commands = commands.replace("netfwd wg", &format!("{NETFWD} wg")).replace("wg0", quick.name());
    quick.run("bash", &["-ec", &commands]);
    let answered = wait_until(HANDSHAKE, || quick.lab.gateway.exec("ping -c 1 -W 1 10.10.0.1").is_ok());
    quick.run("ip", &["link", "del", quick.name()]);
    assert!(answered, "no answer after {commands}");
    quick.assert_gone();
}

#[test]
fn wg_quick_brings_an_ordinary_file_up_and_down() {
    let Some(quick) = Quick::new() else { return };
    let file = quick.config("10.9.0.1", "10.10.0.0/24, fd10::/64");
    quick.run("wg-quick", &["up", &file]);
    let link = quick.lab.gateway.ip(&format!("link show {}", quick.name())).expect("a device");
    assert!(link.contains("mtu 1420"), "{link}");
    quick.everything_arrives();
    quick.run("wg-quick", &["down", &file]);
    quick.assert_gone();
}

/// The peer's endpoint, too, is behind the default route: only the mark keeps the tunnel out of itself.
#[test]
fn wg_quick_makes_the_tunnel_the_default_route() {
    let Some(quick) = Quick::new() else { return };
    let Lab { peer, gateway, .. } = &quick.lab;
    for address in [&format!("{FAR4}/32"), "10.40.0.1/32", "fd40::1/128"] {
        peer.ip(&format!("address add {address} dev lo")).expect("an address");
    }
    gateway.ip(&format!("route add default via 10.9.0.1 dev {UNDERLAY}")).expect("a route");
    let rules = || ["-4", "-6"].map(|family| gateway.ip(&format!("{family} rule")).expect("rules"));
    let (before, file) = (rules(), quick.config(FAR4, "0.0.0.0/0, ::/0"));
    quick.run("wg-quick", &["up", &file]);
    let state = DeviceState::of(gateway, quick.name()).expect("wg show");
    assert_eq!((state.fwmark, state.peers.len()), (51820, 1));
    assert!(wait_until(HANDSHAKE, || gateway.exec("ping -c 1 -W 1 10.40.0.1").is_ok()), "no answer");
    for address in ["10.40.0.1", "fd40::1"] {
        tcp_intact(gateway, peer, address.parse().expect("an address"), 1, 4_000_000);
    }
    let sent = DeviceState::of(gateway, quick.name()).expect("wg show").peer().expect("one peer").sent;
    assert!(sent > 8_000_000, "{sent} bytes went through the tunnel");
    quick.run("wg-quick", &["down", &file]);
    assert_eq!(rules(), before);
    quick.assert_gone();
}
