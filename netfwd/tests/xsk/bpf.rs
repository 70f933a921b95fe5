//! The least XDP program that feeds an AF_XDP socket, through bpf(2) itself: the test stands on the kernel's interface
//! alone, not on the loader that the daemon uses.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_PROG_LOAD: u32 = 5;
const BPF_LINK_CREATE: u32 = 28;

const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The record that the program writes before each packet.
pub const RECORD: [u8; 16] = *b"netfwd xsk test!";

/// A program that redirects everything to the XSKMAP, attached to an interface until dropped.
pub struct Redirect {
    map: OwnedFd,
    _link: OwnedFd,
}

impl Redirect {
    /// Loads the program and attaches it in native mode. With `metadata` it puts [`RECORD`] before each packet; with
    /// `frags` it takes packets in several buffers.
    pub fn attach(ifindex: u32, metadata: bool, frags: bool) -> io::Result<Self> {
        let map = bpf(BPF_MAP_CREATE, &[BPF_MAP_TYPE_XSKMAP, 4, 4, 4])?;
        let program = load(&map, metadata, frags)?;
        let link = bpf(BPF_LINK_CREATE, &[program.as_raw_fd() as u32, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE])?;
        Ok(Self { map, _link: link })
    }

    /// Sends a queue's packets to a socket.
    pub fn insert(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd() as u32;
        let [key, value] = [&queue, &value].map(|place| std::ptr::from_ref(place).expose_provenance() as u64);
        let attributes = [u64::from(self.map.as_raw_fd() as u32), key, value, 0];
        bpf_call(BPF_MAP_UPDATE_ELEM, &attributes).map(|_| ())
    }
}

/// `struct bpf_insn`.
const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (destination as u64) << 8
        | (source as u64) << 12
        | ((offset as u16) as u64) << 16
        | ((immediate as u32) as u64) << 32
}

/// Instructions by their names in the kernel's documentation.
mod op {
    pub const MOV64_REG: u8 = 0xbf;
    pub const MOV64_IMM: u8 = 0xb7;
    pub const ADD64_IMM: u8 = 0x07;
    pub const LDX_W: u8 = 0x61;
    pub const STX_DW: u8 = 0x7b;
    pub const LD_IMM64: u8 = 0x18;
    pub const JNE_IMM: u8 = 0x55;
    pub const JGT_REG: u8 = 0x2d;
    pub const CALL: u8 = 0x85;
    pub const EXIT: u8 = 0x95;
}

fn program(map: &OwnedFd, metadata: bool) -> Vec<u64> {
    const PSEUDO_MAP_FD: u8 = 1;
    const REDIRECT_MAP: i32 = 51;
    const ADJUST_META: i32 = 54;
    const XDP_PASS: i32 = 2;
    let load_immediate = |register: u8, half: &[u8]| {
        let (low, high) = half.split_at(4);
        let [low, high] = [low, high].map(|bytes| i32::from_ne_bytes(bytes.try_into().unwrap()));
        [instruction(op::LD_IMM64, register, 0, 0, low), instruction(0, 0, 0, 0, high)]
    };
    let mut code = vec![instruction(op::MOV64_REG, 6, 1, 0, 0)];
    if metadata {
        code.push(instruction(op::MOV64_IMM, 2, 0, 0, -(RECORD.len() as i32)));
        code.push(instruction(op::CALL, 0, 0, 0, ADJUST_META));
        code.push(instruction(op::JNE_IMM, 0, 0, 11, 0));
        // r2 = data_meta, r3 = data; the verifier wants to see that the record fits between them.
        code.push(instruction(op::LDX_W, 2, 6, 8, 0));
        code.push(instruction(op::LDX_W, 3, 6, 0, 0));
        code.push(instruction(op::MOV64_REG, 4, 2, 0, 0));
        code.push(instruction(op::ADD64_IMM, 4, 0, 0, RECORD.len() as i32));
        code.push(instruction(op::JGT_REG, 4, 3, 6, 0));
        for (half, offset) in RECORD.chunks(8).zip([0, 8]) {
            code.extend(load_immediate(5, half));
            code.push(instruction(op::STX_DW, 2, 5, offset, 0));
        }
    }
    code.push(instruction(op::LDX_W, 2, 6, 16, 0));
    code.push(instruction(op::LD_IMM64, 1, PSEUDO_MAP_FD, 0, map.as_raw_fd()));
    code.push(instruction(0, 0, 0, 0, 0));
    code.push(instruction(op::MOV64_IMM, 3, 0, 0, XDP_PASS));
    code.push(instruction(op::CALL, 0, 0, 0, REDIRECT_MAP));
    code.push(instruction(op::EXIT, 0, 0, 0, 0));
    code
}

fn load(map: &OwnedFd, metadata: bool, frags: bool) -> io::Result<OwnedFd> {
    const BPF_F_XDP_HAS_FRAGS: u64 = 1 << 5;
    let code = program(map, metadata);
    let mut log = vec![0u8; 64 << 10];
    let license = c"Dual MIT/GPL";
    let attributes = [
        u64::from(BPF_PROG_TYPE_XDP) | (code.len() as u64) << 32,
        code.as_ptr().expose_provenance() as u64,
        license.as_ptr().expose_provenance() as u64,
        1 | (log.len() as u64) << 32,
        log.as_mut_ptr().expose_provenance() as u64,
        // kern_version, prog_flags
        if frags { BPF_F_XDP_HAS_FRAGS << 32 } else { 0 },
        0,
        0,
        // prog_ifindex, expected_attach_type
        u64::from(BPF_XDP) << 32,
    ];
    bpf_call(BPF_PROG_LOAD, &attributes).map(owned).map_err(|error| {
        let text = log.split(|&byte| byte == 0).next().unwrap_or_default();
        io::Error::new(error.kind(), format!("{error}: {}", String::from_utf8_lossy(text)))
    })
}

/// A command whose attributes are 32-bit words and whose result is a descriptor.
fn bpf(command: u32, words: &[u32]) -> io::Result<OwnedFd> {
    let attributes: Vec<u64> =
        words.chunks(2).map(|pair| u64::from(pair[0]) | pair.get(1).map_or(0, |&high| u64::from(high) << 32)).collect();
    bpf_call(command, &attributes).map(owned)
}

fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: only called with what a bpf command has just made.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn bpf_call(command: u32, attributes: &[u64]) -> io::Result<i32> {
    // SAFETY: the attributes are as long as said, and the memory they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
