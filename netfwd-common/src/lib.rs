//! What netfwd's two halves agree on.
//!
//! The XDP program and the user-space data path must never disagree about what a packet is, so the wire formats, the
//! checksum arithmetic, the classifier and the layout of everything that crosses the BPF boundary live here, once.
//!
//! Invariants: `no_std`, no allocation, no `unsafe`, no panics on any input bytes.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod checksum;
pub mod classify;
pub mod cursor;
mod flow_hash;
pub mod reason;
pub mod steering;
pub mod wire;
