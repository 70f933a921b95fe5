//! The tunnel protocols' codecs.
//!
//! A protocol is chosen once per frame or batch by matching on
//! [`TunnelKind`](netfwd_common::abi::TunnelKind): a closed set, no `dyn`.

pub mod decap;
pub mod encap;
pub mod wireguard;
