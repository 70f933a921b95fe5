//! Whether TCP leaves the gateway in the order in which it was sent: the judge stands where netfwd's part begins and ends.
//!
//! A receiver's own count of early segments (`TCPOFOQueue`) also counts what the wire has lost, and what the receiver's kernel
//! drops or turns round by itself: a socket's backlog that is full while its program has no CPU, the per-CPU queues behind a
//! veth. So the segments are looked at as the peer puts them on the wire, and the frames as netfwd has written them to its
//! device. Of each flow, the latter have to begin where the former do, in the same order. Losses leave gaps and excuse nothing.
//!
//! Watching must not change what is watched. A packet that a socket here has taken is a clone until that socket is read, and
//! a tunnel device lets clones overtake the packets that wait for its GRO (`gro_cells_receive`, net/core/gro_cells.c): what
//! arrives at the peer would be turned round now and then. So at the peer only what leaves is taken.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt};
use xtask::lab::{Lab, Namespace, UNDERLAY};

use super::packets::{Packet, TCP, UDP};

/// Headers suffice.
const SNAP: usize = 192;
/// For all that a test sends, should the watcher get no CPU meanwhile.
const ROOM: usize = 256 << 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Source and destination.
type Flow = (IpAddr, u16, IpAddr, u16);

/// Watches on both sides of the gateway, on threads of their own.
pub struct OrderWatch {
    sent: Watch,
    written: Watch,
}

/// What was seen.
pub struct Order {
    /// TCP frames with payload that netfwd wrote.
    pub frames: usize,
    /// Those that began nowhere behind the segment at which the last one of their flow began.
    pub disorder: Vec<String>,
    /// What the watches themselves have missed.
    pub missed: u32,
}

impl OrderWatch {
    /// Starts now, on what the peer sends on its underlay and what arrives on the gateway's `device`.
    pub fn start(lab: &Lab, device: &str) -> Self {
        let written = Watch::start(&lab.gateway, device, Direction::Arriving);
        Self { sent: Watch::start(&lab.peer, UNDERLAY, Direction::Leaving), written }
    }

    /// What was seen until now.
    pub fn end(self) -> Order {
        let (written, missed) = self.written.end();
        let (sent, also_missed) = self.sent.end();
        let frames = written.values().map(Vec::len).sum();
        let nothing = Vec::new();
        let sent = |flow| sent.get(flow).unwrap_or(&nothing);
        let disorder = written.iter().flat_map(|(flow, numbers)| disorder(flow, sent(flow), numbers)).collect();
        Order { frames, disorder, missed: missed + also_missed }
    }
}

/// The sequence numbers in `written` that are not to be found in `sent` behind the one before.
fn disorder(flow: &Flow, sent: &[u32], written: &[u32]) -> Vec<String> {
    let mut rest = sent.iter();
    let mut found = Vec::new();
    for (place, number) in written.iter().enumerate() {
        let before = rest.clone();
        if !rest.any(|other| other == number) {
            // The others are judged without it.
            rest = before;
            let next = rest.clone().next();
            found.push(format!("{flow:?}: frame {place} begins at {number}, of what was sent {next:?} was next"));
        }
    }
    found
}

/// Sequence numbers at which segments with payload begin, by flow, in the order seen.
type Seen = HashMap<Flow, Vec<u32>>;

/// Which of a device's frames are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Arriving,
    Leaving,
}

struct Watch {
    done: Arc<AtomicBool>,
    thread: JoinHandle<(Seen, u32)>,
}

impl Watch {
    fn start(namespace: &Namespace, device: &str, direction: Direction) -> Self {
        let open = || socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        let socket = namespace.run(open).expect("the namespace").expect("a packet socket");
        sockopt::set_socket_recv_buffer_size_force(&socket, ROOM).expect("SO_RCVBUFFORCE");
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PAUSE)).expect("SO_RCVTIMEO");
        take_only(&socket, direction);
        let index = namespace.run(|| rustix::net::netdevice::name_to_index(&socket, device));
        bind(&socket, index.expect("the namespace").expect("a device"));
        let done = Arc::new(AtomicBool::new(false));
        let asked = done.clone();
        Self { done, thread: std::thread::spawn(move || watch(&socket, &asked)) }
    }

    fn end(self) -> (Seen, u32) {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch")
    }
}

fn watch(socket: &OwnedFd, done: &AtomicBool) -> (Seen, u32) {
    let mut seen = Seen::new();
    let mut bytes = [0; SNAP];
    loop {
        // Asked before the read: what passed before the end is read.
        let last = done.load(Ordering::Relaxed);
        match recv(socket, &mut bytes[..], RecvFlags::TRUNC) {
            Ok((_, length)) => note(&mut seen, &bytes[..length.min(SNAP)], length),
            Err(_) if last => break,
            Err(_) => {}
        }
    }
    (seen, missed(socket))
}

/// An IP packet of `length` bytes, of which these are the first; or a tunnel's datagram with one inside.
fn note(seen: &mut Seen, bytes: &[u8], length: usize) {
    let Some(packet) = Packet::of_ip(bytes) else { return };
    let packet = if packet.protocol == UDP { packet.inner() } else { Some(packet) };
    let Some(packet) = packet.filter(|packet| packet.protocol == TCP) else { return };
    let Some(number) = begins_at(&packet.transport, length - bytes.len()) else { return };
    let Packet { source, source_port, destination, destination_port, .. } = packet;
    seen.entry((source, source_port, destination, destination_port)).or_default().push(number);
}

/// The sequence number of a segment with payload, of which `cut_off` bytes were not captured.
fn begins_at(tcp: &[u8], cut_off: usize) -> Option<u32> {
    let header = usize::from(*tcp.get(12)? >> 4) * 4;
    let number = u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?);
    (tcp.len() + cut_off > header).then_some(number)
}

/// Before a frame is cloned, not after.
fn take_only(socket: &OwnedFd, direction: Direction) {
    match direction {
        Direction::Arriving => set_option(socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32),
        Direction::Leaving => set_option(
            socket,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            &libc::sock_fprog { len: LEAVING.len() as u16, filter: LEAVING.as_ptr().cast_mut() },
        ),
    }
}

/// Everything of a frame with `pkt_type == PACKET_OUTGOING`, nothing of any other (linux/filter.h).
const LEAVING: [libc::sock_filter; 4] = [
    instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, [0, 0], (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, [0, 1], libc::PACKET_OUTGOING as u32),
    instruction(libc::BPF_RET | libc::BPF_K, [0, 0], u32::MAX),
    instruction(libc::BPF_RET | libc::BPF_K, [0, 0], 0),
];

const fn instruction(code: u32, [jt, jf]: [u8; 2], k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn set_option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) {
    let length = size_of_val(value) as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: `value` has `length` readable bytes; a filter's pointer is to a static array with the length beside it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, length) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

pub(super) fn bind(socket: &OwnedFd, index: u32) {
    // SAFETY: integers only, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: address has `length` readable bytes.
    let result = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// `tp_drops`: what found no room.
fn missed(socket: &OwnedFd) -> u32 {
    // SAFETY: integers only, for which all zeroes is a value.
    let mut statistics: libc::tpacket_stats = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&statistics) as libc::socklen_t;
    let (fd, value) = (socket.as_raw_fd(), std::ptr::from_mut(&mut statistics).cast());
    // SAFETY: `value` has `length` writable bytes.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, value, &mut length) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    statistics.tp_drops
}
