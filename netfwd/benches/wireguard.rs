//! Sealing and opening of 45 × 1,400 bytes, in nanoseconds per packet, beside the bare AEAD on as many bytes.
//!
//! Sealing is a superframe's way from the TUN to the send buffer: allowed IPs, cut, checksums, padding, seal. Opening is a
//! batch's way from the socket to the coalescer: session index, copy, open, allowed IPs. Both ends are in this process, with one
//! peer each, and what is sealed is opened, so everything is in the cache. The bare AEAD is what both call inside: aws-lc-rs, in
//! place.
//!
//! What the first messages of sessions cost is measured beside it, in nanoseconds per message (`wireguard/handshakes.rs`).
//!
//! The figures are medians over rounds that alternate. A table goes to stderr, one JSON object per figure to stdout.

#[path = "wireguard/handshakes.rs"]
mod handshakes;
#[path = "../tests/segmentation/mod.rs"]
mod segmentation;
#[path = "../tests/wireguard/mod.rs"]
mod wireguard;

use std::hint::black_box;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use handshakes::Cookie;
use netfwd::datapath::tunnel::wireguard::Content;
use segmentation::{Shape, pattern};
use wireguard::{End, Wire, superframe};

const ROUNDS: usize = 201;
const SEGMENTS: usize = 45;
/// An inner packet, headers included.
const PACKET: usize = 1_400;
/// What it is padded to.
const PADDED: usize = 1_408;

fn main() {
    sessions();
    initiations();
}

fn sessions() {
    let shape = Shape::tcp(false, vec![]);
    let size = PACKET - shape.header_len();
    let frame = Shape { payload: pattern(SEGMENTS * size, 1), ..shape }.frame(size);
    let [mut a, mut b] = End::connected();
    let mut bare = Bare::new();
    let mut wire = Wire::default();
    let mut figures = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let superframe = superframe(&frame);
        let sealing = per_packet(|| {
            a.seal(Content::Superframe(black_box(&superframe)), &mut wire).expect("a peer");
        });
        assert_eq!(wire.len(), SEGMENTS);
        let mut opened = 0;
        let opening = per_packet(|| b.receive(&mut wire, a.address, |packet| opened += black_box(packet).len()));
        assert_eq!(opened, SEGMENTS * PACKET);
        let (bare_sealing, bare_opening) = (per_packet(|| bare.seal()), per_packet(|| bare.open()));
        for (list, figure) in figures.iter_mut().zip([sealing, bare_sealing, opening, bare_opening]) {
            list.push(figure);
        }
    }
    let [sealing, bare_sealing, opening, bare_opening] = figures.map(median);
    eprintln!("{:<6} {:>10} {:>10} {:>10} {:>7}", "", "netfwd", "bare AEAD", "more", "ratio");
    for (what, ours, bare) in [("seal", sealing, bare_sealing), ("open", opening, bare_opening)] {
        eprintln!("{what:<6} {ours:>7.1} ns {bare:>7.1} ns {:>7.1} ns {:>6.2}x", ours - bare, ours / bare);
        for (subject, value) in [("netfwd", ours), ("aws-lc-rs", bare)] {
            print_json(what, subject, value, "ns/packet");
        }
    }
}

fn initiations() {
    eprintln!("{:<32} {:>10}", "initiation", "netfwd");
    for (cookie, value) in handshakes::measure() {
        let (what, subject) = match cookie {
            Cookie::Absent => ("without a cookie, cookie reply", "netfwd"),
            Cookie::Wrong => ("with a wrong cookie, put back", "netfwd"),
            Cookie::Right => ("with a right cookie, session", "netfwd"),
            Cookie::Hashes => ("what has to be hashed", "blake2"),
        };
        eprintln!("{what:<32} {value:>7.0} ns");
        print_json(what, subject, value, "ns/message");
    }
}

fn print_json(case: &str, subject: &str, value: f64, unit: &str) {
    let line =
        serde_json::json!({ "bench": "wireguard", "case": case, "subject": subject, "value": value, "unit": unit });
    println!("{line}");
}

fn per_packet(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().div_f64(SEGMENTS as f64).max(Duration::from_nanos(1)).as_secs_f64() * 1e9
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The AEAD alone.
struct Bare {
    key: LessSafeKey,
    packets: Vec<Vec<u8>>,
    counter: u64,
}

impl Bare {
    fn new() -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("a key");
        Self { key: LessSafeKey::new(key), packets: vec![vec![1; PADDED]; SEGMENTS], counter: 0 }
    }

    fn nonce(counter: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self) {
        for (n, packet) in self.packets.iter_mut().enumerate() {
            let nonce = Self::nonce(self.counter + n as u64);
            let tag = self.key.seal_in_place_separate_tag(nonce, Aad::empty(), packet).expect("a seal");
            packet.extend_from_slice(tag.as_ref());
        }
    }

    fn open(&mut self) {
        for (n, packet) in self.packets.iter_mut().enumerate() {
            let nonce = Self::nonce(self.counter + n as u64);
            self.key.open_in_place(nonce, Aad::empty(), packet).expect("what was sealed");
            packet.truncate(PADDED);
        }
        self.counter += SEGMENTS as u64;
    }
}
