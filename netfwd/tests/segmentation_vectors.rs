//! The egress vectors of docs/COALESCING.md, and the forwarding decisions, each by name.

mod segmentation;

use std::net::IpAddr;

use netfwd::datapath::packet::RemoteIndex;
use netfwd::datapath::seam::OuterChecksum;
use netfwd_common::abi::TunnelKind;
use netfwd_common::reason::{DropReason, Stage};
use segmentation::*;

fn cut(shape: &Shape, size: usize) -> Vec<Vec<u8>> {
    let mut bench = Bench::new();
    bench.run(shape.tunnel(), shape.frame(size));
    assert_eq!(bench.drops(), vec![]);
    let segments = bench.sink.inner();
    let expected: Vec<_> = shape.cut(size).iter().map(Shape::packet).collect();
    assert_eq!(segments, expected);
    assert!(segments.iter().all(|segment| checksums_verify(shape, segment)));
    segments
}

fn tcp_flags(flags: u8, segments: usize) -> Vec<u8> {
    let mut shape = Shape::tcp(false, pattern(100 * segments, 0));
    shape.l4 = L4::Tcp { sequence: 0, flags, options: vec![] };
    cut(&shape, 100).iter().map(|segment| segment[20 + 13]).collect()
}

fn dropped(frame: Vec<u8>) -> Vec<(Stage, DropReason, u64)> {
    let mut bench = Bench::new();
    bench.run(GPE, frame);
    assert!(bench.sink.sent.is_empty());
    bench.drops()
}

const VNET: [(Stage, DropReason, u64); 1] = [(Stage::Segment, DropReason::VnetHeader, 1)];

fn ipv4(segment: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([segment[at], segment[at + 1]])
}

/// Sets the payload's last two bytes so that the transport checksum computes to `wanted`.
fn aim_checksum(shape: &mut Shape, wanted: u16) {
    let length = shape.payload.len();
    assert!(length.is_multiple_of(2), "the last word stands at an even offset");
    shape.payload[length - 2..].fill(0);
    let packet = shape.packet();
    let at = shape.l4_offset() + if shape.is_tcp() { 16 } else { 6 };
    let checksum = u64::from(ipv4(&packet, at));
    let word = fold(checksum + u64::from(!wanted));
    shape.payload[length - 2..].copy_from_slice(&word.to_be_bytes());
}

#[test]
fn cwr_stays_on_the_first_segment() {
    assert_eq!(tcp_flags(ACK | CWR, 3), [ACK | CWR, ACK, ACK]);
    assert_eq!(tcp_flags(ACK | CWR, 1), [ACK | CWR]);
}

#[test]
fn psh_and_fin_stay_on_the_last_segment() {
    assert_eq!(tcp_flags(ACK | PSH, 3), [ACK, ACK, ACK | PSH]);
    assert_eq!(tcp_flags(ACK | FIN, 3), [ACK, ACK, ACK | FIN]);
    assert_eq!(tcp_flags(ACK | PSH | FIN | CWR, 2), [ACK | CWR, ACK | PSH | FIN]);
    assert_eq!(tcp_flags(ACK | PSH | FIN | CWR, 1), [ACK | PSH | FIN | CWR]);
}

#[test]
fn the_ecn_bit_of_the_gso_type_is_legal() {
    let mut shape = Shape::tcp(true, pattern(3_000, 0));
    shape.l4 = L4::Tcp { sequence: 1, flags: ACK | CWR, options: vec![] };
    let mut frame = shape.frame(1_000);
    frame[1] |= 0x80;
    let mut bench = Bench::new();
    bench.run(GPE, frame);
    assert_eq!(bench.sink.inner().len(), 3);
    assert_eq!(bench.drops(), vec![]);
}

#[test]
fn the_sequence_number_wraps() {
    let mut shape = Shape::tcp(false, pattern(3_000, 0));
    shape.l4 = L4::Tcp { sequence: u32::MAX - 999, flags: ACK, options: vec![] };
    let sequences: Vec<_> = cut(&shape, 1_000).iter().map(|segment| segment[24..28].to_vec()).collect();
    assert_eq!(sequences, [(u32::MAX - 999).to_be_bytes(), [0; 4], 1_000u32.to_be_bytes()]);
}

