//! Which superframes this kernel takes on a write to a TUN.
//!
//! No version number tells: UDP_L4 came with Linux 6.2, 128 segments came later and were backported, and some LTS
//! kernels (6.6.44 to 6.6.48) refuse a short last segment. So the answer is tried out: on a TUN in a network namespace
//! of its own, which ends with the thread that made it, so that no packet of the probe is ever seen by anyone.

use std::io::{self, IoSlice};
use std::sync::OnceLock;

use netfwd_common::checksum::Sum;
use netfwd_common::wire::vnet;
use rustix::thread::UnshareFlags;
use tun_rs::{DeviceBuilder, Layer};
use zerocopy::IntoBytes;

/// Limits of what may be written to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOffloads {
    /// Datagrams in a UDP superframe: 0 if the kernel takes none, else 64 or 128.
    pub udp_segments: usize,
    /// Whether the last one may be shorter than the others.
    pub udp_short_last: bool,
}

impl WriteOffloads {
    /// A kernel without UDP_L4.
    pub const NONE: Self = Self { udp_segments: 0, udp_short_last: false };
}

/// Probed once per process. Without the privilege for a namespace (CAP_SYS_ADMIN) it is the least that kernels with
/// UDP_L4 take; a refusal at run time then costs a second write, never the packets.
pub fn write_offloads() -> WriteOffloads {
    const GUESS: WriteOffloads = WriteOffloads { udp_segments: 64, udp_short_last: true };
    static PROBED: OnceLock<WriteOffloads> = OnceLock::new();
    *PROBED.get_or_init(|| {
        let thread = std::thread::Builder::new().name("tun-probe".to_owned()).spawn(probe);
        let probed = thread.and_then(|thread| thread.join().unwrap_or(Err(io::ErrorKind::Other.into())));
        probed.unwrap_or_else(|error| {
            tracing::info!(%error, "cannot probe the TUN driver: assuming 64 segments per UDP superframe");
            GUESS
        })
    })
}

fn probe() -> io::Result<WriteOffloads> {
    unshare_network()?;
    let device = DeviceBuilder::new().name("probe").layer(Layer::L3).offload(true).enable(true).build_sync()?;
    super::tun::set_header_len(device_fd(&device))?;
    let takes = |segments, last| -> io::Result<bool> {
        let (header, packet) = superframe(segments, last);
        match rustix::io::writev(&device, &[IoSlice::new(header.as_bytes()), IoSlice::new(&packet)]) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::INVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    };
    let udp_segments = match (takes(2, SEGMENT)?, takes(64, SEGMENT)?, takes(128, SEGMENT)?) {
        (_, true, true) => 128,
        (_, true, false) => 64,
        (true, false, _) => 2,
        (false, false, _) => 0,
    };
    Ok(WriteOffloads { udp_segments, udp_short_last: takes(3, SEGMENT / 2)? })
}

fn unshare_network() -> io::Result<()> {
    // SAFETY: only this thread changes its network namespace, and it ends with the probe.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

fn device_fd(device: &tun_rs::SyncDevice) -> std::os::fd::BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(device)
}

const SEGMENT: usize = 100;
const HEADERS: usize = 28;

/// A UDP superframe over IPv4 whose last segment has `last` bytes.
fn superframe(segments: usize, last: usize) -> (vnet::Header, Vec<u8>) {
    let len = HEADERS + (segments - 1) * SEGMENT + last;
    let mut packet = vec![0; len];
    packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    let checksum = Sum::ZERO.add(&packet[..20]).checksum().to_bytes();
    packet[10..12].copy_from_slice(&checksum);
    let udp_len = (len - 20) as u16;
    packet[20..24].copy_from_slice(&[0, 9, 0, 9]);
    packet[24..26].copy_from_slice(&udp_len.to_be_bytes());
    let pseudo = Sum::pseudo_ipv4(&[192, 0, 2, 1], &[192, 0, 2, 2], 17, udp_len).to_bytes();
    packet[26..28].copy_from_slice(&pseudo);
    let header = vnet::Header {
        flags: vnet::NEEDS_CSUM,
        gso_type: vnet::GSO_UDP_L4,
        hdr_len: (HEADERS as u16).into(),
        gso_size: (SEGMENT as u16).into(),
        csum_start: 20.into(),
        csum_offset: 6.into(),
    };
    (header, packet)
}
