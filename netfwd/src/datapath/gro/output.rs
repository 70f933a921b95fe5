//! Runs become frames.

use std::io::IoSlice;
use std::mem;

use netfwd_common::reason::{DropReason, Stage};
use netfwd_common::wire::vnet;

use super::{Coalescer, MAX_BATCH, Run};
use crate::datapath::packet::InnerPacket;
use crate::datapath::seam::{FrameSink, OverlayFrame};
use crate::datapath::stats::{Counters, Direction};
use crate::datapath::superframe::{Headers, Shape};

/// "No offload": the vnet header of a packet that is written as it came.
const PLAIN: [u8; vnet::HEADER_LEN] = [0; vnet::HEADER_LEN];

/// A gather list whose memory is reused from frame to frame.
#[derive(Debug)]
pub(super) struct Gather(Vec<IoSlice<'static>>);

impl Gather {
    pub fn new() -> Self {
        // The headers and every packet's payload.
        Self(Vec::with_capacity(MAX_BATCH + 1))
    }

    fn take<'a>(&mut self) -> Vec<IoSlice<'a>> {
        mem::take(&mut self.0)
    }

    /// Takes the memory back. Collecting an emptied vector in place keeps its allocation while the lifetime changes.
    fn put_back(&mut self, mut slices: Vec<IoSlice<'_>>) {
        slices.clear();
        self.0 = slices.into_iter().map(|_| IoSlice::new(&[])).collect();
    }
}

impl Coalescer {
    /// Writes the run at `index`.
    pub(super) fn write_run(
        &mut self,
        index: usize,
        batch: &[InnerPacket<'_>],
        counters: &Counters,
        sink: &mut impl FrameSink,
    ) {
        let run = self.runs[index];
        let tunnel = counters.tunnel(batch[usize::from(run.first)].tunnel);
        tunnel.gro_input_packets[run.proto as usize].add(u64::from(run.count));
        tunnel.gro_output_frames[run.proto as usize].add(1);
        counters.frame_segments(u64::from(run.count));
        if run.count == 1 || !self.write_superframe(&run, batch, counters, sink) {
            self.write_singly(&run, batch, counters, sink);
        }
    }

    /// Writes a run of several packets as one frame; whether the kernel took it.
    fn write_superframe(
        &mut self,
        run: &Run,
        batch: &[InnerPacket<'_>],
        counters: &Counters,
        sink: &mut impl FrameSink,
    ) -> bool {
        let tunnel = batch[usize::from(run.first)].tunnel;
        let headers = Headers::of(batch[usize::from(run.first)].bytes, &run.shape());
        let mut slices = self.slices.take();
        slices.push(IoSlice::new(headers.as_bytes()));
        let (start, end) = (usize::from(run.layout.payload), usize::from(run.layout.end));
        // A length known beforehand spares the vector a look at its capacity for every slice.
        let mut position = run.first;
        slices.extend((1..run.count).map(|_| {
            let slice = payload(&batch[usize::from(position)], start, end);
            position = self.next[usize::from(position)];
            slice
        }));
        slices.push(payload(&batch[usize::from(run.last)], start, start + run.last_payload_len()));
        let written = sink.write(&OverlayFrame { tunnel, slices: &slices, packets: usize::from(run.count) });
        self.slices.put_back(slices);
        match &written {
            Ok(()) => counters.tunnel(tunnel).tun_write_frames.add(1),
            Err(error) => counters.tunnel(tunnel).tun_errors.count(error),
        }
        written.is_ok()
    }

    /// Writes a run's packets one by one, as they came.
    fn write_singly(&self, run: &Run, batch: &[InnerPacket<'_>], counters: &Counters, sink: &mut impl FrameSink) {
        self.for_each_position(run, |position| {
            let packet = &batch[usize::from(position)];
            let slices = [IoSlice::new(&PLAIN), IoSlice::new(packet.bytes)];
            match sink.write(&OverlayFrame { tunnel: packet.tunnel, slices: &slices, packets: 1 }) {
                Ok(()) => counters.tunnel(packet.tunnel).tun_write_frames.add(1),
                Err(error) => {
                    counters.tunnel(packet.tunnel).tun_errors.count(&error);
                    counters.drops.add(Direction::Ingress, Stage::Tun, DropReason::TunWrite, 1);
                }
            }
        });
    }

    fn for_each_position(&self, run: &Run, mut visit: impl FnMut(u16)) {
        let mut position = run.first;
        for _ in 1..run.count {
            visit(position);
            position = self.next[usize::from(position)];
        }
        visit(position);
    }
}

#[inline(always)]
fn payload<'a>(packet: &InnerPacket<'a>, start: usize, end: usize) -> IoSlice<'a> {
    IoSlice::new(packet.bytes.get(start..end).unwrap_or_default())
}

impl Run {
    /// Every packet but the last carries `gso_size` bytes.
    fn last_payload_len(&self) -> usize {
        (self.payload_len() - u32::from(self.gso_size) * u32::from(self.count - 1)) as usize
    }

    fn shape(&self) -> Shape {
        Shape {
            family: self.layout.family,
            is_tcp: self.proto == crate::datapath::stats::Proto::Tcp,
            ip: usize::from(self.layout.ip),
            l4: usize::from(self.layout.l4),
            payload: usize::from(self.layout.payload),
            gso_size: self.gso_size,
            // At most MAX_LENGTH.
            length: self.length as u16,
            tcp_flags: self.flags,
        }
    }
}