#[test]
fn the_ipv4_id_counts_up_and_wraps_with_df_clear_and_set() {
    for dont_fragment in [false, true] {
        let shape = Shape { id: 0xffff, dont_fragment, ..Shape::udp(false, pattern(3_000, 0)) };
        let ids: Vec<_> = cut(&shape, 1_000).iter().map(|segment| ipv4(segment, 4)).collect();
        assert_eq!(ids, [0xffff, 0, 1]);
    }
}

#[test]
fn ipv6_udp_whose_checksum_computes_to_zero_is_sent_as_ffff_on_split() {
    for v6 in [false, true] {
        let mut shape = Shape::udp(v6, pattern(100, 3));
        aim_checksum(&mut shape, 0);
        let tail = shape.payload.clone();
        // Every datagram of the superframe is that datagram.
        shape.payload = tail.repeat(3);
        for segment in cut(&shape, 100) {
            assert_eq!(ipv4(&segment, shape.l4_offset() + 6), 0xffff);
        }
    }
}

#[test]
fn ipv6_udp_whose_checksum_computes_to_zero_is_sent_as_ffff_when_completed() {
    let mut shape = Shape::udp(true, pattern(100, 3));
    aim_checksum(&mut shape, 0);
    let mut bench = Bench::new();
    bench.run(GPE, shape.needs_checksum_frame());
    assert_eq!(ipv4(&bench.sink.inner()[0], 46), 0xffff);
    assert_eq!(bench.sink.inner(), [shape.packet()]);
}

#[test]
fn a_tcp_checksum_of_zero_is_sent_as_zero() {
    let mut shape = Shape::tcp(true, pattern(100, 3));
    aim_checksum(&mut shape, 0);
    let [segment] = cut(&shape, 100).try_into().unwrap();
    assert_eq!(ipv4(&segment, shape.l4_offset() + 16), 0);
    let mut bench = Bench::new();
    bench.run(GPE, shape.needs_checksum_frame());
    assert_eq!(bench.sink.inner(), [segment]);
}

#[test]
fn ipv6_extension_headers_count_as_payload_on_split() {
    let extensions = vec![destination_options(1), destination_options(3)];
    for shape in [Shape::tcp(true, pattern(2_500, 0)), Shape::udp(true, pattern(2_500, 0))] {
        let shape = Shape { extensions: extensions.clone(), ..shape };
        let lengths: Vec<_> = cut(&shape, 1_000).iter().map(|segment| usize::from(ipv4(segment, 4))).collect();
        let headers = shape.header_len() - 40;
        assert_eq!(lengths, [headers + 1_000, headers + 1_000, headers + 500]);
    }
}

#[test]
fn ipv4_options_are_copied_to_every_segment() {
    cut(&Shape { ipv4_options: vec![1; 40], ..Shape::tcp(false, pattern(2_500, 0)) }, 1_000);
}

#[test]
fn vlan_tags_are_copied_to_every_segment() {
    for tags in [vec![], vec![[0x81, 0, 0, 7]], vec![[0x88, 0xa8, 0, 7], [0x81, 0, 0, 8]]] {
        cut(&Shape { ethernet: Some(tags), ..Shape::udp(true, pattern(2_500, 0)) }, 1_000);
    }
}

#[test]
fn sixty_four_udp_segments_are_one_run_and_sixty_five_are_two() {
    for (segments, runs) in [(64, vec![64]), (65, vec![64, 1]), (128, vec![64, 64]), (129, vec![64, 64, 1])] {
        let shape = Shape::udp(false, pattern(100 * segments, 0));
        let mut bench = Bench::new();
        bench.run(GPE, shape.frame(100));
        assert_eq!(bench.sink.sent.iter().map(|sent| sent.datagrams.len()).collect::<Vec<_>>(), runs);
        assert_eq!(bench.sink.inner(), shape.cut(100).iter().map(Shape::packet).collect::<Vec<_>>());
    }
}

