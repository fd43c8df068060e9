//! Pure: the order of a lane's tasks, and which of them may go next.
//!
//! Tasks leave in the order in which they came, but for those whose key waits: a key whose task failed waits with all its
//! later tasks, in order, until its pause is over. Everything else goes on. A task without a key waits alone.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;

use super::Passage;
use crate::backoff::Backoff;
use crate::outbox::Position;
use crate::units::BackoffRange;

/// What waits together: a key's tasks, or one task without a key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Order {
    Key(Bytes),
    Alone(Position),
}

impl Order {
    fn of(passage: &Passage) -> Order {
        match passage.task.key() {
            Some(key) => Order::Key(Bytes::copy_from_slice(key)),
            None => Order::Alone(passage.task.position),
        }
    }
}

#[derive(Debug)]
struct Waiting {
    tasks: VecDeque<Passage>,
    backoff: Backoff,
}

/// The tasks of a lane that are not in the sink's hands.
#[derive(Debug, Default)]
pub struct LaneQueue {
    ready: VecDeque<Passage>,
    waiting: HashMap<Order, Waiting>,
    /// When each waiting key is tried again.
    due: BTreeSet<(Instant, Order)>,
    /// Keys that are being tried again, with their attempts so far; until a task of theirs is delivered.
    tried: HashMap<Order, Backoff>,
}

impl LaneQueue {
    /// Adds a task behind all others.
    pub fn push(&mut self, passage: Passage) {
        self.ready.push_back(passage);
    }

    /// When the next waiting key is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes the next batch: at most `max_tasks`, and no more than `max_bytes` but for a single task that is larger.
    /// Empty when nothing may go at `now`.
    pub fn next_batch(&mut self, now: Instant, max_tasks: usize, max_bytes: usize) -> Vec<Passage> {
        self.wake(now);
        let mut batch: Vec<Passage> = Vec::with_capacity(max_tasks.min(self.ready.len()));
        let mut bytes = 0;
        while let Some(next) = self.ready.front() {
            let size = next.task.size();
            let full = batch.len() >= max_tasks || bytes + size > max_bytes;
            if full && !batch.is_empty() {
                break;
            }
            let waiting = match self.waiting.is_empty() {
                true => None,
                false => self.waiting.get_mut(&Order::of(next)),
            };
            let Some(mut passage) = self.ready.pop_front() else {
                break;
            };
            match waiting {
                Some(waiting) => {
                    passage.task.detach();
                    waiting.tasks.push_back(passage);
                }
                None => {
                    bytes += size;
                    batch.push(passage);
                }
            }
        }
        batch
    }

