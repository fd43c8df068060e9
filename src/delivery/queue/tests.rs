//! The queue by itself, and against a model of the hold table.

use super::*;
use crate::delivery::Origin;
use crate::hold::State;
use crate::outbox::{Field, Task};
use crate::pg::Lsn;
use crate::sink::Outcome;
use crate::units::BackoffRange;
use crate::watermark::Watermark;

mod model;

const RANGE: BackoffRange = BackoffRange {
    min: Duration::from_millis(100),
    max: Duration::from_millis(800),
};

fn rule(attempts: u32, hold_after: Duration, dead_blocks: bool) -> Rule {
    Rule {
        route: "*".into(),
        attempts,
        backoff: RANGE,
        hold_after,
        dead_blocks,
    }
}

fn queue(rule: Rule) -> LaneQueue {
    LaneQueue::new(0, "sink".into(), [rule].into(), KeyHasher::default(), true)
}

fn in_place() -> LaneQueue {
    queue(rule(100, Duration::from_secs(3600), false))
}

fn at(now: Instant) -> At {
    At {
        now,
        wall: Timestamp(0),
        random: 1.0,
    }
}

fn task(number: u64, key: Option<u8>, expires_at: Option<&str>) -> Task {
    let (id, key) = (number.to_string(), key.map(|key| key.to_string()));
    let fields = [(Field::Id, id.as_str())]
        .into_iter()
        .chain(key.iter().map(|k| (Field::Key, k.as_str())))
        .chain(expires_at.map(|at| (Field::ExpiresAt, at)));
    let position = Position {
        commit_lsn: Lsn(1),
        ordinal: number,
    };
    Task::from_fields(fields, position, Timestamp(0))
}

fn passage(number: u64, key: Option<u8>) -> Passage {
    let mut mark = Watermark::default();
    let Ok(crate::watermark::Begun::Open { ticket, .. }) = mark.begin(Lsn(1)) else {
        panic!("a new transaction");
    };
    Passage {
        task: task(number, key, None),
        origin: Origin::Stream(ticket),
        route: 0,
    }
}

fn released(hold_id: i64, attempts: u32, number: u64, key: Option<u8>) -> Passage {
    Passage {
        task: task(number, key, None),
        origin: Origin::Hold { hold_id, attempts },
        route: 0,
    }
}

fn retry() -> Outcome {
    Outcome::Retry(Cause::new("not now"))
}

fn ids(batch: &[Passage]) -> Vec<u64> {
    batch
        .iter()
        .map(|passage| passage.task.position.ordinal)
        .collect()
}

fn parked(report: &Report) -> Vec<(u64, State, u32)> {
    let parks = report.parks.iter();
    parks
        .map(|(_, park)| (park.task.position.ordinal, park.state, park.attempts))
        .collect()
}

#[test]
fn a_failing_key_waits_with_its_later_tasks_and_others_go_on() {
    let start = Instant::now();
    let mut queue = in_place();
    for (number, key) in [
        (0, Some(1)),
        (1, Some(2)),
        (2, Some(1)),
        (3, None),
        (4, Some(1)),
    ] {
        queue.push(passage(number, key));
    }
    let batch = queue.next_batch(at(start), 3, usize::MAX);
    assert_eq!(ids(&batch), [0, 1, 2]);
    for (passage, outcome) in batch
        .into_iter()
        .zip([retry(), Outcome::Delivered, retry()])
    {
        queue.outcome(passage, outcome, at(start));
    }
    queue.finish_batch();
    let batch = queue.next_batch(at(start), 9, usize::MAX);
    assert_eq!(ids(&batch), [3], "4 waits behind 0 and 2");
    let due = queue.next_due();
    assert_eq!(due, Some(start + RANGE.min));
    assert!(queue.next_batch(at(start), 9, usize::MAX).is_empty());
    let later = start + RANGE.min;
    assert_eq!(ids(&queue.next_batch(at(later), 9, usize::MAX)), [0, 2, 4]);
}

