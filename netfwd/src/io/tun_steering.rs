//! Which of a device's queues the kernel puts a packet into: always the same one for all packets of a flow.
//!
//! Left to itself, the driver sends a flow to the queue that last wrote its other direction, and to one chosen by hash as long as
//! there was none or for three seconds was none (`tun_automq_select_queue`, `tun_flow_update`, drivers/net/tun.c). So a flow
//! moves when its first answer comes, while the old queue still holds packets, and the worker of the new one overtakes.
//! A program of ours (`TUNSETSTEERINGEBPF`, since Linux 4.16) asks the packet alone. It also saves the driver a hash for each
//! frame written.
//!
//! - What a flow is, is told by `netfwd_common::steering`; what is none, as ARP, goes to the first queue.
//! - A device has its program as long as it lives, and nothing else has to.
//!
//! Deliberately absent: both directions of a flow on one worker, which the driver's way gave. They share nothing that would
//! make it worth a flow's order.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use aya::programs::{ProgramError, ProgramFd, SocketFilter};
use aya::{EbpfError, EbpfLoader, VerifierLogLevel};

use super::xdp::chain;
use crate::datapath::packet::Link;
use crate::ebpf::STEERING;

/// Why the kernel chooses the queues its own way.
#[derive(Debug, thiserror::Error)]
pub(super) enum SteeringError {
    /// The object does not parse.
    #[error("cannot load the eBPF object: {}", chain(.0))]
    Object(EbpfError),
    /// The verifier refused the program, or privileges are missing.
    #[error("the kernel refused the program: {}", chain(.0))]
    Program(ProgramError),
    /// The object lacks the program.
    #[error("the eBPF object has no `{0}`: it was built from other sources")]
    Missing(&'static str),
    /// The device does not take the program.
    #[error(transparent)]
    Device(io::Error),
}

// Neither is told as a source: all causes are in the text.
impl From<EbpfError> for SteeringError {
    fn from(error: EbpfError) -> Self {
        Self::Object(error)
    }
}

impl From<ProgramError> for SteeringError {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

/// The programs, in the kernel.
struct Programs {
    tun: ProgramFd,
    tap: ProgramFd,
}

/// Has the kernel choose the queues of a device by flow; `queue` is any of them.
pub(super) fn attach(queue: BorrowedFd<'_>, link: Link) -> Result<(), SteeringError> {
    let programs = programs()?;
    let program = match link {
        Link::Ip => &programs.tun,
        Link::Ethernet => &programs.tap,
    };
    set_program(queue, program.as_fd()).map_err(SteeringError::Device)
}

/// Loaded once for all devices: the loader first reads what the kernel tells of its types, which takes milliseconds.
fn programs() -> Result<&'static Programs, SteeringError> {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    match PROGRAMS.get() {
        Some(programs) => Ok(programs),
        None => Programs::load().map(|programs| PROGRAMS.get_or_init(|| programs)),
    }
}

impl Programs {
    fn load() -> Result<Self, SteeringError> {
        let mut object = EbpfLoader::new().verifier_log_level(VerifierLogLevel::STATS).load(STEERING)?;
        let mut load = |name| -> Result<ProgramFd, SteeringError> {
            let program: &mut SocketFilter =
                object.program_mut(name).ok_or(SteeringError::Missing(name))?.try_into()?;
            program.load()?;
            Ok(program.fd()?.try_clone().map_err(ProgramError::from)?)
        };
        Ok(Self { tun: load("tun")?, tap: load("tap")? })
    }
}

fn set_program(queue: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let descriptor: libc::c_int = program.as_raw_fd();
    // SAFETY: TUNSETSTEERINGEBPF reads one int behind the pointer, which is a live descriptor.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const descriptor) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
