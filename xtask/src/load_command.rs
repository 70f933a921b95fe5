//! `cargo xtask load`: the load tool in processes of its own, for a lab made with `lab up`.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Subcommand;
use xtask::load::{Progress, gigabits, tcp, udp};

#[derive(Subcommand)]
pub enum Task {
    /// Receive one run of tcp-send
    TcpReceive {
        /// The port to listen on, on every address
        #[arg(long)]
        port: u16,
        /// As many connections as the sender opens
        #[arg(long, default_value_t = 1)]
        flows: u32,
    },
    /// Send over TCP
    TcpSend {
        /// Where to
        target: SocketAddr,
        #[arg(long, default_value_t = 1)]
        flows: u32,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Have the receiver compare every byte
        #[arg(long)]
        verify: bool,
    },
    /// Receive one run of udp-send
    UdpReceive {
        /// The port to listen on, on every address
        #[arg(long)]
        port: u16,
        /// Verify the content; the sender must have been told so too
        #[arg(long)]
        verify: bool,
        /// Give up after this many seconds
        #[arg(long, default_value_t = 60.0)]
        patience: f64,
    },
    /// Send over UDP
    UdpSend {
        /// Where to
        target: SocketAddr,
        /// Bytes of payload in each datagram; several sizes are sent in turn
        #[arg(long, value_delimiter = ',', default_value = "1400")]
        sizes: Vec<usize>,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Gbit/s
        #[arg(long, default_value_t = 1.0)]
        rate: f64,
        /// Send checksums over the content
        #[arg(long)]
        verify: bool,
    },
}

pub fn perform(task: &Task) -> Result<()> {
    match *task {
        Task::TcpReceive { port, flows } => {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
            let report = tcp::receive(&listener, flows, &Progress::default())?;
            println!(
                "received {} bytes, {:.2} Gbit/s, {} corrupt flows",
                report.received,
                report.gigabits(),
                report.corrupt_flows
            );
        }
        Task::TcpSend { target, flows, seconds, verify } => {
            let start = Instant::now();
            let sent = tcp::send(target, tcp::Load { verify, ..tcp::Load::for_seconds(flows, seconds) })?;
            println!("sent {sent} bytes, {:.2} Gbit/s", gigabits(sent, start.elapsed()));
        }
        Task::UdpReceive { port, verify, patience } => {
            let socket = udp::listen((Ipv6Addr::UNSPECIFIED, port).into(), true)?;
            let patience = Duration::from_secs_f64(patience);
            let report = udp::receive(&socket, verify, patience, &Progress::default())?;
            println!("{:.2} Gbit/s, {report:?}", report.gigabits());
        }
        Task::UdpSend { target, ref sizes, seconds, rate, verify } => {
            let mut load = udp::Load { verify, ..udp::Load::for_seconds(1400, seconds, rate) };
            load.sizes = match sizes.as_slice() {
                [size] => udp::Sizes::Equal(*size),
                sizes => udp::Sizes::Mixed(sizes.to_vec()),
            };
            println!("sent {} datagrams", udp::send(target, &load)?);
        }
    }
    Ok(())
}
