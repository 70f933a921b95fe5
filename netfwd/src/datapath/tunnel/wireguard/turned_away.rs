//! From where initiations were dropped for want of room, so that who comes again is let in.
//!
//! A flood's sources are forged and hardly ever repeat; somebody who wants a session tries again after five seconds, from the
//! same port. So in a crowd of which one in ten or one in a hundred gets an answer, the second try needs no luck, and the one
//! with the cookie that was the answer needs none in a crowd of such as only pretend to have one. Who comes again is let in
//! once each way, and is then one of the crowd for a while: a few sources that repeat themselves gain nothing.
//! A flood of tens of thousands that do has the effect that any flood would have without this: who is new needs luck.
//!
//! It is a Bloom filter of two epochs: a place has some bits of one word, and none is forgotten before an epoch is over.
//!
//! Invariants: a worker never waits and never allocates here; nobody but us knows which bits a place has. Memory is given
//! by the kernel when the first flood writes to it. Taking a stranger for somebody known does no harm but to luck.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use zerocopy::FromZeros;

/// How long a place is remembered at least: initiators try again after five seconds and up to a third (REKEY_TIMEOUT).
pub(super) const EPOCH: Duration = Duration::from_secs(8);
/// Words of 64 bits in an epoch. With 50,000 places a second, two in a hundred are taken for others that were there.
const WORDS: usize = 1 << 17;
/// Bits of each mark.
const BITS: usize = 2;

pub(super) struct TurnedAway {
    epochs: [Epoch; 2],
    current: AtomicUsize,
    hasher: RandomState,
}

struct Epoch {
    words: Box<[AtomicU64]>,
    is_empty: AtomicBool,
}

impl TurnedAway {
    pub(super) fn new() -> Self {
        Self { epochs: [Epoch::new(), Epoch::new()], current: AtomicUsize::new(0), hasher: RandomState::new() }
    }

    /// Whether somebody for whom there is no room has been here before and is to be let in; otherwise they are remembered.
    pub(super) fn comes_again(&self, place: &SocketAddr) -> bool {
        let marks = Marks::new(self.hasher.hash_one(place));
        let comes_again = self.has(&marks, marks.came) && !self.has(&marks, marks.got_cookie);
        self.mark(&marks, if comes_again { marks.got_cookie } else { marks.came });
        comes_again
    }

    /// Whether somebody for whose cookie there is no room has been given one and is to be let in with it.
    pub(super) fn comes_with_cookie(&self, place: &SocketAddr) -> bool {
        let marks = Marks::new(self.hasher.hash_one(place));
        let is_let_in = self.has(&marks, marks.got_cookie) && !self.has(&marks, marks.showed_it);
        if is_let_in {
            self.mark(&marks, marks.showed_it);
        }
        is_let_in
    }

    /// Somebody has been sent a cookie.
    pub(super) fn give_cookie(&self, place: &SocketAddr) {
        let marks = Marks::new(self.hasher.hash_one(place));
        self.mark(&marks, marks.got_cookie);
    }

    fn has(&self, marks: &Marks, mark: u64) -> bool {
        let seen = self.epochs.iter().fold(0, |seen, epoch| seen | epoch.words[marks.word].load(Ordering::Relaxed));
        seen & mark == mark
    }

    fn mark(&self, marks: &Marks, mark: u64) {
        self.epochs[self.current.load(Ordering::Relaxed)].mark(marks.word, mark);
    }

    /// Begins another epoch: what is older than the last one is forgotten.
    pub(super) fn begin_epoch(&self) {
        let older = 1 - self.current.load(Ordering::Relaxed);
        self.epochs[older].clear();
        self.current.store(older, Ordering::Relaxed);
    }
}

impl Epoch {
    fn new() -> Self {
        let words = <[AtomicU64]>::new_box_zeroed_with_elems(WORDS).expect("a mebibyte");
        Self { words, is_empty: AtomicBool::new(true) }
    }

    fn mark(&self, word: usize, mark: u64) {
        if self.words[word].fetch_or(mark, Ordering::Relaxed) & mark != mark {
            self.is_empty.store(false, Ordering::Relaxed);
        }
    }

    fn clear(&self) {
        if !self.is_empty.swap(true, Ordering::Relaxed) {
            self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }
}

/// The bits of a place.
struct Marks {
    word: usize,
    came: u64,
    got_cookie: u64,
    showed_it: u64,
}

impl Marks {
    fn new(hash: u64) -> Self {
        // Six bits of the hash name one bit of a word.
        let bit = |at: usize| 1 << (hash >> (6 * at) & 63);
        let mark = |nth: usize| (nth * BITS..(nth + 1) * BITS).map(bit).fold(0, |mark, bit| mark | bit);
        let word = (hash >> (3 * 6 * BITS)) as usize % WORDS;
        Self { word, came: mark(0), got_cookie: mark(1), showed_it: mark(2) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn place(n: u32) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::from_bits(n).into(), 51_820)
    }

    #[test]
    fn who_comes_again_is_let_in_once() {
        let turned_away = TurnedAway::new();
        let [one, other] = [1, 2].map(place);
        assert!(!turned_away.comes_again(&one));
        assert!(!turned_away.comes_again(&SocketAddr::new(one.ip(), 51_821)), "the port counts");
        assert!(turned_away.comes_again(&one));
        assert!(!turned_away.comes_again(&other));
        assert!((0..1000).all(|_| !turned_away.comes_again(&one)));
    }

    #[test]
    fn who_was_given_a_cookie_is_let_in_with_it_once() {
        let turned_away = TurnedAway::new();
        let [one, other, third] = [1, 2, 3].map(place);
        turned_away.give_cookie(&one);
        assert!(turned_away.comes_with_cookie(&one));
        assert!((0..1000).all(|_| !turned_away.comes_with_cookie(&one)));
        assert!(!turned_away.comes_with_cookie(&other), "noise");
        assert!(!turned_away.comes_again(&third) && turned_away.comes_again(&third));
        assert!(turned_away.comes_with_cookie(&third), "who is let in gets one");
    }

    #[test]
    fn a_place_is_remembered_for_an_epoch_and_not_for_two() {
        let turned_away = TurnedAway::new();
        assert!(!turned_away.comes_again(&place(1)));
        turned_away.begin_epoch();
        assert!(turned_away.comes_again(&place(1)));
        turned_away.begin_epoch();
        turned_away.begin_epoch();
        assert!(!turned_away.comes_again(&place(1)));
    }

    #[test]
    fn in_a_flood_few_are_taken_for_others() {
        let turned_away = TurnedAway::new();
        let let_in = |from: u32| (from..from + 400_000).filter(|n| turned_away.comes_again(&place(*n))).count();
        let first = let_in(0);
        turned_away.begin_epoch();
        let second = let_in(400_000);
        assert!(first < 2_000 && second < 10_000, "{first}, {second} of 400,000");
    }
}
