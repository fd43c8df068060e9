//! How the daemon ends: by a signal, at a position, or because it must.

use super::*;
use crate::intake::Halt;
use crate::relay::phase::DRAIN_WITHIN;

#[tokio::test(start_paused = true)]
async fn a_halt_is_heard_of_while_the_budget_is_used_up() {
    let mut bench = start(true, 1);
    bench.up(session(1));
    bench.gate().await;
    for lsn in [100, 200, 300] {
        bench.send(1, transaction(lsn)).await;
    }
    assert!(!bench.takes().await);
    let halt = Halt {
        stop: Stop::SlotLost,
        words: "the slot is gone".to_owned(),
    };
    bench.line().send_replace(Line::Halted(halt));
    bench.halts(Stop::SlotLost, "the slot is gone").await;
}

/// The reason must not be buried under what follows from it: the intake ends, with a transaction cut in the middle.
#[tokio::test(start_paused = true)]
async fn a_halt_in_the_middle_of_a_transaction_drains_and_tells_its_own_reason() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench
        .send(
            1,
            vec![begin(100), task(100, 0, "a.x"), task(100, 1, "a.x")],
        )
        .await;
    assert_eq!(bench.in_flight().await, ["100/0", "100/1"]);
    let halt = Halt {
        stop: Stop::Configuration,
        words: "row 3 is no task".to_owned(),
    };
    let line = bench.line.take().expect("the intake");
    line.send_replace(Line::Down);
    line.send_replace(Line::Halted(halt));
    drop(line);
    drop(std::mem::replace(&mut bench.batches, mpsc::channel(1).0));
    bench.settle_down().await;
    assert!(!bench.relay.is_finished(), "something is in flight");
    bench.deliver("100/0").await;
    assert!(!bench.relay.is_finished());
    bench.deliver("100/1").await;
    bench.halts(Stop::Configuration, "row 3").await;
}

#[tokio::test(start_paused = true)]
async fn an_intake_or_lanes_that_die_end_the_daemon() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.settle_down().await;
    bench.line = None;
    bench.halts(Stop::Runtime, "ended unexpectedly").await;

    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.settle_down().await;
    bench.reports = mpsc::channel(1).0;
    bench.halts(Stop::Runtime, "ended unexpectedly").await;

    // One lane of several.
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.settle_down().await;
    bench.lanes.clear();
    bench.send(1, transaction(100)).await;
    bench.halts(Stop::Runtime, "ended unexpectedly").await;
}

#[tokio::test(start_paused = true)]
async fn draining_completes_the_open_transaction_and_takes_no_other() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, transaction(100)).await;
    bench.send(1, vec![begin(200), task(200, 0, "a.x")]).await;
    bench.settle_down().await;
    bench.signals.send_replace(1);
    bench.settle_down().await;
    bench
        .send(
            1,
            vec![
                task(200, 1, "a.x"),
                commit(200),
                alive(250),
                begin(300),
                task(300, 0, "a.x"),
                commit(300),
                alive(400),
            ],
        )
        .await;
    assert_eq!(bench.in_flight().await, ["100/0", "200/0", "200/1"]);
    for id in ["200/1", "200/0", "100/0"] {
        assert!(!bench.relay.is_finished());
        assert_eq!(bench.confirmed(), 0);
        bench.deliver(id).await;
    }
    assert_eq!(
        bench.confirmed(),
        250,
        "and not the keepalive behind what was not taken"
    );
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn draining_with_nothing_in_flight_ends_at_once_whatever_waits_at_the_gate() {
    let mut bench = start(true, 100);
    bench.up(session(1));
    let (_, _, news) = bench.gate().await;
    bench
        .send(1, joined([transaction(100), vec![alive(150)]]))
        .await;
    bench.settle_down().await;
    bench.signals.send_replace(1);
    bench.settle_down().await;
    let _ = news.try_send(sees(1_000));
    assert!(bench.in_flight().await.is_empty());
    assert_eq!(bench.confirmed(), 0);
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn cleared_while_draining_is_not_taken_and_what_is_behind_not_confirmed() {
    let mut bench = start(true, 100);
    bench.up(session(1));
    let (_, _, news) = bench.gate().await;
    bench.send(1, transaction(100)).await;
    news.send(sees(101)).await.expect("heard");
    bench
        .send(1, joined([transaction(200), vec![alive(300)]]))
        .await;
    assert_eq!(bench.in_flight().await, ["100/0"]);
    bench.signals.send_replace(1);
    bench.settle_down().await;
    news.send(sees(1_000)).await.expect("heard");
    assert_eq!(bench.in_flight().await, ["100/0"]);
    // Nor after a new session.
    bench.line().send_replace(Line::Down);
    bench.settle_down().await;
    bench.up(session(2));
    bench.settle_down().await;
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 105);
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_takes_too_long_ends_and_so_does_a_second_signal() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, transaction(100)).await;
    bench.settle_down().await;
    bench.signals.send_replace(1);
    let (end, took) = bench.end().await;
    assert!(matches!(end, End::Clean));
    assert!(
        took >= DRAIN_WITHIN && took < DRAIN_WITHIN + SOON,
        "{took:?}"
    );

    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, transaction(100)).await;
    bench.settle_down().await;
    bench.signals.send_replace(1);
    bench.settle_down().await;
    bench.signals.send_replace(2);
    bench.ends_clean().await;
}

