//! The state machine between two devices.

use std::iter;
use std::thread::{self, sleep};
use std::time::{Instant, SystemTime};

use super::*;

#[test]
fn the_first_packet_waits_for_the_handshake_and_arrives() {
    let (mut a, mut b) = Host::pair();
    let sealed = a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
    assert_eq!(sealed, Sealed { staged: 1, ..Sealed::default() });
    assert_eq!(kinds(&a.wire), [MessageType::Initiation]);
    let (at_a, at_b) = exchange(&mut a, &mut b);
    assert_eq!((at_a, at_b), (vec![], vec![packet(1, 2, b"hello")]));
    assert_eq!(a.handshakes(Role::Initiator, HandshakeResult::Completed), 1);
    assert_eq!(b.handshakes(Role::Responder, HandshakeResult::Completed), 1);
    assert!(a.status(b.public_key()).last_handshake.is_some());
    assert!(b.status(a.public_key()).last_handshake.is_some());

    // Both ways, without another handshake.
    b.send(inner(1), &packet(2, 1, b"welcome")).unwrap();
    assert_eq!(kinds(&b.wire), [MessageType::Data]);
    assert_eq!(exchange(&mut a, &mut b).0, [packet(2, 1, b"welcome")]);
}

#[test]
fn all_that_waits_arrives_in_order_and_ahead_of_what_follows() {
    let (mut a, mut b) = Host::pair();
    let packets: Vec<_> = (0..50).map(|n| packet(1, 2, &[n; 40])).collect();
    for packet in &packets[..40] {
        assert_eq!(a.send(inner(2), packet).unwrap().staged, 1);
    }
    assert_eq!(kinds(&a.wire), [MessageType::Initiation], "one handshake for all of them");
    let initiation = take(&mut a);
    b.receive(&initiation);
    let response = take(&mut b);
    a.receive(&response);
    for packet in &packets[40..] {
        assert_eq!(a.send(inner(2), packet).unwrap().datagrams, 1);
    }
    assert_eq!(exchange(&mut a, &mut b).1, packets);
}

#[test]
fn what_a_peer_cannot_keep_is_counted() {
    let (mut a, _) = Host::pair();
    for n in 0..130 {
        a.send(inner(2), &packet(1, 2, &[n])).unwrap();
    }
    assert_eq!(a.drops(Direction::Egress, Stage::Crypto, DropReason::QueueFull), 2);
}

#[test]
fn a_peer_lacks_a_session_until_its_first_handshake_and_three_minutes_after_its_last() {
    let (mut a, mut b) = Host::pair();
    let (key, now, session) = (b.public_key(), SystemTime::now(), Duration::from_secs(180));
    let lacks = |a: &Host, now| a.device.lacks_session(&key, now);
    assert!(lacks(&a, now));
    a.connect(&mut b);
    let last = a.status(key).last_handshake.unwrap();
    let times = [last, last + session / 2, last + session, last - session];
    assert_eq!(times.map(|now| lacks(&a, now)), [false, false, true, false], "the clock may have been set back");
    assert!(!a.device.lacks_session(&a.public_key(), now), "who is no peer lacks none");
    a.device.set_up(false);
    a.tick();
    assert!(lacks(&a, last - session), "whatever the clock says");
}

#[test]
fn a_lost_initiation_is_repeated() {
    let (mut a, mut b) = hurried_pair();
    a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
    take(&mut a);
    tick_until_sent(&mut a);
    assert_eq!(kinds(&a.wire), [MessageType::Initiation]);
    assert_eq!(exchange(&mut a, &mut b).1, [packet(1, 2, b"hello")]);
}

