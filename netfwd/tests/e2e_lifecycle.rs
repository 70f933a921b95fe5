//! The daemon's life in a real network: how it ends, how it fails to start, and what it leaves behind, which is nothing.

mod lifecycle;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use lifecycle::{Conversation, Load, assert_nothing_left, binary, has_xdp, run_to_end, start};
use netfwd::datapath::table::ForwardingTable;
use netfwd::io::xdp::{AttachMode, XdpProgram};
use netfwd_common::abi::Policy;
use rustix::process::{Pid, Signal, kill_process};
use xtask::lab::{Config, Family, Lab, Netfwd, Options, Tunnel, UNDERLAY, root_or_skip};
use xtask::load::{tcp, udp};
use xtask::machine::wait_until;

const MIB: u64 = 1 << 20;

/// The promise is two seconds, under load too.
const ENDS_WITHIN: Duration = Duration::from_secs(2);
/// From `exec` to an answer on /healthz, in a debug build on a busy machine.
const STARTS_WITHIN: Duration = Duration::from_secs(10);
/// Until TCP has noticed that the way is open again.
const RECOVERS_WITHIN: Duration = Duration::from_secs(20);
/// What has to come soon, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Some bytes both ways over TCP, every one compared.
fn carries(lab: &Lab) {
    for family in [Family::V4, Family::V6] {
        let inward = tcp::run(&lab.peer, &lab.server, lab.server_address(family), tcp::Load::of_bytes(2, 4 * MIB));
        let outward = tcp::run(&lab.server, &lab.peer, lab.peer_address(family), tcp::Load::of_bytes(2, 4 * MIB));
        for report in [inward.unwrap(), outward.unwrap()] {
            assert!(report.intact(), "{report:?}");
        }
    }
}

fn ends_well_under_load(signal: Signal) {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let config = Config::of(&lab);
    let load = Load::start(&lab);
    // The second start shows that the first left nothing that matters.
    for _ in 0..2 {
        let mut netfwd = start(&lab, &config);
        load.wait_for_mebibytes(4, RECOVERS_WITHIN);
        assert!(has_xdp(&lab), "{}", netfwd.log());
        let told = Instant::now();
        netfwd.signal(signal).unwrap();
        assert!(wait_until(ENDS_WITHIN, || !netfwd.is_running()), "still there after {ENDS_WITHIN:?}");
        eprintln!("ended {:?} after {signal:?}", told.elapsed());
        let status = netfwd.stop().unwrap();
        assert!(status.success(), "{status}:\n{}", netfwd.log());
        assert_nothing_left(&lab);
    }
}

#[test]
fn sigterm_under_load_ends_well_and_leaves_nothing() {
    ends_well_under_load(Signal::TERM);
}

#[test]
fn sigint_under_load_ends_well_and_leaves_nothing() {
    ends_well_under_load(Signal::INT);
}

#[test]
fn killed_outright_it_leaves_a_working_interface_and_starts_again_at_once() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let config = Config::of(&lab);
    let mut conversation = Conversation::open(&lab);
    let load = Load::start(&lab);
    for _ in 0..3 {
        let begun = Instant::now();
        let mut netfwd = start(&lab, &config);
        let started = begun.elapsed();
        assert!(started < STARTS_WITHIN, "started only after {started:?}");
        let carried = load.wait_for_mebibytes(4, RECOVERS_WITHIN);
        eprintln!("healthy after {started:?}, traffic after {carried:?} more");
        conversation.speak();
        netfwd.kill().unwrap();
        conversation.speak();
        lab.peer.exec("ping -c 1 -W 10 10.9.0.2").unwrap();
        assert!(wait_until(SOON, || !has_xdp(&lab)));
    }
    drop(load);
    drop(conversation);
    assert_nothing_left(&lab);
}

