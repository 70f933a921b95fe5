//! What the benchmark measures the shipped program against: nothing at all, and the kernel's checksum helper.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

#[allow(dead_code, reason = "the shipped program uses the rest")]
mod cursor;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::generated::bpf_csum_diff;
use aya_ebpf::macros::xdp;
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

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