#[test]
fn who_began_sends_from_whatever_address_the_kernel_chooses_and_who_answered_from_the_one_spoken_to() {
    let (mut a, mut b) = Host::connected();
    b.send(inner(1), &packet(2, 1, b"hello")).unwrap();
    exchange(&mut a, &mut b);
    let spoken_to = b.address;
    for host in [&mut a, &mut b] {
        let number = host.number();
        host.address.set_ip([203, 0, 113, number].into());
    }
    a.send(inner(2), &packet(1, 2, b"by another way")).unwrap();
    b.send(inner(1), &packet(2, 1, b"by another way")).unwrap();
    assert_eq!((a.wire[0].from, b.wire[0].from), (a.address, spoken_to));
    exchange(&mut a, &mut b);
    assert_eq!(b.status(a.public_key()).endpoint, Some(a.address), "it is followed there");
}

#[test]
fn what_has_no_answer_is_repeated_from_whatever_address_the_kernel_chooses() {
    let (mut a, mut b) = hurried_pair();
    a.connect(&mut b);
    let spoken_to = "203.0.113.9:51820".parse().unwrap();
    b.send(inner(1), &packet(2, 1, b"there")).unwrap();
    let sent: Vec<_> = take(&mut b).into_iter().map(|sent| Sent { to: spoken_to, ..sent }).collect();
    assert_eq!(a.receive(&sent).len(), 1);
    assert_eq!(b.wire_for_rekey(&mut a).from, spoken_to, "that is where the peer knows us");
    tick_until_sent(&mut a);
    assert_eq!((kinds(&a.wire), a.wire[0].from), (vec![MessageType::Initiation], a.address));
    a.send(inner(2), &packet(1, 2, b"more")).unwrap();
    assert!(a.wire.iter().all(|sent| sent.from == a.address), "data follows");
}

#[test]
fn a_lost_response_is_asked_for_again() {
    let (mut a, mut b) = hurried_pair();
    a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
    let initiation = take(&mut a);
    b.receive(&initiation);
    assert_eq!(kinds(&take(&mut b)), [MessageType::Response]);
    tick_until_sent(&mut a);
    assert_eq!(exchange(&mut a, &mut b).1, [packet(1, 2, b"hello")]);
    assert_eq!(b.handshakes(Role::Responder, HandshakeResult::Completed), 1, "the first one was never confirmed");
}

#[test]
fn a_responder_keeps_its_packets_until_the_session_is_confirmed() {
    let (mut a, mut b) = Host::pair();
    a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
    let initiation = take(&mut a);
    b.receive(&initiation);
    let response = take(&mut b);
    assert_eq!(b.send(inner(1), &packet(2, 1, b"early")).unwrap().staged, 1);
    b.tick();
    assert_eq!(b.wire, [], "it asks for none of its own while one is to be confirmed");
    a.receive(&response);
    // The keepalive that confirms is lost; the packet behind it does as well.
    let confirmation = take(&mut a);
    assert_eq!(kinds(&confirmation), [MessageType::Data; 2]);
    assert_eq!(b.receive(&confirmation[1..]), [packet(1, 2, b"hello")]);
    assert_eq!(exchange(&mut a, &mut b).0, [packet(2, 1, b"early")]);
}

#[test]
fn two_that_start_at_once_lose_nothing() {
    let (mut a, mut b) = hurried_pair();
    a.send(inner(2), &packet(1, 2, b"from a")).unwrap();
    b.send(inner(1), &packet(2, 1, b"from b")).unwrap();
    let (from_a, from_b) = (take(&mut a), take(&mut b));
    let (mut at_a, mut at_b) = (a.receive(&from_b), b.receive(&from_a));
    for _ in 0..10 {
        let (more_at_a, more_at_b) = exchange(&mut a, &mut b);
        at_a.extend(more_at_a);
        at_b.extend(more_at_b);
        sleep(Duration::from_millis(10));
        a.tick();
        b.tick();
    }
    assert_eq!((at_a, at_b), (vec![packet(2, 1, b"from b")], vec![packet(1, 2, b"from a")]));
}

