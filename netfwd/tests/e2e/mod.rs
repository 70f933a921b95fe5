//! The daemon in a lab of namespaces, with the Linux kernel at the other end of its tunnels.
//!
//! What every end-to-end test shares: set-up, loads whose receiver compares every byte, and questions to the metrics.
//! Everything goes with the [`Rig`], after a panic too, and then the daemon's log and its counts are printed first.
//!
//! Labs are costly and the machine may be small, so tests of one program take turns, whatever `--test-threads` says.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod order;
pub mod packets;
pub mod wireguard;

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use order::OrderWatch;
use rustix::process::Signal;
use xtask::lab::{
    Config, Family, LAN, Lab, Metrics, Namespace, Netfwd, Options, Sample, TunnelKind, UNDERLAY, root_or_skip,
};
use xtask::load::{tcp, udp};
use xtask::machine::{slowness, wait_until};

/// The daemon under test.
pub const NETFWD: &str = env!("CARGO_BIN_EXE_netfwd");
/// Both address families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// How long counters may take to say what has happened.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// No TCP segment of the labs carries more.
const LONGEST: f64 = 1500.0;
/// A rate that the unoptimized daemon follows without loss on a busy machine, in Gbit/s.
const RATE: f64 = 0.15;

/// How often a load of datagrams is sent before a machine on which queues run over each time is too busy.
const TRIES: u64 = 3;
/// What share of all packets may be lost in netfwd's own queues, where their counters tell so: a worker without CPU cannot
/// empty them, but one that has some may not leave them full.
const MOST_OVERRUN: f64 = 0.05;

static TURN: Mutex<()> = Mutex::new(());

/// A lab with the daemon running in its gateway.
pub struct Rig {
    // Fields go in this order: the daemon before its namespace.
    pub netfwd: Netfwd,
    pub lab: Lab,
    _turn: MutexGuard<'static, ()>,
}

/// What counters grew by.
pub struct Growth {
    before: Metrics,
    after: Metrics,
}

impl Rig {
    /// The daemon at its defaults; `None` without root, where that was asked for.
    pub fn start(options: Options) -> Option<Self> {
        Self::configured(options, |config| config)
    }

    /// The daemon with a changed configuration.
    pub fn configured(options: Options, change: impl FnOnce(Config) -> Config) -> Option<Self> {
        Self::from_text(options, |lab| change(Config::of(lab)).text())
    }

    /// The daemon with a configuration that needs more than [`Config`] can say.
    pub fn from_text(options: Options, text: impl FnOnce(&Lab) -> String) -> Option<Self> {
        if !root_or_skip() {
            return None;
        }
        let turn = turn();
        let lab = Lab::with(options).expect("a lab");
        let text = text(&lab);
        let netfwd = Netfwd::start_with(&lab, Path::new(NETFWD), &text, &[]).expect("a running netfwd");
        Some(Self { netfwd, lab, _turn: turn })
    }

    /// One scrape.
    pub fn metrics(&self) -> Metrics {
        self.netfwd.metrics().expect("a scrape")
    }

    /// Does something, and says what the counters grew by meanwhile.
    pub fn during<T>(&self, action: impl FnOnce() -> T) -> (T, Growth) {
        let before = self.metrics();
        let result = action();
        (result, Growth { before, after: self.metrics() })
    }

    /// Waits until the sum over the samples with these labels is `count`, then asserts it.
    pub fn expect_count(&self, name: &str, labels: &[(&str, &str)], count: f64) {
        wait_until(PATIENCE, || self.metrics().metric(name, labels) >= count);
        // Were there more to come, it would come now.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(self.metrics().metric(name, labels), count, "{name} {labels:?}");
    }

    /// Asserts that there were exactly so many drops, all of them for this reason.
    pub fn expect_drops(&self, direction: &str, stage: &str, reason: &str, count: f64) {
        self.expect_count(
            "netfwd_drops_total",
            &[("direction", direction), ("stage", stage), ("reason", reason)],
            count,
        );
        assert_eq!(self.drops().len(), 1, "other drops too: {:?}", self.drops());
    }

