//! The layout of everything that crosses the BPF boundary: map names, keys, values and the metadata record.
//!
//! All addresses are sixteen bytes, IPv4 as v4-mapped IPv6 (RFC 4291 §2.5.5.2), so one map serves both families. Values
//! are host endian: both halves run on one machine. Keys have no padding that is not a named, zeroed field, since BPF
//! hash maps compare every byte.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::reason::{DropReason, PassReason};
use crate::wire::ethernet::Mac;

/// Hash map: [`TunnelKey`] → [`TunnelEntry`]. The fast path asks it once for each datagram, whatever the kind.
pub const TUNNELS: &str = "TUNNELS";
/// Hash map: [`EndpointKey`] → [`EndpointEntry`].
pub const ENDPOINTS: &str = "ENDPOINTS";
/// Hash map: [`NetworkKey`] → one byte: which VNIs exist, asked only to name the reason of a drop.
pub const NETWORKS: &str = "NETWORKS";
/// XSKMAP: receive queue → AF_XDP socket.
pub const XSKS: &str = "XSKS";
/// Array of one: [`Control`].
pub const CONTROL: &str = "CONTROL";
/// Per-CPU array of one: [`CpuState`].
pub const CPU_STATE: &str = "CPU_STATE";

/// Most tunnel × remote pairs.
pub const MAX_TUNNELS: u32 = 65_536;
/// Most local address × port pairs.
pub const MAX_ENDPOINTS: u32 = 1_024;
/// Most receive queues of one interface.
pub const MAX_QUEUES: u32 = 256;

/// What the program did with a packet: index into [`Counters::actions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// Left to the kernel.
    Pass,
    /// Dropped.
    Drop,
    /// Steered into an AF_XDP socket.
    Redirect,
}

impl Action {
    /// Every action, in index order.
    pub const ALL: [Self; 3] = [Self::Pass, Self::Drop, Self::Redirect];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Redirect => "redirect",
        }
    }
}

/// The tunnel protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TunnelKind {
    /// VXLAN: Ethernet inside.
    Vxlan = 0,
    /// VXLAN-GPE carrying IP.
    VxlanGpe = 1,
    /// WireGuard: IP inside, sealed.
    WireGuard = 2,
}

impl TunnelKind {
    /// Reads the byte that stands for a kind in map values.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Vxlan),
            1 => Some(Self::VxlanGpe),
            2 => Some(Self::WireGuard),
            _ => None,
        }
    }

    /// The name in configuration and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::VxlanGpe => "vxlan-gpe",
            Self::WireGuard => "wireguard",
        }
    }

    /// Whether the tunnel carries Ethernet and so surfaces as a TAP.
    pub const fn is_l2(self) -> bool {
        matches!(self, Self::Vxlan)
    }
}

/// Exact match of a datagram: who sent what to which of our addresses.
///
/// A WireGuard peer may roam: its messages are ours whoever sent them, so their key has neither remote nor VNI
/// ([`TunnelKey::roaming`]). Which of the two keys to ask for, a datagram's first four bytes say by themselves
/// ([`MessageType::from_word`](crate::wire::wireguard::MessageType::from_word)), so either kind takes one lookup. A tunnel that
/// listens on every address has one entry for each address of this machine, since a port alone would also catch what
/// is only forwarded. One address and port carry one tunnel of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TunnelKey {
    /// Outer destination.
    pub local: [u8; 16],
    /// Outer source.
    pub remote: [u8; 16],
    /// Network identifier.
    pub vni: u32,
    /// Destination UDP port, host order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

impl TunnelKey {
    /// The key of a tunnel whose peers may be anywhere.
    pub const fn roaming(local: [u8; 16], port: u16) -> Self {
        Self { local, remote: [0; 16], vni: 0, port, reserved: 0 }
    }
}

/// What an exact match leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TunnelEntry {
    /// Index into the forwarding table's tunnels.
    pub tunnel: u16,
    /// Index into that tunnel's remotes; WireGuard: 0.
    pub remote: u16,
    /// A [`TunnelKind`].
    pub kind: u8,
    /// `FLAG_*` bits.
    pub flags: u8,
    /// Zero.
    pub reserved: u16,
}

/// One of our addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EndpointKey {
    /// Outer destination.
    pub local: [u8; 16],
    /// Destination UDP port, host order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// What listens there: one kind per endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EndpointEntry {
    /// A [`TunnelKind`].
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// A tunnel, whoever its remotes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetworkKey {
    /// Outer destination.
    pub local: [u8; 16],
    /// Network identifier.
    pub vni: u32,
    /// Destination UDP port, host order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// [`TunnelEntry::flags`]: a zero outer UDP checksum is accepted over IPv6 (RFC 6935).
pub const FLAG_UDP6_ZERO_CSUM_RX: u8 = 1;

/// What to do about bad checksums: [`Policy::verify`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Verify {
    /// Drop and count.
    #[default]
    Drop = 0,
    /// Count, deliver unmerged.
    Count = 1,
    /// Do not look; user space still verifies what it merges.
    Off = 2,
}

