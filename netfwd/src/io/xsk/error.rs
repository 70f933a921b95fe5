//! What can go wrong on the way to a bound socket, and what the operator can do about it.

use std::fmt;
use std::io;

use super::socket::Target;

/// An AF_XDP socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Sizes that the kernel would refuse with a bare EINVAL.
    #[error("AF_XDP: {0}")]
    Sizes(&'static str),
    /// The UMEM could not be allocated.
    #[error("AF_XDP: cannot map {bytes} bytes for the UMEM: {source}; free memory or configure smaller rings")]
    Memory {
        /// How much was asked for.
        bytes: usize,
        /// The system's answer.
        source: io::Error,
    },
    /// A system call was refused.
    #[error("AF_XDP on {target}: cannot {step}: {source}; {}", advice(*.step, source))]
    System {
        /// Which interface and queue.
        target: Target,
        /// What was being done.
        step: Step,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// The errno, if a system call was refused.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Sizes(_) => None,
            Self::Memory { source, .. } | Self::System { source, .. } => source.raw_os_error(),
        }
    }
}

/// The steps to a bound socket, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `socket(AF_XDP)`.
    OpenSocket,
    /// `XDP_UMEM_REG`.
    RegisterUmem,
    /// Ring sizes and mappings.
    SetUpRings,
    /// `SO_PREFER_BUSY_POLL` and its companions.
    SetBusyPoll,
    /// `bind`.
    Bind,
    /// `XDP_OPTIONS`.
    ReadMode,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenSocket => "open the socket",
            Self::RegisterUmem => "register the UMEM",
            Self::SetUpRings => "set up the rings",
            Self::SetBusyPoll => "set busy polling",
            Self::Bind => "bind",
            Self::ReadMode => "read the mode",
        })
    }
}

/// What would help, by errno as the kernel's net/xdp/xsk.c and xsk_buff_pool.c use them.
fn advice(step: Step, error: &io::Error) -> &'static str {
    match (step, error.raw_os_error()) {
        (_, Some(libc::EPERM | libc::EACCES)) => "run as root or with CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF",
        (Step::OpenSocket, Some(libc::EAFNOSUPPORT)) => {
            "this kernel has no AF_XDP (CONFIG_XDP_SOCKETS): use xdp = \"off\""
        }
        (Step::RegisterUmem, Some(libc::ENOBUFS)) => {
            "the locked-memory limit is too low: raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=infinity)"
        }
        (Step::RegisterUmem | Step::SetUpRings, Some(libc::ENOMEM)) => {
            "not enough memory to pin: configure smaller rings or fewer queues"
        }
        (Step::Bind, Some(libc::EBUSY)) => {
            "another socket holds this queue: stop the other AF_XDP program, or leave this queue to it"
        }
        (Step::Bind, Some(libc::EOPNOTSUPP)) => {
            "the driver has no zero-copy for this queue: use zero_copy = \"auto\" or \"off\""
        }
        (Step::Bind, Some(libc::EINVAL)) => {
            "the interface has no such queue, or the driver refuses this chunk size: see `ethtool -l` and the MTU"
        }
        (Step::Bind, Some(libc::ENODEV)) => "the interface is gone",
        (Step::Bind, Some(libc::ENETDOWN)) => "the interface is down: bring it up first",
        (Step::Bind, Some(libc::ENOMEM | libc::ENOBUFS)) => {
            "not enough memory: configure smaller rings or fewer queues"
        }
        (Step::SetBusyPoll, Some(libc::ENOPROTOOPT)) => "this kernel has no busy polling: use busy_poll = false",
        _ => "see the kernel log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_queue_is_named_with_what_to_do() {
        let error = Error::System {
            target: Target { ifindex: 3, queue: 1 },
            step: Step::Bind,
            source: io::Error::from_raw_os_error(libc::EBUSY),
        };
        let text = error.to_string();
        assert!(text.starts_with("AF_XDP on queue 1 of interface 3: cannot bind: "), "{text}");
        assert!(text.contains("another socket holds this queue"), "{text}");
    }
}
