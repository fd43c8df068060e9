//! Pure: which task of a batch may be published next, and what has become of each.
//!
//! All keys go at once, and tasks without a key, too. Of one key only one task is under way: the next follows when it is
//! confirmed, and not at all when it is not. A message may come back, or be refused, long after later ones were published,
//! and a queue that was full for one task has room for the next: with more than one of a key under way, a later one could
//! be delivered where an earlier one was not.
//!
//! A batch so lasts as long as its longest row of one key takes, and whatever else is there would wait for it. It is cut
//! short instead: from then on what is under way is waited for, and no next one of a key follows.

use std::collections::{HashMap, VecDeque};

use crate::outbox::Task;
use crate::sink::{Cause, Outcome};

pub(super) struct Flow {
    outcomes: Vec<Option<Outcome>>,
    /// Of each task, the next one of its key.
    successors: Vec<Option<usize>>,
    ready: VecDeque<usize>,
    /// What is published and not answered, by tag, in the order of publishing.
    under_way: VecDeque<Sent>,
    /// Tasks without an outcome.
    open: usize,
    /// None follows any more.
    cut_short: bool,
}

struct Sent {
    tag: u64,
    task: usize,
    answered: bool,
    /// It came back.
    returned: Option<Outcome>,
}

impl Flow {
    pub(super) fn new(tasks: &[Task]) -> Flow {
        let mut last: HashMap<&[u8], usize> = HashMap::new();
        let mut successors = vec![None; tasks.len()];
        let mut ready = VecDeque::with_capacity(tasks.len());
        for (index, task) in tasks.iter().enumerate() {
            let earlier = task.key().and_then(|key| last.insert(key, index));
            match earlier.and_then(|earlier| successors.get_mut(earlier)) {
                Some(successor) => *successor = Some(index),
                None => ready.push_back(index),
            }
        }
        Flow {
            outcomes: vec![None; tasks.len()],
            successors,
            ready,
            under_way: VecDeque::new(),
            open: tasks.len(),
            cut_short: false,
        }
    }

    /// From now on the next task of a key does not follow when one is delivered: it is left unsent, with all behind it.
    pub(super) fn cut_short(&mut self) {
        self.cut_short = true;
    }

    /// The task that is to be published next, if one may be now.
    pub(super) fn next(&self) -> Option<usize> {
        self.ready.front().copied()
    }

    /// The next task has been published under this tag; tags only grow.
    pub(super) fn published(&mut self, tag: u64) {
        debug_assert!(self.under_way.back().is_none_or(|sent| sent.tag < tag));
        if let Some(task) = self.ready.pop_front() {
            self.under_way.push_back(Sent {
                tag,
                task,
                answered: false,
                returned: None,
            });
        }
    }

    /// The next task is not to be published: this is its outcome.
    pub(super) fn settled(&mut self, outcome: Outcome) {
        if let Some(task) = self.ready.pop_front() {
            self.settle(task, outcome);
        }
    }

    /// Whether nothing is published and not answered.
    pub(super) fn is_quiet(&self) -> bool {
        self.under_way.is_empty()
    }

    /// The message of the task for which `is_it` says so has come back; its confirm is still to come. Messages come back
    /// in the order of publishing. Whether one was found.
    pub(super) fn returned(&mut self, is_it: impl Fn(usize) -> bool, outcome: Outcome) -> bool {
        let found = self
            .under_way
            .iter_mut()
            .find(|sent| !sent.answered && sent.returned.is_none() && is_it(sent.task));
        match found {
            Some(sent) => {
                sent.returned = Some(outcome);
                true
            }
            None => false,
        }
    }

    /// The broker has answered for a tag, or for all up to it. Tags that are not known are of an earlier batch. How many
    /// tasks it answered for.
    pub(super) fn answered(&mut self, tag: u64, multiple: bool, outcome: &Outcome) -> usize {
        let end = self.under_way.partition_point(|sent| sent.tag <= tag);
        let start = match multiple {
            true => 0,
            false => self.under_way.partition_point(|sent| sent.tag < tag),
        };
        let mut settled = Vec::with_capacity(end.saturating_sub(start));
        for sent in self.under_way.range_mut(start..end.max(start)) {
            if !std::mem::replace(&mut sent.answered, true) {
                let outcome = sent.returned.take().unwrap_or_else(|| outcome.clone());
                settled.push((sent.task, outcome));
            }
        }
        while self.under_way.front().is_some_and(|sent| sent.answered) {
            self.under_way.pop_front();
        }
        let count = settled.len();
        for (task, outcome) in settled {
            self.settle(task, outcome);
        }
        count
    }

