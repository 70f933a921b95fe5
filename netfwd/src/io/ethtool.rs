//! How many receive queues an interface has (`ETHTOOL_GCHANNELS`).
//!
//! Asked by ioctl and not read from /sys, which shows the network namespace it was mounted in, not ours.

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketType, socket};

/// `SIOCETHTOOL` (include/uapi/linux/sockios.h).
const SIOCETHTOOL: libc::Ioctl = 0x8946;
/// `ETHTOOL_GCHANNELS` (include/uapi/linux/ethtool.h).
const ETHTOOL_GCHANNELS: u32 = 0x3c;

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

/// The interface's active receive queues; 1 where the driver has no notion of channels.
pub fn receive_queues(interface: &str) -> io::Result<u32> {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    let mut request = request_for(interface)?;
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    let any_socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: `request` names an interface and points to an `ethtool_channels` that outlives the call.
    let result = unsafe { libc::ioctl(any_socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::EOPNOTSUPP) { Ok(1) } else { Err(error) };
    }
    Ok((channels.rx + channels.combined).max(1))
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
        assert_eq!(receive_queues("nonesuch0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