#[test]
fn a_new_generation_drops_what_comes_again() {
    let start = Instant::now();
    let mut queue = in_place();
    queue.push(passage(0, Some(1)));
    queue.push(passage(1, Some(1)));
    queue.push(released(7, 0, 2, None));
    queue.push(passage(3, None));
    let batch = queue.next_batch(at(start), 1, usize::MAX);
    for passage in batch {
        queue.outcome(passage, retry(), at(start));
    }
    queue.finish_batch();
    assert!(queue.next_due().is_some());
    let held = queue.hasher.hash(b"5");
    queue.begin(vec![held]);
    assert_eq!(queue.next_due(), None);
    let report = queue.take_report().expect("a report");
    let sizes: usize = [(0, Some(1)), (1, Some(1)), (3, None)]
        .map(|(number, key)| task(number, key, None).size())
        .iter()
        .sum();
    assert_eq!((report.bytes, report.delivered), (sizes, 0));
    // From the hold, too: there it is as it was, or is not, where the server has another history.
    assert_eq!((report.rows.returned, report.parks.len()), (vec![7], 0));
    queue.push(passage(0, Some(1)));
    queue.push(passage(4, Some(5)));
    let batch = queue.next_batch(at(start), 9, usize::MAX);
    assert_eq!(ids(&batch), [0], "4 waits behind what is held of its key");
}

#[test]
fn a_batch_is_bounded_in_bytes_but_for_one_large_task() {
    let mut queue = in_place();
    (10..14).for_each(|number| queue.push(passage(number, None)));
    let now = at(Instant::now());
    assert_eq!(ids(&queue.next_batch(now, 9, 4)), [10, 11]);
    assert_eq!(ids(&queue.next_batch(now, 9, 1)), [12]);
    assert_eq!(ids(&queue.next_batch(now, 1, 99)), [13]);
}

#[test]
fn past_hold_after_a_key_is_held_with_all_that_comes_until_it_is_free() {
    let start = Instant::now();
    let mut queue = queue(rule(100, Duration::from_millis(250), false));
    (0..3).for_each(|number| queue.push(passage(number, Some(1))));
    let fail = |queue: &mut LaneQueue, now| {
        let batch = queue.next_batch(at(now), 1, usize::MAX);
        let verdicts: Vec<_> = batch
            .into_iter()
            .map(|passage| queue.outcome(passage, retry(), at(now)))
            .collect();
        queue.finish_batch();
        verdicts
    };
    let pause = RANGE.min;
    assert_eq!(
        fail(&mut queue, start),
        [Verdict::Again { attempts: 1, pause }]
    );
    assert!(queue.take_report().is_none());
    let (now, pause) = (start + RANGE.min, RANGE.min * 2);
    assert_eq!(
        fail(&mut queue, now),
        [Verdict::Held { attempts: 2, pause }]
    );
    let report = queue.take_report().expect("a report");
    let retrying = |number, attempts| (number, State::Retrying, attempts);
    assert_eq!(
        parked(&report),
        [retrying(0, 2), retrying(1, 0), retrying(2, 0)]
    );
    assert_eq!(report.parks[0].1.due_in, Some(pause));
    // What comes later goes there too, and other keys go on.
    queue.push(passage(3, Some(1)));
    queue.push(passage(4, Some(2)));
    assert_eq!(ids(&queue.next_batch(at(now), 9, usize::MAX)), [4]);
    let later = queue.take_report().expect("a report");
    assert_eq!(parked(&later), [retrying(3, 0)]);
    // The first report is written, and all of it is gone again: but 3 is on its way there.
    let hash = queue.hasher.hash(b"1");
    queue.written(report.seq);
    queue.freed(&[hash]);
    queue.push(passage(5, Some(1)));
    assert!(queue.next_batch(at(now), 9, usize::MAX).is_empty());
    let last = queue.take_report().expect("a report");
    queue.written(last.seq);
    queue.freed(&[hash]);
    queue.push(passage(6, Some(1)));
    assert_eq!(ids(&queue.next_batch(at(now), 9, usize::MAX)), [6]);
}

#[test]
fn a_dead_task_lets_its_key_go_on_or_blocks_it() {
    for blocks in [false, true] {
        let now = at(Instant::now());
        let mut queue = queue(rule(1, Duration::from_secs(5), blocks));
        (0..3).for_each(|number| queue.push(passage(number, Some(1))));
        let batch = queue.next_batch(now, 2, usize::MAX);
        for (passage, outcome) in batch.into_iter().zip([
            Outcome::Reject(Cause::new("no good")),
            Outcome::Retry(Cause::new("behind")),
        ]) {
            queue.outcome(passage, outcome, now);
        }
        queue.finish_batch();
        let report = queue.take_report().expect("a report");
        let next = ids(&queue.next_batch(now, 9, usize::MAX));
        let dead = (0, State::Dead, 1);
        match blocks {
            false => {
                assert_eq!(parked(&report), [dead]);
                assert_eq!(next, [1, 2], "at once");
            }
            true => {
                let waits = |number| (number, State::Retrying, 0);
                assert_eq!(parked(&report), [dead, waits(1), waits(2)]);
                assert!(next.is_empty());
            }
        }
        assert_eq!(report.parks[0].1.blocks, blocks);
    }
}

