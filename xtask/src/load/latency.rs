//! Request and response: how long one small packet each way takes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{any_address, over};
use crate::lab::Namespace;

/// Bytes of request and of response.
const SIZE: usize = 64;
const STALL: Duration = Duration::from_secs(5);

/// Round-trip times.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Round trips made.
    pub count: usize,
    /// Half of them took at most this.
    pub p50: Duration,
    /// 99 of a hundred took at most this.
    pub p99: Duration,
}

/// Sends requests over one TCP connection for that long, one at a time.
pub fn run(from: &Namespace, to: &Namespace, address: IpAddr, duration: Duration) -> Result<Report> {
    let listener = to.run(|| TcpListener::bind(any_address(address, 0)))??;
    let target = SocketAddr::new(address, listener.local_addr()?.port());
    // Connecting first means that accepting does not wait for ever when nothing gets through.
    let client = from.run(|| TcpStream::connect_timeout(&target, STALL))?;
    let client = client.with_context(|| format!("cannot connect to {target}"))?;
    let (server, _) = listener.accept()?;
    thread::scope(|scope| {
        let echo = scope.spawn(move || respond(server));
        let report = ask(client, duration);
        echo.join().ok();
        report
    })
}

fn respond(mut socket: TcpStream) -> Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(STALL))?;
    let mut request = [0; SIZE];
    while socket.read_exact(&mut request).is_ok() {
        socket.write_all(&request)?;
    }
    Ok(())
}

fn ask(mut socket: TcpStream, duration: Duration) -> Result<Report> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(STALL))?;
    let deadline = Instant::now() + duration;
    let mut times = Vec::new();
    let mut response = [0; SIZE];
    while !over(deadline) {
        let start = Instant::now();
        socket.write_all(&[1; SIZE])?;
        socket.read_exact(&mut response).context("no response")?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let percentile = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    Ok(Report { count: times.len(), p50: percentile(50), p99: percentile(99) })
}
