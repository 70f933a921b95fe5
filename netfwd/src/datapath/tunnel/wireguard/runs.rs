//! Datagrams back to back, cut into runs that one system call can send.
//!
//! Invariants: all datagrams of a run have the size of its first but the last, which may be shorter; a run has at most
//! [`MAX_DATAGRAMS`] datagrams and [`MAX_PAYLOAD`] bytes. The buffer never grows beyond what [`Runs::new`] allocated.

use std::io::IoSlice;

use super::path::{Outgoing, Path};
use crate::datapath::tunnel::encap::{MAX_DATAGRAMS, MAX_PAYLOAD};

/// Room for an ordinary superframe of 64 KiB, sealed, and for one datagram of the largest size in any case.
const CAPACITY: usize = 2 * MAX_PAYLOAD;
/// A superframe of tiny segments is emitted in several goes.
const MAX_RUNS: usize = 16;

pub(super) struct Runs {
    bytes: Vec<u8>,
    runs: Vec<Shape>,
}

/// A run's shape; it starts where the one before ends.
struct Shape {
    tos: u8,
    segment_size: usize,
    datagrams: usize,
    bytes: usize,
}

impl Shape {
    fn takes(&self, tos: u8, len: usize) -> bool {
        let is_equal_so_far = self.bytes == self.segment_size * self.datagrams;
        self.tos == tos
            && len <= self.segment_size
            && is_equal_so_far
            && self.datagrams < MAX_DATAGRAMS
            && self.bytes + len <= MAX_PAYLOAD
    }
}

impl Runs {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(CAPACITY), runs: Vec::with_capacity(MAX_RUNS) }
    }

    /// Whether another datagram of this length fits.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.bytes.len() + len <= CAPACITY && self.runs.len() < MAX_RUNS
    }

    /// Adds a datagram for which there is room.
    pub(super) fn push(&mut self, tos: u8, datagram: &[u8]) {
        self.bytes.extend_from_slice(datagram);
        let len = datagram.len();
        match self.runs.last_mut().filter(|run| run.takes(tos, len)) {
            Some(run) => {
                run.datagrams += 1;
                run.bytes += len;
            }
            None => self.runs.push(Shape { tos, segment_size: len, datagrams: 1, bytes: len }),
        }
    }

    /// Gives all runs to `emit` and forgets them; how many bytes of them left.
    pub(super) fn emit(&mut self, path: Path, emit: &mut impl FnMut(&Outgoing<'_>) -> usize) -> usize {
        let (mut rest, mut sent) = (self.bytes.as_slice(), 0);
        for Shape { tos, segment_size, datagrams, bytes } in self.runs.drain(..) {
            let (run, behind) = rest.split_at(bytes);
            rest = behind;
            sent += emit(&Outgoing { path, tos, slices: &[IoSlice::new(run)], segment_size, datagrams, bytes });
        }
        self.bytes.clear();
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs_of(datagrams: &[(u8, usize)]) -> Vec<(u8, usize, usize, usize)> {
        let mut runs = Runs::new();
        for &(tos, len) in datagrams {
            assert!(runs.has_room(len));
            runs.push(tos, &vec![tos; len]);
        }
        let mut seen = Vec::new();
        runs.emit(Path::to("192.0.2.1:9".parse().unwrap()), &mut |run: &Outgoing<'_>| {
            assert_eq!(run.slices.iter().map(|slice| slice.len()).sum::<usize>(), run.bytes);
            assert!(run.slices.iter().all(|slice| slice.iter().all(|byte| *byte == run.tos)));
            seen.push((run.tos, run.segment_size, run.datagrams, run.bytes));
            run.bytes
        });
        seen
    }

    #[test]
    fn a_shorter_datagram_ends_its_run_and_a_longer_one_starts_another() {
        assert_eq!(
            runs_of(&[(0, 100), (0, 100), (0, 60), (0, 60), (0, 80)]),
            [(0, 100, 3, 260), (0, 60, 1, 60), (0, 80, 1, 80)]
        );
    }

    #[test]
    fn another_congestion_mark_starts_another_run() {
        assert_eq!(runs_of(&[(0, 50), (3, 50), (3, 50)]), [(0, 50, 1, 50), (3, 50, 2, 100)]);
    }

    #[test]
    fn a_run_keeps_to_what_one_call_can_send() {
        assert_eq!(runs_of(&[(0, 32); 65]), [(0, 32, 64, 2048), (0, 32, 1, 32)]);
        assert_eq!(runs_of(&[(0, 1452); 47]), [(0, 1452, 45, 65_340), (0, 1452, 2, 2904)]);
    }
}
