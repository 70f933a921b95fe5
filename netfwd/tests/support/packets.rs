//! A small builder of tunnel packets, for every test that needs one: `#[path = "support/packets.rs"] mod packets;`.
//!
//! Everything is right by default, checksums included; a test bends one thing and says so by the method it calls.
#![allow(dead_code)]

use std::net::IpAddr;

use netfwd_common::checksum::Sum;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Which checksum field is made, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// As the RFC says.
    Right,
    /// Zero.
    Zero,
    /// The bare pseudo-header sum, as CHECKSUM_PARTIAL leaves it.
    Partial,
    /// Off by one bit.
    Wrong,
}

/// An IP packet with TCP, UDP or raw bytes in it.
#[derive(Clone)]
pub struct Inner {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
    pub payload: Vec<u8>,
    pub checksum: Field,
    pub ip_checksum: Field,
    /// IPv4 flags and offset; IPv4 options.
    pub fragment: u16,
    pub options: Vec<u8>,
    pub sequence: u32,
}

impl Inner {
    pub fn new(protocol: u8, source: &str, destination: &str, payload: usize) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            source_port: 40_000,
            destination_port: 5_001,
            payload: (0..payload).map(|i| (i * 31 + 7) as u8).collect(),
            checksum: Field::Right,
            ip_checksum: Field::Right,
            fragment: 0x4000,
            options: Vec::new(),
            sequence: 1,
        }
    }

    pub fn tcp4(payload: usize) -> Self {
        Self::new(TCP, "10.10.0.1", "10.10.0.2", payload)
    }

    pub fn tcp6(payload: usize) -> Self {
        Self::new(TCP, "fd00::1", "fd00::2", payload)
    }

    pub fn udp4(payload: usize) -> Self {
        Self::new(UDP, "10.10.0.1", "10.10.0.2", payload)
    }

    pub fn udp6(payload: usize) -> Self {
        Self::new(UDP, "fd00::1", "fd00::2", payload)
    }

    pub fn checksum(mut self, field: Field) -> Self {
        self.checksum = field;
        self
    }

    pub fn ip_checksum(mut self, field: Field) -> Self {
        self.ip_checksum = field;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        ip(self.source, self.destination, self.protocol, &self.segment(), self)
    }

    fn segment(&self) -> Vec<u8> {
        let mut segment = [self.source_port.to_be_bytes(), self.destination_port.to_be_bytes()].concat();
        let at = match self.protocol {
            TCP => {
                segment.extend(self.sequence.to_be_bytes());
                segment.extend([0, 0, 0, 9, 0x50, 0x10, 0x20, 0, 0, 0, 0, 0]);
                16
            }
            UDP => {
                segment.extend((8 + self.payload.len() as u16).to_be_bytes());
                segment.extend([0, 0]);
                6
            }
            _ => return self.payload.clone(),
        };
        segment.extend(&self.payload);
        let pseudo = pseudo(self.source, self.destination, self.protocol, segment.len());
        let field = field(self.checksum, pseudo, pseudo.add(&segment), self.protocol == UDP);
        segment[at..at + 2].copy_from_slice(&field);
        segment
    }

    /// With an Ethernet header and VLAN tags in front.
    pub fn ethernet(&self, tags: usize) -> Vec<u8> {
        ethernet(self.source, tags, &self.bytes())
    }
}

/// The datagram around an inner packet.
#[derive(Clone)]
pub struct Outer {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub port: u16,
    pub header: [u8; 8],
    pub tags: usize,
    pub tos: u8,
    pub checksum: Field,
    pub ip_checksum: Field,
    pub fragment: u16,
    pub options: Vec<u8>,
}

