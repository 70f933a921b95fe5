//! WireGuard messages: any remote, the shape of each type, the outer checksums.

use netfwd::datapath::packet::TunnelIndex;
use netfwd::datapath::table::{VerifyPolicy, address_bytes};
use netfwd::datapath::tunnel::decap::{LookupCache, Opened, SealedMessage, SocketOrigin, open_frame, open_payload};
use netfwd_common::abi::{ChecksumVerdict, Metadata};
use netfwd_common::classify::Verdict;
use netfwd_common::reason::{DropReason, PassReason};
use netfwd_common::wire::wireguard::MessageType;
use zerocopy::IntoBytes as _;

use crate::bench::{COUNT, DROP, OFF, PARTIAL, XDP_REDIRECT, with_program};
use crate::packets::{self, Field, Inner, Outer, wireguard};

/// Listens on every address.
const PORT: u16 = 51820;
/// Listens on fd09::2 and accepts a zero checksum there.
const ZERO_PORT: u16 = 51821;
/// [`PORT`]'s and [`ZERO_PORT`]'s tunnels.
const TUNNEL: u16 = 5;
const ZERO_TUNNEL: u16 = 6;

/// A message of each type, the data with and without a packet in it, and one that fills the usual MTU of 1420.
const MESSAGES: [(MessageType, usize); 6] = [
    (MessageType::Initiation, 148),
    (MessageType::Response, 92),
    (MessageType::CookieReply, 64),
    (MessageType::Data, 32),
    (MessageType::Data, 96),
    (MessageType::Data, 1452),
];

fn outers() -> [Outer; 2] {
    [Outer::wireguard4(PORT), Outer::wireguard6(PORT)]
}

/// Every message in every outer, all of it right.
pub fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (message_type, len) in MESSAGES {
        let message = wireguard(message_type as u8, len);
        for tags in 0..3 {
            frames.extend(outers().map(|outer| outer.tags(tags).datagram(&message)));
        }
        frames.push(Outer::wireguard4(PORT).checksum(Field::Zero).datagram(&message));
        frames.push(Outer::wireguard6(ZERO_PORT).checksum(Field::Zero).datagram(&message));
    }
    frames
}

#[test]
fn each_message_is_redirected_whole_with_its_type() {
    with_program(DROP, |bench| {
        for (message_type, len) in MESSAGES {
            for outer in outers() {
                for tags in 0..3 {
                    let frame = outer.clone().tags(tags).datagram(&wireguard(message_type as u8, len));
                    let delivery = bench.delivery(&frame);
                    assert_eq!(delivery.checksums, ChecksumVerdict::Verified, "{message_type:?}");
                    assert_eq!((delivery.entry.tunnel, delivery.message), (TUNNEL, Some(message_type)));
                    assert_eq!(usize::from(delivery.inner_len), len);
                    assert_eq!(usize::from(delivery.inner_offset) + len, frame.len());
                }
            }
        }
    });
}

#[test]
fn peers_may_roam() {
    with_program(DROP, |bench| {
        let data = wireguard(4, 96);
        for source in ["10.9.0.1", "192.0.2.200", "255.0.0.1"] {
            for source_port in [1, 51820, 65535] {
                let outer = Outer { source: source.parse().unwrap(), source_port, ..Outer::wireguard4(PORT) };
                assert_eq!(bench.delivery(&outer.datagram(&data)).entry.tunnel, TUNNEL);
            }
        }
        let outer = Outer { source: "2001:db8::9".parse().unwrap(), ..Outer::wireguard6(ZERO_PORT) };
        assert_eq!(bench.delivery(&outer.datagram(&data)).entry.tunnel, ZERO_TUNNEL);
    });
}

/// Nobody could answer without the interface, which a socket knows.
#[test]
fn what_comes_from_a_link_local_address_takes_a_socket() {
    with_program(DROP, |bench| {
        let from = |source: &str, outer| Outer { source: source.parse().unwrap(), ..outer };
        for (message_type, len) in MESSAGES {
            let message = wireguard(message_type as u8, len);
            let frame = |source: &str| from(source, Outer::wireguard6(PORT)).tags(1).datagram(&message);
            for source in ["fe80::1", "fe80::ffff:ffff", "febf:ffff::9"] {
                assert_eq!(bench.verdict(&frame(source)), Verdict::Pass(PassReason::LinkLocal), "{source}");
            }
            for source in ["fe7f:ffff::1", "fec0::1", "80fe::1", "fd09::fe80"] {
                assert_eq!(bench.delivery(&frame(source)).entry.tunnel, TUNNEL, "{source}");
            }
            // 254.128.0.1 is IPv4 all the same.
            let four = from("254.128.0.1", Outer::wireguard4(PORT)).datagram(&message);
            assert_eq!(bench.delivery(&four).entry.tunnel, TUNNEL);
            let forwarded = Outer { destination: "fd09::3".parse().unwrap(), ..Outer::wireguard6(PORT) };
            let forwarded = from("fe80::1", forwarded).datagram(&message);
            assert_eq!(bench.verdict(&forwarded), Verdict::Pass(PassReason::NotOurs));
        }
        // Those who may send to other tunnels are configured, and none of them is link-local.
        let vxlan = from("fe80::1", Outer::vxlan6(7)).frame(&Inner::tcp4(100).ethernet(0));
        assert_eq!(bench.verdict(&vxlan), Verdict::Drop(DropReason::RemoteNotAllowed));
    });
}

