//! A bad cable between peer and gateway: one bit flipped in every thousandth tunnel datagram, after all checksums.
//!
//! No application may ever read a flipped byte, and every flip is counted exactly once by whoever has to notice it:
//! netfwd's XDP program, netfwd's user space, or, where the outer UDP checksum covers the payload and XDP is off, the
//! kernel's UDP before any socket sees it.
//!
//! A machine that is busy elsewhere can let a queue run over, and what is lost there nobody can verify. Such a run says
//! nothing about exactness, so it is told and repeated; nothing corrupt may arrive in it either.

mod lifecycle;

use std::time::Duration;

use lifecycle::start;
use xtask::lab::{Config, Family, Lab, Metrics, Netfwd, Options, Tunnel, UNDERLAY, root_or_skip};
use xtask::load::{tcp, udp};
use xtask::machine::{slowness, wait_until};

const MIB: u64 = 1 << 20;
const EVERY: u64 = 1000;
/// Datagrams of one UDP run: a dozen flips.
const DATAGRAMS: u64 = 12_000;
/// How a flip is named that hit a packet whose right checksum is, by chance, the bare sum of its pseudo-header: once
/// in 65,535 flips for each checksum, so in one of some hundred runs.
const LOOKS_UNFINISHED: &str = "partial_checksum";
/// Three of them among the eighty flips of a run are no chance any more (one in some hundred million runs).
const COINCIDENCES: u64 = 2;

/// A lab with the bad cable in front of netfwd.
struct BadCable {
    lab: Lab,
    netfwd: Netfwd,
    before: Metrics,
    /// How many of the flips hit UDP.
    hit_udp: u64,
}

impl BadCable {
    fn new(tunnel: Tunnel, config: impl FnOnce(Config) -> Config) -> Self {
        let lab = Lab::with(Options { flip_every: Some(EVERY), ..Options::with_tunnels([tunnel]) }).unwrap();
        let netfwd = start(&lab, &config(Config::of(&lab)));
        let before = netfwd.metrics().unwrap();
        Self { lab, netfwd, before, hit_udp: 0 }
    }

    /// A run in which no queue ran over.
    fn carried(tunnel: &Tunnel, config: impl Fn(Config) -> Config) -> Self {
        for _ in 0..3 {
            let mut run = Self::new(tunnel.clone(), &config);
            if run.carry() {
                assert!(run.flips() > 50, "{} flips", run.flips());
                return run;
            }
        }
        panic!("this machine is too busy: a queue ran over in each of three runs");
    }

    fn flips(&self) -> u64 {
        self.lab.wire.as_ref().unwrap().flips()
    }

    /// TCP and UDP over both families into the network behind the gateway. Nothing that arrives is wrong, and UDP
    /// misses exactly what was hit; false when something else was lost in a queue.
    fn carry(&mut self) -> bool {
        for family in [Family::V4, Family::V6] {
            let address = self.lab.server_address(family);
            let report = tcp::run(&self.lab.peer, &self.lab.server, address, tcp::Load::of_bytes(2, 10 * MIB)).unwrap();
            assert!(report.intact(), "{report:?}");
            for sizes in [udp::Sizes::Equal(1200), udp::Sizes::Mixed(vec![1200, 1000, 400])] {
                let hit = self.flips();
                let load = udp::Load::of_datagrams(sizes, DATAGRAMS, 0.1 / slowness());
                let report = udp::run(&self.lab.peer, &self.lab.server, address, &load).unwrap();
                let hit = self.flips() - hit;
                assert!(report.faithful() && hit >= DATAGRAMS / EVERY - 1, "{hit} flips, {report:?}");
                if self.overrun() > 0 {
                    eprintln!("a queue ran over ({} packets): {report:?}", self.overrun());
                    return false;
                }
                assert_eq!(report.lost(), hit, "{report:?}");
                self.hit_udp += hit;
            }
        }
        true
    }

    /// What was lost because somebody did not get to run in time.
    fn overrun(&self) -> u64 {
        let ours = ["netfwd_xsk_rx_ring_full_total", "netfwd_xsk_rx_dropped_total"];
        // XDP's own drops are among those of the device.
        let device = self.lab.gateway.statistic(UNDERLAY, "rx_dropped").unwrap();
        let xdp = self.grown("netfwd_xdp_packets_total", &[("action", "drop")]);
        let cable = self.lab.wire.as_ref().unwrap().lost();
        let queues = self.kernel_udp("RcvbufErrors") + self.kernel_udp("MemErrors") + device.saturating_sub(xdp);
        cable + queues + ours.into_iter().map(|name| self.grown(name, &[])).sum::<u64>()
    }

    /// A counter of the gateway's UDP over IPv4; the namespace is as young as the run.
    fn kernel_udp(&self, name: &str) -> u64 {
        let table = self.lab.gateway.exec("cat /proc/net/snmp").unwrap();
        let mut lines = table.lines().filter(|line| line.starts_with("Udp:")).map(str::split_whitespace);
        let (mut names, mut values) = (lines.next().unwrap(), lines.next().unwrap());
        values.nth(names.position(|found| found == name).unwrap()).unwrap().parse().unwrap()
    }

    /// Where a datagram that nobody counted may have left traces.
    fn traces(&self) -> String {
        let tables = ["snmp", "softnet_stat", "udp"].map(|table| self.lab.gateway.proc_net(table).unwrap()).concat();
        let links = self.lab.gateway.ip("-s -s link").unwrap();
        format!("{:?}\n{tables}{links}", self.netfwd.metrics().unwrap())
    }

