//! netfwd: an eBPF/XDP accelerated tunnel gateway.
//!
//! The pieces, in the order packets meet them: `io` (all system calls), `datapath` (sans-IO: decapsulation, coalescing,
//! segmentation, encapsulation), `worker` (one queue's loop), `control` (the only async code), `config`.

// Tests inside share devices with tests outside, where this is the crate's name.
#[cfg(test)]
extern crate self as netfwd;

pub mod addresses;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod datapath;
pub mod deletion;
pub mod device_links;
pub mod ebpf;
pub mod io;
mod linger;
pub mod order;
pub mod published;
pub mod reattach;
pub mod run;
pub mod stations;
pub mod underlay;
pub mod wg;
pub mod wireguard;
pub mod worker;
