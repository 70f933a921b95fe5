//! All system calls.

pub mod xdp;
pub mod xdp_log;
