//! A receive batch: frames that user space owns until they are released.

use super::umem::{Frame, METADATA_LEN};

/// The longest packet that is put together from several descriptors: IPv6 header, payload, Ethernet header, two tags.
pub(super) const ASSEMBLED_MAX: usize = 14 + 2 * 4 + 40 + 65_535;

/// One received packet, from its Ethernet header on.
#[derive(Debug)]
pub struct Received<'a> {
    /// The packet.
    pub bytes: &'a mut [u8],
    /// What lay right before it: see [`Frame::metadata`].
    pub metadata: Option<[u8; METADATA_LEN]>,
}

#[derive(Debug)]
enum Entry {
    /// Where the kernel left it.
    Frame(Frame),
    /// Copied to the scratch memory, behind the earlier ones and its metadata.
    Assembled { length: u32 },
}

/// Received packets, in order of arrival. Dropping a batch releases it too, a little slower.
#[derive(Debug)]
pub struct RxBatch {
    entries: Vec<Entry>,
    capacity: usize,
    /// Packets that came in several descriptors, back to back.
    scratch: Vec<u8>,
    scratch_capacity: usize,
}

impl RxBatch {
    /// Room for `capacity` packets and `scratch` bytes of packets that came in several descriptors.
    pub(super) fn new(capacity: usize, scratch: usize) -> Self {
        Self {
            entries: Vec::with_capacity(capacity),
            capacity,
            scratch: Vec::with_capacity(scratch),
            scratch_capacity: scratch,
        }
    }

    /// Packets in it.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many packets more it takes.
    pub fn room(&self) -> usize {
        self.capacity - self.entries.len()
    }

    /// The packets, all at once: the items borrow from the batch, not from the iterator.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = Received<'_>> {
        let mut scratch = self.scratch.as_mut_slice();
        self.entries.iter_mut().map(move |entry| match entry {
            Entry::Frame(frame) => Received { metadata: frame.metadata().copied(), bytes: frame.bytes_mut() },
            Entry::Assembled { length } => next_assembled(&mut scratch, *length as usize),
        })
    }

    /// Whether the next packet fits, whatever its length (without scratch memory: whatever its length in one frame).
    #[inline]
    pub(super) fn takes_any(&self) -> bool {
        self.room() > 0 && (self.scratch_capacity == 0 || self.scratch_room() >= METADATA_LEN + ASSEMBLED_MAX)
    }

    #[inline]
    pub(super) fn push(&mut self, frame: Frame) {
        self.entries.push(Entry::Frame(frame));
    }

    /// Appends an assembled packet; returns whether there was room for it.
    pub(super) fn push_assembled(&mut self, bytes: &[u8], metadata: &[u8; METADATA_LEN]) -> bool {
        if bytes.len() > ASSEMBLED_MAX || METADATA_LEN + bytes.len() > self.scratch_room() {
            return false;
        }
        self.scratch.extend_from_slice(metadata);
        self.scratch.extend_from_slice(bytes);
        self.entries.push(Entry::Assembled { length: bytes.len() as u32 });
        true
    }

    /// Empties the batch: its frames.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Frame> {
        self.scratch.clear();
        self.entries.drain(..).filter_map(|entry| match entry {
            Entry::Frame(frame) => Some(frame),
            Entry::Assembled { .. } => None,
        })
    }

    fn scratch_room(&self) -> usize {
        self.scratch_capacity - self.scratch.len()
    }
}

/// Cuts the next assembled packet and its metadata off the front of `scratch`.
fn next_assembled<'a>(scratch: &mut &'a mut [u8], length: usize) -> Received<'a> {
    let rest = std::mem::take(scratch);
    let (packet, rest) = rest.split_at_mut(rest.len().min(METADATA_LEN + length));
    *scratch = rest;
    match packet.split_first_chunk_mut() {
        Some((metadata, bytes)) => Received { bytes, metadata: Some(*metadata) },
        None => Received { bytes: &mut [], metadata: None },
    }
}