#[test]
fn two_that_start_at_once_far_from_each_other_have_a_session_after_the_first_answers() {
    let (mut a, mut b) = Host::pair();
    a.send(inner(2), &packet(1, 2, b"from a")).unwrap();
    b.send(inner(1), &packet(2, 1, b"from b")).unwrap();
    let (mut at_a, mut at_b, mut initiations) = (vec![], vec![], 0);
    let mut way = std::collections::VecDeque::from([(vec![], vec![]), (vec![], vec![])]);
    // What is sent arrives three ticks later.
    for _ in 0..12 {
        way.push_back((take(&mut a), take(&mut b)));
        let (from_a, from_b) = way.pop_front().expect("what is on the way");
        initiations += from_a.iter().chain(&from_b).filter(|sent| sent.kind() == MessageType::Initiation).count();
        at_a.extend(a.receive(&from_b));
        at_b.extend(b.receive(&from_a));
        a.tick();
        b.tick();
    }
    assert_eq!((at_a, at_b), (vec![packet(2, 1, b"from b")], vec![packet(1, 2, b"from a")]));
    assert_eq!(initiations, 2);
}

#[test]
fn who_answered_asks_when_its_answer_was_lost() {
    let (mut a, mut b) = hurried_pair();
    let second = Duration::from_secs(1);
    b.device.set_timers(TimerParams { rekey_timeout: second..=second, ..hurried() });
    a.send(inner(2), &packet(1, 2, b"from a")).unwrap();
    let initiation = take(&mut a);
    b.receive(&initiation);
    take(&mut b);
    b.send(inner(1), &packet(2, 1, b"from b")).unwrap();
    assert_eq!(b.wire, []);
    tick_until_sent(&mut b);
    assert_eq!(kinds(&b.wire), [MessageType::Initiation]);
    assert_eq!(exchange(&mut a, &mut b), (vec![packet(2, 1, b"from b")], vec![packet(1, 2, b"from a")]));
}

#[test]
fn a_rekey_in_mid_stream_loses_and_reorders_nothing() {
    let (mut a, mut b) = hurried_pair();
    a.connect(&mut b);
    let (mut sent, mut received, mut late) = (0u32, Vec::new(), Vec::new());
    let start = Instant::now();
    while a.handshakes(Role::Initiator, HandshakeResult::Completed) < 6 {
        assert!(start.elapsed() < Duration::from_secs(20), "no rekey");
        for _ in 0..20 {
            a.send(inner(2), &packet(1, 2, &sent.to_be_bytes())).unwrap();
            sent += 1;
        }
        // What is on the way arrives only after the handshake that overtakes it.
        let mut data: Vec<_> = take(&mut a);
        a.tick();
        let rest = take(&mut a);
        late.append(&mut data);
        late.extend(rest.iter().filter(|sent| sent.kind() == MessageType::Data).cloned());
        let handshake: Vec<_> = rest.into_iter().filter(|sent| sent.kind() != MessageType::Data).collect();
        b.receive(&handshake);
        let answers = take(&mut b);
        a.receive(&answers);
        if late.len() > 100 {
            received.extend(b.receive(&std::mem::take(&mut late)));
        }
        b.tick();
        sleep(Duration::from_millis(2));
    }
    received.extend(b.receive(&late));
    received.extend(exchange(&mut a, &mut b).1);
    let expected: Vec<_> = (0..sent).map(|n| packet(1, 2, &n.to_be_bytes())).collect();
    assert!(received == expected, "{} of {sent}", received.len());
    for reason in [DropReason::NoSession, DropReason::Replay, DropReason::Auth] {
        assert_eq!(b.drops(Direction::Ingress, Stage::Crypto, reason), 0, "{reason:?}");
    }
}

