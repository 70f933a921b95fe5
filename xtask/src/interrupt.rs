//! Ctrl-C as a flag.
//!
//! A lab must be taken down also when its user loses patience, and `Drop` does not run when a signal ends the process.
//! So the signal only sets a flag; every loop that waits looks at it and returns in the ordinary way.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP set the flag instead of ending the process.
pub fn install() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the function only stores to an atomic, which is async-signal-safe, and lives as long as the process.
        unsafe { libc::signal(signal, on_signal as *const () as libc::sighandler_t) };
    }
}

/// Has one of those signals arrived?
pub fn requested() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
