//! What the daemon makes of a kernel that can less: it says so in one line and carries everything all the same.
//!
//! `cargo xtask vm` runs this on kernels on both sides of each boundary, so it asks the kernel for its version where the daemon
//! must not, and knows what to expect.

mod e2e;

use e2e::{Rig, equal, scaled};
use xtask::lab::{Family, Options, WITHOUT_USO};

/// TUN devices read and write UDP superframes since this release.
const USO_SINCE: (u32, u32) = (6, 2);

/// Major and minor number of the running kernel.
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => panic!("odd release: {release}"),
    }
}

#[test]
fn a_kernel_without_udp_superframes_is_named_in_one_line_and_carries_udp_uncoalesced() {
    // Two queues: the line is about the device, not about each of its workers.
    let Some(rig) = Rig::start(Options { queues: 2, ..Options::default() }) else { return };
    let has_uso = kernel() >= USO_SINCE;
    let lines = rig.netfwd.log().lines().filter(|line| line.contains(WITHOUT_USO)).count();
    assert_eq!(lines, usize::from(!has_uso), "on Linux {:?}:\n{}", kernel(), rig.netfwd.log());
    let ((), growth) = rig.during(|| rig.udp_in(Family::V4, equal(), scaled(3_000)));
    rig.udp_out(Family::V6, equal(), scaled(3_000));
    if has_uso {
        assert!(growth.coalescing("udp") > 1.0, "{} packets a frame", growth.coalescing("udp"));
    } else {
        assert_eq!(growth.coalescing("udp"), 1.0);
    }
    let ((), growth) = rig.during(|| rig.tcp_in(Family::V4, 1, scaled(8_000_000)));
    assert!(growth.coalescing("tcp") > 1.5, "{} packets a frame", growth.coalescing("tcp"));
    rig.assert_nothing_lost();
    rig.stop();
}