impl Outer {
    pub fn new(source: &str, destination: &str, port: u16, header: [u8; 8]) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port: 50_000,
            port,
            header,
            tags: 0,
            tos: 0,
            checksum: Field::Right,
            ip_checksum: Field::Right,
            fragment: 0,
            options: Vec::new(),
        }
    }

    pub fn vxlan4(vni: u32) -> Self {
        Self::new("10.9.0.1", "10.9.0.2", 4789, vxlan(vni))
    }

    pub fn vxlan6(vni: u32) -> Self {
        Self::new("fd09::1", "fd09::2", 4789, vxlan(vni))
    }

    pub fn gpe4(vni: u32, next: u8) -> Self {
        Self::new("10.9.0.1", "10.9.0.2", 4790, gpe(vni, next))
    }

    pub fn gpe6(vni: u32, next: u8) -> Self {
        Self::new("fd09::1", "fd09::2", 4790, gpe(vni, next))
    }

    /// For [`Self::datagram`]: a WireGuard message has no tunnel header apart from itself.
    pub fn wireguard4(port: u16) -> Self {
        Self::new("10.9.0.77", "10.9.0.2", port, [0; 8])
    }

    pub fn wireguard6(port: u16) -> Self {
        Self::new("fd09::77", "fd09::2", port, [0; 8])
    }

    pub fn header(mut self, header: [u8; 8]) -> Self {
        self.header = header;
        self
    }

    pub fn tags(mut self, tags: usize) -> Self {
        self.tags = tags;
        self
    }

    pub fn checksum(mut self, field: Field) -> Self {
        self.checksum = field;
        self
    }

    pub fn ip_checksum(mut self, field: Field) -> Self {
        self.ip_checksum = field;
        self
    }

    /// The frame as it comes from the wire: `inner` behind the tunnel header.
    pub fn frame(&self, inner: &[u8]) -> Vec<u8> {
        self.datagram(&[&self.header, inner].concat())
    }

    /// The frame as it comes from the wire, `payload` being all that UDP carries.
    pub fn datagram(&self, payload: &[u8]) -> Vec<u8> {
        let mut datagram = [self.source_port.to_be_bytes(), self.port.to_be_bytes()].concat();
        datagram.extend((8 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let pseudo = pseudo(self.source, self.destination, UDP, datagram.len());
        let field = field(self.checksum, pseudo, pseudo.add(&datagram), true);
        datagram[6..8].copy_from_slice(&field);
        let shape = Inner {
            ip_checksum: self.ip_checksum,
            fragment: self.fragment,
            options: self.options.clone(),
            ..Inner::udp4(0)
        };
        let mut packet = ip(self.source, self.destination, UDP, &datagram, &shape);
        match self.source {
            IpAddr::V4(_) => packet[1] = self.tos,
            IpAddr::V6(_) => {
                packet[0] |= self.tos >> 4;
                packet[1] |= self.tos << 4;
            }
        }
        if self.source.is_ipv4() && self.tos != 0 {
            finish_ipv4(&mut packet, self.ip_checksum);
        }
        ethernet(self.source, self.tags, &packet)
    }
}

pub fn vxlan(vni: u32) -> [u8; 8] {
    let [_, a, b, c] = vni.to_be_bytes();
    [0x08, 0, 0, 0, a, b, c, 0]
}

pub fn gpe(vni: u32, next: u8) -> [u8; 8] {
    let [_, a, b, c] = vni.to_be_bytes();
    [0x0c, 0, 0, next, a, b, c, 0]
}

/// The shape of a WireGuard message of this type and length; what is sealed in it is noise.
pub fn wireguard(message_type: u8, len: usize) -> Vec<u8> {
    let mut message: Vec<u8> = (0..len).map(|i| (i * 73 + 5) as u8).collect();
    for (byte, value) in message.iter_mut().zip([message_type, 0, 0, 0]) {
        *byte = value;
    }
    message
}

pub fn ethernet(family: IpAddr, tags: usize, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for tag in 0..tags {
        frame.extend(if tags == 2 && tag == 0 { [0x88, 0xa8, 0, 5] } else { [0x81, 0, 0, 6] });
    }
    frame.extend(if family.is_ipv4() { [0x08, 0] } else { [0x86, 0xdd] });
    frame.extend(payload);
    frame
}

fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8], shape: &Inner) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header_len = 20 + shape.options.len();
            let mut packet = vec![0x40 | (header_len / 4) as u8, 0];
            packet.extend(((header_len + payload.len()) as u16).to_be_bytes());
            packet.extend([0x12, 0x34]);
            packet.extend(shape.fragment.to_be_bytes());
            packet.extend([64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(&shape.options);
            finish_ipv4(&mut packet, shape.ip_checksum);
            packet.extend(payload);
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(payload);
            packet
        }
        _ => panic!("one family per packet"),
    }
}

/// Writes the header checksum; also after a test has changed the header.
pub fn finish_ipv4(packet: &mut [u8], how: Field) {
    packet[10..12].fill(0);
    let header_len = usize::from(packet[0] & 0xf) * 4;
    let mut checksum = Sum::ZERO.add(&packet[..header_len]).checksum().to_bytes();
    checksum[0] ^= u8::from(how == Field::Wrong);
    packet[10..12].copy_from_slice(&checksum);
}

fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Sum {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Sum::pseudo_ipv4(&source.octets(), &destination.octets(), protocol, len as u16)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Sum::pseudo_ipv6(&source.octets(), &destination.octets(), protocol, len as u32)
        }
        _ => panic!("one family per packet"),
    }
}

fn field(how: Field, pseudo: Sum, whole: Sum, is_udp: bool) -> [u8; 2] {
    let checksum = whole.checksum();
    let right = if is_udp { checksum.to_udp_bytes() } else { checksum.to_bytes() };
    match how {
        Field::Right => right,
        Field::Zero => [0, 0],
        Field::Partial => pseudo.to_bytes(),
        Field::Wrong => [right[0] ^ 1, right[1]],
    }
}
