//! Wiring: from a configuration to a running gateway, and back to a machine without one.
//!
//! The order of the start is the order of what can go wrong: privileges and preflight before anything is made, devices and
//! sockets before XDP steers packets to them. What is made here ends with its file descriptors, so an error on the way, and
//! even a kill, leaves nothing behind.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use thiserror::Error;
use tracing::{info, warn};

mod assembly;

use assembly::Gateway;

use crate::config::{self, Config};
use crate::control::health::{Health, Heartbeat};
use crate::control::links::Link;
use crate::control::metrics::{Family, Metrics, Scrape};
use crate::control::preflight::{self, Problems, Ready};
use crate::control::uapi::server::SocketError as ControlSocketError;
use crate::control::wireguard::{Attached, Disappearance, attach};
use crate::control::{Control, Stop, StopNotice};
use crate::datapath::packet::TunnelIndex;
use crate::datapath::stats::Counters;
use crate::device_links::Followed;
use crate::io::socket::SocketError;
use crate::io::tun::DeviceError;
use crate::order::Orders;
use crate::underlay::UnderlayError;
use crate::wireguard::desk::{Closing, Desk};
use crate::wireguard::steering::{Steering, Underlays};
use crate::wireguard::{Interface, InterfaceError};
use crate::worker::{Shared, Worker};
use crate::{addresses, device_links, reattach, stations};

/// How long names and ports of a killed predecessor may stay taken.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at something that takes a moment.
const RETRY: Duration = Duration::from_millis(10);
/// How long workers may take for what has arrived.
const STOP_WITHIN: Duration = Duration::from_millis(1500);
/// How often the forwarding databases are swept.
const AGEING: Duration = Duration::from_secs(10);
/// How often XDP's debug lines are fetched, where they are switched on.
const XDP_LINES: Duration = Duration::from_millis(100);

/// Why the gateway did not start or did not go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// A system call failed.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
    /// The machine lacks something.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// A device could not be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A socket could not be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An underlay could not be used.
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
    /// A WireGuard interface could not be configured.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// A WireGuard interface has no control socket.
    #[error(transparent)]
    ControlSocket(#[from] ControlSocketError),
    /// Something failed later.
    #[error("{0}")]
    Failed(String),
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |error| RunError::System(what, error)
}

/// Runs the gateway until it is told to end.
pub fn run(config: Config) -> Result<(), RunError> {
    let mut control = begin(&config)?;
    let (links, Ready { mtus, listener }) = find_ready(&control, &config)?;
    let Some((config, gateway)) = assemble(&mut control, config, links, mtus)? else { return Ok(()) };
    // Port 0 has become another one.
    let listen = listener.local_addr().unwrap_or(config.metrics.listen);
    let told = || {
        info!("ready: metrics on http://{listen}/metrics");
        Ok(())
    };
    operate(control, &config, gateway, Serving::Metrics(listener), told)
}

/// Runs one WireGuard device that is configured over its control socket, without metrics, until it is told to end, its link
/// is deleted or its control socket removed. `ready` is called once device and socket are there; its error is the end.
pub fn run_device(name: String, ready: impl FnOnce() -> io::Result<()>) -> Result<(), RunError> {
    let config = Config::of_device(name);
    let mut control = begin(&config)?;
    let links = control.links().map_err(system("cannot list the interfaces"))?;
    let mtus = vec![config::DEVICE_MTU];
    let Some((config, gateway)) = assemble(&mut control, config, links, mtus)? else { return Ok(()) };
    operate(control, &config, gateway, Serving::Device, ready)
}

/// The gateway, and what is left of its configuration: the keys are the interfaces' from here on, who wipe them when they are
/// replaced. `None` if a signal came first. What is half made then ends with the process.
fn assemble(
    control: &mut Control,
    mut config: Config,
    links: Vec<Link>,
    mtus: Vec<u16>,
) -> Result<Option<(Config, Gateway)>, RunError> {
    let work = move || {
        let gateway = Gateway::assemble(&config, &links, &mtus)?;
        config.forget_secrets();
        Ok((config, gateway))
    };
    match control.unless_stopped(work) {
        Ok(assembled) => assembled.map(Some),
        Err(Stop::Failure(reason)) => Err(RunError::Failed(reason)),
        Err(stop) => {
            info!("stopping: {stop}");
            Ok(None)
        }
    }
}

/// What the control thread serves beside control sockets.
enum Serving {
    /// Metrics and health of all tunnels.
    Metrics(TcpListener),
    /// One device, and without it nothing more.
    Device,
}

