//! Packets seen and packets made: what no ordinary socket shows or sends.
//!
//! A [`Capture`] reads what passes a namespace's devices, as tcpdump does; nothing of netfwd's takes part in reading it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use netfwd_common::checksum::Sum;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, eth, ipproto, netdevice, recv, send, sendto,
    socket_with, sockopt,
};
use xtask::lab::Namespace;
use xtask::machine::slowness;

/// Nothing for this long means that nothing more comes.
const QUIET: Duration = Duration::from_millis(150);
/// How long is waited for what must come.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a longer frame the rest is cut off; superframes pass a veth pair whole.
const SNAP: usize = 2048;

/// A packet socket on every device of a namespace, in both directions.
pub struct Capture(OwnedFd);

impl Capture {
    /// Starts now.
    pub fn start(namespace: &Namespace) -> Self {
        let open = || socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, Some(eth::ALL));
        let socket = namespace.run(open).expect("the namespace").expect("a packet socket");
        sockopt::set_socket_recv_buffer_size_force(&socket, 32 << 20).expect("SO_RCVBUFFORCE");
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(QUIET)).expect("SO_RCVTIMEO");
        Self(socket)
    }

    /// Every UDP and TCP packet since the start or the last call, fragments left out.
    pub fn packets(&self) -> Vec<Packet> {
        self.until(|_| true)
    }

    /// The same, and what comes until that is enough, for which a busy machine gets time.
    pub fn until(&self, enough: impl Fn(&[Packet]) -> bool) -> Vec<Packet> {
        let mut frame = vec![0; SNAP];
        let mut packets = Vec::new();
        let patience = Instant::now() + PATIENCE.mul_f64(slowness());
        loop {
            match recv(&self.0, &mut frame[..], RecvFlags::empty()) {
                Ok((length, _)) => packets.extend(Packet::of_frame(&frame[..length])),
                Err(_) if !enough(&packets) && Instant::now() < patience => {}
                Err(_) => return packets,
            }
        }
    }

    /// So many of those that are wanted, for which a busy machine gets time, and whatever comes soon after them.
    pub fn awaited(&self, count: usize, wanted: impl Fn(&Packet) -> bool) -> Vec<Packet> {
        let packets = self.until(|packets| packets.iter().filter(|packet| wanted(packet)).count() >= count);
        packets.into_iter().filter(wanted).collect()
    }

    /// Of those, what `from` sent into a tunnel on `port`.
    pub fn tunnelled(&self, from: IpAddr, port: u16) -> Vec<Packet> {
        self.packets().into_iter().filter(|packet| packet.is_tunnelled(from, port)).collect()
    }
}

/// A packet socket that sends whole frames out of one device.
pub struct Injector(OwnedFd);

impl Injector {
    /// On that device of a namespace.
    pub fn on(namespace: &Namespace, device: &str) -> Self {
        let open = || {
            let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
            let index = netdevice::name_to_index(&socket, device)?;
            rustix::io::Result::Ok((socket, index))
        };
        let (socket, index) = namespace.run(open).expect("the namespace").expect("a packet socket");
        super::order::bind(&socket, index);
        Self(socket)
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) {
        assert_eq!(send(&self.0, frame, SendFlags::empty()), Ok(frame.len()));
    }
}

/// A raw socket that sends UDP from ports that other programs have.
pub struct Forger(OwnedFd);

impl Forger {
    /// In that namespace.
    pub fn start(namespace: &Namespace) -> Self {
        let open = || socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::UDP));
        Self(namespace.run(open).expect("the namespace").expect("a raw socket"))
    }

    /// Sends a datagram between these addresses, whose first one the namespace has.
    pub fn send(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
        let length = 8 + payload.len() as u16;
        let header = [from.port(), to.port(), length, 0].map(u16::to_be_bytes).concat();
        let mut datagram = [&header, payload].concat();
        let pseudo = Sum::ZERO.add(&from.ip().octets()).add(&to.ip().octets()).add_u16(UDP.into()).add_u16(length);
        let checksum = pseudo.add(&datagram).checksum();
        datagram[6..8].copy_from_slice(&checksum.to_bytes());
        let sent = sendto(&self.0, &datagram, SendFlags::empty(), &SocketAddrV4::new(*to.ip(), 0));
        assert_eq!(sent, Ok(datagram.len()));
    }
}

