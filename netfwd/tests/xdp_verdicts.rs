//! The verdict table of the XDP program, by `BPF_PROG_TEST_RUN` on the very object that ships.
//!
//! Each packet also goes through the user-space classifier, and the two must agree.

#[path = "support/packets.rs"]
mod packets;

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Mutex;

use aya::programs::{TestRun as _, TestRunOptions};
use netfwd::datapath::packet::RemoteIndex;
use netfwd::datapath::table::{ForwardingTable, Tunnel};
use netfwd::io::xdp::{AttachMode, AttachedMode, XdpCounters, XdpProgram};
use netfwd_common::abi::{
    Action, ChecksumVerdict, METADATA_MAGIC, METADATA_VERSION, Metadata, Policy, TunnelKind, Verify,
};
use netfwd_common::classify::{Delivery, Verdict, classify};
use netfwd_common::reason::{DropReason, PassReason};
use zerocopy::FromBytes as _;

use packets::{Field, Inner, Outer};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// Both families, both kinds, and a second tunnel with the same inner addresses.
fn table() -> ForwardingTable {
    let tunnel = |name: &str, kind, vni, local: &str, port, remote: &str, zero| Tunnel {
        name: name.to_owned(),
        kind,
        vni,
        local: local.parse().unwrap(),
        port,
        remotes: vec!["192.0.2.1".parse().unwrap(), remote.parse().unwrap()],
        learning: true,
        static_macs: Vec::new(),
        routes: vec![("0.0.0.0/0".parse().unwrap(), RemoteIndex(1))],
        mtu: 1450,
        udp_checksum: false,
        udp6_zero_checksum_rx: zero,
        udp6_zero_checksum_tx: false,
        dscp: 0,
    };
    ForwardingTable::new(vec![
        tunnel("vx7", TunnelKind::Vxlan, 7, "10.9.0.2", 4789, "10.9.0.1", false),
        tunnel("vx8", TunnelKind::Vxlan, 8, "10.9.0.2", 4789, "10.9.0.3", false),
        tunnel("gpe9", TunnelKind::VxlanGpe, 9, "10.9.0.2", 4790, "10.9.0.1", false),
        tunnel("vx7v6", TunnelKind::Vxlan, 7, "fd09::2", 4789, "fd09::1", false),
        tunnel("gpe9v6", TunnelKind::VxlanGpe, 9, "fd09::2", 4790, "fd09::1", true),
    ])
}

/// The program with an AF_XDP socket on the only queue of a test run.
struct Bench {
    xdp: XdpProgram,
    table: ForwardingTable,
    policy: Policy,
    _socket: OwnedFd,
}

/// What one run gave.
#[derive(Debug)]
struct Run {
    action: u32,
    metadata: Option<Metadata>,
    counted: XdpCounters,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        let table = table();
        let mut xdp = XdpProgram::load(&table, policy).unwrap_or_else(|error| panic!("{error}"));
        // SAFETY: a plain system call without pointers.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "AF_XDP socket: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor was just made and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        xdp.register_socket(0, &socket).unwrap();
        Self { xdp, table, policy, _socket: socket }
    }

    fn set_policy(&mut self, policy: Policy) {
        self.xdp.set_policy(policy).unwrap();
        self.policy = policy;
    }

    fn run(&self, frame: &[u8]) -> Run {
        let before = self.xdp.counters().unwrap();
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = self.xdp.program().unwrap().test_run(options).unwrap_or_else(|error| panic!("{error:?}"));
        let size = result.data_size_out as usize;
        let metadata = size.checked_sub(frame.len()).filter(|&len| len > 0).map(|len| {
            assert_eq!(len, size_of::<Metadata>());
            Metadata::read_from_bytes(&out[..len]).unwrap()
        });
        assert_eq!(&out[size - frame.len()..size], frame, "the packet itself must not be changed");
        Run { action: result.return_value, metadata, counted: difference(&self.xdp.counters().unwrap(), &before) }
    }

    /// Runs both parsers, checks that they agree in every respect, and gives back the verdict.
    fn verdict(&self, frame: &[u8]) -> Verdict {
        let verdict = classify(frame, &self.table, &self.policy);
        let run = self.run(frame);
        match verdict {
            Verdict::Pass(reason) => {
                assert_eq!(run.action, XDP_PASS, "{verdict:?} {run:?}");
                assert_eq!(run.counted.passed(reason), 1, "{verdict:?} {run:?}");
                assert_eq!(total(&run.counted), [1, 0, 0, 1], "{verdict:?} {run:?}");
            }
            Verdict::Drop(reason) => {
                assert_eq!(run.action, XDP_DROP, "{verdict:?} {run:?}");
                assert_eq!(run.counted.dropped(reason), 1, "{verdict:?} {run:?}");
                assert_eq!(total(&run.counted), [0, 1, 0, 1], "{verdict:?} {run:?}");
            }
            Verdict::Deliver(delivery) => {
                assert_eq!(run.action, XDP_REDIRECT, "{verdict:?} {run:?}");
                assert_eq!(run.metadata, Some(record(&delivery)));
                assert_eq!(run.counted.action(Action::Redirect), 1);
                let tolerated = u64::from(delivery.tolerated.is_some());
                assert_eq!(total(&run.counted), [0, 0, tolerated, 1], "{verdict:?} {run:?}");
            }
        }
        verdict
    }

    fn delivery(&self, frame: &[u8]) -> Delivery {
        match self.verdict(frame) {
            Verdict::Deliver(delivery) => delivery,
            other => panic!("not delivered: {other:?}"),
        }
    }
}

