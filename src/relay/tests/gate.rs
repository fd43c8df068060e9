//! What waits at the gate, and what lets it pass.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_transaction_waits_at_the_gate_and_all_behind_it_too() {
    let mut bench = start(true, 100);
    bench.up(session(1));
    let (walsender, wants, news) = bench.gate().await;
    assert_eq!(walsender, 101);
    bench.send(1, transaction(100)).await;
    bench
        .send(
            1,
            joined([
                transaction(200),
                vec![alive(250)],
                transaction(300),
                vec![alive(400), alive(500)],
            ]),
        )
        .await;
    assert!(bench.in_flight().await.is_empty());
    assert_eq!(wanted(&wants), Some(100));
    assert_eq!(
        bench.confirmed(),
        0,
        "a keepalive behind a waiting transaction"
    );

    // A clearance that is too old lets nothing pass, and the question stays.
    news.send(sees(100)).await.expect("heard");
    assert!(bench.in_flight().await.is_empty());
    assert_eq!(wanted(&wants), Some(100));

    news.send(sees(201)).await.expect("heard");
    assert_eq!(bench.in_flight().await, ["100/0", "200/0"]);
    assert_eq!(wanted(&wants), Some(300));
    bench.deliver("100/0").await;
    bench.deliver("200/0").await;
    assert_eq!(bench.confirmed(), 250);
    news.send(sees(400)).await.expect("heard");
    assert_eq!(bench.in_flight().await, ["300/0"]);
    assert_eq!(bench.confirmed(), 250);
    bench.deliver("300/0").await;
    assert_eq!(bench.confirmed(), 500);
    // What is known to be visible does not wait; and again what is not.
    bench.send(1, transaction(350)).await;
    bench.send(1, transaction(450)).await;
    assert_eq!(bench.in_flight().await, ["350/0"]);
    assert_eq!(wanted(&wants), Some(450));
}

#[tokio::test(start_paused = true)]
async fn what_the_gate_knew_does_not_count_for_the_next_session() {
    let mut bench = start(true, 100);
    bench.up(session(1));
    let (_, _, news) = bench.gate().await;
    bench.send(1, transaction(100)).await;
    news.send(sees(1_000)).await.expect("heard");
    assert_eq!(bench.in_flight().await, ["100/0"]);
    bench.send(1, transaction(200)).await;
    assert_eq!(bench.in_flight().await, ["100/0", "200/0"]);

    // The session is lost while news is on its way, and another server answers in its place.
    let late = news.send(sees(2_000));
    bench.line().send_replace(Line::Down);
    let _ = late.await;
    bench.settle_down().await;
    assert!(
        news.send(News::ServerLeaving).await.is_err(),
        "nobody listens to the old watch"
    );
    bench.up(Session {
        generation: 2,
        ..session(2)
    });
    let (_, wants, fresh) = bench.gate().await;
    assert!(
        news.send(sees(2_000)).await.is_err(),
        "nobody listens to the old watch"
    );
    bench.send(2, transaction(300)).await;
    assert_eq!(bench.in_flight().await.len(), 2, "nothing more passes");
    assert_eq!(wanted(&wants), Some(300));
    fresh.send(sees(301)).await.expect("heard");
    assert_eq!(bench.in_flight().await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_leaves_is_left() {
    let mut bench = start(true, 100);
    bench.up(session(1));
    let (_, _, news) = bench.gate().await;
    news.send(News::ServerLeaving).await.expect("heard");
    bench.settle_down().await;
    assert_eq!(*bench.orders.borrow(), Order::Leave);
}

/// What holds the whole budget stands at the gate of a session that is gone. Without the word of it the gate would
/// never be cleared, and the budget never free.
#[tokio::test(start_paused = true)]
async fn a_lost_session_is_heard_of_while_the_budget_is_used_up() {
    let mut bench = start(true, 2);
    bench.up(session(1));
    bench.gate().await;
    for lsn in [100, 200, 300, 400] {
        bench.send(1, transaction(lsn)).await;
    }
    assert!(!bench.takes().await, "the budget is used up");
    bench.line().send_replace(Line::Down);
    bench.up(session(2));
    let (walsender, wants, news) = bench.gate().await;
    assert_eq!(walsender, 102);
    assert!(bench.takes().await);
    // What was left over from the first session is dropped, and comes again.
    assert!(bench.in_flight().await.is_empty());
    for lsn in [100, 200] {
        bench.send(2, transaction(lsn)).await;
    }
    bench.settle_down().await;
    assert_eq!(wanted(&wants), Some(100));
    news.send(sees(1_000)).await.expect("heard");
    assert_eq!(bench.in_flight().await, ["100/0", "200/0"]);
}

/// Empty transactions and keepalives take no task's place, but memory.
#[tokio::test(start_paused = true)]
async fn the_gate_holds_a_bounded_number_of_items() {
    let mut bench = start(true, 10);
    bench.up(session(1));
    let (_, _, news) = bench.gate().await;
    let mut lsn = 100;
    while bench
        .offer(
            1,
            vec![begin(lsn), commit(lsn), alive(lsn + 6), alive(lsn + 7)],
        )
        .await
    {
        lsn += 10;
        assert!(lsn < 1_000, "it takes everything");
    }
    news.send(sees(10_000)).await.expect("heard");
    assert!(bench.takes().await);
    assert_eq!(bench.confirmed(), lsn - 3);
}
