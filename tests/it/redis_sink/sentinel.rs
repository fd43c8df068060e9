//! A primary with a replica and sentinels: failover under load.

use std::time::Duration;

use serde_json::json;

use super::{Lane, numbers, open, tasks};
use crate::support::redis_ha::Guarded;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_under_load_loses_nothing_and_nothing_comes_twice() {
    let mut guarded = Guarded::start();
    let settings = json!({"url": guarded.url(), "stream": "events", "replicas": 1});
    let mut lane = Lane::new(open(settings.clone()));
    let mut next = 0;
    for _ in 0..50 {
        lane.delivers(&tasks(next..next + 50)).await;
        next += 50;
    }
    let port = guarded.servers[0].port();
    // Under load: batches until one is not answered.
    let mut failed = tasks(next..next + 50);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            guarded.servers[0].kill9();
        });
    });
    while lane.hand(&failed).await.is_ok() {
        next += 50;
        failed = tasks(next..next + 50);
    }
    let primary = guarded.wait_for_failover(port);
    assert_eq!(primary, 1);
    // The old primary comes back as the replica: until then nobody else has what we add.
    guarded.servers[0].restart();
    let mut outages = 0;
    while let Err(cause) = lane.hand(&failed).await {
        outages += 1;
        assert!(outages < 600, "{cause}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    next += 50;
    // A successor, to which all of it comes again.
    let mut lane = Lane::new(open(settings));
    lane.delivers(&tasks(0..next + 50)).await;
    next += 50;
    let arrived = numbers(guarded.servers[primary].entry_ids("events"));
    assert_eq!(arrived, (0..next).collect::<Vec<_>>());
    let seen = format!("{:?}", lane.sink.probe().await);
    assert!(!seen.contains("Fault"), "{seen}");
}
