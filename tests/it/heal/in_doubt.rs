//! What is not healed: without consent, somebody else's slot, another history; and who keeps it from being done.

use super::{DELETES, DROP, HEALING, count, wait_until_healed, with_heal};
use crate::support::daemon::{Daemon, init};
use crate::support::exam::{Exam, says};
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::tasks::{printed, to_stdout, wait_for_printed};
use crate::support::wait::PATIENCE;

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

    // Also with nothing to write down: what is healed belongs to this history.
    exam.postgres
        .psql("update aftercommit.checkpoint set timeline = timeline + 1");
    for healings in [1, 0] {
        let mut daemon = Daemon::start(&config);
        daemon
            .wait_for_log("the stream", |record| says(record, "streaming"))
            .await;
        wait_until_healed(&mut daemon, &exam.postgres, healings).await;
        assert_eq!(count(&daemon, HEALING), healings, "{}", daemon.tail());
        assert!(daemon.terminate().await.success());
    }
}