/// Nothing that is wrong leads to more than one line, another exit code than the documented one, or leftovers.
#[test]
fn a_start_that_fails_says_why_in_one_line_and_leaves_nothing() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let right = Config::of(&lab).text();
    let wrong = |from: &str, to: &str| {
        assert!(right.contains(from), "{right}");
        right.replacen(from, to, 1)
    };
    let cases = [
        (2, Config::of(&lab).underlay_line("speed = 9").text(), &["wrong.toml:", "speed"][..]),
        (2, wrong("vni = 7", "vni = 16777216"), &["tunnel.vni", "16777215"]),
        (2, wrong("\"10.9.0.2\"", "\"10.9.0.256\""), &["tunnel.local", "10.9.0.256"]),
        (2, wrong("\"10.9.0.1\"", "\"fd09::1\""), &["tunnel.remotes", "fd09::1"]),
        (1, wrong(UNDERLAY, "nosuch0"), &["underlay.interface", "nosuch0", UNDERLAY]),
        (1, wrong("mtu = 1450", "mtu = 1451"), &["tunnel.mtu", UNDERLAY, "1500", "1450", "1501"]),
        (1, wrong("\"10.9.0.2\"", "\"10.9.0.77\""), &["tunnel.local", "10.9.0.77", "10.9.0.2"]),
        (1, wrong("\"vx7\"", "\"lan0\""), &["tunnel.name", "lan0"]),
    ];
    for (code, config, words) in cases {
        run_to_end(&lab, "netfwd run --config FILE", &config).assert_one_line(code, words);
        run_to_end(&lab, "netfwd check --config FILE", &config).assert_one_line(code, words);
        assert_nothing_left(&lab);
    }
}

#[test]
fn a_port_of_somebody_else_is_named_in_one_line() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let config = Config::of(&lab).text();
    let socket = lab.gateway.run(|| UdpSocket::bind("0.0.0.0:4789")).unwrap().unwrap();
    run_to_end(&lab, "netfwd run --config FILE", &config)
        .assert_one_line(1, &["tunnel.port", "4789", "another program"]);
    drop(socket);
    assert_nothing_left(&lab);
    lab.gateway.ip("link add kernel7 type vxlan id 9 dev under0 dstport 4789 remote 10.9.0.1").unwrap();
    lab.gateway.ip("link set kernel7 up").unwrap();
    run_to_end(&lab, "netfwd run --config FILE", &config).assert_one_line(1, &["tunnel.port", "4789", "kernel7"]);
    lab.gateway.ip("link delete kernel7").unwrap();
    assert_nothing_left(&lab);
    let mut first = start(&lab, &Config::of(&lab));
    let second = run_to_end(&lab, "netfwd run --config FILE", &config);
    assert_eq!(second.code, Some(1));
    // Name, port and metrics address are taken, each of which is a line.
    assert_eq!(second.complaints().len(), 3, "{}", second.text);
    carries(&lab);
    first.stop().unwrap();
    assert_nothing_left(&lab);
}

#[test]
fn an_ipv6_address_where_ipv6_is_switched_off_is_named_in_one_line() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    lab.gateway.sysctl("net.ipv6.conf.default.disable_ipv6", 1).unwrap();
    run_to_end(&lab, "netfwd run --config FILE", &Config::of(&lab).text())
        .assert_one_line(1, &["vx7", "fd10::2/64", "disable_ipv6"]);
    assert_nothing_left(&lab);
}

/// A disk that is full, a `tee` that was ended: the gateway is not its log.
#[test]
fn a_log_that_nobody_takes_changes_nothing() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let file = lab.directory().join("unread.toml");
    std::fs::write(&file, Config::of(&lab).text()).unwrap();
    let nowhere = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = lab.gateway.command(binary());
    let mut netfwd = command.args(["run", "--config"]).arg(&file).stderr(nowhere).spawn().unwrap();
    let carries = || lab.peer.exec("ping -c 1 -W 1 10.10.0.2").is_ok();
    assert!(wait_until(RECOVERS_WITHIN, carries), "{:?}", netfwd.try_wait());
    // What it says of this, it says from another thread.
    lab.delete_underlay().unwrap();
    lab.restore_underlay().unwrap();
    assert!(wait_until(RECOVERS_WITHIN, || has_xdp(&lab) && carries()), "{:?}", netfwd.try_wait());
    kill_process(Pid::from_child(&netfwd), Signal::TERM).unwrap();
    let status = netfwd.wait().unwrap();
    assert!(status.success(), "{status}");
    assert_nothing_left(&lab);
}