#[test]
fn attempts_are_counted_across_the_hold_and_run_out() {
    let now = at(Instant::now());
    let mut queue = queue(rule(3, Duration::ZERO, false));
    queue.push(passage(0, None));
    let mut fail = |passage: Option<Passage>| {
        passage.into_iter().for_each(|passage| queue.push(passage));
        let batch = queue.next_batch(now, 1, usize::MAX);
        for passage in batch {
            queue.outcome(passage, retry(), now);
        }
        queue.finish_batch();
        queue.take_report().expect("a report")
    };
    assert_eq!(parked(&fail(None)), [(0, State::Retrying, 1)]);
    let rows = fail(Some(released(7, 1, 0, None))).rows;
    assert_eq!(
        (rows.postponed[0].hold_id, rows.postponed[0].attempts),
        (7, 2)
    );
    let rows = fail(Some(released(7, 2, 0, None))).rows;
    assert_eq!((rows.buried[0].hold_id, rows.buried[0].attempts), (7, 3));
    assert!(rows.buried[0].error.contains("tried 3 times"), "{rows:?}");
}

#[test]
fn a_longer_pause_that_the_sink_asks_for_is_kept() {
    let now = at(Instant::now());
    let mut queue = queue(rule(9, Duration::from_secs(5), false));
    queue.push(passage(0, None));
    let batch = queue.next_batch(now, 1, usize::MAX);
    let wish = Duration::from_secs(4);
    for passage in batch {
        let outcome = Outcome::RetryIn(wish, Cause::new("too many requests"));
        let verdict = queue.outcome(passage, outcome, now);
        assert_eq!(
            verdict,
            Verdict::Again {
                attempts: 1,
                pause: wish
            }
        );
    }
    assert_eq!(queue.next_due(), Some(now.now + wish));
}

#[test]
fn what_has_expired_is_dead_and_not_sent() {
    let mut queue = in_place();
    let wall = Timestamp(60_000_000);
    for (number, expires_at) in [
        (0, Some("2000-01-01 00:00:59+00")),
        (1, Some("2000-01-01 00:01:01+00")),
        (2, Some("infinity")),
        (3, None),
    ] {
        let plain = passage(number, None);
        queue.push(Passage {
            task: task(number, None, expires_at),
            ..plain
        });
    }
    let now = At {
        wall,
        ..at(Instant::now())
    };
    assert_eq!(ids(&queue.next_batch(now, 9, usize::MAX)), [1, 2, 3]);
    let report = queue.take_report().expect("a report");
    assert_eq!(parked(&report), [(0, State::Dead, 0)]);
}

#[test]
fn a_sink_that_stays_away_gets_nothing_and_all_is_held_in_order() {
    let now = at(Instant::now());
    let mut queue = in_place();
    (0..4).for_each(|number| queue.push(passage(number, Some((number % 2) as u8))));
    let batch = queue.next_batch(now, 1, usize::MAX);
    for passage in batch {
        queue.outcome(passage, retry(), now);
    }
    queue.finish_batch();
    let batch = queue.next_batch(now, 9, usize::MAX);
    assert_eq!(ids(&batch), [1, 3]);
    for passage in batch {
        queue.outcome(passage, Outcome::Unsent, now);
    }
    queue.finish_batch();
    queue.push(released(9, 0, 100, Some(7)));
    queue.spill(now.now, &HashSet::new(), &Cause::new("away"), true);
    let report = queue.take_report().expect("a report");
    let pauses: Vec<_> = report
        .parks
        .iter()
        .map(|(_, park)| park.due_in.expect("a pause"))
        .collect();
    assert!(pauses[0] > Duration::ZERO, "what is left of it");
    assert_eq!(pauses[1..], [Duration::ZERO; 3]);
    let retrying = |number, attempts| (number, State::Retrying, attempts);
    assert_eq!(
        parked(&report),
        [
            retrying(0, 1),
            retrying(2, 0),
            retrying(1, 0),
            retrying(3, 0)
        ]
    );
    assert_eq!(report.rows.returned, [9]);
    assert!(queue.is_empty());
}
