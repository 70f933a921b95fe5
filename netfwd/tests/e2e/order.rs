//! Whether TCP leaves the gateway in order: the judge stands where netfwd's part ends.
//!
//! A receiver's own count of early segments (`TCPOFOQueue`) also counts what its kernel drops or turns round by itself: a
//! socket's backlog that is full while its program has no CPU, the per-CPU queues behind a veth. So the frames are looked at as
//! netfwd has written them to its devices, superframes included, before anything else gets them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt};
use xtask::lab::Namespace;

use super::packets::{Packet, TCP};

/// Headers suffice.
const SNAP: usize = 192;
/// For all that a test sends, should the watcher get no CPU meanwhile.
const ROOM: usize = 256 << 20;
const PAUSE: Duration = Duration::from_millis(50);
/// Early segments that are described.
const DESCRIBED: usize = 20;

/// A watch on a device, on a thread of its own.
pub struct OrderWatch {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Order>,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Order {
    /// TCP frames that netfwd wrote.
    pub frames: u64,
    /// Those that began behind the end of what had been written of their flow: flow, expected and found sequence number.
    pub early: Vec<String>,
    /// Frames that the watch itself has missed.
    pub missed: u32,
    flows: HashMap<(IpAddr, u16, IpAddr, u16), u32>,
}

impl OrderWatch {
    /// Starts now, on what arrives on `device`.
    pub fn start(namespace: &Namespace, device: &str) -> Self {
        let open = || socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        let socket = namespace.run(open).expect("the namespace").expect("a packet socket");
        sockopt::set_socket_recv_buffer_size_force(&socket, ROOM).expect("SO_RCVBUFFORCE");
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PAUSE)).expect("SO_RCVTIMEO");
        ignore_outgoing(&socket);
        let index = namespace.run(|| rustix::net::netdevice::name_to_index(&socket, device));
        bind(&socket, index.expect("the namespace").expect("a device"));
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        Self { done, thread: std::thread::spawn(move || watch(&socket, &seen)) }
    }

    /// What was seen until now.
    pub fn end(self) -> Order {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch")
    }
}

fn watch(socket: &OwnedFd, done: &AtomicBool) -> Order {
    let mut order = Order::default();
    let mut bytes = [0; SNAP];
    loop {
        // Asked before the read: what was written before the end is read.
        let last = done.load(Ordering::Relaxed);
        match recv(socket, &mut bytes[..], RecvFlags::TRUNC) {
            Ok((_, length)) => order.note(&bytes[..length.min(SNAP)], length),
            Err(_) if last => break,
            Err(_) => {}
        }
    }
    order.missed = missed(socket);
    order
}

impl Order {
    /// An IP packet of `length` bytes, of which these are the first.
    fn note(&mut self, bytes: &[u8], length: usize) {
        let Some(packet) = Packet::of_ip(bytes).filter(|packet| packet.protocol == TCP) else { return };
        let Some((sequence, flags, payload)) = segment(&packet, length, bytes.len()) else { return };
        self.frames += 1;
        const FIN_SYN: u8 = 3;
        let end = sequence.wrapping_add(payload).wrapping_add((flags & FIN_SYN).count_ones());
        let Packet { source, source_port, destination, destination_port, .. } = packet;
        let next = self.flows.entry((source, source_port, destination, destination_port)).or_insert(sequence);
        let ahead = |a: u32, b: u32| (a.wrapping_sub(b) as i32) > 0;
        if ahead(sequence, *next) && payload > 0 && self.early.len() < DESCRIBED {
            let flow = format!("{source}:{source_port} > {destination}:{destination_port}");
            self.early.push(format!("{flow}: {sequence} ({payload} bytes) where {next} was next"));
        }
        if ahead(end, *next) {
            *next = end;
        }
    }
}

/// Sequence number, flags and payload length of a segment that was cut off.
fn segment(packet: &Packet, length: usize, captured: usize) -> Option<(u32, u8, u32)> {
    let tcp = &packet.transport;
    let sequence = u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?);
    let header = usize::from(*tcp.get(12)? >> 4) * 4;
    let network = captured - tcp.len();
    Some((sequence, *tcp.get(13)?, length.checked_sub(network + header)? as u32))
}

fn set_packet_option(socket: &OwnedFd, name: i32, value: i32) {
    let length = size_of_val(&value) as libc::socklen_t;
    let value = std::ptr::from_ref(&value).cast();
    // SAFETY: `value` has `length` readable bytes.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, name, value, length) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn ignore_outgoing(socket: &OwnedFd) {
    set_packet_option(socket, libc::PACKET_IGNORE_OUTGOING, 1);
}

fn bind(socket: &OwnedFd, index: u32) {
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