    fn grown(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.netfwd.metrics().unwrap().growth(&self.before, name, labels) as u64
    }

    /// Flips that a counter has under this reason, or as what they may look like.
    fn noticed(&self, counter: &str, labels: &[(&str, &str)], reason: &str) -> u64 {
        let named = |reason| self.grown(counter, &[labels, &[("reason", reason)]].concat());
        let unfinished = named(LOOKS_UNFINISHED);
        assert!(unfinished <= COINCIDENCES, "{unfinished} flips taken for unfinished checksums: {}", self.traces());
        named(reason) + unfinished
    }

    /// Drops of flips at that stage.
    fn drops(&self, stage: &str, reason: &str) -> u64 {
        self.noticed("netfwd_drops_total", &[("direction", "ingress"), ("stage", stage)], reason)
    }

    /// Every flip is one of these, and there is no other drop on the way in.
    fn assert_drops(&self, stage: &str, reason: &str) {
        let flips = self.flips();
        let here = || self.drops(stage, reason);
        wait_until(Duration::from_secs(2), || here() == flips);
        let all = self.grown("netfwd_drops_total", &[("direction", "ingress")]);
        eprintln!("{flips} flips, {} dropped as {reason} at {stage}, {all} drops in all", here());
        assert_eq!((here(), all), (flips, flips), "{}", self.traces());
    }
}

#[test]
fn xdp_drops_every_flip_by_the_inner_checksum() {
    if !root_or_skip() {
        return;
    }
    let run = BadCable::carried(&Tunnel::vxlan("vx7", 7), |config| config.xdp("native"));
    run.assert_drops("xdp", "inner_l4_checksum");
}

#[test]
fn xdp_drops_every_flip_by_the_outer_checksum_where_there_is_one() {
    if !root_or_skip() {
        return;
    }
    let run = BadCable::carried(&Tunnel::vxlan("vx7", 7).outer_checksum(true), |config| config.xdp("native"));
    run.assert_drops("xdp", "outer_udp_checksum");
}

#[test]
fn xdp_drops_every_flip_over_ipv6_and_without_an_inner_ethernet_header() {
    if !root_or_skip() {
        return;
    }
    let run = BadCable::carried(&Tunnel::vxlan_gpe("gpe7", 7).over(Family::V6), |config| config.xdp("native"));
    run.assert_drops("xdp", "outer_udp_checksum");
}

/// With an outer checksum of zero the kernel has nothing to verify, so netfwd's user space is all there is.
#[test]
fn without_xdp_user_space_drops_every_flip() {
    if !root_or_skip() {
        return;
    }
    let run = BadCable::carried(&Tunnel::vxlan("vx7", 7), |config| config.xdp("off"));
    run.assert_drops("vet", "inner_l4_checksum");
}

/// With an outer checksum the kernel's UDP notices first; netfwd never sees the datagram.
#[test]
fn without_xdp_the_kernel_drops_every_flip_under_an_outer_checksum() {
    if !root_or_skip() {
        return;
    }
    let run = BadCable::carried(&Tunnel::vxlan("vx7", 7).outer_checksum(true), |config| config.xdp("off"));
    let flips = run.flips();
    assert_eq!(run.kernel_udp("InCsumErrors"), flips);
    // The kernel tells the socket's owner.
    assert_eq!(run.grown("netfwd_udp_receive_drops_total", &[]), flips);
    assert_eq!(run.grown("netfwd_drops_total", &[("direction", "ingress")]), 0);
}

/// `verify = "count"`: what is bad goes on as it came, alone and with its wrong checksum, for the receiver to refuse.
fn counts_every_flip(tunnel: Tunnel, xdp: &str, counter: &str, reason: &str) {
    if !root_or_skip() {
        return;
    }
    let run = BadCable::carried(&tunnel, |config| config.xdp(xdp).underlay_line("verify = \"count\""));
    let flips = run.flips();
    let tolerated = || (run.noticed(counter, &[], reason), run.grown(counter, &[]));
    wait_until(Duration::from_secs(2), || tolerated() == (flips, flips));
    assert_eq!(tolerated(), (flips, flips), "{}", run.traces());
    assert_eq!(run.grown("netfwd_drops_total", &[("direction", "ingress")]), 0, "{}", run.traces());
    // Each of them seeded a frame of its own for that reason: none was merged. Where the kernel takes no UDP superframes, no
    // UDP is ever merged, and that is the reason given.
    let candidates = if run.netfwd.lacks_uso() { flips - run.hit_udp } else { flips };
    assert_eq!(run.grown("netfwd_gro_flush_total", &[("reason", "checksum")]), candidates, "{}", run.traces());
}

#[test]
fn flips_that_xdp_tolerates_are_counted_and_never_merged() {
    counts_every_flip(Tunnel::vxlan("vx7", 7), "native", "netfwd_xdp_tolerated_total", "inner_l4_checksum");
}

#[test]
fn flips_under_an_outer_checksum_that_xdp_tolerates_are_counted_and_never_merged() {
    let tunnel = Tunnel::vxlan("vx7", 7).outer_checksum(true);
    counts_every_flip(tunnel, "native", "netfwd_xdp_tolerated_total", "outer_udp_checksum");
}

#[test]
fn flips_that_user_space_tolerates_are_counted_and_never_merged() {
    counts_every_flip(Tunnel::vxlan("vx7", 7), "off", "netfwd_tolerated_total", "inner_l4_checksum");
}