#[test]
fn an_underlay_too_small_for_any_tunnel_is_refused() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let config = Config::of(&lab).text().replace("mtu = 1450\n", "");
    lab.gateway.ip(&format!("link set {UNDERLAY} mtu 1300")).unwrap();
    run_to_end(&lab, "netfwd run --config FILE", &config)
        .assert_one_line(1, &["tunnel.mtu", UNDERLAY, "1300", "1250", "1280", "1330"]);
    assert_nothing_left(&lab);
}

#[test]
fn without_privileges_one_line_says_which_are_missing() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let config = Config::of(&lab).text();
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    run_to_end(&lab, &format!("{nobody} netfwd run --config FILE"), &config)
        .assert_one_line(1, &["no privileges", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF"]);
    let bounded = "setpriv --bounding-set=-bpf,-sys_admin";
    run_to_end(&lab, &format!("{bounded} netfwd run --config FILE"), &config)
        .assert_one_line(1, &["no privileges: CAP_BPF missing"]);
    // Without it the verifier forbids pointer arithmetic.
    let bounded = "setpriv --bounding-set=-perfmon,-sys_admin";
    run_to_end(&lab, &format!("{bounded} netfwd run --config FILE"), &config)
        .assert_one_line(1, &["no privileges: CAP_PERFMON missing"]);
    // To check needs none, but says what running would.
    let checked = run_to_end(&lab, &format!("{nobody} netfwd check --config FILE"), &config);
    assert!(checked.code == Some(0) && checked.text.contains("note: run would stop here"), "{}", checked.text);
    assert_nothing_left(&lab);
}

/// The command line with SIGTERM after some seconds, enough for the verifier of a busy machine; the exit code is the daemon's.
fn for_some_seconds(words: &str) -> String {
    format!("timeout --preserve-status --signal=TERM 8 {words}")
}

/// What the systemd unit grants: these capabilities, and locked memory without bound, for which CAP_IPC_LOCK stands in
/// where a test may not raise limits.
#[test]
fn the_units_capabilities_are_enough() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let config = Config::of(&lab).xdp("native").text();
    let unit = "setpriv --bounding-set=-all,+net_admin,+net_raw,+bpf,+perfmon,+net_bind_service";
    let run = run_to_end(&lab, &for_some_seconds(&format!("{unit},+ipc_lock netfwd run --config FILE")), &config);
    assert!(run.code == Some(0) && run.text.contains("XDP native"), "{:?}\n{}", run.code, run.text);
    assert_eq!(run.complaints().len(), 0, "{}", run.text);
    assert_nothing_left(&lab);
    run_to_end(&lab, &format!("prlimit --memlock=65536 {unit} netfwd run --config FILE"), &config)
        .assert_one_line(1, &[UNDERLAY, "register the UMEM", "LimitMEMLOCK"]);
    assert_nothing_left(&lab);
}

/// A gateway on sockets alone needs no capability for its programs but CAP_BPF, and does without: then it says so.
#[test]
fn on_sockets_alone_cap_bpf_is_enough_for_queues_that_follow_flows() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::with(Options { queues: 2, ..Options::default() }).unwrap();
    let config = Config::of(&lab).xdp("off").text();
    let run = |more: &str| {
        let bounded = format!("setpriv --bounding-set=-all,+net_admin,+net_raw,+net_bind_service{more}");
        let run = run_to_end(&lab, &for_some_seconds(&format!("{bounded} netfwd run --config FILE")), &config);
        assert!(run.code == Some(0) && run.complaints().is_empty(), "{:?}\n{}", run.code, run.text);
        assert_nothing_left(&lab);
        run.text.lines().filter(|line| line.contains("the kernel chooses queues its own way")).count()
    };
    assert_eq!(run(",+bpf"), 0);
    // Where that is 0, a program of this type is anybody's to load.
    let is_restricted = std::fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled").unwrap().trim() != "0";
    assert_eq!(run(""), usize::from(is_restricted));
}

