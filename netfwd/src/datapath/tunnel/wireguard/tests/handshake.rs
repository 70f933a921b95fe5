//! The state machine between two devices.

use super::*;

#[test]
fn the_first_packet_waits_for_the_handshake_and_arrives() {
    let (mut a, mut b) = Host::pair();
    let sealed = a.send(inner(2), &packet(1, 2, b"hello")).unwrap();
    assert_eq!(sealed, Sealed { staged: 1, ..Sealed::default() });
    assert_eq!(a.wire.iter().map(Sent::kind).collect::<Vec<_>>(), [MessageType::Initiation]);
    let (at_a, at_b) = exchange(&mut a, &mut b);
    assert_eq!((at_a, at_b), (vec![], vec![packet(1, 2, b"hello")]));
    assert_eq!(a.handshakes(Role::Initiator, HandshakeResult::Completed), 1);
    assert_eq!(b.handshakes(Role::Responder, HandshakeResult::Completed), 1);
    assert!(a.status(b.public_key()).last_handshake.is_some());
    assert!(b.status(a.public_key()).last_handshake.is_some());

    // Both ways, without another handshake.
    b.send(inner(1), &packet(2, 1, b"welcome")).unwrap();
    assert_eq!(b.wire.iter().map(Sent::kind).collect::<Vec<_>>(), [MessageType::Data]);
    assert_eq!(exchange(&mut a, &mut b).0, [packet(2, 1, b"welcome")]);
}