fn begin(config: &Config) -> Result<Control, RunError> {
    let control = Control::start().map_err(system("cannot start the control thread"))?;
    raise_file_limit();
    preflight::privileges(config)?;
    Ok(control)
}

fn operate(
    mut control: Control,
    config: &Config,
    mut gateway: Gateway,
    serving: Serving,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<(), RunError> {
    let notice = StopNotice::default();
    let mut disappearance = Disappearance::Stays;
    if matches!(serving, Serving::Device) {
        disappearance = Disappearance::Ends;
        gateway.end_with_device(&notice);
    }
    let sockets = attach_interfaces(&control, config, &gateway.interfaces, (disappearance, &notice))?;
    let health = Arc::new(Health::default());
    let running = gateway.start(&health, &notice)?;
    running.spawn_chores(&control);
    ready().map_err(system("cannot tell that all is ready"))?;
    let stop = match serving {
        Serving::Metrics(listener) => control.serve(listener, running.metrics(&config.metrics), health, &notice),
        Serving::Device => control.wait(&notice),
    };
    drop(sockets);
    let ended = running.end(stop);
    control.close();
    ended
}

/// The control sockets of all WireGuard interfaces.
fn attach_interfaces(
    control: &Control,
    config: &Config,
    interfaces: &[Arc<Interface>],
    disappearance: (Disappearance, &StopNotice),
) -> Result<Vec<Attached>, RunError> {
    let mut attached = Vec::new();
    for interface in interfaces {
        let Some(tunnel) = config.tunnels.get(usize::from(interface.tunnel().0)) else { continue };
        attached.push(attach(control, tunnel, interface, disappearance)?);
    }
    Ok(attached)
}

/// Each tunnel has a descriptor per worker and each local address a pool of sockets: the usual soft limit of 1,024 is for
/// programs that call `select`.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        info!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}

/// The interfaces, and the machine found ready. A predecessor that was killed a moment ago may still hold names and ports.
fn find_ready(control: &Control, config: &Config) -> Result<(Vec<Link>, Ready), RunError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let links = control.links().map_err(system("cannot list the interfaces"))?;
        match preflight::check(config, &links) {
            Ok(ready) => return Ok((links, ready)),
            Err(problems) if problems.may_pass() && Instant::now() < deadline => thread::sleep(RETRY),
            Err(problems) => return Err(problems.into()),
        }
    }
}

/// A gateway whose workers run.
struct Running {
    shared: Shared,
    devices: Vec<u32>,
    underlays: Underlays,
    counters: Vec<Arc<Counters>>,
    orders: Vec<Orders>,
    steering: Arc<Steering>,
    interfaces: Vec<Arc<Interface>>,
    handshake_counters: Option<Arc<Counters>>,
    closing: Closing,
    stop: OwnedFd,
    threads: Vec<JoinHandle<()>>,
}

impl Gateway {
    fn start(self, health: &Health, notice: &StopNotice) -> Result<Running, RunError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| RunError::System("eventfd", e.into()))?;
        let counters = self.workers.iter().map(|parts| parts.counters.clone()).collect();
        let mut running = Running {
            shared: self.shared,
            devices: self.devices,
            underlays: self.underlays,
            counters,
            orders: self.orders,
            steering: self.steering,
            interfaces: self.interfaces,
            handshake_counters: None,
            closing: self.closing,
            stop,
            threads: Vec::new(),
        };
        if !running.interfaces.is_empty() {
            let counters = Arc::new(Counters::new(running.shared.table.tunnels().len()));
            running.handshake_counters = Some(counters.clone());
            let thread = spawn_desk(self.desk, running.interfaces.clone(), counters, notice.clone());
            running.threads.push(thread.map_err(system("cannot start the handshake thread"))?);
        }
        let cpus = allowed_cpus();
        for (index, parts) in self.workers.into_iter().enumerate() {
            let worker = Worker::new(running.shared.clone(), parts, &running.stop);
            let worker = worker.map_err(system("cannot use epoll"))?;
            let heartbeat = health.add_worker(index.to_string());
            // From the last CPU on: the first ones serve most interrupts.
            let cpu = cpus.iter().rev().cycle().nth(index).copied();
            let thread = spawn(index, cpu, worker, heartbeat, notice.clone());
            let thread = thread.map_err(system("cannot start a worker"))?;
            running.threads.push(thread);
        }
        Ok(running)
    }
}

/// The CPUs that this process may run on.
fn allowed_cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect()
}

