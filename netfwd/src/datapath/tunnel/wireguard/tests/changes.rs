//! What an operator changes while sessions exist or are begun: peers, keys, the link.

use super::*;

#[test]
fn a_removed_peer_is_gone() {
    let (mut a, mut b) = Host::connected();
    a.send(inner(2), &packet(1, 2, b"late")).unwrap();
    let late = take(&mut a);
    b.update(PeerUpdate { remove: true, ..PeerUpdate::new(a.public_key()) });
    assert_eq!(b.receive(&late), Vec::<Vec<u8>>::new());
    assert_eq!(b.drops(Direction::Ingress, Stage::Crypto, DropReason::NoSession), 1);
    assert_eq!(b.send(inner(1), &packet(2, 1, b"?")), Err(DropReason::NoPeer));
    assert_eq!(b.device.sessions.len(), 0);
    b.tick();
    assert_eq!(b.device.peer_counts(), PeerCounts::default());
}

#[test]
fn what_waited_for_a_peer_that_is_removed_is_a_drop() {
    let (mut a, b) = Host::pair();
    for n in 0..3 {
        a.send(inner(2), &packet(1, 2, &[n])).unwrap();
    }
    a.update(PeerUpdate { remove: true, ..PeerUpdate::new(b.public_key()) });
    a.work();
    a.tick();
    assert_eq!(a.drops(Direction::Egress, Stage::Crypto, DropReason::NoSession), 3);
}

#[test]
fn another_private_key_ends_all_sessions_and_the_same_one_none() {
    let (mut a, mut b) = Host::connected();
    let set = |host: &Host, key: &PrivateKey| {
        host.device.apply(&DeviceUpdate { private_key: Some(Some(key.clone())), ..DeviceUpdate::default() });
    };
    set(&b, &b.key);
    // As the kernel shows it.
    let shown = b.device.status().private_key.expect("a key");
    assert_eq!(shown.to_hex(), b.key.clone().clamped().to_hex());
    set(&b, &shown);
    a.send(inner(2), &packet(1, 2, b"same")).unwrap();
    assert_eq!(exchange(&mut a, &mut b).1, [packet(1, 2, b"same")]);

    b.key = PrivateKey::from_bytes([9; 32]);
    set(&b, &b.key);
    a.send(inner(2), &packet(1, 2, b"lost")).unwrap();
    assert_eq!(exchange(&mut a, &mut b).1, Vec::<Vec<u8>>::new());
    assert_eq!(b.drops(Direction::Ingress, Stage::Crypto, DropReason::NoSession), 1);
    assert_eq!(b.device.sessions.len(), 0);

    a.know(&b, |_| {});
    a.connect(&mut b);
    b.send(inner(1), &packet(2, 1, b"back")).unwrap();
    assert_eq!(exchange(&mut a, &mut b).0, [packet(2, 1, b"back")]);
}

#[test]
fn without_a_key_nobody_is_answered() {
    let (mut a, mut b) = Host::connected();
    b.device.apply(&DeviceUpdate { private_key: Some(None), ..DeviceUpdate::default() });
    a.send(inner(2), &packet(1, 2, b"lost")).unwrap();
    assert_eq!(exchange(&mut a, &mut b), (vec![], vec![]));
    assert!(b.device.status().private_key.is_none());
    assert_eq!(b.send(inner(1), &packet(2, 1, b"?")).unwrap().staged, 1);
    b.tick();
    assert_eq!(b.wire, []);
    // But what we send waits for a key.
    b.device.apply(&DeviceUpdate { private_key: Some(Some(b.key.clone())), ..DeviceUpdate::default() });
    b.work();
    assert_eq!(exchange(&mut a, &mut b), (vec![packet(2, 1, b"?")], vec![]));
}

#[test]
fn a_handshake_under_way_begins_anew_with_another_key() {
    let (mut a, b) = Host::pair();
    a.know(&b, |peer| peer.persistent_keepalive = Some(25));
    a.tick();
    assert_eq!(take(&mut a)[0].kind(), MessageType::Initiation);
    for (key, messages) in [(Some([7; 32]), 1), (None, 0), (Some([8; 32]), 1)] {
        let private_key = Some(key.map(PrivateKey::from_bytes));
        a.device.apply(&DeviceUpdate { private_key, ..DeviceUpdate::default() });
        a.work();
        assert_eq!(take(&mut a).len(), messages, "{key:?}");
    }
}

#[test]
fn a_device_whose_link_is_down_neither_speaks_nor_answers() {
    let (mut a, mut b) = Host::connected();
    b.know(&a, |peer| peer.persistent_keepalive = Some(1));
    b.device.set_up(false);
    b.tick();
    a.send(inner(2), &packet(1, 2, b"late")).unwrap();
    assert_eq!(exchange(&mut a, &mut b), (vec![], vec![]));
    assert_eq!(b.device.sessions.len(), 0);
    let mut c = Host::new(3);
    c.know(&b, |_| {});
    b.know(&c, |_| {});
    c.send(inner(2), &packet(3, 2, b"hello")).unwrap();
    let initiation = take(&mut c);
    b.receive(&initiation);
    assert_eq!(b.send(inner(1), &packet(2, 1, b"early")).unwrap().staged, 1);
    sleep(Duration::from_millis(1100));
    b.tick();
    assert_eq!((b.wire.len(), b.device.peer_counts().active), (0, 0));

    b.device.set_up(true);
    b.work();
    assert_eq!(kinds(&b.wire), [MessageType::Initiation], "what came before the link was known to be up leaves");
    assert_eq!(exchange(&mut a, &mut b).0, [packet(2, 1, b"early")]);
    b.receive(&initiation);
    assert_eq!(kinds(&b.wire), [MessageType::Response]);
}

