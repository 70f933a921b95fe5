//! Bulk TCP: some flows, for some time, in one direction.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::content::Stream;
use super::{Progress, any_address, over};
use crate::lab::Namespace;
use crate::machine::slowness;

/// First bytes of every connection: flags and seed.
const PREAMBLE: usize = 16;
const VERIFY: u64 = 1;
/// A connection that stands still this long has failed.
const STALL: Duration = Duration::from_secs(15);
/// What iperf3 writes at a time. The kernel sends the end of each write at once and marks it with PSH, so at half of that every
/// full superframe is followed by a single segment that may not join it.
const BULK_WRITE: usize = 1 << 17;

fn stall() -> Duration {
    STALL.mul_f64(slowness())
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Connections.
    pub flows: u32,
    /// For how long, at most.
    pub duration: Duration,
    /// How much on each connection, at most.
    pub bytes: u64,
    /// Is the receiver to compare every byte? Costs it about a tenth.
    pub verify: bool,
    /// Bytes per write.
    pub write_size: usize,
}

impl Load {
    /// For throughput: as much as goes through, not compared.
    pub fn for_seconds(flows: u32, seconds: f64) -> Self {
        let duration = Duration::from_secs_f64(seconds);
        Self { flows, duration, bytes: u64::MAX, verify: false, write_size: BULK_WRITE }
    }

    /// For correctness: that many bytes on each connection, every one compared.
    pub fn of_bytes(flows: u32, bytes: u64) -> Self {
        Self { flows, duration: Duration::from_secs(60), bytes, verify: true, write_size: 1 << 16 }
    }
}

/// What became of it, summed over the flows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Bytes of payload written.
    pub sent: u64,
    /// Bytes of payload read.
    pub received: u64,
    /// Flows in which the receiver read something that was not sent.
    pub corrupt_flows: u32,
    /// From the first connection to the last byte read.
    pub duration: Duration,
}

impl Report {
    /// Received Gbit/s.
    pub fn gigabits(&self) -> f64 {
        super::gigabits(self.received, self.duration)
    }

    /// Did everything arrive as it was sent?
    pub fn intact(&self) -> bool {
        self.corrupt_flows == 0 && self.received == self.sent && self.sent > 0
    }
}

/// Sends from one namespace to an address in another and waits for the end.
pub fn run(from: &Namespace, to: &Namespace, address: IpAddr, load: Load) -> Result<Report> {
    run_watched(from, to, address, load, Arc::default())
}

/// The same, with the received bytes counted in `progress` as they come.
pub fn run_watched(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    load: Load,
    progress: Arc<Progress>,
) -> Result<Report> {
    let listener = to.run(|| TcpListener::bind(any_address(address, 0)))??;
    let target = SocketAddr::new(address, listener.local_addr()?.port());
    let receiver = thread::spawn(move || receive(&listener, load.flows, &progress));
    let sent = from.run(|| send(target, load))?;
    if sent.is_err() && !receiver.is_finished() {
        // The receiver would wait for connections that nobody opens any more.
        release(to, address, target.port(), load.flows);
    }
    let received = receiver.join().map_err(|_| anyhow!("the TCP receiver panicked"))?;
    Ok(Report { sent: sent?, ..received? })
}

/// Opens the connections that a failed sender did not.
fn release(to: &Namespace, address: IpAddr, port: u16, flows: u32) {
    let connect = || {
        for _ in 0..flows {
            drop(TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_millis(200)));
        }
    };
    to.run(connect).ok();
}

/// Opens the connections and writes; returns the bytes written.
pub fn send(target: SocketAddr, load: Load) -> Result<u64> {
    let deadline = Instant::now() + load.duration;
    let flow = |seed: u32| -> Result<u64> {
        let stream =
            TcpStream::connect_timeout(&target, stall()).with_context(|| format!("cannot connect to {target}"))?;
        stream.set_write_timeout(Some(stall()))?;
        send_flow(stream, seed.into(), load, deadline).with_context(|| format!("sending to {target} failed"))
    };
    thread::scope(|scope| {
        let flows: Vec<_> = (0..load.flows).map(|seed| scope.spawn(move || flow(seed))).collect();
        flows.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a TCP sender panicked"))?).sum()
    })
}

