//! Rows from before a slot that was made again: they go before the stream, and the server hears of us all the time.

use super::*;

async fn begin() -> (mpsc::Sender<Result<Vec<Item>, Error>>, Bench) {
    let (sender, batches) = mpsc::channel(1);
    let bench = start_behind(Some(Rows::new(batches)), 1 << 20, None).await;
    let begin = Event::Begin {
        xid: 1,
        commit_lsn: Lsn(49),
        committed_at: crate::pg::Timestamp(0),
    };
    let sent = sender.send(Ok(vec![Item::Outbox(begin)])).await;
    sent.expect("the pump is there");
    (sender, bench)
}

#[tokio::test(start_paused = true)]
async fn rows_from_before_the_slot_go_before_the_stream() {
    let (sender, mut bench) = begin().await;
    bench.server.send(&transaction(100)).await;
    assert_eq!(bench.items(1).await, ["begin 49"]);
    for _ in 0..10 {
        let status = bench.server.status(ms(11_000)).await;
        assert_eq!(status.flushed, Lsn::ZERO);
    }
    assert!(bench.batches.is_empty(), "the stream waits");
    let end = Event::Commit { end_lsn: Lsn(50) };
    let sent = sender.send(Ok(vec![Item::Outbox(end)])).await;
    sent.expect("the pump is there");
    assert_eq!(
        bench.items(4).await,
        ["commit 50", "begin 100", "task row-100 0", "commit 105"]
    );
    bench.settle(GENERATION, 50);
    assert_eq!(bench.server.confirmation(50).await, 0);
}

#[tokio::test(start_paused = true)]
async fn rows_that_end_too_early_end_the_session() {
    let (sender, mut bench) = begin().await;
    bench.server.send(&transaction(100)).await;
    assert_eq!(bench.items(1).await, ["begin 49"]);
    drop(sender);
    assert_eq!(bench.error().await.policy(), Policy::Reconnect);
}
