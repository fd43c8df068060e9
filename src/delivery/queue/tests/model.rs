//! Random histories: a sink that fails and goes away, a keeper that is slow, a hold table that does as ours.

use std::collections::{BTreeMap, HashSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::delivery::Message;
use crate::delivery::hands::{Hands, Room};
use crate::intake::Confirmation;

/// A row of the hold table.
#[derive(Clone, Debug)]
struct Row {
    number: u64,
    key: Option<u8>,
    attempts: u32,
}

/// The hold table, the keeper, and the way between them and the lane.
#[derive(Default)]
struct Hold {
    rows: BTreeMap<i64, Row>,
    last_id: i64,
    under_way: HashSet<i64>,
    /// Keys whose queues were not looked after since a row was taken.
    touched: HashSet<u8>,
    reports: VecDeque<Report>,
    /// To the lane.
    inbox: VecDeque<Message>,
}

impl Hold {
    /// The keeper writes down the first reports.
    fn write(&mut self, count: usize) {
        let mut seq = 0;
        let count = count.min(self.reports.len());
        let reports: Vec<Report> = self.reports.drain(..count).collect();
        // As one transaction of ours: parks first.
        for (_, park) in reports.iter().flat_map(|report| &report.parks) {
            self.last_id += 1;
            let key = park.task.text(Field::Key);
            let row = Row {
                number: park.task.position.ordinal,
                key: key.map(|key| key.parse().expect("a key")),
                attempts: park.attempts,
            };
            self.rows.insert(self.last_id, row);
        }
        for report in &reports {
            seq = report.seq;
            let rows = &report.rows;
            let postponed = rows.postponed.iter().map(|row| row.hold_id);
            let buried = rows.buried.iter().map(|row| row.hold_id);
            let others = postponed.chain(buried).chain(rows.returned.iter().copied());
            for hold_id in rows.removed.iter().copied().chain(others) {
                assert!(self.under_way.remove(&hold_id), "{hold_id} twice");
            }
            for hold_id in &report.rows.removed {
                let row = self.rows.remove(hold_id).expect("a row");
                self.touched.extend(row.key);
            }
            for postponed in &report.rows.postponed {
                let row = self.rows.get_mut(&postponed.hold_id).expect("a row");
                row.attempts = postponed.attempts;
            }
        }
        if reports.is_empty() {
            return;
        }
        self.inbox.push_back(Message::Written {
            seq,
            saved: Confirmation::default(),
        });
    }

    /// The keeper looks after the queues from which rows were taken.
    fn look_after(&mut self, queue: &LaneQueue) {
        let is_empty = |key: &u8| self.rows.values().all(|row| row.key != Some(*key));
        let empty = self.touched.drain().filter(is_empty);
        let hash = |key: u8| queue.hasher.hash(key.to_string().as_bytes());
        self.inbox
            .push_back(Message::Freed(empty.map(hash).collect()));
    }

    /// The lane takes so many messages.
    fn hear(&mut self, count: usize, queue: &mut LaneQueue) {
        let count = count.min(self.inbox.len());
        for message in self.inbox.drain(..count) {
            match message {
                Message::Tasks(passages) => queue.extend(passages),
                Message::Written { seq, .. } => queue.written(seq),
                Message::Freed(hashes) => queue.freed(&hashes),
                Message::Begins { .. } => {}
            }
        }
    }

    /// The keeper looks for what is due: of each key all before the first that was tried, or that one alone.
    fn release(&mut self) {
        let mut seen = HashSet::new();
        let mut stopped = HashSet::new();
        let mut passages = Vec::new();
        for (&hold_id, row) in &self.rows {
            if let Some(key) = row.key {
                let first = seen.insert(key);
                if row.attempts > 0 && !first || stopped.contains(&key) {
                    stopped.insert(key);
                    continue;
                }
                if row.attempts > 0 {
                    stopped.insert(key);
                }
            }
            if self.under_way.insert(hold_id) {
                passages.push(released(hold_id, row.attempts, row.number, row.key));
            }
        }
        if !passages.is_empty() {
            self.inbox.push_back(Message::Tasks(passages));
        }
    }
}

/// Each task, of these keys, was delivered once, and those of a key in their order.
fn each_once_and_in_order(keys: &[Option<u8>], delivered: &[u64]) -> Result<(), TestCaseError> {
    let mut sorted = delivered.to_vec();
    sorted.sort_unstable();
    prop_assert_eq!(sorted, (0..keys.len() as u64).collect::<Vec<_>>());
    for key in 0u8..4 {
        let is_of_key = |n: &&u64| keys[**n as usize] == Some(key);
        let of_key: Vec<&u64> = delivered.iter().filter(is_of_key).collect();
        prop_assert!(of_key.is_sorted(), "key {} went {:?}", key, of_key);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever happens: each task is delivered once, and those of a key in their order.
    #[test]
    fn keeps_order_per_key_and_loses_nothing(
        keys in proptest::collection::vec(proptest::option::of(0u8..4), 1..60),
        steps in proptest::collection::vec((0u8..9, 1usize..7, any::<u16>(), 0u64..300), 1..200),
        hold_after in 0u64..400,
    ) {
        let mut now = Instant::now();
        let mut queue = queue(rule(u32::MAX, Duration::from_millis(hold_after), false));
        let mut hold = Hold::default();
        let mut coming = keys.iter().copied().enumerate();
        let mut delivered: Vec<u64> = Vec::new();
        let healthy = (0..400).flat_map(|_| {
            [(0u8, 7usize, 0u16, 1000u64), (3, 7, 0, 1000), (1, 7, 0, 0), (2, 7, 0, 0)]
        });
        for (kind, size, fails, pause) in steps.into_iter().chain(healthy) {
            match kind {
                // New tasks, and what the keeper has told.
                0 => {
                    for (number, key) in coming.by_ref().take(size) {
                        hold.inbox.push_back(Message::Tasks(vec![passage(number as u64, key)]));
                    }
                    hold.hear(size, &mut queue);
                }
                1 => hold.write(size),
                2 if size < 3 => hold.look_after(&queue),
                2 => hold.release(),
                // The sink is away for long.
                7 => queue.spill(now, &HashSet::new(), &Cause::new("away"), true),
                // The daemon drains.
                8 => queue.give_back(),
                // A batch.
                _ => {
                    now += Duration::from_millis(pause);
                    let batch = queue.next_batch(at(now), size, usize::MAX);
                    if kind == 5 {
                        // The sink does not answer for long.
                        let keys = batch.iter().filter_map(|passage| passage.task.key());
                        let in_hand = keys.map(|key| queue.hash_of(key)).collect();
                        hold.hear(size, &mut queue);
                        queue.spill_beside(now, &in_hand, &Cause::new("it does not answer"));
                        hold.reports.extend(queue.take_report());
                        if pause % 2 == 0 {
                            hold.write(size);
                            hold.release();
                            hold.look_after(&queue);
                            hold.hear(size, &mut queue);
                        }
                    }
                    let mut failed: HashSet<Vec<u8>> = HashSet::new();
                    let mut sent: HashSet<Vec<u8>> = HashSet::new();
                    // From here on, what has to wait for one of its key is not sent; or nothing is, where the sink goes away.
                    let is_away = kind == 6 || kind == 5 && pause % 3 == 0;
                    let end = pause as usize % 10;
                    for (index, passage) in batch.into_iter().enumerate() {
                        let key = passage.task.key().map(<[u8]>::to_vec);
                        let behind = key.as_ref().is_some_and(|key| failed.contains(key));
                        let is_first = key.as_ref().is_none_or(|key| sent.insert(key.clone()));
                        if !behind && (is_away || !is_first) && index >= end {
                            queue.outcome(passage, Outcome::Unsent, at(now));
                        } else if behind || fails >> index & 1 == 1 {
                            failed.extend(key);
                            queue.outcome(passage, retry(), at(now));
                        } else {
                            delivered.push(passage.task.position.ordinal);
                            queue.delivered(&passage.task, passage.origin);
                        }
                    }
                    queue.finish_batch();
                }
            }
            hold.reports.extend(queue.take_report());
        }
        each_once_and_in_order(&keys, &delivered)?;
        prop_assert!(hold.rows.is_empty() && hold.under_way.is_empty());
    }

    /// The same, where the sink is served one by one.
    #[test]
    fn served_one_by_one_keeps_order_per_key_and_loses_nothing(
        keys in proptest::collection::vec(proptest::option::of(0u8..4), 1..60),
        steps in proptest::collection::vec((0u8..9, 1usize..7, any::<u16>(), 0u64..300), 1..300),
        hold_after in 0u64..400,
    ) {
        let mut now = Instant::now();
        let mut queue = queue(rule(u32::MAX, Duration::from_millis(hold_after), false));
        let mut hold = Hold::default();
        let mut hands = Hands::default();
        let mut coming = keys.iter().copied().enumerate();
        let mut delivered: Vec<u64> = Vec::new();
        let healthy = (0..400).flat_map(|_| {
            let answers = [(4u8, 1usize, 0u16, 0u64); 7];
            [(0, 7, 0, 1000), (3, 7, 0, 1000)].into_iter().chain(answers).chain([(1, 7, 0, 0), (2, 7, 0, 0)])
        });
        for (kind, size, chance, pause) in steps.into_iter().chain(healthy) {
            match kind {
                // New tasks, and what the keeper has told.
                0 => {
                    for (number, key) in coming.by_ref().take(size) {
                        hold.inbox.push_back(Message::Tasks(vec![passage(number as u64, key)]));
                    }
                    hold.hear(size, &mut queue);
                }
                1 => hold.write(size),
                2 if size < 3 => hold.look_after(&queue),
                2 => hold.release(),
                3 => {
                    now += Duration::from_millis(pause);
                    let room = Room { tasks: size, bytes: usize::MAX };
                    hands.take(&mut queue, at(now), None, room);
                    prop_assert!(hands.tags().len() <= 7);
                }
                // The sink goes away: it answers for nothing of what it has.
                5 => {
                    for tag in hands.tags() {
                        let taken = hands.give(tag).expect("it has it");
                        let key = taken.key();
                        queue.outcome(taken.passage, Outcome::Unsent, at(now));
                        hands.let_go(key, &mut queue, at(now));
                    }
                    queue.finish_batch();
                    if chance & 1 == 1 {
                        queue.spill(now, &HashSet::new(), &Cause::new("away"), true);
                    }
                }
                // It does not answer for long.
                6 => queue.spill_beside(now, &hands.keys(), &Cause::new("it does not answer")),
                7 => queue.spill(now, &hands.keys(), &Cause::new("away"), chance & 1 == 1),
                // The daemon drains.
                8 => queue.give_back(),
                // An answer.
                _ => {
                    let tags = hands.tags();
                    if let Some(&tag) = tags.get(usize::from(chance >> 4) % tags.len().max(1)) {
                        let taken = hands.give(tag).expect("it has it");
                        let key = taken.key();
                        let fails = size > 3;
                        if fails {
                            queue.outcome(taken.passage, retry(), at(now));
                        } else {
                            delivered.push(taken.passage.task.position.ordinal);
                            queue.delivered(&taken.passage.task, taken.passage.origin);
                        }
                        if fails || chance & 1 == 1 {
                            hands.let_go(key, &mut queue, at(now));
                        } else {
                            hands.go_on(key, &mut queue, at(now), None);
                        }
                        queue.finish_batch();
                    }
                }
            }
            hold.reports.extend(queue.take_report());
        }
        each_once_and_in_order(&keys, &delivered)?;
        prop_assert!(hold.rows.is_empty() && hold.under_way.is_empty() && hands.is_empty());
    }
}
