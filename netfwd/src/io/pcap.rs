//! Captures of what the data path writes, as classic pcap files, for tests and debugging.
//!
//! [`Captured`] wraps a [`FrameSink`]; the vnet header is left out. The data path has no clock, so a record's time is
//! its number, in microseconds.

use std::io::{self, Write};

use netfwd_common::wire::vnet;

use super::gather::total_len;
use crate::datapath::seam::{FrameSink, OverlayFrame};

/// LINKTYPE_ETHERNET: what a TAP carries.
pub const LINKTYPE_ETHERNET: u32 = 1;
/// LINKTYPE_RAW: IP packets, what a TUN carries.
pub const LINKTYPE_RAW: u32 = 101;

const MAGIC: u32 = 0xa1b2_c3d4;
const SNAP_LEN: u32 = 262_144;

/// Writes a pcap file.
#[derive(Debug)]
pub struct PcapWriter<W> {
    out: W,
    records: u32,
}

impl<W: Write> PcapWriter<W> {
    /// Writes the file header.
    pub fn new(mut out: W, link_type: u32) -> io::Result<Self> {
        out.write_all(&MAGIC.to_ne_bytes())?;
        out.write_all(&2u16.to_ne_bytes())?;
        out.write_all(&4u16.to_ne_bytes())?;
        out.write_all(&[0; 8])?;
        out.write_all(&SNAP_LEN.to_ne_bytes())?;
        out.write_all(&link_type.to_ne_bytes())?;
        Ok(Self { out, records: 0 })
    }

    /// Writes one record of the bytes of `slices` after the first `skip`.
    pub fn record(&mut self, slices: &[io::IoSlice<'_>], mut skip: usize) -> io::Result<()> {
        let len = u32::try_from(total_len(slices).saturating_sub(skip)).unwrap_or(u32::MAX);
        for field in [self.records / 1_000_000, self.records % 1_000_000, len, len] {
            self.out.write_all(&field.to_ne_bytes())?;
        }
        for slice in slices {
            self.out.write_all(slice.get(skip..).unwrap_or_default())?;
            skip = skip.saturating_sub(slice.len());
        }
        self.records = self.records.wrapping_add(1);
        Ok(())
    }

    /// The writer underneath.
    pub fn into_inner(self) -> W {
        self.out
    }
}

/// A sink whose accepted frames are captured too.
#[derive(Debug)]
pub struct Captured<S, W> {
    /// The sink underneath.
    pub sink: S,
    /// The capture.
    pub capture: PcapWriter<W>,
}

impl<S: FrameSink, W: Write> FrameSink for Captured<S, W> {
    fn write(&mut self, frame: &OverlayFrame<'_>) -> io::Result<()> {
        self.sink.write(frame)?;
        if let Err(error) = self.capture.record(frame.slices, vnet::HEADER_LEN) {
            // The frame was delivered: a full disk must not make it look lost.
            tracing::debug!(%error, "capture failed");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::datapath::packet::TunnelIndex;
    use crate::io::mem::MemoryFrames;

    #[test]
    fn a_capture_holds_the_frame_without_its_vnet_header() {
        let capture = PcapWriter::new(Vec::new(), LINKTYPE_RAW).unwrap();
        let mut sink = Captured { sink: MemoryFrames::default(), capture };
        let slices = [IoSlice::new(&[0; 10]), IoSlice::new(b"packet")];
        sink.write(&OverlayFrame { tunnel: TunnelIndex(0), slices: &slices, packets: 1 }).unwrap();
        let file = sink.capture.into_inner();
        assert_eq!(file.len(), 24 + 16 + 6);
        assert_eq!(&file[40..], b"packet");
        assert_eq!(file[32..36], 6u32.to_ne_bytes());
    }
}
