//! The families as Prometheus sees them.

use std::io::Write;
use std::process::{Command, Stdio};

use netfwd_common::abi::TunnelKind;
use netfwd_common::reason::{DropReason, Stage};
use prometheus::{Registry, TextEncoder};

use super::*;
use crate::datapath::packet::TunnelIndex;
use crate::datapath::places::can_occur;
use crate::datapath::stats::Direction;
use crate::datapath::table::Tunnel;
use crate::datapath::tunnel::wireguard::{Device, queue};
use crate::io::xdp::XdpCounters;

fn table() -> ForwardingTable {
    let tunnel = |name: &str, kind, vni| Tunnel {
        name: name.to_owned(),
        kind,
        vni,
        local: [10, 9, 0, 2].into(),
        port: 4789,
        remotes: vec![[10, 9, 0, 1].into()],
        learning: true,
        static_macs: Vec::new(),
        routes: Vec::new(),
        mtu: 1450,
        udp_checksum: false,
        udp6_zero_checksum_rx: false,
        udp6_zero_checksum_tx: false,
        dscp: 0,
    };
    ForwardingTable::new(vec![tunnel("vx7", TunnelKind::Vxlan, 7), tunnel("gpe8", TunnelKind::VxlanGpe, 8)])
}

/// What a scrape shows of one source.
pub(super) fn text_of(source: impl Source + 'static) -> String {
    let mut metrics = Metrics::new(&table());
    metrics.add_source(source);
    text(metrics)
}

fn text(metrics: Metrics) -> String {
    let registry = Registry::new();
    registry.register(Box::new(MetricsCollector(Arc::new(metrics)))).expect("valid and distinct descriptions");
    TextEncoder::new().encode_to_string(&registry.gather()).expect("encodable")
}

fn metrics(workers: usize) -> (Metrics, Vec<Arc<Counters>>) {
    let mut metrics = Metrics::new(&table());
    let counters: Vec<_> = (0..workers).map(|_| Arc::new(Counters::new(2))).collect();
    for (index, counters) in counters.iter().enumerate() {
        metrics.add_worker(index.to_string(), counters.clone());
    }
    metrics.add_source(|scrape: &mut Scrape| {
        scrape.add(Family::UnderlayInfo, &["eth0", "auto"], 1);
        XdpCounters::default().report("eth0", scrape);
        let umem_frames = [("fill", 2048), ("free", 2048)];
        XskCounts { mode: "copy", umem_frames: &umem_frames, ..Default::default() }.report("eth0", 0, scrape);
        scrape.add(Family::FdbEntries, &["vx7"], 3);
        Device::new(TunnelIndex(0), queue(1).0).report("wg0", false, scrape);
        wireguard::report_peers("wg0", vec![wireguard::tests::peer(1)], scrape);
    });
    (metrics, counters)
}

/// The value of one series.
pub(super) fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn every_family_has_samples_from_the_start() {
    let text = text(metrics(1).0);
    for family in Family::ALL {
        assert!(text.contains(&format!("# TYPE {} ", family.name())), "{} is missing", family.name());
        assert!(text.contains(&format!("# HELP {} {}", family.name(), family.help())), "{}", family.name());
    }
}

#[test]
fn promtool_accepts_the_exposition() {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool must be installed to run this test (Debian: prometheus)");
    promtool.stdin.take().expect("piped").write_all(text(metrics(2).0).as_bytes()).expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
}

#[test]
fn drops_that_can_occur_exist_as_zero() {
    let text = text(metrics(1).0);
    let series = r#"netfwd_drops_total{direction="ingress",stage="xdp",reason="inner_l4_checksum"}"#;
    assert_eq!(value(&text, series), Some(0.0));
    assert!(!text.contains(r#"direction="egress",stage="xdp""#));
}

#[test]
fn every_drop_reason_can_occur_somewhere() {
    for &reason in DropReason::ALL {
        assert!(drops::combinations().any(|(d, s, r)| r == reason && can_occur(d, s, r)), "{reason:?}");
    }
}

#[test]
fn drops_of_xdp_and_of_workers_are_one_family() {
    let (mut metrics, counters) = metrics(2);
    for counters in &counters {
        counters.drops.add(Direction::Ingress, Stage::Vet, DropReason::InnerL4Checksum, 2);
    }
    metrics.add_source(|scrape: &mut Scrape| {
        let mut counts = XdpCounters::default();
        counts.drops[DropReason::InnerL4Checksum.index()] = 5;
        counts.report("eth1", scrape);
    });
    let text = text(metrics);
    let drops = |stage: &str| {
        format!(r#"netfwd_drops_total{{direction="ingress",stage="{stage}",reason="inner_l4_checksum"}}"#)
    };
    assert_eq!(value(&text, &drops("vet")), Some(4.0));
    assert_eq!(value(&text, &drops("xdp")), Some(5.0));
}

#[test]
fn workers_are_summed_and_tunnels_kept_apart() {
    let (metrics, counters) = metrics(2);
    counters[0].tunnel(TunnelIndex(0)).receive_packets.add(3);
    counters[1].tunnel(TunnelIndex(0)).receive_packets.add(4);
    counters[1].tunnel(TunnelIndex(1)).receive_packets.add(5);
    counters[1].busy_nanoseconds.add(1_500_000_000);
    let text = text(metrics);
    assert_eq!(value(&text, r#"netfwd_receive_packets_total{tunnel="vx7"}"#), Some(7.0));
    assert_eq!(value(&text, r#"netfwd_receive_packets_total{tunnel="gpe8"}"#), Some(5.0));
    assert_eq!(value(&text, r#"netfwd_worker_busy_seconds_total{worker="0"}"#), Some(0.0));
    assert_eq!(value(&text, r#"netfwd_worker_busy_seconds_total{worker="1"}"#), Some(1.5));
}

#[test]
fn buckets_of_the_histogram_are_cumulative_over_workers() {
    let (metrics, counters) = metrics(2);
    for packets in [1, 1, 2, 45] {
        counters[0].frame_segments(packets);
    }
    counters[1].frame_segments(300);
    let text = text(metrics);
    let bucket = |le: &str| value(&text, &format!(r#"netfwd_gro_frame_segments_bucket{{le="{le}"}}"#));
    let buckets = ["1", "2", "4", "32", "64", "256", "+Inf"].map(bucket);
    assert_eq!(buckets, [2.0, 3.0, 3.0, 3.0, 4.0, 4.0, 5.0].map(Some));
    assert_eq!(value(&text, "netfwd_gro_frame_segments_sum"), Some(349.0));
    assert_eq!(value(&text, "netfwd_gro_frame_segments_count"), Some(5.0));
}

#[test]
fn a_tunnel_is_up_when_its_device_is_whatever_its_name() {
    let (mut metrics, _) = metrics(1);
    metrics.know_devices(&[4, 5]);
    let renamed = Link { name: "blue".to_owned(), index: 4, up: true, tx_dropped: 9, ..Link::default() };
    let other = Link { name: "gpe8".to_owned(), index: 6, up: true, ..Link::default() };
    metrics.refresh_devices(&[renamed, other]);
    let text = text(metrics);
    assert_eq!(value(&text, r#"netfwd_tunnel_up{tunnel="vx7",kind="vxlan"}"#), Some(1.0));
    assert_eq!(value(&text, r#"netfwd_tunnel_up{tunnel="gpe8",kind="vxlan-gpe"}"#), Some(0.0));
    assert_eq!(value(&text, r#"netfwd_tun_queue_drops_total{tunnel="vx7"}"#), Some(9.0));
}
