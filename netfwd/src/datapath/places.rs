//! Which drops can occur where.
//!
//! An alert on a counter that first appears with its first drop misses that drop, so every series that can occur is exported
//! from the start, as zero. That needs this table; and where assertions are on, every drop that is counted is looked up in
//! it.

use netfwd_common::reason::{DropReason, Stage};

use super::stats::Direction;

/// Whether packets can be dropped in this direction at this stage for this reason.
pub fn can_occur(direction: Direction, stage: Stage, reason: DropReason) -> bool {
    let classifies = matches!((direction, stage), (Direction::Ingress, Stage::Xdp | Stage::Decap));
    (classifies && CLASSIFIED.contains(&reason)) || own_reasons(direction, stage).contains(&reason)
}

/// What the classifier refuses. It runs in XDP, and in user space on what XDP hands up without having looked.
const CLASSIFIED: [DropReason; 14] = {
    use DropReason::*;
    [
        Truncated,
        BadLength,
        OuterIpChecksum,
        OuterUdpChecksum,
        OuterUdpZeroChecksum,
        TunnelHeader,
        UnknownProtocol,
        Oam,
        UnknownVni,
        RemoteNotAllowed,
        InnerIpChecksum,
        InnerL4Checksum,
        PartialChecksum,
        InnerHeader,
    ]
};

/// The reasons of each stage beside what is [`CLASSIFIED`].
fn own_reasons(direction: Direction, stage: Stage) -> &'static [DropReason] {
    use DropReason::*;
    match (direction, stage) {
        (Direction::Ingress, Stage::Decap) => {
            &[BadMetadata, EcnCeNotEct, InnerSourceDenied, Nested, XskDescriptor, Unassembled]
        }
        (Direction::Ingress, Stage::Vet) => &[InnerIpChecksum, InnerL4Checksum, PartialChecksum, InnerHeader],
        (Direction::Ingress, Stage::Crypto) => {
            &[Replay, Auth, NoSession, BadLength, TunnelHeader, InnerHeader, InnerSourceDenied, EcnCeNotEct]
        }
        (Direction::Ingress, Stage::Handshake) => &[Replay, Auth, NoPeer, NoSession, BadLength, HandshakeQueueFull],
        (Direction::Ingress, Stage::Tun) => &[TunWrite],
        (Direction::Egress, Stage::Tun) => &[VnetHeader],
        (Direction::Egress, Stage::Route) => &[Truncated, InnerHeader, Nested, NotIp, NoRoute, NoPeer],
        (Direction::Egress, Stage::Crypto) => &[QueueFull, NoSession],
        (Direction::Egress, Stage::Segment) => &[VnetHeader, TooBig],
        (Direction::Egress, Stage::Send) => &[SendQueueFull, SendError],
        (Direction::Ingress, Stage::Xdp | Stage::Route | Stage::Segment | Stage::Send) => &[],
        (Direction::Egress, Stage::Xdp | Stage::Decap | Stage::Vet | Stage::Handshake) => &[],
    }
}
