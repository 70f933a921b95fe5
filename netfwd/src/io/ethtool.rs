//! How many receive queues an interface has (`ETHTOOL_GCHANNELS`), and whether it merges packets (`ETHTOOL_GGRO`).
//!
//! Asked by ioctl and not read from /sys, which shows the network namespace it was mounted in, not ours.

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketType, socket};

/// `SIOCETHTOOL` (include/uapi/linux/sockios.h).
const SIOCETHTOOL: libc::Ioctl = 0x8946;
/// `ETHTOOL_GCHANNELS` (include/uapi/linux/ethtool.h).
const ETHTOOL_GCHANNELS: u32 = 0x3c;
/// `ETHTOOL_GGRO`.
const ETHTOOL_GGRO: u32 = 0x2b;

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// The interface's active receive queues; 1 where the driver has no notion of channels.
pub fn receive_queues(interface: &str) -> io::Result<u32> {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    match ask(interface, &mut channels) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(1),
        Err(error) => Err(error),
        Ok(()) => Ok((channels.rx + channels.combined).max(1)),
    }
}

/// Whether the kernel merges packets that arrive here (GRO).
pub fn merges_on_receive(interface: &str) -> io::Result<bool> {
    let mut value = Value { command: ETHTOOL_GGRO, data: 0 };
    ask(interface, &mut value)?;
    Ok(value.data != 0)
}

/// A structure that `SIOCETHTOOL` may be pointed at.
///
/// # Safety
///
/// It must be `repr(C)` and the very structure that belongs to the command in its first field.
unsafe trait Question {}

// SAFETY: `struct ethtool_channels`, made with ETHTOOL_GCHANNELS only.
unsafe impl Question for Channels {}

// SAFETY: `struct ethtool_value`, made with ETHTOOL_GGRO only.
unsafe impl Question for Value {}

fn ask<Q: Question>(interface: &str, question: &mut Q) -> io::Result<()> {
    let mut request = request_for(interface)?;
    request.ifr_ifru.ifru_data = (&raw mut *question).cast();
    let any_socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: `request` names an interface and points to the command's structure, which outlives the call.
    let result = unsafe { libc::ioctl(any_socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn request_for(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is a C structure for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_one_queue_and_a_missing_interface_is_an_error() {
        assert_eq!(receive_queues("lo").unwrap(), 1);
        assert!(merges_on_receive("lo").unwrap(), "which is the default of every device");
        assert_eq!(receive_queues("nonesuch0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