fn total(counters: &XdpCounters) -> [u64; 4] {
    [
        counters.passes.iter().sum(),
        counters.drops.iter().sum(),
        counters.tolerated.iter().sum(),
        counters.actions.iter().sum(),
    ]
}

fn record(delivery: &Delivery) -> Metadata {
    Metadata {
        magic: METADATA_MAGIC,
        version: METADATA_VERSION,
        checksums: delivery.checksums as u8,
        tunnel: delivery.entry.tunnel,
        remote: delivery.entry.remote,
        inner_offset: delivery.inner_offset,
        inner_len: delivery.inner_len,
        ecn: delivery.ecn,
        reserved: 0,
        flow_hash: delivery.flow_hash,
    }
}

fn difference(after: &XdpCounters, before: &XdpCounters) -> XdpCounters {
    fn minus<const N: usize>(after: &[u64; N], before: &[u64; N]) -> [u64; N] {
        std::array::from_fn(|i| after[i] - before[i])
    }
    XdpCounters {
        drops: minus(&after.drops, &before.drops),
        passes: minus(&after.passes, &before.passes),
        tolerated: minus(&after.tolerated, &before.tolerated),
        actions: minus(&after.actions, &before.actions),
    }
}

/// Runs `test` on a loaded program, unless there is no root and that is said to be all right.
fn with_program(policy: Policy, test: impl FnOnce(&mut Bench)) {
    // SAFETY: a plain system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        assert!(
            std::env::var_os("NETFWD_SKIP_ROOT_TESTS").is_some_and(|value| value == "1"),
            "this test loads an eBPF program and needs root; NETFWD_SKIP_ROOT_TESTS=1 skips it"
        );
        eprintln!("SKIPPED for want of root: XDP verdicts");
        return;
    }
    // One at a time: the program is large for the verifier's memory.
    static ONE: Mutex<()> = Mutex::new(());
    let _guard = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    test(&mut Bench::new(policy));
}

const COUNT: Policy = Policy { verify: Verify::Count as u8, accept_partial: 0, debug: 0, reserved: 0 };
const OFF: Policy = Policy { verify: Verify::Off as u8, accept_partial: 0, debug: 0, reserved: 0 };
const DROP: Policy = Policy { verify: Verify::Drop as u8, accept_partial: 0, debug: 0, reserved: 0 };
const PARTIAL: Policy = Policy { verify: Verify::Drop as u8, accept_partial: 1, debug: 0, reserved: 0 };