    /// Every drop reason that was counted, with its labels.
    ///
    /// A TUN gets the kernel's own multicast (router solicitations, MLD reports), for which an L3 tunnel has no route and
    /// no peer: rightly dropped and counted, but no part of any test here.
    pub fn drops(&self) -> Vec<String> {
        let has = |wanted: fn(TunnelKind) -> bool| self.lab.options().tunnels.iter().any(|tunnel| wanted(tunnel.kind));
        let gpe = has(|kind| kind == TunnelKind::VxlanGpe);
        let wireguard = has(|kind| matches!(kind, TunnelKind::WireGuard(_)));
        let metrics = self.metrics();
        let counted = metrics.samples("netfwd_drops_total").filter(|sample| sample.value > 0.0);
        let noise = |sample: &Sample| {
            let is = |key: &str, value: &str| sample.labels.get(key).is_some_and(|found| found == value);
            gpe && is("reason", "no_route") || wireguard && is("direction", "egress") && is("reason", "no_peer")
        };
        let drops = counted.filter(|sample| !noise(sample));
        drops.map(|sample| format!("{:?} {}", sample.labels, sample.value)).collect()
    }

    /// Asserts that nothing was dropped, by the daemon, its sockets or its devices, and that every frame that left the
    /// coalescer has one reason for its beginning. Where a worker got no CPU, its queues ran over: they tell so, and that is
    /// told.
    pub fn assert_nothing_lost(&self) {
        assert_eq!(self.drops(), Vec::<String>::new());
        let metrics = self.metrics();
        for lossy in ["netfwd_xsk_rx_invalid_descs_total", "netfwd_udp_send_errors_total", "netfwd_tun_errors_total"] {
            assert_eq!(metrics.sum(lossy), 0.0, "{lossy}");
        }
        let most = MOST_OVERRUN * metrics.sum("netfwd_receive_packets_total");
        for (lossy, overrun) in [
            ("netfwd_xsk_rx_dropped_total", metrics.sum("netfwd_xsk_rx_fill_ring_empty_total")),
            ("netfwd_udp_receive_drops_total", udp_overruns(&self.lab.gateway) as f64),
        ] {
            let lost = metrics.sum(lossy);
            assert!(lost <= overrun.min(most), "{lossy}: {lost}, of which {overrun} found a full queue");
            if lost > 0.0 {
                eprintln!("{lossy}: {lost} found a full queue");
            }
        }
        self.assert_flushes_balance();
    }

    /// What has found a queue full, in netfwd or in the lab's kernels, because somebody did not get to run in time.
    pub fn overruns(&self) -> u64 {
        let Lab { peer, gateway, server, .. } = &self.lab;
        let metrics = self.metrics();
        let rings = ["netfwd_xsk_rx_ring_full_total", "netfwd_xsk_rx_dropped_total"].map(|name| metrics.sum(name));
        let sockets: u64 = [peer, gateway, server].into_iter().map(udp_overruns).sum();
        // On arrival, the gateway's devices drop what XDP and netfwd refuse.
        let devices = [(peer, true), (server, true), (gateway, false)].map(|(end, arriving)| dropped(end, arriving));
        rings.iter().sum::<f64>() as u64 + sockets + devices.iter().sum::<u64>()
    }

    /// Asserts that so many UDP packets came in each frame; or, where the kernel's TUN devices take no UDP superframes, one.
    pub fn assert_udp_coalesced(&self, growth: &Growth, least: f64) {
        let coalescing = growth.coalescing("udp");
        if self.netfwd.lacks_uso() {
            assert_eq!(coalescing, 1.0, "packets a frame, without UDP superframes");
        } else {
            assert!(coalescing >= least, "{coalescing} packets a frame");
        }
    }

    /// Watches the order of TCP from the peer to the server, through the first tunnel.
    pub fn watch_order(&self) -> OrderWatch {
        OrderWatch::start(&self.lab, &self.lab.options().tunnels[0].name)
    }

    /// Asserts that netfwd wrote every flow's segments in the order in which the peer sent them, whatever was lost between.
    ///
    /// What the server counts as early is told, but is no verdict: before and behind netfwd lie its kernel's queues.
    pub fn assert_in_order(&self, watch: OrderWatch) {
        let order = watch.end();
        assert_eq!(order.missed, 0, "the watch itself has missed frames");
        assert!(order.frames > 0, "no TCP was seen");
        let (early, dropped) = early_segments(&self.lab.server);
        if early > 0 {
            let lost = |end: &Namespace, device| end.unsent(device).expect("a counter");
            let (before, behind) = (lost(&self.lab.peer, UNDERLAY), lost(&self.lab.gateway, LAN));
            let unread = self.metrics().sum("netfwd_xsk_rx_ring_full_total");
            eprintln!(
                "the server saw {early} TCP segments early; lost on the way to the gateway: {before}, in a full AF_XDP ring: \
                 {unread}, on the way to the server: {behind}, by the server's TCP: {dropped:?}"
            );
        }
        assert!(order.disorder.is_empty(), "out of order: {:#?}", order.disorder);
    }

