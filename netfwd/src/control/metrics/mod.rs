//! Metrics: numerators and denominators of everything that netfwd does to packets.
//!
//! Workers count into their own [`Counters`]; XDP and the kernel count elsewhere and are asked through [`Source`]s. A
//! scrape reads them all and adds them up, so nothing is published and the data path never waits.
//!
//! Invariants: labels are bounded; every series with bounded labels exists from the start; a drop of the XDP program and
//! one of user space are the same family, since operators ask *how many were dropped and why*, not by which half.
//!
//! Deliberately absent: ratios (queries divide), and anything per flow or per remote.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use netfwd_common::reason::{DropReason, FlushReason};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::links::Link;
use crate::datapath::stats::{Counters, Proto, SEGMENT_BUCKETS, TunnelCounters};
use crate::datapath::table::ForwardingTable;

mod drops;
mod family;
mod scrape;
mod source;
mod wireguard;

pub use family::Family;
pub use scrape::Scrape;
pub use source::{Source, XskCounts};

/// Everything that is asked at a scrape.
pub struct Metrics {
    tunnels: Vec<TunnelLabels>,
    workers: Vec<(String, Arc<Counters>)>,
    sources: Vec<Box<dyn Source>>,
    devices: Mutex<HashMap<u32, Device>>,
    descriptions: Vec<Desc>,
}

struct TunnelLabels {
    name: String,
    kind: &'static str,
    /// Index of its device: the name is the operator's to change.
    device: Option<u32>,
}

/// What the kernel says of a tunnel's device.
#[derive(Clone, Copy, Default)]
struct Device {
    up: bool,
    queue_drops: u64,
}

impl Metrics {
    /// Metrics of the tunnels in `table`, with nobody counting yet.
    pub fn new(table: &ForwardingTable) -> Self {
        let labels = |tunnel: &crate::datapath::table::Tunnel| TunnelLabels {
            name: tunnel.name.clone(),
            kind: tunnel.kind.as_str(),
            device: None,
        };
        Self {
            tunnels: table.tunnels().iter().map(labels).collect(),
            workers: Vec::new(),
            sources: Vec::new(),
            devices: Mutex::default(),
            descriptions: Family::ALL.iter().filter_map(|&family| describe(family)).collect(),
        }
    }

    /// Says which interfaces the tunnels' devices are, by their indices in the tunnels' order.
    pub fn know_devices(&mut self, indices: &[u32]) {
        for (tunnel, &index) in self.tunnels.iter_mut().zip(indices) {
            tunnel.device = Some(index);
        }
    }

    /// Adds a worker's counters under its `worker` label.
    pub fn add_worker(&mut self, worker: impl Into<String>, counters: Arc<Counters>) {
        self.workers.push((worker.into(), counters));
    }

    /// Adds something that counts outside the workers.
    pub fn add_source(&mut self, source: impl Source + 'static) {
        self.sources.push(Box::new(source));
    }

    /// Takes what the kernel says of the tunnels' devices; the next scrape shows it.
    pub(super) fn refresh_devices(&self, links: &[Link]) {
        let known = |link: &&Link| self.tunnels.iter().any(|tunnel| tunnel.device == Some(link.index));
        let device = |link: &Link| (link.index, Device { up: link.up, queue_drops: link.tx_dropped });
        let devices = links.iter().filter(known).map(device).collect();
        *self.devices.lock().unwrap_or_else(PoisonError::into_inner) = devices;
    }

    /// Asks everybody.
    fn scrape(&self) -> Scrape {
        let mut scrape = Scrape::default();
        scrape.add(Family::BuildInfo, &[env!("CARGO_PKG_VERSION")], 1);
        if let Some(bytes) = source::resident_memory() {
            scrape.add(Family::ResidentMemory, &[], bytes);
        }
        drops::zeroes(&mut scrape);
        self.scrape_devices(&mut scrape);
        for (worker, counters) in &self.workers {
            self.scrape_worker(worker, counters, &mut scrape);
        }
        for source in &self.sources {
            source.collect(&mut scrape);
        }
        scrape
    }

