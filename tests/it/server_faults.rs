//! What happens to a Postgres server happens here, to a real one, with the daemon beside it: a busy neighbour, shutdowns,
//! crashes, killed walsenders. Nothing is lost, nothing comes twice while the daemon lives, and nobody waits for us.

use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, init};
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::tasks::{
    Load, assert_once_each, committed, printed, to_stdout, wait_for_printed, with_sink,
};
use crate::support::wait::{PATIENCE, eventually};

const NAME: &str = "aftercommit";
const ENQUEUE: &str = "insert into aftercommit.outbox (task, kwargs) values ('shop.tasks.a', '{}')";
const ENQUEUE_MANY: &str =
    "insert into aftercommit.outbox (task, kwargs) select 'shop.tasks.a', '{}' from";
const ALL_SENT: &str = "select bool_and(sent_lsn >= pg_current_wal_lsn()) from pg_stat_replication";
/// As long as a server may take to shut down with us beside it.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// As long as it may take until we see that no new connection is taken.
const NOTICED: Duration = Duration::from_secs(30);

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

async fn wait_for_stream(server: &Postgres) {
    eventually(PATIENCE, "the stream", || async {
        let streams = "select count(*) from pg_stat_replication where state = 'streaming'";
        (server.psql(streams) == "1").then_some(())
    })
    .await;
}

/// WAL that has nothing to do with the outbox: 100 MB.
fn be_busy(server: &Postgres) {
    server.psql(
        "create table if not exists noise (n int, filler text);
         insert into noise select n, repeat('x', 900) from generate_series(1, 100000) n",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_follows_a_busy_neighbour_but_never_passes_what_is_in_flight() {
    const CLOSE: i64 = 16 << 20;
    let server = server();
    let redis = Redis::start();
    let mut daemon = Daemon::start(&to_redis(&server, &redis));
    wait_for_stream(&server).await;

    // Not a row in the outbox.
    be_busy(&server);
    eventually(PATIENCE, "the slot to follow", || async {
        (lag(&server) < CLOSE).then_some(())
    })
    .await;

    // One task that cannot be delivered.
    redis.stop();
    server.psql(ENQUEUE);
    let commit = server.psql("select pg_current_wal_lsn()");
    be_busy(&server);
    // The walsender has sent all of it, and has heard from us twice since.
    eventually(PATIENCE, "the walsender at the end of the WAL", || async {
        (server.psql(ALL_SENT) == "t").then_some(())
    })
    .await;
    let end = server.psql("select clock_timestamp()");
    let heard = format!("select max(reply_time) > '{end}' from pg_stat_replication");
    eventually(PATIENCE, "a status update", || async {
        (server.psql(&heard) == "t").then_some(())
    })
    .await;
    let passed = format!("select confirmed_flush_lsn >= '{commit}' from pg_replication_slots");
    assert_eq!(server.psql(&passed), "f", "it is not delivered");
    assert!(lag(&server) > 4 * CLOSE);

    redis.cont();
    eventually(PATIENCE, "the slot to follow again", || async {
        (lag(&server) < CLOSE).then_some(())
    })
    .await;
    assert_once_each(pushed(&redis).await, &committed(&server));
    assert!(daemon.terminate().await.success());
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smart_shutdown_waits_for_us_no_longer_than_until_the_next_look() {
    let mut server = server();
    let mut daemon = Daemon::start(&to_stdout(&server.url(SUPERUSER), NAME, ""));
    server.psql(ENQUEUE);
    wait_for_printed(&daemon, 1).await;
    let took = server.stop_smart().await;
    assert!(took < NOTICED, "the shutdown took {took:?}");
    server.restart();
    server.psql(ENQUEUE);
    assert_once_each(wait_for_printed(&daemon, 2).await, &committed(&server));
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_server_loses_nothing_and_repeats_nothing() {
    let mut server = server();
    let mut daemon = Daemon::start(&to_stdout(&server.url(SUPERUSER), NAME, ""));
    let load = Load::start(&server.url(SUPERUSER), 4, Duration::from_millis(2));
    for round in 1..=3 {
        load.more(300).await;
        wait_for_printed(&daemon, 100 * round).await;
        server.kill9();
        server.restart();
    }
    load.more(100).await;
    let acknowledged = load.stop().await;
    let committed = committed(&server);
    assert!(acknowledged.iter().all(|id| committed.contains(id)));
    assert_once_each(wait_for_printed(&daemon, committed.len()).await, &committed);
    assert!(daemon.terminate().await.success());
    assert_eq!(printed(&daemon).len(), committed.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_walsenders_hold_nothing_up() {
    const KILLS: u32 = 20;
    let server = server();
    let mut daemon = Daemon::start(&to_stdout(&server.url(SUPERUSER), NAME, ""));
    let load = Load::start(&server.url(SUPERUSER), 4, Duration::from_millis(4));
    let start = Instant::now();
    let mut before = 0;
    for kill in 1..=KILLS {
        tokio::time::sleep_until((start + kill * Duration::from_millis(500)).into()).await;
        // Each session gets somewhere before it is killed, too.
        before = eventually(PATIENCE, "progress", || async {
            let now = printed(&daemon).len();
            (now > before).then_some(now)
        })
        .await;
        eventually(PATIENCE, "a walsender to kill", || async {
            let kill =
                "select pg_terminate_backend(active_pid) from pg_replication_slots where active";
            (server.psql(kill) == "t").then_some(())
        })
        .await;
    }
    load.stop().await;
    // Sessions that get somewhere are followed by the next at once.
    let records = daemon.records();
    let attempts = records.iter().filter_map(|r| r["attempt"].as_u64());
    assert!(attempts.max() <= Some(3), "{}", daemon.tail());
    let committed = committed(&server);
    assert_once_each(wait_for_printed(&daemon, committed.len()).await, &committed);
    assert!(daemon.terminate().await.success());
    assert_eq!(printed(&daemon).len(), committed.len());
}