#[test]
fn handshake_messages_have_one_length_and_data_a_least_one() {
    with_program(DROP, |bench| {
        for outer in outers() {
            for len in (0..200).chain([1439, 1440, 1441]) {
                for (message_type, exact) in [(1, Some(148)), (2, Some(92)), (3, Some(64)), (4, None)] {
                    let allowed = exact.map_or(len >= 32, |exact| len == exact);
                    let verdict = bench.verdict(&outer.datagram(&wireguard(message_type, len)));
                    match verdict {
                        Verdict::Deliver(_) => assert!(allowed, "type {message_type} of {len}"),
                        // Without room for a header the datagram ends before its type counts.
                        Verdict::Drop(DropReason::BadLength) => assert!(!allowed, "type {message_type} of {len}"),
                        other => panic!("{other:?}: type {message_type} of {len}"),
                    }
                }
            }
        }
    });
}

#[test]
fn a_wrong_type_or_a_reserved_bit_drops() {
    with_program(DROP, |bench| {
        for outer in outers() {
            for message_type in (0..=255).filter(|message_type| !(1..=4).contains(message_type)) {
                let frame = outer.datagram(&wireguard(message_type, 148));
                assert_eq!(bench.verdict(&frame), Verdict::Drop(DropReason::TunnelHeader), "type {message_type}");
            }
            for bit in 8..32 {
                let mut message = wireguard(4, 96);
                message[bit / 8] |= 1 << (bit % 8);
                let verdict = bench.verdict(&outer.datagram(&message));
                assert_eq!(verdict, Verdict::Drop(DropReason::TunnelHeader), "bit {bit}");
            }
        }
    });
}

#[test]
fn other_tunnels_headers_do_not_belong_on_the_port_and_messages_not_on_theirs() {
    with_program(DROP, |bench| {
        let inner = Inner::tcp4(100).ethernet(0);
        for (port, header) in [(PORT, packets::vxlan(7)), (PORT, packets::gpe(9, 1))] {
            let frame = Outer::new("10.9.0.1", "10.9.0.2", port, header).frame(&inner);
            assert_eq!(bench.verdict(&frame), Verdict::Drop(DropReason::TunnelHeader));
        }
        for port in [4789, 4790] {
            let message = wireguard(4, 96);
            for outer in [Outer::new("10.9.0.1", "10.9.0.2", port, [0; 8]), Outer::wireguard6(port)] {
                assert_eq!(bench.verdict(&outer.datagram(&message)), Verdict::Drop(DropReason::TunnelHeader));
            }
        }
    });
}

#[test]
fn what_is_only_forwarded_is_the_kernels() {
    with_program(DROP, |bench| {
        let message = wireguard(4, 96);
        for outer in [
            Outer { destination: "10.9.0.3".parse().unwrap(), ..Outer::wireguard4(PORT) },
            Outer { destination: "fd09::3".parse().unwrap(), ..Outer::wireguard6(PORT) },
            Outer::wireguard4(ZERO_PORT),
            Outer::wireguard4(51822),
        ] {
            assert_eq!(bench.verdict(&outer.datagram(&message)), Verdict::Pass(PassReason::NotOurs));
        }
    });
}

#[test]
fn every_truncation_is_told() {
    with_program(DROP, |bench| {
        for outer in outers() {
            for (message_type, len) in [(1, 148), (4, 96)] {
                let frame = outer.clone().tags(1).datagram(&wireguard(message_type, len));
                for len in 14..frame.len() {
                    match bench.verdict(&frame[..len]) {
                        Verdict::Pass(PassReason::TooShort) | Verdict::Drop(DropReason::Truncated) => {}
                        other => panic!("{other:?} at {len} of {}", frame.len()),
                    }
                }
            }
        }
    });
}

