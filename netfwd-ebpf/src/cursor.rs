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
/// Most bytes that are summed: 256 words of each parity, whose sum is below 2^64. It is more than the linear part of a page holds.
const MAX_LEN: usize = 512 * WORD;
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

load!(load64, "u64", reg, u64);
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
    if len == 0 {
        return Some(0);
    }
    if len > MAX_LEN {
        return None;
    }
    let (start, end) = bounds(ctx);
    let mut from = Packet { ctx, position, here: start.wrapping_add(position), end };
    let first = load8::<0>(from.at(0, 1)?);
    let mut lanes = Lanes::default();
    // Each piece leaves at least one byte: the last word's load reads it.
    let mut rest = barrier(len);
    while rest > 32 * WORD {
        lanes.add::<32>(&mut from)?;
        rest -= 32 * WORD;
    }
    if rest > 16 * WORD {
        lanes.add::<16>(&mut from)?;
        rest -= 16 * WORD;
    }
    if rest > 8 * WORD {
        lanes.add::<8>(&mut from)?;
        rest -= 8 * WORD;
    }
    if rest > 4 * WORD {
        lanes.add::<4>(&mut from)?;
        rest -= 4 * WORD;
    }
    if rest > 2 * WORD {
        lanes.add::<2>(&mut from)?;
        rest -= 2 * WORD;
    }
    let mut sum = lanes.total(first, load8::<0>(from.at(0, 1)?));
    if rest > 8 {
        sum += halves(load64::<0>(from.at(0, 8)?));
        rest -= 8;
    }
    // The last one to eight bytes are the upper ones of the eight that end the packet; in front of them lie headers.
    let last = Packet { here: start.wrapping_add(barrier(position + len - 8) & POSITION_MASK), ..from };
    Some(sum + halves(load64::<0>(last.at(0, 8)?) >> (64 - 8 * rest)))
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

/// The sum of the payload as 56-bit words, modulo 2^64, those at even and those at odd offsets apart.
///
/// BPF has no carry flag, so 64-bit words cannot simply be added up, and adding 32-bit words takes twice the instructions.
/// Here each instruction pair loads and adds eight bytes but advances by seven: the eighth is the next word's
/// first and counts too much, at 2^56. How much in all is known at the end: what one lane has in excess is 2^56 times the sum of
/// the other's first bytes, and those sums are, modulo 256, the lowest byte of the lanes themselves.
///
/// Two lanes of each parity, or each addition would wait for the one before.
#[derive(Default)]
struct Lanes {
    even: [u64; 2],
    odd: [u64; 2],
}

/// Adds as many pairs of words as `$count`, a constant, has, to the lanes in turn. Their bounds have been checked.
macro_rules! add_pairs {
    ($lanes:expr, $from:expr, $count:expr, $($pair:literal)*) => {
        $(if 2 * $pair < $count {
            $lanes.add_pair::<{ $pair % 2 }, { 2 * $pair * WORD }>($from);
        })*
    };
}

impl Lanes {
    /// Adds `COUNT` words, an even number, and steps over them; the byte behind them must be there too.
    #[inline(always)]
    fn add<const COUNT: usize>(&mut self, from: &mut Packet) -> Option<()> {
        let start = from.at(0, COUNT * WORD + 1)?;
        add_pairs!(self, start, COUNT, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        // Through the barrier, or the compiler counts backwards from the end, which the verifier forbids.
        from.here = barrier(start.wrapping_add(COUNT * WORD) as usize) as *const u8;
        Some(())
    }

    /// Adds an even word and the odd one behind it. In one piece, so that the registers suffice: with all loads to order as
    /// it likes, the compiler spills to the stack.
    #[inline(always)]
    fn add_pair<const LANE: usize, const AT: usize>(&mut self, from: *const u8) {
        // SAFETY: every caller has compared the words with the end of the packet, or the verifier refuses the program.
        unsafe {
            asm!(
                "{t} = *(u64 *)({from} + {even_at})",
                "{u} = *(u64 *)({from} + {odd_at})",
                "{even} += {t}",
                "{odd} += {u}",
                from = in(reg) from,
                even_at = const AT,
                odd_at = const AT + WORD,
                even = inout(reg) self.even[LANE],
                odd = inout(reg) self.odd[LANE],
                t = out(reg) _,
                u = out(reg) _,
                options(pure, readonly, nostack),
            )
        }
    }

    /// The sum of the bytes. `first` is the first of them, `next` the one behind the last.
    #[inline(always)]
    fn total(&self, first: u64, next: u64) -> u64 {
        let (all_even, all_odd) = (self.even[0].wrapping_add(self.even[1]), self.odd[0].wrapping_add(self.odd[1]));
        let even = all_even.wrapping_sub(all_odd << 56);
        // Behind an odd word comes the even one of the next pair.
        let odd = all_odd.wrapping_sub(all_even.wrapping_sub(first).wrapping_add(next) << 56);
        // RFC 1071 §2(B): bytes moved by one count 2^8 times as much.
        halves(even) + (halves(odd) << 8)
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

/// As [`barrier`].
#[inline(always)]
pub fn barrier32(value: u32) -> u32 {
    let copy;
    // SAFETY: register arithmetic only.
    unsafe { asm!("{copy} = {value}", copy = out(wreg) copy, value = in(wreg) value, options(pure, nomem, nostack)) };
    copy
}
