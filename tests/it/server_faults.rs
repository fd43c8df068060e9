//! What happens to a Postgres server happens here, to a real one, with the daemon beside it. Nothing is lost, nothing comes
//! twice while the daemon lives, and nobody waits for us. The exam has rows for crashes, shutdowns under load, killed
//! walsenders and a busy neighbour.

use std::time::Duration;

use crate::support::daemon::{Daemon, init};
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::tasks::{assert_once_each, committed, to_stdout, with_sink};
use crate::support::wait::{PATIENCE, eventually};

const NAME: &str = "aftercommit";
const ENQUEUE: &str = "insert into aftercommit.outbox (task, kwargs) values ('shop.tasks.a', '{}')";
const ENQUEUE_MANY: &str =
    "insert into aftercommit.outbox (task, kwargs) select 'shop.tasks.a', '{}' from";
const ALL_SENT: &str = "select bool_and(sent_lsn >= pg_current_wal_lsn()) from pg_stat_replication";
/// As long as a server may take to shut down with us beside it.
const SHUTDOWN: Duration = Duration::from_secs(5);

fn server() -> Postgres {
    let server = Postgres::start(Options::default());
    init(&to_stdout(&server.url(SUPERUSER), NAME, ""));
    server
}

/// Tasks go to Redis. A batch that it does not answer is not given up before the test is over: no task is sent twice.
fn to_redis(server: &Postgres, redis: &Redis) -> String {
    let sink = format!(
        "[sink.celery.out]\nbroker_url = \"{}\"\ntimeout = \"5m\"",
        redis.url(0)
    );
    with_sink(&server.url(SUPERUSER), NAME, &sink, "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_another_has_moved_is_read_from_where_it_stands() {
    let server = server();
    let proxy = Proxy::start(server.port());
    let redis = Redis::start();
    // The budget is used up in the middle of a transaction.
    let sink = format!(
        "[sink.celery.out]\nbroker_url = \"{}\"\ntimeout = \"500ms\"",
        redis.url(0)
    );
    let url = server.url_through(proxy.port(), SUPERUSER);
    let limits = "[limits]\nin_flight = 10";
    let mut daemon = Daemon::start(&with_sink(&url, NAME, &sink, limits));
    daemon
        .wait_for_log("streaming", |record| record["message"] == "streaming")
        .await;
    redis.stop();
    server.psql(&format!("{ENQUEUE_MANY} generate_series(1, 40000)"));
    daemon
        .wait_for_log("word of the outage", |record| {
            let message = record["message"].as_str().unwrap_or_default();
            message.contains("the sink is away")
        })
        .await;
    // Another daemon takes the slot, and what it has taken is not sent to us again.
    proxy.refuse();
    let advance = "select pg_replication_slot_advance('aftercommit', pg_current_wal_lsn())";
    eventually(PATIENCE, "the slot to be free", || async {
        let active = "select active from pg_replication_slots";
        (server.psql(active) == "f").then_some(())
    })
    .await;
    server.psql(advance);
    proxy.pass();
    redis.cont();
    daemon
        .wait_for_log("word of the move", |record| {
            let message = record["message"].as_str().unwrap_or_default();
            message.contains("another daemon has read on")
        })
        .await;
    let new = server.psql(&format!("{ENQUEUE} returning id"));
    eventually(PATIENCE, "the new task", || async {
        pushed(&redis).await.contains(&new).then_some(())
    })
    .await;
    assert!(daemon.terminate().await.success());
}

/// Ids of the messages in Redis.
async fn pushed(redis: &Redis) -> Vec<String> {
    let messages = redis.lrange("celery").await;
    let ids = messages.iter().map(|message| {
        let message: serde_json::Value = serde_json::from_slice(message).expect("JSON");
        let id = message["headers"]["id"].as_str().expect("an id");
        id.to_owned()
    });
    ids.collect()
}

async fn wait_for_pushed(redis: &Redis, count: usize) -> Vec<String> {
    eventually(PATIENCE, "the tasks in Redis", || async {
        let ids = pushed(redis).await;
        (ids.len() >= count).then_some(ids)
    })
    .await
}

/// A number that the server computes.
fn number(server: &Postgres, sql: &str) -> i64 {
    server.psql(sql).parse().expect("a number")
}

/// How far the slot is behind the end of the WAL, in bytes.
fn lag(server: &Postgres) -> i64 {
    number(
        server,
        "select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::int8 from pg_replication_slots",
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_shutdown_does_not_wait_for_work_in_flight() {
    const TASKS: usize = 20;
    let mut server = server();
    let redis = Redis::start();
    let mut daemon = Daemon::start(&to_redis(&server, &redis));
    server.psql(ENQUEUE);
    wait_for_pushed(&redis, 1).await;
    redis.stop();
    for _ in 1..TASKS {
        server.psql(ENQUEUE);
    }
    eventually(PATIENCE, "all to be sent", || async {
        (server.psql(ALL_SENT) == "t").then_some(())
    })
    .await;

    let took = server.stop_fast().await;
    assert!(took < SHUTDOWN, "the shutdown took {took:?}");
    assert!(daemon.running());
    server.restart();
    redis.cont();
    let ids = wait_for_pushed(&redis, TASKS).await;
    assert_once_each(ids, &committed(&server));
    eventually(PATIENCE, "the slot to follow", || async {
        (lag(&server) < 1 << 20).then_some(())
    })
    .await;
    assert!(daemon.terminate().await.success());
    assert_eq!(pushed(&redis).await.len(), TASKS, "tasks came twice");
}
