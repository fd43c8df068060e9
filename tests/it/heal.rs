//! A lost slot: what is told of it, and how it is healed from the table. Row 17 of the exam loses slots under load.

use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::{Daemon, aftercommit, init};
use crate::support::exam::{Exam, IN_FLIGHT, assert_discreet, says};
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::tasks::{id, printed, to_stdout, wait_for_printed};
use crate::support::wait::{PATIENCE, eventually};

/// The same configuration, with consent.
fn with_heal(config: &str) -> String {
    config.replacen("[postgres]\n", "[postgres]\nheal = true\n", 1)
}

/// The default: settled rows are deleted.
const DELETES: &str = "[outbox]";
const HEALING: &str = "making the slot again";
const HEALED: &str = "the slot is healed";

/// Takes the slot away, also from a walsender that reads it.
const DROP: &str = "do $$ begin
    for attempt in 1..1000 loop
      perform pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'aftercommit' and active;
      begin
        perform pg_drop_replication_slot('aftercommit');
        return;
      exception when object_in_use then perform pg_sleep(0.005);
      end;
    end loop;
    raise 'the slot is still in use';
  end $$";

fn count(daemon: &Daemon, words: &str) -> usize {
    let records = daemon.records();
    records.iter().filter(|record| says(record, words)).count()
}

/// Waits until the daemon has noted that all is settled which was in the table.
async fn wait_until_healed(daemon: &mut Daemon, server: &Postgres, times: usize) {
    eventually(PATIENCE, "the end of the healing", || {
        let done = count(daemon, HEALED) >= times;
        async move { done.then_some(()) }
    })
    .await;
    let mark = "select healing is null from aftercommit.checkpoint where slot = 'aftercommit'";
    assert_eq!(server.psql(mark), "t");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_the_middle_of_a_healing_loses_nothing() {
    const KILLS: usize = 4;
    let mut exam = Exam::start();
    let config = with_heal(&exam.config());
    exam.postgres.psql(DROP);
    let load = exam.load(3, Duration::ZERO);
    let rows = || exam.postgres.psql("select count(*) from exam.written");
    eventually(PATIENCE, "rows", || {
        let enough = rows().parse::<usize>().expect("a number") >= 12_000;
        async move { enough.then_some(()) }
    })
    .await;
    load.stop().await;
    let mut random = exam.random(7);
    let mut most = 0;
    for round in 0..KILLS {
        let before = exam.pushed().await;
        let mut daemon = Daemon::start(&config);
        // Some at work, and some as soon as the slot is there, or before.
        match round % 2 {
            0 => exam.wait_for_pushed(before + random.usize(1..1500)).await,
            _ => {
                daemon
                    .wait_for_log("the healing", |record| says(record, HEALING))
                    .await;
                tokio::time::sleep(Duration::from_millis(random.u64(..60))).await;
            }
        }
        daemon.kill9();
        most += IN_FLIGHT + exam.pushed().await - before;
        let mark = "select healing is not null from aftercommit.checkpoint";
        assert_eq!(exam.postgres.psql(mark), "t", "round {round}");
        assert_discreet(&daemon);
        exam.wait_until_idle().await;
    }
    let mut daemon = Daemon::start(&config);
    let log = daemon
        .wait_for_log("the healing", |record| says(record, HEALING))
        .await;
    assert!(
        log["cause"]
            .as_str()
            .expect("a cause")
            .contains("not all settled")
    );
    // The daemon lives, and its connections break.
    for connection in ["aftercommit", "aftercommit heal"] {
        let before = exam.pushed().await;
        let begun = count(&daemon, HEALING);
        exam.postgres.psql(&format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = '{connection}'"
        ));
        eventually(PATIENCE, "another healing", || {
            let again = count(&daemon, HEALING) > begun || count(&daemon, HEALED) > 0;
            async move { again.then_some(()) }
        })
        .await;
        most += IN_FLIGHT + exam.pushed().await - before;
    }
    wait_until_healed(&mut daemon, &exam.postgres, 1).await;
    let receipt = exam.receipt().await;
    receipt.assert_sound("kill -9 while healing", most);
    // Once it is healed, a start is a start like any other.
    assert!(daemon.terminate().await.success());
    let mut daemon = Daemon::start(&config);
    let streams = |record: &Value| says(record, "streaming");
    daemon.wait_for_log("the stream", streams).await;
    assert_eq!(count(&daemon, HEALING), 0, "{}", daemon.tail());
}

