//! TUN and TAP devices: where inner packets meet the kernel.
//!
//! tun-rs makes a device and gives it addresses, MTU and queue length. Frames are read and written here, with the vnet
//! header in front, because tun-rs' own offload path copies payloads.
//!
//! - A device lives as long as one of its queues is open: it is never made persistent, so a killed daemon leaves none.
//! - Each worker owns one queue. A flow's egress is always in the same one (`tun_steering.rs`).
//! - A write delivers in the writer's context and is never dropped for want of room; it is whole or an error.
//! - TUNSETOFFLOAD is per device: it is set once, after all queues are there.
//! - IFF_NAPI stays off: plain IFF_NAPI polls per write.
//!
//! Not here: coalescing and cutting, which are the data path's. Nor a smaller `gso_max_size`, though a full superframe
//! needs two `UDP_SEGMENT` calls once each segment has its tunnel header: the kernel would cut every larger superframe
//! that it forwards into single packets first (`gso_features_check`), at many times the price of a second call.

use std::ffi::CString;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netfwd_common::wire::ethernet::Mac;
use netfwd_common::wire::vnet;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use thiserror::Error;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::gather::{MAX_SLICES, total_len};
use super::tun_probe::{self, WriteOffloads};
use super::tun_steering;
use crate::datapath::packet::{Link, TunnelIndex};
use crate::datapath::seam::{FrameSink, OverlayFrame};

/// Room for any frame that a device hands over: the vnet header, an Ethernet header with two tags, 64 KiB.
pub const READ_LEN: usize = vnet::HEADER_LEN + 14 + 2 * 4 + (1 << 16);
/// Default of [`DeviceOptions::tx_queue_len`]. The kernel's 500 drops silently at a few Gbit/s.
pub const TX_QUEUE_LEN: u32 = 10_000;
/// How long a name may stay taken: a daemon that was killed a moment ago takes its devices with it.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a device is to be.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// TAP for [`Link::Ethernet`], TUN for [`Link::Ip`].
    pub link: Link,
    /// One per worker.
    pub queues: usize,
    /// The largest IP packet.
    pub mtu: u16,
    /// The TAP's own address; random if absent.
    pub mac: Option<Mac>,
    /// Put on the device.
    pub addresses: Vec<IpNet>,
    /// Whether the kernel is to give it a link-local IPv6 address of its own.
    pub link_local: bool,
    /// Whether to set its link up.
    pub up: bool,
    /// Frames that may wait in each queue for a reader.
    pub tx_queue_len: u32,
}

/// Why a device could not be made.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The name is taken.
    #[error("an interface named {name} exists already: remove it (ip link del {name}) or choose another name")]
    Exists {
        /// The name.
        name: String,
    },
    /// The name cannot be an interface's.
    #[error("{name:?} is no interface name: 1 to 15 printable ASCII characters without '/', ':' and '%'")]
    Name {
        /// The name.
        name: String,
    },
    /// Privileges are missing.
    #[error("no permission to create {name} (needs CAP_NET_ADMIN, and to read and write /dev/net/tun)")]
    Permission {
        /// The name.
        name: String,
    },
    /// IPv6 is switched off.
    #[error("{name}: cannot add {address}: IPv6 is switched off (sysctl net.ipv6.conf.default.disable_ipv6)")]
    NoIpv6 {
        /// The name.
        name: String,
        /// What was to be added.
        address: IpNet,
    },
    /// The kernel has no TUN driver.
    #[error("/dev/net/tun is missing: load the tun module (modprobe tun)")]
    NoDriver,
    /// Anything else.
    #[error("{name}: cannot {action}: {source}")]
    Other {
        /// The name.
        name: String,
        /// What failed.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A device. Its queues are what keeps it alive.
#[derive(Debug)]
pub struct OverlayDevice {
    name: String,
    index: u32,
    offloads: Offloads,
}

/// What a device's kernel side can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// UDP superframes are read (TUN_F_USO4 and TUN_F_USO6 were accepted).
    pub read_udp: bool,
    /// What may be written.
    pub write: WriteOffloads,
}