#[test]
fn zero_means_absent_over_ipv4_and_over_ipv6_where_the_tunnel_says_so() {
    with_program(DROP, |bench| {
        for (message_type, len) in MESSAGES {
            let zero = |outer: Outer| outer.checksum(Field::Zero).datagram(&wireguard(message_type as u8, len));
            assert_eq!(bench.delivery(&zero(Outer::wireguard4(PORT))).checksums, ChecksumVerdict::Absent);
            assert_eq!(bench.delivery(&zero(Outer::wireguard6(ZERO_PORT))).checksums, ChecksumVerdict::Absent);
            let refused = bench.verdict(&zero(Outer::wireguard6(PORT)));
            assert_eq!(refused, Verdict::Drop(DropReason::OuterUdpZeroChecksum));
        }
    });
}

#[test]
fn bad_outer_checksums_drop_count_or_pass_unseen_by_policy() {
    with_program(DROP, |bench| {
        for (message_type, len) in MESSAGES {
            let message = wireguard(message_type as u8, len);
            let wrong_ip = Outer::wireguard4(PORT).ip_checksum(Field::Wrong).datagram(&message);
            let [wrong4, wrong6] = outers().map(|outer| outer.checksum(Field::Wrong).datagram(&message));
            for (frame, reason) in [
                (wrong_ip, DropReason::OuterIpChecksum),
                (wrong4, DropReason::OuterUdpChecksum),
                (wrong6, DropReason::OuterUdpChecksum),
            ] {
                bench.set_policy(DROP);
                assert_eq!(bench.verdict(&frame), Verdict::Drop(reason));
                bench.set_policy(COUNT);
                let delivery = bench.delivery(&frame);
                assert_eq!((delivery.checksums, delivery.tolerated), (ChecksumVerdict::Bad, Some(reason)));
                bench.set_policy(OFF);
                let delivery = bench.delivery(&frame);
                assert_eq!((delivery.checksums, delivery.tolerated), (ChecksumVerdict::Unverified, None));
            }
        }
    });
}

#[test]
fn an_unfinished_outer_checksum_is_partial() {
    with_program(DROP, |bench| {
        for outer in outers() {
            let frame = outer.checksum(Field::Partial).datagram(&wireguard(4, 1452));
            bench.set_policy(DROP);
            assert_eq!(bench.verdict(&frame), Verdict::Drop(DropReason::PartialChecksum));
            bench.set_policy(PARTIAL);
            assert_eq!(bench.delivery(&frame).checksums, ChecksumVerdict::Partial);
        }
    });
}

#[test]
fn flipping_any_bit_of_a_message_is_seen() {
    with_program(DROP, |bench| {
        let frame = Outer::wireguard4(PORT).datagram(&wireguard(4, 112));
        for bit in (42 * 8)..(frame.len() * 8) {
            let mut frame = frame.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(bench.verdict(&frame), Verdict::Drop(_)), "bit {} of byte {}", bit % 8, bit / 8);
        }
    });
}

#[test]
fn the_record_tells_sessions_apart_and_carries_the_congestion_mark() {
    with_program(DROP, |bench| {
        let data = |receiver: u32, counter: u8| {
            let mut message = wireguard(4, 96);
            message[4..8].copy_from_slice(&receiver.to_le_bytes());
            message[8] = counter;
            Outer { tos: 3, ..Outer::wireguard4(PORT) }.datagram(&message)
        };
        let delivery = bench.delivery(&data(1, 1));
        assert_eq!(delivery.ecn, 3);
        assert_ne!(delivery.flow_hash, 0);
        assert_eq!(delivery.flow_hash, bench.delivery(&data(1, 2)).flow_hash);
        assert_ne!(delivery.flow_hash, bench.delivery(&data(2, 1)).flow_hash);
        assert_eq!(bench.delivery(&Outer::wireguard4(PORT).datagram(&wireguard(1, 148))).flow_hash, 0);
    });
}