/// What a drain asks of the lanes: first to give back what is held anyway, then to let go of all that their sinks do not have, and
/// at last of what they do have. There is time left to write that down.
#[tokio::test(start_paused = true)]
async fn draining_presses_the_lanes_and_then_presses_more() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, transaction(100)).await;
    bench.settle_down().await;
    assert_eq!(*bench.strained.borrow(), Strain::None);
    bench.signals.send_replace(1);
    let began = Instant::now();
    for (expected, within) in [
        (Strain::Drains, SOON),
        (Strain::Leaves, DRAIN_WITHIN / 2),
        (Strain::Abandons, DRAIN_WITHIN - SOON),
    ] {
        bench.strained.changed().await.expect("the relay is there");
        assert_eq!(*bench.strained.borrow_and_update(), expected);
        assert!(
            began.elapsed() <= within,
            "{expected:?} after {:?}",
            began.elapsed()
        );
    }
    bench.deliver("100/0").await;
    bench.ends_clean().await;
}

/// Half of a transaction has gone, the rest of it can't come.
#[tokio::test(start_paused = true)]
async fn draining_without_a_session_does_not_wait_for_one() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, vec![begin(100), task(100, 0, "a.x")]).await;
    bench.settle_down().await;
    bench.signals.send_replace(1);
    bench.line().send_replace(Line::Down);
    bench.settle_down().await;
    assert!(!bench.relay.is_finished());
    bench.deliver("100/0").await;
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_rejected_task_is_held_and_confirmed() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench
        .send(1, joined([transaction(100), transaction(200)]))
        .await;
    assert_eq!(bench.in_flight().await, ["100/0", "200/0"]);
    bench.reject("200/0").await;
    assert_eq!(bench.held(), [("200/0".to_owned(), State::Dead)]);
    assert_eq!(bench.confirmed(), 0, "100 is on its way");
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 205);
    bench.signals.send_replace(1);
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_without_a_route_is_held_as_dead() {
    let mut bench = start(false, 4);
    bench.up(session(1));
    // More than the budget: each makes room for others when it is held.
    for lsn in (100..1_000).step_by(100) {
        bench
            .send(1, vec![begin(lsn), task(lsn, 0, "c.x"), commit(lsn)])
            .await;
    }
    bench.settle_down().await;
    assert_eq!(bench.held().len(), 9);
    assert_eq!(bench.confirmed(), 905);
    assert!(bench.in_flight().await.is_empty());
    let error = bench.held.lock().expect("a lock")[0].error.clone();
    assert!(error.is_some_and(|words| words.contains("no [[route]] matches")));
}

#[tokio::test(start_paused = true)]
async fn until_ends_when_everything_up_to_there_is_settled() {
    let until = |lsn| Session {
        until: Some(Lsn(lsn)),
        ..session(1)
    };
    // By a commit.
    let mut bench = start(false, 100);
    bench.up(until(205));
    bench
        .send(
            1,
            joined([transaction(100), transaction(200), transaction(300)]),
        )
        .await;
    bench.settle_down().await;
    bench.deliver("200/0").await;
    assert!(!bench.relay.is_finished());
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 205);
    assert!(
        !bench.relay.is_finished(),
        "300 is on its way, and would come twice"
    );
    bench.deliver("300/0").await;
    assert_eq!(bench.confirmed(), 305);
    bench.ends_clean().await;
    // By a keepalive.
    let mut bench = start(false, 100);
    bench.up(until(205));
    bench.send(1, vec![alive(204)]).await;
    bench.settle_down().await;
    assert_eq!(*bench.orders.borrow(), Order::Stream);
    bench.send(1, vec![alive(205)]).await;
    bench.ends_clean().await;
}
