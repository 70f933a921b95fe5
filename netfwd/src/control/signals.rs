//! What ends the daemon: a signal, or a part of it that cannot go on.

use std::fmt::{self, Display};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// Why the daemon ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGINT, SIGTERM or SIGHUP: a good end.
    Signal(&'static str),
    /// What it served is gone: a good end too.
    Gone(String),
    /// Something failed.
    Failure(String),
}

impl Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => f.write_str(name),
            Self::Gone(reason) | Self::Failure(reason) => f.write_str(reason),
        }
    }
}

/// Lets any thread end the daemon; the first reason counts.
#[derive(Clone, Debug, Default)]
pub struct StopNotice(Arc<(Mutex<Option<Stop>>, Notify)>);

impl StopNotice {
    /// Ends the daemon because `reason` made it fail.
    pub fn fail(&self, reason: impl Into<String>) {
        self.give(Stop::Failure(reason.into()));
    }

    /// Ends the daemon well because of `reason`.
    pub fn end(&self, reason: impl Into<String>) {
        self.give(Stop::Gone(reason.into()));
    }

    /// Ends the daemon because its device is gone, which is how `wg-quick` and `ip` end it.
    pub fn deleted(&self, device: impl Display) {
        self.end(format!("{device} was deleted"));
    }

    fn give(&self, stop: Stop) {
        let (first, notify) = &*self.0;
        first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(stop);
        // Leaves a permit, so a notice before anyone waits is not lost.
        notify.notify_one();
    }

    async fn given(&self) -> Stop {
        let (first, notify) = &*self.0;
        loop {
            notify.notified().await;
            if let Some(stop) = first.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return stop;
            }
        }
    }
}

/// SIGINT, SIGTERM and SIGHUP, caught from the moment this exists.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` under `nohup`, whose wish it is to outlive a terminal.
    hangup: Option<Signal>,
}

impl Signals {
    /// Catches them; must be called inside a tokio runtime.
    pub(super) fn catch() -> std::io::Result<Self> {
        let hangup = (!ignores(SignalKind::hangup())).then(|| signal(SignalKind::hangup())).transpose()?;
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())?, hangup })
    }

    /// Waits for a signal or a notice, also one that came before.
    pub(super) async fn stop(&mut self, notice: &StopNotice) -> Stop {
        tokio::select! {
            _ = self.interrupt.recv() => Stop::Signal("SIGINT"),
            _ = self.terminate.recv() => Stop::Signal("SIGTERM"),
            Some(()) = received(&mut self.hangup) => Stop::Signal("SIGHUP"),
            stop = notice.given() => stop,
        }
    }
}

async fn received(signal: &mut Option<Signal>) -> Option<()> {
    signal.as_mut()?.recv().await
}

/// Whether whoever started this process had it ignore the signal.
fn ignores(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored(&status).is_some_and(|set| set >> (signal.as_raw_value() - 1) & 1 == 1)
}

/// The line `SigIgn:` of `/proc/PID/status`: a bit for each signal, the lowest one signal 1's.
fn ignored(status: &str) -> Option<u64> {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_before_anyone_waits_is_not_lost() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let notice = StopNotice::default();
        notice.fail("first");
        notice.end("second");
        assert_eq!(runtime.block_on(notice.given()), Stop::Failure("first".to_owned()));
    }

    #[test]
    fn the_kernels_set_of_ignored_signals_is_understood() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000080001001\nSigCgt:\t0000000100004442\n";
        assert_eq!(ignored(status), Some(0x8000_1001));
        assert_eq!(ignored("Name:\tnetfwd\n"), None);
    }
}
