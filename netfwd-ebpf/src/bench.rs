//! What the benchmark measures the shipped program against, nothing at all and the kernel's checksum helper, and what a test
//! puts in front of it.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

#[allow(dead_code, reason = "the shipped program uses the rest")]
mod cursor;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::XdpContext;
use netfwd_common::cursor::Cursor as _;

use cursor::Packet;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The price of running any program.
#[xdp(frags)]
pub fn empty(_: XdpContext) -> u32 {
    XDP_PASS
}

/// Sums the packet with `bpf_csum_diff`. The verifier wants constant lengths, and the helper at most 512 bytes.
#[xdp(frags)]
pub fn csum_diff(ctx: XdpContext) -> u32 {
    let end = ctx.data_end();
    let mut at = ctx.data();
    let mut sum = 0;
    for size in [512, 512, 256, 128, 64, 32, 16, 8, 4] {
        if at + size > end {
            continue;
        }
        // SAFETY: `size` bytes at `at` lie before the end of the packet, as just compared.
        sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, at as *mut u32, size as u32, sum as u32) };
        at += size;
    }
    // The result must be used.
    if sum < 0 { XDP_DROP } else { XDP_PASS }
}

/// The shipped program's payload loop alone, over the whole packet.
#[xdp(frags)]
pub fn sum(ctx: XdpContext) -> u32 {
    let packet = Packet::new(&ctx);
    match packet.sum(packet.len()) {
        Some(sum) if sum.is_valid() => XDP_DROP,
        _ => XDP_PASS,
    }
}

/// The program that [`cramped`] leads to.
#[map]
static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Bytes that [`cramped`] moves a packet by: of the 256 in front of it the kernel keeps 40 for its `xdp_frame`, and the rest is
/// then too little for a record.
const MOVED: usize = 208;
/// Most bytes of a packet that can be moved.
const MOVABLE: usize = 512;

/// Moves the packet to the start of its buffer and lets [`NEXT`] have it, as a driver would that leaves no room in front.
#[xdp(frags)]
pub fn cramped(ctx: XdpContext) -> u32 {
    // SAFETY: the context is the kernel's; the packet pointers are loaded below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(MOVED as i32)) } != 0 {
        return XDP_ABORTED;
    }
    let (start, end) = (ctx.data(), ctx.data_end());
    for at in (0..MOVABLE).step_by(4) {
        let from = start + at + MOVED;
        if from + 4 > end {
            break;
        }
        // SAFETY: the bytes lie before the end of the packet, as just compared. Volatile, or the loop becomes a `memmove`.
        let word = unsafe { (from as *const u32).read_volatile() };
        // SAFETY: they lie in front of those.
        unsafe { ((start + at) as *mut u32).write_volatile(word) };
    }
    // SAFETY: the context is the kernel's; no packet pointer is used afterwards.
    unsafe { bpf_xdp_adjust_tail(ctx.ctx, -(MOVED as i32)) };
    // SAFETY: the other program gets the context as it would from the kernel.
    let _ = unsafe { NEXT.tail_call(&ctx, 0) };
    XDP_ABORTED
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
