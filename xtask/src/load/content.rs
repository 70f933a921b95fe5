//! What is sent: deterministic bytes from a seed, and how a receiver checks them.
//!
//! A stream is one block of pseudo-random bytes repeated. The block's length is prime, so a piece that went missing,
//! came twice or stands at another place shifts everything behind it against what the receiver expects.

/// Length of the repeated block: the largest prime below 2^20.
const PERIOD: usize = 1_048_573;
/// Bytes that a window may reach beyond the period.
const WINDOW: usize = 1 << 17;

/// The endless stream of one seed.
#[derive(Clone, Debug)]
pub struct Stream {
    block: Vec<u8>,
    offset: usize,
}

impl Stream {
    /// The stream from its beginning.
    pub fn new(seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut block = Vec::with_capacity(PERIOD + WINDOW);
        while block.len() < PERIOD {
            // xorshift64*, Vigna 2016.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            block.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        block.truncate(PERIOD);
        block.extend_from_within(..WINDOW);
        Self { block, offset: 0 }
    }

    /// The next bytes, up to 128 KiB of them.
    pub fn window(&self) -> &[u8] {
        &self.block[self.offset..self.offset + WINDOW]
    }

    /// Goes on by that many bytes.
    pub fn advance(&mut self, length: usize) {
        self.offset = (self.offset + length) % PERIOD;
    }

    /// Compares the next bytes and goes on; on a difference, says at which of them it is.
    pub fn check(&mut self, received: &[u8]) -> Result<(), usize> {
        for (index, piece) in received.chunks(WINDOW).enumerate() {
            let expected = &self.window()[..piece.len()];
            if expected != piece {
                let at = expected.iter().zip(piece).position(|(one, two)| one != two).unwrap_or(0);
                return Err(index * WINDOW + at);
            }
            self.advance(piece.len());
        }
        Ok(())
    }

    /// Any `length` ≤ 128 KiB bytes of the stream, chosen by `index`.
    pub fn piece(&self, index: u64, length: usize) -> &[u8] {
        let offset = (index.wrapping_mul(7919) % PERIOD as u64) as usize;
        &self.block[offset..offset + length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_agrees_with_itself_however_it_is_cut() {
        let mut sent = Stream::new(7);
        let mut received = Stream::new(7);
        for length in [1, 60_000, 65_536, 1448, 9].into_iter().cycle().take(200) {
            assert_eq!(received.check(&sent.window()[..length]), Ok(()));
            sent.advance(length);
        }
    }

    #[test]
    fn a_flipped_bit_is_found_where_it_is() {
        let stream = Stream::new(1);
        let mut bytes = stream.window()[..5000].to_vec();
        bytes[4321] ^= 4;
        assert_eq!(Stream::new(1).check(&bytes), Err(4321));
    }

    #[test]
    fn a_lost_segment_is_found() {
        let stream = Stream::new(1);
        let mut bytes = stream.window()[..5000].to_vec();
        bytes.drain(1448..2896);
        assert!(Stream::new(1).check(&bytes).is_err());
    }
}
