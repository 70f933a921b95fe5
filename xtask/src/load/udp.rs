//! Bulk UDP: datagrams of equal or mixed sizes at a given rate, each of which tells whether it is whole.
//!
//! A datagram is `sequence number, its own length, checksum` (little-endian, 8 + 8 + 8 bytes) and pseudo-random bytes.
//! The receiver counts what is lost, what came twice, what came out of order, and what is not what was sent, each on
//! its own: over UDP loss is nobody's fault, and a corrupt datagram always somebody's.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::content::Stream;
use super::{Progress, any_address, over, socket};
use crate::lab::Namespace;

/// Bytes of header in front of the content, so the smallest datagram.
pub const HEADER: usize = 24;
/// The sequence number of the datagrams that say: that was all.
const END: u64 = u64::MAX;
/// The kernel takes at most 64 segments, or 64 KiB less headers, in one send.
const MAX_SEGMENTS: usize = 64;
const MAX_SEND: usize = 65_000;

/// Sizes of the datagrams' payloads.
#[derive(Clone, Debug)]
pub enum Sizes {
    /// All of one size, handed to the kernel in runs (`UDP_SEGMENT`).
    Equal(usize),
    /// These in turn, one by one.
    Mixed(Vec<usize>),
}

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// Datagram sizes, 24 bytes at least.
    pub sizes: Sizes,
    /// For how long, at most.
    pub duration: Duration,
    /// How many datagrams, at most.
    pub datagrams: u64,
    /// Gbit/s of payload; beyond what the receiver can take the rest is lost.
    pub rate: f64,
    /// Is the receiver to verify the content? Sizes and sequence numbers are checked in any case.
    pub verify: bool,
}

impl Load {
    /// For throughput: datagrams of one size, content not verified.
    pub fn for_seconds(size: usize, seconds: f64, rate: f64) -> Self {
        let duration = Duration::from_secs_f64(seconds);
        Self { sizes: Sizes::Equal(size), duration, datagrams: u64::MAX, rate, verify: false }
    }

    /// For correctness: that many datagrams at that rate, every byte verified.
    pub fn of_datagrams(sizes: Sizes, datagrams: u64, rate: f64) -> Self {
        Self { sizes, duration: Duration::from_secs(60), datagrams, rate, verify: true }
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams received, whole ones.
    pub received: u64,
    /// Bytes of payload in them.
    pub bytes: u64,
    /// Datagrams whose length or content is not what was sent.
    pub corrupt: u64,
    /// Datagrams that came again.
    pub duplicate: u64,
    /// Datagrams that came after a later one.
    pub reordered: u64,
    /// From the first to the last datagram received.
    pub duration: Duration,
}

impl Report {
    /// Datagrams that never came.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received + self.corrupt)
    }

    /// Received Gbit/s of payload.
    pub fn gigabits(&self) -> f64 {
        super::gigabits(self.bytes, self.duration)
    }

    /// Did something arrive, and nothing but what was sent, once and in order?
    pub fn faithful(&self) -> bool {
        self.received > 0 && self.corrupt == 0 && self.duplicate == 0 && self.reordered == 0
    }
}

/// Sends from one namespace to an address in another and waits for the end.
pub fn run(from: &Namespace, to: &Namespace, address: IpAddr, load: &Load) -> Result<Report> {
    run_watched(from, to, address, load, Arc::default())
}

/// The same, with the received bytes counted in `progress` as they come.
pub fn run_watched(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    load: &Load,
    progress: Arc<Progress>,
) -> Result<Report> {
    let receiving = to.run(|| listen(any_address(address, 0)))??;
    let target = SocketAddr::new(address, receiving.local_addr()?.port());
    let verify = load.verify;
    let patience = load.duration + Duration::from_secs(5);
    let receiver = thread::spawn(move || receive(&receiving, verify, patience, &progress));
    let sent = from.run(|| send(target, load))?;
    let received = receiver.join().map_err(|_| anyhow!("the UDP receiver panicked"))?;
    Ok(Report { sent: sent?, ..received? })
}

