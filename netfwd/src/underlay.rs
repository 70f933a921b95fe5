//! Where tunnel packets arrive: one interface with its XDP program and its AF_XDP sockets.
//!
//! XDP is an acceleration, never a condition: with `xdp = "auto"`, what the driver or the kernel refuses costs one INFO line
//! and the packets come through the UDP sockets instead. Asked for by name, a refusal ends the start; so does one of
//! zero copy where that is required.
//!
//! The order matters: attach the program, then bind sockets with their fill rings prefilled, then put them into the
//! XSKMAP. Until then XDP passes everything to the kernel.
//!
//! An interface may be deleted and come back. Its sockets are then dead, but the loaded program and what it counted stay,
//! and hang on the new interface as soon as there is one (`reattach.rs` looks after that).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use netfwd_common::abi::{MAX_QUEUES, Policy, station};
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use thiserror::Error;
use tracing::info;

use crate::config::{self, Queues, XdpMode, overhead};
use crate::control::links::Link;
use crate::control::logging::Count;
use crate::control::metrics::{Family, Scrape, XskCounts};
use crate::datapath::table::{ForwardingTable, Tunnel, VerifyPolicy};
use crate::io::ethtool;
use crate::io::xdp::{self, AttachMode, AttachedMode, XdpProgram};
use crate::io::xdp_log::XdpLog;
use crate::io::xsk::{self, BusyPoll, ChunkSize, Target, Umem, XdpStatistics};
use crate::published::FrameGauges;
use crate::worker::{self, BATCH};

/// Entries of each RX ring and fill ring.
const RING: u32 = 4096;
/// Frames of one queue's UMEM: what both rings hold, and a batch in user space's hands.
pub const FRAMES: u32 = 2 * RING + BATCH as u32;
/// The kernel's and Cilium's choice for busy polling.
const BUSY_POLL: BusyPoll = BusyPoll { microseconds: 20, budget: 64 };

/// Why an underlay cannot be used as configured.
#[derive(Debug, Error)]
pub enum UnderlayError {
    /// Its queues cannot be counted.
    #[error("{interface}: cannot ask for its receive queues: {source}")]
    Channels {
        /// The interface.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Generic XDP would see merged packets, whose headers describe none of those that came. Preflight has asked before the
    /// start; an interface that comes back may be set up differently.
    #[error("{interface}: generic XDP runs behind GRO: turn it off (ethtool -K {interface} gro off)")]
    BehindGro {
        /// The interface.
        interface: String,
    },
    /// The XDP program was refused.
    #[error("{interface}: {source}")]
    Xdp {
        /// The interface.
        interface: String,
        /// What failed.
        source: Box<xdp::XdpError>,
    },
    /// An AF_XDP socket was refused.
    #[error("{interface} queue {queue}: {source}")]
    Socket {
        /// The interface.
        interface: String,
        /// The receive queue.
        queue: u32,
        /// What failed.
        source: Box<xsk::Error>,
    },
}

/// An interface, its program and its sockets.
pub struct Underlay {
    config: config::Underlay,
    /// How many have a worker.
    queues: usize,
    program: Option<XdpProgram>,
    log: Option<XdpLog>,
    sockets: Vec<Watched>,
}

/// What metrics need of a socket that a worker owns.
struct Watched {
    queue: u32,
    mode: &'static str,
    statistics: OwnedFd,
    gauges: Arc<FrameGauges>,
}

/// How many receive queues of `config`'s interface get a worker.
pub fn queue_count(config: &config::Underlay) -> Result<usize, UnderlayError> {
    let available = ethtool::receive_queues(&config.interface)
        .map_err(|source| UnderlayError::Channels { interface: config.interface.clone(), source })?;
    let wanted = match config.queues {
        Queues::All => MAX_QUEUES,
        Queues::Count(count) => u32::from(count),
    };
    Ok(available.min(wanted) as usize)
}

/// Whether what is sent to `local` may arrive on `link`, which is one of the `underlays`.
///
/// An address that none of them has, such as one on lo, is routed to over any of them.
pub fn may_arrive(local: IpAddr, link: &Link, underlays: &[&Link]) -> bool {
    let has_it = |link: &Link| link.addresses.contains(&local);
    local.is_unspecified() || has_it(link) || !underlays.iter().any(|underlay| has_it(underlay))
}

/// A tunnel whose full-sized datagrams may arrive on `link` and need several buffers, if there is one.
///
/// XDP passes those to the kernel, and AF_XDP would carry the shorter ones of the same flow past them.
fn oversized<'t>(link: &Link, underlays: &[&Link], table: &'t ForwardingTable) -> Option<&'t Tunnel> {
    let longest = |tunnel: &Tunnel| usize::from(tunnel.mtu) + usize::from(overhead(tunnel.kind, tunnel.local));
    let needs_several = |tunnel: &Tunnel| ChunkSize::for_mtu(longest(tunnel).min(link.mtu as usize), 0).is_none();
    let mut here = table.tunnels().iter().filter(|tunnel| may_arrive(tunnel.local, link, underlays));
    here.find(|tunnel| needs_several(tunnel))
}