/// UDP's protocol number.
pub const UDP: u8 = 17;
/// TCP's protocol number.
pub const TCP: u8 = 6;

/// An IP packet as a test looks at it.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Destination MAC address; zeros on an L3 device.
    pub mac: [u8; 6],
    pub ethertype: u16,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub tos: u8,
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
    /// Transport header and payload.
    pub transport: Vec<u8>,
}

impl Packet {
    /// Reads an Ethernet frame, or an IP packet where there is no Ethernet header (a TUN).
    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        let ethertype = half(frame, 12)?;
        match ethertype {
            0x0800 | 0x86dd => Some(Self { mac: *frame.first_chunk()?, ethertype, ..Self::of_ip(frame.get(14..)?)? }),
            _ => Self::of_ip(frame),
        }
    }

    /// Reads an IP packet without options or extension headers.
    pub fn of_ip(bytes: &[u8]) -> Option<Self> {
        let (source, destination, tos, protocol, header) = match bytes.first()? {
            0x45 if half(bytes, 6)? & 0x3fff == 0 => {
                (v4(bytes, 12)?, v4(bytes, 16)?, *bytes.get(1)?, *bytes.get(9)?, 20)
            }
            first if first >> 4 == 6 => {
                (v6(bytes, 8)?, v6(bytes, 24)?, (half(bytes, 0)? >> 4) as u8, *bytes.get(6)?, 40)
            }
            _ => return None,
        };
        let transport = bytes.get(header..)?;
        let has_ports = matches!(protocol, TCP | UDP);
        let port = |at| if has_ports { half(transport, at) } else { Some(0) };
        Some(Self {
            mac: [0; 6],
            ethertype: 0,
            source,
            destination,
            tos,
            protocol,
            source_port: port(0)?,
            destination_port: port(2)?,
            transport: transport.to_vec(),
        })
    }

    /// Did `from` send it into a tunnel on `port`?
    pub fn is_tunnelled(&self, from: IpAddr, port: u16) -> bool {
        self.source == from && self.protocol == UDP && self.destination_port == port
    }

    /// The ECN field.
    pub fn ecn(&self) -> u8 {
        self.tos & 3
    }

    /// The VNI behind the UDP header.
    pub fn vni(&self) -> u32 {
        self.transport.get(12..15).map_or(u32::MAX, |vni| u32::from_be_bytes([0, vni[0], vni[1], vni[2]]))
    }

    /// The inner Ethernet frame of a VXLAN datagram.
    pub fn inner_frame(&self) -> &[u8] {
        self.transport.get(16..).unwrap_or_default()
    }

    /// The inner IP packet of a VXLAN datagram, if it is one.
    pub fn inner(&self) -> Option<Self> {
        Self::of_frame(self.inner_frame())
    }

    /// The field in the UDP header.
    pub fn udp_checksum(&self) -> u16 {
        half(&self.transport, 6).unwrap_or(0)
    }

    /// Is the UDP checksum the one of these bytes (RFC 768)? Only for what was captured whole.
    pub fn udp_checksum_is_right(&self) -> bool {
        let address = |address| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let length = self.transport.len() as u16;
        let pseudo = Sum::ZERO.add(&address(self.source)).add(&address(self.destination));
        pseudo.add_u16(UDP.into()).add_u16(length).add(&self.transport).is_valid()
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?).into())
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?).into())
}

/// A UDP socket in that namespace.
pub fn bound(namespace: &Namespace, address: IpAddr, port: u16) -> UdpSocket {
    let bind = || UdpSocket::bind(SocketAddr::new(address, port));
    let socket = namespace.run(bind).expect("the namespace").expect("a UDP socket");
    sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).expect("SO_RCVBUFFORCE");
    socket.set_read_timeout(Some(QUIET)).expect("SO_RCVTIMEO");
    socket
}

/// Every datagram that waits at the socket or comes soon.
pub fn received(socket: &UdpSocket) -> Vec<Vec<u8>> {
    awaited(socket, 0)
}

/// So many datagrams, for which a busy machine gets time, and whatever comes soon after them.
pub fn awaited(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    let mut datagrams = Vec::new();
    let patience = Instant::now() + PATIENCE.mul_f64(slowness());
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => datagrams.push(buffer[..length].to_vec()),
            Err(_) if datagrams.len() < count && Instant::now() < patience => {}
            Err(_) => return datagrams,
        }
    }
}