/// Every outer around every inner that is right.
fn valid_frames() -> Vec<(String, Vec<u8>)> {
    let mut frames = Vec::new();
    let inners =
        [("tcp4", Inner::tcp4(1398)), ("tcp6", Inner::tcp6(101)), ("udp4", Inner::udp4(64)), ("udp6", Inner::udp6(7))];
    for (name, inner) in inners {
        let next = if inner.source.is_ipv4() { 1 } else { 2 };
        for checksum in [Field::Right, Field::Zero] {
            for tags in 0..3 {
                let zero = checksum == Field::Zero;
                let mut push =
                    |kind: &str, frame| frames.push((format!("{kind} {name} tags {tags} zero {zero}"), frame));
                let vxlan4 = Outer::vxlan4(7).checksum(checksum).tags(tags);
                push("vxlan4", vxlan4.frame(&inner.ethernet(0)));
                push("vxlan4 inner tag", vxlan4.frame(&inner.ethernet(1)));
                push("vxlan4 inner tags", vxlan4.frame(&inner.ethernet(2)));
                push("gpe4", Outer::gpe4(9, next).checksum(checksum).tags(tags).frame(&inner.bytes()));
                push("gpe6", Outer::gpe6(9, next).checksum(checksum).tags(tags).frame(&inner.bytes()));
                if !zero {
                    push("vxlan6", Outer::vxlan6(7).tags(tags).frame(&inner.ethernet(0)));
                }
            }
        }
    }
    frames
}

#[test]
fn what_is_right_is_redirected_as_verified() {
    with_program(DROP, |bench| {
        for (name, frame) in valid_frames() {
            let delivery = bench.delivery(&frame);
            assert_eq!(delivery.checksums, ChecksumVerdict::Verified, "{name}");
            assert_eq!(usize::from(delivery.inner_offset + delivery.inner_len), frame.len(), "{name}");
            assert_ne!(delivery.flow_hash, 0, "{name}");
        }
    });
}