/// How packets of this underlay are vetted.
pub fn verify_policy(config: &config::Underlay) -> VerifyPolicy {
    VerifyPolicy { verify: config.verify, accept_partial: config.accept_partial }
}

impl Underlay {
    /// Attaches XDP to `link`, one of the `underlays`, as configured and opens a socket for each of the first `queues`; none
    /// where the kernel's sockets have to do.
    pub fn open(
        config: &config::Underlay,
        link: &Link,
        underlays: &[&Link],
        table: &ForwardingTable,
        queues: usize,
    ) -> Result<(Self, Vec<worker::Queue>), UnderlayError> {
        let mut underlay = Self { config: config.clone(), queues, program: None, log: None, sockets: Vec::new() };
        let interface = &config.interface;
        if config.xdp == XdpMode::Off {
            info!("underlay {interface}: kernel sockets only (xdp = \"off\")");
            return Ok((underlay, Vec::new()));
        }
        let may_fall_back = config.xdp == XdpMode::Auto && config.zero_copy != config::ZeroCopy::Require;
        if may_fall_back && let Some(Tunnel { name, mtu, .. }) = oversized(link, underlays, table) {
            info!(
                "underlay {interface}: kernel sockets only: {name}'s MTU of {mtu} is more than an AF_XDP buffer holds"
            );
            return Ok((underlay, Vec::new()));
        }
        match underlay.accelerate(link, table) {
            Err(error) if may_fall_back => {
                info!("underlay {interface}: kernel sockets only: {error}");
                underlay.close();
                Ok((underlay, Vec::new()))
            }
            outcome => outcome.map(|queues| (underlay, queues)),
        }
    }

    fn accelerate(&mut self, link: &Link, table: &ForwardingTable) -> Result<Vec<worker::Queue>, UnderlayError> {
        let program = XdpProgram::load(table, self.policy(link));
        let program = self.program.insert(program.map_err(|error| refused(&self.config, error))?);
        if self.config.debug {
            self.log = Some(program.take_log().map_err(|error| refused(&self.config, error))?);
        }
        self.attach(link)
    }

    /// Hangs the program on `link` and opens its sockets; nothing of it stays if that fails. Logs what came of it.
    pub fn attach(&mut self, link: &Link) -> Result<Vec<worker::Queue>, UnderlayError> {
        let attached = self.try_attach(link);
        match &attached {
            Ok((mode, _)) => info!("underlay {}: {}", self.config.interface, self.describe(*mode)),
            Err(_) => self.detach(),
        }
        attached.map(|(_, queues)| queues)
    }

    fn try_attach(&mut self, link: &Link) -> Result<(AttachedMode, Vec<worker::Queue>), UnderlayError> {
        let (config, policy) = (&self.config, self.policy(link));
        let failed = |error| refused(config, error);
        let queues = queue_count(config)?.min(self.queues);
        if config.xdp == XdpMode::Generic && ethtool::merges_on_receive(&config.interface).unwrap_or(false) {
            return Err(UnderlayError::BehindGro { interface: config.interface.clone() });
        }
        let Some(program) = &mut self.program else { return Ok((AttachedMode::Native, Vec::new())) };
        program.set_policy(policy).map_err(failed)?;
        let wanted = if config.xdp == XdpMode::Generic { AttachMode::Generic } else { AttachMode::Native };
        let mode = program.attach(&config.interface, wanted).map_err(failed)?;
        let mut sockets = Vec::new();
        for queue in 0..queues as u32 {
            let socket = open_socket(config, link, queue)?;
            program.register_socket(queue, socket.as_fd()).map_err(failed)?;
            sockets.push(socket);
        }
        let watched = (0..).zip(sockets).map(|(queue, socket)| self.watch(queue, socket)).collect::<Result<_, _>>()?;
        Ok((mode, watched))
    }

    /// The program's switches.
    fn policy(&self, link: &Link) -> Policy {
        Policy {
            verify: self.config.verify as u8,
            accept_partial: u8::from(self.config.accept_partial),
            debug: u8::from(self.config.debug),
            // At most 3,840, and a multiple of 64.
            frame_limit: (chunk_size(link).frame_limit(0) / 64) as u8,
            station: station_of(link),
        }
    }

    /// Takes frames for the MAC address that the interface has now.
    pub fn follow_station(&mut self, link: &Link) {
        let station = station_of(link);
        if let Some(program) = &mut self.program
            && program.policy().station != station
            && let Err(error) = program.set_policy(Policy { station, ..program.policy() })
        {
            tracing::warn!(
                "underlay {}: its new MAC address takes the kernel's sockets: {error}",
                self.config.interface
            );
        }
    }

    fn watch(&mut self, queue: u32, socket: xsk::Socket) -> Result<worker::Queue, UnderlayError> {
        let config = &self.config;
        let failed = |source| UnderlayError::Channels { interface: config.interface.clone(), source };
        let statistics = socket.as_fd().try_clone_to_owned().map_err(failed)?;
        let gauges = Arc::new(FrameGauges::default());
        self.sockets.push(Watched { queue, mode: socket.mode().as_str(), statistics, gauges: gauges.clone() });
        Ok(worker::Queue::new(socket, verify_policy(config), config.busy_poll, gauges))
    }