fn send_flow(mut socket: TcpStream, seed: u64, load: Load, deadline: Instant) -> Result<u64> {
    let flags = if load.verify { VERIFY } else { 0 };
    socket.write_all(&preamble(flags, seed))?;
    let mut content = Stream::new(seed);
    let mut sent = 0;
    while sent < load.bytes && !over(deadline) {
        let want = load.write_size.min(usize::try_from(load.bytes - sent).unwrap_or(usize::MAX));
        let length = want.min(content.window().len());
        let written = socket.write(&content.window()[..length])?;
        content.advance(written);
        sent += written as u64;
    }
    socket.shutdown(std::net::Shutdown::Write)?;
    // Until the receiver has closed too, nothing is known to have arrived.
    socket.set_read_timeout(Some(stall()))?;
    socket.read(&mut [0]).context("the receiver did not close")?;
    Ok(sent)
}

/// Accepts that many connections and reads them to their ends.
pub fn receive(listener: &TcpListener, flows: u32, progress: &Progress) -> Result<Report> {
    let sockets = (0..flows).map(|_| accept(listener)).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let mut report = Report::default();
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> =
            sockets.into_iter().map(|socket| scope.spawn(move || receive_flow(socket, progress))).collect();
        for thread in threads {
            let (received, intact) = thread.join().map_err(|_| anyhow!("a TCP receiver panicked"))??;
            report.received += received;
            report.corrupt_flows += u32::from(!intact);
        }
        Ok(())
    })?;
    report.duration = start.elapsed();
    Ok(report)
}

/// Accepts with a bound on the wait, which the standard library has no word for.
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let mut accepted = Err(anyhow!("nobody connected within {STALL:?}"));
    crate::machine::wait_until(STALL, || match listener.accept() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => crate::interrupt::requested(),
        result => {
            accepted = result.map(|(socket, _)| socket).context("accept failed");
            true
        }
    });
    let socket = accepted?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(stall()))?;
    Ok(socket)
}

/// Returns the bytes read, and whether they are the ones to expect.
fn receive_flow(mut socket: TcpStream, progress: &Progress) -> Result<(u64, bool)> {
    let mut first = [0; PREAMBLE];
    socket.read_exact(&mut first).context("the sender gave up")?;
    let (flags, seed) = parse_preamble(first);
    let mut content = (flags & VERIFY != 0).then(|| Stream::new(seed));
    let (mut received, mut intact) = (0, true);
    let mut buffer = vec![0; 1 << 18];
    loop {
        let length = match socket.read(&mut buffer).context("reading failed")? {
            0 => return Ok((received, intact)),
            length => length,
        };
        progress.add(length);
        if intact
            && let Some(content) = &mut content
            && let Err(at) = content.check(&buffer[..length])
        {
            eprintln!("load: flow {seed} is corrupt at byte {}", received + at as u64);
            intact = false;
        }
        received += length as u64;
    }
}

fn preamble(flags: u64, seed: u64) -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    bytes[..8].copy_from_slice(&flags.to_le_bytes());
    bytes[8..].copy_from_slice(&seed.to_le_bytes());
    bytes
}

fn parse_preamble(bytes: [u8; PREAMBLE]) -> (u64, u64) {
    let both = u128::from_le_bytes(bytes);
    (both as u64, (both >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_over_loopback_arrive_intact() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let receiver = thread::spawn(move || receive(&listener, 3, &Progress::default()));
        let sent = send(target, Load::of_bytes(3, 3_000_001)).unwrap();
        let report = Report { sent, ..receiver.join().unwrap().unwrap() };
        assert!(report.intact(), "{report:?}");
        assert_eq!(report.sent, 9_000_003);
    }
}
