//! Which of a device's queues the kernel puts a packet into: always the same one for all packets of a flow.
//!
//! Left to itself, the driver sends a flow to the queue that last wrote its other direction, and to one chosen by hash as long as
//! there was none or for three seconds was none (`tun_automq_select_queue`, `tun_flow_update`, drivers/net/tun.c). So a flow
//! moves when its first answer comes, while the old queue still holds packets, and the worker of the new one overtakes.
//! A program of ours (`TUNSETSTEERINGEBPF`, since Linux 4.16) asks the packet alone. It also saves the driver a hash for each
//! frame written.
//!
//! - The queue follows from addresses, and from ports where every packet has them: fragments and other protocols than TCP and
//!   UDP go by their addresses, and what is no IP goes to the first queue.
//! - The program belongs to the device and goes with it.
//!
//! Deliberately absent: both directions of a flow on one worker, which the driver's way gave. They share nothing that would
//! make it worth a flow's order.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `BPF_PROG_LOAD` and `BPF_PROG_TYPE_SOCKET_FILTER` (linux/bpf.h).
const PROG_LOAD: libc::c_int = 5;
const SOCKET_FILTER: u64 = 1;

/// Has the kernel choose the queues of a device by flow; `queue` is any of them.
pub(super) fn attach(queue: BorrowedFd<'_>) -> io::Result<()> {
    let program = load(&program::code())?;
    let descriptor: libc::c_int = program.as_raw_fd();
    // SAFETY: TUNSETSTEERINGEBPF reads one int behind the pointer, which is a live descriptor.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const descriptor) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn load(code: &[u64]) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    // `union bpf_attr`: type and number of instructions, where they are, the license, and no log.
    let attributes = [
        SOCKET_FILTER | (code.len() as u64) << 32,
        code.as_ptr().expose_provenance() as u64,
        license.as_ptr().expose_provenance() as u64,
        0,
        0,
    ];
    // SAFETY: the attributes are as long as said, and what they point to outlives the call, which only reads it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, attributes.as_ptr(), size_of_val(&attributes)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(result as libc::c_int) })
}

/// The program. The eBPF object is not its place: a gateway on sockets alone loads none.
mod program {
    /// Offsets from here on count from the IP header, with Ethernet in front of it or not (`SKF_NET_OFF`, linux/filter.h).
    const IP: i32 = -0x10_0000;
    /// Odd, from MurmurHash2: each word multiplies what the ones before have left.
    const FACTOR: i32 = 0x5bd1_e995;
    const TCP: i32 = 6;
    const UDP: i32 = 17;

    /// What a packet load leaves, and at the end the result.
    const R0: u64 = 0;
    /// The packet, on entry.
    const R1: u64 = 1;
    /// The packet, where loads expect it; they keep only registers from here on.
    const R6: u64 = 6;
    /// Length of the IP header.
    const LENGTH: u64 = 7;
    /// The hash so far.
    const HASH: u64 = 8;

    /// `struct bpf_insn`.
    const fn instruction(code: u64, destination: u64, source: u64, jump: u64, immediate: i32) -> u64 {
        code | destination << 8 | source << 12 | jump << 16 | (immediate as u32 as u64) << 32
    }

    const fn set(register: u64, value: i32) -> u64 {
        instruction(0xb7, register, 0, 0, value)
    }

    const fn copy(register: u64, from: u64) -> u64 {
        instruction(0xbf, register, from, 0, 0)
    }

    const fn add(register: u64, other: u64) -> u64 {
        instruction(0x0f, register, other, 0, 0)
    }

    const fn multiply(register: u64, by: i32) -> u64 {
        instruction(0x27, register, 0, 0, by)
    }

    const fn and(register: u64, mask: i32) -> u64 {
        instruction(0x57, register, 0, 0, mask)
    }

    const fn shift_left(register: u64, bits: i32) -> u64 {
        instruction(0x67, register, 0, 0, bits)
    }

    const fn shift_right(register: u64, bits: i32) -> u64 {
        instruction(0x77, register, 0, 0, bits)
    }

    /// Big-endian words, halves and bytes of the packet into [`R0`]; a packet that is too short ends the program with 0.
    const fn word(offset: i32) -> u64 {
        instruction(0x20, 0, 0, 0, offset)
    }

    const fn half(offset: i32) -> u64 {
        instruction(0x28, 0, 0, 0, offset)
    }

    const fn byte(offset: i32) -> u64 {
        instruction(0x30, 0, 0, 0, offset)
    }

    const fn word_behind(register: u64, offset: i32) -> u64 {
        instruction(0x40, 0, register, 0, offset)
    }

    const fn jump(over: u64) -> u64 {
        instruction(0x05, 0, 0, over, 0)
    }

    const fn if_equal(value: i32, over: u64) -> u64 {
        instruction(0x15, R0, 0, over, value)
    }

    const fn if_not_equal(value: i32, over: u64) -> u64 {
        instruction(0x55, R0, 0, over, value)
    }

    const fn if_any_of(mask: i32, over: u64) -> u64 {
        instruction(0x45, R0, 0, over, mask)
    }

    const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);
    /// What the last load has left goes into the hash.
    const MIX: [u64; 2] = [add(HASH, R0), multiply(HASH, FACTOR)];

    /// Where jumps go is told by the lengths of the parts between.
    pub(super) fn code() -> Vec<u64> {
        let finish = [copy(R0, HASH), shift_right(R0, 32), EXIT];
        let ports = [&[word_behind(LENGTH, IP)], &MIX[..]].concat();
        let v6 = v6(ports.len() as u64);
        let v4 = v4(v6.len() as u64, ports.len() as u64);
        let begin = [
            copy(R6, R1),
            set(HASH, 0),
            byte(IP),
            copy(LENGTH, R0),
            shift_right(R0, 4),
            if_equal(4, 3),
            if_equal(6, 2 + v4.len() as u64),
            set(R0, 0),
            EXIT,
        ];
        [&begin[..], &v4, &v6, &ports, &finish].concat()
    }

    /// Source, destination, and on to the ports, or past them where it is a fragment or has none.
    fn v4(to_ports: u64, ports: u64) -> Vec<u64> {
        let length = [and(LENGTH, 15), shift_left(LENGTH, 2)];
        let decide = [
            half(IP + 6),
            if_any_of(0x3fff, 4 + to_ports + ports),
            byte(IP + 9),
            if_equal(TCP, 2 + to_ports),
            if_equal(UDP, 1 + to_ports),
            jump(to_ports + ports),
        ];
        [&length[..], &words(IP + 12, 2), &decide].concat()
    }

    /// The same; who is behind an extension header, the fragment header among them, has no ports here.
    fn v6(ports: u64) -> Vec<u64> {
        let decide = [byte(IP + 6), if_equal(TCP, 1), if_not_equal(UDP, ports)];
        [&[set(LENGTH, 40)], &words(IP + 8, 8)[..], &decide].concat()
    }

    /// So many words of the header go into the hash.
    fn words(offset: i32, count: i32) -> Vec<u64> {
        (0..count).flat_map(|index| [[word(offset + 4 * index)].as_slice(), &MIX].concat()).collect()
    }
}