/// Sends, and closes with a few datagrams that say so; returns the number of datagrams before those.
pub fn send(target: SocketAddr, load: &Load) -> Result<u64> {
    let socket = UdpSocket::bind(any_address(target.ip(), 0))?;
    socket.connect(target).with_context(|| format!("cannot reach {target}"))?;
    let sent = match &load.sizes {
        Sizes::Equal(size) => send_equal(&socket, *size, load),
        Sizes::Mixed(sizes) => send_mixed(&socket, sizes, load),
    };
    let end = datagram(&Stream::new(0), END, HEADER, false);
    // A fresh socket, since this one may cut at another size.
    let closing = UdpSocket::bind(any_address(target.ip(), 0))?;
    for _ in 0..5 {
        // Over the gateway's other queues these may overtake what was sent before.
        thread::sleep(Duration::from_millis(40));
        closing.send_to(&end, target).ok();
    }
    sent
}

fn send_equal(socket: &UdpSocket, size: usize, load: &Load) -> Result<u64> {
    let size = size.max(HEADER);
    let run = (MAX_SEND / size).clamp(1, MAX_SEGMENTS);
    socket::set_segment_size(socket, u16::try_from(size)?).context("UDP_SEGMENT")?;
    let content = Stream::new(1);
    let mut pace = Pace::new(load);
    let (mut buffer, mut sent) = (Vec::with_capacity(run * size), 0);
    while sent < load.datagrams && pace.wait(sent * size as u64) {
        buffer.clear();
        let count = (run as u64).min(load.datagrams - sent);
        for index in 0..count {
            append_datagram(&mut buffer, &content, sent + index, size, load.verify);
        }
        send_all(socket, &buffer)?;
        sent += count;
    }
    Ok(sent)
}

fn send_mixed(socket: &UdpSocket, sizes: &[usize], load: &Load) -> Result<u64> {
    let content = Stream::new(1);
    let mut pace = Pace::new(load);
    let (mut sent, mut bytes) = (0, 0);
    while sent < load.datagrams && pace.wait(bytes) {
        let size = *sizes.get(sent as usize % sizes.len().max(1)).context("no sizes")?;
        send_all(socket, &datagram(&content, sent, size.max(HEADER), load.verify))?;
        sent += 1;
        bytes += size as u64;
    }
    Ok(sent)
}

/// Sends, waiting while the kernel has no room; an ICMP error that came back is not this datagram's.
fn send_all(socket: &UdpSocket, bytes: &[u8]) -> Result<()> {
    for _ in 0..1000 {
        match socket.send(bytes) {
            Ok(_) => return Ok(()),
            Err(error) if is_passing(&error) => thread::sleep(Duration::from_micros(100)),
            Err(error) => return Err(error).context(format!("cannot send {} bytes", bytes.len())),
        }
    }
    Err(anyhow!("the kernel takes no more datagrams"))
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN | libc::ECONNREFUSED))
}

/// Keeps to the target rate.
struct Pace {
    start: Instant,
    deadline: Instant,
    bytes_per_second: f64,
}

impl Pace {
    fn new(load: &Load) -> Self {
        let start = Instant::now();
        Self { start, deadline: start + load.duration, bytes_per_second: load.rate * 1e9 / 8.0 }
    }

    /// Sleeps until more may be sent; false when the time is over.
    fn wait(&mut self, sent_bytes: u64) -> bool {
        let due = Duration::from_secs_f64(sent_bytes as f64 / self.bytes_per_second);
        let early = due.saturating_sub(self.start.elapsed());
        // Shorter sleeps than the timer's slack would only cost.
        if early > Duration::from_micros(100) {
            thread::sleep(early);
        }
        !over(self.deadline)
    }
}

fn datagram(content: &Stream, sequence: u64, size: usize, verify: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size);
    append_datagram(&mut bytes, content, sequence, size, verify);
    bytes
}

fn append_datagram(bytes: &mut Vec<u8>, content: &Stream, sequence: u64, size: usize, verify: bool) {
    let content = content.piece(sequence, size - HEADER);
    let checksum = if verify { hash(sequence, content) } else { 0 };
    for word in [sequence, size as u64, checksum] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(content);
}

/// A multiplicative hash: unlike the Internet checksum it notices words that changed places, and two flips.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let step = |state: u64, word: u64| (state.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    let (words, rest) = bytes.as_chunks::<8>();
    let state = words.iter().fold(!seed, |state, word| step(state, u64::from_le_bytes(*word)));
    rest.iter().fold(state, |state, byte| step(state, u64::from(*byte)))
}

/// A socket to receive on, with room for what comes before the receiver runs.
pub fn listen(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("cannot bind {address}"))?;
    socket::set_gro(&socket).context("UDP_GRO")?;
    socket::set_receive_buffer(&socket, 16 << 20).context("SO_RCVBUF")?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

