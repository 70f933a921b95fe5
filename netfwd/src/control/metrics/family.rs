//! Every metric that netfwd exports: name, type, labels, help. Tools and alerts are built on these names, so they stand
//! in one table and nothing else can be exported.

use prometheus::proto::MetricType;

macro_rules! families {
    ($($(#[doc = $help:literal])+ $variant:ident = $kind:ident $name:literal [$($label:literal),*];)+) => {
        /// A metric family; each variant's documentation is its HELP text.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Family { $($(#[doc = $help])+ $variant,)+ }

        impl Family {
            /// Every family, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The HELP text.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($help),+),)+ }.trim_ascii()
            }

            /// The type.
            pub const fn kind(self) -> MetricType {
                match self { $(Self::$variant => MetricType::$kind,)+ }
            }

            /// The labels.
            pub const fn labels(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($label),*],)+ }
            }
        }
    };
}

families! {
    /// Always 1; the labels say what is running.
    BuildInfo = GAUGE "netfwd_build_info" ["version"];
    /// 1 while the tunnel's device exists and is up.
    TunnelUp = GAUGE "netfwd_tunnel_up" ["tunnel", "kind"];
    /// Inner packets received from the underlay and accepted.
    ReceivePackets = COUNTER "netfwd_receive_packets_total" ["tunnel"];
    /// Bytes of inner packets received from the underlay and accepted.
    ReceiveBytes = COUNTER "netfwd_receive_bytes_total" ["tunnel"];
    /// Inner packets sent to the underlay.
    TransmitPackets = COUNTER "netfwd_transmit_packets_total" ["tunnel"];
    /// Bytes of inner packets sent to the underlay.
    TransmitBytes = COUNTER "netfwd_transmit_bytes_total" ["tunnel"];
    /// Packets dropped, each counted once.
    Drops = COUNTER "netfwd_drops_total" ["direction", "stage", "reason"];
    /// Always 1; the labels say how the underlay is meant to be read.
    UnderlayInfo = GAUGE "netfwd_underlay_info" ["interface", "xdp"];
    /// Packets that XDP saw, by what it did with them.
    XdpPackets = COUNTER "netfwd_xdp_packets_total" ["interface", "action"];
    /// Packets that XDP left to the kernel, by why.
    XdpPasses = COUNTER "netfwd_xdp_passes_total" ["interface", "reason"];
    /// Packets with a defect that the verify policy let through in XDP, by the defect.
    XdpTolerated = COUNTER "netfwd_xdp_tolerated_total" ["interface", "reason"];
    /// Packets with a defect that the verify policy let through in user space, by the defect.
    Tolerated = COUNTER "netfwd_tolerated_total" ["reason"];
    /// Packets that an AF_XDP socket dropped because they did not fit a frame.
    XskRxDropped = COUNTER "netfwd_xsk_rx_dropped_total" ["interface", "queue"];
    /// Invalid descriptors in the fill ring.
    XskRxInvalidDescs = COUNTER "netfwd_xsk_rx_invalid_descs_total" ["interface", "queue"];
    /// Invalid descriptors in the transmit ring.
    XskTxInvalidDescs = COUNTER "netfwd_xsk_tx_invalid_descs_total" ["interface", "queue"];
    /// Packets dropped because the receive ring was full: the worker is too slow.
    XskRxRingFull = COUNTER "netfwd_xsk_rx_ring_full_total" ["interface", "queue"];
    /// Times the fill ring had no frame: the worker returns frames too slowly.
    XskRxFillRingEmpty = COUNTER "netfwd_xsk_rx_fill_ring_empty_total" ["interface", "queue"];
    /// Times the transmit ring was empty.
    XskTxRingEmpty = COUNTER "netfwd_xsk_tx_ring_empty_total" ["interface", "queue"];
    /// Always 1; the labels say how a queue is read.
    XskMode = GAUGE "netfwd_xsk_mode_info" ["interface", "queue", "mode"];
    /// UMEM frames by who has them.
    XskUmemFrames = GAUGE "netfwd_xsk_umem_frames" ["interface", "queue", "state"];
    /// Packets handed to the coalescer.
    GroInputPackets = COUNTER "netfwd_gro_input_packets_total" ["tunnel", "proto"];
    /// Frames that the coalescer let go.
    GroOutputFrames = COUNTER "netfwd_gro_output_frames_total" ["tunnel", "proto"];
    /// Packets in each frame that the coalescer let go.
    GroFrameSegments = HISTOGRAM "netfwd_gro_frame_segments" [];
    /// Why packets seeded a frame of their own instead of joining one; adds up to the output frames.
    GroFlush = COUNTER "netfwd_gro_flush_total" ["reason"];
    /// Frames read from the tunnel's device.
    TunReadFrames = COUNTER "netfwd_tun_read_frames_total" ["tunnel"];
    /// Frames written to the tunnel's device.
    TunWriteFrames = COUNTER "netfwd_tun_write_frames_total" ["tunnel"];
    /// Failed reads and writes of the tunnel's device.
    TunErrors = COUNTER "netfwd_tun_errors_total" ["tunnel", "errno"];
    /// Packets the kernel dropped because the device's queue (txqueuelen) was full.
    TunQueueDrops = COUNTER "netfwd_tun_queue_drops_total" ["tunnel"];
    /// Segments cut from superframes read from the device.
    TsoOutputPackets = COUNTER "netfwd_tso_output_packets_total" ["tunnel", "proto"];
    /// Sends to the underlay that failed for good, after the retry.
    UdpSendErrors = COUNTER "netfwd_udp_send_errors_total" ["errno"];
    /// Datagrams the kernel dropped at a tunnel's socket: its receive buffer was full, or the outer checksum was wrong.
    UdpReceiveDrops = COUNTER "netfwd_udp_receive_drops_total" [];
    /// Time that workers spent on batches; the rest of their time they slept.
    WorkerBusy = COUNTER "netfwd_worker_busy_seconds_total" ["worker"];
    /// Entries in the forwarding database, static ones included.
    FdbEntries = GAUGE "netfwd_fdb_entries" ["tunnel"];
    /// Times an inner source address was not learned because the forwarding database was full; it is flooded to instead.
    FdbFull = COUNTER "netfwd_fdb_full_total" ["tunnel"];
    /// WireGuard handshakes that ended, by who began them and how they ended.
    WgHandshakes = COUNTER "netfwd_wg_handshakes_total" ["tunnel", "role", "result"];
    /// WireGuard peers; active are those with a session, a handshake under way or a keepalive interval, idle all others.
    WgPeers = GAUGE "netfwd_wg_peers" ["tunnel", "state"];
    /// Cookies sent instead of answers to handshakes, to have the senders prove their addresses.
    WgCookieReplies = COUNTER "netfwd_wg_cookie_replies_total" ["tunnel"];
    /// 1 while handshakes need a cookie, because too many wait.
    WgUnderLoad = GAUGE "netfwd_wg_under_load" ["tunnel"];
    /// When the last handshake with a peer was completed, 0 if never; only with metrics.wireguard_peers.
    WgLastHandshake = GAUGE "netfwd_wg_last_handshake_timestamp_seconds" ["tunnel", "peer"];
    /// Bytes of authenticated datagrams from a peer; only with metrics.wireguard_peers.
    WgPeerReceiveBytes = COUNTER "netfwd_wg_peer_receive_bytes_total" ["tunnel", "peer"];
    /// Bytes of datagrams to a peer; only with metrics.wireguard_peers.
    WgPeerTransmitBytes = COUNTER "netfwd_wg_peer_transmit_bytes_total" ["tunnel", "peer"];
    /// Peers without series of their own, because there are too many; only with metrics.wireguard_peers.
    WgPeersUnseen = GAUGE "netfwd_wg_peers_unseen" ["tunnel"];
    /// Resident memory size in bytes.
    ResidentMemory = GAUGE "process_resident_memory_bytes" [];
}
