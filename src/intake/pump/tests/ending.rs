//! How a session ends in order, and how soon.

use super::*;

#[tokio::test(start_paused = true)]
async fn finish_confirms_says_goodbye_and_ends() {
    let mut bench = start().await;
    bench.server.send(&transaction(100)).await;
    bench.items(3).await;
    bench.settle(GENERATION, 105);
    let ordered = Instant::now();
    bench.orders.send_replace(Order::Finish);
    assert_eq!(bench.server.farewell().await.flushed, Lsn(105));
    assert_eq!(ordered.elapsed(), ms(0), "it waits for nothing");
    // The server takes its time to close; what it still sends is nobody's.
    bench.server.send(&transaction(200)).await;
    tokio::time::sleep(ms(500)).await;
    assert!(!bench.pump.is_finished());
    bench.server.half_close().await;
    let batches = &mut bench.batches;
    assert!(
        batches.recv().await.is_none(),
        "nothing more is handed over"
    );
    assert!(matches!(bench.ended().await, Ended::Finished));
}

#[tokio::test(start_paused = true)]
async fn an_order_is_carried_out_within_two_seconds_whatever_the_server_does() {
    for order in [Order::Leave, Order::Finish] {
        for kind in ["idle", "full", "deaf"] {
            let mut bench = match kind {
                "deaf" => start_with(7, None).await,
                _ => start_with(4096, None).await,
            };
            match kind {
                "full" => drop(bench.server.flood(&many()).await.len()),
                // The server does not read; an update gets stuck halfway.
                "deaf" => tokio::time::sleep(ms(12_000)).await,
                _ => {}
            }
            let ordered = Instant::now();
            bench.orders.send_replace(order);
            let ended = timeout(ms(60_000), &mut bench.pump).await;
            let took = ordered.elapsed();
            assert!(took <= ms(2_000) + GRAIN, "{order:?}, {kind}: {took:?}");
            match (ended, order) {
                (Ok(Ok(Ended::Left)), Order::Leave) | (Ok(Ok(Ended::Finished)), Order::Finish) => {}
                _ => panic!("{order:?}, {kind}"),
            }
        }
    }
}

/// A server in fast shutdown sends its keepalives behind the data: who does not read does not hear them.
#[tokio::test(start_paused = true)]
async fn leaves_on_the_word_of_the_watch_also_while_the_relay_takes_nothing() {
    let mut bench = start_with(4096, None).await;
    bench.server.flood(&many()).await;
    bench.settle(GENERATION, 105);
    let heard = Instant::now();
    bench
        .watch
        .send(Seen::Leaving)
        .await
        .expect("the pump is there");
    assert_eq!(bench.server.farewell().await.flushed, Lsn(105));
    assert!(heard.elapsed() <= ms(2_000));
    drop(bench.server);
    let ended = timeout(ms(10), bench.pump).await.expect("at once");
    assert!(matches!(ended, Ok(Ended::Left)));
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_demands_is_answered_calmly_and_ends_the_session() {
    let mut bench = start().await;
    bench.server.send(&transaction(100)).await;
    bench.items(3).await;
    let stormy = Instant::now();
    let storm: Vec<u8> = (0..100).flat_map(|_| keepalive(150, true)).collect();
    let mut heard = Vec::new();
    let mut settled = false;
    // A walsender that waits for us sends without end.
    for _ in 0..100 {
        bench.server.send(&storm).await;
        while let Some(message) = bench.server.hear(ms(1)).await {
            heard.push((Instant::now(), message));
        }
        tokio::time::sleep(ms(9)).await;
        while bench.batches.try_recv().is_ok() {}
        if !settled && stormy.elapsed() > ms(500) {
            // What was in flight is delivered, and then nothing keeps the server from going.
            settled = true;
            bench.settle(GENERATION, 105);
        }
    }
    let last = bench.server.farewell().await;
    assert_eq!(
        last.flushed,
        Lsn(105),
        "what is settled, and not the keepalive's"
    );
    assert!(stormy.elapsed() <= ms(2_000), "{:?}", stormy.elapsed());
    let times: Vec<Instant> = heard.iter().map(|(at, _)| *at).collect();
    // As heard through a grain of a few milliseconds.
    assert!(times.windows(4).all(|t| t[3] - t[0] >= ms(50)), "{times:?}");
    assert!((20..=110).contains(&heard.len()), "{}", heard.len());
    assert!(matches!(bench.ended().await, Ended::Left));
}

#[tokio::test(start_paused = true)]
async fn a_demand_after_each_answer_ends_the_session_too() {
    let mut bench = start().await;
    bench.server.send(&transaction(100)).await;
    bench.items(3).await;
    // The task stays in flight: without an end of ours the server would ask for ever.
    let began = Instant::now();
    while began.elapsed() < ms(60_000) {
        bench.server.send(&keepalive(150, true)).await;
        while bench.batches.try_recv().is_ok() {}
        match bench.server.hear(ms(1_000)).await {
            Some(Heard::Status(status)) => assert!(status.flushed <= Lsn(100)),
            Some(Heard::CopyDone) => break,
            other => panic!("{other:?} instead of an answer"),
        }
    }
    assert!(began.elapsed() <= ms(4_000), "{:?}", began.elapsed());
    assert!(matches!(bench.ended().await, Ended::Left));
}

#[tokio::test(start_paused = true)]
async fn a_drift_ends_the_session() {
    let bench = start().await;
    let error = Error::judged(Place::Preflight, Policy::Stop(Stop::SlotLost), "gone");
    bench
        .watch
        .send(Seen::Drift(error))
        .await
        .expect("the pump is there");
    assert_eq!(bench.error().await.policy(), Policy::Stop(Stop::SlotLost));
}

#[tokio::test(start_paused = true)]
async fn ends_when_the_relay_is_gone() {
    let mut bench = start().await;
    bench.batches.close();
    bench.server.send(&transaction(100)).await;
    bench.server.farewell().await;
    assert!(matches!(bench.ended().await, Ended::Finished));
}
