//! Why a packet was not delivered: one exhaustive enum for both halves.
//!
//! Metrics labels, the eBPF counters' indices and the README's table all come from [`DropReason::ALL`], so a reason
//! cannot exist without being reported.

/// Where on its way a packet was dropped: the `stage` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// In the XDP program.
    Xdp,
    /// Outer headers, tunnel header and lookup, in user space.
    Decap,
    /// Inner headers and checksums, in user space.
    Vet,
    /// Opening and sealing WireGuard data, and what only the peer's session can tell of a packet.
    Crypto,
    /// WireGuard handshakes.
    Handshake,
    /// Writing to or reading from the TUN/TAP.
    Tun,
    /// Route or forwarding-database lookup of an overlay packet.
    Route,
    /// Cutting a superframe.
    Segment,
    /// Sending to the underlay.
    Send,
}

impl Stage {
    /// Every stage, in index order.
    pub const ALL: [Self; 9] = [
        Self::Xdp,
        Self::Decap,
        Self::Vet,
        Self::Crypto,
        Self::Handshake,
        Self::Tun,
        Self::Route,
        Self::Segment,
        Self::Send,
    ];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Decap => "decap",
            Self::Vet => "vet",
            Self::Crypto => "crypto",
            Self::Handshake => "handshake",
            Self::Tun => "tun",
            Self::Route => "route",
            Self::Segment => "segment",
            Self::Send => "send",
        }
    }
}

