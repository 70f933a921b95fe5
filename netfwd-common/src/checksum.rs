//! The Internet checksum (RFC 1071), with the running sum and the wire value as two types.
//!
//! Confusing a sum with its complement is the classic bug of this arithmetic: a [`Sum`] is what adds up, a [`Checksum`]
//! is what stands in a header. A sum is kept in the bytes' own (native) order, which the one's complement allows
//! (RFC 1071 §2(B)): nothing is swapped per word, only the final sixteen bits are stored as they are.

/// A running one's complement sum over native-endian 16-bit words, carries not yet folded: room for 16 GiB.
///
/// Sums over even-length pieces add up in any order. A piece of odd length counts as padded with one zero byte, so it
/// must be the last of its packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

/// A checksum as it stands in a header: complemented, native view of the wire bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(u16);

/// What 65,535 must be multiplied by to give 1 modulo 2^64: -(1 + 2^16 + 2^32 + 2^48).
const INVERSE_OF_65535: u64 = 0xfffe_fffe_fffe_ffff;

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);
    /// What takes the place of a sum that is not there to be wrong.
    pub const VALID: Self = Self(0xffff);

    /// A sum of native 32-bit words that was accumulated elsewhere (the XDP payload loop).
    pub const fn from_raw(sum: u64) -> Self {
        Self(sum)
    }

    /// Adds a piece of a packet.
    #[must_use]
    #[allow(
        clippy::should_implement_trait,
        reason = "`+` adds sums, and chains of `add`, `add_u16`, `add_u32` read alike"
    )]
    pub fn add(self, bytes: &[u8]) -> Self {
        self + Self(sum_words(bytes))
    }

    /// Adds a piece of a packet given as words in memory order.
    #[must_use]
    #[inline(always)]
    pub const fn add_words<const N: usize>(self, words: [u32; N]) -> Self {
        let mut sum = self.0;
        let mut at = 0;
        while at < N {
            sum += words[at] as u64;
            at += 1;
        }
        Self(sum)
    }

    /// Adds one 16-bit value given in host order.
    #[must_use]
    pub const fn add_u16(self, value: u16) -> Self {
        Self(self.0 + value.to_be() as u64)
    }

    /// Adds one 32-bit value given in host order.
    #[must_use]
    pub const fn add_u32(self, value: u32) -> Self {
        Self(self.0 + value.to_be() as u64)
    }

    /// Takes a sum out again: RFC 1624's one's complement subtraction.
    #[must_use]
    pub const fn subtract(self, other: Self) -> Self {
        Self(self.0 + (!other.fold() as u64))
    }

    /// The pseudo-header of RFC 768/9293: `length` is the L4 length, header included.
    pub fn pseudo_ipv4(source: &[u8; 4], destination: &[u8; 4], protocol: u8, length: u16) -> Self {
        Self::ZERO.add(source).add(destination).add_u16(u16::from(protocol)).add_u16(length)
    }

    /// The pseudo-header of RFC 8200 §8.1: `length` is the L4 length, header included.
    pub fn pseudo_ipv6(source: &[u8; 16], destination: &[u8; 16], protocol: u8, length: u32) -> Self {
        Self::ZERO.add(source).add(destination).add_u32(u32::from(protocol)).add_u32(length)
    }

    /// The sum folded to sixteen bits, **not** complemented: what NEEDS_CSUM wants in the checksum field.
    pub const fn fold(self) -> u16 {
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        ((sum >> 16) + (sum & 0xffff)) as u16
    }

    /// The folded sum as header bytes.
    pub const fn to_bytes(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// The checksum that completes this sum.
    pub const fn checksum(self) -> Checksum {
        Checksum(!self.fold())
    }

    /// Whether a packet that was summed together with its checksum field is intact: whether the sum folds to 0xffff, which
    /// means that it is a multiple of 65,535 and not zero.
    ///
    /// An odd divisor has an inverse modulo 2^64. Multiplying by it permutes the numbers, the multiples of the divisor to
    /// the front: one multiplication and one comparison instead of the whole folding.
    pub const fn is_valid(self) -> bool {
        self.0.wrapping_mul(INVERSE_OF_65535) <= u64::MAX / 65_535 && self.0 != 0
    }
}

impl core::ops::Add for Sum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

impl Checksum {
    /// A checksum read from a header.
    pub const fn from_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }

    /// The header bytes.
    pub const fn to_bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }

    /// The header bytes of a UDP checksum: a computed 0 is sent as 0xFFFF, since 0 means absent (RFC 768).
    pub const fn to_udp_bytes(self) -> [u8; 2] {
        if self.0 == 0 { [0xff; 2] } else { self.to_bytes() }
    }
}

/// Sums native 64-bit words with end-around carry, then the tail.
fn sum_words(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 4];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        // Four independent lanes of 32-bit halves: no carry chain, so the loop vectorises.
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(8)) {
            let word = u64::from_ne_bytes(word.try_into().unwrap_or_default());
            *lane += (word >> 32) + (word & 0xffff_ffff);
        }
    }
    let mut sum: u64 = lanes.iter().sum();
    let mut words = blocks.remainder().chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_ne_bytes(word.try_into().unwrap_or_default()));
    }
    let tail = words.remainder();
    if let Some((pair, rest)) = tail.split_first_chunk::<2>() {
        sum += u64::from(u16::from_ne_bytes(*pair));
        if let [last] = rest {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
    } else if let [last] = tail {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn every_length_agrees_with_the_definition() {
        let bytes: [u8; 300] = core::array::from_fn(|i| (i * 37 + 11) as u8);
        for start in 0..8 {
            for end in start..bytes.len() {
                let piece = &bytes[start..end];
                assert_eq!(u16::from_be_bytes(Sum::ZERO.add(piece).to_bytes()), naive(piece));
            }
        }
    }

    #[test]
    fn valid_is_what_folds_to_ffff() {
        assert_eq!(INVERSE_OF_65535.wrapping_mul(65_535), 1);
        let multiples =
            (0..70_000).chain((0..64).map(|shift| 1 << shift)).map(|factor: u64| factor.wrapping_mul(65_535));
        for sum in multiples.flat_map(|multiple| [multiple.wrapping_sub(1), multiple, multiple.wrapping_add(1)]) {
            assert_eq!(Sum(sum).is_valid(), Sum(sum).fold() == 0xffff, "{sum}");
        }
    }

    #[test]
    fn rfc_1071_example() {
        let sum = Sum::ZERO.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.to_bytes(), [0xdd, 0xf2]);
        assert_eq!(sum.checksum().to_bytes(), [0x22, 0x0d]);
    }

    #[test]
    fn what_was_added_can_be_taken_out() {
        let whole = Sum::ZERO.add(&[1, 2, 3, 4, 5, 6]);
        let without = whole.subtract(Sum::ZERO.add(&[3, 4]));
        assert_eq!(without.fold(), Sum::ZERO.add(&[1, 2, 5, 6]).fold());
    }

    #[test]
    fn a_computed_udp_checksum_of_zero_is_sent_as_ffff() {
        let sum = Sum::ZERO.add(&[0xff, 0xff]);
        assert_eq!(sum.checksum().to_bytes(), [0, 0]);
        assert_eq!(sum.checksum().to_udp_bytes(), [0xff, 0xff]);
    }
}
