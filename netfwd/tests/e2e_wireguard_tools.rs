//! `wg` on netfwd's devices: everything it shows is so, everything it sets takes effect.

mod e2e;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use e2e::Rig;
use e2e::wireguard::{HANDSHAKE, start};
use xtask::lab::{DeviceState, Family, KeyPair, Program, Side, Tunnel, generate_preshared, read_secret, write_secret};
use xtask::machine::wait_until;

const PAGE: usize = 4096;
/// In hexadecimal digits.
const LONGEST_KEY: usize = 64;
const NO_ANSWER: Duration = Duration::from_secs(3);
/// So long wireguard-go believes in a session from which nothing comes back (`KeepaliveTimeout + RekeyTimeout`, 15 s), less what
/// the test has taken before.
const OLD_SESSION: Duration = Duration::from_secs(8);

impl Rig {
    /// `wg` in the gateway's namespace, its arguments split at white space, `NAME` for netfwd's device.
    fn wg(&self, arguments: &str) -> String {
        let arguments = arguments.replace("NAME", &self.tunnel().name);
        self.lab.gateway.exec(&format!("wg {arguments}")).expect("wg")
    }

    /// A fresh key pair's public half.
    fn stranger(&self, name: &str) -> String {
        KeyPair::generate(&self.lab.directory().join(name)).expect("a key").public
    }

    /// Whether a keepalive that came every second comes no more.
    fn falls_silent(&self) -> bool {
        let received = || self.far_state().peer().expect("one peer").received;
        wait_until(HANDSHAKE, || {
            let before = received();
            std::thread::sleep(Duration::from_millis(1_500));
            received() == before
        })
    }

    /// Which of these keys are in the daemon's memory, as base64, as bytes or as the control socket writes them.
    fn remains(&self, keys: &[String]) -> Vec<String> {
        let bytes = |key: &String| STANDARD.decode(key).expect("a key");
        let hex = |key: &String| bytes(key).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let forms = |key: &String| [key.clone().into_bytes(), bytes(key), hex(key).into_bytes()];
        let wanted: Vec<_> = keys.iter().flat_map(forms).collect();
        let process = format!("/proc/{}", self.netfwd.id());
        let memory = std::fs::File::open(format!("{process}/mem")).expect("root may look");
        let maps = std::fs::read_to_string(format!("{process}/maps")).expect("root may look");
        let mut found = Vec::new();
        for map in maps.lines().filter(|map| map.contains(" rw")) {
            let (from, to) = map.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
            let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).expect("an address"));
            let mut content = vec![0; (to - from) as usize];
            // What is shared with the kernel (AF_XDP's rings) cannot be read this way, and what was there may be gone.
            if memory.read_exact_at(&mut content, from).is_err() {
                continue;
            }
            // Most of it was never written, and byte by byte that would take seconds.
            let written = (0..content.len()).step_by(PAGE).filter(|&at| content[at..at + PAGE] != [0; PAGE]);
            let pages: Vec<_> = written.map(|at| &content[at..content.len().min(at + PAGE + LONGEST_KEY)]).collect();
            for form in &wanted {
                if pages.iter().any(|page| page.windows(form.len()).any(|bytes| bytes == form)) {
                    found.push(format!("{} bytes in {map}", form.len()));
                }
            }
        }
        found
    }

    /// Runs `wg VERB NAME FILE` with a file of that text.
    fn wg_with(&self, verb: &str, text: &str) {
        let file = self.lab.directory().join("wg.conf");
        write_secret(&file, text).expect("a file");
        self.wg(&format!("{verb} NAME {}", file.display()));
    }
}

fn rig() -> Option<Rig> {
    let rig = start(Tunnel::wireguard(Program::WireguardGo).preshared())?;
    rig.greet();
    Some(rig)
}

/// Nor are they left where they were once read from, or on a stack.
#[test]
fn a_key_that_was_replaced_and_that_of_a_removed_peer_are_gone_from_memory() {
    let Some(rig) = rig() else { return };
    let (keys, peer) = (&rig.far_end().keys, &rig.far_end().keys.peer.public);
    let files = [&keys.gateway.private_file, keys.preshared.as_ref().expect("one")];
    let old = files.map(|file| read_secret(file).expect("a key"));
    for key in &old {
        assert!(!rig.remains(std::slice::from_ref(key)).is_empty(), "it is in use");
    }
    let new = KeyPair::generate(&rig.lab.directory().join("new")).expect("a key").private_file;
    rig.wg(&format!("set NAME private-key {} peer {peer} remove", new.display()));
    assert!(wait_until(HANDSHAKE, || rig.remains(&old).is_empty()), "{:#?}", rig.remains(&old));
    rig.stop();
}