/// Every drop that XDP can give, by its reason.
fn drops() -> Vec<(DropReason, Vec<u8>)> {
    use DropReason::*;
    let inner = Inner::tcp4(100);
    let good = Outer::vxlan4(7).frame(&inner.ethernet(0));
    let good6 = Outer::vxlan6(7).frame(&inner.ethernet(0));
    let ip6 = Inner::tcp6(50);
    let header = |header| Outer::vxlan4(7).header(header).frame(&inner.ethernet(0));
    let gpe = |header| Outer::gpe4(9, 1).header(header).frame(&inner.bytes());
    let other =
        |source, destination| Outer::new(source, destination, 4789, packets::vxlan(7)).frame(&inner.ethernet(0));
    let bent = |at: usize, value: u8| {
        let mut bytes = inner.bytes();
        bytes[at] = value;
        packets::finish_ipv4(&mut bytes, Field::Right);
        Outer::gpe4(9, 1).frame(&bytes)
    };
    let bent6 = |at: usize, value: u8| {
        let mut bytes = ip6.bytes();
        bytes[at] = value;
        Outer::gpe6(9, 2).frame(&bytes)
    };
    vec![
        (Truncated, good[..good.len() - 1].to_vec()),
        (Truncated, good6[..good6.len() - 1].to_vec()),
        (Truncated, good[..45].to_vec()),
        (BadLength, with_udp_length(&good, 34, 15)),
        (BadLength, with_udp_length(&good, 34, 2000)),
        (BadLength, with_udp_length(&good6, 54, 2000)),
        (OuterIpChecksum, Outer::vxlan4(7).ip_checksum(Field::Wrong).frame(&inner.ethernet(0))),
        (OuterUdpChecksum, Outer::vxlan4(7).checksum(Field::Wrong).frame(&inner.ethernet(0))),
        (OuterUdpChecksum, Outer::vxlan6(7).checksum(Field::Wrong).frame(&ip6.ethernet(0))),
        (OuterUdpZeroChecksum, Outer::vxlan6(7).checksum(Field::Zero).frame(&ip6.ethernet(0))),
        (TunnelHeader, header([0x00, 0, 0, 0, 0, 0, 7, 0])),
        (TunnelHeader, header([0x88, 0, 0, 0, 0, 0, 7, 0])),
        (TunnelHeader, header([0x08, 1, 0, 0, 0, 0, 7, 0])),
        (TunnelHeader, header([0x08, 0, 1, 0, 0, 0, 7, 0])),
        (TunnelHeader, header([0x08, 0, 0, 1, 0, 0, 7, 0])),
        (TunnelHeader, header([0x08, 0, 0, 0, 0, 0, 7, 1])),
        (TunnelHeader, header([0x0c, 0, 0, 1, 0, 0, 99, 0])),
        (TunnelHeader, gpe([0x08, 0, 0, 1, 0, 0, 9, 0])),
        (TunnelHeader, gpe([0x04, 0, 0, 1, 0, 0, 9, 0])),
        (TunnelHeader, gpe([0x1c, 0, 0, 1, 0, 0, 9, 0])),
        (TunnelHeader, gpe([0x4c, 0, 0, 1, 0, 0, 9, 0])),
        (TunnelHeader, gpe([0x0c, 1, 0, 1, 0, 0, 9, 0])),
        (TunnelHeader, gpe([0x0c, 0, 0, 1, 0, 0, 9, 1])),
        (UnknownProtocol, gpe([0x0c, 0, 0, 3, 0, 0, 9, 0])),
        (UnknownProtocol, gpe([0x0c, 0, 0, 4, 0, 0, 9, 0])),
        (UnknownProtocol, gpe([0x0c, 0, 0, 0, 0, 0, 9, 0])),
        (Oam, gpe([0x0d, 0, 0, 1, 0, 0, 9, 0])),
        (UnknownVni, header(packets::vxlan(99))),
        (UnknownVni, gpe(packets::gpe(7, 1))),
        (RemoteNotAllowed, other("10.9.0.9", "10.9.0.2")),
        (RemoteNotAllowed, other("fd09::9", "fd09::2")),
        (RemoteNotAllowed, other("::", "fd09::2")),
        (InnerIpChecksum, Outer::vxlan4(7).frame(&inner.clone().ip_checksum(Field::Wrong).ethernet(0))),
        (InnerL4Checksum, Outer::vxlan4(7).frame(&inner.clone().checksum(Field::Wrong).ethernet(0))),
        (InnerL4Checksum, Outer::vxlan6(7).frame(&Inner::udp6(33).checksum(Field::Wrong).ethernet(0))),
        (InnerL4Checksum, Outer::gpe4(9, 2).frame(&Inner::udp6(33).checksum(Field::Zero).bytes())),
        (PartialChecksum, Outer::vxlan4(7).frame(&inner.clone().checksum(Field::Partial).ethernet(0))),
        (PartialChecksum, Outer::vxlan6(7).frame(&Inner::udp6(9).checksum(Field::Partial).ethernet(0))),
        (PartialChecksum, Outer::vxlan4(7).checksum(Field::Partial).frame(&inner.ethernet(0))),
        (InnerHeader, Outer::vxlan4(7).frame(&inner.ethernet(0)[..13])),
        (InnerHeader, Outer::vxlan4(7).frame(&inner.ethernet(0)[..33])),
        (InnerHeader, Outer::gpe4(9, 1).frame(&ip6.bytes())),
        (InnerHeader, Outer::gpe4(9, 2).frame(&inner.bytes())),
        (InnerHeader, bent(0, 0x44)),
        (InnerHeader, bent(3, 19)),
        (InnerHeader, bent(3, 255)),
        (InnerHeader, bent(32, 0x40)),
        (InnerHeader, bent6(5, 200)),
        (InnerHeader, bent6(5, 7)),
        (InnerHeader, bent6(0, 0x50)),
    ]
}

fn with_udp_length(frame: &[u8], udp: usize, length: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[udp + 4..udp + 6].copy_from_slice(&length.to_be_bytes());
    frame
}

#[test]
fn each_reason_drops_what_it_says() {
    with_program(DROP, |bench| {
        for (row, (reason, frame)) in drops().into_iter().enumerate() {
            assert_eq!(bench.verdict(&frame), Verdict::Drop(reason), "row {row}");
        }
    });
}

