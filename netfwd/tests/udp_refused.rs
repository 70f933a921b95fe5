//! A kernel that refuses `UDP_SEGMENT` on some routes with EIO: before Linux 6.11 where the interface has no checksum
//! offload, and still where IPsec lies in between.
//!
//! Kernels at hand may do neither, so this program has a `sendmsg` of its own in front of libc's: it answers as such a kernel
//! does to runs for chosen remotes, and lets everything else through. (On an old kernel,
//! `runs_pass_an_interface_without_checksum_offload` in `udp_io.rs` meets the real thing.)

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use netfwd::datapath::seam::{DatagramSink, OuterChecksum, Transmit};
use netfwd::io::refusals::RUNS_ALONE;
use netfwd::io::udp_send::{SendPool, UdpSender};

/// The remote that gets no runs.
static REFUSED: AtomicU32 = AtomicU32::new(0);
/// Runs that were refused.
static REFUSALS: AtomicU64 = AtomicU64::new(0);
/// The tests share both.
static TURN: Mutex<()> = Mutex::new(());

/// libc's `sendmsg`, for all of this program.
///
/// # Safety
///
/// As for libc's: `message` describes live memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: i32, message: *const libc::msghdr, flags: i32) -> isize {
    // SAFETY: the caller's message is live.
    if is_refused(unsafe { &*message }) {
        REFUSALS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: no arguments.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: the thread's own.
        unsafe { *errno = libc::EIO };
        return -1;
    }
    // SAFETY: the arguments are passed on as they came.
    unsafe { libc::syscall(libc::SYS_sendmsg, fd, message, flags) as isize }
}

/// Whether `message` is a run for the remote that gets none.
fn is_refused(message: &libc::msghdr) -> bool {
    let name = message.msg_name.cast::<libc::sockaddr_in>();
    // SAFETY: whoever sends here names an IPv4 or IPv6 address, and the latter's structure is longer.
    let remote = unsafe { (*name).sin_addr.s_addr };
    // SAFETY: a live header.
    let control = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null, or the first of the control messages that the header names.
    let control = unsafe { control.as_ref() };
    let is_run = control.is_some_and(|control| (control.cmsg_level, control.cmsg_type) == RUN);
    is_run && remote == REFUSED.load(Ordering::Relaxed)
}

const RUN: (i32, i32) = (libc::SOL_UDP, libc::UDP_SEGMENT);
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 81));
const SIZE: usize = 100;

/// A sender, and a receiver on an address of its own.
struct Lab {
    sender: UdpSender,
    pool: Arc<SendPool>,
}

impl Lab {
    fn new() -> Self {
        let pool = Arc::new(SendPool::open(NEAR, 4).expect("ports"));
        Self { sender: UdpSender::new(vec![pool.clone()]), pool }
    }

    /// Sends a run of three datagrams, the last one short, and expects them as they are.
    fn send_run(&mut self, receiver: &UdpSocket) {
        let to = receiver.local_addr().expect("bound");
        let bytes: Vec<u8> = (0..2 * SIZE as u8 + 50).collect();
        let slices: Vec<_> = bytes.chunks(70).map(IoSlice::new).collect();
        let checksum = OuterChecksum::Wanted { payload_sum: None };
        let (local, remote, port) = (NEAR, to.ip(), to.port());
        let (source_port, tos, segment_size, datagrams) = (50_000, 0, SIZE, 3);
        let slices = &slices[..];
        let run =
            Transmit { local, remote, port, scope: 0, source_port, tos, segment_size, datagrams, slices, checksum };
        self.sender.send(&run).expect("sent");
        for expected in bytes.chunks(SIZE) {
            let mut buffer = [0; 2 * SIZE];
            let len = receiver.recv(&mut buffer).expect("a datagram");
            assert_eq!(&buffer[..len], expected);
        }
    }
}

fn receiver(last: u8) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 0)).expect("a port");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    socket
}

/// Refuses runs to `remote`; how many it refused during `action`.
fn refusing(remote: &UdpSocket, action: impl FnOnce()) -> u64 {
    let IpAddr::V4(address) = remote.local_addr().expect("bound").ip() else { panic!("IPv4") };
    REFUSED.store(u32::from_ne_bytes(address.octets()), Ordering::Relaxed);
    let before = REFUSALS.load(Ordering::Relaxed);
    action();
    REFUSED.store(0, Ordering::Relaxed);
    REFUSALS.load(Ordering::Relaxed) - before
}

#[test]
fn a_refused_run_arrives_one_by_one_and_its_remote_alone_gets_no_more_runs() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (mut lab, refused, other) = (Lab::new(), receiver(82), receiver(83));
    let refusals = refusing(&refused, || (0..20).for_each(|_| lab.send_run(&refused)));
    assert_eq!(refusals, 1, "one attempt, then datagrams one by one");
    assert!(!lab.pool.segmentation(refused.local_addr().expect("bound").ip()));
    lab.send_run(&other);
    assert!(lab.pool.segmentation(other.local_addr().expect("bound").ip()));
}

#[test]
fn a_remote_that_takes_runs_again_gets_them_again() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (mut lab, remote) = (Lab::new(), receiver(84));
    assert_eq!(refusing(&remote, || lab.send_run(&remote)), 1);
    // Each of these would be refused, were it tried as a run.
    assert_eq!(refusing(&remote, || (0..RUNS_ALONE).for_each(|_| lab.send_run(&remote))), 0);
    assert!(lab.pool.segmentation(remote.local_addr().expect("bound").ip()));
    assert_eq!(refusing(&remote, || lab.send_run(&remote)), 1, "tried again, and refused again");
    (0..RUNS_ALONE).for_each(|_| lab.send_run(&remote));
    lab.send_run(&remote);
    assert!(lab.pool.segmentation(remote.local_addr().expect("bound").ip()), "the route has changed: runs again");
}