#[test]
fn wg_show_says_what_is_configured_and_what_has_happened() {
    let Some(rig) = rig() else { return };
    rig.tcp_in(Family::V4, 1, 3_000_000);
    rig.tcp_out(Family::V4, 1, 2_000_000);
    let (state, keys, tunnel) = (rig.state(), &rig.far_end().keys, rig.tunnel());
    assert_eq!(
        (state.private_key, state.public_key),
        (keys.gateway.private().expect("a key"), keys.gateway.public.clone())
    );
    assert_eq!((state.listen_port, state.fwmark), (tunnel.port, 0));
    let peer = rig.state().peer().expect("one peer").clone();
    assert_eq!(peer.public_key, keys.peer.public);
    assert_eq!(peer.preshared_key, keys.preshared.as_ref().map(|file| read_secret(file).expect("a key")));
    assert_eq!(peer.endpoint, Some(tunnel.endpoint(Side::Peer)));
    assert_eq!(peer.allowed_ips, ["10.10.0.1/32", "10.30.0.0/24", "fd10::1/128", "fd30::/64"]);
    assert_eq!(peer.persistent_keepalive, 0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a date").as_secs();
    assert!((now - 60..=now).contains(&peer.latest_handshake), "{peer:?} at {now}");
    // Both directions carry the other's acknowledgements, too, and what TCP had to send twice on a busy machine.
    assert!((3_000_000..6_000_000).contains(&peer.received) && (2_000_000..4_000_000).contains(&peer.sent), "{peer:?}");
    let text = rig.wg("show NAME");
    for line in ["listening port: 51820", "latest handshake: ", "transfer: ", "preshared key: (hidden)"] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
    assert!(rig.wg("show interfaces").split_whitespace().any(|name| name == tunnel.name));
    rig.stop();
}

#[test]
fn no_log_line_holds_a_secret() {
    let Some(rig) = rig() else { return };
    rig.wg("show NAME");
    let keys = &rig.far_end().keys;
    let preshared = read_secret(keys.preshared.as_ref().expect("a preshared key")).expect("a key");
    for secret in [keys.gateway.private().expect("a key"), preshared] {
        assert!(
            !rig.netfwd.log().contains(&secret) && !rig.netfwd.get("/metrics").expect("a scrape").contains(&secret)
        );
    }
    rig.stop();
}

#[test]
fn wg_set_adds_changes_and_removes_peers() {
    let Some(rig) = rig() else { return };
    let (own, stranger) = (&rig.far_end().keys.peer.public, rig.stranger("stranger"));
    let preshared = rig.lab.directory().join("another");
    generate_preshared(&preshared).expect("a key");
    let words = "allowed-ips 10.50.0.0/16,fd50::/32 endpoint [fd09::1]:4000 persistent-keepalive 7 preshared-key";
    rig.wg(&format!("set NAME peer {stranger} {words} {}", preshared.display()));
    let state = rig.state();
    let peer = state.peers.iter().find(|peer| peer.public_key == stranger).expect("the new peer");
    assert_eq!(peer.allowed_ips, ["10.50.0.0/16", "fd50::/32"]);
    assert_eq!((peer.endpoint, peer.persistent_keepalive), ("[fd09::1]:4000".parse().ok(), 7));
    assert_eq!(peer.preshared_key, read_secret(&preshared).ok());
    // A prefix has one owner: it moves.
    rig.wg(&format!("set NAME peer {stranger} allowed-ips 10.30.0.0/24"));
    let allowed = |state: &DeviceState, key: &str| {
        let peer = state.peers.iter().find(|peer| peer.public_key == key).expect("a peer");
        peer.allowed_ips.clone()
    };
    assert_eq!(allowed(&rig.state(), &stranger), ["10.30.0.0/24"]);
    assert_eq!(allowed(&rig.state(), own), ["10.10.0.1/32", "fd10::1/128", "fd30::/64"]);
    rig.wg(&format!("set NAME peer {stranger} remove"));
    assert_eq!(rig.state().peer().expect("one peer").public_key, *own);
    // All that did not touch the peer that talks.
    rig.tcp_both_ways(Family::V4);
    rig.wg(&format!("set NAME peer {own} remove"));
    assert!(!rig.answers(Side::Peer, NO_ANSWER), "a peer that was removed gets answers");
    assert_eq!(rig.state().peers, []);
    rig.stop();
}

#[test]
fn what_showconf_writes_setconf_and_syncconf_take() {
    let Some(rig) = rig() else { return };
    let config = rig.wg("showconf NAME");
    let (before, stranger) = (rig.state(), rig.stranger("stranger"));
    rig.wg_with("addconf", &format!("[Peer]\nPublicKey = {stranger}\nAllowedIPs = 10.60.0.0/16\n"));
    assert_eq!(rig.state().peers.len(), 2);
    // syncconf removes what is not in the file and leaves sessions alone.
    rig.wg_with("syncconf", &config);
    let synced = rig.state();
    assert_eq!(synced.peer().expect("one peer").latest_handshake, before.peer().expect("one peer").latest_handshake);
    assert!(rig.answers(Side::Peer, OLD_SESSION), "syncconf has ended a session");
    // setconf starts afresh.
    rig.wg_with("setconf", &config);
    let [mut set, mut before] = [rig.state(), before];
    for peer in set.peers.iter_mut().chain(&mut before.peers) {
        (peer.latest_handshake, peer.received, peer.sent) = (0, 0, 0);
    }
    assert_eq!(set, before);
    assert!(rig.answers(Side::Gateway, HANDSHAKE), "no session after setconf");
    rig.stop();
}

#[test]
fn another_private_key_makes_another_endpoint() {
    let Some(rig) = rig() else { return };
    let other = KeyPair::generate(&rig.lab.directory().join("other")).expect("a key");
    rig.wg(&format!("set NAME private-key {}", other.private_file.display()));
    assert_eq!(rig.state().public_key, other.public);
    let (old, device) = (&rig.far_end().keys.gateway.public, rig.far_device());
    let preshared = rig.far_end().keys.preshared.as_ref().expect("a preshared key").display().to_string();
    device.set(&format!("peer {old} remove")).expect("a change");
    let words = format!("allowed-ips 10.10.0.2/32,10.20.0.0/24 endpoint {} preshared-key {preshared}", rig.endpoint());
    device.set(&format!("peer {} {words}", other.public)).expect("a change");
    assert!(rig.answers(Side::Peer, HANDSHAKE), "no session under the new key");
    rig.stop();
}

#[test]
fn a_firewall_mark_is_on_every_datagram() {
    let Some(rig) = rig() else { return };
    let count = "add rule ip count out udp dport 51820 meta mark 0xca6c counter";
    for rule in ["add table ip count", "add chain ip count out { type filter hook output priority 0 ; }", count] {
        rig.lab.gateway.exec(&format!("nft {rule}")).expect("a rule");
    }
    rig.wg("set NAME fwmark 0xca6c");
    assert_eq!(rig.state().fwmark, 0xca6c);
    rig.tcp_out(Family::V4, 1, 1_000_000);
    let rules = rig.lab.gateway.exec("nft list chain ip count out").expect("a counter");
    let words: Vec<_> = rules.split_whitespace().collect();
    let bytes = words.iter().position(|word| *word == "bytes").and_then(|at| words.get(at + 1)?.parse::<u64>().ok());
    assert!(bytes.expect("a counter") > 1_000_000, "{rules}");
    rig.stop();
}

#[test]
fn a_persistent_keepalive_keeps_coming() {
    let Some(rig) = rig() else { return };
    let public = &rig.far_end().keys.peer.public;
    rig.wg(&format!("set NAME peer {public} persistent-keepalive 1"));
    let received = || rig.far_state().peer().expect("one peer").received;
    let (begun, before) = (Instant::now(), received());
    std::thread::sleep(Duration::from_secs(4));
    // Keepalives of 32 bytes, and nothing else.
    let grown = received() - before;
    let seconds = begun.elapsed().as_secs();
    let most = 32 * (seconds + 1);
    assert!((96..=most).contains(&grown) && grown.is_multiple_of(32), "{grown} bytes in {seconds} seconds");
    rig.stop();
}

/// As with the kernel's device: who takes a link down switches the tunnel off.
#[test]
fn a_link_that_is_taken_down_is_silent_and_comes_back() {
    let Some(rig) = rig() else { return };
    let public = &rig.far_end().keys.peer.public;
    rig.wg(&format!("set NAME peer {public} persistent-keepalive 1"));
    let link = |state: &str| rig.lab.gateway.ip(&format!("link set {} {state}", rig.tunnel().name)).expect("a link");
    let received = || rig.far_state().peer().expect("one peer").received;
    link("down");
    // The last keepalive was on its way.
    assert!(rig.falls_silent(), "keepalives go on");
    let before = received();
    assert!(!rig.answers(Side::Peer, NO_ANSWER));
    assert_eq!(received(), before, "something is sent");
    link("up");
    assert!(wait_until(HANDSHAKE, || received() > before), "no keepalive");
    assert!(rig.answers(Side::Peer, HANDSHAKE) && rig.answers(Side::Gateway, HANDSHAKE));
    rig.stop();
}

/// A peer that still got keepalives would go on sending to where nothing arrives.
#[test]
fn a_device_that_is_deleted_is_silent() {
    let Some(rig) = rig() else { return };
    let public = &rig.far_end().keys.peer.public;
    rig.wg(&format!("set NAME peer {public} persistent-keepalive 1"));
    rig.lab.gateway.ip(&format!("link delete {}", rig.tunnel().name)).expect("a link");
    assert!(rig.falls_silent(), "keepalives go on");
    let before = rig.far_state();
    assert!(!rig.answers(Side::Peer, NO_ANSWER));
    assert_eq!(rig.far_state().peer().expect("one peer").received, before.peer().expect("one peer").received);
    rig.stop();
}
