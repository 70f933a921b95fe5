//! Packet pointers: the only place where the program touches packet memory.
//!
//! The verifier wants each pointer compared with `data_end` before use, with offsets whose upper bound it can see. Loads are
//! of constant size; the one loop advances by constant blocks, checked one by one.
//!
//! Each distinct path into that loop would be verified on its own (VLAN tags × families × protocols), so the loop is a global
//! function ([`payload_sum`]): those are verified once, by themselves.

use core::arch::asm;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_meta, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use netfwd_common::abi::Metadata;
use netfwd_common::checksum::Sum;
use netfwd_common::cursor::Cursor;
use zerocopy::transmute;

/// Bytes of a word of the payload loop.
const WORD: usize = 7;
/// Bytes per turn of the payload loop: eight words of each lane.
const BLOCK: usize = 16 * WORD;
/// Most turns: 256 words of 56 bits per lane, whose sum is below 2^64. That is 3,584 bytes, the linear part of a page.
const MAX_BLOCKS: usize = 32;
/// Bounds of positions and lengths, as masks that the verifier understands.
const POSITION_MASK: usize = 0x3fff;

/// Defines a load as the one instruction that it is. Packet headers are rarely aligned, which the verifier allows in packet
/// memory; a Rust load of an unaligned word would be put together from bytes, an aligned one would be a lie.
macro_rules! load {
    ($name:ident, $type:literal, $class:ident, $value:ty) => {
        /// Every caller has compared the bytes at `from + AT` with the end of the packet, or the verifier refuses the program.
        #[inline(always)]
        fn $name<const AT: usize>(from: *const u8) -> $value {
            let value: $value;
            // SAFETY: a load that the verifier has not seen checked does not load: it keeps the whole program out.
            unsafe {
                asm!(
                    concat!("{value} = *(", $type, " *)({from} + {at})"),
                    value = out($class) value,
                    from = in(reg) from,
                    at = const AT,
                    options(pure, readonly, nostack),
                )
            };
            value
        }
    };
}

load!(load32, "u32", wreg, u32);
load!(load16, "u16", reg, u64);
load!(load8, "u8", reg, u64);

/// Does something for each word of a block whose number is below `$count`, a constant.
macro_rules! each_word {
    ($count:expr, $from:expr, |$word:ident, $value:ident| $body:expr) => {
        each_word!(@ $count, $from, $word, $value, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $count:expr, $from:expr, $word:ident, $value:ident, $body:expr, $($number:literal)*) => {
        $(if $number < $count {
            const $word: usize = $number;
            let $value = load32::<{ 4 * $number }>($from);
            $body
        })*
    };
}

/// A position in the linear part of the packet at hand.
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    ctx: &'a XdpContext,
    /// Bytes from the start of the packet.
    position: usize,
    here: *const u8,
    end: *const u8,
}

impl<'a> Packet<'a> {
    /// The start of the packet.
    #[inline(always)]
    pub fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx, position: 0, here: ctx.data() as *const u8, end: ctx.data_end() as *const u8 }
    }

    /// The address of `len` readable bytes, `offset` from here.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<*const u8> {
        let start = self.here.wrapping_add(offset);
        (start.wrapping_add(len) <= self.end).then_some(start)
    }

    /// The sum of `len < 128` bytes: pieces of 64, 32, 16, 8, 4, 2 and 1 bytes.
    ///
    /// Each piece's place is computed from `len` alone, not from what was taken before, and through a barrier, so that
    /// the verifier learns nothing from the branches and the paths meet again behind each piece.
    #[inline(always)]
    fn tail(&self, len: usize) -> Option<u64> {
        let mut sum = 0;
        if barrier(len) & 64 != 0 {
            sum += words::<16>(self.at(0, 64)?);
        }
        if barrier(len) & 32 != 0 {
            sum += words::<8>(self.at(barrier(len) & 64, 32)?);
        }
        if barrier(len) & 16 != 0 {
            sum += words::<4>(self.at(barrier(len) & 96, 16)?);
        }
        if barrier(len) & 8 != 0 {
            sum += words::<2>(self.at(barrier(len) & 112, 8)?);
        }
        if barrier(len) & 4 != 0 {
            sum += words::<1>(self.at(barrier(len) & 120, 4)?);
        }
        if barrier(len) & 2 != 0 {
            sum += load16::<0>(self.at(barrier(len) & 124, 2)?);
        }
        if barrier(len) & 1 != 0 {
            sum += load8::<0>(self.at(barrier(len) & 126, 1)?);
        }
        Some(sum)
    }
}