macro_rules! reasons {
    ($(#[$enum_doc:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident => $label:literal,)+ }) => {
        $(#[$enum_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// Every reason, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The metric label.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// One line for people, from the variant's documentation.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }

            /// Position in [`Self::ALL`].
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

reasons! {
    /// Why a packet of ours was dropped.
    DropReason {
        /// Shorter than its headers or its length fields claim.
        Truncated => "truncated",
        /// A length field contradicts another, the packet or the message's type.
        BadLength => "bad_length",
        /// Outer IPv4 header checksum wrong.
        OuterIpChecksum => "outer_ip_checksum",
        /// Outer UDP checksum wrong.
        OuterUdpChecksum => "outer_udp_checksum",
        /// Outer UDP checksum zero over IPv6 and the tunnel does not accept that (RFC 6935).
        OuterUdpZeroChecksum => "outer_udp_zero_checksum",
        /// Tunnel header with reserved bits set, a missing flag, or a wrong version or type.
        TunnelHeader => "tunnel_header",
        /// GPE next protocol that this tunnel does not carry.
        UnknownProtocol => "unknown_protocol",
        /// GPE operations packet (O bit), never forwarded.
        Oam => "oam",
        /// No tunnel here has this VNI.
        UnknownVni => "unknown_vni",
        /// The tunnel exists but this remote is not configured for it.
        RemoteNotAllowed => "remote_not_allowed",
        /// Inner IPv4 header checksum wrong.
        InnerIpChecksum => "inner_ip_checksum",
        /// Inner TCP or UDP checksum wrong.
        InnerL4Checksum => "inner_l4_checksum",
        /// A TCP or UDP checksum is the bare pseudo-header sum: a local sender left it unfinished.
        PartialChecksum => "partial_checksum",
        /// Inner headers that no IP stack would accept.
        InnerHeader => "inner_header",
        /// Outer CE on an inner packet that is not ECN-capable (RFC 6040 §4.2).
        EcnCeNotEct => "ecn_ce_not_ect",
        /// Inner source outside the prefixes routed to this remote, or the peer's allowed IPs.
        InnerSourceDenied => "inner_source_denied",
        /// The packet is itself a datagram to or from a tunnel here: tunnels are not nested.
        Nested => "nested",
        /// The kernel refused the frame on the TUN/TAP.
        TunWrite => "tun_write",
        /// The vnet header read from the TUN/TAP contradicts the frame.
        VnetHeader => "vnet_header",
        /// No route or remote for this destination.
        NoRoute => "no_route",
        /// An overlay packet that is neither IPv4 nor IPv6 on an L3 tunnel.
        NotIp => "not_ip",
        /// Larger than a datagram can carry.
        TooBig => "too_big",
        /// The socket's queue was full, also on the retry.
        SendQueueFull => "send_queue_full",
        /// The kernel refused the datagram.
        SendError => "send_error",
        /// The metadata record of XDP contradicts the frame.
        BadMetadata => "bad_metadata",
        /// The kernel delivered a chunk that it did not have, or bytes outside of it.
        XskDescriptor => "xsk_descriptor",
        /// A packet in several chunks with a part missing, or longer than any IP packet.
        Unassembled => "unassembled",
        /// A WireGuard counter that was used before or lies behind the window.
        Replay => "replay",
        /// A WireGuard message that does not authenticate: a wrong key, tag or MAC.
        Auth => "auth",
        /// No WireGuard peer has this public key, or this destination among its allowed IPs.
        NoPeer => "no_peer",
        /// No WireGuard session has this receiver index, or it has expired.
        NoSession => "no_session",
        /// Too many WireGuard handshake messages wait: they yield, data does not.
        HandshakeQueueFull => "handshake_queue_full",
        /// Too many packets wait for their peer's handshake.
        QueueFull => "queue_full",
    }
}

reasons! {
    /// Why XDP left a packet to the kernel.
    PassReason {
        /// Neither IPv4 nor IPv6, or a VLAN stack that is not visible.
        NotIp => "not_ip",
        /// Not UDP: SSH, ICMP and all else.
        NotUdp => "not_udp",
        /// UDP to an address and port that no tunnel listens on.
        NotOurs => "not_ours",
        /// An outer fragment: the kernel reassembles it and the UDP socket receives it.
        Fragment => "fragment",
        /// Outer IPv4 options.
        IpOptions => "ip_options",
        /// Outer IPv6 extension headers.
        Ipv6Extension => "ipv6_extension",
        /// More than the linear part of an XDP buffer (jumbo frames).
        Frags => "frags",
        /// This queue has no AF_XDP socket.
        NoSocket => "no_socket",
        /// The driver has no room for the metadata record, without which user space could trust nothing.
        NoMetadata => "no_metadata",
        /// Longer than an AF_XDP buffer: the MTU has been raised since the start.
        TooLong => "too_long",
        /// Too short to be any of ours.
        TooShort => "too_short",
        /// For another station's MAC address, or for all: the kernel knows which of these it takes.
        OtherStation => "other_station",
        /// WireGuard from a link-local address: only a socket tells the interface that the answer has to take.
        LinkLocal => "link_local",
    }
}

reasons! {
    /// Why a packet seeded a run of its own instead of joining one.
    ///
    /// Every frame that leaves the coalescer has one seed and every seed has one reason, so the counts add up to the
    /// frames let go.
    FlushReason {
        /// The first packet of its flow in this batch, or since its run was written: there was no run to join.
        FirstInBatch => "first_in_batch",
        /// Neither TCP nor UDP over IP.
        NotCandidate => "not_candidate",
        /// Merging is switched off for this protocol.
        Disabled => "disabled",
        /// The port is in `gro.udp_exclude_ports`.
        PortExcluded => "port_excluded",
        /// Checksums wrong or not known to be right.
        Checksum => "checksum",
        /// UDP without a checksum, or a mix of with and without.
        UdpZeroChecksum => "udp_zero_checksum",
        /// IPv4 options.
        IpOptions => "ip_options",
        /// IPv6 extension headers.
        Ipv6Extension => "ipv6_extension",
        /// A fragment.
        Fragment => "fragment",
        /// A length field that does not fit the packet.
        Length => "length",
        /// No payload: a pure ACK must not be overtaken.
        EmptyPayload => "empty_payload",
        /// CWR, SYN, RST, URG, no ACK, or a reserved bit.
        TcpFlags => "tcp_flags",
        /// The newest run had ended with PSH.
        AfterPush => "after_push",
        /// The newest run had ended with FIN.
        AfterFin => "after_fin",
        /// The newest run had ended with a short segment.
        AfterShort => "after_short",
        /// The newest run was a barrier: a packet that may not be merged.
        AfterBarrier => "after_barrier",
        /// Not the next sequence number: lost, reordered or repeated.
        Sequence => "sequence",
        /// Another acknowledgement number.
        Acknowledgement => "acknowledgement",
        /// Another window.
        Window => "window",
        /// Another urgent pointer.
        Urgent => "urgent",
        /// Other flags than the seed's.
        FlagsDiffer => "flags_differ",
        /// Other TCP options, timestamps included.
        TcpOptions => "tcp_options",
        /// Another TOS or traffic class, ECN included.
        Tos => "tos",
        /// Another TTL or hop limit.
        Ttl => "ttl",
        /// Another DF bit.
        DontFragment => "dont_fragment",
        /// Another flow label.
        FlowLabel => "flow_label",
        /// DF clear and the IPv4 ID is not the next.
        IpId => "ip_id",
        /// Shorter than the run's segments, and this kernel refuses UDP superframes with a short last one.
        ShortSegment => "short_segment",
        /// Longer than the run's segments.
        LongerSegment => "longer_segment",
        /// The superframe would exceed 65,535 bytes.
        MaxLength => "max_length",
        /// The superframe would have too many segments.
        MaxSegments => "max_segments",
        /// Another inner Ethernet header.
        Ethernet => "ethernet",
    }
}
