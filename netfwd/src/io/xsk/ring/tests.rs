//! Both ends of a ring on the heap, against a queue from the standard library.

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// A ring that both ends share, as the kernel and user space do.
#[derive(Debug, Default)]
struct Shared<S> {
    producer: AtomicU32,
    consumer: AtomicU32,
    flags: AtomicU32,
    slots: Box<[S]>,
}

impl<S: Slot + Default> Shared<S> {
    /// An empty ring whose indices are at `start`.
    fn new(size: usize, start: u32) -> Arc<Self> {
        Arc::new(Self {
            producer: AtomicU32::new(start),
            consumer: AtomicU32::new(start),
            flags: AtomicU32::default(),
            slots: (0..size).map(|_| S::default()).collect(),
        })
    }
}

impl<S: Slot> RingMemory for Arc<Shared<S>> {
    type Slot = S;

    fn producer(&self) -> &AtomicU32 {
        &self.producer
    }

    fn consumer(&self) -> &AtomicU32 {
        &self.consumer
    }

    fn flags(&self) -> &AtomicU32 {
        &self.flags
    }

    fn slots(&self) -> &[S] {
        &self.slots
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Offer this many values.
    Fill(u32),
    /// Take up to this many values.
    Pop(u32),
    /// Give the taken entries back.
    Release,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![(0..20u32).prop_map(Step::Fill), (0..20u32).prop_map(Step::Pop), Just(Step::Release)];
    prop::collection::vec(step, 1..200)
}

/// Indices close before, at and behind the wrap, and anywhere.
fn starts() -> impl Strategy<Value = u32> {
    prop_oneof![(0..64u32).prop_map(|back| u32::MAX - back), 0..64u32, any::<u32>()]
}

/// The oracle: what was published and not yet taken, and how many entries are taken but not released.
#[derive(Default)]
struct Oracle {
    queue: VecDeque<u64>,
    unreleased: usize,
    next: u64,
}

impl Oracle {
    fn fill(&mut self, size: usize, limit: u32) -> u32 {
        let count = (size - self.queue.len() - self.unreleased).min(limit as usize);
        for _ in 0..count {
            self.queue.push_back(self.next);
            self.next += 1;
        }
        count as u32
    }

    fn pop(&mut self) -> Option<u64> {
        let value = self.queue.pop_front()?;
        self.unreleased += 1;
        Some(value)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 512 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_ring_is_a_bounded_queue_also_across_the_wrap(bits in 0..7u32, start in starts(), steps in steps()) {
        let size = 1usize << bits;
        let shared = Shared::<AtomicU64>::new(size, start);
        let (mut producer, mut consumer) = (Producer::new(Arc::clone(&shared)), Consumer::new(shared));
        let (mut oracle, mut value) = (Oracle::default(), 0..);
        for step in steps {
            match step {
                Step::Fill(limit) => prop_assert_eq!(producer.fill(limit, || value.next()), oracle.fill(size, limit)),
                Step::Pop(limit) => for _ in 0..limit {
                    prop_assert_eq!(consumer.pop(), oracle.pop());
                },
                Step::Release => {
                    consumer.release();
                    oracle.unreleased = 0;
                }
            }
            prop_assert_eq!(producer.pending() as usize, oracle.queue.len() + oracle.unreleased);
            prop_assert_eq!(consumer.is_empty(), oracle.queue.is_empty());
        }
    }

    #[test]
    fn no_foreign_index_makes_a_ring_panic_or_overrun(own in any::<u32>(), foreign in any::<u32>()) {
        let shared = Shared::<AtomicU64>::new(8, own);
        let mut producer = Producer::new(Arc::clone(&shared));
        shared.consumer.store(foreign, Ordering::Relaxed);
        prop_assert!(producer.fill(u32::MAX, || Some(0)) <= 8);
        prop_assert!(producer.pending() <= 8);

        let shared = Shared::<AtomicU64>::new(8, own);
        let mut consumer = Consumer::new(Arc::clone(&shared));
        shared.producer.store(foreign, Ordering::Relaxed);
        prop_assert!(std::iter::from_fn(|| consumer.pop()).take(9).count() <= 8);
    }
}

#[test]
fn values_are_drawn_only_when_there_is_room() {
    let shared = Shared::<AtomicU64>::new(4, u32::MAX - 1);
    let mut producer = Producer::new(shared);
    let mut drawn = 0;
    let mut draw = || {
        drawn += 1;
        Some(drawn)
    };
    assert_eq!(producer.fill(u32::MAX, &mut draw), 4);
    assert_eq!(producer.fill(u32::MAX, &mut draw), 0);
    assert_eq!(drawn, 4);
}

#[test]
fn wakeup_is_needed_when_the_flag_says_so() {
    let shared = Shared::<AtomicU64>::new(4, 0);
    let producer = Producer::new(Arc::clone(&shared));
    assert!(!producer.needs_wakeup());
    shared.flags.store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
    assert!(producer.needs_wakeup());
}

#[test]
fn descriptors_cross_threads_whole_and_in_order() {
    const COUNT: u64 = if cfg!(miri) { 100 } else { 100_000 };
    let describe = |number: u64| Descriptor { address: number, length: !(number as u32), options: number as u32 & 1 };
    let shared = Shared::<DescriptorSlot>::new(16, u32::MAX - 50);
    let (mut producer, mut consumer) = (Producer::new(Arc::clone(&shared)), Consumer::new(shared));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut numbers = (0..COUNT).map(describe).peekable();
            while numbers.peek().is_some() {
                if producer.fill(u32::MAX, || numbers.next()) == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut expected = 0;
        while expected < COUNT {
            let Some(descriptor) = consumer.pop() else {
                consumer.release();
                std::thread::yield_now();
                continue;
            };
            assert_eq!(descriptor, describe(expected));
            assert_eq!(descriptor.is_continued(), expected & 1 == 1);
            expected += 1;
        }
    });
}
