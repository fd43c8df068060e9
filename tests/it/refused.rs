//! Servers that are not as they have to be, through the real program: one message that names the place and the remedy,
//! the documented exit code, no storm of attempts, and never the password.

use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, init};
use crate::support::port::free_port;
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::tasks::{to_stdout, wait_for_printed};
use crate::support::wait::PATIENCE;

const NAME: &str = "aftercommit";
const ENQUEUE: &str = "insert into aftercommit.outbox (task, kwargs) values ('shop.tasks.a', '{}')";
/// Stands in every URL, and in no output.
const CANARY: &str = "c4nary";
const CONFIGURATION: i32 = 78;
const LOST: i32 = 3;
/// The program notices within this time what changes while it runs.
const NOTICED: Duration = Duration::from_secs(30);

/// A configuration with a password in its URL; slot and publication have the database's name.
fn config(port: u16, user: &str, database: &str) -> String {
    let url = format!("postgres://{user}:{CANARY}@127.0.0.1:{port}/{database}");
    to_stdout(&url, database, "")
}

/// Waits for the end of the daemon, which has to say once, in these words, why.
async fn stops(mut daemon: Daemon, code: i32, words: &[&str]) {
    let status = daemon.ended(PATIENCE).await;
    let log = daemon.log();
    assert_eq!(status.code(), Some(code), "{log}");
    let complaints = log.lines().filter(|line| line.starts_with("error: "));
    assert_eq!(complaints.count(), 1, "one message:\n{log}");
    let (_, complaint) = log.split_once("error: ").expect("counted above");
    for words in words {
        assert!(complaint.contains(words), "{words:?} is not in:\n{log}");
    }
    assert!(!log.contains(CANARY), "the password is in:\n{log}");
}

/// A server with a database that is ready for the daemon, to be copied for each case.
fn ready(options: Options) -> Postgres {
    let server = Postgres::start(options);
    server.psql_in("postgres", "create database ready");
    init(&config(server.port(), SUPERUSER, "ready"));
    server.psql("select pg_drop_replication_slot('ready')");
    server
}