/// Everything that is the kernel's.
fn passes() -> Vec<(PassReason, Vec<u8>)> {
    use PassReason::*;
    let inner = Inner::tcp4(100).ethernet(0);
    let outer = Outer::vxlan4(7);
    let ip4 = "10.0.0.1".parse().unwrap();
    let ip6 = "fd00::1".parse().unwrap();
    let mut arp = packets::ethernet(ip4, 0, &[0; 46]);
    arp[13] = 6;
    let next_header = |next: u8| {
        let mut frame = Outer::vxlan6(7).frame(&inner);
        frame[20] = next;
        frame
    };
    vec![
        (NotIp, arp),
        (NotIp, outer.clone().tags(3).frame(&inner)),
        (NotIp, packets::ethernet(ip4, 0, &Inner::tcp6(9).bytes())),
        (NotIp, packets::ethernet(ip6, 0, &Inner::tcp4(29).bytes())),
        (NotUdp, packets::ethernet(ip4, 0, &Inner::tcp4(9).bytes())),
        (NotUdp, packets::ethernet(ip6, 1, &Inner::tcp6(9).bytes())),
        (NotUdp, next_header(58)),
        (NotOurs, packets::ethernet(ip4, 0, &Inner::udp4(9).bytes())),
        (NotOurs, Outer::new("10.9.0.1", "10.9.0.2", 53, packets::vxlan(7)).frame(&inner)),
        (NotOurs, Outer::new("10.9.0.1", "10.9.0.7", 4789, packets::vxlan(7)).frame(&inner)),
        (NotOurs, Outer::new("fd09::1", "fd09::7", 4789, packets::vxlan(7)).frame(&inner)),
        (Fragment, Outer { fragment: 0x2000, ..outer.clone() }.frame(&inner)),
        (Fragment, Outer { fragment: 0x0010, ..outer.clone() }.frame(&inner)),
        (Fragment, next_header(44)),
        (IpOptions, Outer { options: vec![1, 1, 1, 0], ..outer.clone() }.frame(&inner)),
        (Ipv6Extension, next_header(0)),
        (Ipv6Extension, next_header(60)),
        (TooShort, outer.frame(&inner)[..33].to_vec()),
        (TooShort, outer.frame(&inner)[..41].to_vec()),
    ]
}

#[test]
fn what_is_not_positively_ours_passes() {
    with_program(DROP, |bench| {
        for (row, (reason, frame)) in passes().into_iter().enumerate() {
            assert_eq!(bench.verdict(&frame), Verdict::Pass(reason), "row {row}");
        }
    });
}

#[test]
fn a_packet_in_fragments_of_the_buffer_passes() {
    with_program(DROP, |bench| {
        let run = bench.run(&Outer::vxlan4(7).frame(&Inner::udp4(8000).ethernet(0)));
        assert_eq!((run.action, run.counted.passed(PassReason::Frags)), (XDP_PASS, 1));
    });
}

#[test]
fn without_a_socket_the_kernel_gets_the_packet() {
    with_program(DROP, |bench| {
        bench.xdp.unregister_socket(0).unwrap();
        let run = bench.run(&Outer::vxlan4(7).frame(&Inner::udp4(80).ethernet(0)));
        assert_eq!((run.action, run.metadata), (XDP_PASS, None));
        assert_eq!(run.counted.passed(PassReason::NoSocket), 1);
        assert_eq!(total(&run.counted), [1, 0, 0, 1]);
    });
}

/// Legal, but nothing of it can be verified here.
fn unusual() -> Vec<Vec<u8>> {
    let tcp = Inner::tcp4(100);
    let inners = [
        Inner { fragment: 0x2000, ..tcp.clone() }.ethernet(0),
        Inner { fragment: 0x0003, ..tcp.clone() }.ethernet(1),
        Inner { options: vec![1, 1, 1, 0], ..tcp.clone() }.ethernet(0),
        Inner { protocol: 1, ..tcp.clone() }.ethernet(0),
        Inner { protocol: 0, ..Inner::tcp6(40) }.ethernet(0),
        Inner { protocol: 58, ..Inner::tcp6(40) }.ethernet(2),
        {
            let mut arp = tcp.ethernet(0);
            arp[13] = 6;
            arp
        },
    ];
    inners.iter().flat_map(|inner| [Outer::vxlan4(7).frame(inner), Outer::vxlan6(7).frame(inner)]).collect()
}

#[test]
fn the_unusual_is_delivered_unverified_but_its_outer_checksum_counts() {
    with_program(DROP, |bench| {
        for (row, mut frame) in unusual().into_iter().enumerate() {
            assert_eq!(bench.delivery(&frame).checksums, ChecksumVerdict::Unverified, "row {row}");
            *frame.last_mut().unwrap() ^= 1;
            assert_eq!(bench.verdict(&frame), Verdict::Drop(DropReason::OuterUdpChecksum), "row {row}");
        }
    });
}

