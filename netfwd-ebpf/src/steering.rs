//! Which queue of a TUN or TAP device a packet goes to (`TUNSETSTEERINGEBPF`): one program for each kind of device.
//!
//! What a flow is, is told by `netfwd_common::steering`; here are only its BPF surroundings. Programs of this type have no packet
//! pointers: each load is a call, which also finds what does not lie in the buffer's linear part.
//!
//! An object of its own, without maps, since a gateway on sockets alone has no use for the other one.
#![no_std]
#![no_main]

use aya_ebpf::macros::socket_filter;
use aya_ebpf::programs::SkBuffContext;
use netfwd_common::checksum::Sum;
use netfwd_common::cursor::Cursor;
use netfwd_common::steering::{flow_of_frame, flow_of_packet};

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// For devices whose packets begin with the IP header.
#[socket_filter]
pub fn tun(ctx: SkBuffContext) -> i64 {
    flow_of_packet(Buffer { ctx: &ctx, position: 0 }).into()
}

/// For devices whose packets begin with the Ethernet header.
#[socket_filter]
pub fn tap(ctx: SkBuffContext) -> i64 {
    flow_of_frame(Buffer { ctx: &ctx, position: 0 }).into()
}

/// A position in a socket buffer.
#[derive(Clone, Copy)]
struct Buffer<'a> {
    ctx: &'a SkBuffContext,
    /// Bytes from its start.
    position: usize,
}

impl Cursor for Buffer<'_> {
    #[inline(always)]
    fn len(self) -> usize {
        (self.ctx.len() as usize).saturating_sub(self.position)
    }

    #[inline(always)]
    fn skip(self, len: usize) -> Self {
        Self { position: self.position + len, ..self }
    }

    #[inline(always)]
    fn load_u16(self, offset: usize) -> Option<u16> {
        self.ctx.load(self.position + offset).ok().map(u16::from_be)
    }

    #[inline(always)]
    fn load_words<const N: usize>(self, offset: usize) -> Option<[u32; N]> {
        self.ctx.load(self.position + offset).ok()
    }

    /// Nothing is summed here.
    #[inline(always)]
    fn sum(self, _: usize) -> Option<Sum> {
        None
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
