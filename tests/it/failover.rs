//! A standby takes over: with the slot, from Postgres 17 on, and without.

use std::time::Duration;

use crate::support::daemon::{Daemon, aftercommit, init};
use crate::support::exam::{CANARY_SECRET, Exam, IN_FLIGHT, assert_discreet, says};
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::tasks::to_stdout;
use crate::support::wait::{PATIENCE, eventually, until};

/// The first version that keeps copies of slots on standbys.
const WITH_SLOTS: u32 = 17;

fn newest_with_slots() -> Option<u32> {
    let newest = [18, WITH_SLOTS]
        .into_iter()
        .find(|version| Postgres::versions_available().contains(version));
    if newest.is_none() {
        Postgres::available_or_skip(18);
    }
    newest
}

fn exam(version: u32) -> Exam {
    Exam::start_on(
        Options {
            version,
            ..Options::default()
        },
        crate::support::redis::Options::default(),
    )
}

/// A daemon's configuration that knows both servers.
fn of_both(exam: &Exam, standby: &Postgres) -> String {
    let (one, two) = (exam.postgres.port(), standby.port());
    let url = format!("postgres://{SUPERUSER}:{CANARY_SECRET}@127.0.0.1:{one},127.0.0.1:{two}/app");
    exam.config_through(&url, &exam.redis.url(0))
}

/// Lets the daemon work, leaves it with work that it cannot finish, and replaces the primary with its standby, which has all
/// that was committed.
async fn fail_over(exam: &mut Exam, mut standby: Postgres) {
    let load = exam.load(3, Duration::from_millis(40));
    exam.wait_for_pushed(500).await;
    exam.redis.stop();
    // More comes in while nothing can be delivered.
    let sql = "select count(*) from exam.written";
    let before: usize = exam.postgres.psql(sql).parse().expect("a number");
    until(PATIENCE, "more rows", || {
        let now: usize = exam.postgres.psql(sql).parse().expect("a number");
        (now > before + 1_000).then_some(())
    });
    load.stop().await;
    let end = exam.postgres.psql("select pg_current_wal_lsn()");
    let level = format!("select pg_last_wal_replay_lsn() >= '{end}'");
    until(PATIENCE, "the standby to be level", || {
        (standby.psql(&level) == "t").then_some(())
    });
    std::mem::swap(&mut exam.postgres, &mut standby);
    standby.kill9();
    exam.postgres.promote();
    exam.redis.cont();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_with_the_slot_takes_over_without_loss() {
    let Some(version) = newest_with_slots() else {
        return;
    };
    let mut exam = exam(version);
    let standby = exam.postgres.create_standby("standby", false);
    let mut daemon = Daemon::start(&of_both(&exam, &standby));
    daemon
        .wait_for_log("the stream", |record| says(record, "streaming"))
        .await;
    exam.postgres.keep_slots_on(&standby);
    fail_over(&mut exam, standby).await;
    let receipt = exam.receipt().await;
    // What was settled after the standby's last copy of the slot.
    receipt.assert_sound("failover with the slot", receipt.delivered);
    assert_eq!(receipt.delivered - receipt.committed, receipt.duplicates);
    assert!(daemon.log().contains("another timeline"));
    assert!(daemon.terminate().await.success(), "{}", daemon.tail());
    assert_discreet(&daemon);
}

/// With consent, it is healed from the table, on every version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_without_the_slot_is_healed() {
    let mut exam = exam(15);
    let standby = exam.postgres.create_standby("standby", false);
    let config = of_both(&exam, &standby).replacen("[postgres]", "[postgres]\nheal = true", 1);
    let mut daemon = Daemon::start(&config);
    daemon
        .wait_for_log("the stream", |record| says(record, "streaming"))
        .await;
    fail_over(&mut exam, standby).await;
    let receipt = exam.receipt().await;
    // All that was settled is deleted on the standby, too: it was level. What was in flight came twice; and once more where
    // the broker's answer came too late.
    receipt.assert_sound("failover without the slot", 2 * IN_FLIGHT);
    eventually(PATIENCE, "the end of the healing", || {
        let healed = daemon.log().contains("the slot is healed");
        async move { healed.then_some(()) }
    })
    .await;
    assert!(daemon.terminate().await.success(), "{}", daemon.tail());
    assert_discreet(&daemon);
}

/// Without consent it stops, and never begins a new slot silently.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_without_the_slot_is_not_taken_for_the_same() {
    let mut exam = exam(15);
    let standby = exam.postgres.create_standby("standby", false);
    let mut daemon = Daemon::start(&of_both(&exam, &standby));
    daemon
        .wait_for_log("the stream", |record| says(record, "streaming"))
        .await;
    fail_over(&mut exam, standby).await;
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(3));
    let log = daemon.log();
    let checkpoint = exam.postgres.psql("select lsn from aftercommit.checkpoint");
    for words in [
        "slot \\\"aftercommit\\\" does not exist",
        "In doubt: everything that was committed below",
        &format!("Our checkpoint, {checkpoint}, is of timeline 1, and this is timeline 2"),
        "heal = true",
    ] {
        let plain = words.replace('\\', "");
        assert!(
            log.contains(words) || log.contains(&plain),
            "{words}: {log}"
        );
    }
    let slots = "select count(*) from pg_replication_slots";
    assert_eq!(exam.postgres.psql(slots), "0");
    assert_discreet(&daemon);
}

