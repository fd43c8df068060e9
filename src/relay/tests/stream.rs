//! What is taken, dispatched and confirmed while the daemon runs.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_is_settled_is_confirmed_and_nothing_else() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, vec![alive(50)]).await;
    bench.settle_down().await;
    assert_eq!(bench.confirmed(), 50, "idle: the keepalive's");
    bench
        .send(
            1,
            joined([
                transaction(100),
                vec![alive(150)],
                transaction(200),
                vec![alive(300)],
            ]),
        )
        .await;
    assert_eq!(bench.in_flight().await, ["100/0", "200/0"]);
    assert_eq!(bench.confirmed(), 50, "in flight");
    bench.deliver("200/0").await;
    assert_eq!(bench.confirmed(), 50, "an earlier one is in flight");
    bench.deliver("100/0").await;
    assert_eq!(
        bench.confirmed(),
        300,
        "all is settled: the last keepalive's"
    );
    // Of a transaction that has not come in full nothing is confirmed, and no keepalive inside of it.
    bench
        .send(1, vec![begin(400), task(400, 0, "a.x"), alive(390)])
        .await;
    bench.settle_down().await;
    bench.deliver("400/0").await;
    assert_eq!(bench.confirmed(), 300);
    bench.send(1, vec![commit(400)]).await;
    bench.settle_down().await;
    assert_eq!(bench.confirmed(), 405);
    bench.signals.send_replace(1);
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn rows_that_come_again_after_a_lost_connection_are_not_dispatched_twice() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, transaction(100)).await;
    bench
        .send(
            1,
            vec![begin(200), task(200, 0, "a.x"), task(200, 1, "b.x")],
        )
        .await;
    assert_eq!(bench.in_flight().await, ["100/0", "200/0", "200/1"]);
    bench.line().send_replace(Line::Down);
    bench.deliver("200/0").await;
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 105, "for the next session");
    // What was still on its way from the lost session does not pass, nor complete anything.
    bench.send(1, vec![task(200, 2, "a.x"), commit(200)]).await;
    assert_eq!(bench.in_flight().await, ["200/1"]);

    bench.up(session(2));
    bench.settle_down().await;
    assert_eq!(bench.confirmed(), 105);
    bench.send(2, vec![alive(90)]).await;
    bench
        .send(
            2,
            joined([
                transaction(100),
                vec![
                    alive(107),
                    begin(200),
                    task(200, 0, "a.x"),
                    task(200, 1, "b.x"),
                    task(200, 2, "a.x"),
                ],
            ]),
        )
        .await;
    assert_eq!(bench.in_flight().await, ["200/2", "200/1"]);
    bench.deliver("200/1").await;
    bench.deliver("200/2").await;
    assert_eq!(bench.confirmed(), 105, "its Commit has not come");
    bench.send(2, vec![commit(200)]).await;
    bench.settle_down().await;
    assert_eq!(bench.confirmed(), 205);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_was_cut_and_does_not_come_again_halts() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, vec![begin(100), task(100, 0, "a.x")]).await;
    bench.settle_down().await;
    bench.line().send_replace(Line::Down);
    bench.settle_down().await;
    bench.up(session(2));
    bench.send(2, transaction(300)).await;
    assert_eq!(bench.in_flight().await, ["100/0"]);
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 0);
    bench
        .halts(Stop::SlotLost, "without sending the one at 0/64 again")
        .await;
}

/// What is in memory already is taken; it is the intake that reads no more.
#[tokio::test(start_paused = true)]
async fn gives_the_memory_back_that_is_settled_or_dropped() {
    let mut bench = start(true, 100);
    bench.up(session(1));
    let (_, _, news) = bench.gate().await;
    let name = format!("a.{}", "x".repeat(6_000));
    let transaction = |lsn| vec![begin(lsn), task(lsn, 0, &name), commit(lsn)];
    bench.send(1, transaction(100)).await;
    assert!(bench.memory.has_room());
    bench.send(1, transaction(200)).await;
    bench.settle_down().await;
    assert!(!bench.memory.has_room());
    news.send(sees(101)).await.expect("heard");
    assert_eq!(bench.in_flight().await, ["100/0"]);
    bench.deliver("100/0").await;
    assert!(bench.memory.has_room());
    bench.send(1, transaction(300)).await;
    bench.settle_down().await;
    assert!(!bench.memory.has_room());
    // What waits at the gate is dropped with its session, and so is what comes late of it.
    bench.line().send_replace(Line::Down);
    bench.send(1, transaction(400)).await;
    bench.settle_down().await;
    assert!(bench.memory.has_room());
}