    fn assert_flushes_balance(&self) {
        let mut sums = (0.0, -1.0);
        wait_until(PATIENCE, || {
            let metrics = self.metrics();
            sums = (metrics.sum("netfwd_gro_flush_total"), metrics.sum("netfwd_gro_output_frames_total"));
            sums.0 == sums.1
        });
        assert_eq!(sums.0, sums.1, "sum(gro_flush_total) and sum(gro_output_frames_total)");
    }

    /// Stops the daemon where it is, on every thread.
    pub fn pause(&self) {
        self.netfwd.signal(Signal::STOP).expect("a stopped daemon");
        assert!(wait_until(PATIENCE, || is_stopped(self.netfwd.id())), "SIGSTOP takes effect on every thread");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.netfwd.signal(Signal::CONT).expect("a running daemon");
    }

    /// Ends the daemon in the ordinary way.
    pub fn stop(mut self) {
        let status = self.netfwd.stop().expect("an end within the time promised");
        assert!(status.success(), "netfwd ended with {status}");
    }

    /// Sends TCP from the peer to the server.
    pub fn tcp_in(&self, family: Family, flows: u32, bytes: u64) {
        tcp_intact(&self.lab.peer, &self.lab.server, self.lab.server_address(family), flows, bytes);
    }

    /// Sends TCP from the server to the peer.
    pub fn tcp_out(&self, family: Family, flows: u32, bytes: u64) {
        tcp_intact(&self.lab.server, &self.lab.peer, self.lab.peer_address(family), flows, bytes);
    }

    /// Sends datagrams from the peer to the server.
    pub fn udp_in(&self, family: Family, sizes: udp::Sizes, datagrams: u64) {
        self.udp_faithful(&self.lab.peer, &self.lab.server, self.lab.server_address(family), sizes, datagrams);
    }

    /// Sends datagrams from the server to the peer.
    pub fn udp_out(&self, family: Family, sizes: udp::Sizes, datagrams: u64) {
        self.udp_faithful(&self.lab.server, &self.lab.peer, self.lab.peer_address(family), sizes, datagrams);
    }

    /// Sends datagrams, slowly enough that none need be lost, and asserts that all arrive, whole, once and in order.
    ///
    /// A load of which a full queue has taken some says nothing of loss, and is sent once more; how often it was sent.
    pub fn udp_faithful(
        &self,
        from: &Namespace,
        to: &Namespace,
        address: IpAddr,
        sizes: udp::Sizes,
        datagrams: u64,
    ) -> u64 {
        // Datagrams that wait for a neighbour's address are lost, or overtaken, in the sender's own kernel.
        from.exec(&format!("ping -c 1 -W {} {address}", 5.0 * slowness())).expect("an answer");
        let load = udp::Load::of_datagrams(sizes, datagrams, RATE / slowness());
        for run in 1..=TRIES {
            let before = self.overruns();
            let report = udp::run(from, to, address, &load);
            let report = report.unwrap_or_else(|error| panic!("UDP to {address}: {error:#}"));
            assert!(report.faithful() && report.sent == datagrams, "UDP {:?} to {address}: {report:?}", load.sizes);
            if report.lost() == 0 {
                return run;
            }
            let overruns = self.overruns() - before;
            eprintln!("UDP to {address}: {overruns} packets found a full queue: {report:?}");
            assert!(overruns > 0, "UDP {:?} to {address}, and no queue was full: {report:?}", load.sizes);
        }
        panic!("UDP to {address}: in each of {TRIES} runs a queue ran over");
    }