/// Receives on a socket from [`listen`] until the sender says that this was all, or for as long as `patience`.
pub fn receive(socket: &UdpSocket, verify: bool, patience: Duration, progress: &Progress) -> Result<Report> {
    let mut receiver = Receiver { verify, ..Receiver::default() };
    let mut buffer = vec![0; 1 << 16];
    let deadline = Instant::now() + patience;
    while !receiver.ended && !over(deadline) {
        match socket::receive(socket, &mut buffer) {
            Ok((length, segment)) => {
                progress.add(length);
                buffer[..length].chunks(segment.max(1)).for_each(|datagram| receiver.take(datagram));
                receiver.note_time();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("receiving failed"),
        }
    }
    Ok(receiver.report())
}

#[derive(Default)]
struct Receiver {
    verify: bool,
    ended: bool,
    report: Report,
    next: u64,
    /// One bit per sequence number.
    seen: Vec<u64>,
    times: Option<(Instant, Instant)>,
}

impl Receiver {
    fn take(&mut self, datagram: &[u8]) {
        match parse(datagram, self.verify) {
            None => self.report.corrupt += 1,
            Some(END) => self.ended = true,
            Some(sequence) => self.count(sequence, datagram.len()),
        }
    }

    fn count(&mut self, sequence: u64, length: usize) {
        let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
        if word >= self.seen.len() {
            self.seen.resize((word + 1).next_power_of_two(), 0);
        }
        if self.seen[word] & bit != 0 {
            self.report.duplicate += 1;
            return;
        }
        self.seen[word] |= bit;
        self.report.received += 1;
        self.report.bytes += length as u64;
        self.report.reordered += u64::from(sequence < self.next);
        self.next = self.next.max(sequence + 1);
    }

    fn note_time(&mut self) {
        if !self.ended {
            let now = Instant::now();
            self.times = Some((self.times.map_or(now, |(first, _)| first), now));
        }
    }

    fn report(mut self) -> Report {
        self.report.duration = self.times.map_or(Duration::ZERO, |(first, last)| last - first);
        self.report
    }
}

/// The sequence number, if the datagram is as it was sent.
fn parse(datagram: &[u8], verify: bool) -> Option<u64> {
    let (header, content) = datagram.split_at_checked(HEADER)?;
    let word = |index: usize| Some(u64::from_le_bytes(header.get(index * 8..index * 8 + 8)?.try_into().ok()?));
    let (sequence, length, checksum) = (word(0)?, word(1)?, word(2)?);
    let plausible = sequence == END || sequence < 1 << 36;
    let whole = length == datagram.len() as u64 && (!verify || sequence == END || checksum == hash(sequence, content));
    (plausible && whole).then_some(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_loopback(load: Load) -> Report {
        let socket = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let target = socket.local_addr().unwrap();
        let receiver = thread::spawn(move || receive(&socket, true, Duration::from_secs(10), &Progress::default()));
        let sent = send(target, &load).unwrap();
        Report { sent, ..receiver.join().unwrap().unwrap() }
    }

    #[test]
    fn equal_sizes_over_loopback_arrive_whole() {
        let report = over_loopback(Load::of_datagrams(Sizes::Equal(1400), 1001, 1.0));
        assert!(report.faithful() && report.lost() == 0, "{report:?}");
    }

    #[test]
    fn mixed_sizes_over_loopback_arrive_whole() {
        let report = over_loopback(Load::of_datagrams(Sizes::Mixed(vec![24, 1400, 700, 33]), 1001, 0.1));
        assert!(report.faithful() && report.lost() == 0, "{report:?}");
    }

    #[test]
    fn loss_reordering_repetition_and_corruption_are_told_apart() {
        let content = Stream::new(1);
        let mut receiver = Receiver { verify: true, ..Receiver::default() };
        let mut corrupt = datagram(&content, 4, 100, true);
        corrupt[60] ^= 1;
        for datagram in [0, 2, 1, 1].map(|sequence| datagram(&content, sequence, 100, true)) {
            receiver.take(&datagram);
        }
        receiver.take(&corrupt);
        let report = Report { sent: 6, ..receiver.report() };
        assert_eq!((report.received, report.reordered, report.duplicate, report.corrupt), (3, 1, 1, 1));
        assert_eq!(report.lost(), 2);
    }

    #[test]
    fn a_datagram_of_the_wrong_length_is_corrupt() {
        let bytes = datagram(&Stream::new(1), 4, 100, true);
        assert_eq!(parse(&bytes[..99], false), None);
        assert_eq!(parse(&bytes[..10], false), None);
    }
}
