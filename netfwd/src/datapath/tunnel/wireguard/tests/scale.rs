//! Many peers.

use std::sync::atomic::Ordering;

use super::*;

fn key(n: u32) -> PublicKey {
    let mut bytes = [3; 32];
    bytes[8..12].copy_from_slice(&n.to_le_bytes());
    PrivateKey::from_bytes(bytes).public_key()
}

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + n)
}

fn peer(n: u32) -> PeerUpdate {
    PeerUpdate {
        endpoint: Some(SocketAddr::new(IpAddr::from([198, 51, 100, 1]), 1000 + n as u16)),
        allowed_ips: vec![AllowedIpUpdate { prefix: IpAddr::from(address(n)).into(), remove: false }],
        ..PeerUpdate::new(key(n))
    }
}

fn allowed(host: &Host, key: PublicKey) -> Vec<String> {
    host.status(key).allowed_ips.iter().map(ToString::to_string).collect()
}

fn prefix(text: &str) -> AllowedIpUpdate {
    AllowedIpUpdate { prefix: text.parse().unwrap(), remove: false }
}

#[test]
fn timers_run_for_nobody_who_has_none() {
    let mut host = Host::new(1);
    let peers = (0..2000).map(peer).collect();
    host.device.apply(&DeviceUpdate { peers, ..DeviceUpdate::default() });
    assert_eq!(host.device.peer_counts(), PeerCounts { configured: 2000, active: 0 });
    for n in 0..100 {
        host.send(address(n), &packet(1, 2, b"hello")).unwrap();
    }
    host.tick();
    assert_eq!(host.device.peer_counts(), PeerCounts { configured: 2000, active: 100 });
    assert_eq!(host.wire.len(), 100);
}

#[test]
fn peers_are_active_during_a_tick_too() {
    let mut host = Host::new(1);
    host.device.apply(&DeviceUpdate { peers: (0..3).map(peer).collect(), ..DeviceUpdate::default() });
    (0..3).for_each(|n| host.update(PeerUpdate { persistent_keepalive: Some(25), ..peer(n) }));
    let End { device, handshakes, counters, .. } = &mut host.end;
    let mut seen = vec![];
    handshakes.tick(device, counters, Now::read(), &mut |run| {
        seen.push(device.peer_counts().active);
        run.bytes
    });
    assert_eq!(seen, [3; 3]);
    host.update(PeerUpdate { remove: true, ..peer(1) });
    host.tick();
    assert_eq!(host.device.peer_counts(), PeerCounts { configured: 2, active: 2 });
}

fn large() -> Vec<u8> {
    packet(1, 2, &[0; 60_000])
}

/// Has as much wait for the first three peers as a device may keep.
fn fill(host: &mut Host) {
    for n in 0..3 {
        (0..128).for_each(|_| assert!(host.send(address(n), &large()).is_ok()));
    }
}

fn full(host: &Host) -> u64 {
    host.drops(Direction::Egress, Stage::Crypto, DropReason::QueueFull)
}

#[test]
fn who_has_answered_in_vain_and_finds_no_room_asks_all_the_same() {
    let (mut a, mut b) = hurried_pair();
    b.device.apply(&DeviceUpdate { peers: (0..3).map(peer).collect(), ..DeviceUpdate::default() });
    fill(&mut b);
    b.know(&a, |_| {});
    a.send(inner(2), &packet(1, 2, b"from a")).unwrap();
    let initiation = take(&mut a);
    b.receive(&initiation);
    take(&mut b);
    let before = full(&b);
    b.send(inner(1), &large()).unwrap();
    assert_eq!(full(&b) - before, 1);
    let start = Instant::now();
    while !b.wire.iter().any(|sent| sent.to == a.address && sent.kind() == MessageType::Initiation) {
        assert!(start.elapsed() < Duration::from_secs(10), "nobody is asked");
        sleep(SHORT);
        b.tick();
    }
}

#[test]
fn who_finds_no_room_for_its_packet_is_asked_for_a_session_all_the_same() {
    let mut host = Host::new(1);
    host.device.apply(&DeviceUpdate { peers: (0..4).map(peer).collect(), ..DeviceUpdate::default() });
    fill(&mut host);
    let (before, initiations) = (full(&host), host.wire.len());
    assert!(before > 0);
    host.send(address(3), &large()).unwrap();
    assert_eq!((full(&host) - before, host.wire.len() - initiations), (1, 1));
    host.device.set_up(false);
    host.tick();
    host.wire.clear();
    // The same while the link is down.
    fill(&mut host);
    host.send(address(3), &large()).unwrap();
    host.device.set_up(true);
    host.work();
    assert_eq!(host.wire.len(), 4);
}

#[test]
fn peers_are_told_in_the_order_in_which_they_came() {
    let host = Host::new(1);
    let change = |peers| host.device.apply(&DeviceUpdate { peers, ..DeviceUpdate::default() });
    change((0..20).map(peer).collect());
    change(vec![peer(7), PeerUpdate { remove: true, ..peer(3) }]);
    change(vec![peer(3)]);
    let told: Vec<_> = host.device.status().peers.iter().map(|peer| peer.public_key).collect();
    let order = (0..3).chain(4..20).chain([3]);
    assert_eq!(told, order.map(key).collect::<Vec<_>>());
}

