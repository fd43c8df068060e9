//! What a healing takes from the table: which rows, in which order, and as which tasks.

use serde_json::Value;

use super::{DELETES, DROP, HEALING, count, wait_until_healed, with_heal};
use crate::support::daemon::{Daemon, aftercommit, init};
use crate::support::exam::says;
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::tasks::{id, printed, to_stdout, wait_for_printed};

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