#[test]
fn indices_do_not_pile_up() {
    let (mut a, mut b) = hurried_pair();
    a.connect(&mut b);
    for n in 0..40u8 {
        sleep(SHORT);
        a.send(inner(2), &packet(1, 2, &[n])).unwrap();
        a.tick();
        exchange(&mut a, &mut b);
    }
    assert!(a.handshakes(Role::Initiator, HandshakeResult::Completed) > 12);
    // Eight sessions and two handshakes that the library may remember.
    assert!(a.device.sessions.len() <= 10, "{}", a.device.sessions.len());
    assert!(b.device.sessions.len() <= 10, "{}", b.device.sessions.len());
}

#[test]
fn a_stranger_is_refused() {
    let (mut a, mut b) = (Host::new(1), Host::new(2));
    a.know(&b, |_| {});
    a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
    assert_eq!(exchange(&mut a, &mut b), (vec![], vec![]));
    assert_eq!(b.drops(Direction::Ingress, Stage::Handshake, DropReason::NoPeer), 1);
}

/// What is agreed on with such a key is zero: everybody could pass for its owner.
#[test]
fn a_peer_whose_key_is_nobody_s_secret_gets_no_session() {
    let mut a = Host::new(1);
    let (zero, mut one) = ([0; 32], [0; 32]);
    one[0] = 1;
    for key in [zero, one] {
        let mut peer = PeerUpdate { persistent_keepalive: Some(1), ..PeerUpdate::new(PublicKey(key)) };
        ends::everything(&mut peer);
        a.update(PeerUpdate { endpoint: "192.0.2.9:9".parse().ok(), ..peer });
        a.send(inner(9), &packet(1, 9, b"hello")).unwrap();
        a.tick();
        assert_eq!(a.wire, []);
    }
    assert_eq!(a.drops(Direction::Egress, Stage::Crypto, DropReason::NoSession), 2);
}

#[test]
fn a_message_for_another_key_is_refused_before_anything_is_computed() {
    let (mut a, mut b) = Host::pair();
    let stranger = Host::new(3);
    a.know(&stranger, |peer| peer.endpoint = Some(b.address));
    a.send(inner(3), &packet(1, 3, b"hello")).unwrap();
    assert_eq!(exchange(&mut a, &mut b), (vec![], vec![]));
    assert_eq!(b.drops(Direction::Ingress, Stage::Handshake, DropReason::Auth), 1);
    assert_eq!(b.handshakes(Role::Responder, HandshakeResult::Refused), 0, "that is counted once the MAC was right");
}

#[test]
fn preshared_keys_must_agree() {
    let key = |byte| Some(PresharedKey::from_bytes([byte; 32]));
    for (at_a, at_b, agree) in [(key(7), key(7), true), (key(7), key(8), false), (key(7), None, false)] {
        let (mut a, mut b) = Host::pair();
        a.know(&b, |peer| peer.preshared_key = at_a);
        b.know(&a, |peer| peer.preshared_key = at_b);
        a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
        assert_eq!(exchange(&mut a, &mut b).1.len(), usize::from(agree));
        assert_eq!(a.handshakes(Role::Initiator, HandshakeResult::Refused), u64::from(!agree));
        assert_eq!(a.drops(Direction::Ingress, Stage::Handshake, DropReason::Auth), u64::from(!agree));
    }
}

#[test]
fn a_changed_preshared_key_counts_from_the_next_handshake_on() {
    let (mut a, mut b) = Host::connected();
    a.know(&b, |peer| peer.preshared_key = Some(PresharedKey::from_bytes([7; 32])));
    a.send(inner(2), &packet(1, 2, b"still")).unwrap();
    assert_eq!(exchange(&mut a, &mut b).1, [packet(1, 2, b"still")]);
}

#[test]
fn a_replayed_initiation_gets_no_answer() {
    let (mut a, mut b) = Host::pair();
    a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
    let initiation = take(&mut a);
    b.receive(&initiation);
    assert_eq!(kinds(&take(&mut b)), [MessageType::Response]);
    let elsewhere = Sent { from: "198.51.100.66:1".parse().unwrap(), ..initiation[0].clone() };
    b.receive(&[elsewhere]);
    assert_eq!(take(&mut b), []);
    assert_eq!(b.drops(Direction::Ingress, Stage::Handshake, DropReason::Replay), 1);
    assert_eq!(b.status(a.public_key()).endpoint, Some(a.address), "it does not lead the peer astray either");
}