/// Wherever in its start it is: the end is a good one, or, before it listens, the signal's own.
#[test]
fn a_signal_during_the_start_leaves_nothing() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let config = Config::of(&lab).text();
    for tenths in [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4] {
        let words = format!("timeout --preserve-status --signal=TERM {tenths} netfwd run --config FILE");
        let begun = Instant::now();
        let run = run_to_end(&lab, &words, &config);
        assert!(matches!(run.code, Some(0 | 143)), "{:?}\n{}", run.code, run.text);
        // The programs before it have to start, too.
        assert!(begun.elapsed() < SOON, "{tenths} {:?} {}", begun.elapsed(), run.text);
        assert_eq!(run.complaints().len(), 0, "{}", run.text);
        assert_nothing_left(&lab);
    }
}

/// An operator may delete the tunnel's device, or pull the underlay's cable; the daemon says so and ends as it should.
#[test]
fn devices_that_vanish_do_not_keep_it_from_ending_well() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let load = Load::start(&lab);
    let mut netfwd = start(&lab, &Config::of(&lab));
    load.wait_for_mebibytes(1, RECOVERS_WITHIN);
    lab.gateway.ip("link delete vx7").unwrap();
    let up = || netfwd.metrics().unwrap().metric("netfwd_tunnel_up", &[("tunnel", "vx7")]);
    assert!(wait_until(SOON, || up() == 0.0));
    assert_eq!(netfwd.get("/healthz").unwrap(), "ok\n");
    assert!(netfwd.stop().unwrap().success(), "{}", netfwd.log());
    assert_eq!(netfwd.log().matches("WARN tunnel vx7: its device was deleted").count(), 1, "{}", netfwd.log());
    assert_nothing_left(&lab);
    let mut netfwd = start(&lab, &Config::of(&lab));
    load.wait_for_mebibytes(1, RECOVERS_WITHIN);
    lab.gateway.ip(&format!("link delete {UNDERLAY}")).unwrap();
    assert!(netfwd.get("/metrics").unwrap().contains("netfwd_build_info"));
    let told = Instant::now();
    assert!(netfwd.stop().unwrap().success() && told.elapsed() < ENDS_WITHIN, "{}", netfwd.log());
    assert_nothing_left(&lab);
}

#[test]
fn somebody_elses_xdp_program_is_an_error_by_name_and_one_line_by_default() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let foreign = lab.gateway.run(|| {
        let table = ForwardingTable::new(Vec::new());
        let mut program = XdpProgram::load(&table, Policy::default()).unwrap();
        program.attach(UNDERLAY, AttachMode::Native).unwrap();
        program
    });
    let foreign = foreign.unwrap();
    run_to_end(&lab, "netfwd run --config FILE", &Config::of(&lab).xdp("native").text())
        .assert_one_line(1, &[UNDERLAY, "native", "another XDP program is attached"]);
    assert!(has_xdp(&lab), "the other program is still there");
    let mut netfwd = start(&lab, &Config::of(&lab));
    let log = netfwd.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("kernel sockets only")).collect();
    assert!(lines.len() == 1 && lines[0].contains("another XDP program is attached"), "{log}");
    // One line each for the tunnel, the underlay and the end of the start.
    assert_eq!(log.lines().count(), 3, "{log}");
    carries(&lab);
    netfwd.stop().unwrap();
    assert!(has_xdp(&lab), "the other program is still there");
    drop(foreign);
    assert_nothing_left(&lab);
}

#[test]
fn check_prints_a_summary() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let checked = run_to_end(&lab, "netfwd check --config FILE", &Config::of(&lab).text());
    assert_eq!(checked.code, Some(0), "{}", checked.text);
    for words in
        ["underlay under0: MTU 1500, xdp auto", "tunnel vx7: vxlan VNI 7", "TAP with MTU 1450", "metrics http:"]
    {
        assert!(checked.text.contains(words), "no {words:?} in:\n{}", checked.text);
    }
    assert_nothing_left(&lab);
}