/// What standby and primary still need is told, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_needs_is_told_once() {
    let Some(version) = newest_with_slots() else {
        return;
    };
    let server = Postgres::start(Options {
        version,
        ..Options::default()
    });
    let standby = server.create_standby("standby", false);
    let gate = format!("[gate]\nreplicas = [\"{}\"]", standby.url(SUPERUSER));
    let config = to_stdout(&server.url(SUPERUSER), "aftercommit", &gate);
    init(&config);
    let failover = "select failover from pg_replication_slots where slot_name = 'aftercommit'";
    assert_eq!(server.psql(failover), "t", "init asks for it");
    server.psql("select pg_create_physical_replication_slot('standby')");
    let mut daemon = Daemon::start(&config);
    let told = |daemon: &Daemon, words: &str| {
        let records = daemon.records();
        records.iter().filter(|record| says(record, words)).count()
    };
    const PRIMARY: &str = "synchronized_standby_slots is empty";
    const STANDBY: &str = "does not keep a copy of slot";
    for words in [PRIMARY, STANDBY] {
        daemon
            .wait_for_log(words, |record| says(record, words))
            .await;
    }
    for connected in 2..=3 {
        server
            .psql("select pg_terminate_backend(active_pid) from pg_replication_slots where active");
        eventually(PATIENCE, "another session", || {
            let again = told(&daemon, "streaming") >= connected;
            async move { again.then_some(()) }
        })
        .await;
    }
    assert_eq!((told(&daemon, PRIMARY), told(&daemon, STANDBY)), (1, 1));
    assert!(daemon.terminate().await.success());

    server.keep_slots_on(&standby);
    let output = aftercommit(&["init"], &config);
    let words = String::from_utf8(output.stdout).expect("words");
    assert!(
        output.status.success() && !words.contains("warning"),
        "{words}"
    );
    server.psql("select pg_drop_replication_slot('aftercommit')");
    server.psql("select pg_create_logical_replication_slot('aftercommit', 'pgoutput')");
    let output = aftercommit(&["init"], &config);
    let words = String::from_utf8(output.stdout).expect("words");
    assert!(
        output.status.success() && words.contains("is not kept by standbys"),
        "{words}"
    );
}

/// A slot may have come along further than our last deletes, or than the hold table: what the outbox still has by that is
/// never sent, and so it is told, with the SQL for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_leaves_in_the_outbox_is_told() {
    const LEFT: &str = "rows are left in the outbox";
    let server = Postgres::start(Options::default());
    let outbox = "[outbox]\nretention = \"delete\"";
    let config = to_stdout(&server.url(SUPERUSER), "aftercommit", outbox);
    init(&config);
    let enqueue = || server.psql("select aftercommit.enqueue('a.task')");
    let rows = || server.psql("select count(*) from aftercommit.outbox");
    let sent = |daemon: &Daemon, count: usize| {
        until(PATIENCE, "the tasks", || {
            (daemon.stdout().len() >= count && rows() == "0").then_some(())
        });
    };
    let mut daemon = Daemon::start(&config);
    enqueue();
    sent(&daemon, 1);
    assert!(daemon.terminate().await.success());

    (0..3).for_each(|_| drop(enqueue()));
    server.psql("select pg_replication_slot_advance('aftercommit', pg_current_wal_lsn())");
    server.psql("update aftercommit.checkpoint set timeline = 7");
    let mut daemon = Daemon::start(&config);
    let told = daemon.wait_for_log(LEFT, |record| says(record, LEFT)).await;
    assert_eq!(told["rows"], 3, "{told}");
    assert!(daemon.log().contains("tasks that were held among it"));
    assert_eq!((rows().as_str(), daemon.stdout().len()), ("3", 0));
    // What comes is not among them.
    enqueue();
    until(PATIENCE, "the new task", || {
        (daemon.stdout().len() == 1 && rows() == "3").then_some(())
    });
    let words = told["message"].as_str().expect("words");
    let (_, sql) = words.split_once("(again): ").expect("the SQL");
    let (sql, _) = sql.split_once(". To drop").expect("its end");
    server.psql(sql);
    sent(&daemon, 4);
    assert!(daemon.terminate().await.success());

    // It is told once.
    let mut daemon = Daemon::start(&config);
    enqueue();
    sent(&daemon, 1);
    assert!(daemon.terminate().await.success());
    assert!(!daemon.log().contains("goes on from another one"));
}