impl OverlayDevice {
    /// Makes the device, sets its link up if that is asked for, and opens one queue per worker.
    pub fn create(options: &DeviceOptions) -> Result<(Self, Vec<TunQueue>), DeviceError> {
        check_name(&options.name)?;
        wait_until_free(&options.name)?;
        let other = |action| move |source| Self::error(options, action, source);
        let first = build(options).map_err(other("create it"))?;
        let index = first.if_index().map_err(other("find its index"))?;
        let mut devices = vec![first];
        for _ in 1..options.queues.max(1) {
            let next = devices[0].try_clone().map_err(other("open another queue"))?;
            devices.push(next);
        }
        if devices.len() > 1 {
            steer(&devices[0], options);
        }
        let read_udp = set_offloads(&devices[0], &options.name).map_err(other("set its offloads"))?;
        configure(&devices[0], options)?;
        let queues = devices.into_iter().map(TunQueue::new).collect::<io::Result<_>>().map_err(other("set it up"))?;
        // UDP_L4 came in both directions with the same kernel: without the one there is no need to try the other.
        let write = if read_udp { tun_probe::write_offloads() } else { WriteOffloads::NONE };
        let offloads = Offloads { read_udp, write };
        Ok((Self { name: options.name.clone(), index, offloads }, queues))
    }

    /// The interface name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What its kernel side can do.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Frames dropped because a queue was full of frames nobody read: `tx_dropped`, since the device was made.
    pub fn queue_drops(&self) -> io::Result<u64> {
        queue_drops(&self.name)
    }

    fn error(options: &DeviceOptions, action: &'static str, source: io::Error) -> DeviceError {
        let name = options.name.clone();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => DeviceError::Permission { name },
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) if action == "create it" => DeviceError::NoDriver,
            // A device of another kind, or without IFF_MULTI_QUEUE, took the name meanwhile.
            Some(libc::EBUSY | libc::EEXIST) => DeviceError::Exists { name },
            _ => DeviceError::Other { name, action, source },
        }
    }
}

/// `tx_dropped` of an interface in the calling thread's network namespace.
pub fn queue_drops(name: &str) -> io::Result<u64> {
    // Unlike /sys/class/net, which shows the namespace that it was mounted in.
    parse_queue_drops(&std::fs::read_to_string("/proc/thread-self/net/dev")?, name)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

/// Each line is a name, a colon, eight numbers of reception, and of transmission bytes, packets, errors and drops
/// (`dev_seq_printf_stats`, net/core/net-procfs.c).
fn parse_queue_drops(table: &str, name: &str) -> Option<u64> {
    const TRANSMIT_DROPS: usize = 11;
    let lines = table.lines().filter_map(|line| line.rsplit_once(':'));
    let (_, numbers) = lines.into_iter().find(|(line_name, _)| line_name.trim() == name)?;
    numbers.split_ascii_whitespace().nth(TRANSMIT_DROPS)?.parse().ok()
}

/// Whether a device may have this name.
pub fn check_name(name: &str) -> Result<(), DeviceError> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    let good = (1..libc::IFNAMSIZ).contains(&name.len()) && name.chars().all(plain) && name != "." && name != "..";
    if good { Ok(()) } else { Err(DeviceError::Name { name: name.to_owned() }) }
}

