//! All system calls of the data path: sockets, devices, and what they need.

pub mod xsk;
