//! The main path and the preflight's refusals on every version of Postgres that there is; and outbox tables of other
//! shapes than ours.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::daemon::{Daemon, init};
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::tasks::{
    Load, assert_once_each, committed, printed, to_stdout, wait_for_printed,
};
use crate::support::wait::{PATIENCE, eventually};

const NAME: &str = "aftercommit";

/// Transactions of every kind. What is to be dispatched is named `kept`, and nothing else is.
const TRANSACTIONS: &[&str] = &[
    "insert into aftercommit.outbox (task) values ('kept')",
    "select aftercommit.enqueue('kept', kwargs => '{\"order_id\": 42}')",
    "begin; insert into aftercommit.outbox (task) values ('rolled back'); rollback",
    "begin; insert into aftercommit.outbox (task) values ('kept'); savepoint a;
     insert into aftercommit.outbox (task) values ('rolled back'); rollback to a;
     insert into aftercommit.outbox (task) values ('kept'); savepoint b;
     insert into aftercommit.outbox (task) values ('kept'); release b; commit",
    "begin; insert into aftercommit.outbox (task) values ('kept'); prepare transaction 'kept'",
    "begin; insert into aftercommit.outbox (task) values ('rolled back'); prepare transaction 'not'",
    "rollback prepared 'not'",
    "commit prepared 'kept'",
    "begin; insert into aftercommit.outbox (task) select 'kept' from generate_series(1, 1000); commit",
    // What else one may do to the table is nobody's task.
    "create table public.other (n int primary key); insert into public.other values (1)",
    "update aftercommit.outbox set queue = 'x' where task = 'kept' and args is not null",
    "delete from aftercommit.outbox where task = 'rolled back'",
];
const KEPT: usize = 1_006;

fn started(version: u32) -> Option<Postgres> {
    Postgres::available_or_skip(version).then(|| {
        Postgres::start(Options {
            version,
            ..Options::default()
        })
    })
}

async fn works(version: u32) {
    let Some(server) = started(version) else {
        return;
    };
    let config = to_stdout(&server.url(SUPERUSER), NAME, "");
    init(&config);
    let mut daemon = Daemon::start(&config);
    for sql in TRANSACTIONS {
        // Each statement in its own message: several in one would be one transaction.
        let client = server.client().await;
        for statement in sql.split(';') {
            client.batch_execute(statement).await.expect(sql);
        }
    }
    wait_for_printed(&daemon, KEPT).await;
    assert!(daemon.terminate().await.success());
    let lines = daemon.stdout();
    let tasks = lines.iter().map(|line| serde_json::from_str(line));
    let tasks: Vec<Value> = tasks.map(|task| task.expect("a task")).collect();
    assert!(tasks.iter().all(|task| task["task"] == "kept"));
    assert_once_each(printed(&daemon), &committed(&server));

    // kill -9 under load; what comes again is what came last.
    let load = Load::start(&server.url(SUPERUSER), 4, std::time::Duration::ZERO);
    let mut delivered = Vec::new();
    for _ in 0..2 {
        let mut daemon = Daemon::start(&config);
        load.more(200).await;
        wait_for_printed(&daemon, 200).await;
        daemon.kill9();
        delivered.extend(printed(&daemon));
    }
    load.stop().await;
    let mut daemon = Daemon::start(&config);
    let committed: BTreeSet<String> = committed(&server).into_iter().collect();
    let first: BTreeSet<String> = tasks
        .iter()
        .map(|task| task["id"].as_str().expect("an id").to_owned())
        .collect();
    let delivered: BTreeSet<String> = delivered.into_iter().collect();
    eventually(PATIENCE, "everything", || {
        let mut all: BTreeSet<String> = printed(&daemon).into_iter().collect();
        all.extend(delivered.iter().chain(&first).cloned());
        assert!(all.is_subset(&committed), "invented");
        let complete = all.len() == committed.len();
        async move { complete.then_some(()) }
    })
    .await;
    assert!(daemon.terminate().await.success());
    refuses(&server, &config).await;
}