impl Cursor for Packet<'_> {
    #[inline(always)]
    fn len(self) -> usize {
        distance(self.here as usize, self.end as usize)
    }

    #[inline(always)]
    fn total_len(self) -> usize {
        // SAFETY: the context is the kernel's, for the whole run of the program.
        let total = unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) };
        (total as usize).saturating_sub(self.position)
    }

    #[inline(always)]
    fn skip(self, len: usize) -> Self {
        let position = barrier(self.position + len) & POSITION_MASK;
        // Loaded anew, the pointers bring no bounds along that would tell the paths apart.
        let (start, end) = bounds(self.ctx);
        Self { position, here: start.wrapping_add(position), end, ..self }
    }

    #[inline(always)]
    fn load_u16(self, offset: usize) -> Option<u16> {
        Some(u16::from_be(load16::<0>(self.at(offset, 2)?) as u16))
    }

    #[inline(always)]
    fn load_words<const N: usize>(self, offset: usize) -> Option<[u32; N]> {
        let start = self.at(offset, 4 * N)?;
        let mut words = [0; N];
        each_word!(N, start, |WORD, value| words[WORD] = value);
        Some(words)
    }

    #[inline(always)]
    fn sum(self, len: usize) -> Option<Sum> {
        match payload_sum(self.ctx.ctx, self.position as u64, len as u64) {
            UNREADABLE => None,
            sum => Some(Sum::from_raw(sum)),
        }
    }
}

/// What [`payload_sum`] returns instead of a sum.
const UNREADABLE: u64 = u64::MAX;

/// The sum of `len` bytes at `position`. A global function: the verifier checks it once, for all arguments, and not once
/// for every way that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn payload_sum(ctx: *mut xdp_md, position: u64, len: u64) -> u64 {
    let ctx = XdpContext::new(ctx);
    sum_from(&ctx, position as usize & POSITION_MASK, len as usize).unwrap_or(UNREADABLE)
}

#[inline(always)]
fn sum_from(ctx: &XdpContext, position: usize, len: usize) -> Option<u64> {
    // At least one byte is left to the tail: the last word's load reads it.
    let blocks = len.saturating_sub(1) / BLOCK;
    if blocks > MAX_BLOCKS {
        return None;
    }
    let (start, end) = bounds(ctx);
    let from = Packet { ctx, position, here: start.wrapping_add(position), end };
    let mut at = from.here;
    let mut lanes = Lanes { even: 0, odd: 0 };
    let first = if blocks == 0 { 0 } else { load8::<0>(from.at(0, 1)?) };
    // Through the barrier, or the compiler unrolls the loop.
    for block in 0..barrier(MAX_BLOCKS) {
        if block >= blocks {
            break;
        }
        if at.wrapping_add(BLOCK + 1) > end {
            return None;
        }
        lanes.add_block(at);
        at = at.wrapping_add(BLOCK);
    }
    let rest = Packet { here: at, ..from };
    let next = if blocks == 0 { 0 } else { load8::<0>(rest.at(0, 1)?) };
    Some(lanes.total(first, next) + rest.tail(len - blocks * BLOCK)?)
}

/// Start and end of the packet, really loaded again.
#[inline(always)]
fn bounds(ctx: &XdpContext) -> (*const u8, *const u8) {
    // SAFETY: the context is valid for the whole run of the program.
    let start = unsafe { (&raw const (*ctx.ctx).data).read_volatile() };
    // SAFETY: as above.
    let end = unsafe { (&raw const (*ctx.ctx).data_end).read_volatile() };
    (start as *const u8, end as *const u8)
}

/// Adds `N` 32-bit words whose bounds have been checked.
#[inline(always)]
fn words<const N: usize>(start: *const u8) -> u64 {
    let mut words = [0; N];
    each_word!(N, start, |WORD, value| words[WORD] = value);
    words.into_iter().map(u64::from).sum()
}

/// The sum of the payload as 56-bit words, modulo 2^64, those at even and those at odd offsets apart.
///
/// BPF has no carry flag, so 64-bit words cannot simply be added up, and adding 32-bit words takes twice the instructions.
/// Here each instruction pair loads and adds eight bytes but advances by seven: the eighth is the next word's
/// first and counts too much, at 2^56. How much in all is known at the end: what one lane has in excess is 2^56 times the sum of
/// the other's first bytes, and those sums are, modulo 256, the lowest byte of the lanes themselves.
struct Lanes {
    even: u64,
    odd: u64,
}

impl Lanes {
    /// The sum of the bytes. `first` is the first of them, `next` the one behind the last.
    #[inline(always)]
    fn total(&self, first: u64, next: u64) -> u64 {
        let even = self.even.wrapping_sub(self.odd << 56);
        // Behind an odd word comes the even one of the next pair.
        let odd = self.odd.wrapping_sub(self.even.wrapping_sub(first).wrapping_add(next) << 56);
        // RFC 1071 §2(B): bytes moved by one count 2^8 times as much.
        halves(even) + (halves(odd) << 8)
    }