/// Two daemons find that the slot is gone: one of them heals it, the other one stands by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_heal_a_slot_once() {
    let mut exam = Exam::start();
    let config = with_heal(&exam.config());
    let load = exam.load(2, Duration::from_millis(60));
    exam.postgres.psql(DROP);
    let mut daemons = [Daemon::start(&config), Daemon::start(&config)];
    eventually(PATIENCE, "the end of the healing", || {
        let done = daemons.iter().any(|daemon| count(daemon, HEALED) > 0);
        async move { done.then_some(()) }
    })
    .await;
    let begun: usize = daemons.iter().map(|daemon| count(daemon, HEALING)).sum();
    assert_eq!(begun, 1);
    load.stop().await;
    let receipt = exam.receipt().await;
    receipt.assert_sound("two daemons", 0);
    for daemon in &mut daemons {
        assert!(daemon.terminate().await.success());
    }
}

/// Rows that are older than the slot: `init` tells of them, and the first start sends them, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_sends_what_the_table_has_already() {
    let server = Postgres::start(Options::default());
    let config = to_stdout(&server.url(SUPERUSER), "aftercommit", DELETES);
    let healing = with_heal(&config);
    init(&config);
    server.psql(DROP);
    let old = server.psql("select aftercommit.enqueue('old')");
    let told = |config: &str| {
        let output = aftercommit(&["init"], config);
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("words")
    };
    let without = told(&config);
    assert!(without.contains("they will not be sent"), "{without}");
    assert!(without.contains("set [postgres] heal = true"), "{without}");
    server.psql(DROP);
    assert!(told(&healing).contains("dispatches them (heal = true)"));
    assert!(!told(&healing).contains("older than the slot"), "told once");

    let new = server.psql("select aftercommit.enqueue('new')");
    let mut daemon = Daemon::start(&healing);
    assert_eq!(wait_for_printed(&daemon, 2).await, [old.as_str(), &new]);
    wait_until_healed(&mut daemon, &server, 1).await;
    let live = server.psql("select aftercommit.enqueue('live')");
    assert_eq!(wait_for_printed(&daemon, 3).await, [old, new, live]);
    assert!(daemon.terminate().await.success());
    let mut daemon = Daemon::start(&healing);
    let next = server.psql("select aftercommit.enqueue('next')");
    wait_for_printed(&daemon, 1).await;
    assert_eq!(printed(&daemon), [next]);
    assert_eq!(count(&daemon, HEALING), 0);
    assert!(daemon.terminate().await.success());

    // A slot that was at work is not made anew without a word.
    server.psql(DROP);
    let missed = server.psql("select aftercommit.enqueue('missed')");
    init(&healing);
    let mut daemon = Daemon::start(&healing);
    assert_eq!(wait_for_printed(&daemon, 1).await, [missed]);
    wait_until_healed(&mut daemon, &server, 1).await;
    assert!(daemon.terminate().await.success());
}

/// An empty table needs no healing, and neither does what comes before the second start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_table_is_not_healed() {
    let server = Postgres::start(Options::default());
    let config = with_heal(&to_stdout(&server.url(SUPERUSER), "aftercommit", DELETES));
    init(&config);
    let mut daemon = Daemon::start(&config);
    daemon
        .wait_for_log("the stream", |record| says(record, "streaming"))
        .await;
    assert!(daemon.terminate().await.success());
    let row = server.psql("select aftercommit.enqueue('meanwhile')");
    let mut daemon = Daemon::start(&config);
    assert_eq!(wait_for_printed(&daemon, 1).await, [row]);
    assert_eq!(count(&daemon, HEALING), 0, "{}", daemon.tail());
    assert!(daemon.terminate().await.success());
}