fn spawn(
    index: usize,
    cpu: Option<usize>,
    worker: Worker,
    heartbeat: Heartbeat,
    notice: StopNotice,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        // A worker keeps its caches, and what it writes to a TUN goes on into one CPU's backlog of the next device.
        if let Some(cpu) = cpu {
            let mut only = CpuSet::new();
            only.set(cpu);
            if let Err(error) = sched_setaffinity(None, &only) {
                info!("worker {index}: not pinned to CPU {cpu}: {error}");
            }
        }
        // A gateway that lost a worker would black-hole that worker's queue: better to end, and be started again.
        match catch_unwind(AssertUnwindSafe(|| worker.run(&heartbeat))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => notice.fail(format!("worker {index}: {error}")),
            Err(_) => notice.fail(format!("worker {index} panicked")),
        }
    })
}

fn spawn_desk(
    desk: Desk,
    interfaces: Vec<Arc<Interface>>,
    counters: Arc<Counters>,
    notice: StopNotice,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("wireguard".to_owned()).spawn(move || {
        if catch_unwind(AssertUnwindSafe(|| desk.run(&interfaces, &counters))).is_err() {
            notice.fail("the handshake thread panicked".to_owned());
        }
    })
}

impl Running {
    fn metrics(&self, config: &config::Metrics) -> Metrics {
        let mut metrics = Metrics::new(&self.shared.table);
        metrics.know_devices(&self.devices);
        for (index, counters) in self.counters.iter().enumerate() {
            metrics.add_worker(index.to_string(), counters.clone());
        }
        if let Some(counters) = &self.handshake_counters {
            metrics.add_worker("wireguard".to_owned(), counters.clone());
        }
        let (interfaces, table, peers) = (self.interfaces.clone(), self.shared.table.clone(), config.wireguard_peers);
        metrics.add_source(move |scrape: &mut Scrape| {
            for interface in &interfaces {
                if let Some(tunnel) = table.get(interface.tunnel()) {
                    interface.device().report(&tunnel.name, peers, scrape);
                }
            }
        });
        let underlays = self.underlays.clone();
        metrics.add_source(move |scrape: &mut Scrape| {
            for underlay in underlays.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                underlay.report(scrape);
            }
        });
        let shared = self.shared.clone();
        metrics.add_source(move |scrape: &mut Scrape| {
            for (index, tunnel) in (0..).map(TunnelIndex).zip(shared.table.tunnels()) {
                if let Some(fdb) = shared.fdbs.get(index) {
                    scrape.add(Family::FdbEntries, &[&tunnel.name], fdb.total() as u64);
                }
            }
        });
        metrics
    }

    /// The links of all WireGuard devices.
    fn wireguard_links(&self) -> Vec<Followed> {
        let followed = |interface: &Arc<Interface>| {
            let index = self.devices.get(usize::from(interface.tunnel().0))?;
            Some(Followed::new(*index, interface.device().clone()))
        };
        self.interfaces.iter().filter_map(followed).collect()
    }

    /// What the control thread does beside serving.
    fn spawn_chores(&self, control: &Control) {
        let (fdbs, epoch) = (self.shared.fdbs.clone(), self.shared.epoch);
        control.runtime().spawn(async move {
            let mut ticks = tokio::time::interval(AGEING);
            loop {
                ticks.tick().await;
                fdbs.age(epoch.elapsed().as_secs() as u32);
            }
        });
        control.runtime().spawn(addresses::follow(self.steering.clone()));
        control.runtime().spawn(device_links::follow(self.wireguard_links()));
        control.runtime().spawn(stations::follow(self.underlays.clone()));
        control.runtime().spawn(reattach::watch(self.underlays.clone(), self.orders.clone()));
        for underlay in self.underlays.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            if let Some(mut log) = underlay.take_log() {
                // On a thread of its own: under a flood of drops a flush need not end, and signals must still be heard.
                thread::spawn(move || {
                    loop {
                        log.flush();
                        thread::sleep(XDP_LINES);
                    }
                });
            }
        }
    }

    /// Ends in an orderly way, and says whether that was a good end.
    fn end(self, stop: Stop) -> Result<(), RunError> {
        info!("stopping: {stop}");
        self.stop();
        match stop {
            Stop::Signal(_) | Stop::Gone(_) => Ok(()),
            Stop::Failure(reason) => Err(RunError::Failed(reason)),
        }
    }

    /// Stops taking packets, lets the workers finish what arrived, and gives everything back.
    fn stop(self) {
        for underlay in self.underlays.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            underlay.close();
        }
        self.closing.close();
        // An eventfd of value 0 takes any 8-byte increment.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        let deadline = Instant::now() + STOP_WITHIN;
        for thread in self.threads {
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(RETRY);
            }
            if !thread.is_finished() {
                // The end of the process frees what it holds.
                warn!("thread {} did not end in time", thread.thread().name().unwrap_or("without a name"));
            }
        }
    }
}