/// What the preflight has to see on every version.
async fn refuses(server: &Postgres, config: &str) {
    for (sql, words) in [
        (
            "alter publication aftercommit drop table aftercommit.outbox",
            "publication \"aftercommit\" lacks table aftercommit.outbox",
        ),
        (
            "alter publication aftercommit add table aftercommit.outbox;
             select pg_drop_replication_slot('aftercommit');
             select pg_create_logical_replication_slot('aftercommit', 'pgoutput', false, true)",
            "slot \"aftercommit\" has two_phase",
        ),
    ] {
        sql.split(';').for_each(|sql| drop(server.psql(sql)));
        let mut daemon = Daemon::start(config);
        assert_eq!(daemon.ended(PATIENCE).await.code(), Some(78), "{sql}");
        assert!(daemon.log().contains(words), "{}", daemon.tail());
    }
    // Nothing is skipped without a word where the publication goes away under a stream; 18 only warns us.
    server.psql("select pg_drop_replication_slot('aftercommit')");
    init(config);
    let mut daemon = Daemon::start(config);
    server.psql("insert into aftercommit.outbox (task) values ('kept')");
    wait_for_printed(&daemon, 1).await;
    server.psql("drop publication aftercommit");
    server.psql("insert into aftercommit.outbox (task) values ('skipped')");
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(3));
    let words = match server.version() {
        ..18 => "publication \"aftercommit\" does not exist",
        _ => "skipped loading publication \"aftercommit\"",
    };
    assert!(daemon.log().contains(words), "{}", daemon.tail());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_14() {
    works(14).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_15() {
    works(15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_16() {
    works(16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_17() {
    works(17).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_18() {
    works(18).await;
}

/// Runs the daemon with an outbox table of the application's own, and returns the tasks that it makes of some inserts.
async fn tasks_of(outbox: &str, ddl: &str, inserts: &[&str]) -> Vec<Value> {
    let server = Postgres::start(Options::default());
    server.psql(ddl);
    let config = to_stdout(&server.url(SUPERUSER), NAME, outbox);
    init(&config);
    let mut daemon = Daemon::start(&config);
    inserts.iter().for_each(|insert| drop(server.psql(insert)));
    wait_for_printed(&daemon, inserts.len()).await;
    assert!(daemon.terminate().await.success());
    let lines = daemon.stdout();
    let tasks = lines.iter().map(|line| serde_json::from_str(line));
    tasks.map(|task| task.expect("a task")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_outbox() {
    let tasks = tasks_of(
        "[outbox]\ntable = \"shop.outbox\"",
        "create schema shop;
         create table shop.outbox (id uuid not null default gen_random_uuid(), task text not null, kwargs json, key text,
                                   created_at timestamptz not null default now()) partition by range (created_at);
         create table shop.outbox_2025 partition of shop.outbox for values from ('2025-01-01') to ('2026-01-01');
         create table shop.outbox_other (created_at timestamptz not null default now(), key text, task text not null,
                                         kwargs json, id uuid not null default gen_random_uuid());
         alter table shop.outbox attach partition shop.outbox_other default",
        &[
            "insert into shop.outbox (task, created_at) values ('a', '2025-05-01')",
            // Into a partition whose columns stand in another order.
            "insert into shop.outbox (task, kwargs, key) values ('b', '{\"n\": 1}', 'k')",
            // Into the partition itself.
            "insert into shop.outbox_2025 (task, created_at) values ('c', '2025-06-01')",
            // A partition that is made later is published with its parent.
            "create table shop.outbox_2024 partition of shop.outbox for values from ('2024-01-01') to ('2025-01-01');
             insert into shop.outbox (task, created_at) values ('d', '2024-06-01')",
        ],
    )
    .await;
    let names: Vec<&Value> = tasks.iter().map(|task| &task["task"]).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
    assert_eq!(tasks[1]["key"], "k");
    assert_eq!(tasks[1]["kwargs"]["n"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debeziums_outbox_table() {
    let tasks = tasks_of(
        "[outbox]\ntable = \"public.outboxevent\"\npreset = \"debezium\"",
        "create table outboxevent (id uuid primary key, aggregatetype varchar(255) not null,
                                   aggregateid varchar(255) not null, type varchar(255) not null, payload jsonb)",
        &[
            "insert into outboxevent
             values ('406c07f3-26f0-4eea-a50c-109940064b8f', 'Order', '1', 'OrderCreated', '{\"id\": 1}')",
        ],
    )
    .await;
    let task = &tasks[0];
    assert_eq!(task["id"], "406c07f3-26f0-4eea-a50c-109940064b8f");
    assert_eq!(task["task"], "OrderCreated");
    assert_eq!(task["key"], "1");
    assert_eq!(task["queue"], "Order");
    assert_eq!(task["payload"]["id"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_names() {
    let tasks = tasks_of(
        r#"
[outbox]
table = '"Odd ""Schema"""."out.box; drop"'
[outbox.columns]
id = "Event Id"
task = 'the "task"'
key = "größe"
"#,
        r#"create schema "Odd ""Schema""";
           create table "Odd ""Schema"""."out.box; drop" ("Event Id" bigint primary key, "the ""task""" text not null,
                                                          "größe" text, kwargs json)"#,
        &[
            r#"insert into "Odd ""Schema"""."out.box; drop" values (7, 'a', 'k', '{"n": 1}')"#,
        ],
    )
    .await;
    let task = &tasks[0];
    assert_eq!((&task["id"], &task["task"]), (&"7".into(), &"a".into()));
    assert_eq!(
        (&task["key"], &task["kwargs"]["n"]),
        (&"k".into(), &1.into())
    );
}
