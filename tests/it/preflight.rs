//! The preflight on a real server: each fault is found, and its remedy mends it.

use std::process::{Command, Stdio};
use std::time::Duration;

use aftercommit::preflight::{
    Class, Expectation, Facts, Finding, Severity, check_walsender, drift, preflight,
};
use tokio_postgres::Client;

use crate::init::{apply, expected, wanted};
use crate::support::postgres::{Options, Postgres};

const CONFIGURATION: Severity = Severity::Fatal(Class::Configuration);
const LOST: Severity = Severity::Fatal(Class::SlotLost);

/// The database with everything in it, its slot named like the database, and a superuser's connection.
async fn ready(server: &Postgres) -> (Client, Expectation) {
    let client = server.client().await;
    let observer = server.client().await;
    let wanted = wanted("app", None);
    let (out, class) = apply(&client, &observer, &wanted).await;
    assert_eq!(class, None, "{out}");
    (client, expected(&wanted))
}

async fn findings(client: &Client, expected: &Expectation) -> Vec<Finding> {
    preflight(client, expected)
        .await
        .unwrap_or_else(|e| panic!("{e:?}"))
        .findings
}

async fn facts(client: &Client, expected: &Expectation) -> Facts {
    preflight(client, expected)
        .await
        .unwrap_or_else(|e| panic!("{e:?}"))
        .facts
}

