//! What the primary does to a daemon that is at work: it shuts down, or dies, while nothing can be delivered.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::daemon::{Daemon, init};
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, eventually, until};

/// A fast shutdown is never held up by us for longer.
const SHUTDOWN: Duration = Duration::from_secs(5);

fn config(postgres: &Postgres, sink: &str, in_flight: u32) -> String {
    let url = postgres.url(SUPERUSER);
    format!(
        "[postgres]\nurl = \"{url}\"\n{sink}\n[[route]]\ntask = \"*\"\nsink = \"it\"\n[limits]\nin_flight = {in_flight}\n[outbox]\nretention = \"keep\"\n"
    )
}

/// The ids that a `stdout` sink has written, in order.
fn ids(daemon: &Daemon) -> Vec<String> {
    let id = |line: &String| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["id"].as_str().expect("an id").to_owned()
    };
    daemon.stdout().iter().map(id).collect()
}

/// A walsender that has sent all and is confirmed ends the stream with CommandComplete, and no CopyDone.
#[tokio::test]
async fn a_restart_of_an_idle_primary_is_a_lost_connection_and_no_more() {
    let mut postgres = Postgres::start(Options::default());
    let config = config(&postgres, "[sink.stdout.it]", 4096);
    init(&config);
    let mut daemon = Daemon::start(&config);
    let mut sent = Vec::new();
    for round in 0..3 {
        sent.push(postgres.psql("select aftercommit.enqueue('a.task')"));
        until(PATIENCE, "the task", || {
            (ids(&daemon) == sent).then_some(())
        });
        let took = postgres.stop_fast().await;
        assert!(took < SHUTDOWN, "{took:?} in round {round}");
        postgres.restart();
        assert!(daemon.running(), "{}", daemon.tail());
    }
    assert!(daemon.terminate().await.success());
    assert_eq!(ids(&daemon), sent);
}

/// The broker is away and the budget used up, so that the stream is not read: what the walsender sends before it ends
/// goes nowhere, and its keepalives are not heard.
#[tokio::test]
async fn a_fast_shutdown_is_not_held_up_while_nothing_can_be_delivered() {
    let mut postgres = Postgres::start(Options::default());
    let mut redis = Redis::start_with(crate::support::redis::Options {
        durable: true,
        ..Default::default()
    });
    let sink = format!("[sink.celery.it]\nbroker_url = \"{}\"", redis.url(0));
    let config = config(&postgres, &sink, 10);
    init(&config);
    let mut daemon = Daemon::start(&config);
    let first = postgres.psql("select aftercommit.enqueue('a.task')");
    eventually(PATIENCE, "the first task", || async {
        (redis.lrange("celery").await.len() == 1).then_some(())
    })
    .await;

    redis.kill9();
    // Far more than the buffers of a socket hold.
    postgres.psql(
        "do $$ begin for i in 1..3000 loop
             perform aftercommit.enqueue('a.task', kwargs => json_build_object('filler', repeat('x', 10000)));
             commit;
         end loop; end $$",
    );
    daemon
        .wait_for_log("the outage", |record| {
            record.to_string().contains("the sink is away")
        })
        .await;
    let stuck = "select wait_event = 'WalSenderWriteData' from pg_stat_activity where backend_type = 'walsender'";
    until(PATIENCE, "a stream that stands", || {
        (postgres.psql(stuck) == "t").then_some(())
    });

    let took = postgres.stop_fast().await;
    assert!(took < SHUTDOWN, "{took:?}");
    postgres.restart();
    redis.restart();
    let sent: BTreeSet<String> = postgres
        .psql("select id from aftercommit.outbox")
        .lines()
        .map(str::to_owned)
        .collect();
    assert!(sent.len() == 3001 && sent.contains(&first));
    let messages = eventually(PATIENCE, "all messages", || async {
        let messages = redis.lrange("celery").await;
        (messages.len() >= sent.len()).then_some(messages)
    })
    .await;
    assert!(daemon.terminate().await.success());
    assert_eq!(redis.lrange("celery").await.len(), messages.len());
    let got: Vec<String> = messages
        .iter()
        .map(|message| {
            let message: Value = serde_json::from_slice(message).expect("JSON");
            message["headers"]["id"].as_str().expect("an id").to_owned()
        })
        .collect();
    assert_eq!(got.len(), sent.len(), "a task was sent twice");
    assert_eq!(BTreeSet::from_iter(got), sent);
}

