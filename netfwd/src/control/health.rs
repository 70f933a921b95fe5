//! Whether the workers live: a thread that hangs or panicked must not look healthy because the process still runs.
//!
//! Each worker beats once per batch and at least once a second when idle; a beat is one relaxed store. A worker's
//! [`Heartbeat`] that is dropped, in a panic too, counts as a dead worker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Without a beat for this long a worker is stuck.
pub const STALE_AFTER: Duration = Duration::from_secs(5);

const DEAD: u64 = u64::MAX;

/// The workers' heartbeats.
#[derive(Debug)]
pub struct Health {
    start: Instant,
    workers: Mutex<Vec<(String, Arc<AtomicU64>)>>,
}

/// One worker's end.
#[derive(Debug)]
pub struct Heartbeat {
    start: Instant,
    last: Arc<AtomicU64>,
}

impl Default for Health {
    fn default() -> Self {
        Self { start: Instant::now(), workers: Mutex::default() }
    }
}

impl Health {
    /// Adds a worker; the beat starts now.
    pub fn add_worker(&self, name: impl Into<String>) -> Heartbeat {
        let last = Arc::new(AtomicU64::new(0));
        let heartbeat = Heartbeat { start: self.start, last: last.clone() };
        heartbeat.beat(Instant::now());
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push((name.into(), last));
        heartbeat
    }

    /// `Err` names the workers that are dead or stuck at `now`.
    pub fn check(&self, now: Instant) -> Result<(), String> {
        let now = milliseconds(now, self.start);
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let ill: Vec<_> = workers.iter().filter_map(|(name, last)| diagnose(name, last, now)).collect();
        if ill.is_empty() { Ok(()) } else { Err(ill.join("; ")) }
    }
}

fn diagnose(name: &str, last: &AtomicU64, now: u64) -> Option<String> {
    match last.load(Ordering::Relaxed) {
        DEAD => Some(format!("worker {name} has ended")),
        last => {
            let silent = Duration::from_millis(now.saturating_sub(last));
            (silent > STALE_AFTER).then(|| format!("worker {name} is stuck since {} s", silent.as_secs()))
        }
    }
}

fn milliseconds(now: Instant, start: Instant) -> u64 {
    now.saturating_duration_since(start).as_millis() as u64
}

impl Heartbeat {
    /// Says that the worker is alive at `now`.
    pub fn beat(&self, now: Instant) {
        self.last.store(milliseconds(now, self.start), Ordering::Relaxed);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.last.store(DEAD, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beating_worker_is_healthy() {
        let health = Health::default();
        let _heartbeat = health.add_worker("0");
        assert_eq!(health.check(Instant::now()), Ok(()));
    }

    #[test]
    fn a_silent_worker_is_stuck() {
        let health = Health::default();
        let _heartbeat = health.add_worker("0");
        let later = Instant::now() + STALE_AFTER + Duration::from_secs(1);
        assert_eq!(health.check(later), Err("worker 0 is stuck since 6 s".to_owned()));
    }

    #[test]
    fn a_panicked_worker_is_dead() {
        let health = Health::default();
        let heartbeat = health.add_worker("1");
        let thread = std::thread::spawn(move || {
            heartbeat.beat(Instant::now());
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(thread.join().is_err());
        assert_eq!(health.check(Instant::now()), Err("worker 1 has ended".to_owned()));
    }
}
