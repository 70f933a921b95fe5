//! The data path, sans-IO.
//!
//! Bytes in, bytes out: nothing below this module knows of sockets, devices, threads or clocks. Time, randomness and
//! I/O are arguments, so whole pipelines run in tests and fuzzers without root. The exception is WireGuard's control side, whose
//! queue waits and whose library draws keys and reads a clock.
//!
//! ```text
//! ingress   datagram → lookup → decap → vet → coalesce → FrameSink
//! egress    frame with vnet header → route → segment → encap → DatagramSink
//! ```

pub mod ecn;
pub mod egress;
pub mod fdb;
pub mod flow;
pub mod gro;
pub mod ingress;
pub mod lpm;
pub mod offload;
pub mod overlay;
pub mod packet;
pub mod places;
pub mod sealed;
pub mod seam;
pub mod segment;
pub mod stats;
pub mod sum;
pub mod superframe;
pub mod table;
pub mod tunnel;
pub mod vet;