/// TUNSETIFF attaches to an existing device of that name without a word, so its absence is checked first.
fn wait_until_free(name: &str) -> Result<(), DeviceError> {
    let c_name = CString::new(name).map_err(|_| DeviceError::Name { name: name.to_owned() })?;
    let deadline = Instant::now() + PATIENCE;
    // SAFETY: the name is a live NUL-terminated string, which the call only reads.
    while unsafe { libc::if_nametoindex(c_name.as_ptr()) } != 0 {
        if Instant::now() >= deadline {
            return Err(DeviceError::Exists { name: name.to_owned() });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn build(options: &DeviceOptions) -> io::Result<SyncDevice> {
    let layer = match options.link {
        Link::Ethernet => Layer::L2,
        Link::Ip => Layer::L3,
    };
    // `offload` is what makes tun-rs ask for IFF_VNET_HDR.
    DeviceBuilder::new()
        .name(&options.name)
        .layer(layer)
        .offload(true)
        .multi_queue(true)
        .tx_queue_len(options.tx_queue_len)
        .mtu(options.mtu)
        .enable(false)
        .build_sync()
}

fn configure(device: &SyncDevice, options: &DeviceOptions) -> Result<(), DeviceError> {
    let other = |action| move |source| OverlayDevice::error(options, action, source);
    if let (Link::Ethernet, Some(mac)) = (options.link, options.mac) {
        device.set_mac_address(mac).map_err(other("set its MAC address"))?;
    }
    if !options.link_local {
        generate_no_address(device.if_index().map_err(other("find its index"))?, &options.name);
    }
    if options.up {
        device.enabled(true).map_err(other("set it up"))?;
    }
    for &address in &options.addresses {
        match address.addr() {
            IpAddr::V4(v4) => device.add_address_v4(v4, address.prefix_len()).map_err(other("add an address")),
            IpAddr::V6(v6) => {
                device.add_address_v6(v6, address.prefix_len()).map_err(|error| match error.raw_os_error() {
                    // Without the privilege, which the device was made with, it were EPERM.
                    Some(libc::EACCES) => DeviceError::NoIpv6 { name: options.name.clone(), address },
                    _ => other("add an address")(error),
                })
            }
        }?;
    }
    Ok(())
}

fn generate_no_address(index: u32, name: &str) {
    match set_address_generation(index, In6AddrGenMode::None) {
        Ok(()) => {}
        // There is no IPv6 (`inet6_validate_link_af`).
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
        Err(error) => tracing::warn!(device = name, %error, "the kernel will give the device a link-local address"),
    }
}

/// By netlink, since containers may not write to /proc/sys; in the calling thread's namespace.
fn set_address_generation(index: u32, mode: In6AddrGenMode) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
    link.attributes.push(LinkAttribute::AfSpecUnspec(vec![inet6]));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::SetLink(link));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}

/// Without it a flow changes its queue now and then, and what is in the old one is overtaken.
fn steer(device: &SyncDevice, options: &DeviceOptions) {
    if let Err(error) = tun_steering::attach(device.as_fd(), options.link) {
        tracing::info!(device = options.name, %error, "the kernel chooses queues its own way: flows may lose their order when they change theirs");
    }
}

/// Sets header size and offloads; says whether the kernel hands over UDP superframes (since Linux 6.2).
fn set_offloads(device: &SyncDevice, name: &str) -> io::Result<bool> {
    const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    set_header_len(device.as_fd())?;
    match set_offload(device.as_fd(), TCP | UDP) {
        Ok(()) => Ok(true),
        Err(error) => {
            tracing::info!(device = name, %error, "the kernel has no UDP segmentation offload for TUN");
            set_offload(device.as_fd(), TCP).map(|()| false)
        }
    }
}

pub(super) fn set_header_len(device: BorrowedFd<'_>) -> io::Result<()> {
    let len = vnet::HEADER_LEN as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int behind the pointer.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_offload(device: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One worker's queue of a device.
#[derive(Debug)]
pub struct TunQueue {
    queue: OwnedFd,
}

impl TunQueue {
    fn new(device: SyncDevice) -> io::Result<Self> {
        // SAFETY: `into_raw_fd` gives the descriptor up, so that this is its only owner.
        let queue = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
        rustix::io::ioctl_fionbio(&queue, true)?;
        Ok(Self { queue })
    }

    /// Reads one frame with its vnet header; `None` if there is none. `buf` holds [`READ_LEN`] bytes; a frame that does
    /// not fit is cut off by the kernel.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.queue, buf) {
            Ok(len) => Ok(Some(len)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes one frame, vnet header first. It is delivered whole or not at all.
    pub fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        if slices.len() > MAX_SLICES {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let written = rustix::io::writev(&self.queue, slices)?;
        if written == total_len(slices) { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// One worker's queues of all devices, by [`TunnelIndex`].
#[derive(Debug, Default)]
pub struct TunQueues {
    queues: Vec<TunQueue>,
}

impl TunQueues {
    /// Queues in the order of the forwarding table's tunnels.
    pub fn new(queues: Vec<TunQueue>) -> Self {
        Self { queues }
    }

    /// The queue of a tunnel.
    pub fn get_mut(&mut self, tunnel: TunnelIndex) -> Option<&mut TunQueue> {
        self.queues.get_mut(usize::from(tunnel.0))
    }

    /// All queues, in the order of their tunnels.
    pub fn iter(&self) -> impl Iterator<Item = &TunQueue> {
        self.queues.iter()
    }
}

impl FrameSink for TunQueues {
    fn write(&mut self, frame: &OverlayFrame<'_>) -> io::Result<()> {
        let queue = self.get_mut(frame.tunnel).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        queue.write(frame.slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_refuse_or_expand_are_refused() {
        for name in ["", "a/b", "tun%d", "sixteen-bytes-xx", "a b", "."] {
            assert!(matches!(check_name(name), Err(DeviceError::Name { .. })), "{name:?}");
        }
        assert!(check_name("fifteen-bytes-x").is_ok());
    }

    #[test]
    fn queue_drops_are_the_fourth_number_of_transmission() {
        let table = "Inter-| Receive | Transmit\n face |bytes packets\n\
            vx7: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n    lo: 0 0 0 0 0 0 0 0 0 0 0 1 0 0 0 0\n";
        assert_eq!(parse_queue_drops(table, "vx7"), Some(12));
        assert_eq!(parse_queue_drops(table, "lo"), Some(1));
        assert_eq!(parse_queue_drops(table, "vx"), None);
    }

    #[test]
    fn a_name_that_stays_taken_is_an_error_and_not_taken_over() {
        assert!(matches!(wait_until_free("lo"), Err(DeviceError::Exists { .. })));
    }
}