    /// TCP and UDP of both families in both directions, a little of each.
    pub fn a_little_of_everything(&self) {
        for family in FAMILIES {
            self.tcp_in(family, 1, scaled(4_000_000));
            self.tcp_out(family, 1, scaled(4_000_000));
            self.udp_in(family, equal(), scaled(1_500));
            self.udp_out(family, equal(), scaled(1_500));
            self.udp_in(family, mixed(), scaled(1_000));
            self.udp_out(family, mixed(), scaled(1_000));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("netfwd's log:\n{}", self.netfwd.log());
            let text = self.netfwd.get("/metrics").unwrap_or_default();
            let counted = text.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
            counted.for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Growth {
    /// Of the sum over the samples with these labels.
    pub fn of(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.after.growth(&self.before, name, labels)
    }

    /// Inner packets of that protocol for each frame written to the device.
    pub fn coalescing(&self, proto: &str) -> f64 {
        let labels = [("proto", proto)];
        self.of("netfwd_gro_input_packets_total", &labels) / self.of("netfwd_gro_output_frames_total", &labels)
    }

    /// Asserts that TCP of so many bytes, fewer on a slow machine ([`scaled`]), came through AF_XDP.
    pub fn assert_redirected(&self, bytes: u64) {
        let (least, redirected) = (scaled(bytes) as f64 / LONGEST, self.redirected());
        assert!(redirected >= least, "{redirected} packets came through AF_XDP, not {least}");
    }

    /// Packets that XDP handed to AF_XDP.
    pub fn redirected(&self) -> f64 {
        self.of("netfwd_xdp_packets_total", &[("action", "redirect")])
    }
}

/// Are all its threads stopped (proc_pid_stat(5), third field)?
fn is_stopped(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    let stat = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
    threads.flatten().all(|thread| stat(thread).rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
}

/// Waits until no other test of this program has a lab.
pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// TCP segments that arrived in that namespace before an earlier one had (`TcpExt: TCPOFOQueue`), and what its TCP has
/// dropped.
fn early_segments(namespace: &Namespace) -> (u64, Vec<(String, u64)>) {
    let text = namespace.proc_net("netstat").expect("counters");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let counters = names.split_whitespace().zip(values.split_whitespace()).skip(1);
    let counters: Vec<(&str, u64)> = counters
        .map(|(name, value)| (name, value.parse().expect("a number")))
        .filter(|(_, value)| *value > 0)
        .collect();
    let early = counters.iter().find(|(name, _)| *name == "TCPOFOQueue").map_or(0, |(_, value)| *value);
    let is_loss = |name: &str| ["Drop", "Prune"].iter().any(|word| name.contains(word));
    let dropped = counters.into_iter().filter(|(name, _)| is_loss(name));
    (early, dropped.map(|(name, value)| (name.to_owned(), value)).collect())
}

/// So many bytes or datagrams on real hardware; fewer where an emulator has to carry them, which shows the same.
pub fn scaled(count: u64) -> u64 {
    (count as f64 / slowness()) as u64
}

/// Payloads that fit every tunnel's MTU at underlay MTU 1500.
pub fn equal() -> udp::Sizes {
    udp::Sizes::Equal(1350)
}

/// Long and short ones, in an order that lets no two neighbours merge but some triples.
pub fn mixed() -> udp::Sizes {
    udp::Sizes::Mixed(vec![1350, 1350, 1350, 24, 700, 700, 33, 1200, 1350, 512, 100, 101])
}

/// Sends that many bytes on each connection and asserts that what was read is what was sent.
pub fn tcp_intact(from: &Namespace, to: &Namespace, address: IpAddr, flows: u32, bytes: u64) {
    let report = tcp::run(from, to, address, tcp::Load::of_bytes(flows, bytes));
    let report = report.unwrap_or_else(|error| panic!("TCP to {address}, {flows} flows: {error:#}"));
    assert!(report.intact(), "TCP to {address}: {report:?}");
    assert_eq!(report.received, u64::from(flows) * bytes);
}

/// Datagrams that found no room at a socket of that namespace, of both families.
pub fn udp_overruns(namespace: &Namespace) -> u64 {
    let counters = ["snmp", "snmp6"].map(|file| namespace.proc_net(file).expect("counters")).concat();
    let mut lines = counters.lines().filter(|line| line.starts_with("Udp:")).map(str::split_whitespace);
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let v4 = names.zip(values).find(|(name, _)| *name == "RcvbufErrors").map(|(_, value)| value);
    let v6 = counters.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors")).map(str::trim);
    [v4, v6].into_iter().flatten().map(|value| value.parse::<u64>().expect("a number")).sum()
}

/// Frames that the devices of that namespace were to send and have dropped, or, if wanted, also those that arrived.
fn dropped(namespace: &Namespace, arriving: bool) -> u64 {
    let text = namespace.proc_net("dev").expect("counters");
    let devices = text.lines().filter_map(|line| line.split_once(':')).map(|(_, counters)| counters.split_whitespace());
    // Eight numbers about receiving, of which the fourth is drops, and eight about sending (net/core/net-procfs.c).
    let drops = |(place, number): (usize, &str)| match place {
        3 if !arriving => 0,
        3 | 11 => number.parse::<u64>().expect("a number"),
        _ => 0,
    };
    devices.flat_map(|counters| counters.enumerate().map(drops)).sum()
}