fn message(opened: Result<Opened<'_>, DropReason>) -> Result<SealedMessage<'_>, DropReason> {
    opened.map(|opened| match opened {
        Opened::Message(message) => message,
        Opened::Packet(packet) => panic!("a packet: {packet:?}"),
    })
}

#[test]
fn user_space_opens_what_the_record_says_and_sees_the_same_without_one() {
    with_program(DROP, |bench| {
        for (message_type, len) in MESSAGES {
            for outer in outers() {
                let sealed = wireguard(message_type as u8, len);
                let frame = Outer { source_port: 4242, tos: 2, ..outer }.tags(1).datagram(&sealed);
                let run = bench.run(&frame);
                assert_eq!(run.action, XDP_REDIRECT);
                let record: Metadata = run.metadata.unwrap();
                let origin = SocketOrigin {
                    local: address_bytes(outer.destination),
                    port: PORT,
                    remote: address_bytes(outer.source),
                    remote_port: 4242,
                    scope: 0,
                    ecn: 2,
                };
                for metadata in [Some(zerocopy::transmute!(record)), None] {
                    let mut frame = frame.clone();
                    let opened = open_frame(&bench.table, &mut frame, metadata, VerifyPolicy::default());
                    let opened = message(opened).unwrap();
                    assert_eq!((opened.tunnel, opened.message_type), (TunnelIndex(TUNNEL), message_type));
                    assert_eq!((&*opened.bytes, opened.origin), (&sealed[..], origin));
                }
            }
        }
    });
}

/// Short frames are padded on Ethernet, and a sealed message has no length field of its own.
#[test]
fn a_message_ends_where_its_datagram_does_and_not_where_the_frame_does() {
    with_program(DROP, |bench| {
        for (message_type, len) in MESSAGES {
            for (outer, padding) in outers().into_iter().flat_map(|outer| [(outer.clone(), 1), (outer, 18)]) {
                let sealed = wireguard(message_type as u8, len);
                let frame = [outer.datagram(&sealed), vec![0xa5; padding]].concat();
                assert_eq!(usize::from(bench.delivery(&frame).inner_len), len);
                let record: Metadata = bench.run(&frame).metadata.unwrap();
                assert_eq!(usize::from(record.inner_len), len);
                for metadata in [Some(zerocopy::transmute!(record)), None] {
                    let mut frame = frame.clone();
                    let opened = open_frame(&bench.table, &mut frame, metadata, VerifyPolicy::default());
                    assert_eq!(message(opened).unwrap().bytes, sealed);
                }
            }
        }
    });
}

#[test]
fn a_record_that_contradicts_the_frame_opens_nothing() {
    with_program(DROP, |bench| {
        let frame = Outer::wireguard4(PORT).datagram(&wireguard(1, 148));
        let record = bench.run(&frame).metadata.unwrap();
        for wrong in [
            Metadata { message: 0, ..record },
            Metadata { message: 5, ..record },
            Metadata { message: 2, ..record },
            Metadata { inner_len: record.inner_len - 1, ..record },
            Metadata { inner_len: record.inner_len + 1, ..record },
            Metadata { inner_offset: record.inner_offset - 1, ..record },
            Metadata { inner_offset: 0, ..record },
            Metadata { inner_offset: u16::MAX, ..record },
        ] {
            let mut frame = frame.clone();
            let metadata = wrong.as_bytes().try_into().unwrap();
            let opened = open_frame(&bench.table, &mut frame, Some(metadata), VerifyPolicy::default());
            assert_eq!(message(opened).unwrap_err(), DropReason::BadMetadata, "{wrong:?}");
        }
    });
}

#[test]
fn a_socket_without_an_address_opens_the_same_messages() {
    // No root needed: nothing is loaded.
    let table = crate::bench::table();
    for (local, port, tunnel) in [
        ("0.0.0.0", PORT, TUNNEL),
        ("::", PORT, TUNNEL),
        ("10.9.0.2", PORT, TUNNEL),
        ("fd09::2", ZERO_PORT, ZERO_TUNNEL),
    ] {
        let origin = SocketOrigin {
            local: address_bytes(local.parse().unwrap()),
            port,
            remote: address_bytes("192.0.2.9".parse().unwrap()),
            remote_port: 7,
            scope: 0,
            ecn: 1,
        };
        let open = |mut payload: Vec<u8>| {
            let opened = message(open_payload(&table, &mut LookupCache::default(), &mut payload, &origin));
            opened.map(|message| (message.tunnel.0, message.message_type, message.bytes.len(), message.origin))
        };
        for (message_type, len) in MESSAGES {
            assert_eq!(open(wireguard(message_type as u8, len)), Ok((tunnel, message_type, len, origin)));
        }
        assert_eq!(open(wireguard(1, 147)), Err(DropReason::BadLength));
        assert_eq!(open(wireguard(4, 31)), Err(DropReason::BadLength));
        assert_eq!(open(wireguard(4, 3)), Err(DropReason::BadLength));
        assert_eq!(open(wireguard(5, 96)), Err(DropReason::TunnelHeader));
        assert_eq!(open(packets::vxlan(7).to_vec()), Err(DropReason::TunnelHeader));
    }
}