    /// What was published and not answered is to be published again, in its order, before all else: its channel is gone.
    pub(super) fn take_back(&mut self) {
        while let Some(sent) = self.under_way.pop_back() {
            if !sent.answered {
                self.ready.push_front(sent.task);
            }
        }
    }

    /// Whether every task has its outcome.
    pub(super) fn is_done(&self) -> bool {
        self.open == 0
    }

    /// What is known of each task so far.
    pub(super) fn into_known(self) -> Vec<Option<Outcome>> {
        self.outcomes
    }

    /// An outcome for each task; once all is done.
    pub(super) fn into_outcomes(self) -> Vec<Outcome> {
        let unknown = || Outcome::Retry(Cause::new("it was not answered"));
        let outcomes = self.outcomes.into_iter();
        outcomes
            .map(|outcome| outcome.unwrap_or_else(unknown))
            .collect()
    }

    fn settle(&mut self, task: usize, outcome: Outcome) {
        let mut next = self.successors.get(task).copied().flatten();
        let delivered = outcome == Outcome::Delivered;
        self.put(task, outcome);
        if delivered && !self.cut_short {
            self.ready.extend(next);
            return;
        }
        let words = "an earlier task of its key was not delivered";
        let behind = match delivered {
            true => Outcome::Unsent,
            false => Outcome::Retry(Cause::new(words)),
        };
        while let Some(task) = next {
            self.put(task, behind.clone());
            next = self.successors.get(task).copied().flatten();
        }
    }

