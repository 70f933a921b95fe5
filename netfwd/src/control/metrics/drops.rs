//! Which drops can occur where.
//!
//! An alert on a counter that first appears with its first drop misses that drop, so every series that can occur is
//! exported from the start, as zero.

use netfwd_common::reason::{DropReason, Stage};

use super::family::Family;
use super::scrape::Scrape;
use crate::datapath::stats::Direction;

/// Whether packets can be dropped in this direction at this stage for this reason.
pub fn can_occur(direction: Direction, stage: Stage, reason: DropReason) -> bool {
    reasons(direction, stage).contains(&reason)
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

fn reasons(direction: Direction, stage: Stage) -> &'static [DropReason] {
    use DropReason::*;
    match (direction, stage) {
        (Direction::Ingress, Stage::Xdp) => &[
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
        ],
        (Direction::Ingress, Stage::Decap) => &[
            Truncated,
            BadLength,
            OuterUdpZeroChecksum,
            TunnelHeader,
            UnknownProtocol,
            Oam,
            UnknownVni,
            RemoteNotAllowed,
            EcnCeNotEct,
            BadMetadata,
        ],
        (Direction::Ingress, Stage::Vet) => &[
            Truncated,
            BadLength,
            InnerIpChecksum,
            InnerL4Checksum,
            PartialChecksum,
            InnerHeader,
            EcnCeNotEct,
            InnerSourceDenied,
            Nested,
        ],
        (Direction::Ingress, Stage::Tun) => &[TunWrite],
        (Direction::Ingress, Stage::Route | Stage::Segment | Stage::Send) => &[],
        (Direction::Egress, Stage::Tun) => &[Truncated, VnetHeader],
        (Direction::Egress, Stage::Route) => &[Truncated, InnerHeader, NotIp, NoRoute],
        (Direction::Egress, Stage::Segment) => &[Truncated, InnerHeader, VnetHeader, TooBig],
        (Direction::Egress, Stage::Send) => &[TooBig, SendQueueFull, SendError],
        (Direction::Egress, Stage::Xdp | Stage::Decap | Stage::Vet) => &[],
    }
}
