//! The metrics of a live daemon under load: every name is there, and the figures agree with each other and with what
//! the peer sent.

mod lifecycle;

use std::collections::BTreeSet;
use std::time::Duration;

use lifecycle::{Load, binary, start};
use xtask::lab::{Config, Family, Lab, Metrics, Netfwd, UNDERLAY, root_or_skip};
use xtask::load::{tcp, udp};
use xtask::machine::{resident_bytes, wait_until};

const MIB: u64 = 1 << 20;
/// What the daemon may need beside its frames.
const MOST_RESIDENT: u64 = 64 * MIB;
/// Frames of one queue, each 2 KiB at this MTU.
const UMEM_FRAMES: u64 = netfwd::underlay::FRAMES as u64;
const CHUNK: u64 = 2048;

/// Names and labels that dashboards, alerts and tools are built on.
const CONTRACT: &[(&str, &[&str])] = &[
    ("netfwd_build_info", &["version"]),
    ("netfwd_tunnel_up", &["tunnel", "kind"]),
    ("netfwd_receive_packets_total", &["tunnel"]),
    ("netfwd_receive_bytes_total", &["tunnel"]),
    ("netfwd_transmit_packets_total", &["tunnel"]),
    ("netfwd_transmit_bytes_total", &["tunnel"]),
    ("netfwd_drops_total", &["direction", "stage", "reason"]),
    ("netfwd_underlay_info", &["interface", "xdp"]),
    ("netfwd_xdp_packets_total", &["interface", "action"]),
    ("netfwd_xsk_rx_dropped_total", &["interface", "queue"]),
    ("netfwd_xsk_rx_invalid_descs_total", &["interface", "queue"]),
    ("netfwd_xsk_tx_invalid_descs_total", &["interface", "queue"]),
    ("netfwd_xsk_rx_ring_full_total", &["interface", "queue"]),
    ("netfwd_xsk_rx_fill_ring_empty_total", &["interface", "queue"]),
    ("netfwd_xsk_tx_ring_empty_total", &["interface", "queue"]),
    ("netfwd_xsk_mode_info", &["interface", "queue", "mode"]),
    ("netfwd_xsk_umem_frames", &["interface", "queue", "state"]),
    ("netfwd_gro_input_packets_total", &["tunnel", "proto"]),
    ("netfwd_gro_output_frames_total", &["tunnel", "proto"]),
    ("netfwd_gro_frame_segments_bucket", &["le"]),
    ("netfwd_gro_frame_segments_sum", &[]),
    ("netfwd_gro_frame_segments_count", &[]),
    ("netfwd_gro_flush_total", &["reason"]),
    ("netfwd_tun_read_frames_total", &["tunnel"]),
    ("netfwd_tun_write_frames_total", &["tunnel"]),
    ("netfwd_tun_queue_drops_total", &["tunnel"]),
    ("netfwd_tso_output_packets_total", &["tunnel", "proto"]),
    ("netfwd_udp_receive_drops_total", &[]),
    ("netfwd_worker_busy_seconds_total", &["worker"]),
    ("process_resident_memory_bytes", &[]),
];

/// There from the first error of their errno on, so a healthy run lacks the samples.
const BY_ERRNO: &[&str] = &["netfwd_tun_errors_total", "netfwd_udp_send_errors_total"];

/// The same scrape twice in a row, and nothing that came since `before` is on its way any more, not even in a ring of a worker
/// that has no CPU: what XDP has redirected was received, and what was received was written.
fn settled(netfwd: &Netfwd, before: Option<&Metrics>) -> Metrics {
    let mut last = netfwd.metrics().unwrap();
    wait_until(Duration::from_secs(10), || {
        std::thread::sleep(Duration::from_millis(100));
        let now = netfwd.metrics().unwrap();
        let packets = |metrics: &Metrics| metrics.sum("netfwd_xdp_packets_total");
        let still = packets(&now) == packets(&last) && before.is_none_or(|before| has_arrived(&now, before));
        last = now;
        still
    });
    last
}

fn has_arrived(now: &Metrics, before: &Metrics) -> bool {
    let grown = |name: &str| now.growth(before, &format!("netfwd_{name}_total"), &[]);
    let redirected = now.growth(before, "netfwd_xdp_packets_total", &[("action", "redirect")]);
    let lost = grown("xsk_rx_dropped") + grown("xsk_rx_ring_full");
    let received = grown("receive_packets");
    redirected == received + lost
        && grown("gro_input_packets") == received
        && grown("tun_write_frames") == grown("gro_output_frames")
}

#[test]
fn every_metric_is_there_under_load_with_its_labels_and_promtool_agrees() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let netfwd = start(&lab, &Config::of(&lab));
    let load = Load::start(&lab);
    load.wait_for_mebibytes(8, Duration::from_secs(20));
    assert_eq!(netfwd.get("/healthz").unwrap(), "ok\n");
    let text = netfwd.get("/metrics").unwrap();
    let metrics = Metrics::parse(&text);
    for (name, labels) in CONTRACT {
        assert!(metrics.has(name), "no {name} in:\n{text}");
        let expected: BTreeSet<&str> = labels.iter().copied().collect();
        for sample in metrics.samples(name) {
            let found: BTreeSet<&str> = sample.labels.keys().map(String::as_str).collect();
            assert_eq!(found, expected, "{name}");
        }
    }
    for name in BY_ERRNO {
        assert!(metrics.samples(name).all(|sample| sample.labels.contains_key("errno")), "{name}");
    }
    let file = lab.directory().join("metrics.txt");
    std::fs::write(&file, &text).unwrap();
    lab.gateway.exec(&format!("sh {}", script(&lab, &format!("promtool check metrics < {}", file.display())))).unwrap();
    drop(load);
}

