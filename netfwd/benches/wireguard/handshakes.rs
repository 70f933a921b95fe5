//! What one initiation costs the thread for handshakes while it wants cookies, in nanoseconds, without the kernel's part.
//!
//! Without a second MAC it is answered with a cookie. A wrong one has its message put back among all others, and that is what is
//! measured, not what becomes of it there. A right one is answered with a session. Each comes from another place, as in a
//! flood. Beside it is what has to be hashed to tell: the first MAC, the cookie, the second MAC.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Mac};
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::noise::{Tunn, TunnResult};
use gotatun::packet::Packet;
use gotatun::x25519;
use netfwd::datapath::packet::TunnelIndex;
use netfwd::datapath::tunnel::wireguard::{Lane, Lanes, Message, Now, Path, PeerUpdate, PublicKey};
use zerocopy::IntoBytes;

use super::wireguard::{End, Wire};

const ROUNDS: usize = 201;
/// Messages in a round: as many as fit into the queue where wrong ones are put back.
const BATCH: usize = 64;
/// Whole handshakes in a round.
const HANDSHAKES: usize = 8;
const INITIATION: usize = 148;
const MAC1: usize = INITIATION - 32;
const MAC2: usize = INITIATION - 16;
const COOKIE_REPLY: usize = 64;
const RESPONSE: usize = 92;

/// What the messages have for a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cookie {
    Absent,
    Wrong,
    Right,
    /// No message at all: only what has to be hashed.
    Hashes,
}

/// The medians over rounds that alternate, in nanoseconds per message.
pub fn measure() -> [(Cookie, f64); 4] {
    let mut desk = Desk::new();
    let mut figures = [Cookie::Absent, Cookie::Wrong, Cookie::Right, Cookie::Hashes].map(|cookie| (cookie, Vec::new()));
    for _ in 0..ROUNDS {
        for (cookie, list) in &mut figures {
            list.push(desk.round(*cookie).as_secs_f64() * 1e9);
        }
    }
    figures.map(|(cookie, list)| (cookie, super::median(list)))
}

/// A responder under load and somebody who begins sessions with it.
struct Desk {
    end: End,
    initiator: Tunn,
    now: Now,
    sent: Wire,
    places: u32,
}

impl Desk {
    fn new() -> Self {
        let end = End::new(2);
        let secret = x25519::StaticSecret::from([9; 32]);
        let public = x25519::PublicKey::from(&secret);
        end.update(PeerUpdate::new(PublicKey(public.to_bytes())));
        let (responder, limiter) = (end.public_key().0.into(), Arc::new(RateLimiter::new(&public, 100)));
        let initiator = Tunn::new(secret, responder, None, None, IndexTable::from_os_rng(), limiter);
        Self { end, initiator, now: Now::read(), sent: Wire::default(), places: 0 }
    }

    /// Time for each message.
    fn round(&mut self, cookie: Cookie) -> Duration {
        // What may be looked at in a second is limited, so every round has one of its own.
        self.now.monotonic += Duration::from_secs(1);
        self.end.handshakes.tick(&self.end.device, &self.end.counters, self.now, &mut |run| run.bytes);
        match cookie {
            Cookie::Absent => self.crowd([0; 16], Lane::Anonymous, BATCH),
            Cookie::Wrong => self.crowd([1; 16], Lane::Cookie, 0),
            Cookie::Right => (0..HANDSHAKES).map(|_| self.handshake()).sum::<Duration>() / HANDSHAKES as u32,
            Cookie::Hashes => hashes(),
        }
    }

    /// Messages from as many places, of which so many are answered with a cookie and the others put back.
    fn crowd(&mut self, mac2: [u8; 16], lane: Lane, answers: usize) -> Duration {
        let mut bytes = self.initiation();
        bytes[MAC2..].copy_from_slice(&mac2);
        let messages: Vec<Message> = (0..BATCH).map(|_| self.message(&bytes, lane)).collect();
        let time = self.receive(&messages);
        assert_eq!(self.sent_lens(), vec![COOKIE_REPLY; answers]);
        let put_back = std::iter::from_fn(|| self.end.queue.next(Lanes::ALL)).count();
        assert_eq!(put_back, BATCH - answers);
        time / BATCH as u32
    }

    /// One whose place is proven: only the last of its messages counts.
    fn handshake(&mut self) -> Duration {
        let bytes = self.initiation();
        let first = self.message(&bytes, Lane::Anonymous);
        self.receive(std::slice::from_ref(&first));
        let reply = self.sent.datagrams().next().map(|bytes| Packet::copy_from(&*bytes)).expect("a cookie");
        let reply = reply.try_into_wg().expect("a message");
        assert!(matches!(self.initiator.handle_incoming_packet(reply), TunnResult::Done));
        let bytes = self.initiation();
        let second = Message::new(TunnelIndex(0), first.path, Lane::Cookie, &bytes).expect("an initiation");
        let time = self.receive(&[second]);
        assert_eq!(self.sent_lens(), [RESPONSE]);
        time
    }

    fn initiation(&mut self) -> [u8; INITIATION] {
        let initiation = self.initiator.format_handshake_initiation(true).expect("it is forced");
        initiation.as_bytes().try_into().expect("an initiation")
    }

    /// From a place where nobody has been.
    fn message(&mut self, bytes: &[u8], lane: Lane) -> Message {
        self.places += 1;
        let place = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + self.places);
        let path = Path::to(SocketAddr::new(place.into(), 51_820));
        Message::new(TunnelIndex(0), path, lane, bytes).expect("an initiation")
    }

    fn receive(&mut self, messages: &[Message]) -> Duration {
        let Self { end: End { device, handshakes, counters, .. }, sent, .. } = self;
        sent.clear();
        let start = Instant::now();
        for message in messages {
            handshakes.receive(device, counters, self.now, true, message, &mut |run| {
                sent.put(run);
                run.bytes
            });
        }
        start.elapsed()
    }

    fn sent_lens(&mut self) -> Vec<usize> {
        self.sent.datagrams().map(|datagram| datagram.len()).collect()
    }
}

fn hashes() -> Duration {
    let message = std::hint::black_box([7; INITIATION]);
    let start = Instant::now();
    for _ in 0..BATCH {
        // A place, and which two minutes it is.
        let cookie = mac(&std::hint::black_box([2; 16]), &message[..26]);
        let macs = [mac(&[1; 32], &message[..MAC1]), mac(&cookie, &message[..MAC2])];
        std::hint::black_box(macs);
    }
    start.elapsed() / BATCH as u32
}

fn mac(key: &[u8], bytes: &[u8]) -> [u8; 16] {
    let mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("at most 32 bytes");
    Mac::chain_update(mac, bytes).finalize_fixed().into()
}