#[test]
fn inner_padding_counts_for_the_outer_checksum_only() {
    with_program(DROP, |bench| {
        for payload in [0, 1, 2, 5] {
            for padding in [1, 2, 17, 63, 64, 100] {
                let mut inner = Inner::udp4(payload).ethernet(0);
                inner.extend((0..padding).map(|i| i as u8 + 1));
                let mut frame = Outer::vxlan4(7).frame(&inner);
                let wanted = if padding < 64 { ChecksumVerdict::Verified } else { ChecksumVerdict::Unverified };
                assert_eq!(bench.delivery(&frame).checksums, wanted, "{payload} + {padding}");
                *frame.last_mut().unwrap() ^= 0x10;
                assert_eq!(bench.verdict(&frame), Verdict::Drop(DropReason::OuterUdpChecksum));
            }
        }
    });
}

#[test]
fn udp_without_a_checksum_is_absent_over_ipv4() {
    with_program(DROP, |bench| {
        let inner = Inner::udp4(33).checksum(Field::Zero);
        assert_eq!(bench.delivery(&Outer::vxlan4(7).frame(&inner.ethernet(0))).checksums, ChecksumVerdict::Absent);
        let bare = Outer::vxlan4(7).checksum(Field::Zero).frame(&inner.ethernet(0));
        assert_eq!(bench.delivery(&bare).checksums, ChecksumVerdict::Absent);
    });
}

#[test]
fn partial_checksums_are_delivered_where_the_policy_accepts_them() {
    with_program(PARTIAL, |bench| {
        let partial = Inner::tcp4(100).checksum(Field::Partial);
        for outer in [Field::Right, Field::Zero, Field::Partial] {
            let frame = Outer::vxlan4(7).checksum(outer).frame(&partial.ethernet(0));
            assert_eq!(bench.delivery(&frame).checksums, ChecksumVerdict::Partial);
        }
        // Local checksum offload: the outer checksum is that of the finished packet.
        let finished = Outer::vxlan4(7).frame(&Inner::tcp4(100).ethernet(0));
        let mut frame = Outer::vxlan4(7).frame(&partial.ethernet(0));
        frame[40..42].copy_from_slice(&finished[40..42]);
        assert_eq!(bench.delivery(&frame).checksums, ChecksumVerdict::Partial);
        let unfinished_outer = Outer::vxlan4(7).checksum(Field::Partial).frame(&Inner::tcp4(100).ethernet(0));
        assert_eq!(bench.delivery(&unfinished_outer).checksums, ChecksumVerdict::Verified);
        let bad = Outer::vxlan4(7).frame(&Inner::tcp4(100).checksum(Field::Wrong).ethernet(0));
        assert_eq!(bench.verdict(&bad), Verdict::Drop(DropReason::InnerL4Checksum));
    });
}

#[test]
fn count_delivers_bad_checksums_as_bad_and_off_does_not_look() {
    use DropReason::*;
    with_program(COUNT, |bench| {
        for (row, (reason, frame)) in drops().into_iter().enumerate() {
            let checksum = matches!(
                reason,
                OuterIpChecksum | OuterUdpChecksum | InnerIpChecksum | InnerL4Checksum | PartialChecksum
            );
            bench.set_policy(COUNT);
            if !checksum {
                assert_eq!(bench.verdict(&frame), Verdict::Drop(reason), "row {row}");
                continue;
            }
            let delivery = bench.delivery(&frame);
            assert_eq!((delivery.checksums, delivery.tolerated), (ChecksumVerdict::Bad, Some(reason)), "row {row}");
            bench.set_policy(OFF);
            let delivery = bench.delivery(&frame);
            assert_eq!((delivery.checksums, delivery.tolerated), (ChecksumVerdict::Unverified, None), "row {row}");
        }
    });
}

