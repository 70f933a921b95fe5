//! Inner packets on their way through a batch.

use netfwd_common::abi::ChecksumVerdict;

/// Index of a tunnel in the [`ForwardingTable`](super::table::ForwardingTable).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelIndex(pub u16);

/// Index of a remote within its tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemoteIndex(pub u16);

/// What a tunnel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Ethernet frames: the device is a TAP.
    Ethernet,
    /// IP packets: the device is a TUN.
    Ip,
}

/// What is known of an inner packet's checksums (IPv4 header and TCP/UDP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// All right: may be merged.
    Verified,
    /// UDP without a checksum over IPv4, the IPv4 header is right.
    Absent,
    /// Not known: must be verified before it is merged.
    Unverified,
    /// Wrong and tolerated by policy: never merged.
    Bad,
}

impl From<ChecksumVerdict> for Checksums {
    fn from(verdict: ChecksumVerdict) -> Self {
        match verdict {
            ChecksumVerdict::Verified => Self::Verified,
            ChecksumVerdict::Absent => Self::Absent,
            ChecksumVerdict::Bad => Self::Bad,
            // A partial checksum becomes Verified only once it has been finished.
            ChecksumVerdict::Unverified | ChecksumVerdict::Partial => Self::Unverified,
        }
    }
}

/// A decapsulated packet, where the NIC, the socket or the decryption left it.
#[derive(Clone, Copy, Debug)]
pub struct InnerPacket<'a> {
    /// The tunnel it came through; part of its flow's identity.
    pub tunnel: TunnelIndex,
    /// Whether `bytes` starts with an Ethernet or an IP header.
    pub link: Link,
    /// The packet; for IP, padding behind the total length may still be present.
    pub bytes: &'a [u8],
    /// What is known of its checksums.
    pub checksums: Checksums,
}
