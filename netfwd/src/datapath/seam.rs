//! The seams between the data path and the world: what the sockets and devices, or their in-memory twins, implement.

use std::io::{self, IoSlice};
use std::net::IpAddr;

use super::packet::TunnelIndex;

/// A frame for a tunnel's TUN/TAP.
///
/// `slices` is one gather list: first the vnet header (for a superframe followed by its rewritten headers), then payload
/// where it lies.
#[derive(Clone, Copy, Debug)]
pub struct OverlayFrame<'a> {
    /// Whose device.
    pub tunnel: TunnelIndex,
    /// The gather list, at most 1024 entries.
    pub slices: &'a [IoSlice<'a>],
    /// Packets in it: 1 for a single packet.
    pub packets: usize,
}

/// Where overlay frames go.
pub trait FrameSink {
    /// Writes one frame. An error means that nothing of it was delivered.
    fn write(&mut self, frame: &OverlayFrame<'_>) -> io::Result<()>;
}

/// A run of datagrams with one outer header: `segment_size` bytes each, the last may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Transmit<'a> {
    /// Outer source address.
    pub local: IpAddr,
    /// Outer destination address.
    pub remote: IpAddr,
    /// Outer destination port.
    pub port: u16,
    /// Index of the interface that a link-local destination is on; 0 for all others.
    pub scope: u32,
    /// Outer source port, from the inner flow's hash: 49152–65535.
    pub source_port: u16,
    /// Outer TOS / traffic class: DSCP and ECN.
    pub tos: u8,
    /// UDP payload bytes of each datagram but the last.
    pub segment_size: usize,
    /// Datagrams in the run.
    pub datagrams: usize,
    /// The datagrams' UDP payloads back to back: tunnel header, inner headers, inner payload, and so on.
    pub slices: &'a [IoSlice<'a>],
    /// What the outer UDP checksum is to be.
    pub checksum: OuterChecksum,
}

/// The outer UDP checksum of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterChecksum {
    /// Zero is wanted (IPv4 with `udp_checksum = false`).
    Zero,
    /// A checksum is wanted. For a single datagram whose inner checksum is complete, the value from headers alone
    /// (local checksum offload): the one's complement sum of the UDP payload, folded, native order.
    Wanted {
        /// Folded sum of the UDP payload, when it is known without another pass over it.
        payload_sum: Option<u16>,
    },
}

/// Where datagrams go.
pub trait DatagramSink {
    /// Sends a run, splitting or retrying it as its backend must. What could not be sent at all is reported as the
    /// number of datagrams lost and why.
    fn send(&mut self, transmit: &Transmit<'_>) -> Result<(), SendFailure>;
}

/// Datagrams that a [`DatagramSink`] could not send, after its fallbacks.
#[derive(Debug)]
pub struct SendFailure {
    /// How many datagrams of the run were lost.
    pub lost: usize,
    /// The last error.
    pub error: io::Error,
}