    fn scrape_devices(&self, scrape: &mut Scrape) {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        for TunnelLabels { name, kind, device } in &self.tunnels {
            let device = device.and_then(|index| devices.get(&index));
            let Device { up, queue_drops } = device.copied().unwrap_or_default();
            scrape.add(Family::TunnelUp, &[name, kind], u64::from(up));
            scrape.add(Family::TunQueueDrops, &[name], queue_drops);
        }
    }

    fn scrape_worker(&self, worker: &str, counters: &Counters, scrape: &mut Scrape) {
        scrape_defects(counters, scrape);
        for (labels, tunnel) in self.tunnels.iter().zip(&counters.tunnels) {
            scrape_tunnel(&labels.name, tunnel, scrape);
        }
        for (reason, count) in FlushReason::ALL.iter().zip(&counters.gro_flush) {
            scrape.add(Family::GroFlush, &[reason.as_str()], count.get());
        }
        scrape_segments(counters, scrape);
        for (errno, count) in counters.udp_send_errors.iter() {
            scrape.add(Family::UdpSendErrors, &[errno], count);
        }
        scrape.add(Family::UdpReceiveDrops, &[], counters.udp_receive_drops.get());
        scrape.add_float(Family::WorkerBusy, &[worker], counters.busy_nanoseconds.get() as f64 / 1e9);
    }
}

fn scrape_defects(counters: &Counters, scrape: &mut Scrape) {
    for (direction, stage, reason) in drops::combinations() {
        let count = counters.drops.get(direction, stage, reason);
        if count > 0 {
            scrape.add(Family::Drops, &[direction.as_str(), stage.as_str(), reason.as_str()], count);
        }
    }
    for (reason, count) in DropReason::ALL.iter().zip(&counters.tolerated) {
        if count.get() > 0 || drops::TOLERABLE.contains(reason) {
            scrape.add(Family::Tolerated, &[reason.as_str()], count.get());
        }
    }
}

fn scrape_segments(counters: &Counters, scrape: &mut Scrape) {
    let [bounded @ .., beyond] = &counters.gro_frame_segments;
    let buckets = SEGMENT_BUCKETS.iter().zip(bounded).map(|(&bound, count)| (bound, count.get()));
    scrape.add_segments(buckets, beyond.get(), counters.gro_frame_segments_sum.get());
}

fn scrape_tunnel(name: &str, counters: &TunnelCounters, scrape: &mut Scrape) {
    for (family, counter) in [
        (Family::ReceivePackets, &counters.receive_packets),
        (Family::ReceiveBytes, &counters.receive_bytes),
        (Family::TransmitPackets, &counters.transmit_packets),
        (Family::TransmitBytes, &counters.transmit_bytes),
        (Family::TunReadFrames, &counters.tun_read_frames),
        (Family::TunWriteFrames, &counters.tun_write_frames),
        (Family::FdbFull, &counters.fdb_full),
    ] {
        scrape.add(family, &[name], counter.get());
    }
    for (family, counters) in [
        (Family::GroInputPackets, &counters.gro_input_packets),
        (Family::GroOutputFrames, &counters.gro_output_frames),
        (Family::TsoOutputPackets, &counters.tso_output_packets),
    ] {
        for (proto, counter) in Proto::ALL.into_iter().zip(counters) {
            scrape.add(family, &[name, proto.as_str()], counter.get());
        }
    }
    for (errno, count) in counters.tun_errors.iter() {
        scrape.add(Family::TunErrors, &[name, errno], count);
    }
}

/// The description that a registry asks for; the names above are all valid, which a test shows.
fn describe(family: Family) -> Option<Desc> {
    let labels = family.labels().iter().map(|&label| label.to_owned()).collect();
    Desc::new(family.name().to_owned(), family.help().to_owned(), labels, HashMap::new()).ok()
}

/// What a registry holds of shared [`Metrics`].
pub struct MetricsCollector(pub Arc<Metrics>);

impl Collector for MetricsCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.0.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.scrape().into_families()
    }
}

#[cfg(test)]
mod tests;
