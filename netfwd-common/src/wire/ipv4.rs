//! IPv4 (RFC 791).

use zerocopy::byteorder::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
/// The first byte of a header without options: version 4, five words.
pub const PLAIN: u8 = 0x45;
/// `fragment` bit: don't fragment.
pub const DF: u16 = 0x4000;
/// `fragment` bit: more fragments.
pub const MF: u16 = 0x2000;
/// Mask of `fragment`'s offset, in units of eight bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// A header without its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Version (4) in the high nibble, header length in 32-bit words in the low one.
    pub version_ihl: u8,
    /// DSCP in the upper six bits, ECN in the lower two (RFC 2474, RFC 3168).
    pub tos: u8,
    /// Header and payload, in bytes.
    pub total_length: U16,
    /// Identification.
    pub id: U16,
    /// Flags in the upper three bits, offset in the rest.
    pub fragment: U16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: U16,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

impl Header {
    /// IP version; 4 in a valid header.
    pub const fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Header length in bytes, options included; below [`HEADER_LEN`] it is invalid.
    pub const fn header_len(&self) -> usize {
        (self.version_ihl & 0xf) as usize * 4
    }

    /// Whether this is a fragment: MF set or an offset.
    pub fn is_fragment(&self) -> bool {
        self.fragment.get() & (MF | OFFSET_MASK) != 0
    }

    /// Whether DF is set: with no fragmentation the datagram is atomic and its ID means nothing (RFC 6864 §4).
    pub fn dont_fragment(&self) -> bool {
        self.fragment.get() & DF != 0
    }
}
