//! Every drop that can occur has its series from the start.

use netfwd_common::reason::{DropReason, Stage};

use super::family::Family;
use super::scrape::Scrape;
use crate::datapath::places::can_occur;
use crate::datapath::stats::Direction;

/// Defects that `verify = "count"` lets through.
pub(super) const TOLERABLE: [DropReason; 5] = [
    DropReason::OuterIpChecksum,
    DropReason::OuterUdpChecksum,
    DropReason::InnerIpChecksum,
    DropReason::InnerL4Checksum,
    DropReason::PartialChecksum,
];

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
