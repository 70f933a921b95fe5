//! netfwd's XDP program: classify, verify, steer.
//!
//! The parser is `netfwd_common::classify`, the same that user space runs; here are only its BPF surroundings: packet
//! pointers ([`cursor`]), maps ([`maps`]), and the one place where a verdict becomes an action.
//!
//! Invariants: a packet is redirected only with a metadata record in front of it; every packet is counted once by action,
//! and once by reason unless it was redirected. Deliberately absent: any rewriting of packets.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod cursor;
mod maps;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use netfwd_common::abi::{Action, METADATA_MAGIC, METADATA_VERSION, Metadata};
use netfwd_common::classify::{Delivery, Verdict, classify};
use netfwd_common::reason::PassReason;

use cursor::Packet;
use maps::{Maps, XSKS};

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The entry point.
#[xdp(frags)]
pub fn netfwd(ctx: XdpContext) -> u32 {
    // The only element of an array is always there.
    let Some(control) = maps::control() else { return XDP_PASS };
    let Some(maps) = Maps::new(&control) else { return XDP_PASS };
    let policy = control.policy;
    match classify(Packet::new(&ctx), &maps, &policy) {
        Verdict::Pass(reason) => pass(&maps, reason),
        Verdict::Drop(reason) => {
            if policy.debug != 0 {
                log_drop(&ctx, reason as u8);
            }
            maps.count_drop(reason);
            maps.count_action(Action::Drop);
            XDP_DROP
        }
        Verdict::Deliver(_) if is_too_long(&ctx, policy.frame_limit) => pass(&maps, PassReason::TooLong),
        Verdict::Deliver(delivery) => deliver(&ctx, &maps, &delivery),
    }
}

/// A line for user space, where the number becomes a name. Only drops are logged, and only with the debug switch on.
///
/// Not marked cold: cold functions go to a section of their own, and aya's loader, which tells functions apart by their offset
/// alone, then takes this one for the first of the other section.
#[inline(never)]
fn log_drop(ctx: &XdpContext, reason: u8) {
    aya_log_ebpf::debug!(ctx, "drop reason={} queue={}", reason, ctx.rx_queue_index());
}

#[inline(always)]
fn pass(maps: &Maps, reason: PassReason) -> u32 {
    maps.count_pass(reason);
    maps.count_action(Action::Pass);
    XDP_PASS
}

/// Whether the frame would vanish into the socket's `rx_dropped`.
#[inline(always)]
fn is_too_long(ctx: &XdpContext, limit: u8) -> bool {
    limit != 0 && ctx.data_end() - ctx.data() > usize::from(limit) * 64
}

#[inline(always)]
fn deliver(ctx: &XdpContext, maps: &Maps, delivery: &Delivery) -> u32 {
    // Without a record the bytes in front of the packet are whatever was there before, perhaps an older record: user space
    // could not tell. The kernel's UDP socket is slower and safe.
    if !cursor::write_metadata(ctx, &metadata(delivery)) {
        return pass(maps, PassReason::NoMetadata);
    }
    match XSKS.redirect(ctx.rx_queue_index(), u64::from(XDP_PASS)) {
        Ok(action) => {
            // Only here: what is passed on is judged again, and counted then.
            if let Some(reason) = delivery.tolerated {
                maps.count_tolerated(reason);
            }
            maps.count_action(Action::Redirect);
            action
        }
        Err(_) => {
            // The kernel's own GRO would compare the records.
            cursor::remove_metadata(ctx);
            pass(maps, PassReason::NoSocket)
        }
    }
}

#[inline(always)]
fn metadata(delivery: &Delivery) -> Metadata {
    Metadata {
        magic: METADATA_MAGIC,
        version: METADATA_VERSION,
        checksums: delivery.checksums as u8,
        tunnel: delivery.entry.tunnel,
        remote: delivery.entry.remote,
        inner_offset: delivery.inner_offset,
        inner_len: delivery.inner_len,
        ecn: delivery.ecn,
        message: delivery.message.map_or(0, |message| message as u8),
        flow_hash: delivery.flow_hash,
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