#[test]
fn a_prefix_belongs_to_the_peer_it_was_last_given_to() {
    let host = Host::new(1);
    let give = |n, prefixes: &[&str]| {
        let allowed_ips = prefixes.iter().copied().map(prefix).collect();
        host.update(PeerUpdate { allowed_ips, ..PeerUpdate::new(key(n)) });
    };
    give(1, &["10.1.0.0/16", "10.2.3.4/16", "2001:db8::/32"]);
    assert_eq!(allowed(&host, key(1)), ["10.1.0.0/16", "10.2.0.0/16", "2001:db8::/32"]);
    give(2, &["10.2.0.0/16"]);
    assert_eq!(allowed(&host, key(1)), ["10.1.0.0/16", "2001:db8::/32"]);
    assert_eq!(allowed(&host, key(2)), ["10.2.0.0/16"]);

    // Taking away what is another's changes nothing.
    let take = AllowedIpUpdate { remove: true, ..prefix("10.2.0.0/16") };
    host.update(PeerUpdate { allowed_ips: vec![take], ..PeerUpdate::new(key(1)) });
    assert_eq!(allowed(&host, key(2)), ["10.2.0.0/16"]);
    host.update(PeerUpdate { allowed_ips: vec![take], ..PeerUpdate::new(key(2)) });
    assert_eq!(allowed(&host, key(2)), [""; 0]);

    host.update(PeerUpdate { replace_allowed_ips: true, allowed_ips: vec![prefix("::/0")], ..PeerUpdate::new(key(1)) });
    assert_eq!(allowed(&host, key(1)), ["::/0"]);
}

#[test]
fn the_most_specific_prefix_decides_both_ways() {
    let (mut a, mut b) = Host::pair();
    let mut c = Host::new(3);
    a.know(&c, |peer| peer.allowed_ips = vec![prefix("0.0.0.0/0")]);
    c.know(&a, |_| {});
    a.send(inner(2), &packet(1, 2, b"to b")).unwrap();
    assert_eq!(exchange(&mut a, &mut b).1, [packet(1, 2, b"to b")]);
    a.send(inner(77), &packet(1, 77, b"to c")).unwrap();
    assert_eq!(exchange(&mut a, &mut c).1, [packet(1, 77, b"to c")]);
    c.send(inner(1), &packet(77, 1, b"from anywhere")).unwrap();
    c.send(inner(1), &packet(2, 1, b"but not from b's")).unwrap();
    assert_eq!(exchange(&mut a, &mut c).0, [packet(77, 1, b"from anywhere")]);
    assert_eq!(a.drops(Direction::Ingress, Stage::Crypto, DropReason::InnerSourceDenied), 1);
}

#[test]
fn an_update_changes_only_what_it_names() {
    let host = Host::new(1);
    host.update(PeerUpdate {
        preshared_key: Some(PresharedKey::from_bytes([5; 32])),
        persistent_keepalive: Some(25),
        ..peer(1)
    });
    host.update(PeerUpdate { update_only: true, ..peer(2) });
    host.update(PeerUpdate::new(key(1)));
    let status = host.device.status();
    assert_eq!(status.peers.len(), 1);
    let PeerStatus { preshared_key, endpoint, persistent_keepalive, .. } = &status.peers[0];
    assert_eq!(preshared_key.as_ref().and_then(PresharedKey::bytes), Some([5; 32]));
    assert_eq!((*endpoint, *persistent_keepalive), (peer(1).endpoint, 25));
    host.update(PeerUpdate { preshared_key: Some(PresharedKey::from_bytes([0; 32])), ..PeerUpdate::new(key(1)) });
    assert!(host.status(key(1)).preshared_key.is_none());
    host.device.apply(&DeviceUpdate { replace_peers: true, peers: vec![peer(2)], ..DeviceUpdate::default() });
    let keys: Vec<_> = host.device.status().peers.iter().map(|peer| peer.public_key).collect();
    assert_eq!(keys, [key(2)]);
}

#[test]
fn a_peer_is_locked_once_per_batch() {
    let (mut a, mut b) = Host::connected();
    for n in 0..200 {
        a.send(inner(2), &packet(1, 2, &[n])).unwrap();
    }
    let datagrams = std::mem::take(&mut a.wire);
    let peer = b.device.peer(&a.public_key()).unwrap();
    let before = peer.locks.load(Ordering::Relaxed);
    assert_eq!(b.receive(&datagrams).len(), 200);
    assert_eq!(peer.locks.load(Ordering::Relaxed) - before, 1);
}

/// A TCP superframe of so many segments, as it is read from a TUN.
fn frame(segments: usize) -> Vec<u8> {
    const SEGMENT: u16 = 1_000;
    let [high, low] = (40 + segments as u16 * SEGMENT).to_be_bytes();
    let [size_low, size_high] = SEGMENT.to_le_bytes();
    // NEEDS_CSUM, GSO_TCPV4, 40 bytes of headers, the checksum at 20 + 16.
    let vnet = [1, 1, 40, 0, size_low, size_high, 20, 0, 16, 0];
    let ip = [[0x45, 0, high, low], [0, 0, 0x40, 0], [64, 6, 0, 0], inner(1).octets(), inner(2).octets()].concat();
    let tcp = [156, 64, 1, 187, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
    [&vnet[..], &ip, &tcp, &vec![7; segments * usize::from(SEGMENT)]].concat()
}

#[test]
fn a_peer_is_locked_once_per_superframe() {
    let (mut a, b) = Host::connected();
    let frame = frame(60);
    let peer = a.device.peer(&b.public_key()).unwrap();
    let before = peer.locks.load(Ordering::Relaxed);
    let (mut runs, mut datagrams) = (0, 0);
    let sealed = a.seal_for(inner(2), (0, Content::Superframe(&ends::superframe(&frame))), |run| {
        runs += 1;
        datagrams += run.datagrams;
    });
    assert_eq!((sealed.unwrap().datagrams, datagrams), (60, 60));
    assert_eq!(peer.locks.load(Ordering::Relaxed) - before, 1);
    assert_eq!(runs, 1, "sent with one call");
}
