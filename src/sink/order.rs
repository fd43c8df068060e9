//! Pure: which tasks of a batch may be tried side by side, where a key has to keep its order.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::{Cause, Outcome};
use crate::outbox::Task;

/// A batch whose tasks are tried side by side, but those of one key one after the other.
#[derive(Debug)]
pub(super) struct Order {
    /// The next task of the same key.
    next: Vec<Option<usize>>,
    /// Tasks that may be tried; the earliest first.
    ready: BinaryHeap<Reverse<usize>>,
    outcomes: Vec<Option<Outcome>>,
}

impl Order {
    /// Of a batch of which nothing was tried yet.
    pub(super) fn new(batch: &[Task]) -> Order {
        let mut next = vec![None; batch.len()];
        let mut ready = BinaryHeap::with_capacity(batch.len());
        let mut last: HashMap<&[u8], usize> = HashMap::new();
        for (index, task) in batch.iter().enumerate() {
            match task.key().and_then(|key| last.insert(key, index)) {
                None => ready.push(Reverse(index)),
                Some(before) => {
                    if let Some(next) = next.get_mut(before) {
                        *next = Some(index);
                    }
                }
            }
        }
        Order {
            next,
            ready,
            outcomes: vec![None; batch.len()],
        }
    }

    /// The index of a task that is to be tried now.
    pub(super) fn take(&mut self) -> Option<usize> {
        self.ready.pop().map(|Reverse(index)| index)
    }

    /// What became of a task; so it is known what becomes of those behind it.
    pub(super) fn settle(&mut self, index: usize, outcome: Outcome) {
        let delivered = outcome == Outcome::Delivered;
        self.set(index, outcome);
        let mut behind = self.next.get(index).copied().flatten();
        if delivered {
            self.ready.extend(behind.map(Reverse));
            return;
        }
        while let Some(index) = behind {
            let words = "an earlier task of its key was not delivered";
            self.set(index, Outcome::Retry(Cause::new(words)));
            behind = self.next.get(index).copied().flatten();
        }
    }

    fn set(&mut self, index: usize, outcome: Outcome) {
        if let Some(place) = self.outcomes.get_mut(index) {
            *place = Some(outcome);
        }
    }

    /// What is known so far.
    #[cfg(any(feature = "exec", feature = "webhook"))]
    pub(super) fn into_known(self) -> Vec<Option<Outcome>> {
        self.outcomes
    }

    /// The outcomes, once all is settled.
    pub(super) fn outcomes(self) -> Vec<Outcome> {
        let not_tried = || Outcome::Retry(Cause::new("it was not tried"));
        let outcomes = self.outcomes.into_iter();
        outcomes
            .map(|outcome| {
                debug_assert!(outcome.is_some(), "every task was settled");
                outcome.unwrap_or_else(not_tried)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Field, Position};
    use crate::pg::Timestamp;

    fn batch(keys: &[&str]) -> Vec<Task> {
        let task = |key: &&str| {
            let key = (*key != "-").then_some((Field::Key, *key));
            Task::from_fields(key, Position::default(), Timestamp(0))
        };
        keys.iter().map(task).collect()
    }

    #[test]
    fn a_key_goes_one_by_one() {
        let batch = batch(&["a", "-", "a", "b", "-", "a"]);
        let mut order = Order::new(&batch);
        let mut taken = Vec::new();
        while let Some(index) = order.take() {
            taken.push(index);
        }
        assert_eq!(taken, [0, 1, 3, 4]);
        order.settle(3, Outcome::Delivered);
        assert_eq!(order.take(), None);
        order.settle(0, Outcome::Delivered);
        assert_eq!(order.take(), Some(2));
        let reject = Outcome::Reject(Cause::new("no"));
        order.settle(1, reject.clone());
        order.settle(2, reject.clone());
        order.settle(4, Outcome::Delivered);
        assert_eq!(order.take(), None);
        let outcomes = order.outcomes();
        assert_eq!(outcomes.len(), 6);
        assert_eq!(outcomes[1], reject);
        assert_eq!(outcomes[2], reject);
        assert!(matches!(outcomes[5], Outcome::Retry(_)));
        for delivered in [0, 3, 4] {
            assert_eq!(outcomes[delivered], Outcome::Delivered);
        }
    }

    #[test]
    fn one_at_a_time_keeps_the_order_of_the_batch() {
        let batch = batch(&["a", "", "-", "b", "a", "", "-", "b"]);
        let mut order = Order::new(&batch);
        let mut taken = Vec::new();
        while let Some(index) = order.take() {
            taken.push(index);
            order.settle(index, Outcome::Delivered);
        }
        assert_eq!(taken, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(order.outcomes().iter().all(|o| *o == Outcome::Delivered));
    }
}