#[test]
fn nor_does_it_after_the_key_was_taken_away_and_set_again() {
    let (mut a, mut b) = Host::pair();
    a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
    let initiation = take(&mut a);
    b.receive(&initiation);
    assert_eq!(kinds(&take(&mut b)), [MessageType::Response]);
    let set = |key: Option<&PrivateKey>| {
        b.device.apply(&DeviceUpdate { private_key: Some(key.cloned()), ..DeviceUpdate::default() });
    };
    set(None);
    set(Some(&b.key));
    b.receive(&initiation);
    assert_eq!(take(&mut b), []);
    assert_eq!(b.drops(Direction::Ingress, Stage::Handshake, DropReason::Replay), 1);

    b.send(inner(1), &packet(2, 1, b"back")).unwrap();
    assert_eq!(exchange(&mut a, &mut b).0, [packet(2, 1, b"back")]);
}

#[test]
fn nor_does_it_where_a_handshake_begins_before_the_peer_has_heard_of_the_key() {
    let (mut a, mut b) = Host::pair();
    a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
    let initiation = take(&mut a);
    b.receive(&initiation);
    assert_eq!(kinds(&take(&mut b)), [MessageType::Response]);
    b.device.apply(&DeviceUpdate { private_key: Some(None), ..DeviceUpdate::default() });
    let (device, peer) = (b.device.clone(), b.device.peer(&a.public_key()).unwrap());
    let update = DeviceUpdate { private_key: Some(Some(b.key.clone())), ..DeviceUpdate::default() };
    thread::scope(|scope| {
        let mut state = peer.lock();
        scope.spawn(|| device.apply(&update));
        let published = iter::repeat_with(|| sleep(Duration::from_millis(1))).take(10_000);
        assert!(published.map(|()| device.identity()).any(|identity| identity.is_some()));
        assert!(device.with_session(&peer, &mut state).is_some());
    });
    b.receive(&initiation);
    assert_eq!(take(&mut b), []);
    assert_eq!(b.drops(Direction::Ingress, Stage::Handshake, DropReason::Replay), 1);
}

#[test]
fn what_is_set_while_there_is_no_key_counts_once_there_is_one() {
    let (mut a, mut b) = Host::connected();
    let set = |key: Option<&PrivateKey>| {
        b.device.apply(&DeviceUpdate { private_key: Some(key.cloned()), ..DeviceUpdate::default() });
    };
    set(None);
    let change = |peer: &mut PeerUpdate| {
        peer.preshared_key = Some(PresharedKey::from_bytes([7; 32]));
        peer.persistent_keepalive = Some(25);
    };
    a.know(&b, change);
    b.know(&a, change);
    set(Some(&b.key));
    b.tick();
    assert_eq!(kinds(&b.wire), [MessageType::Initiation], "a keepalive is due");
    b.send(inner(1), &packet(2, 1, b"back")).unwrap();
    assert_eq!(exchange(&mut a, &mut b).0, [packet(2, 1, b"back")]);
}

#[test]
fn under_load_senders_must_prove_their_address_first() {
    let (mut a, mut b) = hurried_pair();
    b.is_loaded = true;
    a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
    let initiation = take(&mut a);
    b.receive(&initiation);
    let answer = take(&mut b);
    assert_eq!(kinds(&answer), [MessageType::CookieReply]);
    assert_eq!(b.device.stats().cookie_replies(), 1);
    b.tick();
    assert!(b.device.stats().under_load());

    a.receive(&answer);
    tick_until_sent(&mut a);
    let retry = take(&mut a);
    let elsewhere = Sent { from: "198.51.100.66:1".parse().unwrap(), ..retry[0].clone() };
    b.receive(&[elsewhere]);
    assert_eq!(kinds(&take(&mut b)), [MessageType::CookieReply], "the cookie is another address's");
    b.receive(&retry);
    assert_eq!(kinds(&b.wire), [MessageType::Response]);
    assert_eq!(exchange(&mut a, &mut b).1, [packet(1, 2, b"hello")]);
}