/// What the table gives is to the byte what the stream gives, whatever the columns' types are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_the_table_are_like_those_of_the_stream() {
    for settings in [&[][..], &[("track_commit_timestamp", "on")]] {
        let server = Postgres::start(Options {
            settings,
            ..Options::default()
        });
        server.psql(
            "create type mood as enum ('sad', 'it''s');
             create schema shop;
             create table shop.events (n bigint generated always as identity primary key, name char(12) not null,
               ignored text default 'x', kwargs jsonb, more json, who inet, ok bool, at timestamptz, mood mood)
               partition by range (n);
             create table shop.events_1 partition of shop.events for values from (1) to (4);
             create table shop.events_2 (like shop.events);
             alter table shop.events_2 drop column ignored, add column ignored text;
             alter table shop.events attach partition shop.events_2 for values from (4) to (1000)",
        );
        let outbox = r#"
[outbox]
table = "shop.events"
[outbox.columns]
id = "n"
task = "name"
args = ""
payload = "more"
key = "who"
queue = "mood"
run_at = "at"
headers = "kwargs"
options = ""
expires_at = ""
priority = ""
body = ""
"#;
        let config = to_stdout(&server.url(SUPERUSER), "aftercommit", outbox);
        init(&config);
        let insert = || {
            server.psql(
                r#"insert into shop.events (name, kwargs, more, who, ok, at, mood) values
                   ('a', '{"b": 1, "a": 1e2, "big": 123456789012345678901234567890}', '{"b": 1,  "a":1e2}',
                    '10.0.0.1', true, '2025-02-03 04:05:06.7+02', 'it''s'),
                   ('größe', '{"a": "\u00e4"}', null, '10.0.0.0/8', false, '-infinity', null),
                   ('c', null, '["\\u0001"]', null, null, null, 'sad')"#,
            );
        };
        insert();
        let mut daemon = Daemon::start(&config);
        wait_for_printed(&daemon, 3).await;
        assert!(daemon.terminate().await.success());
        let streamed = tasks(&daemon);
        server.psql("delete from shop.events");
        server.psql(DROP);
        insert();
        let healing = with_heal(&config);
        let mut daemon = Daemon::start(&healing);
        wait_for_printed(&daemon, 3).await;
        assert!(daemon.terminate().await.success());
        let healed = tasks(&daemon);
        assert_eq!(healed, streamed, "in order, and the same");
        assert_eq!(healed.len(), 3);
    }
}

/// The tasks on stdout, without what is different each time: the ids, positions and times of commits.
fn tasks(daemon: &Daemon) -> Vec<Value> {
    let mut tasks: Vec<Value> = daemon
        .stdout()
        .iter()
        .map(|line| serde_json::from_str(line).expect("a task"))
        .collect();
    for task in &mut tasks {
        let task = task.as_object_mut().expect("an object");
        for changing in ["id", "lsn", "committed_at"] {
            assert!(task.remove(changing).is_some(), "{changing}: {task:?}");
        }
    }
    tasks
}

/// Rows of one key come in the order of their commits, though the older one has the younger transaction id, where the server
/// knows the order; and in the order of commands in any case.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_is_that_of_commits_where_it_is_known() {
    for (settings, expected) in [
        (
            &[("track_commit_timestamp", "on")][..],
            ["1", "2", "3", "4", "5"],
        ),
        (&[][..], ["3", "4", "5", "1", "2"]),
    ] {
        let server = Postgres::start(Options {
            settings,
            ..Options::default()
        });
        let config = to_stdout(&server.url(SUPERUSER), "aftercommit", DELETES);
        init(&config);
        server.psql(DROP);
        server.psql("create table orders (n int)");
        let (late, early) = (server.client().await, server.client().await);
        // The one that began first commits last.
        late.batch_execute("begin; insert into orders values (1)")
            .await
            .expect("a transaction");
        early
            .batch_execute(
                "begin; insert into aftercommit.outbox (task, key) values ('1', 'k'); \
                 insert into aftercommit.outbox (task, key) values ('2', 'k'); commit",
            )
            .await
            .expect("a commit");
        late.batch_execute(
            "insert into aftercommit.outbox (task, key) values ('3', 'k'); \
             insert into aftercommit.outbox (task, key) values ('4', 'k'); \
             insert into aftercommit.outbox (task, key) values ('5', 'k'); commit",
        )
        .await
        .expect("a commit");
        let mut daemon = Daemon::start(&with_heal(&config));
        wait_for_printed(&daemon, 5).await;
        let names: Vec<String> = daemon
            .stdout()
            .iter()
            .map(|line| {
                let task: Value = serde_json::from_str(line).expect("a task");
                assert!(!id(&task).is_empty());
                task["task"].as_str().expect("a name").to_owned()
            })
            .collect();
        assert_eq!(names, expected);
        assert!(daemon.terminate().await.success());
    }
}

/// A new slot waits for every open transaction, and says for which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_the_slot_from_being_made_is_named() {
    let server = Postgres::start(Options::default());
    let config = to_stdout(&server.url(SUPERUSER), "aftercommit", DELETES);
    init(&config);
    server.psql(DROP);
    let row = server.psql("select aftercommit.enqueue('waits')");
    let client = server.client().await;
    client
        .batch_execute("create table t (n int); begin; insert into t values (1)")
        .await
        .expect("a transaction");
    let pid: i32 = client
        .query_one("select pg_backend_pid()", &[])
        .await
        .expect("a pid")
        .get(0);
    let mut daemon = Daemon::start(&with_heal(&config));
    let record = daemon
        .wait_for_log("who is in the way", |record| {
            says(record, "waits for an open transaction")
        })
        .await;
    let blocker = record["blocker"].as_str().expect("a blocker");
    assert!(blocker.starts_with(&format!("pid {pid} (")), "{blocker}");
    assert_eq!(
        record["remedy"],
        format!("select pg_terminate_backend({pid});")
    );
    assert!(printed(&daemon).is_empty());
    // A stop does not wait for it.
    assert!(daemon.terminate().await.success());
    let mut daemon = Daemon::start(&with_heal(&config));
    client.batch_execute("commit").await.expect("a commit");
    assert_eq!(wait_for_printed(&daemon, 1).await, [row]);
    wait_until_healed(&mut daemon, &server, 1).await;
    assert!(daemon.terminate().await.success());
}