/// A script of one line, since command lines of the lab have no redirections.
fn script(lab: &Lab, line: &str) -> String {
    let path = lab.directory().join("script.sh");
    std::fs::write(&path, line).unwrap();
    path.display().to_string()
}

#[test]
fn figures_agree_with_each_other_and_with_what_the_peer_sent() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let netfwd = start(&lab, &Config::of(&lab));
    let before = settled(&netfwd, None);
    let sent_before = lab.peer.statistic(UNDERLAY, "tx_packets").unwrap();
    for family in [Family::V4, Family::V6] {
        let address = lab.server_address(family);
        assert!(tcp::run(&lab.peer, &lab.server, address, tcp::Load::of_bytes(4, 8 * MIB)).unwrap().intact());
        let outward = tcp::run(&lab.server, &lab.peer, lab.peer_address(family), tcp::Load::of_bytes(2, 4 * MIB));
        assert!(outward.unwrap().intact());
        let load = udp::Load::of_datagrams(udp::Sizes::Equal(1200), 4000, 0.1);
        let report = udp::run(&lab.peer, &lab.server, address, &load).unwrap();
        assert!(report.faithful() && report.lost() == 0, "{report:?}");
    }
    let after = settled(&netfwd, Some(&before));
    let sent = (lab.peer.statistic(UNDERLAY, "tx_packets").unwrap() - sent_before) as f64;
    let grown = |name: &str, labels: &[(&str, &str)]| after.growth(&before, name, labels);
    let sum = |name: &str| grown(name, &[]);
    eprintln!("{sent} sent by the peer, {} received", sum("netfwd_receive_packets_total"));

    // Underlay ARP, neighbour discovery and the like are the only other packets on this wire.
    let seen = sum("netfwd_xdp_packets_total");
    assert!((0.0..20.0).contains(&(sent - seen).abs()), "{sent} sent, {seen} seen");
    assert!(seen - grown("netfwd_xdp_packets_total", &[("action", "redirect")]) < 20.0);
    let ring = ["rx_dropped", "rx_ring_full"].map(|kind| sum(&format!("netfwd_xsk_{kind}_total")));
    let redirected = grown("netfwd_xdp_packets_total", &[("action", "redirect")]);
    let received = sum("netfwd_receive_packets_total");
    let dropped = sum("netfwd_drops_total");
    assert_eq!(dropped, 0.0);
    assert_eq!(redirected, received + ring.iter().sum::<f64>(), "{ring:?}");

    // Every packet goes into the coalescer and every frame leaves through the device, for one reason.
    let (input, output) = (sum("netfwd_gro_input_packets_total"), sum("netfwd_gro_output_frames_total"));
    assert_eq!(input, received);
    assert_eq!(sum("netfwd_gro_frame_segments_count"), output);
    assert_eq!(sum("netfwd_gro_frame_segments_sum"), input);
    assert_eq!(grown("netfwd_gro_frame_segments_bucket", &[("le", "+Inf")]), output);
    assert_eq!(sum("netfwd_gro_flush_total"), output);
    assert_eq!(sum("netfwd_tun_write_frames_total"), output);
    assert!(input > 4.0 * output, "{input} packets in {output} frames");
    assert!(sum("netfwd_receive_bytes_total") > (2 * 32 * MIB) as f64);

    // Outward: segments are packets.
    let cut: f64 = sum("netfwd_tso_output_packets_total");
    let transmitted = sum("netfwd_transmit_packets_total");
    eprintln!("{cut} cut of {} frames, {transmitted} transmitted", sum("netfwd_tun_read_frames_total"));
    assert!(cut <= transmitted && transmitted > sum("netfwd_tun_read_frames_total"));

    for metrics in [&before, &after] {
        assert_eq!(metrics.sum("netfwd_xsk_umem_frames"), UMEM_FRAMES as f64);
        assert_eq!(metrics.metric("netfwd_xsk_mode_info", &[("mode", "copy"), ("queue", "0")]), 1.0);
        assert_eq!(metrics.metric("netfwd_tunnel_up", &[("tunnel", "vx7"), ("kind", "vxlan")]), 1.0);
    }
    let resident = resident_bytes(netfwd.id()).unwrap();
    let beyond = resident.saturating_sub(UMEM_FRAMES * CHUNK);
    eprintln!("resident: {} KiB, {} KiB beyond the UMEM", resident / 1024, beyond / 1024);
    assert!(beyond < MOST_RESIDENT, "{beyond} bytes beyond the UMEM");
    let told = after.sum("process_resident_memory_bytes");
    assert!((told - resident as f64).abs() < (4 * MIB) as f64, "{told} told, {resident} there");
    let busy = after.sum("netfwd_worker_busy_seconds_total");
    assert!(busy > 0.0 && busy < 60.0, "{busy}");
}

/// Everything that can be counted without an error is zero before it happens, so that alerts see the first one.
#[test]
fn an_idle_daemon_already_has_every_series() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let netfwd = Netfwd::start(&lab, binary(), &Config::of(&lab)).unwrap();
    let metrics = netfwd.metrics().unwrap();
    for (name, _) in CONTRACT {
        assert!(metrics.has(name), "no {name}");
    }
    assert!(metrics.samples("netfwd_drops_total").count() > 30);
    assert_eq!(metrics.sum("netfwd_drops_total"), 0.0);
}