    fn put(&mut self, task: usize, outcome: Outcome) {
        if let Some(place) = self.outcomes.get_mut(task) {
            debug_assert!(place.is_none(), "one outcome per task");
            *place = Some(outcome);
            self.open -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::outbox::{Field, Position};
    use crate::pg::Timestamp;

    fn tasks(keys: &[Option<u8>]) -> Vec<Task> {
        let task = |(n, key): (usize, &Option<u8>)| {
            let (id, key) = (n.to_string(), key.map(|key| key.to_string()));
            let mut fields = vec![(Field::Id, id.as_str())];
            fields.extend(key.as_deref().map(|key| (Field::Key, key)));
            Task::from_fields(fields, Position::default(), Timestamp(0))
        };
        keys.iter().enumerate().map(task).collect()
    }

    fn retry(words: &'static str) -> Outcome {
        Outcome::Retry(Cause::new(words))
    }

    #[test]
    fn a_key_waits_for_its_confirm_and_others_do_not() {
        let tasks = tasks(&[Some(1), Some(1), Some(2), None, None]);
        let mut flow = Flow::new(&tasks);
        for (tag, expected) in [(1, 0), (2, 2), (3, 3), (4, 4)] {
            assert_eq!(flow.next(), Some(expected));
            flow.published(tag);
        }
        assert_eq!(flow.next(), None);
        assert_eq!(flow.answered(1, false, &Outcome::Delivered), 1);
        assert_eq!(flow.next(), Some(1));
        flow.published(5);
        assert!(flow.returned(|task| task == 3, retry("back")));
        assert!(!flow.returned(|task| task == 0, retry("not under way")));
        assert_eq!(flow.answered(4, true, &Outcome::Delivered), 3);
        assert_eq!(flow.answered(4, true, &Outcome::Delivered), 0);
        assert!(!flow.is_done() && !flow.is_quiet());
        assert_eq!(flow.answered(5, false, &retry("nack")), 1);
        assert!(flow.is_done() && flow.is_quiet());
        let delivered = || Outcome::Delivered;
        assert_eq!(
            flow.into_outcomes(),
            [
                delivered(),
                retry("nack"),
                delivered(),
                retry("back"),
                delivered()
            ]
        );
    }

    #[test]
    fn a_batch_that_is_cut_short_waits_for_what_is_under_way() {
        let tasks = tasks(&[Some(1), Some(1), Some(1), Some(2), Some(2), None]);
        let mut flow = Flow::new(&tasks);
        flow.published(1);
        flow.answered(1, false, &Outcome::Delivered);
        flow.published(2);
        flow.cut_short();
        // Those that wait for none of their key.
        flow.published(3);
        assert_eq!(flow.next(), Some(1));
        flow.published(4);
        assert_eq!(flow.next(), None);
        flow.answered(4, true, &Outcome::Delivered);
        assert!(flow.is_done());
        let outcomes = flow.into_outcomes();
        let unsent = (0..tasks.len()).filter(|task| outcomes[*task] == Outcome::Unsent);
        assert_eq!(unsent.collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn a_channel_that_is_gone_gives_back_what_was_not_answered() {
        let tasks = tasks(&[None, None, None, None]);
        let mut flow = Flow::new(&tasks);
        for tag in 1..=3 {
            flow.published(tag);
        }
        flow.answered(2, false, &Outcome::Delivered);
        flow.take_back();
        let mut again = Vec::new();
        while let Some(task) = flow.next() {
            again.push(task);
            flow.published(again.len() as u64);
        }
        assert_eq!(again, [0, 2, 3]);
    }

    proptest! {
        /// A broker that answers as it likes: each task has one outcome, and what it has applied of a key is in order, and
        /// ends with the first that was not delivered.
        #[test]
        fn no_later_task_of_a_key_is_published_after_a_failure(
            keys in prop::collection::vec(prop::option::weighted(0.8, 0u8..4), 0..40),
            fates in prop::collection::vec(0u8..8, 40),
            order in any::<u64>(),
            lasts in 0usize..80,
        ) {
            let tasks = tasks(&keys);
            let mut flow = Flow::new(&tasks);
            let mut random = fastrand::Rng::with_seed(order);
            let (mut tag, mut open, mut applied) = (0, Vec::new(), Vec::new());
            let mut failed = HashSet::new();
            let mut steps = 0;
            while !flow.is_done() {
                steps += 1;
                if steps > lasts {
                    flow.cut_short();
                }
                let may = flow.next();
                if let Some(task) = may.filter(|_| random.bool()) {
                    let key = keys[task];
                    prop_assert!(key.is_none() || !failed.contains(&key), "overtaken");
                    prop_assert!(
                        key.is_none() || open.iter().all(|(_, other): &(u64, usize)| keys[*other] != key),
                        "two of a key under way"
                    );
                    if fates[task] == 0 {
                        failed.insert(key);
                        flow.settled(retry("unfit"));
                        continue;
                    }
                    tag += 1;
                    flow.published(tag);
                    open.push((tag, task));
                } else if !open.is_empty() {
                    let at = random.usize(..open.len());
                    let multiple = random.u8(..4) == 0;
                    let these: Vec<_> = match multiple {
                        true => open.drain(..=at).collect(),
                        false => vec![open.remove(at)],
                    };
                    let nacked = fates[these[these.len() - 1].1] == 1;
                    for (_, task) in &these {
                        let back = fates[*task] == 2;
                        if back {
                            prop_assert!(flow.returned(|other| other == *task, retry("back")));
                        }
                        if back || nacked {
                            failed.insert(keys[*task]);
                        } else {
                            applied.push(*task);
                        }
                    }
                    let outcome = if nacked { retry("nack") } else { Outcome::Delivered };
                    let count = flow.answered(these[these.len() - 1].0, multiple, &outcome);
                    prop_assert_eq!(count, these.len());
                }
                prop_assert_eq!(flow.is_quiet(), open.is_empty());
            }
            let outcomes = flow.into_outcomes();
            for (task, key) in keys.iter().enumerate() {
                let is_sent = outcomes[task] != Outcome::Unsent;
                let before: Vec<usize> = (0..task).filter(|other| keys[*other] == *key).collect();
                let is_first = key.is_none() || before.is_empty();
                prop_assert!(is_sent || steps > lasts && !is_first, "left too early");
                prop_assert!(is_sent || !failed.contains(key), "what has failed is told");
            }
            let mut delivered: Vec<usize> = (0..tasks.len())
                .filter(|task| outcomes[*task] == Outcome::Delivered)
                .collect();
            for key in 0..4 {
                let of_key = |tasks: &[usize]| tasks.iter().copied().filter(|task| keys[*task] == Some(key)).collect::<Vec<_>>();
                prop_assert_eq!(of_key(&applied), of_key(&delivered));
                let all: Vec<usize> = of_key(&(0..tasks.len()).collect::<Vec<_>>());
                prop_assert!(all.starts_with(&of_key(&delivered)));
            }
            applied.sort_unstable();
            delivered.sort_unstable();
            prop_assert_eq!(applied, delivered);
        }
    }
}