#[tokio::test(start_paused = true)]
async fn takes_nothing_while_the_budget_is_used_up_but_hears_reports() {
    let mut bench = start(false, 3);
    bench.up(session(1));
    for lsn in [100, 200, 300] {
        bench
            .send(1, vec![begin(lsn), task(lsn, 0, "a.x"), commit(lsn)])
            .await;
    }
    assert_eq!(bench.in_flight().await.len(), 3);
    for lsn in [400, 500] {
        bench
            .send(1, vec![begin(lsn), task(lsn, 0, "a.x"), commit(lsn)])
            .await;
    }
    assert!(!bench.takes().await);
    assert!(!bench.offer(1, vec![alive(600)]).await);
    assert_eq!(bench.in_flight().await.len(), 3);
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 105);
    assert_eq!(bench.in_flight().await, ["200/0", "300/0", "400/0"]);
    assert!(!bench.takes().await);
    bench.signals.send_replace(1);
    for id in ["200/0", "300/0", "400/0"] {
        bench.deliver(id).await;
    }
    assert_eq!(bench.confirmed(), 405);
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn another_generation_starts_over() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench
        .send(
            1,
            joined([
                transaction(1_000),
                transaction(2_000),
                vec![begin(3_000), task(3_000, 0, "a.x")],
            ]),
        )
        .await;
    bench.settle_down().await;
    bench.deliver("1000/0").await;
    assert_eq!(bench.confirmed(), 1_005);
    bench.line().send_replace(Line::Down);
    bench.settle_down().await;
    bench.up(Session {
        generation: 2,
        ..session(2)
    });
    bench.settle_down().await;
    let confirmed = *bench.confirmed.borrow();
    assert_eq!((confirmed.generation, confirmed.lsn.lsn()), (2, Lsn::ZERO));
    // The same LSNs mean other transactions.
    bench
        .send(
            2,
            joined([vec![alive(50)], transaction(100), transaction(2_000)]),
        )
        .await;
    assert_eq!(
        bench.in_flight().await,
        ["2000/0", "3000/0", "100/0", "2000/0"]
    );
    bench.deliver("2000/0").await;
    bench.deliver("3000/0").await;
    assert_eq!(bench.confirmed(), 50, "settled of another generation");
    bench.deliver("2000/0").await;
    assert_eq!(bench.confirmed(), 50);
    bench.deliver("100/0").await;
    assert_eq!(bench.confirmed(), 2_005);
    bench.signals.send_replace(1);
    bench.ends_clean().await;
}

#[tokio::test(start_paused = true)]
async fn one_key_goes_through_one_lane_and_none_through_all() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    let unkeyed = |ordinal| {
        let position = Position {
            commit_lsn: Lsn(100),
            ordinal,
        };
        let id = format!("100/{ordinal}");
        let fields = [(Field::Id, id.as_str()), (Field::Task, "b.x")];
        Item::Outbox(Event::Task(Task::from_fields(
            fields,
            position,
            Timestamp(0),
        )))
    };
    let keyed = (0..10).map(|ordinal| task(100, ordinal, "a.x"));
    bench
        .send(
            1,
            [begin(100)]
                .into_iter()
                .chain(keyed)
                .chain((10..20).map(unkeyed))
                .collect(),
        )
        .await;
    bench.settle_down().await;
    let lengths: Vec<usize> = bench.in_flight.iter().map(VecDeque::len).collect();
    assert!(
        matches!(lengths[..], [10, 0, 5, 5] | [0, 10, 5, 5]),
        "{lengths:?}"
    );
    for lane in &bench.in_flight {
        assert!(lane.iter().map(|p| p.task.position).is_sorted());
    }
}

/// One task that is tried again and again lets the others pass, but what is remembered of them is bounded.
#[tokio::test(start_paused = true)]
async fn takes_nothing_while_too_many_transactions_stand_behind_one_task() {
    let mut bench = start(false, 100);
    bench.up(session(1));
    bench.send(1, transaction(100)).await;
    let others =
        (1..TRANSACTIONS as u64).flat_map(|n| [begin(100 * n + 100), commit(100 * n + 100)]);
    bench.send(1, others.collect()).await;
    assert_eq!(bench.in_flight().await, ["100/0"]);
    bench.send(1, vec![alive(1 << 40)]).await;
    assert!(!bench.takes().await);
    bench.deliver("100/0").await;
    assert!(bench.takes().await);
    assert_eq!(bench.confirmed(), 1 << 40);
}

/// The intake has a thread of its own: a session's first batch may be seen before the word of the session.
#[tokio::test(start_paused = true)]
async fn a_batch_that_overtakes_the_word_of_its_session_is_not_lost() {
    let (mut relay, bench) = build(false, 100);
    let mut bench = bench(tokio::spawn(async { End::Clean }));
    bench.up(session(1));
    relay.batch(batch(&bench.memory, 1, transaction(100)));
    assert_eq!(bench.in_flight().await, ["100/0"]);
    // What comes late of a session that has ended is dropped: it comes again.
    bench.up(session(2));
    relay.batch(batch(&bench.memory, 2, transaction(300)));
    relay.batch(batch(&bench.memory, 1, transaction(200)));
    assert_eq!(bench.in_flight().await, ["100/0", "300/0"]);
}
