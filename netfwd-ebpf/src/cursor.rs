//! Packet pointers: the only place where the program touches packet memory.
//!
//! The verifier wants each pointer compared with `data_end` before use, with offsets whose upper bound it can see. Loads are
//! of constant size; the one loop advances by constant blocks, checked one by one.
//!
//! Each distinct path into that loop would be verified on its own (VLAN tags × families × protocols). [`Packet::zero`] is a
//! byte that user space keeps at zero but the verifier does not know: adding it makes an offset an unknown scalar, so
//! all paths look the same and are verified once.

use aya_ebpf::helpers::generated::{bpf_xdp_adjust_meta, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use netfwd_common::abi::Metadata;
use netfwd_common::checksum::Sum;
use netfwd_common::cursor::{Cursor, SHORT};

/// Bytes per turn of the payload loop: sixteen 32-bit loads.
const BLOCK: usize = 64;
/// Most turns: 9,216 bytes, more than any driver's linear part.
const MAX_BLOCKS: usize = 144;
/// Bounds of what [`Packet::sum`] is asked for, as masks that the verifier understands.
const OFFSET_MASK: usize = 0xff;
const LEN_MASK: usize = 0x3fff;

/// The linear part of the packet at hand.
pub struct Packet<'a> {
    ctx: &'a XdpContext,
    start: *const u8,
    end: *const u8,
    zero: usize,
}

impl<'a> Packet<'a> {
    /// `zero` must be 0.
    #[inline(always)]
    pub fn new(ctx: &'a XdpContext, zero: u8) -> Self {
        Self { ctx, start: ctx.data() as *const u8, end: ctx.data_end() as *const u8, zero: usize::from(zero) }
    }

    /// The address of `len` readable bytes at `offset`.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<*const u8> {
        let start = self.start.wrapping_add(offset);
        (start.wrapping_add(len) <= self.end).then_some(start)
    }

    /// The sum of the bits of `len` below `limit`, from the largest down: 32, 16, 8, 4, 2 and 1 bytes.
    #[inline(always)]
    fn tail(&self, mut offset: usize, len: usize) -> Option<u64> {
        let mut sum = 0;
        if len & 32 != 0 {
            sum += words::<8>(self.at(offset, 32)?);
            offset += 32;
        }
        if len & 16 != 0 {
            sum += words::<4>(self.at(offset, 16)?);
            offset += 16;
        }
        if len & 8 != 0 {
            sum += words::<2>(self.at(offset, 8)?);
            offset += 8;
        }
        if len & 4 != 0 {
            sum += words::<1>(self.at(offset, 4)?);
            offset += 4;
        }
        if len & 2 != 0 {
            sum += u64::from(u16::from_ne_bytes(self.load(offset)?));
            offset += 2;
        }
        if len & 1 != 0 {
            let [last] = self.load(offset)?;
            sum += u64::from(last);
        }
        Some(sum)
    }
}

impl Cursor for Packet<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.end as usize - self.start as usize
    }

    #[inline(always)]
    fn total_len(&self) -> usize {
        // SAFETY: the context is the kernel's, for the whole run of the program.
        unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) as usize }
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.at(offset, N)?;
        // SAFETY: `at` has compared the N bytes with the end of the packet, and the verifier has seen it.
        Some(unsafe { start.cast::<[u8; N]>().read_unaligned() })
    }

    #[inline(always)]
    fn sum(&self, offset: usize, len: usize) -> Option<Sum> {
        if len >= MAX_BLOCKS * BLOCK {
            return None;
        }
        let offset = (offset + self.zero) & OFFSET_MASK;
        let len = (len + self.zero) & LEN_MASK;
        let blocks = len / BLOCK;
        let mut at = self.start.wrapping_add(offset);
        let mut sum = 0;
        for turn in 0..MAX_BLOCKS {
            if turn >= blocks {
                break;
            }
            let next = at.wrapping_add(BLOCK);
            if next > self.end {
                return None;
            }
            sum += words::<{ BLOCK / 4 }>(at);
            at = next;
        }
        Some(Sum::from_raw(sum + self.tail(offset + blocks * BLOCK, len)?))
    }

    #[inline(always)]
    fn sum_short(&self, offset: usize, len: usize) -> Option<Sum> {
        self.tail((offset + self.zero) & LEN_MASK, len & (SHORT - 1)).map(Sum::from_raw)
    }
}

/// The sum of `N` 32-bit words whose bounds have been checked.
#[inline(always)]
fn words<const N: usize>(start: *const u8) -> u64 {
    // SAFETY: every caller has compared `start + 4 N` with the end of the packet, and the verifier has seen it.
    let words = unsafe { start.cast::<[u32; N]>().read_unaligned() };
    words.into_iter().map(u64::from).sum()
}

/// Puts the record right in front of the packet; false when the driver has no room for one.
///
/// The area is set to exactly one record, whatever was there: an earlier program's metadata, or ours on a repeated test run.
#[inline(always)]
pub fn write_metadata(ctx: &XdpContext, record: &Metadata) -> bool {
    let wanted = ctx.data().wrapping_sub(size_of::<Metadata>());
    let delta = wanted.wrapping_sub(ctx.metadata()) as i32;
    // SAFETY: the context is the kernel's; all packet pointers are loaded anew below.
    if delta != 0 && unsafe { bpf_xdp_adjust_meta(ctx.ctx, delta) } != 0 {
        return false;
    }
    let slot = ctx.metadata() as *mut Metadata;
    if slot.wrapping_add(1) as usize > ctx.data() {
        return false;
    }
    // SAFETY: the slot lies between the metadata's start and the packet, as just compared for the verifier.
    unsafe { slot.write_unaligned(*record) };
    true
}
