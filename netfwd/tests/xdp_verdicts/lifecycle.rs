//! Loading, attaching, sockets, tables and log lines.

use aya::Ebpf;
use aya::maps::ProgramArray;
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use netfwd::datapath::table::ForwardingTable;
use netfwd::io::xdp::{AttachMode, AttachedMode, XdpProgram};
use netfwd_common::abi::{Policy, station};
use netfwd_common::classify::Verdict;
use netfwd_common::reason::{DropReason, PassReason};

use crate::bench::{COUNT, DROP, XDP_PASS, XDP_REDIRECT, total, with_program, with_program_of_its_own};
use crate::packets::{Field, Inner, Outer};

static COMPANION: &[u8] = aya::include_bytes_aligned!(env!("NETFWD_EBPF_BENCH_PATH"));

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

/// Every driver of a test run has room for a record, so another program takes it away first.
#[test]
fn without_room_for_a_record_the_kernel_gets_the_packet() {
    with_program(DROP, |bench| {
        let mut companion = Ebpf::load(COMPANION).unwrap();
        let mut next: ProgramArray<_> = companion.take_map("NEXT").unwrap().try_into().unwrap();
        next.set(0, bench.xdp.program().unwrap().fd().unwrap(), 0).unwrap();
        let cramped: &mut Xdp = companion.program_mut("cramped").unwrap().try_into().unwrap();
        cramped.load().unwrap();
        let frame = Outer::vxlan4(7).frame(&Inner::udp4(76).ethernet(0));
        assert_eq!(frame.len() % 4, 0, "what moves are words");
        let before = bench.xdp.counters().unwrap();
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions { data_in: Some(&frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let run = cramped.test_run(options).unwrap();
        let after = bench.xdp.counters().unwrap();
        assert_eq!(run.return_value, XDP_PASS);
        assert_eq!(&out[..run.data_size_out as usize], frame);
        assert_eq!(after.passed(PassReason::NoMetadata) - before.passed(PassReason::NoMetadata), 1);
    });
}

#[test]
fn what_is_tolerated_is_counted_where_it_is_delivered() {
    with_program(COUNT, |bench| {
        let bad = Outer::vxlan4(7).frame(&Inner::udp4(80).checksum(Field::Wrong).ethernet(0));
        assert_eq!(bench.run(&bad).counted.tolerated.iter().sum::<u64>(), 1);
        bench.xdp.unregister_socket(0).unwrap();
        let run = bench.run(&bad);
        assert_eq!(run.counted.tolerated.iter().sum::<u64>(), 0, "the socket's side judges it again");
        assert_eq!(run.counted.passed(PassReason::NoSocket), 1);
    });
}

#[test]
fn a_frame_longer_than_the_buffers_takes_the_kernels_way() {
    with_program(Policy { frame_limit: 16, ..DROP }, |bench| {
        let of_length = |length: usize| {
            let shortest = Outer::vxlan4(7).frame(&Inner::udp4(0).ethernet(0)).len();
            Outer::vxlan4(7).frame(&Inner::udp4(length - shortest).ethernet(0))
        };
        assert_eq!(bench.run(&of_length(1024)).action, XDP_REDIRECT);
        let run = bench.run(&of_length(1025));
        assert_eq!((run.action, run.counted.passed(PassReason::TooLong)), (XDP_PASS, 1));
    });
}

/// Another in each byte, the group bit included; but the sender's address beside it may be any.
#[test]
fn a_frame_for_another_station_is_the_kernels() {
    const OURS: [u8; 6] = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];
    with_program(Policy { station: station(OURS), ..DROP }, |bench| {
        let to = |destination: [u8; 6], sender: u8| {
            let mut frame = Outer::vxlan4(7).frame(&Inner::udp4(80).ethernet(0));
            frame[..6].copy_from_slice(&destination);
            frame[6..12].fill(sender);
            frame
        };
        for sender in [0, 0x12, 0xfe] {
            assert_eq!(bench.run(&to(OURS, sender)).action, XDP_REDIRECT);
        }
        let others = (0..6).map(|byte| std::array::from_fn(|i| OURS[i] ^ u8::from(i == byte)));
        for other in others.chain([[0xff; 6], [0; 6]]) {
            let run = bench.run(&to(other, 0x12));
            assert_eq!((run.action, run.counted.passed(PassReason::OtherStation)), (XDP_PASS, 1), "{other:x?}");
        }
        bench.set_policy(DROP);
        assert_eq!(bench.run(&to([0xff; 6], 0x12)).action, XDP_REDIRECT, "without a station of its own");
    });
}

#[test]
fn drops_are_logged_only_with_the_debug_switch() {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    with_program_of_its_own(DROP, |bench| {
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
