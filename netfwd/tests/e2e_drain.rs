//! The end takes nothing with it: what the kernel has queued for the daemon when SIGTERM comes is still delivered.
//!
//! A worker that runs leaves nothing queued that could be lost. So this one is held, alone of all threads, until the
//! others have told it to end, and its first look after that finds the stop and the packets at once.

mod e2e;

use std::fs;
use std::ptr;

use e2e::packets::{awaited, bound, received};
use e2e::wireguard::HANDSHAKE;
use e2e::{PATIENCE, Rig};
use rustix::process::Signal;
use xtask::lab::{Config, Family, Options, Program, Side, Tunnel, UNDERLAY};
use xtask::machine::wait_until;

/// More than one batch of any source, so that the round in which the stop is seen does not deliver all of them; fewer than
/// a worker takes after the stop.
const DATAGRAMS: u16 = 400;
/// Far ends have short queues.
const BURST: u16 = 50;

/// One thread of another process, which stands still as long as this lives.
struct Held {
    process: u32,
    thread: i32,
}

impl Held {
    /// The daemon's only worker.
    fn worker(process: u32) -> Self {
        let threads = fs::read_dir(format!("/proc/{process}/task")).expect("its threads").flatten();
        let mut workers = threads.filter(|thread| {
            fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.starts_with("worker-"))
        });
        let worker = workers.next().expect("a worker").file_name();
        assert!(workers.next().is_none(), "more than one worker");
        let thread = worker.to_str().and_then(|id| id.parse().ok()).expect("a thread's id");
        let held = Self { process, thread };
        assert_eq!(held.trace(libc::PTRACE_SEIZE), 0, "it can be traced");
        assert_eq!(held.trace(libc::PTRACE_INTERRUPT), 0, "it can be interrupted");
        assert!(wait_until(PATIENCE, || held.stands_still()), "it stands still");
        held
    }

    fn trace(&self, request: libc::c_uint) -> libc::c_long {
        // SAFETY: these requests read and write no memory of ours.
        unsafe { libc::ptrace(request, self.thread, ptr::null_mut::<libc::c_void>(), ptr::null_mut::<libc::c_void>()) }
    }

    /// Its state is "tracing stop" (proc_pid_stat(5), third field).
    fn stands_still(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/task/{}/stat", self.process, self.thread)).expect("a thread");
        stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" t"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.trace(libc::PTRACE_DETACH);
    }
}

/// The eventfds of a process that are readable. Workers are told to end by one.
fn raised(process: u32) -> Vec<String> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).expect("its descriptors").flatten();
    let eventfds = descriptors.filter(|descriptor| {
        fs::read_link(descriptor.path()).is_ok_and(|what| what.as_os_str() == "anon_inode:[eventfd]")
    });
    let names = eventfds.map(|descriptor| descriptor.file_name().to_string_lossy().into_owned());
    let count = |name: &String| {
        let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{name}")).unwrap_or_default();
        let count = info.lines().find_map(|line| line.strip_prefix("eventfd-count:")).unwrap_or_default().trim();
        u64::from_str_radix(count, 16).unwrap_or(0)
    };
    names.filter(|name| count(name) > 0).collect()
}

/// Datagrams that the gateway's kernel has delivered to a socket, or to nobody.
fn delivered_by_kernel(rig: &Rig) -> u64 {
    let counters = rig.lab.gateway.proc_net("snmp").expect("counters");
    let mut lines = counters.lines().filter(|line| line.starts_with("Ip:")).map(str::split_whitespace);
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let delivered = names.zip(values).find(|(name, _)| *name == "InDelivers").expect("a counter");
    delivered.1.parse().expect("a number")
}

/// Packets that XDP has put into an AF_XDP ring.
fn redirected(rig: &Rig) -> u64 {
    rig.metrics().metric("netfwd_xdp_packets_total", &[("action", "redirect")]) as u64
}

/// Each one longer than the one before, after which they begin again, so that nobody on the way joins two.
fn datagram(index: u16) -> Vec<u8> {
    let mut bytes = vec![0; 100 + 16 * usize::from(index % 70)];
    bytes[..2].copy_from_slice(&index.to_be_bytes());
    bytes
}

