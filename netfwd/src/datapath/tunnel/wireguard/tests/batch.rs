//! Batches: what is sealed opens, and nothing else does.

use netfwd_common::checksum::Sum;
use proptest::prelude::*;

use super::*;
use crate::datapath::ecn;

/// Two peers of `hub`, connected.
fn star() -> (Host, [Host; 2]) {
    let (mut hub, mut spokes) = (Host::new(9), [Host::new(1), Host::new(2)]);
    for spoke in &mut spokes {
        hub.know(spoke, |_| {});
        spoke.know(&hub, |_| {});
        spoke.send(inner(9), &packet(spoke.number(), 9, b"first")).unwrap();
        exchange(spoke, &mut hub);
    }
    (hub, spokes)
}

/// What may happen to a datagram on its way into a batch.
#[derive(Clone, Debug)]
enum Fate {
    Good {
        from: usize,
        payload: Vec<u8>,
    },
    /// One that came before, in this batch or an older one.
    Replay(usize),
    Flip {
        from: usize,
        bit: usize,
    },
    Truncate {
        from: usize,
        len: usize,
    },
    /// A receiver index that nobody has.
    ForeignIndex {
        from: usize,
    },
    /// Sealed for another peer's session: the index is right, the key is not.
    SwappedIndex {
        from: usize,
    },
    Keepalive {
        from: usize,
    },
    /// A source that belongs to the other peer.
    ForeignSource {
        from: usize,
    },
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let from = 0..2usize;
    let fate = prop_oneof![
        8 => (from.clone(), prop::collection::vec(any::<u8>(), 1..200))
            .prop_map(|(from, payload)| Fate::Good { from, payload }),
        1 => (0..500usize).prop_map(Fate::Replay),
        1 => (from.clone(), 0..2000usize).prop_map(|(from, bit)| Fate::Flip { from, bit }),
        1 => (from.clone(), 0..80usize).prop_map(|(from, len)| Fate::Truncate { from, len }),
        1 => from.clone().prop_map(|from| Fate::ForeignIndex { from }),
        1 => from.clone().prop_map(|from| Fate::SwappedIndex { from }),
        1 => from.clone().prop_map(|from| Fate::Keepalive { from }),
        1 => from.prop_map(|from| Fate::ForeignSource { from }),
    ];
    prop::collection::vec(fate, 0..60)
}

/// Seals one packet of a spoke's.
fn sealed(spokes: &mut [Host; 2], from: usize, packet: &[u8]) -> Sent {
    let spoke = &mut spokes[from];
    spoke.send(inner(9), packet).unwrap();
    let [sent] = <[Sent; 1]>::try_from(std::mem::take(&mut spoke.wire)).unwrap();
    sent
}