#[test]
fn the_record_names_tunnel_remote_ecn_and_flow() {
    with_program(DROP, |bench| {
        let flow = |port| Inner { source_port: port, ..Inner::tcp4(10) }.ethernet(0);
        let frame = Outer { tos: 3, ..Outer::vxlan4(7) }.frame(&flow(1));
        let delivery = bench.delivery(&frame);
        assert_eq!((delivery.entry.tunnel, delivery.entry.remote, delivery.ecn), (0, 1, 3));
        assert_eq!(delivery.flow_hash, bench.delivery(&Outer::vxlan4(7).frame(&flow(1))).flow_hash);
        assert_ne!(delivery.flow_hash, bench.delivery(&Outer::vxlan4(7).frame(&flow(2))).flow_hash);
        let second = Outer::new("10.9.0.3", "10.9.0.2", 4789, packets::vxlan(8)).frame(&flow(1));
        assert_eq!(bench.delivery(&second).entry.tunnel, 1);
        let six = Outer { tos: 2, ..Outer::gpe6(9, 2) }.frame(&Inner::udp6(1).bytes());
        let delivery = bench.delivery(&six);
        assert_eq!((delivery.entry.tunnel, delivery.entry.remote, delivery.ecn), (4, 1, 2));
    });
}

#[test]
fn both_halves_agree_on_every_truncation() {
    with_program(DROP, |bench| {
        let inner = Inner::tcp4(3);
        let inner6 = Inner::udp6(2);
        for frame in [
            Outer::vxlan4(7).tags(1).frame(&inner.ethernet(1)),
            Outer::vxlan6(7).frame(&inner6.ethernet(0)),
            Outer::gpe4(9, 2).frame(&inner6.bytes()),
            Outer::gpe6(9, 1).tags(2).frame(&inner.bytes()),
        ] {
            // A test run takes no less than an Ethernet header.
            for len in 14..frame.len() {
                match bench.verdict(&frame[..len]) {
                    Verdict::Pass(PassReason::TooShort) | Verdict::Drop(DropReason::Truncated) => {}
                    other => panic!("{other:?} at {len} of {}", frame.len()),
                }
            }
        }
    });
}

#[test]
fn both_halves_agree_on_mutated_packets() {
    with_program(DROP, |bench| {
        // SplitMix64: a fixed sequence, so a failure repeats.
        let mut state = 0x5eed_u64;
        let mut random = move |below: usize| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % below as u64) as usize
        };
        let frames = valid_frames();
        let policies = [DROP, COUNT, OFF, PARTIAL];
        for round in 0..4000 {
            let (_, frame) = &frames[random(frames.len())];
            let mut frame = frame.clone();
            for _ in 0..=random(3) {
                let at = random(frame.len().min(130));
                frame[at] = random(256) as u8;
            }
            if random(4) == 0 {
                frame.truncate(14 + random(frame.len() - 13));
            }
            if round % 1000 == 0 {
                bench.set_policy(policies[round / 1000]);
            }
            bench.verdict(&frame);
        }
    });
}

#[test]
fn drops_are_logged_only_with_the_debug_switch() {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    with_program(DROP, |bench| {
        let mut log = bench.xdp.take_log().unwrap();
        let readable = |log: &netfwd::io::xdp_log::XdpLog| {
            let mut poll = libc::pollfd { fd: log.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd, which lives through the call; no wait.
            unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
        };
        let oam = Outer::gpe4(9, 1).header([0x0d, 0, 0, 1, 0, 0, 9, 0]).frame(&Inner::tcp4(1).bytes());
        assert_eq!(bench.verdict(&oam), Verdict::Drop(DropReason::Oam));
        assert!(!readable(&log));
        bench.set_policy(Policy { debug: 1, ..DROP });
        assert_eq!(bench.verdict(&oam), Verdict::Drop(DropReason::Oam));
        assert!(readable(&log));
        log.flush();
        assert!(!readable(&log));
    });
}

/// A veth pair that goes away with its owner.
struct Veth(String);

impl Veth {
    fn new() -> Self {
        let name = format!("nx{}", std::process::id());
        ip(&["link", "add", &name, "type", "veth", "peer", "name", &format!("{name}p")]);
        Self(name)
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["link", "del", &self.0]).status();
    }
}

fn ip(arguments: &[&str]) {
    assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
}