/// A copy of the database, with its own publication and slot.
fn copy(server: &Postgres, name: &str, two_phase: bool) {
    server.psql_in(
        "postgres",
        &format!("create database {name} template ready"),
    );
    server.psql_in(name, &format!("alter publication ready rename to {name}"));
    server.psql_in(
        name,
        &format!(
            "select pg_create_logical_replication_slot('{name}', 'pgoutput', false, {two_phase})"
        ),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_up_wrong() {
    let server = ready(Options::default());
    for (name, sql, code, words) in [
        (
            "lacking",
            "alter publication lacking drop table aftercommit.outbox",
            CONFIGURATION,
            [
                "publication \"lacking\" lacks table aftercommit.outbox",
                "alter publication \"lacking\" add table \"aftercommit\".\"outbox\";",
            ],
        ),
        (
            "unlogged",
            // In a publication of its own it could not be made unlogged.
            "drop publication unlogged; create publication unlogged for all tables with (publish = 'insert');
             alter table aftercommit.outbox set unlogged",
            CONFIGURATION,
            [
                "table aftercommit.outbox is unlogged",
                "alter table \"aftercommit\".\"outbox\" set logged;",
            ],
        ),
        (
            "columns",
            "alter table aftercommit.outbox rename column task to name",
            CONFIGURATION,
            [
                "table aftercommit.outbox has no column \"task\"; it has id, name,",
                "[outbox.columns]",
            ],
        ),
        (
            "slotless",
            "select pg_drop_replication_slot('slotless')",
            LOST,
            ["slot \"slotless\" does not exist", "aftercommit init"],
        ),
        (
            "unpublished",
            "drop publication unpublished",
            LOST,
            [
                "publication \"unpublished\" does not exist",
                "create publication \"unpublished\"",
            ],
        ),
    ] {
        copy(&server, name, false);
        server.psql_in(name, sql);
        let daemon = Daemon::start(&config(server.port(), SUPERUSER, name));
        stops(daemon, code, &words).await;
    }
    copy(&server, "prepared", true);
    let daemon = Daemon::start(&config(server.port(), SUPERUSER, "prepared"));
    let words = [
        "slot \"prepared\" has two_phase",
        "pg_drop_replication_slot",
    ];
    stops(daemon, CONFIGURATION, &words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_come_in() {
    let server = ready(Options {
        hba: Some(
            "host all walker 127.0.0.1/32 scram-sha-256
             host all stranger 127.0.0.1/32 reject
             host all all 127.0.0.1/32 trust
             local all all trust",
        ),
        ..Options::default()
    });
    copy(&server, NAME, false);
    server.psql(
        "create role walker login replication password 'another';
         create role plain login; create role stranger login replication; create role locked replication;
         create role guest login replication",
    );
    server.psql(&format!(
        "revoke connect on database {NAME} from public; grant connect on database {NAME} to walker, plain, stranger"
    ));
    server.psql_in(NAME, "grant aftercommit_daemon to plain");
    for (user, database, words) in [
        (
            "walker",
            NAME,
            ["role \"walker\"", "Check the password in the URL"],
        ),
        (
            "plain",
            NAME,
            [
                "SQLSTATE 42501",
                "By the catalogs, the daemon's role \"plain\" may not replicate\n    alter role \"plain\" replication;",
            ],
        ),
        (
            "locked",
            NAME,
            ["SQLSTATE 28000", "alter role \"locked\" login"],
        ),
        (
            "guest",
            NAME,
            [
                "SQLSTATE 42501",
                "grant connect on database \"aftercommit\" to \"guest\"",
            ],
        ),
        ("stranger", NAME, ["SQLSTATE 28000", "pg_hba.conf"]),
        (
            "nobody",
            NAME,
            ["role \"nobody\" does not exist", "SQLSTATE 28000"],
        ),
        (
            SUPERUSER,
            "elsewhere",
            ["database \"elsewhere\"", "SQLSTATE 3D000"],
        ),
    ] {
        let daemon = Daemon::start(&config(server.port(), user, database));
        stops(daemon, CONFIGURATION, &words).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_logical_decoding() {
    let server = Postgres::start(Options {
        settings: &[("wal_level", "replica")],
        ..Options::default()
    });
    let daemon = Daemon::start(&config(server.port(), SUPERUSER, "app"));
    let words = [
        "wal_level is \"replica\"; it must be \"logical\"",
        "alter system set wal_level = 'logical';",
    ];
    stops(daemon, CONFIGURATION, &words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_wal_is_gone() {
    let server = ready(Options {
        settings: &[
            ("max_slot_wal_keep_size", "1MB"),
            ("min_wal_size", "32MB"),
            ("max_wal_size", "32MB"),
        ],
        ..Options::default()
    });
    copy(&server, NAME, false);
    for _ in 0..3 {
        server.psql("select pg_logical_emit_message(false, 'x', 'x')");
        server.psql("select pg_switch_wal()");
    }
    server.psql("checkpoint");
    let daemon = Daemon::start(&config(server.port(), SUPERUSER, NAME));
    let words = [
        "slot \"aftercommit\" is invalidated",
        "Raise max_slot_wal_keep_size",
    ];
    stops(daemon, LOST, &words).await;
}

/// Starts a daemon on a copy of the database, and waits until it has delivered a task.
async fn running(server: &Postgres, name: &str) -> Daemon {
    copy(server, name, false);
    let daemon = Daemon::start(&config(server.port(), SUPERUSER, name));
    server.psql_in(name, ENQUEUE);
    wait_for_printed(&daemon, 1).await;
    daemon
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_while_we_run() {
    let server = ready(Options::default());
    let renamed_and_made_again = "alter table aftercommit.outbox rename to outbox_old;
        create table aftercommit.outbox (like aftercommit.outbox_old including all)";
    // Noticed at the next row: the server cannot decode it.
    let daemon = running(&server, "dropped").await;
    server.psql_in("dropped", "drop publication dropped");
    server.psql_in("dropped", ENQUEUE);
    let words = ["publication \"dropped\" does not exist"];
    stops(daemon, LOST, &words).await;
    // Noticed at the next look, without a row.
    let mut watched = Vec::new();
    for (name, sql, code, words) in [
        (
            "forgotten",
            "drop publication forgotten",
            LOST,
            "publication \"forgotten\" does not exist",
        ),
        (
            "renamed",
            renamed_and_made_again,
            CONFIGURATION,
            "publication \"renamed\" lacks table aftercommit.outbox; it has aftercommit.outbox_old",
        ),
        (
            "removed",
            "alter publication removed drop table aftercommit.outbox",
            CONFIGURATION,
            "publication \"removed\" lacks table aftercommit.outbox",
        ),
        (
            "filtered",
            "alter publication filtered set table aftercommit.outbox where (task <> 'x')",
            CONFIGURATION,
            "publication \"filtered\" has a row filter",
        ),
    ] {
        let daemon = running(&server, name).await;
        server.psql_in(name, sql);
        watched.push((Instant::now(), daemon, code, words, name));
    }
    for (since, daemon, code, words, name) in watched {
        stops(daemon, code, &[words]).await;
        assert!(since.elapsed() < NOTICED, "{name}: {:?}", since.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_tried_again_for_ever_but_not_all_the_time() {
    let port = free_port();
    let mut daemon = Daemon::start(&config(port, SUPERUSER, NAME));
    let attempt = |record: &serde_json::Value| record["attempt"].as_u64();
    let start = Instant::now();
    daemon
        .wait_for_log("a sixth attempt", |record| attempt(record) >= Some(6))
        .await;
    // 100 ms, doubled each time, and half of it at least.
    assert!(start.elapsed() > Duration::from_millis(1_500));
    assert!(daemon.running());
    let log = daemon.log();
    assert!(
        log.contains(&format!("cannot connect to Postgres at 127.0.0.1:{port}")),
        "{log}"
    );
    assert!(!log.contains(CANARY), "{log}");
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_no_place_for_a_daemon_until_it_is_promoted() {
    let primary = ready(Options::default());
    let standby = primary.create_standby("standby", false);
    let mut daemon = Daemon::start(&config(standby.port(), SUPERUSER, "ready"));
    let record = daemon
        .wait_for_log("the standby's refusal", |record| record["attempt"].is_u64())
        .await;
    let error = record["error"].as_str().unwrap_or_default();
    assert!(
        error.contains("standby") && error.contains("point the URL at it"),
        "{error}"
    );
    assert!(daemon.running());
    drop(primary);
    standby.promote();
    stops(daemon, LOST, &["slot \"ready\" does not exist"]).await;
}