/// The broker hangs, what waits cannot go to the hold, and so nothing is read: then only what we write shows that the connection
/// is gone. Without a walsender nothing can be settled, so it must not take long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_unread_is_replaced_soon() {
    let postgres = Postgres::start(Options::default());
    let redis = Redis::start();
    let proxy = Proxy::start(postgres.port());
    let sink = format!("[sink.celery.it]\nbroker_url = \"{}\"", redis.url(0));
    let config = config(&postgres, &sink, 10).replace(
        &postgres.url(SUPERUSER),
        &postgres.url_through(proxy.port(), SUPERUSER),
    );
    init(&config);
    let mut daemon = Daemon::start(&config);
    postgres.psql("select aftercommit.enqueue('a.task')");
    eventually(PATIENCE, "the first task", || async {
        (redis.lrange("celery").await.len() == 1).then_some(())
    })
    .await;

    redis.stop();
    let locker = postgres.client().await;
    let lock = "begin; lock table aftercommit.hold in exclusive mode";
    locker.batch_execute(lock).await.expect("a lock");
    const ROWS: usize = 2_000;
    let rows = format!(
        "insert into aftercommit.outbox (task, kwargs)
         select 'a.task', json_build_object('padding', repeat('x', 20000)) from generate_series(1, {ROWS})"
    );
    postgres.psql(&rows);
    // What the daemon does not take is with the proxy, or still with the walsender.
    let sent = "select r.sent_lsn >= pg_current_wal_lsn() or a.wait_event = 'WalSenderWriteData'
        from pg_stat_replication r join pg_stat_activity a using (pid)";
    eventually(PATIENCE, "a stream that is not read", || async {
        (postgres.psql(sent) == "t").then_some(())
    })
    .await;
    let reader = || postgres.psql("select active_pid from pg_replication_slots where active");
    let before = reader();
    proxy.reset();
    let gone = Instant::now();
    eventually(PATIENCE, "another walsender", || async {
        let now = reader();
        (!now.is_empty() && now != before).then_some(())
    })
    .await;
    let took = gone.elapsed();
    assert!(took < SHUTDOWN, "{took:?}");

    locker.batch_execute("rollback").await.expect("no lock");
    redis.cont();
    eventually(PATIENCE, "all tasks", || async {
        (redis.lrange("celery").await.len() == ROWS + 1).then_some(())
    })
    .await;
    assert!(daemon.terminate().await.success(), "{}", daemon.tail());
}

/// Commits that wait for a standby which is away fill the gate, and with it the budget; then the primary dies. What
/// stood at the gate is visible after recovery, and is sent once.
#[tokio::test]
async fn a_full_gate_survives_the_death_of_the_primary() {
    let mut postgres = Postgres::start(Options::default());
    let config = config(&postgres, "[sink.stdout.it]", 2);
    init(&config);
    let mut daemon = Daemon::start(&config);
    let seen = postgres.psql("select aftercommit.enqueue('a.task')");
    until(PATIENCE, "the first task", || {
        (ids(&daemon) == [seen.as_str()]).then_some(())
    });

    postgres.psql("alter system set synchronous_standby_names = 'nobody'");
    postgres.psql("select pg_reload_conf()");
    let commits = 30;
    let mut waiting = Vec::new();
    for _ in 0..commits {
        let client = postgres.client().await;
        waiting.push(tokio::spawn(async move {
            client
                .execute("select aftercommit.enqueue('a.task')", &[])
                .await
        }));
    }
    let count = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    eventually(PATIENCE, "commits that wait", || async {
        (postgres.psql(count) == commits.to_string()).then_some(())
    })
    .await;
    daemon
        .wait_for_log("a stream at rest", |_| {
            let sent = "select sent_lsn = pg_current_wal_lsn() from pg_stat_replication where application_name = 'aftercommit'";
            postgres.psql(sent) == "t"
        })
        .await;
    assert_eq!(ids(&daemon).len(), 1, "dispatched before it was visible");

    // Takes effect at the next start.
    postgres.psql("alter system reset synchronous_standby_names");
    postgres.kill9();
    postgres.restart();
    until(PATIENCE, "all tasks", || {
        (ids(&daemon).len() > commits).then_some(())
    });
    assert!(daemon.terminate().await.success());
    let sent: BTreeSet<String> = postgres
        .psql("select id from aftercommit.outbox")
        .lines()
        .map(str::to_owned)
        .collect();
    let got = ids(&daemon);
    assert_eq!(got.len(), commits + 1, "a task was sent twice");
    assert_eq!(BTreeSet::from_iter(got), sent);
}
