//! TCP (RFC 9293).

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
/// Longest header: fifteen 32-bit words.
pub const MAX_HEADER_LEN: usize = 60;
/// Offset of the checksum field.
pub const CHECKSUM_OFFSET: u16 = 16;

/// Flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// Flag: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Flag: reset.
pub const RST: u8 = 0x04;
/// Flag: push.
pub const PSH: u8 = 0x08;
/// Flag: the acknowledgement field is significant.
pub const ACK: u8 = 0x10;
/// Flag: the urgent pointer is significant.
pub const URG: u8 = 0x20;
/// Flag: ECN echo (RFC 3168).
pub const ECE: u8 = 0x40;
/// Flag: congestion window reduced (RFC 3168).
pub const CWR: u8 = 0x80;

/// A header without its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Source port.
    pub source_port: U16,
    /// Destination port.
    pub destination_port: U16,
    /// Sequence number of the first payload byte.
    pub sequence: U32,
    /// Next sequence number expected.
    pub acknowledgement: U32,
    /// Data offset in 32-bit words in the high nibble; reserved bits and AE (RFC 9768) in the low one.
    pub offset_reserved: u8,
    /// The eight classic flags.
    pub flags: u8,
    /// Receive window, unscaled.
    pub window: U16,
    /// Checksum over pseudo-header, header and payload.
    pub checksum: U16,
    /// Urgent pointer.
    pub urgent: U16,
}

impl Header {
    /// Header length in bytes, options included; below [`HEADER_LEN`] it is invalid.
    pub const fn header_len(&self) -> usize {
        (self.offset_reserved >> 4) as usize * 4
    }
}
