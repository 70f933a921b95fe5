//! The Internet checksum of a payload, as fast as this machine can.
//!
//! The problem: whatever XDP did not verify and whatever egress cuts is summed in user space, 1400 bytes at a time. The
//! baseline of x86-64 (SSE2) sums eight bytes where a machine of today sums thirty-two or sixty-four.
//!
//! Invariants: the sum is that of [`Sum::add`], which stays the oracle, for every length and alignment. It is written once
//! for registers of any width; `fearless_simd` compiles it per instruction set and chooses at run time. There is no unsafe block here.
//!
//! Deliberately absent: summing while copying, since nothing here copies.

use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch};
use netfwd_common::checksum::Sum;

/// The widest register. What is shorter is summed faster without.
const WIDEST: usize = 64;

/// Ones, then zeroes: `WIDEST - n` bytes on begins what keeps the first `n` bytes of a register.
const FIRST: [u8; 2 * WIDEST] = half_ones(0);
/// Zeroes, then ones: `n` bytes on begins what keeps the last `n` bytes of the widest register.
const LAST: [u8; 2 * WIDEST] = half_ones(WIDEST);

const fn half_ones(from: usize) -> [u8; 2 * WIDEST] {
    let mut bytes = [0; 2 * WIDEST];
    let mut at = from;
    while at < from + WIDEST {
        bytes[at] = 0xff;
        at += 1;
    }
    bytes
}

/// The one's complement sum of `bytes`; an odd length counts as padded with a zero byte.
#[inline]
pub fn sum(bytes: &[u8]) -> Sum {
    let (pairs, odd) = bytes.split_at(bytes.len() & !1);
    if pairs.len() < WIDEST {
        return Sum::ZERO.add(bytes);
    }
    let odd = Sum::from_raw(odd.first().map_or(0, |&last| u64::from(u16::from_ne_bytes([last, 0]))));
    Sum::from_raw(sum_pairs(pairs)) + odd
}

/// An even number of bytes, at least as many as the widest register holds.
fn sum_pairs(bytes: &[u8]) -> u64 {
    dispatch!(Level::new(), simd => sum_registers(simd, bytes))
}

#[inline(always)]
fn sum_registers<S: Simd>(simd: S, bytes: &[u8]) -> u64 {
    let width = S::u8s::LEN;
    let (mut one, mut other) = (Lanes::<S>::zero(simd), Lanes::<S>::zero(simd));
    // A load that crosses a cache line costs two, so most begin at one. The bytes before it and the rest at the end come
    // from loads that overlap their neighbours. From an odd address on no line begins at a pair.
    let skew = Some(bytes.as_ptr().addr().wrapping_neg() % width).filter(|skew| skew % 2 == 0).unwrap_or(0);
    let (Some(body), Some(last)) = (bytes.get(skew..), bytes.len().checked_sub(width)) else { return 0 };
    one.add(load(simd, bytes, 0) & load(simd, &FIRST, WIDEST - skew));
    let mut twos = body.chunks_exact(2 * width);
    for two in &mut twos {
        one.add(load(simd, two, 0));
        other.add(load(simd, two, width));
    }
    let rest = twos.remainder();
    if rest.len() >= width {
        one.add(load(simd, rest, 0));
    }
    other.add(load(simd, bytes, last) & load(simd, &LAST, WIDEST - width + rest.len() % width));
    one.merge(&other).sum()
}

/// Sums of 64-bit words, one in each lane.
///
/// A word's halves must be summed apart, or carries would be lost. The wrapping sum of whole words holds the lower halves'
/// sum too: taking out the upper ones is cheaper once at the end than masking every word.
struct Lanes<S: Simd> {
    whole: S::u64s,
    upper: S::u64s,
}

impl<S: Simd> Lanes<S> {
    #[inline(always)]
    fn zero(simd: S) -> Self {
        Self { whole: S::u64s::splat(simd, 0), upper: S::u64s::splat(simd, 0) }
    }

    #[inline(always)]
    fn add(&mut self, words: S::u64s) {
        self.whole += words;
        self.upper += words >> 32;
    }

    #[inline(always)]
    fn merge(&self, other: &Self) -> Self {
        Self { whole: self.whole + other.whole, upper: self.upper + other.upper }
    }

    #[inline(always)]
    fn sum(&self) -> u64 {
        let lower = self.whole - (self.upper << 32);
        (lower + self.upper).as_slice().iter().sum()
    }
}

/// The register that begins `at` bytes on.
#[inline(always)]
fn load<S: Simd>(simd: S, bytes: &[u8], at: usize) -> S::u64s {
    S::u8s::from_slice(simd, &bytes[at..at + S::u8s::LEN]).bitcast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment_agrees_with_the_portable_sum() {
        let bytes: Vec<u8> = (0..2048 + 64u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for start in [0, 1, 2, 3, 7, 14, 33, 62, 63] {
            for len in 0..=2048 {
                let piece = &bytes[start..start + len];
                assert_eq!(sum(piece).fold(), Sum::ZERO.add(piece).fold(), "{len} bytes at {start}");
            }
        }
    }

    /// Machines with narrower registers take these.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_width_of_register_agrees() {
        let bytes: Vec<u8> = (0..1500u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let level = Level::new();
        for (start, len) in (0..70).flat_map(|start| (64..400).step_by(2).map(move |len| (start, len))) {
            let piece = &bytes[start..start + len];
            let expected = Sum::ZERO.add(piece).fold();
            let sse = level.as_sse2().map(|simd| simd.vectorize(|| sum_registers(simd, piece)));
            let avx = level.as_avx2().map(|simd| simd.vectorize(|| sum_registers(simd, piece)));
            assert!(sse.is_some());
            for sum in [sse, avx].into_iter().flatten() {
                assert_eq!(Sum::from_raw(sum).fold(), expected, "{len} bytes at {start}");
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
