//! All system calls.

pub mod xdp;