/// Queues datagrams from the peer, ends the daemon, and expects all of them at the gateway's own address.
fn what_is_queued_is_delivered(rig: Rig, queued: fn(&Rig) -> u64) {
    let target = rig.lab.gateway_address(Family::V4);
    let sender = bound(&rig.lab.peer, rig.lab.peer_address(Family::V4), 0);
    let receiver = bound(&rig.lab.gateway, target, 5001);
    let send = |index| assert!(sender.send_to(&datagram(index), (target, 5001)).is_ok());
    send(0);
    assert_eq!(awaited(&receiver, 1), [datagram(0)]);

    let (worker, before) = (Held::worker(rig.netfwd.id()), queued(&rig));
    for first in (0..DATAGRAMS).step_by(usize::from(BURST)) {
        (first..first + BURST).for_each(send);
        wait_until(PATIENCE, || queued(&rig) - before >= u64::from(first + BURST));
    }
    assert!(queued(&rig) - before >= u64::from(DATAGRAMS), "{} of them arrived", queued(&rig) - before);
    assert_eq!(received(&receiver).len(), 0, "nobody has delivered them yet");

    let silent = raised(rig.netfwd.id());
    rig.netfwd.signal(Signal::TERM).expect("running");
    let told = || raised(rig.netfwd.id()).iter().any(|descriptor| !silent.contains(descriptor));
    assert!(wait_until(PATIENCE, told), "the worker is told to end:\n{}", rig.netfwd.log());
    drop(worker);
    let arrived = awaited(&receiver, usize::from(DATAGRAMS));
    assert!(arrived.iter().cloned().eq((0..DATAGRAMS).map(datagram)), "{} of {DATAGRAMS}", arrived.len());
    rig.stop();
}

/// Without XDP and without the kernel's own coalescing, so that each datagram is one message of a socket's queue.
fn on_sockets(tunnel: Tunnel) -> Option<Rig> {
    Rig::from_text(Options::with_tunnels([tunnel]), |lab| {
        lab.gateway.exec(&format!("ethtool -K {UNDERLAY} gro off")).expect("no GRO");
        Config::of(lab).xdp("off").text()
    })
}

fn wireguard() -> Tunnel {
    Tunnel::wireguard(Program::WireguardGo).initiator(Side::Peer)
}

#[test]
fn the_end_delivers_what_is_queued_on_sockets_of_wireguard() {
    let Some(rig) = on_sockets(wireguard()) else { return };
    rig.greet();
    what_is_queued_is_delivered(rig, delivered_by_kernel);
}

#[test]
fn the_end_delivers_what_is_queued_on_sockets_of_vxlan() {
    let Some(rig) = on_sockets(Tunnel::vxlan("vx7", 7)) else { return };
    assert!(rig.answers(Side::Peer, HANDSHAKE));
    what_is_queued_is_delivered(rig, delivered_by_kernel);
}

#[test]
fn the_end_delivers_what_wireguard_has_in_an_af_xdp_ring() {
    let Some(rig) = Rig::start(Options::with_tunnels([wireguard()])) else { return };
    rig.greet();
    what_is_queued_is_delivered(rig, redirected);
}

#[test]
fn the_end_delivers_what_vxlan_has_in_an_af_xdp_ring() {
    let Some(rig) = Rig::start(Options::default()) else { return };
    assert!(rig.answers(Side::Peer, HANDSHAKE));
    what_is_queued_is_delivered(rig, redirected);
}

/// With WireGuard the first of the threads is none of the workers.
#[test]
fn a_worker_that_does_not_end_is_named_and_not_waited_for_long() {
    let Some(rig) = Rig::start(Options::with_tunnels([wireguard()])) else { return };
    // A thread of its own, since even a thread that was killed stays until its tracer lets go of it or ends.
    let named = std::thread::scope(|scope| {
        let hold = || {
            let _worker = Held::worker(rig.netfwd.id());
            rig.netfwd.signal(Signal::TERM).expect("running");
            wait_until(PATIENCE, || rig.netfwd.log().contains("worker-0 did not end in time"))
        };
        scope.spawn(hold).join().expect("no panic")
    });
    assert!(named, "{}", rig.netfwd.log());
    rig.stop();
}