#[test]
fn under_load_a_peer_with_a_session_gets_a_new_one_from_where_it_is() {
    let (mut a, mut b) = hurried_pair();
    a.connect(&mut b);
    b.is_loaded = true;
    let stranger = Sent { from: "198.51.100.66:1".parse().unwrap(), ..b.wire_for_rekey(&mut a) };
    b.receive(std::slice::from_ref(&stranger));
    assert_eq!(kinds(&take(&mut b)), [MessageType::CookieReply], "from anywhere else");
    b.tick();
    let initiation = Sent { from: a.address, ..stranger };
    b.receive(&[initiation]);
    assert_eq!(kinds(&b.wire), [MessageType::Response]);
    let completed = a.handshakes(Role::Initiator, HandshakeResult::Completed);
    exchange(&mut a, &mut b);
    assert_eq!(a.handshakes(Role::Initiator, HandshakeResult::Completed), completed + 1);
}

#[test]
fn under_load_the_answer_to_our_own_handshake_needs_no_cookie() {
    let (mut a, mut b) = Host::pair();
    a.is_loaded = true;
    a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
    assert_eq!(exchange(&mut a, &mut b).1, [packet(1, 2, b"hello")]);
    assert_eq!(a.device.stats().cookie_replies(), 0);
}

#[test]
fn what_answers_nothing_of_ours_does_not_reach_the_control_side() {
    let (mut a, mut b) = Host::pair();
    a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
    let initiation = take(&mut a);
    b.receive(&initiation);
    let mut response = take(&mut b);
    response[0].bytes[8] ^= 1;
    let Sent { from, to, bytes, .. } = &mut response[0];
    a.open(&mut ends::message(bytes, *from, *to, 0).into_iter(), |_| {});
    assert!(a.queue.next(Lanes::ALL).is_none());
    assert_eq!(a.drops(Direction::Ingress, Stage::Handshake, DropReason::NoSession), 1);
}

#[test]
fn a_peer_without_a_place_is_found_when_it_speaks() {
    let (mut a, mut b) = (Host::new(1), Host::new(2));
    a.know(&b, |peer| peer.endpoint = None);
    b.know(&a, |_| {});
    assert_eq!(a.send(inner(2), &packet(1, 2, b"?")), Err(DropReason::NoRoute));
    b.send(inner(1), &packet(2, 1, b"here")).unwrap();
    assert_eq!(exchange(&mut a, &mut b).0, [packet(2, 1, b"here")]);
    a.send(inner(2), &packet(1, 2, b"there")).unwrap();
    assert_eq!(exchange(&mut a, &mut b).1, [packet(1, 2, b"there")]);
}

#[test]
fn a_peer_is_followed_to_the_newest_authentic_source() {
    let (mut a, mut b) = Host::connected();
    for n in 0..3 {
        a.send(inner(2), &packet(1, 2, &[n])).unwrap();
    }
    let mut datagrams = take(&mut a);
    let places: Vec<SocketAddr> =
        ["198.51.100.1:7", "[2001:db8::1]:8", "203.0.113.9:9"].iter().map(|place| place.parse().unwrap()).collect();
    for (sent, place) in datagrams.iter_mut().zip(&places) {
        sent.from = *place;
    }
    datagrams[2].bytes[20] ^= 1;
    assert_eq!(b.receive(&datagrams).len(), 2);
    assert_eq!(b.status(a.public_key()).endpoint, Some(places[1]));
    b.send(inner(1), &packet(2, 1, b"back")).unwrap();
    assert_eq!((b.wire[0].to, b.wire[0].from), (places[1], b.address));
}

