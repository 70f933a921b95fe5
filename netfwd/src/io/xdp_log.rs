//! The XDP program's debug lines (`Policy::debug`), as tracing events.
//!
//! The program says a number for a reason, since it has no strings; the name is put in here. Deliberately absent: any
//! promise that each drop has a line. The ring drops what does not fit; the counters do not.

use std::os::fd::{AsFd, BorrowedFd};

use aya::Ebpf;
use aya_log::EbpfLogger;
use netfwd_common::reason::DropReason;

/// The reading end of the log ring. Readable when there are lines: wait for its descriptor, then [`flush`](Self::flush).
pub struct XdpLog(EbpfLogger<ToTracing>);

impl XdpLog {
    /// Takes the ring out of a loaded object.
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, aya_log::Error> {
        EbpfLogger::init_with_logger(ebpf, ToTracing).map(Self)
    }

    /// Emits everything that is there.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

impl AsFd for XdpLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The `log` sink that aya-log writes to.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // The switch is `debug = true`; who set that wants to see them without another one.
        tracing::info!(target: "netfwd::xdp", "{}", with_reason_name(&record.args().to_string()));
    }

    fn flush(&self) {}
}

/// `drop reason=4 …` → `drop reason=outer_udp_zero_checksum …`.
fn with_reason_name(line: &str) -> String {
    const PREFIX: &str = "drop reason=";
    let named = line.strip_prefix(PREFIX).and_then(|rest| {
        let (number, rest) = rest.split_once(' ')?;
        let reason = DropReason::ALL.get(number.parse::<usize>().ok()?)?;
        Some(format!("{PREFIX}{} {rest}", reason.as_str()))
    });
    named.unwrap_or_else(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reasons_number_becomes_its_name() {
        let line = format!("drop reason={} queue=3", DropReason::Oam.index());
        assert_eq!(with_reason_name(&line), "drop reason=oam queue=3");
        assert_eq!(with_reason_name("drop reason=200 queue=3"), "drop reason=200 queue=3");
        assert_eq!(with_reason_name("something else"), "something else");
    }
}