#[test]
fn what_came_before_the_link_was_known_to_be_up_leaves_with_another_key_too() {
    let (mut a, mut b) = Host::pair();
    a.device.set_up(false);
    assert_eq!(a.send(inner(2), &packet(1, 2, b"early")).unwrap().staged, 1);
    a.key = PrivateKey::from_bytes([9; 32]);
    a.device.apply(&DeviceUpdate { private_key: Some(Some(a.key.clone())), ..DeviceUpdate::default() });
    a.work();
    b.know(&a, |_| {});
    a.device.set_up(true);
    a.work();
    assert_eq!(exchange(&mut a, &mut b).1, [packet(1, 2, b"early")]);
}

#[test]
fn a_device_that_comes_up_begins_with_keepalives() {
    let (mut a, mut b) = Host::connected();
    a.know(&b, |peer| peer.persistent_keepalive = Some(25));
    a.device.set_up(false);
    a.tick();
    take(&mut a);
    a.device.set_up(true);
    a.tick();
    assert_eq!(kinds(&a.wire), [MessageType::Initiation]);
    exchange(&mut a, &mut b);
    b.send(inner(1), &packet(2, 1, b"back")).unwrap();
    assert_eq!(exchange(&mut a, &mut b).0, [packet(2, 1, b"back")]);
}

/// Sends a packet from `host`; the address that it leaves from.
fn source(host: &mut Host, other: u8) -> IpAddr {
    host.send(inner(other), &packet(host.number(), other, b"here")).unwrap();
    take(host)[0].from.ip()
}

#[test]
fn a_device_with_another_way_out_keeps_no_address_that_a_peer_spoke_to() {
    let (mut a, mut b) = Host::connected();
    let second = SocketAddr::new([198, 51, 100, 2].into(), b.address.port());
    a.send(inner(2), &packet(1, 2, b"to another")).unwrap();
    let to_another: Vec<_> = take(&mut a).into_iter().map(|sent| Sent { to: second, ..sent }).collect();
    b.receive(&to_another);
    assert_eq!(source(&mut b, 1), second.ip());
    b.device.forget_locals();
    assert_eq!(source(&mut b, 1), b.address.ip(), "the kernel chooses");
}

#[test]
fn nor_one_that_the_kernel_chose_before() {
    let (mut a, mut b) = Host::pair();
    let chosen = SocketAddr::new([198, 51, 100, 1].into(), a.address.port());
    let to_chosen = |b: &mut Host| take(b).into_iter().map(|sent| Sent { to: chosen, ..sent }).collect::<Vec<_>>();
    a.send(inner(2), &packet(1, 2, b"first")).unwrap();
    let initiation = take(&mut a);
    b.receive(&initiation);
    let response = to_chosen(&mut b);
    a.receive(&response);
    let first = take(&mut a);
    b.receive(&first);
    for (forgets, expected) in [(false, a.address), (true, chosen)] {
        if forgets {
            a.device.forget_locals();
        }
        b.send(inner(1), &packet(2, 1, b"back")).unwrap();
        let back = to_chosen(&mut b);
        a.receive(&back);
        assert_eq!(source(&mut a, 2), expected.ip(), "forgets: {forgets}");
    }
}

#[test]
fn a_peer_that_is_the_device_itself_is_left_out() {
    let mut a = Host::new(1);
    a.update(PeerUpdate::new(a.public_key()));
    assert_eq!(a.device.peer_counts().configured, 0);
    let b = Host::new(2);
    a.know(&b, |_| {});
    a.key = b.key.clone();
    a.device.apply(&DeviceUpdate { private_key: Some(Some(b.key.clone())), ..DeviceUpdate::default() });
    assert_eq!(a.device.peer_counts().configured, 0);
    assert_eq!(a.send(inner(2), &packet(1, 2, b"?")), Err(DropReason::NoPeer));
}

/// Minutes: only `cargo xtask test --slow` runs what is in a module of this name.
mod slow {
    use super::*;

    #[test]
    fn what_is_sent_first_after_the_link_was_down_for_long_arrives() {
        let (mut a, mut b) = Host::connected();
        a.know(&b, |peer| peer.persistent_keepalive = Some(25));
        a.device.set_up(false);
        a.tick();
        // More than REKEY_ATTEMPT_TIME, for which the library's clock stands still.
        sleep(Duration::from_secs(95));
        take(&mut a);
        a.device.set_up(true);
        a.send(inner(2), &packet(1, 2, b"first")).unwrap();
        assert_eq!(kinds(&a.wire), [MessageType::Initiation]);
        a.tick();
        assert_eq!(a.handshakes(Role::Initiator, HandshakeResult::GaveUp), 0);
        assert_eq!(exchange(&mut a, &mut b).1, [packet(1, 2, b"first")]);
    }
}