#[test]
fn a_superframe_of_65535_bytes_becomes_runs_of_at_most_65507() {
    for v6 in [false, true] {
        for shape in [Shape::tcp(v6, vec![]), Shape::udp(v6, vec![])] {
            let whole = if v6 { 65_535 + 40 } else { 65_535 };
            let shape = Shape { payload: pattern(whole - shape.header_len(), 0), ..shape };
            let mut bench = Bench::new();
            bench.run(GPE, shape.frame(1_400));
            assert!(bench.sink.sent.len() >= 2, "encapsulation makes it longer than one run");
            assert_eq!(bench.sink.inner(), shape.cut(1_400).iter().map(Shape::packet).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_superframe_beyond_65535_bytes_is_still_cut_right() {
    // BIG TCP: the superframe's own length fields cannot hold its length and are not looked at.
    for shape in [Shape::tcp(false, pattern(65_536, 0)), Shape::tcp(true, pattern(65_536, 0))] {
        cut(&shape, 1_400);
    }
}

#[test]
fn a_last_segment_may_be_shorter_than_the_headers() {
    for shape in [Shape::tcp(false, pattern(2_001, 0)), Shape::udp(true, pattern(2_001, 0))] {
        let segments = cut(&shape, 1_000);
        assert_eq!(segments[2].len(), shape.header_len() + 1);
    }
}

#[test]
fn gso_size_may_be_smaller_than_the_headers() {
    for shape in [Shape::tcp(false, pattern(101, 0)), Shape::udp(true, pattern(101, 0))] {
        assert_eq!(cut(&shape, 1).len(), 101);
        assert_eq!(cut(&shape, 7).len(), 15);
    }
}

#[test]
fn a_superframe_no_longer_than_one_segment_is_one_packet() {
    for payload in [0, 1, 999, 1_000] {
        assert_eq!(cut(&Shape::tcp(false, pattern(payload, 0)), 1_000).len(), 1);
        assert_eq!(cut(&Shape::udp(true, pattern(payload, 0)), 1_000).len(), 1);
    }
}

#[test]
fn a_corrupt_packet_without_offloads_stays_corrupt() {
    for shape in [Shape::tcp(false, pattern(100, 0)), Shape::udp(true, pattern(100, 0))] {
        let mut packet = shape.packet();
        *packet.last_mut().unwrap() ^= 1;
        let mut bench = Bench::new();
        bench.run(GPE, plain(&packet));
        assert_eq!(bench.sink.inner(), [packet]);
        // Its checksum proves nothing, so the outer one may not be derived from it.
        assert_eq!(bench.sink.sent[0].checksum, OuterChecksum::Wanted { payload_sum: None });
    }
}

#[test]
fn ethernet_padding_behind_a_short_packet_is_carried_along() {
    let shape = Shape { ethernet: Some(vec![]), ..Shape::udp(false, vec![1]) };
    let mut packet = shape.packet();
    packet.resize(60, 0);
    let mut bench = Bench::new();
    bench.run(VXLAN, plain(&packet));
    assert_eq!(bench.sink.inner(), [packet]);
}

#[test]
fn a_gso_type_with_gso_size_zero_is_dropped() {
    assert_eq!(dropped(Shape::tcp(false, pattern(100, 0)).frame(0)), VNET);
    assert_eq!(dropped(Shape::udp(true, pattern(100, 0)).frame(0)), VNET);
}

#[test]
fn an_unknown_gso_type_is_dropped() {
    for gso_type in [2, 3, 6, 0x7f, 0x80, 0xff] {
        let mut frame = Shape::udp(false, pattern(100, 0)).frame(50);
        frame[1] = gso_type;
        assert_eq!(dropped(frame), VNET);
    }
}

#[test]
fn a_gso_type_of_the_other_family_or_protocol_is_dropped() {
    for (shape, wrong) in [
        (Shape::tcp(false, pattern(100, 0)), [GSO_TCPV6, GSO_UDP_L4]),
        (Shape::tcp(true, pattern(100, 0)), [GSO_TCPV4, GSO_UDP_L4]),
        (Shape::udp(true, pattern(100, 0)), [GSO_TCPV4, GSO_TCPV6]),
    ] {
        for gso_type in wrong {
            let mut frame = shape.frame(50);
            frame[1] = gso_type;
            assert_eq!(dropped(frame), VNET);
        }
    }
}

#[test]
fn a_superframe_that_needs_no_checksum_is_dropped() {
    let mut frame = Shape::tcp(false, pattern(100, 0)).frame(50);
    frame[0] = 0;
    assert_eq!(dropped(frame), VNET);
}

#[test]
fn checksum_offsets_outside_the_frame_or_elsewhere_are_dropped() {
    let shape = Shape::udp(false, pattern(100, 0));
    let packet = shape.partial();
    let frame = |gso_type, size, start, offset| [&vnet(1, gso_type, 28, size, start, offset)[..], &packet].concat();
    for (start, offset) in [(127, 0), (20, 107), (0xffff, 0xffff), (0, 127), (128, 0)] {
        assert_eq!(dropped(frame(0, 0, start, offset)), VNET, "{start} + {offset}");
        assert_eq!(dropped(frame(GSO_UDP_L4, 50, start, offset)), VNET, "{start} + {offset}");
    }
    for (start, offset) in [(20, 16), (24, 6), (0, 6)] {
        assert_eq!(dropped(frame(GSO_UDP_L4, 50, start, offset)), VNET, "{start} + {offset}");
    }
}

#[test]
fn a_header_longer_than_the_frame_is_dropped() {
    let mut tcp = Shape::tcp(false, vec![]).frame(50);
    tcp[10 + 20 + 12] = 0xf0;
    assert_eq!(dropped(tcp), VNET);
    let mut tiny = Shape::tcp(false, vec![]).frame(50);
    tiny[10 + 20 + 12] = 0x40;
    assert_eq!(dropped(tiny), VNET);
    for length in 30..38 {
        let mut udp = Shape::udp(false, pattern(100, 0)).frame(50);
        udp.truncate(length);
        assert_eq!(dropped(udp), VNET);
    }
}

#[test]
fn a_frame_shorter_than_its_vnet_header_is_dropped() {
    for length in 0..10 {
        assert_eq!(dropped(vec![0; length]), [(Stage::Tun, DropReason::VnetHeader, 1)]);
    }
}

#[test]
fn on_an_l3_tunnel_only_ip_with_a_route_goes_out() {
    assert_eq!(dropped(plain(&[])), [(Stage::Route, DropReason::Truncated, 1)]);
    assert_eq!(dropped(plain(&[0x45; 19])), [(Stage::Route, DropReason::Truncated, 1)]);
    assert_eq!(dropped(plain(&[0x60; 39])), [(Stage::Route, DropReason::Truncated, 1)]);
    assert_eq!(dropped(plain(&[0x50; 60])), [(Stage::Route, DropReason::NotIp, 1)]);
    assert_eq!(dropped(plain(&[0x44; 60])), [(Stage::Route, DropReason::InnerHeader, 1)]);
    // 69.69.69.69 has no route.
    assert_eq!(dropped(plain(&[0x45; 60])), [(Stage::Route, DropReason::NoRoute, 1)]);
}

#[test]
fn a_datagram_of_a_tunnel_here_that_comes_back_is_not_wrapped_again() {
    let nested = [(Stage::Route, DropReason::Nested, 1)];
    let mut datagram = Shape::udp(false, pattern(3000, 0));
    datagram.ports.1 = 4789;
    // Its source is the tunnels' local address: alone, in a run, and as a first fragment.
    let from_here = |mut frame: Vec<u8>| {
        frame[10 + 12..10 + 16].copy_from_slice(&[10, 9, 0, 2]);
        frame
    };
    assert_eq!(dropped(from_here(plain(&datagram.packet()))), nested);
    assert_eq!(dropped(from_here(datagram.frame(1000))), nested);
    let mut first = from_here(plain(&datagram.packet()));
    first[10 + 6] = 0x20;
    assert_eq!(dropped(first), nested);
    // Another host's tunnel inside this one, and another port, are none of ours.
    let mut bench = Bench::new();
    bench.run(GPE, plain(&datagram.packet()));
    datagram.ports.1 = 4790;
    bench.run(GPE, from_here(plain(&datagram.packet())));
    assert_eq!(bench.sink.sent.len(), 2);
}

#[test]
fn what_no_datagram_can_carry_is_too_big() {
    let too_big = [(Stage::Segment, DropReason::TooBig, 1)];
    let fits = Shape::udp(false, pattern(65_507 - 8 - 28, 0));
    let mut bench = Bench::new();
    bench.run(GPE, plain(&fits.packet()));
    bench.run(GPE, fits.frame(65_500));
    assert_eq!(bench.sink.inner(), [fits.packet(), fits.packet()]);
    let larger = Shape::udp(false, pattern(65_507 - 8 - 27, 0));
    assert_eq!(dropped(plain(&larger.packet())), too_big);
    assert_eq!(dropped(larger.frame(65_500)), too_big);
}

#[test]
fn a_known_mac_goes_to_its_remote_alone() {
    let mut bench = Bench::new();
    let shape = Shape { ethernet: Some(vec![]), ..Shape::udp(false, pattern(300, 0)) };
    bench.run(VXLAN, shape.frame(100));
    assert_eq!(
        bench.sink.datagrams().iter().map(|datagram| datagram.remote).collect::<Vec<_>>(),
        [IpAddr::from([10, 9, 0, 1]); 3]
    );
}

#[test]
fn broadcast_multicast_and_unknown_unicast_go_to_every_remote() {
    let shape = Shape { ethernet: Some(vec![]), ..Shape::udp(false, pattern(300, 0)) };
    for first_byte in [0xff, 0x33, 0x06] {
        let mut frame = shape.frame(100);
        frame[10] = first_byte;
        let mut bench = Bench::new();
        bench.run(VXLAN, frame);
        assert_eq!(bench.sink.sent.len(), 3);
        for (sent, last) in bench.sink.sent.iter().zip([1, 3, 4]) {
            assert!(sent.datagrams.iter().all(|datagram| datagram.remote == IpAddr::from([10, 9, 0, last])));
            let payloads =
                |sent: &Sent| sent.datagrams.iter().map(|datagram| datagram.bytes.clone()).collect::<Vec<_>>();
            assert_eq!(payloads(sent), payloads(&bench.sink.sent[0]));
        }
        assert_eq!(bench.counters.tunnel(VXLAN).transmit_packets.get(), 9);
        assert_eq!(bench.counters.tunnel(VXLAN).tso_output_packets[1].get(), 3, "cut once");
    }
}

#[test]
fn a_learned_mac_is_used_until_it_ages_out() {
    let mut bench = Bench::new();
    let mac = [0x06, 0, 0, 0, 0, 9];
    let mut frame = Shape { ethernet: Some(vec![]), ..Shape::udp(false, pattern(30, 0)) }.needs_checksum_frame();
    frame[10..16].copy_from_slice(&mac);
    bench.fdbs.learn(VXLAN, &mac, RemoteIndex(2), 700);
    bench.run(VXLAN, frame.clone());
    assert_eq!(bench.sink.sent.len(), 1);
    assert_eq!(bench.sink.sent[0].datagrams[0].remote, IpAddr::from([10, 9, 0, 4]));
    bench.fdbs.learn(VXLAN, &mac, RemoteIndex(2), 699);
    bench.run(VXLAN, frame);
    assert_eq!(bench.sink.sent.len(), 1 + 3, "301 seconds old: flooded");
}

#[test]
fn the_outer_ecn_field_is_the_inner_one_and_dscp_is_configured() {
    let mut configured = tunnels();
    configured[0].dscp = 46;
    let mut bench = Bench::with(configured);
    for v6 in [false, true] {
        for tos in [0b1011_1000, 0b1011_1001, 0b1011_1010, 0b1011_1011] {
            let shape = Shape { tos, ..Shape::udp(v6, pattern(10, 0)) };
            bench.sink.sent.clear();
            bench.run(GPE, shape.needs_checksum_frame());
            bench.run(VXLAN, Shape { ethernet: Some(vec![[0x81, 0, 0, 7]]), ..shape }.needs_checksum_frame());
            let seen: Vec<_> = bench.sink.datagrams().iter().map(|datagram| datagram.tos).collect();
            assert_eq!(seen, [tos & 3, 46 << 2 | tos & 3]);
        }
    }
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 6], &[0xff; 28]].concat();
    bench.sink.sent.clear();
    bench.run(VXLAN, plain(&arp));
    assert_eq!(bench.sink.datagrams()[0].tos, 46 << 2);
    assert_eq!(bench.sink.inner(), [arp.clone(), arp.clone(), arp]);
}

#[test]
fn all_fragments_of_a_datagram_share_a_source_port() {
    let mut bench = Bench::new();
    let first = Shape { dont_fragment: false, ..Shape::udp(false, pattern(100, 0)) }.packet();
    for (more, offset, ports) in [(0x20, 0, [1, 2, 3, 4]), (0x20, 10, [5, 6, 7, 8]), (0, 20, [9, 9, 9, 9])] {
        let mut fragment = first.clone();
        (fragment[6], fragment[7]) = (more, offset);
        fragment[20..24].copy_from_slice(&ports);
        bench.run(GPE, plain(&fragment));
    }
    for (next, word) in [(17, [0, 1]), (17, [0, 0x81]), (60, [1, 0])] {
        let mut shape = Shape::udp(true, pattern(100, word[0]));
        shape.extensions = vec![(44, vec![0, word[0], word[1], 0, 0, 0, 9])];
        let mut fragment = shape.packet();
        fragment[40] = next;
        bench.run(GPE, plain(&fragment));
    }
    let ports: Vec<_> = bench.sink.datagrams().iter().map(|datagram| datagram.source_port).collect();
    assert_eq!((ports[0], ports[0]), (ports[1], ports[2]));
    assert_eq!((ports[3], ports[3]), (ports[4], ports[5]));
}

#[test]
fn flows_spread_over_the_source_ports() {
    let mut bench = Bench::new();
    for port in 0..4_000 {
        bench.run(GPE, Shape { ports: (port, 443), ..Shape::udp(false, vec![1]) }.needs_checksum_frame());
    }
    let mut ports: Vec<_> = bench.sink.datagrams().iter().map(|datagram| datagram.source_port).collect();
    ports.sort_unstable();
    ports.dedup();
    // 4,000 balls into 16,384 bins fill about 3,550.
    assert!(ports.len() > 3_400, "{}", ports.len());
}

#[test]
fn the_outer_checksum_is_zero_only_where_that_is_configured() {
    let v6: IpAddr = "fd09::2".parse().unwrap();
    for (local, udp_checksum, zero_v6, expected_zero) in [
        ([10, 9, 0, 2].into(), false, false, true),
        ([10, 9, 0, 2].into(), true, true, false),
        (v6, false, false, false),
        (v6, true, true, true),
    ] {
        let config = netfwd::datapath::table::Tunnel {
            local,
            udp_checksum,
            udp6_zero_checksum_tx: zero_v6,
            ..tunnel(TunnelKind::VxlanGpe)
        };
        let mut bench = Bench::with(vec![config.clone(), config]);
        bench.run(GPE, Shape::tcp(false, pattern(100, 0)).frame(50));
        let zero = bench.sink.sent[0].checksum == OuterChecksum::Zero;
        assert_eq!(zero, expected_zero);
    }
}

#[test]
fn what_the_sink_loses_is_counted_by_errno_and_reason() {
    for (errno, reason) in [
        (libc::EAGAIN, DropReason::SendQueueFull),
        (libc::ENOBUFS, DropReason::SendQueueFull),
        (libc::EPERM, DropReason::SendError),
    ] {
        let mut bench = Bench::new();
        bench.sink.fail = Some((errno, 3));
        bench.run(GPE, Shape::udp(false, pattern(1_000, 0)).frame(100));
        assert_eq!(bench.drops(), [(Stage::Send, reason, 3)]);
        assert_eq!(bench.counters.tunnel(GPE).transmit_packets.get(), 7);
        assert_eq!(bench.counters.tunnel(GPE).transmit_bytes.get(), 7 * 128);
        assert_eq!(bench.counters.udp_send_errors.iter().map(|(_, count)| count).sum::<u64>(), 1);
    }
}

#[test]
fn traffic_is_counted_by_tunnel() {
    let mut bench = Bench::new();
    bench.run(GPE, Shape::tcp(false, pattern(1_000, 0)).frame(100));
    bench.run(GPE, Shape::udp(false, pattern(950, 0)).frame(100));
    bench.run(GPE, Shape::udp(false, pattern(50, 0)).needs_checksum_frame());
    let counters = bench.counters.tunnel(GPE);
    assert_eq!(counters.tun_read_frames.get(), 3);
    assert_eq!(counters.tso_output_packets.each_ref().map(|counter| counter.get()), [10, 10, 0]);
    assert_eq!(counters.transmit_packets.get(), 21);
    assert_eq!(counters.transmit_bytes.get(), (10 * 52 + 1_000) + (10 * 28 + 950) + 78);
}