#[test]
fn attaching_is_by_link_and_ends_with_the_program() {
    with_program(DROP, |bench| {
        let veth = Veth::new();
        let attached = |name: &str| {
            let output = std::process::Command::new("ip").args(["link", "show", name]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().contains("prog/xdp")
        };
        assert_eq!(bench.xdp.attach(&veth.0, AttachMode::Auto).unwrap(), AttachedMode::Native);
        assert!(attached(&veth.0));
        let mut second = XdpProgram::load(&bench.table, DROP).unwrap();
        let busy = second.attach(&veth.0, AttachMode::Native).unwrap_err().to_string();
        assert!(busy.contains(&veth.0) && busy.contains("another XDP program"), "{busy}");
        bench.xdp.detach();
        assert!(!attached(&veth.0));
        assert_eq!(second.attach(&veth.0, AttachMode::Generic).unwrap(), AttachedMode::Generic);
        drop(second);
        assert!(!attached(&veth.0));
        let missing = bench.xdp.attach("nosuchif0", AttachMode::Auto).unwrap_err().to_string();
        assert!(missing.contains("nosuchif0"), "{missing}");
    });
}

#[test]
fn an_updated_table_holds_from_the_next_packet_on() {
    with_program(DROP, |bench| {
        let frame = Outer::vxlan4(7).frame(&Inner::tcp4(9).ethernet(0));
        assert_eq!(bench.run(&frame).action, XDP_REDIRECT);
        bench.xdp.update_table(&ForwardingTable::default()).unwrap();
        assert_eq!(bench.run(&frame).counted.passed(PassReason::NotOurs), 1);
        bench.xdp.update_table(&bench.table).unwrap();
        assert_eq!(bench.run(&frame).action, XDP_REDIRECT);
    });
}

#[test]
fn flipping_any_bit_of_a_valid_packet_is_never_verified() {
    // No root needed: the user-space classifier, whose equality with the program the other tests show.
    let table = table();
    for inner in [Inner::tcp4(20).ethernet(1), Inner::udp6(9).ethernet(0)] {
        for outer in [Outer::vxlan4(7), Outer::vxlan6(7), Outer::vxlan4(7).checksum(Field::Zero)] {
            let frame = outer.frame(&inner);
            let Verdict::Deliver(good) = classify(&frame[..], &table, &DROP) else { panic!("not delivered") };
            assert_eq!(good.checksums, ChecksumVerdict::Verified);
            // With no outer checksum only the inner IP packet is covered.
            let inner_ip = frame.len() - inner.len() + if inner.len() > 70 && inner[12] == 0x81 { 18 } else { 14 };
            let covered = if outer.checksum == Field::Zero { inner_ip } else { 14 };
            for bit in covered * 8..frame.len() * 8 {
                let mut frame = frame.clone();
                frame[bit / 8] ^= 1 << (bit % 8);
                if let Verdict::Deliver(delivery) = classify(&frame[..], &table, &DROP) {
                    assert!(uncovered(bit, &frame, &delivery), "bit {} of byte {}", bit % 8, bit / 8);
                }
            }
        }
    }
}

/// What no checksum covers: an IPv6 header's class, label and hop limit, inside and outside. (The outer checksum covers the
/// inner one's.)
fn uncovered(bit: usize, frame: &[u8], delivery: &Delivery) -> bool {
    if delivery.checksums != ChecksumVerdict::Verified {
        return true;
    }
    let unprotected = |start: usize| {
        frame[start] >> 4 == 6 && (start..start + 8).contains(&(bit / 8)) && !(4..7).contains(&(bit / 8 - start))
    };
    let has_outer_checksum = frame[14] >> 4 == 6 || frame[40..42] != [0, 0];
    unprotected(14) || !has_outer_checksum && unprotected(usize::from(delivery.inner_offset) + 14)
}

proptest::proptest! {
    #[test]
    fn classify_never_panics_and_offsets_lie_within_the_frame(
        row in 0usize..50,
        edits in proptest::collection::vec((0usize..160, proptest::num::u8::ANY), 0..8),
        len in 0usize..400,
    ) {
        let (_, mut frame) = drops().swap_remove(row % drops().len());
        for (at, value) in edits {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(len);
        for policy in [DROP, COUNT, OFF, PARTIAL] {
            if let Verdict::Deliver(delivery) = classify(&frame[..], &table(), &policy) {
                let end = usize::from(delivery.inner_offset) + usize::from(delivery.inner_len);
                proptest::prop_assert!(end <= frame.len());
            }
        }
    }

    #[test]
    fn classify_never_panics_on_any_bytes(frame in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = classify(&frame[..], &table(), &DROP);
    }
}
