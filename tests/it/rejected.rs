//! Rows that a sink could never take: they are dead in the hold table, with the reason, and their neighbours flow.

use crate::support::daemon::{Daemon, aftercommit, init};
use crate::support::exam::{Exam, LIST, assert_discreet, says};
use crate::support::wait::{PATIENCE, eventually};

/// The task names in the list, the oldest first.
async fn delivered(exam: &Exam) -> Vec<String> {
    let messages = exam.redis.lrange(LIST).await;
    let names = messages.iter().rev().map(|message| {
        let message: serde_json::Value = serde_json::from_slice(message).expect("JSON");
        message["headers"]["task"]
            .as_str()
            .expect("a task")
            .to_owned()
    });
    names.collect()
}

/// Waits until these names, and no others, are delivered.
async fn wait_for_delivered(exam: &Exam, names: &[&str]) {
    eventually(PATIENCE, &format!("{names:?}"), || async {
        (delivered(exam).await == names).then_some(())
    })
    .await;
}

/// Waits until this is what the hold table has: task, state and blocks of each row.
async fn wait_for_held(exam: &Exam, rows: &str) {
    eventually(PATIENCE, &format!("{rows:?} in the hold table"), || async {
        let held = "select task, state, blocks from aftercommit.hold order by hold_id";
        (exam.postgres.psql(held) == rows).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_row_is_dead_until_somebody_looks() {
    let exam = Exam::start();
    let config = exam.config();
    let mut daemon = Daemon::start(&config);
    exam.postgres.psql(
        "insert into aftercommit.outbox (task, key, options) values
           ('first', 'k', null), ('bad', 'k', '{\"time_limits\": 3}'), ('second', 'k', null)",
    );
    wait_for_delivered(&exam, &["first", "second"]).await;
    wait_for_held(&exam, "bad|dead|f").await;
    let record = daemon
        .wait_for_log("the reason", |record| says(record, "dead: this task"))
        .await;
    assert!(
        record["cause"]
            .as_str()
            .expect("words")
            .contains("options.time_limits is not known"),
        "{record}"
    );
    eventually(PATIENCE, "an empty outbox", || async {
        (exam
            .postgres
            .psql("select count(*) from aftercommit.outbox")
            == "0")
            .then_some(())
    })
    .await;

    // Retried as it is, it dies again; made good, it is sent.
    let retry = || {
        let output = aftercommit(&["hold", "retry", "--task", "bad"], &config);
        assert!(output.status.success(), "{output:?}");
    };
    let held_at = exam
        .postgres
        .psql("select updated_at from aftercommit.hold");
    retry();
    eventually(PATIENCE, "another death", || async {
        let again = format!("select count(*) from aftercommit.hold where state = 'dead' and updated_at > '{held_at}' and attempts = 1");
        (exam.postgres.psql(&again) == "1").then_some(())
    })
    .await;
    exam.postgres
        .psql("update aftercommit.hold set options = null");
    retry();
    wait_for_delivered(&exam, &["first", "second", "bad"]).await;
    exam.nothing_left().await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_row_may_block_its_key_until_it_is_discarded() {
    let exam = Exam::start();
    let config = exam
        .config()
        .replace("backoff = ", "on_dead = \"block\", backoff = ");
    let mut daemon = Daemon::start(&config);
    exam.postgres.psql(
        "insert into aftercommit.outbox (task, key, options) values
           ('first', 'k', null), ('bad', 'k', '{\"time_limits\": 3}'), ('second', 'k', null), ('other', 'o', null)",
    );
    wait_for_delivered(&exam, &["first", "other"]).await;
    wait_for_held(&exam, "bad|dead|t\nsecond|retrying|t").await;
    // Across a restart, too.
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let mut daemon = Daemon::start(&config);
    exam.postgres
        .psql("insert into aftercommit.outbox (task, key) values ('third', 'k'), ('another', 'o')");
    wait_for_delivered(&exam, &["first", "other", "another"]).await;
    wait_for_held(&exam, "bad|dead|t\nsecond|retrying|t\nthird|retrying|t").await;
    let output = aftercommit(&["hold", "discard", "--task", "bad"], &config);
    assert!(output.status.success(), "{output:?}");
    wait_for_delivered(&exam, &["first", "other", "another", "second", "third"]).await;
    exam.nothing_left().await;
    exam.postgres
        .psql("insert into aftercommit.outbox (task, key) values ('fourth', 'k')");
    wait_for_delivered(
        &exam,
        &["first", "other", "another", "second", "third", "fourth"],
    )
    .await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_without_a_route_is_dead_until_there_is_one() {
    let exam = Exam::start();
    let config = exam.config();
    let narrow = config.replace("task = \"*\"", "task = \"shop.*\"");
    let mut daemon = Daemon::start(&narrow);
    exam.postgres
        .psql("insert into aftercommit.outbox (task) values ('shop.a'), ('mail.b'), ('shop.c')");
    wait_for_delivered(&exam, &["shop.a", "shop.c"]).await;
    wait_for_held(&exam, "mail.b|dead|f").await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let _daemon = Daemon::start(&config);
    let output = aftercommit(&["hold", "retry", "--task", "mail.b"], &config);
    assert!(output.status.success(), "{output:?}");
    wait_for_delivered(&exam, &["shop.a", "shop.c", "mail.b"]).await;
    exam.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_table_may_hold_what_is_no_json() {
    let exam = Exam::start();
    exam.postgres
        .psql("create table jobs (id bigserial primary key, task text not null, arguments text)");
    let config = exam.config().replace(
        "[limits]",
        "slot = \"jobs\"\npublication = \"jobs\"\n\n[outbox]\ntable = \"public.jobs\"\n\
                  [outbox.columns]\nargs = \"arguments\"\n\n[limits]",
    );
    init(&config);
    let daemon = Daemon::start(&config);
    exam.postgres.psql(
        "insert into jobs (task, arguments) values ('before', '[1]'), ('bad', 'canary-payload-93ab'), ('after', '[2]')",
    );
    wait_for_delivered(&exam, &["before", "after"]).await;
    wait_for_held(&exam, "bad|dead|f").await;
    let error = exam
        .postgres
        .psql("select last_error from aftercommit.hold");
    assert!(error.contains("args"), "{error}");
    assert_eq!(exam.postgres.psql("select count(*) from jobs"), "0");
    assert_discreet(&daemon);
}