#[test]
fn zero_copy_is_refused_when_required_and_forgone_when_not() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    for mode in ["auto", "native"] {
        let config = Config::of(&lab).xdp(mode).underlay_line("zero_copy = \"require\"");
        run_to_end(&lab, "netfwd run --config FILE", &config.text()).assert_one_line(1, &[UNDERLAY, "zero"]);
        assert_nothing_left(&lab);
    }
    for zero_copy in ["auto", "off"] {
        let config = Config::of(&lab).xdp("native").underlay_line(&format!("zero_copy = \"{zero_copy}\""));
        let netfwd = start(&lab, &config);
        assert_eq!(netfwd.metrics().unwrap().metric("netfwd_xsk_mode_info", &[("mode", "copy")]), 1.0);
        assert!(netfwd.log().contains("0 of them zero-copy"), "{}", netfwd.log());
    }
}

/// The queues beyond the configured number come through the kernel's sockets.
#[test]
fn one_worker_of_two_queues_and_busy_polling_carry_everything() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::with(Options { queues: 2, ..Options::default() }).unwrap();
    let config = Config::of(&lab).underlay_line("queues = 1").underlay_line("busy_poll = true");
    let mut netfwd = start(&lab, &config);
    assert!(netfwd.log().contains("1 queue,"), "{}", netfwd.log());
    carries(&lab);
    let load = udp::Load::of_datagrams(udp::Sizes::Mixed(vec![1200, 100, 33]), 2000, 0.05);
    let report = udp::run(&lab.peer, &lab.server, lab.server_address(Family::V4), &load).unwrap();
    assert!(report.faithful() && report.lost() == 0, "{report:?}");
    let told = Instant::now();
    assert!(netfwd.stop().unwrap().success() && told.elapsed() < ENDS_WITHIN);
    assert_nothing_left(&lab);
}

/// Generic XDP runs behind GRO: merged buffers there have lengths that nobody sent.
#[test]
fn generic_mode_wants_gro_off_and_then_carries_everything() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let config = Config::of(&lab).xdp("generic");
    run_to_end(&lab, "netfwd run --config FILE", &config.text())
        .assert_one_line(1, &["underlay.xdp", &format!("ethtool -K {UNDERLAY} gro off")]);
    assert_nothing_left(&lab);
    lab.gateway.exec(&format!("ethtool -K {UNDERLAY} gro off")).unwrap();
    let mut netfwd = start(&lab, &config);
    assert!(netfwd.log().contains("XDP generic"), "{}", netfwd.log());
    carries(&lab);
    let redirected = netfwd.metrics().unwrap().metric("netfwd_xdp_packets_total", &[("action", "redirect")]);
    assert!(redirected > 1000.0, "{redirected}");
    netfwd.stop().unwrap();
    assert_nothing_left(&lab);
}

/// A datagram that no tunnel knows, sent to the tunnel's port.
fn send_unknown_vni(lab: &Lab) {
    let mut datagram = [0; 100];
    datagram[..8].copy_from_slice(&[8, 0, 0, 0, 0, 0, 99, 0]);
    let send = || UdpSocket::bind("10.9.0.1:0")?.send_to(&datagram, "10.9.0.2:4789");
    lab.peer.run(send).unwrap().unwrap();
}

#[test]
fn lines_from_xdp_come_only_behind_the_debug_switch() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::with(Options::with_tunnels([Tunnel::vxlan("vx7", 7)])).unwrap();
    for debug in [false, true] {
        let config = Config::of(&lab).underlay_line(&format!("debug = {debug}")).text();
        let netfwd = Netfwd::start_with(&lab, binary(), &config, &[]).unwrap();
        send_unknown_vni(&lab);
        let dropped = || netfwd.metrics().unwrap().metric("netfwd_drops_total", &[("reason", "unknown_vni")]);
        assert!(wait_until(SOON, || dropped() == 1.0), "{}", netfwd.log());
        let patience = if debug { SOON } else { Duration::from_secs(1) };
        let told = wait_until(patience, || netfwd.log().contains("drop reason=unknown_vni"));
        assert_eq!(told, debug, "{}", netfwd.log());
    }
}