    /// Adds a block whose bounds, and the byte behind it, have been checked. In one piece, so that the registers suffice:
    /// with sixteen loads to order as it likes, the compiler spills to the stack.
    #[inline(always)]
    fn add_block(&mut self, from: *const u8) {
        // SAFETY: every caller has compared the block with the end of the packet, or the verifier refuses the program.
        unsafe {
            asm!(
                "{t} = *(u64 *)({from} + 0)",
                "{u} = *(u64 *)({from} + 7)",
                "{even} += {t}",
                "{odd} += {u}",
                "{t} = *(u64 *)({from} + 14)",
                "{u} = *(u64 *)({from} + 21)",
                "{even} += {t}",
                "{odd} += {u}",
                "{t} = *(u64 *)({from} + 28)",
                "{u} = *(u64 *)({from} + 35)",
                "{even} += {t}",
                "{odd} += {u}",
                "{t} = *(u64 *)({from} + 42)",
                "{u} = *(u64 *)({from} + 49)",
                "{even} += {t}",
                "{odd} += {u}",
                "{t} = *(u64 *)({from} + 56)",
                "{u} = *(u64 *)({from} + 63)",
                "{even} += {t}",
                "{odd} += {u}",
                "{t} = *(u64 *)({from} + 70)",
                "{u} = *(u64 *)({from} + 77)",
                "{even} += {t}",
                "{odd} += {u}",
                "{t} = *(u64 *)({from} + 84)",
                "{u} = *(u64 *)({from} + 91)",
                "{even} += {t}",
                "{odd} += {u}",
                "{t} = *(u64 *)({from} + 98)",
                "{u} = *(u64 *)({from} + 105)",
                "{even} += {t}",
                "{odd} += {u}",
                from = in(reg) from,
                even = inout(reg) self.even,
                odd = inout(reg) self.odd,
                t = out(reg) _,
                u = out(reg) _,
                options(pure, readonly, nostack),
            )
        }
    }
}

/// Both halves of a sum, added.
#[inline(always)]
fn halves(sum: u64) -> u64 {
    (sum >> 32) + (sum & 0xffff_ffff)
}

/// Puts the record right in front of the packet; false when the driver has no room for one.
///
/// The area is set to exactly one record, whatever was there: an earlier program's metadata, or ours on a repeated test run.
#[inline(always)]
pub fn write_metadata(ctx: &XdpContext, record: &Metadata) -> bool {
    let present = distance(ctx.metadata(), ctx.data());
    let delta = present.wrapping_sub(size_of::<Metadata>()) as i32;
    // SAFETY: the context is the kernel's; all packet pointers are loaded anew below.
    if delta != 0 && unsafe { bpf_xdp_adjust_meta(ctx.ctx, delta) } != 0 {
        return false;
    }
    let slot = ctx.metadata() as *mut Metadata;
    if slot.wrapping_add(1) as usize > ctx.data() {
        return false;
    }
    let words: [u64; 2] = transmute!(*record);
    let slot = slot.cast::<u64>();
    // SAFETY: the slot lies between the metadata's start and the packet, as just compared for the verifier; any alignment
    // will do for the instruction.
    unsafe { asm!("*(u64 *)({slot} + 0) = {value}", slot = in(reg) slot, value = in(reg) words[0], options(nostack)) };
    // SAFETY: as above.
    unsafe { asm!("*(u64 *)({slot} + 8) = {value}", slot = in(reg) slot, value = in(reg) words[1], options(nostack)) };
    true
}

/// Takes the record away again.
#[inline(always)]
pub fn remove_metadata(ctx: &XdpContext) {
    // SAFETY: the context is the kernel's; no packet pointer is used afterwards.
    unsafe { bpf_xdp_adjust_meta(ctx.ctx, size_of::<Metadata>() as i32) };
}

/// `to - from` of two packet pointers: as one instruction, which is all that the verifier allows between pointers.
#[inline(always)]
fn distance(from: usize, to: usize) -> usize {
    let distance;
    // SAFETY: register arithmetic only.
    unsafe {
        asm!("{to} -= {from}", to = inlateout(reg) to => distance, from = in(reg) from, options(pure, nomem, nostack))
    };
    distance
}

/// The same value, of which the compiler knows nothing any more. An instruction, since an empty one would share its
/// line information with its neighbour, which the kernel refuses.
#[inline(always)]
fn barrier(value: usize) -> usize {
    let copy;
    // SAFETY: register arithmetic only.
    unsafe { asm!("{copy} = {value}", copy = out(reg) copy, value = in(reg) value, options(pure, nomem, nostack)) };
    copy
}