    /// Its interface's name.
    pub fn interface(&self) -> &str {
        &self.config.interface
    }

    /// Whether the interface was taken away from under the sockets; each socket says it once.
    pub fn has_lost_interface(&self) -> bool {
        self.sockets.iter().any(|socket| matches!(socket_error(&socket.statistics), Ok(Err(Errno::NETDOWN))))
    }

    /// Whether it has a program at all.
    pub fn has_program(&self) -> bool {
        self.program.is_some()
    }

    /// Whether it has a program that hangs nowhere.
    pub fn is_detached(&self) -> bool {
        self.program.is_some() && self.sockets.is_empty()
    }

    /// Gives up interface and sockets; packets reach the kernel's sockets. The program stays loaded, and so do its counts.
    pub fn detach(&mut self) {
        self.sockets.clear();
        if let Some(program) = &mut self.program {
            program.detach();
        }
    }

    fn describe(&self, mode: AttachedMode) -> String {
        let zero_copy = self.sockets.iter().filter(|socket| socket.mode == xsk::Mode::ZeroCopy.as_str()).count();
        let queues = Count(self.sockets.len(), "queue");
        format!("XDP {mode}, {queues}, {zero_copy} of them zero-copy")
    }

    /// Steers by another table from now on.
    pub fn update_table(&mut self, table: &ForwardingTable) {
        if let Some(program) = &mut self.program
            && let Err(error) = program.update_table(table)
        {
            tracing::warn!(
                "underlay {}: a new port or address takes the kernel's sockets: {error}",
                self.config.interface
            );
        }
    }

    /// Detaches XDP: from here on packets reach the kernel's sockets.
    pub fn close(&mut self) {
        self.program = None;
        self.log = None;
        self.sockets.clear();
    }

    /// The program's debug lines, where they are switched on, once.
    pub fn take_log(&mut self) -> Option<XdpLog> {
        self.log.take()
    }

    /// Adds what XDP and the sockets counted.
    pub fn report(&self, scrape: &mut Scrape) {
        let interface = self.interface();
        scrape.add(Family::UnderlayInfo, &[interface, self.config.xdp.as_str()], 1);
        if let Some(program) = &self.program {
            match program.counters() {
                Ok(counts) => counts.report(interface, scrape),
                Err(error) => tracing::warn!("underlay {interface}: XDP counters: {error}"),
            }
        }
        for socket in &self.sockets {
            socket.report(interface, scrape);
        }
        for queue in self.sockets.len()..self.queues {
            scrape.add(Family::XskMode, &[interface, &queue.to_string(), "off"], 1);
        }
    }
}

impl Watched {
    fn report(&self, interface: &str, scrape: &mut Scrape) {
        // Zeros instead would look like a restart.
        let Ok(counted) = XdpStatistics::read(self.statistics.as_fd()) else { return };
        let counts = XskCounts {
            mode: self.mode,
            rx_dropped: counted.rx_dropped,
            rx_invalid_descs: counted.rx_invalid_descs,
            tx_invalid_descs: counted.tx_invalid_descs,
            rx_ring_full: counted.rx_ring_full,
            rx_fill_ring_empty: counted.rx_fill_ring_empty,
            tx_ring_empty: counted.tx_ring_empty,
            umem_frames: &self.gauges.snapshot(),
        };
        counts.report(interface, self.queue, scrape);
    }
}

/// Whose frames XDP takes; everybody's where there are no stations.
fn station_of(link: &Link) -> [u32; 2] {
    link.station.map_or([0; 2], station)
}

fn refused(config: &config::Underlay, error: xdp::XdpError) -> UnderlayError {
    UnderlayError::Xdp { interface: config.interface.clone(), source: Box::new(error) }
}

fn open_socket(config: &config::Underlay, link: &Link, queue: u32) -> Result<xsk::Socket, UnderlayError> {
    let failed = |error| UnderlayError::Socket { interface: config.interface.clone(), queue, source: Box::new(error) };
    let umem = Umem::new(chunk_size(link), 0, FRAMES).map_err(failed)?;
    let options = xsk::Options {
        rx_size: RING,
        fill_size: RING,
        zero_copy: match config.zero_copy {
            config::ZeroCopy::Auto => xsk::ZeroCopy::Auto,
            config::ZeroCopy::Require => xsk::ZeroCopy::Require,
            config::ZeroCopy::Off => xsk::ZeroCopy::Off,
        },
        busy_poll: config.busy_poll.then_some(BUSY_POLL),
        ..xsk::Options::default()
    };
    xsk::Socket::bind(umem, Target { ifindex: link.index, queue }, &options).map_err(failed)
}

/// The buffers that hold what the interface's MTU allows, as far as one buffer can. XDP passes longer frames to the kernel.
fn chunk_size(link: &Link) -> ChunkSize {
    ChunkSize::for_mtu(link.mtu as usize, 0).unwrap_or(ChunkSize::FourKiB)
}