async fn ends_with_3(config: &str) -> String {
    let mut daemon = Daemon::start(config);
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(3));
    daemon.log()
}

/// Without consent: exit 3, what is in doubt, and both remedies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_consent_it_says_what_is_in_doubt() {
    let server = Postgres::start(Options::default());
    let config = to_stdout(&server.url(SUPERUSER), "aftercommit", DELETES);
    init(&config);
    let contains = |log: &str, words: &[&str]| {
        for word in words {
            assert!(log.contains(word), "{word} in {log}");
        }
    };
    // While it runs.
    server.psql(
        "insert into aftercommit.checkpoint (slot, system_id, timeline, lsn)
         select 'aftercommit', system_identifier, 1, '0/10' from pg_control_system()",
    );
    let mut daemon = Daemon::start(&config);
    daemon
        .wait_for_log("the stream", |record| says(record, "streaming"))
        .await;
    server.psql(DROP);
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(3));
    let checkpoint = server.psql("select lsn from aftercommit.checkpoint");
    contains(
        &daemon.log(),
        &[
            "does not exist",
            "[postgres] heal = true",
            "By hand",
            "pg_create_logical_replication_slot('aftercommit'",
            &format!("In doubt: what was committed between {checkpoint} (our checkpoint"),
        ],
    );
    // At the start, with a checkpoint from elsewhere, and with none.
    server.psql("update aftercommit.checkpoint set timeline = 7");
    contains(
        &ends_with_3(&config).await,
        &["is of timeline 7, and this is timeline 1"],
    );
    server.psql("delete from aftercommit.checkpoint");
    contains(&ends_with_3(&config).await, &["There is no checkpoint"]);
    // A healing that was interrupted, and consent that was taken back.
    init(&config);
    server.psql(
        "insert into aftercommit.checkpoint (slot, system_id, timeline, lsn, healing)
         values ('aftercommit', '1', 1, '0/0', now())",
    );
    contains(
        &ends_with_3(&config).await,
        &["was made again at", "Set [postgres] heal = true again"],
    );
    assert_eq!(
        server.psql("select count(*) from pg_replication_slots"),
        "1",
        "nothing was dropped"
    );
}

/// What is somebody else's is not dropped, whatever is allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_of_somebody_else_is_left_alone() {
    let server = Postgres::start(Options::default());
    let config = with_heal(&to_stdout(&server.url(SUPERUSER), "aftercommit", DELETES));
    init(&config);
    server.psql(DROP);
    server.psql("select aftercommit.enqueue('waits')");
    server.psql("select pg_create_logical_replication_slot('aftercommit', 'test_decoding')");
    let mut daemon = Daemon::start(&config);
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(78));
    assert_eq!(
        server.psql("select plugin from pg_replication_slots"),
        "test_decoding"
    );
}

/// After a failover the slot may have the position of tasks that were put into the hold table, and the table not the tasks.
/// In the outbox they are still there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_has_come_along_from_another_history_is_not_trusted() {
    let exam = Exam::start();
    let config = with_heal(&exam.config());
    let mut daemon = Daemon::start(&config);
    exam.insert(1);
    exam.wait_for_pushed(1).await;
    exam.nothing_left().await;
    assert!(daemon.terminate().await.success());
    exam.insert(3);
    exam.postgres.psql(
        "select pg_replication_slot_advance('aftercommit', pg_current_wal_lsn());
         update aftercommit.checkpoint set timeline = timeline + 1",
    );
    let mut daemon = Daemon::start(&config);
    exam.wait_for_pushed(4).await;
    exam.nothing_left().await;
    wait_until_healed(&mut daemon, &exam.postgres, 1).await;
    assert_eq!(exam.different().await, 4);
    let record = daemon
        .wait_for_log("the healing", |record| says(record, HEALING))
        .await;
    assert!(
        record["cause"]
            .as_str()
            .expect("words")
            .contains("another timeline")
    );
    assert!(daemon.terminate().await.success());
}
