//! In-memory twins of devices and sockets: whole pipelines run on them without root.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::ops::Range;

use crate::datapath::packet::TunnelIndex;
use crate::datapath::seam::{DatagramSink, FrameSink, OuterChecksum, OverlayFrame, SendFailure, Transmit};

/// Records overlay frames, gathered into one arena that keeps its allocation across [`MemoryFrames::clear`].
#[derive(Debug, Default)]
pub struct MemoryFrames {
    arena: Vec<u8>,
    frames: Vec<(TunnelIndex, usize, Range<usize>)>,
    refusals: VecDeque<i32>,
    refuse_superframes: Option<i32>,
}

/// A recorded frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedFrame<'a> {
    /// Whose device.
    pub tunnel: TunnelIndex,
    /// Packets in it, as its writer said.
    pub packets: usize,
    /// Vnet header and frame.
    pub bytes: &'a [u8],
}

impl MemoryFrames {
    /// Room for `frames` frames of `bytes` bytes in all without a further allocation.
    pub fn with_capacity(frames: usize, bytes: usize) -> Self {
        Self { arena: Vec::with_capacity(bytes), frames: Vec::with_capacity(frames), ..Self::default() }
    }

    /// Refuses the next write with `errno`; calls add up.
    pub fn refuse_next(&mut self, errno: i32) {
        self.refusals.push_back(errno);
    }

    /// Refuses every frame of more than one packet with `errno`, as a kernel does that lacks an offload.
    pub fn refuse_superframes(&mut self, errno: Option<i32>) {
        self.refuse_superframes = errno;
    }

    /// What was written, in order.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = RecordedFrame<'_>> {
        self.frames.iter().map(|(tunnel, packets, range)| RecordedFrame {
            tunnel: *tunnel,
            packets: *packets,
            bytes: &self.arena[range.clone()],
        })
    }

    /// Forgets the frames, keeps the memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.frames.clear();
    }
}

impl FrameSink for MemoryFrames {
    fn write(&mut self, frame: &OverlayFrame<'_>) -> io::Result<()> {
        let superframe = self.refuse_superframes.filter(|_| frame.packets > 1);
        if let Some(errno) = self.refusals.pop_front().or(superframe) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let start = self.arena.len();
        frame.slices.iter().for_each(|slice| self.arena.extend_from_slice(slice));
        self.frames.push((frame.tunnel, frame.packets, start..self.arena.len()));
        Ok(())
    }
}

/// Records datagrams, runs cut apart as `UDP_SEGMENT` cuts them.
#[derive(Debug, Default)]
pub struct MemoryDatagrams {
    arena: Vec<u8>,
    datagrams: Vec<(Outer, Range<usize>)>,
    runs: usize,
    refusals: VecDeque<i32>,
}

/// What surrounds a datagram's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Outer source address.
    pub local: IpAddr,
    /// Outer destination address.
    pub remote: IpAddr,
    /// Outer destination port.
    pub port: u16,
    /// Outer source port.
    pub source_port: u16,
    /// Outer TOS / traffic class.
    pub tos: u8,
    /// What the checksum was to be.
    pub checksum: OuterChecksum,
}

impl MemoryDatagrams {
    /// Room for `datagrams` datagrams of `bytes` bytes in all without a further allocation.
    pub fn with_capacity(datagrams: usize, bytes: usize) -> Self {
        Self { arena: Vec::with_capacity(bytes), datagrams: Vec::with_capacity(datagrams), ..Self::default() }
    }

    /// Loses the next run with `errno`; calls add up.
    pub fn refuse_next(&mut self, errno: i32) {
        self.refusals.push_back(errno);
    }

    /// What was sent, in order.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = (Outer, &[u8])> {
        self.datagrams.iter().map(|(outer, range)| (*outer, &self.arena[range.clone()]))
    }

    /// Calls of `send` that were not refused.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// Forgets the datagrams, keeps the memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.datagrams.clear();
        self.runs = 0;
    }
}

impl DatagramSink for MemoryDatagrams {
    fn send(&mut self, transmit: &Transmit<'_>) -> Result<(), SendFailure> {
        if let Some(errno) = self.refusals.pop_front() {
            return Err(SendFailure { lost: transmit.datagrams, error: io::Error::from_raw_os_error(errno) });
        }
        let Transmit { local, remote, port, source_port, tos, checksum, .. } = *transmit;
        let outer = Outer { local, remote, port, source_port, tos, checksum };
        let mut start = self.arena.len();
        transmit.slices.iter().for_each(|slice| self.arena.extend_from_slice(slice));
        let size = if transmit.datagrams > 1 { transmit.segment_size.max(1) } else { usize::MAX };
        while start < self.arena.len() {
            let end = start.saturating_add(size).min(self.arena.len());
            self.datagrams.push((outer, start..end));
            start = end;
        }
        self.runs += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;

    #[test]
    fn a_refused_superframe_leaves_nothing_behind() {
        let mut frames = MemoryFrames::default();
        frames.refuse_superframes(Some(libc::EINVAL));
        let slices = [IoSlice::new(b"head"), IoSlice::new(b"tail")];
        let frame = OverlayFrame { tunnel: TunnelIndex(3), slices: &slices, packets: 2 };
        assert_eq!(frames.write(&frame).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        frames.write(&OverlayFrame { packets: 1, ..frame }).unwrap();
        let recorded: Vec<_> = frames.frames().collect();
        assert_eq!(recorded, [RecordedFrame { tunnel: TunnelIndex(3), packets: 1, bytes: b"headtail" }]);
    }

    #[test]
    fn a_run_is_recorded_as_its_datagrams() {
        let mut sink = MemoryDatagrams::default();
        let slices = [IoSlice::new(b"abcd"), IoSlice::new(b"efg")];
        let transmit = Transmit {
            local: [10, 0, 0, 1].into(),
            remote: [10, 0, 0, 2].into(),
            port: 4789,
            scope: 0,
            source_port: 50_000,
            tos: 0,
            segment_size: 3,
            datagrams: 3,
            slices: &slices,
            checksum: OuterChecksum::Zero,
        };
        sink.send(&transmit).unwrap();
        let payloads: Vec<_> = sink.datagrams().map(|(_, payload)| payload.to_vec()).collect();
        assert_eq!(payloads, [b"abc".to_vec(), b"def".to_vec(), b"g".to_vec()]);
        sink.refuse_next(libc::ENOBUFS);
        assert_eq!(sink.send(&transmit).unwrap_err().lost, 3);
    }
}
