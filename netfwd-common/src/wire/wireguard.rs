//! WireGuard messages (whitepaper §5.4, `drivers/net/wireguard/messages.h`).
//!
//! A message opens with its type, one byte, and three zero bytes, which is the same as one little-endian word. That word
//! also tells WireGuard from every other tunnel that may share an address: VXLAN and GPE set 0x08 in the first byte, and
//! Geneve has a protocol type in bytes 2 and 3.
//!
//! A data message may have any length from [`Data::MIN_LEN`] on. The whitepaper pads packets to a multiple of sixteen bytes, but
//! only up to the sender's MTU: `calculate_skb_padding` in the kernel, `calculatePaddingSize` in wireguard-go and `pad_to_x16` in
//! gotatun clamp it there, so that at the usual MTU of 1420 every full packet is 1452 bytes long. No receiver asks for a
//! multiple of sixteen (`validate_header_len`), and neither do we.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::reason::DropReason;

/// The customary UDP port.
pub const PORT: u16 = 51_820;
/// Length of a Poly1305 tag.
pub const TAG_LEN: usize = 16;
/// Bytes that a data message puts around an inner packet.
pub const OVERHEAD: usize = Data::HEADER_LEN + TAG_LEN;

/// Authentication of handshake messages: `mac1` proves knowledge of the responder's public key, `mac2` a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Macs {
    /// Keyed with a hash of the receiver's public key.
    pub mac1: [u8; 16],
    /// Keyed with the cookie; zero where none was asked for.
    pub mac2: [u8; 16],
}

/// Type 1: the initiator's first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Initiation {
    /// A [`MessageType`] and three zero bytes.
    pub message_type: U32,
    /// What the responder is to name this session by.
    pub sender: U32,
    /// Ephemeral public key.
    pub ephemeral: [u8; 32],
    /// Static public key, sealed.
    pub sealed_static: [u8; 32 + TAG_LEN],
    /// TAI64N timestamp, sealed.
    pub sealed_timestamp: [u8; 12 + TAG_LEN],
    /// Both MACs.
    pub macs: Macs,
}

/// Type 2: the responder's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Response {
    /// A [`MessageType`] and three zero bytes.
    pub message_type: U32,
    /// What the initiator is to name this session by.
    pub sender: U32,
    /// The initiator's name for this session.
    pub receiver: U32,
    /// Ephemeral public key.
    pub ephemeral: [u8; 32],
    /// Nothing, sealed: proof of the keys.
    pub sealed_nothing: [u8; TAG_LEN],
    /// Both MACs.
    pub macs: Macs,
}

/// Type 3: a responder under load asks for a proof of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CookieReply {
    /// A [`MessageType`] and three zero bytes.
    pub message_type: U32,
    /// The initiator's name for this session.
    pub receiver: U32,
    /// XChaCha20 nonce.
    pub nonce: [u8; 24],
    /// The cookie, sealed.
    pub sealed_cookie: [u8; 16 + TAG_LEN],
}

/// Type 4: the header of a data message; the sealed inner packet follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Data {
    /// A [`MessageType`] and three zero bytes.
    pub message_type: U32,
    /// The receiver's name for this session.
    pub receiver: U32,
    /// The nonce, counting up.
    pub counter: U64,
}

impl Data {
    /// Length of the header.
    pub const HEADER_LEN: usize = size_of::<Self>();
    /// Length of a keepalive: the header and the tag of nothing.
    pub const MIN_LEN: usize = Self::HEADER_LEN + TAG_LEN;
}

/// The first byte of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MessageType {
    /// [`Initiation`].
    Initiation = 1,
    /// [`Response`].
    Response = 2,
    /// [`CookieReply`].
    CookieReply = 3,
    /// [`Data`].
    Data = 4,
}

impl MessageType {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::Initiation, Self::Response, Self::CookieReply, Self::Data];

    /// Reads the number that stands for a type, in a message or in the metadata record.
    #[inline(always)]
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::Initiation),
            2 => Some(Self::Response),
            3 => Some(Self::CookieReply),
            4 => Some(Self::Data),
            _ => None,
        }
    }

    /// Reads the first word of a message, given in memory order: none if it is no WireGuard message, reserved bits included.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Option<Self> {
        Self::from_u32(u32::from_le(word))
    }

    /// Whether a message of this type may have `len` bytes.
    #[inline(always)]
    pub const fn allows_len(self, len: usize) -> bool {
        match self {
            Self::Initiation => len == size_of::<Initiation>(),
            Self::Response => len == size_of::<Response>(),
            Self::CookieReply => len == size_of::<CookieReply>(),
            Self::Data => len >= Data::MIN_LEN,
        }
    }
}

/// Checks what can be checked of a message without a key, as `validate_header_len` does.
pub fn check(message: &[u8]) -> Result<MessageType, DropReason> {
    let (word, _) = u32::read_from_prefix(message).map_err(|_| DropReason::BadLength)?;
    let message_type = MessageType::from_word(word).ok_or(DropReason::TunnelHeader)?;
    if message_type.allows_len(message.len()) { Ok(message_type) } else { Err(DropReason::BadLength) }
}

const _: () = {
    assert!(size_of::<Initiation>() == 148);
    assert!(size_of::<Response>() == 92);
    assert!(size_of::<CookieReply>() == 64);
    assert!(Data::HEADER_LEN == 16 && Data::MIN_LEN == 32);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn message<const N: usize>(first: u8) -> [u8; N] {
        core::array::from_fn(|at| if at == 0 { first } else { 0 })
    }

    #[test]
    fn handshake_messages_have_exactly_one_length() {
        for (message_type, len) in MessageType::ALL.into_iter().zip([148, 92, 64]) {
            let bytes: [u8; 200] = message(message_type as u8);
            for other in (4..200).filter(|&other| other != len) {
                assert_eq!(check(&bytes[..other]), Err(DropReason::BadLength), "{message_type:?} of {other}");
            }
            assert_eq!(check(&bytes[..len]), Ok(message_type));
        }
    }

    #[test]
    fn data_may_have_any_length_that_holds_header_and_tag() {
        let bytes: [u8; 1500] = message(4);
        for len in 0..32 {
            assert_eq!(check(&bytes[..len]), Err(DropReason::BadLength), "{len}");
        }
        // 1452: a full packet at the usual MTU of 1420, which no sender pads.
        for len in (32..200).chain([1452, 1500]) {
            assert_eq!(check(&bytes[..len]), Ok(MessageType::Data), "{len}");
        }
    }

    #[test]
    fn no_reserved_bit_and_no_other_type_is_tolerated() {
        for bit in 8..32 {
            let mut bytes: [u8; 148] = message(1);
            bytes[bit / 8] |= 1 << (bit % 8);
            assert_eq!(check(&bytes), Err(DropReason::TunnelHeader), "bit {bit}");
        }
        for first in (0..=u8::MAX).filter(|first| !(1..=4).contains(first)) {
            assert_eq!(check(&message::<148>(first)), Err(DropReason::TunnelHeader), "{first}");
        }
    }

    #[test]
    fn fields_are_little_endian() {
        let mut bytes: [u8; 16] = core::array::from_fn(|at| at as u8);
        bytes[..4].copy_from_slice(&[4, 0, 0, 0]);
        let header = Data::read_from_bytes(&bytes).expect("sixteen bytes");
        assert_eq!(header.message_type.get(), 4);
        assert_eq!(header.receiver.get(), 0x0706_0504);
        assert_eq!(header.counter.get(), 0x0f0e_0d0c_0b0a_0908);
    }
}