/// The switches of one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Policy {
    /// A [`Verify`].
    pub verify: u8,
    /// 1: unfinished (partial) inner checksums are delivered, to be finished in user space.
    pub accept_partial: u8,
    /// 1: aya-log lines for drops.
    pub debug: u8,
    /// The longest frame that the AF_XDP buffers hold, in units of 64 bytes; 0: any.
    pub frame_limit: u8,
    /// Whose frames are ours, as [`station`] has it; zero: everybody's.
    pub station: [u32; 2],
}

/// An interface's MAC address as [`Policy::station`]: the words at the start of a frame for it, without the sender's two bytes.
pub const fn station([a, b, c, d, e, f]: Mac) -> [u32; 2] {
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, 0, 0])]
}

/// What user space tells the program, in one place, since each look at a map costs a packet about two nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Control {
    /// The interface's switches.
    pub policy: Policy,
    /// Changes after each change of [`TUNNELS`], upon which all [`Newest`] are void. Never 0.
    pub generation: u32,
}

/// What the program keeps for each CPU, in one place for the same reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuState {
    /// What it has counted on this CPU since it was loaded.
    pub counters: Counters,
    /// The newest matches: an exact match costs as much as summing half a packet, and datagrams come in trains.
    pub newest: [Newest; NEWEST_SLOTS],
}

/// How many packets went which way and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counters {
    /// Every packet, by [`Action`].
    pub actions: [u64; Action::ALL.len()],
    /// Dropped, by [`DropReason`].
    pub drops: [u64; DropReason::COUNT],
    /// Left to the kernel, by [`PassReason`].
    pub passes: [u64; PassReason::COUNT],
    /// What `verify = "count"` let through, by [`DropReason`].
    pub tolerated: [u64; DropReason::COUNT],
}

/// Matches remembered on each CPU: a power of two, since bits of remote and VNI choose the slot.
pub const NEWEST_SLOTS: usize = 64;

/// A remembered match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Newest {
    /// A [`TunnelKey`].
    pub key: [u32; 10],
    /// [`Control::generation`] when it was looked up; 0: never.
    pub generation: u32,
    /// What was found.
    pub entry: TunnelEntry,
    /// Zero.
    pub reserved: u32,
}

/// [`Metadata::magic`].
pub const METADATA_MAGIC: u16 = 0x4e66;
/// [`Metadata::version`].
pub const METADATA_VERSION: u8 = 1;

/// What XDP found out about the inner checksums; of a WireGuard message, whose inside is sealed, about the outer ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ChecksumVerdict {
    /// Not looked at: user space must verify before merging.
    Unverified = 0,
    /// Inner IPv4 header and TCP/UDP checksums are right. WireGuard: the outer ones are.
    Verified = 1,
    /// The inner UDP checksum is zero over IPv4; the rest is right. WireGuard: the outer one is zero.
    Absent = 2,
    /// The bare pseudo-header sum; the rest is right. User space finishes an inner one.
    Partial = 3,
    /// Wrong, let through by `verify = "count"`: never merge.
    Bad = 4,
}

impl ChecksumVerdict {
    /// Reads the byte that stands for a verdict in the metadata.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Unverified),
            1 => Some(Self::Verified),
            2 => Some(Self::Absent),
            3 => Some(Self::Partial),
            4 => Some(Self::Bad),
            _ => None,
        }
    }
}

/// The record in front of a redirected packet, right before `desc.addr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Metadata {
    /// [`METADATA_MAGIC`].
    pub magic: u16,
    /// [`METADATA_VERSION`].
    pub version: u8,
    /// A [`ChecksumVerdict`].
    pub checksums: u8,
    /// [`TunnelEntry::tunnel`].
    pub tunnel: u16,
    /// [`TunnelEntry::remote`].
    pub remote: u16,
    /// Where the inner packet starts, from the start of the frame. WireGuard: where the message starts.
    pub inner_offset: u16,
    /// Length of the inner packet (Ethernet header included for L2) or the message, outer padding excluded.
    pub inner_len: u16,
    /// Outer ECN field (two bits).
    pub ecn: u8,
    /// WireGuard: a [`MessageType`](crate::wire::wireguard::MessageType), so that data and handshakes can be told apart. Zero
    /// for other kinds.
    pub message: u8,
    /// Folded hash of the inner flow, or of the session that a WireGuard data message names; 0 when there is none.
    pub flow_hash: u16,
}

/// `addr` as the v4-mapped IPv6 address that map keys use.
pub const fn map_ipv4(addr: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, addr[0], addr[1], addr[2], addr[3]]
}

const _: () = {
    assert!(size_of::<TunnelKey>() == 40);
    assert!(size_of::<TunnelEntry>() == 8);
    assert!(size_of::<EndpointKey>() == 20);
    assert!(size_of::<EndpointEntry>() == 4);
    assert!(size_of::<NetworkKey>() == 24);
    assert!(size_of::<Policy>() == 12);
    assert!(size_of::<Control>() == 16);
    assert!(size_of::<Newest>() == 56 && NEWEST_SLOTS.is_power_of_two());
    assert!(size_of::<Metadata>() == 16);
};
