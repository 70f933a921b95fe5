//! Which drops can occur where.
//!
//! An alert on a counter that first appears with its first drop misses that drop, so every series that can occur is
//! exported from the start, as zero.

use netfwd_common::reason::{DropReason, Stage};

use super::family::Family;
use super::scrape::Scrape;
use crate::datapath::stats::Direction;

/// Defects that `verify = "count"` lets through.
pub(super) const TOLERABLE: [DropReason; 5] = [
    DropReason::OuterIpChecksum,
    DropReason::OuterUdpChecksum,
    DropReason::InnerIpChecksum,
    DropReason::InnerL4Checksum,
    DropReason::PartialChecksum,
];

/// Whether packets can be dropped in this direction at this stage for this reason.
pub fn can_occur(direction: Direction, stage: Stage, reason: DropReason) -> bool {
    let classifies = matches!((direction, stage), (Direction::Ingress, Stage::Xdp | Stage::Decap));
    (classifies && CLASSIFIED.contains(&reason)) || own_reasons(direction, stage).contains(&reason)
}

/// Makes every series exist.
pub(super) fn zeroes(scrape: &mut Scrape) {
    for (direction, stage, reason) in combinations().filter(|&(d, s, r)| can_occur(d, s, r)) {
        scrape.add(Family::Drops, &[direction.as_str(), stage.as_str(), reason.as_str()], 0);
    }
}

/// Every direction with every stage and every reason.
pub(super) fn combinations() -> impl Iterator<Item = (Direction, Stage, DropReason)> {
    Direction::ALL.into_iter().flat_map(|direction| {
        Stage::ALL
            .into_iter()
            .flat_map(move |stage| DropReason::ALL.iter().map(move |&reason| (direction, stage, reason)))
    })
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

/// The reasons of each stage beside [`CLASSIFIED`].
fn own_reasons(direction: Direction, stage: Stage) -> &'static [DropReason] {
    use DropReason::*;
    match (direction, stage) {
        (Direction::Ingress, Stage::Decap) => {
            &[BadMetadata, EcnCeNotEct, InnerSourceDenied, Nested, XskDescriptor, Unassembled]
        }
        (Direction::Ingress, Stage::Vet) => &[InnerIpChecksum, InnerL4Checksum, PartialChecksum, InnerHeader],
        (Direction::Ingress, Stage::Crypto) => {
            &[Replay, Auth, NoSession, InnerHeader, InnerSourceDenied, Nested, EcnCeNotEct]
        }
        (Direction::Ingress, Stage::Handshake) => &[Auth, NoPeer, NoSession, HandshakeQueueFull],
        (Direction::Ingress, Stage::Tun) => &[TunWrite],
        (Direction::Egress, Stage::Tun) => &[VnetHeader],
        (Direction::Egress, Stage::Route) => &[Truncated, InnerHeader, NotIp, NoRoute, NoPeer],
        (Direction::Egress, Stage::Handshake) => &[QueueFull, NoSession],
        (Direction::Egress, Stage::Segment) => &[VnetHeader, TooBig],
        (Direction::Egress, Stage::Send) => &[SendQueueFull, SendError],
        (Direction::Ingress, Stage::Xdp | Stage::Route | Stage::Segment | Stage::Send) => &[],
        (Direction::Egress, Stage::Xdp | Stage::Decap | Stage::Vet | Stage::Crypto) => &[],
    }
}
