//! The control thread: the only async code, and never a data packet.
//!
//! It finds out before anything is made whether the machine can do what the configuration says ([`preflight`]), serves
//! metrics and health, and waits for what ends the daemon.
//!
//! Invariants: signals are caught from [`Control::start`] on, so one that comes during set-up still leads to an orderly
//! end; [`Control::serve`] returns at once when one comes, however many scrapes are under way.
//!
//! Deliberately absent: stopping the workers. Whoever started them does that, after [`Control::serve`] has returned.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

pub mod health;
mod http;
pub mod links;
pub mod logging;
pub mod metrics;
pub mod preflight;
pub mod running;
pub mod secrets;
mod signals;
pub mod uapi;
pub mod wireguard;

use health::Health;
use links::{Link, Netlink};
use metrics::Metrics;
pub use signals::{Stop, StopNotice};

/// The control thread's runtime and the signals it catches.
#[derive(Debug)]
pub struct Control {
    runtime: Runtime,
    signals: signals::Signals,
}

impl Control {
    /// Makes the runtime, on the calling thread, and starts to catch signals.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let signals = runtime.block_on(async { signals::Signals::catch() })?;
        Ok(Self { runtime, signals })
    }

    /// The runtime, for tasks that live as long as [`serve`](Self::serve) runs.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The machine's interfaces with their addresses.
    pub fn links(&self) -> io::Result<Vec<Link>> {
        self.runtime.block_on(async { Netlink::open()?.links_with_addresses().await })
    }

    /// Does `work` on a thread of its own, which a signal leaves to the process' end: the verifier alone may take longer than an
    /// operator waits.
    pub fn unless_stopped<T: Send + 'static>(&mut self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stop> {
        let (done, result) = oneshot::channel();
        let thread = thread::Builder::new().name("assembly".to_owned()).spawn(move || done.send(work()).is_ok());
        if let Err(error) = thread {
            return Err(Stop::Failure(format!("cannot start a thread: {error}")));
        }
        let (Self { runtime, signals }, nobody) = (self, StopNotice::default());
        runtime.block_on(async {
            tokio::select! {
                biased;
                result = result => result.map_err(|_| Stop::Failure("the start panicked".to_owned())),
                stop = signals.stop(&nobody) => Err(stop),
            }
        })
    }

    /// Waits for a signal or a notice, without serving anything.
    pub fn wait(&mut self, notice: &StopNotice) -> Stop {
        self.runtime.block_on(self.signals.stop(notice))
    }

    /// Serves metrics and health until a signal or a notice comes. An endpoint that fails is a failure too.
    pub fn serve(&mut self, listener: TcpListener, metrics: Metrics, health: Arc<Health>, notice: &StopNotice) -> Stop {
        let Self { runtime, signals } = self;
        runtime.block_on(async {
            tokio::select! {
                stop = signals.stop(notice) => stop,
                served = http::serve(listener, metrics, health) => {
                    Stop::Failure(format!("metrics endpoint: {}", served.err().unwrap_or(io::ErrorKind::Other.into())))
                }
            }
        })
    }

    /// Ends the tasks without waiting for lookups of names, which may take long.
    pub fn close(self) {
        self.runtime.shutdown_background();
    }
}