    /// Keys whose pause is over come first, each with all that waits behind its first task.
    fn wake(&mut self, now: Instant) {
        while self.due.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, order)) = self.due.pop_first() else {
                break;
            };
            let Some(waiting) = self.waiting.remove(&order) else {
                continue;
            };
            for passage in waiting.tasks.into_iter().rev() {
                self.ready.push_front(passage);
            }
            self.tried.insert(order, waiting.backoff);
        }
    }

    /// Gives a batch back that the sink, being away, did not take: it comes first again, and no attempt is counted.
    pub fn give_back(&mut self, batch: Vec<Passage>) {
        for mut passage in batch.into_iter().rev() {
            passage.task.detach();
            self.ready.push_front(passage);
        }
    }

    /// A task of the batch in hand was delivered.
    pub fn delivered(&mut self, passage: &Passage) {
        if !self.tried.is_empty() {
            self.tried.remove(&Order::of(passage));
        }
    }

    /// Puts a task of the batch in hand aside, and with it its key, to be tried again after a pause. Called in the order
    /// of the batch. `random` is in `0.0..1.0`. Returns the attempts that the key's first task has had.
    pub fn retry(
        &mut self,
        mut passage: Passage,
        range: BackoffRange,
        now: Instant,
        random: f64,
    ) -> u32 {
        let order = Order::of(&passage);
        passage.task.detach();
        if let Some(waiting) = self.waiting.get_mut(&order) {
            waiting.tasks.push_back(passage);
            return waiting.backoff.attempts();
        }
        let mut backoff = self
            .tried
            .remove(&order)
            .unwrap_or_else(|| Backoff::new(range));
        let due = now + backoff.next(random);
        let attempts = backoff.attempts();
        self.due.insert((due, order.clone()));
        self.waiting.insert(
            order,
            Waiting {
                tasks: VecDeque::from([passage]),
                backoff,
            },
        );
        attempts
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::outbox::{Field, Task};
    use crate::pg::{Lsn, Timestamp};
    use crate::watermark::Watermark;

    const RANGE: BackoffRange = BackoffRange {
        min: Duration::from_millis(100),
        max: Duration::from_millis(800),
    };

    fn passage(number: u64, key: Option<u8>) -> Passage {
        let mut mark = Watermark::default();
        let Ok(crate::watermark::Begun::Open { ticket, .. }) = mark.begin(Lsn(1)) else {
            panic!("a new transaction");
        };
        let (id, key) = (number.to_string(), key.map(|key| key.to_string()));
        let fields = [(Field::Id, id.as_str())]
            .into_iter()
            .chain(key.iter().map(|k| (Field::Key, k.as_str())));
        let position = Position {
            commit_lsn: Lsn(1),
            ordinal: number,
        };
        Passage {
            task: Task::from_fields(fields, position, Timestamp(0)),
            ticket,
            route: 0,
        }
    }

    fn ids(batch: &[Passage]) -> Vec<u64> {
        batch
            .iter()
            .map(|passage| passage.task.position.ordinal)
            .collect()
    }

    #[test]
    fn a_failing_key_waits_with_its_later_tasks_and_others_go_on() {
        let start = Instant::now();
        let mut queue = LaneQueue::default();
        for (number, key) in [
            (0, Some(1)),
            (1, Some(2)),
            (2, Some(1)),
            (3, None),
            (4, Some(1)),
        ] {
            queue.push(passage(number, key));
        }
        let batch = queue.next_batch(start, 3, usize::MAX);
        assert_eq!(ids(&batch), [0, 1, 2]);
        for (passage, ok) in batch.into_iter().zip([false, true, false]) {
            match ok {
                true => queue.delivered(&passage),
                false => assert_eq!(queue.retry(passage, RANGE, start, 1.0), 1),
            }
        }
        let batch = queue.next_batch(start, 9, usize::MAX);
        assert_eq!(ids(&batch), [3], "4 waits behind 0 and 2");
        let due = queue.next_due();
        assert_eq!(due, Some(start + RANGE.min));
        assert!(queue.next_batch(start, 9, usize::MAX).is_empty());
        let later = start + RANGE.min;
        assert_eq!(ids(&queue.next_batch(later, 9, usize::MAX)), [0, 2, 4]);
    }

    #[test]
    fn a_batch_is_bounded_in_bytes_but_for_one_large_task() {
        let mut queue = LaneQueue::default();
        (10..14).for_each(|number| queue.push(passage(number, None)));
        let now = Instant::now();
        assert_eq!(ids(&queue.next_batch(now, 9, 4)), [10, 11]);
        assert_eq!(ids(&queue.next_batch(now, 9, 1)), [12]);
        assert_eq!(ids(&queue.next_batch(now, 1, 99)), [13]);
    }

    proptest! {
        /// Any mix of outcomes, outages and pauses: each task is delivered once, and each key's in order.
        #[test]
        fn keeps_order_per_key_and_loses_nothing(
            keys in proptest::collection::vec(proptest::option::of(0u8..3), 1..40),
            rounds in proptest::collection::vec((1usize..6, 0u8..5, any::<u16>(), 0u64..300), 1..80),
        ) {
            let mut now = Instant::now();
            let mut queue = LaneQueue::default();
            let mut coming = keys.iter().copied().enumerate();
            let mut delivered: Vec<u64> = Vec::new();
            let ending = (0..1000).map(|_| (4usize, 1u8, 0u16, 1000u64));
            for (size, kind, fails, pause) in rounds.into_iter().chain(ending) {
                for (number, key) in coming.by_ref().take(size) {
                    queue.push(passage(number as u64, key));
                }
                now += Duration::from_millis(pause);
                let batch = queue.next_batch(now, size, usize::MAX);
                if kind == 0 {
                    queue.give_back(batch);
                    continue;
                }
                let mut failed: Vec<Option<Vec<u8>>> = Vec::new();
                for (index, passage) in batch.into_iter().enumerate() {
                    let key = passage.task.key().map(<[u8]>::to_vec);
                    let behind = key.is_some() && failed.contains(&key);
                    if behind || fails >> index & 1 == 1 {
                        failed.push(key);
                        queue.retry(passage, RANGE, now, 0.5);
                    } else {
                        queue.delivered(&passage);
                        delivered.push(passage.task.position.ordinal);
                    }
                }
            }
            let mut sorted = delivered.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..keys.len() as u64).collect::<Vec<_>>());
            for key in 0u8..3 {
                let of_key: Vec<u64> =
                    delivered.iter().copied().filter(|&n| keys[n as usize] == Some(key)).collect();
                prop_assert!(of_key.is_sorted(), "key {} went {:?}", key, of_key);
            }
        }
    }
}
