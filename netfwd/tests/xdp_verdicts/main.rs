//! The verdict table of the XDP program, by `BPF_PROG_TEST_RUN` on the very object that ships.
//!
//! Each packet also goes through the user-space classifier, and the two must agree.

mod agreement;
mod bench;
mod frames;
mod lifecycle;
#[path = "../support/packets.rs"]
mod packets;
mod verdicts;
mod wireguard;
