//! The Internet checksum of a payload, as fast as this machine can.
//!
//! The problem: whatever XDP did not verify and whatever egress cuts is summed in user space, 1400 bytes at a time. The
//! baseline of x86-64 (SSE2) sums eight bytes where a machine of today sums thirty-two or sixty-four.
//!
//! Invariants: the sum is that of [`Sum::add`], which stays the oracle, for every length and alignment. The loop is
//! plain code; `multiversion` compiles it once per instruction set and chooses at run time. There is no unsafe block here.
//!
//! Deliberately absent: summing while copying, since nothing here copies.

use multiversion::multiversion;
use netfwd_common::checksum::Sum;

/// Below this a call through the dispatcher costs more than wide registers save.
const SHORT: usize = 64;

/// The one's complement sum of `bytes`; an odd length counts as padded with a zero byte.
#[inline]
pub fn sum(bytes: &[u8]) -> Sum {
    if bytes.len() < SHORT { Sum::ZERO.add(bytes) } else { Sum::from_raw(sum_long(bytes)) }
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2"), dispatcher = "direct")]
fn sum_long(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<8>();
    // A word's halves are summed apart, or carries would be lost. The wrapping sum of whole words holds the lower halves'
    // sum too: taking out the upper ones is cheaper once at the end than masking every word.
    let (mut whole, mut upper) = (0u64, 0u64);
    for word in words {
        let word = u64::from_ne_bytes(*word);
        whole = whole.wrapping_add(word);
        upper = upper.wrapping_add(word >> 32);
    }
    let lower = whole.wrapping_sub(upper << 32);
    lower + upper + sum_tail(tail)
}

/// The sum of fewer than eight bytes.
#[inline(always)]
fn sum_tail(mut bytes: &[u8]) -> u64 {
    let mut sum = 0;
    if let Some((word, rest)) = bytes.split_first_chunk() {
        (sum, bytes) = (u64::from(u32::from_ne_bytes(*word)), rest);
    }
    if let Some((word, rest)) = bytes.split_first_chunk() {
        (sum, bytes) = (sum + u64::from(u16::from_ne_bytes(*word)), rest);
    }
    match bytes {
        [last] => sum + u64::from(u16::from_ne_bytes([*last, 0])),
        _ => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment_agrees_with_the_portable_sum() {
        let bytes: Vec<u8> = (0..2048 + 64u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for start in [0, 1, 2, 3, 7, 14, 33, 63] {
            for len in 0..=2048 {
                let piece = &bytes[start..start + len];
                assert_eq!(sum(piece).fold(), Sum::ZERO.add(piece).fold(), "{len} bytes at {start}");
            }
        }
    }

    #[test]
    fn carries_are_kept_in_the_longest_packet() {
        for len in [64, 1500, 65_535] {
            let ones = vec![0xff; len];
            assert_eq!(sum(&ones).fold(), Sum::ZERO.add(&ones).fold(), "{len} bytes");
            assert_eq!(sum(&ones).is_valid(), len % 2 == 0, "{len} bytes");
        }
        assert_eq!(sum(&[0; 1500]).fold(), 0);
    }
}
