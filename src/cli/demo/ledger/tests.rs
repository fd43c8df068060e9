//! What events add up to.

use super::*;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn committed(order: u64, asked: u64) -> Event {
    Event::Committed {
        orders: vec![order],
        asked: ms(asked),
    }
}

fn dispatched(order: u64, id: &str, key: Option<&str>, at: u64) -> Event {
    Event::Dispatched {
        order,
        id: id.to_owned(),
        key: key.map(str::to_owned),
        at: ms(at),
    }
}

fn ran(order: u64, found: bool, at: u64) -> Event {
    Event::Ran {
        order,
        found,
        at: ms(at),
    }
}

fn counts(events: impl IntoIterator<Item = Event>) -> Counts {
    let mut ledger = Ledger::default();
    for event in events {
        ledger.record(event);
    }
    ledger.counts()
}

#[test]
fn a_run_before_its_commit_is_undecided_then_not_found() {
    let early = vec![dispatched(2, "a", None, 1), ran(2, false, 2)];
    assert_eq!(counts(early.clone()).undecided, 1);
    assert_eq!(counts(early.clone()).not_found, 0);
    let after = counts(early.into_iter().chain([committed(2, 9)]));
    assert_eq!((after.undecided, after.not_found, after.phantom), (0, 1, 0));
    assert_eq!((after.committed, after.run, after.lost), (1, 1, 0));
}

#[test]
fn a_run_for_what_was_rolled_back_is_a_phantom() {
    let got = counts([
        ran(2, false, 1),
        Event::RolledBack { orders: vec![2] },
        Event::SavepointUndone { order: 5 },
        ran(5, false, 3),
    ]);
    assert_eq!((got.phantom, got.not_found, got.undecided), (2, 0, 0));
    assert_eq!((got.rolled_back, got.committed), (2, 0));
    assert_eq!(
        (got.transactions_rolled_back, got.savepoints_undone),
        (1, 1)
    );
}

#[test]
fn committed_and_never_run_is_lost() {
    let got = counts([
        committed(2, 1),
        Event::Died,
        committed(4, 2),
        ran(4, true, 3),
    ]);
    assert_eq!((got.committed, got.lost, got.found, got.died), (2, 1, 1, 1));
}

#[test]
fn deliveries_beyond_the_first_are_counted_and_their_ids_compared() {
    let got = counts([
        committed(2, 1),
        dispatched(2, "a", None, 2),
        dispatched(2, "a", None, 3),
        dispatched(2, "b", None, 4),
    ]);
    assert_eq!((got.twice, got.other_id), (2, 1));
    assert_eq!(got.latencies, [ms(1)], "the first delivery counts");
}

#[test]
fn order_is_per_key_and_repeats_do_not_break_it() {
    let got = counts([
        dispatched(2, "a", Some("x"), 1),
        dispatched(6, "c", Some("x"), 2),
        dispatched(2, "a", Some("x"), 3),
        dispatched(1, "d", Some("y"), 4),
        dispatched(0, "e", None, 5),
    ]);
    assert_eq!((got.out_of_order, got.keys), (0, 2));
    let got = counts([
        dispatched(6, "c", Some("x"), 1),
        dispatched(2, "a", Some("x"), 2),
        dispatched(4, "b", Some("x"), 3),
    ]);
    assert_eq!(got.out_of_order, 2);
}

#[test]
fn tasks_that_waited_for_the_daemon_are_told_apart() {
    let got = counts([
        committed(0, 10),
        dispatched(0, "a", None, 12),
        committed(2, 19),
        Event::Killed { at: ms(20) },
        committed(4, 50),
        // From what the killed daemon had still put into a broker.
        committed(8, 12),
        dispatched(8, "e", None, 25),
        Event::Back { at: ms(110) },
        dispatched(2, "b", None, 120),
        dispatched(4, "c", None, 121),
        committed(6, 130),
        dispatched(6, "d", None, 133),
    ]);
    assert_eq!(got.latencies, [ms(2), ms(3)]);
    assert_eq!(got.waited, [ms(13), ms(71), ms(101)]);
}

#[test]
fn without_a_daemon_that_comes_back_all_later_tasks_waited() {
    let got = counts([
        committed(0, 10),
        dispatched(0, "a", None, 15),
        Event::Killed { at: ms(20) },
        committed(2, 30),
        dispatched(2, "b", None, 90),
    ]);
    assert_eq!((got.latencies, got.waited), (vec![ms(5)], vec![ms(60)]));
}

#[test]
fn percentiles_are_by_nearest_rank() {
    let of = |values: &[u64], percent| {
        let latencies = values.iter().map(|&value| ms(value)).collect();
        Counts {
            latencies,
            ..Counts::default()
        }
        .percentile(percent)
    };
    assert_eq!(of(&[], 50), None);
    assert_eq!(of(&[7], 50), Some(ms(7)));
    assert_eq!(of(&[7], 99), Some(ms(7)));
    assert_eq!(of(&[1, 2, 3, 4], 50), Some(ms(2)));
    let hundred: Vec<u64> = (1..=100).collect();
    assert_eq!(of(&hundred, 50), Some(ms(50)));
    assert_eq!(of(&hundred, 99), Some(ms(99)));
    assert_eq!(of(&hundred, 100), Some(ms(100)));
}

#[test]
fn a_spectator_reads_what_happened() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.record(ran(2, false, 1)), None);
    assert_eq!(
        ledger.record(committed(2, 9)).as_deref(),
        Some("order 2: no such row; it was committed 8.0 ms after the run")
    );
    assert_eq!(ledger.record(ran(4, false, 1)), None);
    assert_eq!(
        ledger
            .record(Event::RolledBack { orders: vec![4] })
            .as_deref(),
        Some("order 4: run, then rolled back: it never existed")
    );
    assert_eq!(ledger.record(committed(6, 10)), None);
    assert_eq!(
        ledger.record(ran(6, true, 12)).as_deref(),
        Some("order 6: the worker had read its row 2.0 ms after COMMIT was sent")
    );
}

#[test]
fn durations_in_words() {
    for (micros, words) in [
        (0, "0.0 ms"),
        (1_240, "1.2 ms"),
        (14_400, "14 ms"),
        (2_340_000, "2.3 s"),
    ] {
        assert_eq!(millis(Duration::from_micros(micros)), words);
    }
}
