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
use crate::machine::slowness;

/// Bytes of header in front of the content, so the smallest datagram.
pub const HEADER: usize = 24;
/// The sequence number of the datagrams that say how many there were, where others have their checksum.
const END: u64 = u64::MAX;
/// How long after the last arrival a datagram that is still missing counts as lost.
const SETTLED: Duration = Duration::from_secs(1);
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
    let merged = matches!(load.sizes, Sizes::Equal(_));
    let receiving = to.run(|| listen(any_address(address, 0), merged))??;
    let target = SocketAddr::new(address, receiving.local_addr()?.port());
    let verify = load.verify;
    let patience = load.duration + Duration::from_secs(5);
    let receiver = thread::spawn(move || receive(&receiving, verify, patience, &progress));
    let sent = from.run(|| send(target, load))?;
    let received = receiver.join().map_err(|_| anyhow!("the UDP receiver panicked"))?;
    Ok(Report { sent: sent?, ..received? })
}

/// Sends, and closes with a few datagrams that say how many there were; returns that number.
pub fn send(target: SocketAddr, load: &Load) -> Result<u64> {
    let socket = UdpSocket::bind(any_address(target.ip(), 0))?;
    socket.connect(target).with_context(|| format!("cannot reach {target}"))?;
    let sent = match &load.sizes {
        Sizes::Equal(size) => send_equal(&socket, *size, load),
        Sizes::Mixed(sizes) => send_mixed(&socket, sizes, load),
    };
    let end = closing_datagram(*sent.as_ref().unwrap_or(&0));
    // A fresh socket, since this one may cut at another size.
    let closing = UdpSocket::bind(any_address(target.ip(), 0))?;
    for _ in 0..5 {
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
        let count = (run as u64).min(load.datagrams - sent);
        if load.verify || buffer.is_empty() {
            buffer.clear();
            for index in 0..count {
                append_datagram(&mut buffer, &content, sent + index, size, load.verify);
            }
        } else {
            // Nobody looks at the content, and to make it anew would take the core from those who are measured.
            for (sequence, datagram) in (sent..).zip(buffer.chunks_exact_mut(size)) {
                datagram[..8].copy_from_slice(&sequence.to_le_bytes());
            }
        }
        let (run, _) = buffer.split_at(count as usize * size);
        send_all(socket, run)?;
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

/// Says how many there were. It belongs to another flow, so where a machine is busy it may overtake what was sent before it: on the
/// gateway's other queues, in the backlogs of other CPUs, in a kernel that merges packets flow by flow.
fn closing_datagram(sent: u64) -> Vec<u8> {
    [END, HEADER as u64, sent].iter().flat_map(|word| word.to_le_bytes()).collect()
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
///
/// It takes datagrams `merged` where that is cheaper. For the sake of such a socket the kernel's GRO holds datagrams back for
/// others that may follow them, but no fragments: so where both come, they overtake.
pub fn listen(address: SocketAddr, merged: bool) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("cannot bind {address}"))?;
    if merged {
        socket::set_gro(&socket).context("UDP_GRO")?;
    }
    socket::set_receive_buffer(&socket, 16 << 20).context("SO_RCVBUF")?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

/// Receives on a socket from [`listen`] until everything is there that the sender says it has sent, or nothing has come for
/// a while since it said so, but no longer than `patience`.
pub fn receive(socket: &UdpSocket, verify: bool, patience: Duration, progress: &Progress) -> Result<Report> {
    let mut receiver = Receiver { verify, ..Receiver::default() };
    let mut buffer = vec![0; 1 << 16];
    let settled = SETTLED.mul_f64(slowness());
    let deadline = Instant::now() + patience;
    while receiver.awaits_more(settled) && !over(deadline) {
        match socket::receive(socket, &mut buffer) {
            Ok((length, segment)) => {
                progress.add(length);
                let now = Instant::now();
                buffer[..length].chunks(segment.max(1)).for_each(|datagram| receiver.take(datagram, now));
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
    /// How many there are, once the sender has said so.
    sent: Option<u64>,
    /// When the last datagram came.
    heard: Option<Instant>,
    report: Report,
    next: u64,
    /// One bit per sequence number.
    seen: Vec<u64>,
    times: Option<(Instant, Instant)>,
}

impl Receiver {
    fn take(&mut self, datagram: &[u8], now: Instant) {
        self.heard = Some(now);
        match parse(datagram, self.verify) {
            None => self.report.corrupt += 1,
            Some(Parsed::End { sent }) => self.sent = Some(sent),
            Some(Parsed::Content { sequence }) => {
                self.times = Some((self.times.map_or(now, |(first, _)| first), now));
                self.count(sequence, datagram.len());
            }
        }
    }

    /// May something still be on its way?
    fn awaits_more(&self, settled: Duration) -> bool {
        let Some(sent) = self.sent else { return true };
        let silent = self.heard.is_some_and(|heard| heard.elapsed() > settled);
        self.report.received + self.report.corrupt < sent && !silent
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

    fn report(mut self) -> Report {
        self.report.duration = self.times.map_or(Duration::ZERO, |(first, last)| last - first);
        self.report
    }
}

/// A datagram that is as it was sent.
#[derive(Debug, PartialEq)]
enum Parsed {
    Content { sequence: u64 },
    End { sent: u64 },
}

fn parse(datagram: &[u8], verify: bool) -> Option<Parsed> {
    let (header, content) = datagram.split_at_checked(HEADER)?;
    let word = |index: usize| Some(u64::from_le_bytes(header.get(index * 8..index * 8 + 8)?.try_into().ok()?));
    let (sequence, length, checksum) = (word(0)?, word(1)?, word(2)?);
    if length != datagram.len() as u64 {
        return None;
    }
    if sequence == END {
        return Some(Parsed::End { sent: checksum });
    }
    let whole = sequence < 1 << 36 && (!verify || checksum == hash(sequence, content));
    whole.then_some(Parsed::Content { sequence })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_loopback(load: Load) -> Report {
        let socket = listen("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let target = socket.local_addr().unwrap();
        let verify = load.verify;
        let receiver = thread::spawn(move || receive(&socket, verify, Duration::from_secs(10), &Progress::default()));
        let sent = send(target, &load).unwrap();
        Report { sent, ..receiver.join().unwrap().unwrap() }
    }

    #[test]
    fn equal_sizes_over_loopback_arrive_whole() {
        let report = over_loopback(Load::of_datagrams(Sizes::Equal(1400), 1001, 1.0));
        assert!(report.faithful() && report.lost() == 0, "{report:?}");
    }

    #[test]
    fn unverified_datagrams_are_told_apart_too() {
        let load = Load { verify: false, ..Load::of_datagrams(Sizes::Equal(1400), 1001, 1.0) };
        let report = over_loopback(load);
        assert!(report.faithful() && report.received == 1001 && report.bytes == 1001 * 1400, "{report:?}");
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
            receiver.take(&datagram, Instant::now());
        }
        receiver.take(&corrupt, Instant::now());
        let report = Report { sent: 6, ..receiver.report() };
        assert_eq!((report.received, report.reordered, report.duplicate, report.corrupt), (3, 1, 1, 1));
        assert_eq!(report.lost(), 2);
    }

    #[test]
    fn what_its_end_has_overtaken_still_arrives() {
        let socket = listen("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let target = socket.local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let receiver = thread::spawn(move || receive(&socket, true, Duration::from_secs(10), &Progress::default()));
        let content = [0, 1].map(|sequence| datagram(&Stream::new(1), sequence, 100, true));
        for datagram in [&content[0], &closing_datagram(2), &content[1]] {
            sender.send_to(datagram, target).unwrap();
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(receiver.join().unwrap().unwrap().received, 2);
    }

    #[test]
    fn what_does_not_come_is_not_waited_for_to_the_end() {
        let socket = listen("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let target = socket.local_addr().unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&closing_datagram(2), target).unwrap();
        let report = receive(&socket, true, Duration::from_secs(60), &Progress::default()).unwrap();
        assert_eq!(Report { sent: 2, ..report }.lost(), 2);
    }

    #[test]
    fn a_datagram_of_the_wrong_length_is_corrupt() {
        let bytes = datagram(&Stream::new(1), 4, 100, true);
        assert_eq!(parse(&bytes[..99], false), None);
        assert_eq!(parse(&bytes[..10], false), None);
    }
}