/// A datagram, and what is to come out of it.
fn meet(spokes: &mut [Host; 2], history: &[Sent], fate: &Fate) -> Option<(Sent, Option<Vec<u8>>)> {
    let number = |from: usize| from as u8 + 1;
    let any = |from| packet(number(from), 9, b"damaged on its way");
    Some(match fate {
        Fate::Good { from, payload } => {
            let packet = packet(number(*from), 9, payload);
            (sealed(spokes, *from, &packet), Some(packet))
        }
        Fate::Replay(which) => (history.get(which % history.len().max(1))?.clone(), None),
        Fate::Flip { from, bit } => {
            let mut sent = sealed(spokes, *from, &any(*from));
            // From the index on: another type is another's matter.
            let at = 4 + bit / 8 % (sent.bytes.len() - 4);
            sent.bytes[at] ^= 1 << (bit % 8);
            (sent, None)
        }
        Fate::Truncate { from, len } => {
            let mut sent = sealed(spokes, *from, &any(*from));
            let len = len % sent.bytes.len();
            sent.bytes.truncate(len);
            (sent, None)
        }
        Fate::ForeignIndex { from } => {
            let mut sent = sealed(spokes, *from, &any(*from));
            sent.bytes[4..8].copy_from_slice(&[0x5a; 4]);
            (sent, None)
        }
        Fate::SwappedIndex { from } => {
            let other = sealed(spokes, 1 - from, &any(1 - from));
            let mut sent = sealed(spokes, *from, &any(*from));
            sent.bytes[4..8].copy_from_slice(&other.bytes[4..8]);
            // The same counter, too, if it was not used yet.
            sent.bytes[8..16].copy_from_slice(&other.bytes[8..16]);
            (sent, None)
        }
        Fate::Keepalive { from } => {
            let peer = spokes[*from].device.peer(&PrivateKey::from_bytes([9; 32]).public_key())?;
            let mut state = peer.lock();
            let empty = gotatun::packet::Packet::from_bytes(bytes::BytesMut::new());
            let keepalive = state.session.as_mut()?.encapsulate_with_session(empty).ok()?;
            let bytes = zerocopy::IntoBytes::as_bytes(&*keepalive).to_vec();
            (Sent { from: spokes[*from].address, to: "192.0.2.9:51820".parse().ok()?, tos: 0, bytes }, None)
        }
        Fate::ForeignSource { from } => (sealed(spokes, *from, &packet(number(1 - from), 9, b"not mine")), None),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_batch_delivers_exactly_the_good_ones_in_order(batches in prop::collection::vec(fates(), 1..4)) {
        let (mut hub, mut spokes) = star();
        let mut history = Vec::new();
        for fates in batches {
            let (mut batch, mut expected) = (Vec::new(), Vec::new());
            for fate in &fates {
                if let Some((sent, packet)) = meet(&mut spokes, &history, fate) {
                    if packet.is_some() {
                        history.push(sent.clone());
                    }
                    batch.push(sent);
                    expected.extend(packet);
                }
            }
            prop_assert_eq!(hub.receive(&batch), expected);
        }
    }

    #[test]
    fn what_is_sealed_opens(lens in prop::collection::vec(0usize..1400, 1..80), mtu in 600u16..1500) {
        let (mut a, mut b) = Host::connected();
        a.device.set_mtu(mtu);
        let packets: Vec<_> = lens.iter().enumerate().map(|(n, len)| packet(1, 2, &vec![n as u8; *len])).collect();
        for packet in &packets {
            a.send(inner(2), packet).unwrap();
        }
        for (sent, packet) in a.wire.iter().zip(&packets) {
            let inner = sent.bytes.len() - wireguard::OVERHEAD;
            prop_assert!(inner >= packet.len() && inner < packet.len() + 16);
            prop_assert!(inner.is_multiple_of(16) || inner == packet.len().max(mtu.into()));
        }
        prop_assert_eq!(exchange(&mut a, &mut b).1, packets);
    }
}

#[test]
fn every_refusal_has_its_reason() {
    let (mut hub, mut spokes) = star();
    let good = sealed(&mut spokes, 0, &packet(1, 9, b"good"));
    let flip = |sent: &Sent, at: usize| {
        let mut sent = sent.clone();
        sent.bytes[at] ^= 1;
        sent
    };
    let foreign = sealed(&mut spokes, 0, &packet(2, 9, b"foreign"));
    let garbage = sealed(&mut spokes, 0, &[&[0x45, 3][..], &packet(1, 9, b"too long")[2..]].concat());
    let mut long = packet(1, 9, b"claims more");
    long[3] = 200;
    let long = sealed(&mut spokes, 0, &long);
    let batch = [flip(&good, 30), good.clone(), good.clone(), flip(&good, 4), foreign, long, garbage, flip(&good, 20)];
    assert_eq!(hub.receive(&batch).len(), 2);
    let drops = [
        (DropReason::Auth, 1),
        (DropReason::Replay, 2),
        (DropReason::NoSession, 1),
        (DropReason::InnerSourceDenied, 1),
        (DropReason::InnerHeader, 1),
    ];
    for (reason, expected) in drops {
        assert_eq!(hub.drops(Direction::Ingress, Stage::Crypto, reason), expected, "{reason:?}");
    }
}

#[test]
fn the_congestion_mark_goes_in_and_out() {
    let (mut a, mut b) = Host::connected();
    let marked = |ecn: u8| {
        let mut packet = packet(1, 2, b"marked");
        packet[1] = ecn;
        packet[10..12].fill(0);
        let checksum = Sum::ZERO.add(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&checksum.to_bytes());
        packet
    };
    a.send(inner(2), &marked(ecn::ECT_0)).unwrap();
    a.send(inner(2), &marked(ecn::NOT_ECT)).unwrap();
    let datagrams = std::mem::take(&mut a.wire);
    assert_eq!(datagrams.iter().map(|sent| sent.tos).collect::<Vec<_>>(), [ecn::ECT_0, ecn::NOT_ECT]);
    assert_eq!(b.receive_marked(&datagrams, ecn::CE), [marked(ecn::CE)]);
    assert_eq!(b.drops(Direction::Ingress, Stage::Crypto, DropReason::EcnCeNotEct), 1);
}

#[test]
fn a_batch_of_any_size_is_taken_in_goes() {
    let (mut a, mut b) = Host::connected();
    let packets: Vec<_> = (0..700u32).map(|n| packet(1, 2, &[&n.to_be_bytes()[..], &[0; 1300]].concat())).collect();
    for packet in &packets {
        a.send(inner(2), packet).unwrap();
    }
    let datagrams = std::mem::take(&mut a.wire);
    assert!(b.receive(&datagrams) == packets);
}

#[test]
fn the_largest_packet_passes_and_a_larger_one_is_refused() {
    let (mut a, mut b) = Host::connected();
    let largest = packet(1, 2, &vec![7; 65_400]);
    a.send(inner(2), &largest).unwrap();
    assert!(exchange(&mut a, &mut b).1 == [largest]);
    assert_eq!(a.send(inner(2), &packet(1, 2, &vec![7; 65_480])), Err(DropReason::TooBig));
}