#[test]
fn a_keepalive_interval_needs_no_traffic() {
    let (mut a, mut b) = Host::pair();
    a.know(&b, |peer| peer.persistent_keepalive = Some(1));
    a.tick();
    assert_eq!(kinds(&a.wire), [MessageType::Initiation]);
    exchange(&mut a, &mut b);
    assert!(b.device.stats().keepalives() >= 1);
    assert!(b.status(a.public_key()).last_handshake.is_some());
    tick_until_sent(&mut a);
    assert_eq!(kinds(&a.wire), [MessageType::Data]);
    assert_eq!(a.wire[0].bytes.len(), 32);
    a.know(&b, |peer| peer.persistent_keepalive = Some(0));
    take(&mut a);
    a.tick();
    assert_eq!(a.wire, []);
}

#[test]
fn a_keepalive_interval_that_is_set_again_puts_off_no_keepalive() {
    let (mut a, _) = Host::connected();
    let b = Host::new(2).public_key();
    let set = |a: &Host| a.update(PeerUpdate { persistent_keepalive: Some(1), ..PeerUpdate::new(b) });
    set(&a);
    a.tick();
    assert_eq!(kinds(&take(&mut a)), [MessageType::Data], "the first one is due at once");
    for _ in 0..4 {
        sleep(Duration::from_millis(300));
        a.tick();
        set(&a);
    }
    assert_eq!(kinds(&a.wire), [MessageType::Data]);
}

/// As in the kernel (`keep_key_fresh`): else a session of nothing but keepalives would run out before there is another.
#[test]
fn keepalives_alone_renew_the_session_of_whoever_began_it() {
    let (mut a, mut b) = hurried_pair();
    a.know(&b, |peer| peer.persistent_keepalive = Some(1));
    b.know(&a, |peer| peer.persistent_keepalive = Some(1));
    a.tick();
    exchange(&mut a, &mut b);
    tick_until_sent(&mut a);
    assert_eq!(kinds(&take(&mut a)), [MessageType::Data, MessageType::Initiation]);
    tick_until_sent(&mut b);
    assert_eq!(kinds(&b.wire), [MessageType::Data], "that is left to the one who began");
}

#[test]
fn bytes_are_counted_as_datagrams_with_their_headers() {
    let (mut a, mut b) = Host::connected();
    let (before_a, before_b) = (a.status(b.public_key()), b.status(a.public_key()));
    // 20 bytes of header and 100: padded to 128, sealed 160.
    a.send(inner(2), &packet(1, 2, &[0; 100])).unwrap();
    exchange(&mut a, &mut b);
    assert_eq!(a.status(b.public_key()).transmit_bytes - before_a.transmit_bytes, 160);
    assert_eq!(b.status(a.public_key()).receive_bytes - before_b.receive_bytes, 160);
    // Initiation, keepalive and the first packet (25 bytes, padded to 32), against the response.
    assert_eq!((before_a.transmit_bytes, before_a.receive_bytes), (148 + 32 + 64, 92));
    assert_eq!((before_b.receive_bytes, before_b.transmit_bytes), (148 + 32 + 64, 92));
}

#[test]
fn what_did_not_leave_is_not_counted_as_sent() {
    let (mut a, b) = Host::pair();
    let End { device, sealer, handshakes, counters, .. } = &mut a.end;
    let hello = packet(1, 2, b"hello");
    let packet = Inner { destination: inner(2).into(), ecn: 0, content: Content::Packet(&hello) };
    sealer.seal(device, counters, &packet, &mut |_| 0).unwrap();
    let mut tried = 0;
    handshakes.run_errands(device, counters, Now::read(), &mut |run| {
        tried += run.datagrams;
        0
    });
    assert_eq!((tried, a.status(b.public_key()).transmit_bytes), (1, 0));
}
