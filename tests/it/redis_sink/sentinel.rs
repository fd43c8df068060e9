//! A primary with a replica and sentinels: failover under load.

use std::time::Duration;

use serde_json::json;

use aftercommit::outbox::Task;
use aftercommit::sink::{Settings as _, Sink, celery};

use super::{Lane, numbers, open, tasks};
use crate::support::redis_ha::{Guarded, SERVICE, Secrets};
use crate::support::wait::{PATIENCE, until};

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
    hand_over(&mut lane, &failed).await;
    next += 50;
    // A successor, to which all of it comes again. The old primary may have to begin anew as a replica once more meanwhile.
    let mut lane = Lane::new(open(settings));
    hand_over(&mut lane, &tasks(0..next + 50)).await;
    next += 50;
    let arrived = numbers(guarded.servers[primary].entry_ids("events"));
    assert_eq!(arrived, (0..next).collect::<Vec<_>>());
    let seen = format!("{:?}", lane.sink.probe().await);
    assert!(!seen.contains("Fault"), "{seen}");
}

/// Hands a batch over until it is taken.
pub(super) async fn hand_over(lane: &mut Lane, batch: &[Task]) {
    let mut outages = 0;
    while let Err(cause) = lane.hand(batch).await {
        outages += 1;
        assert!(outages < 600, "{cause}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(super) const SECRETS: Secrets = Secrets {
    server: "server-pw",
    sentinel: "sentinel-pw",
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_servers_may_ask_for_passwords() {
    let guarded = Guarded::start_with(Some(SECRETS), None);
    let mut lane = Lane::new(open(json!({"url": guarded.url(), "list": "jobs"})));
    lane.delivers(&tasks(0..10)).await;
    assert_eq!(guarded.servers[0].messages(0, "jobs").len(), 10);
    // One that is wrong is told of, and not shown.
    let wrong = guarded.url().replace(SECRETS.sentinel, "wrong-pw");
    let mut lane = Lane::new(open(json!({"url": wrong, "list": "jobs"})));
    let cause = lane.hand(&tasks(10..11)).await.expect_err("no way in");
    assert!(cause.contains("refuses sentinel_password"), "{cause}");
    assert!(!cause.contains("-pw"), "{cause}");
}

fn celery_at(guarded: &Guarded) -> Box<dyn Sink> {
    let settings = json!({
        "broker_url": guarded.celery_url(), "master_name": SERVICE, "sentinel_password": SECRETS.sentinel, "timeout": "2s",
    });
    let config: celery::Config = serde_json::from_value(settings).expect("settings");
    config.open().expect("a sink")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn celery_follows_its_sentinels_and_nothing_comes_twice() {
    let mut guarded = Guarded::start_with(Some(SECRETS), None);
    let mut lane = Lane::new(celery_at(&guarded));
    lane.delivers(&tasks(0..50)).await;
    let seen = format!("{:?}", lane.sink.probe().await);
    assert!(
        seen.contains("a failover loses") && !seen.contains("Fault"),
        "{seen}"
    );
    // The replica has it all: what it has not got is lost at a failover.
    until(PATIENCE, "the replica", || {
        (guarded.servers[1].ids(2, "celery").len() == 50).then_some(())
    });
    let port = guarded.servers[0].port();
    guarded.servers[0].kill9();
    assert!(lane.hand(&tasks(50..60)).await.is_err());
    assert_eq!(guarded.wait_for_failover(port), 1);
    let mut outages = 0;
    while let Err(cause) = lane.hand(&tasks(50..60)).await {
        outages += 1;
        assert!(outages < 600 && !cause.contains("-pw"), "{cause}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A successor, to which all of it comes again.
    let mut lane = Lane::new(celery_at(&guarded));
    lane.delivers(&tasks(0..70)).await;
    let arrived = numbers(guarded.servers[1].ids(2, "celery"));
    assert_eq!(arrived, (0..70).collect::<Vec<_>>());
}
