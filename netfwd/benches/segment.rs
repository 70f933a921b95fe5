//! Segmentation of 64 KB superframes, in nanoseconds per segment, beside tun-rs' `gso_split` on the same bytes.
//!
//! The two do not do the same. netfwd's figure is the whole egress path up to the socket: vnet header, route, cut,
//! checksums, VXLAN-GPE header, gather list. `gso_split` cuts and computes checksums, and copies every segment into a
//! buffer of its own; it neither routes nor encapsulates. Both read the payload once, from cache. The sink is empty.
//!
//! Rounds alternate between the subjects; the figure is the median. A table goes to stderr, one JSON object per figure
//! to stdout.

#[path = "../tests/segmentation/mod.rs"]
mod segmentation;

use std::hint::black_box;
use std::time::Instant;

use netfwd::datapath::egress::{Egress, Surroundings};
use netfwd::datapath::fdb::Fdbs;
use netfwd::datapath::seam::{DatagramSink, SendFailure, Transmit};
use netfwd::datapath::stats::Counters;
use netfwd::datapath::table::ForwardingTable;
use segmentation::{Bench, GPE, Shape, pattern, tunnels};
use tun_rs::{VirtioNetHdr, gso_split};

const ROUNDS: usize = 31;
const FRAMES_PER_ROUND: usize = 200;

struct Null;

impl DatagramSink for Null {
    fn send(&mut self, transmit: &Transmit<'_>) -> Result<(), SendFailure> {
        black_box(transmit);
        Ok(())
    }
}

struct Case {
    name: String,
    shape: Shape,
    size: usize,
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for size in [1_400, 500] {
        for v6 in [false, true] {
            for (proto, shape) in [("tcp", Shape::tcp(v6, vec![])), ("udp", Shape::udp(v6, vec![]))] {
                let payload = pattern(65_000 - shape.header_len(), 1);
                let name = format!("{proto} v{} {size} B", if v6 { 6 } else { 4 });
                cases.push(Case { name, shape: Shape { payload, ..shape }, size });
            }
        }
    }
    cases
}

fn main() {
    eprintln!("{:<14} {:>10} {:>18} {:>7}", "case", "netfwd", "tun-rs gso_split", "ratio");
    for case in cases() {
        let (ours, theirs) = measure(&case);
        eprintln!("{:<14} {ours:>7.1} ns {theirs:>15.1} ns {:>6.2}x", case.name, theirs / ours);
        for (subject, value) in [("netfwd", ours), ("tun-rs gso_split, copying, no encapsulation", theirs)] {
            let line = serde_json::json!({
                "bench": "segment", "case": case.name, "subject": subject, "value": value, "unit": "ns/segment",
            });
            println!("{line}");
        }
    }
}

fn measure(case: &Case) -> (f64, f64) {
    let segments = case.shape.payload.len().div_ceil(case.size);
    let mut frame = case.shape.frame(case.size);
    let mut input = case.shape.partial();
    let mut ours = Ours::new();
    let mut theirs = Theirs::new(case, segments);
    same_segments(case, &mut theirs, &mut input.clone());
    let mut figures = (vec![], vec![]);
    for _ in 0..ROUNDS {
        figures.0.push(per_segment(segments, || ours.run(&mut frame)));
        figures.1.push(per_segment(segments, || theirs.run(&mut input)));
    }
    (median(figures.0), median(figures.1))
}

fn per_segment(segments: usize, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..FRAMES_PER_ROUND).for_each(|_| run());
    start.elapsed().as_nanos() as f64 / (FRAMES_PER_ROUND * segments) as f64
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Both subjects must have done the work that is compared.
fn same_segments(case: &Case, theirs: &mut Theirs, input: &mut [u8]) {
    let mut bench = Bench::new();
    bench.run(GPE, case.shape.frame(case.size));
    theirs.run(input);
    let copies: Vec<_> = theirs.buffers.iter().zip(&theirs.sizes).map(|(copy, size)| copy[..*size].to_vec()).collect();
    assert!(bench.sink.inner() == copies, "{}: the subjects disagree", case.name);
}

struct Ours {
    table: ForwardingTable,
    fdbs: Fdbs,
    counters: Counters,
    egress: Egress,
}

impl Ours {
    fn new() -> Self {
        let table = ForwardingTable::new(tunnels());
        Self { fdbs: Fdbs::new(&table, 1), table, counters: Counters::new(2), egress: Egress::new(1) }
    }

    fn run(&mut self, frame: &mut [u8]) {
        let around = Surroundings { table: &self.table, fdbs: &self.fdbs, counters: &self.counters, now_seconds: 1 };
        self.egress.run(&around, GPE, black_box(frame), &mut Null);
    }
}

struct Theirs {
    header: VirtioNetHdr,
    v6: bool,
    buffers: Vec<Vec<u8>>,
    sizes: Vec<usize>,
}

impl Theirs {
    fn new(case: &Case, segments: usize) -> Self {
        let vnet = case.shape.frame(case.size);
        let mut header = VirtioNetHdr::decode(&vnet).expect("a vnet header");
        header.hdr_len = case.shape.header_len() as u16;
        Self { header, v6: case.shape.v6, buffers: vec![vec![0; 2_048]; segments], sizes: vec![0; segments] }
    }

    fn run(&mut self, input: &mut [u8]) {
        let split =
            gso_split(black_box(input), self.header, &mut self.buffers, &mut self.sizes, 0, self.v6).expect("a split");
        black_box(split);
    }
}
