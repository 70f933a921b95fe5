//! All system calls.
//!
//! The data path knows only the traits of [`seam`](crate::datapath::seam); here are the devices and sockets behind
//! them, and [`mem`], their twins in memory. Everything is non-blocking and owned by one worker, except the send
//! sockets of a [`SendPool`](udp_send::SendPool), which workers share. [`wiped`] is no system call; it is here because all
//! that needs `unsafe` is.

pub mod control_message;
pub mod ethtool;
pub mod gather;
pub mod listen_port;
pub mod mem;
pub mod raw_send;
pub mod refusals;
pub mod socket;
pub mod tun;
pub mod tun_probe;
mod tun_steering;
pub mod udp_receive;
pub mod udp_send;
pub mod wiped;
pub mod xdp;
pub mod xdp_log;
pub mod xsk;