/// The only finding there is.
async fn finding(client: &Client, expected: &Expectation) -> Finding {
    let mut found = findings(client, expected).await;
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

async fn run(client: &Client, sql: &str) {
    client
        .batch_execute(sql)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

/// Breaks a healthy database, expects one finding, does what it says, and expects none.
async fn broken_and_mended(
    client: &Client,
    expected: &Expectation,
    break_it: &str,
    severity: Severity,
    words: &str,
) {
    assert_eq!(findings(client, expected).await, [], "before {break_it}");
    run(client, break_it).await;
    let found = finding(client, expected).await;
    assert_eq!(found.severity, severity, "{found}");
    assert!(found.what.contains(words), "{words}: {found}");
    assert!(!found.sql.is_empty(), "{found}");
    for statement in &found.sql {
        run(client, statement).await;
    }
    assert_eq!(findings(client, expected).await, [], "after {found}");
}

#[tokio::test]
async fn faults_of_the_publication() {
    let server = Postgres::start(Options::default());
    let (client, expected) = ready(&server).await;
    let version = facts(&client, &expected).await.server_version;
    let mut cases = vec![
        (
            "drop publication aftercommit",
            Severity::Fatal(Class::PublicationLost),
            "publication \"aftercommit\" does not exist",
        ),
        (
            "alter publication aftercommit drop table aftercommit.outbox",
            CONFIGURATION,
            "lacks table aftercommit.outbox",
        ),
        (
            "alter table aftercommit.outbox rename to outbox_old; \
             create table aftercommit.outbox (like aftercommit.outbox_old including all)",
            CONFIGURATION,
            "lacks table aftercommit.outbox; it has aftercommit.outbox_old",
        ),
        (
            "alter publication aftercommit set (publish = 'update, delete')",
            CONFIGURATION,
            "does not publish inserts",
        ),
        (
            "alter publication aftercommit set (publish = 'insert, update, truncate')",
            Severity::Warning,
            "publishes updates, truncates, too",
        ),
    ];
    if version >= 150_000 {
        cases.extend([
            (
                "alter publication aftercommit set table aftercommit.outbox where (task <> 'x')",
                CONFIGURATION,
                "has a row filter",
            ),
            (
                "alter publication aftercommit set table aftercommit.outbox (id, task, kwargs)",
                CONFIGURATION,
                "has a column list on aftercommit.outbox that lacks \"args\", \"payload\", \"body\", \"key\", \
                 \"queue\", \"headers\", \"priority\", \"run_at\", \"expires_at\", \"options\"",
            ),
        ]);
    }
    for (break_it, severity, words) in cases {
        broken_and_mended(&client, &expected, break_it, severity, words).await;
    }

    // Other ways to be published.
    run(
        &client,
        "drop publication aftercommit; create publication aftercommit for all tables with (publish = 'insert')",
    )
    .await;
    assert_eq!(findings(&client, &expected).await, []);
    if version >= 150_000 {
        run(
            &client,
            "drop publication aftercommit; \
             create publication aftercommit for tables in schema aftercommit with (publish = 'insert')",
        )
        .await;
        assert_eq!(findings(&client, &expected).await, []);
    }
}

#[tokio::test]
async fn faults_of_the_table() {
    let server = Postgres::start(Options::default());
    let (client, expected) = ready(&server).await;
    // A table that is named in a publication cannot be made unlogged; under FOR ALL TABLES it can.
    run(
        &client,
        "drop publication aftercommit; create publication aftercommit for all tables with (publish = 'insert')",
    )
    .await;
    broken_and_mended(
        &client,
        &expected,
        "alter table aftercommit.outbox set unlogged",
        CONFIGURATION,
        "table aftercommit.outbox is unlogged",
    )
    .await;

    broken_and_mended(
        &client,
        &expected,
        "alter table aftercommit.outbox alter column run_at type timestamp(3)",
        CONFIGURATION,
        "column \"run_at\" of aftercommit.outbox is of type timestamp without time zone",
    )
    .await;
    run(
        &client,
        "create domain moment as timestamptz; alter table aftercommit.outbox alter column expires_at type moment",
    )
    .await;
    assert_eq!(findings(&client, &expected).await, []);

    run(
        &client,
        "alter table aftercommit.outbox rename column kwargs to arguments",
    )
    .await;
    let found = finding(&client, &expected).await;
    assert_eq!(found.severity, CONFIGURATION);
    assert!(
        found
            .what
            .contains("has no column \"kwargs\"; it has id, task, args, arguments,"),
        "{found}"
    );
    let mut mapped = expected.clone();
    for column in &mut mapped.required {
        if column == "kwargs" {
            *column = "arguments".to_owned();
        }
    }
    assert_eq!(findings(&client, &mapped).await, []);

    run(
        &client,
        "alter table aftercommit.outbox rename to real; create view aftercommit.outbox as table aftercommit.real",
    )
    .await;
    let found = findings(&client, &mapped).await;
    assert!(
        found.iter().any(|f| f.what.contains("is a view")),
        "{found:?}"
    );
    run(&client, "drop view aftercommit.outbox").await;
    let found = findings(&client, &mapped).await;
    assert!(
        found[0]
            .what
            .contains("table aftercommit.outbox does not exist"),
        "{found:?}"
    );
}

#[tokio::test]
async fn faults_of_a_partitioned_table() {
    let server = Postgres::start(Options::default());
    let client = server.client().await;
    run(
        &client,
        "create schema shop; \
         create table shop.outbox (id int, task text) partition by range (id); \
         create table shop.low partition of shop.outbox for values from (0) to (100); \
         create table shop.high partition of shop.outbox for values from (100) to (200) partition by range (id); \
         create table shop.highest partition of shop.high default; \
         create publication aftercommit for table shop.outbox with (publish = 'insert')",
    )
    .await;
    for file in ["schema", "hold", "hold_functions", "checkpoint"] {
        let path = format!("{}/sql/{file}.sql", env!("CARGO_MANIFEST_DIR"));
        run(&client, &std::fs::read_to_string(path).expect("a file")).await;
    }
    run(
        &client,
        "select pg_create_logical_replication_slot('aftercommit', 'pgoutput')",
    )
    .await;
    let root = Expectation {
        table: "shop.outbox".parse().expect("a table"),
        required: vec!["id".to_owned(), "task".to_owned()],
        ..expected(&wanted("aftercommit", None))
    };
    let found = finding(&client, &root).await;
    assert!(
        found.what.contains("under the names of the partitions"),
        "{found}"
    );
    run(&client, &found.sql[0]).await;
    assert_eq!(findings(&client, &root).await, []);

    // A partition of a published root, named instead of the root.
    for partition in ["shop.low", "shop.highest"] {
        let leaf = Expectation {
            table: partition.parse().expect("a table"),
            ..root.clone()
        };
        let found = finding(&client, &leaf).await;
        assert!(
            found
                .remedy
                .contains("set [outbox] table = \"shop.outbox\""),
            "{found}"
        );
    }

    run(&client, "alter table shop.highest set unlogged").await;
    let found = finding(&client, &root).await;
    assert!(
        found.what.contains("partition shop.highest of shop.outbox"),
        "{found}"
    );
    run(&client, "alter table shop.highest set logged").await;
    assert_eq!(findings(&client, &root).await, []);
}

#[tokio::test]
async fn faults_of_the_slot() {
    let server = Postgres::start(Options {
        settings: &[
            ("max_slot_wal_keep_size", "1MB"),
            ("min_wal_size", "32MB"),
            ("max_wal_size", "32MB"),
        ],
        ..Options::default()
    });
    let (client, expected) = ready(&server).await;
    broken_and_mended(
        &client,
        &expected,
        "select pg_drop_replication_slot('app')",
        LOST,
        "slot \"app\" does not exist",
    )
    .await;
    run(&client, "select pg_drop_replication_slot('app')").await;
    run(
        &client,
        "select pg_create_logical_replication_slot('app', 'pgoutput', false, true)",
    )
    .await;
    let found = finding(&client, &expected).await;
    assert!(found.what.contains("has two_phase"), "{found}");
    for statement in &found.sql {
        run(&client, statement).await;
    }
    assert_eq!(findings(&client, &expected).await, []);

    // Three segments of WAL that nobody has read, and one checkpoint.
    for _ in 0..3 {
        run(&client, "select pg_logical_emit_message(false, 'x', 'x')").await;
        run(&client, "select pg_switch_wal()").await;
    }
    run(&client, "checkpoint").await;
    let found = finding(&client, &expected).await;
    assert_eq!(found.severity, LOST, "{found}");
    assert!(
        found.what.contains("slot \"app\" is invalidated"),
        "{found}"
    );
    for statement in &found.sql {
        run(&client, statement).await;
    }
    assert_eq!(findings(&client, &expected).await, []);

    // Names that belong to somebody else: never dropped, another name is proposed.
    let other = server.database("other").await;
    run(
        &other,
        "select pg_create_logical_replication_slot('elsewhere', 'pgoutput')",
    )
    .await;
    run(
        &client,
        "select pg_create_logical_replication_slot('wal2json', 'test_decoding')",
    )
    .await;
    run(
        &client,
        "select pg_create_physical_replication_slot('physical')",
    )
    .await;
    for (slot, words, free) in [
        (
            "elsewhere",
            "one of database \"other\", not \"app\"",
            "elsewhere_app",
        ),
        (
            "wal2json",
            "one of the plugin \"test_decoding\"",
            "wal2json_app",
        ),
        ("physical", "a physical one", "physical_app"),
    ] {
        let theirs = Expectation {
            slot: slot.to_owned(),
            ..expected.clone()
        };
        let found = finding(&client, &theirs).await;
        assert_eq!(found.severity, CONFIGURATION);
        assert!(found.what.contains(words), "{found}");
        for statement in &found.sql {
            run(&client, statement).await;
        }
        let ours = Expectation {
            slot: free.to_owned(),
            ..theirs
        };
        assert_eq!(findings(&client, &ours).await, []);
    }
    let temporary = server.client().await;
    run(
        &temporary,
        "select pg_create_logical_replication_slot('passing', 'pgoutput', true)",
    )
    .await;
    let theirs = Expectation {
        slot: "passing".to_owned(),
        ..expected
    };
    assert!(
        finding(&client, &theirs).await.what.contains("temporary"),
        "a temporary slot"
    );
}

#[tokio::test]
async fn the_wrong_database_has_nothing_of_ours() {
    let server = Postgres::start(Options::default());
    let (_, expected) = ready(&server).await;
    let wrong = server.client_in("postgres", "postgres").await;
    let found = findings(&wrong, &expected).await;
    let what: Vec<&str> = found.iter().map(|f| f.what.as_str()).collect();
    assert_eq!(
        what,
        [
            "table aftercommit.outbox does not exist in database \"postgres\"",
            "publication \"aftercommit\" does not exist",
            "slot \"app\" is one of database \"app\", not \"postgres\"; names of slots belong to the whole cluster",
            "database \"postgres\" lacks table aftercommit.hold, table aftercommit.checkpoint, \
             the functions of aftercommit.hold: tasks cannot be held",
        ]
    );
}

#[tokio::test]
async fn a_server_without_logical_decoding() {
    let mut server = Postgres::start(Options {
        settings: &[("wal_level", "replica")],
        ..Options::default()
    });
    let client = server.client().await;
    let observer = server.client().await;
    let wanted = wanted("aftercommit", None);
    let (out, class) = apply(&client, &observer, &wanted).await;
    assert_eq!(class, Some(Class::Configuration));
    assert!(
        out.starts_with("to do: wal_level is \"replica\"; it must be \"logical\"\n"),
        "{out}"
    );
    assert!(!out.contains("created"), "{out}");

    let found = findings(&client, &expected(&wanted)).await;
    let remedy = found
        .iter()
        .find(|f| f.what.starts_with("wal_level"))
        .expect("a finding");
    run(&client, &remedy.sql[0]).await;
    server.restart();
    let client = server.client().await;
    let observer = server.client().await;
    let (out, class) = apply(&client, &observer, &wanted).await;
    assert_eq!(class, None, "{out}");
}

#[tokio::test]
async fn the_daemons_own_role_can_look() {
    let server = Postgres::start(Options::default());
    let admin = server.client().await;
    let observer = server.client().await;
    run(&admin, "create role aftercommit login replication").await;
    let wanted = wanted("aftercommit", Some("aftercommit"));
    apply(&admin, &observer, &wanted).await;
    let daemon = server.client_as("aftercommit").await;
    assert_eq!(findings(&daemon, &expected(&wanted)).await, []);
    run(
        &admin,
        "alter system set synchronous_standby_names = 'FIRST 1 (s1, \"AfterCommit\")'; ",
    )
    .await;
    run(&admin, "select pg_reload_conf()").await;
    let found = loop {
        match findings(&daemon, &expected(&wanted)).await.pop() {
            Some(found) => break found,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert_eq!(found.severity, CONFIGURATION);
    assert!(found.what.contains("synchronous standby"), "{found}");
}

#[tokio::test]
async fn a_table_that_was_replaced_is_noticed_between_two_looks() {
    let server = Postgres::start(Options::default());
    let (client, expected) = ready(&server).await;
    let before = facts(&client, &expected).await;
    assert_eq!(drift(&before, &facts(&client, &expected).await), []);
    run(
        &client,
        "begin; alter table aftercommit.outbox rename to outbox_old; \
         create table aftercommit.outbox (like aftercommit.outbox_old including all); \
         alter publication aftercommit add table aftercommit.outbox; commit",
    )
    .await;
    let after = facts(&client, &expected).await;
    assert_eq!(findings(&client, &expected).await, []);
    let found = drift(&before, &after);
    assert_eq!(found.len(), 1);
    assert!(found[0].what.contains("the outbox table was replaced"));
}

#[tokio::test]
async fn a_walsender_is_checked_against_the_server_that_we_ask() {
    let server = Postgres::start(Options::default());
    let (client, expected) = ready(&server).await;
    let mut reader = Command::new("/usr/lib/postgresql/15/bin/pg_recvlogical")
        .args(["--start", "-S", "app", "-o", "proto_version=1", "-o"])
        .args([
            "publication_names=aftercommit",
            "-s",
            "1",
            "-f",
            "/dev/null",
            "-d",
        ])
        .arg(format!(
            "{}?application_name=aftercommit",
            server.url("postgres")
        ))
        .stdout(Stdio::null())
        .spawn()
        .expect("pg_recvlogical");
    let pid = loop {
        match facts(&client, &expected)
            .await
            .slot
            .and_then(|s| s.active_pid)
        {
            Some(pid) => break pid,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let check = async |pid| {
        check_walsender(&client, &expected, pid)
            .await
            .expect("an answer")
    };
    assert_eq!(check(pid).await, []);
    let found = check(1).await;
    assert_eq!(found.len(), 1);
    assert!(
        found[0]
            .what
            .contains(&format!("slot \"app\" is read by pid {pid} there")),
        "{}",
        found[0]
    );

    // Synchronous from its first answer on.
    run(&client, "alter system set synchronous_standby_names = '*'").await;
    run(&client, "select pg_reload_conf()").await;
    let found = loop {
        match check(pid).await.pop() {
            Some(found) => break found,
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert!(
        found.what.contains(&format!("walsender pid {pid} is sync")),
        "{found}"
    );
    reader.kill().expect("a kill");
    reader.wait().expect("its end");
}

#[tokio::test]
async fn faults_of_the_hold_table() {
    let server = Postgres::start(Options::default());
    let admin = server.client().await;
    let observer = server.client().await;
    run(&admin, "create role \"Day Mon\" login replication").await;
    let wanted = wanted("aftercommit", Some("Day Mon"));
    apply(&admin, &observer, &wanted).await;
    let daemon = server.client_as("Day%20Mon").await;
    let own = Expectation {
        role: None,
        ..expected(&wanted)
    };
    assert_eq!(findings(&daemon, &own).await, []);

    for (break_it, words) in [
        (
            "revoke insert, delete on aftercommit.hold from aftercommit_daemon",
            "may not hold tasks: it lacks insert on table aftercommit.hold, delete on",
        ),
        (
            "revoke update on aftercommit.checkpoint from aftercommit_daemon",
            "it lacks update on table aftercommit.checkpoint",
        ),
        (
            "revoke execute on function aftercommit.hold_lock from aftercommit_daemon",
            "it lacks execute on all functions",
        ),
        (
            "revoke usage on schema aftercommit from aftercommit_daemon",
            "it lacks usage on schema aftercommit",
        ),
        (
            "revoke delete on aftercommit.outbox from aftercommit_daemon",
            "may not delete settled rows: it lacks delete on table aftercommit.outbox",
        ),
    ] {
        run(&admin, break_it).await;
        let found = findings(&daemon, &own).await;
        assert!(found[0].what.contains(words), "{words}: {found:?}");
        for statement in found.iter().flat_map(|f| &f.sql) {
            run(&admin, statement).await;
        }
        assert_eq!(findings(&daemon, &own).await, [], "{break_it}");
        assert_eq!(findings(&admin, &expected(&wanted)).await, [], "{break_it}");
    }
    run(&admin, "drop table aftercommit.hold").await;
    let found = finding(&daemon, &own).await;
    assert_eq!(found.severity, CONFIGURATION);
    assert!(
        found
            .what
            .contains("lacks table aftercommit.hold, the functions"),
        "{found}"
    );
    assert!(found.remedy.contains("aftercommit init"), "{found}");
    apply(&admin, &observer, &wanted).await;
    assert_eq!(findings(&daemon, &own).await, []);
}
