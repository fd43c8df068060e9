//! Rows that a sink could never take: without a hold table they stop the daemon, and lose nothing.

use crate::support::daemon::{Daemon, init};
use crate::support::exam::{Exam, LIST, assert_discreet};
use crate::support::wait::PATIENCE;

/// What the daemon says at its end: the words for people, not the log.
fn last_words(daemon: &Daemon) -> String {
    let log = daemon.log();
    let words: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(words.len(), 1, "{log}");
    words[0].to_owned()
}

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

/// Takes the daemon to a row with an option that nobody knows, with neighbours of other keys in its transaction and
/// around it; returns the position that it names.
async fn stopped_by_a_rejected_row(exam: &Exam) -> String {
    let id = "6d5d1d0c-7f0e-4c0e-8f57-7c1ae2d3a001";
    exam.postgres
        .psql("insert into aftercommit.outbox (task) values ('before')");
    exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (id, task, key, options) values
           (gen_random_uuid(), 'neighbour', 'one', null),
           ('{id}', 'bad', 'two', '{{\"time_limits\": 3}}'),
           (gen_random_uuid(), 'neighbour', 'three', null)"
    ));
    exam.postgres
        .psql("insert into aftercommit.outbox (task) values ('after')");
    let mut daemon = Daemon::start(&exam.config());
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(1));
    let words = last_words(&daemon);
    for needed in [
        id,
        "\"bad\"",
        "options.time_limits is not known to the celery sink",
    ] {
        assert!(words.contains(needed), "{needed} in {words}");
    }
    let (_, rest) = words.split_once("committed at ").expect("a position");
    let position = rest.split(',').next().expect("a position").to_owned();

    let names = delivered(exam).await;
    assert!(names.iter().any(|name| name == "before"), "{names:?}");
    assert!(!names.iter().any(|name| name == "bad"), "{names:?}");
    // Everything before it is confirmed, and nothing behind it.
    let sql = format!("select confirmed_flush_lsn <= '{position}' from pg_replication_slots");
    assert_eq!(exam.postgres.psql(&sql), "t");
    position
}

/// After the remedy: everything but the rejected row was delivered, and the daemon goes on.
async fn assert_goes_on(exam: &Exam) {
    let mut daemon = Daemon::start(&exam.config());
    exam.postgres
        .psql("insert into aftercommit.outbox (task) values ('later')");
    crate::support::wait::eventually(PATIENCE, "the later task", || async {
        delivered(exam)
            .await
            .contains(&"later".to_owned())
            .then_some(())
    })
    .await;
    let names = delivered(exam).await;
    let count = |wanted: &str| names.iter().filter(|name| *name == wanted).count();
    assert_eq!(
        (count("before"), count("bad"), count("later")),
        (1, 0, 1),
        "{names:?}"
    );
    assert!(count("after") >= 1, "{names:?}");
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_row_can_be_sent_elsewhere() {
    let exam = Exam::start();
    let position = stopped_by_a_rejected_row(&exam).await;
    let until = exam
        .postgres
        .psql(&format!("select '{position}'::pg_lsn + 1"));
    let elsewhere =
        "[sink.stdout.elsewhere]\n\n[[route]]\ntask = \"bad\"\nsink = \"elsewhere\"\n\n[[route]]";
    let config = exam.config().replacen("[[route]]", elsewhere, 1);
    let mut daemon = Daemon::start_with(&config, |command| {
        command.args(["--until", &until]);
    });
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(0));
    let printed = daemon.stdout();
    assert_eq!(printed.len(), 1, "{printed:?}");
    assert!(printed[0].contains("\"time_limits\": 3"), "{printed:?}");
    let names = delivered(&exam).await;
    let neighbours = names.iter().filter(|name| *name == "neighbour").count();
    assert!(neighbours >= 2, "{names:?}");
    assert_goes_on(&exam).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_can_be_moved_past_the_transaction_of_a_rejected_row() {
    let exam = Exam::start();
    let position = stopped_by_a_rejected_row(&exam).await;
    // At the start of the commit record the transaction would be sent again: one byte further it is passed.
    let advance = |position: &str| {
        exam.postgres.psql(&format!(
            "select pg_replication_slot_advance('aftercommit', '{position}'::pg_lsn + 1)"
        ));
    };
    advance(&position);
    assert_goes_on(&exam).await;
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
    exam.postgres
        .psql("insert into jobs (task, arguments) values ('before', '[1]')");
    exam.postgres
        .psql("insert into jobs (task, arguments) values ('bad', 'canary-payload-93ab')");
    exam.postgres
        .psql("insert into jobs (task, arguments) values ('after', '[2]')");
    let mut daemon = Daemon::start(&config);
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(1));
    let words = last_words(&daemon);
    eprintln!("{words}");
    assert!(
        words.contains("task 2 (\"bad\")") && words.contains("args"),
        "{words}"
    );
    assert_discreet(&daemon);
    assert!(!delivered(&exam).await.contains(&"bad".to_owned()));
}
