//! What is not as it should be around the hold table and the outbox: rows edited into nonsense, a full disk, missing
//! rights, locks of others. It is said in clear words, what is not concerned goes on, and nothing is lost.

use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::exam::unbound::UNBOUND;
use crate::support::exam::{CANARY_PAYLOAD, CANARY_SECRET, Exam, assert_discreet, says};
use crate::support::tasks::{to_stdout, wait_for_printed};
use crate::support::wait::PATIENCE;

fn insert(exam: &Exam, rows: &str) {
    exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task, key) values {rows}"
    ));
}

/// Every column that a hand can reach, in values that no task has.
const NONSENSE: [&str; 22] = [
    "args = '{'",
    "args = repeat('[', 20000)",
    "kwargs = '[]'",
    "kwargs = 'canary-payload-93ab'",
    "options = '7'",
    "headers = '{\"a\": {\"b\": 1}}'",
    "headers = E'{\"a\\r\\nb\": \"c\\r\\nd\"}'",
    "body = 'canary-payload-93ab'",
    "priority = 'high'",
    "priority = '-99999999999999999999'",
    "run_at = 'tomorrow'",
    "run_at = 'infinity'",
    "expires_at = 'yesterday'",
    "expires_at = ''",
    "committed_at = 'infinity'",
    "committed_at = '-infinity'",
    "committed_at = '294276-12-31'",
    "commit_lsn = 'FFFFFFFF/FFFFFFFF', ordinal = 9223372036854775807",
    "attempts = 2147483647",
    "id = ''",
    "task = ''",
    "queue = E'\\x01\\n'",
];

/// By hand the row is due at once.
fn edit(exam: &Exam, task: &str, set: &str) {
    exam.postgres.psql(&format!(
        "update aftercommit.hold set due_at = '-infinity', {set} where task = '{task}'"
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_edited_into_nonsense_harm_nobody_else() {
    let exam = Exam::start();
    let config = exam.config();
    let mut daemon = Daemon::start(&config);
    let all = NONSENSE.len();
    exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task, key, run_at) select 't' || (n - 1), 'key ' || n, now() + interval '1 hour' from generate_series(1, {all}) n"
    ));
    exam.wait_for_answer("select count(*) from aftercommit.hold", &all.to_string())
        .await;
    for (number, nonsense) in NONSENSE.iter().enumerate() {
        edit(&exam, &format!("t{number}"), nonsense);
    }
    // Each is sent, or dead with a reason.
    exam.wait_for_answer(
        "select count(*) from aftercommit.hold where state <> 'dead'",
        "0",
    )
    .await;
    let dead = exam.postgres.psql(
        "select string_agg(task || ': ' || coalesce(nullif(last_error, ''), 'NO REASON'), E'\\n') from aftercommit.hold",
    );
    eprintln!("{dead}");
    assert!(!dead.contains("NO REASON"), "{dead}");
    let held: usize = exam
        .postgres
        .psql("select count(*) from aftercommit.hold")
        .parse()
        .expect("a number");
    let elsewhere = exam.redis.lrange("\u{1}\n").await.len();
    assert_eq!(exam.pushed().await + elsewhere + held, all);
    let pushed = exam.pushed().await;
    insert(&exam, "('after', null)");
    exam.wait_for_pushed(pushed + 1).await;
    // Sinks and routes that there are not, keys and places in queues.
    for (task, set) in [
        ("no sink", "sink = 'none', route = 'none'"),
        ("no route", "route = ''"),
        (
            "a key",
            "key = repeat('k', 100000), blocks = true, due_at = null, state = 'retrying'",
        ),
        (
            "behind nothing",
            "key = 'x', blocks = true, due_at = null, state = 'retrying'",
        ),
    ] {
        exam.postgres.psql(&format!(
            "insert into aftercommit.outbox (task, run_at) values ('{task}', now() + interval '1 hour')"
        ));
        exam.wait_for_answer(
            &format!("select count(*) from aftercommit.hold where task = '{task}'"),
            "1",
        )
        .await;
        exam.postgres.psql(
            &format!("update aftercommit.hold set due_at = now(), {set} where task = '{task}'")
                .replace("due_at = now(), key", "key"),
        );
    }
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);
    // What waits behind nothing goes on at the next start.
    let mut daemon = Daemon::start(&config);
    exam.wait_for_pushed(pushed + 5).await;
    exam.wait_for_answer(
        "select count(*) from aftercommit.hold where state <> 'dead'",
        "0",
    )
    .await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);
}

/// The same rows, for a sink that writes them as JSON.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_edited_into_nonsense_are_one_line_each_or_dead() {
    let exam = Exam::start();
    let config = to_stdout(&exam.postgres_url(), "aftercommit", "");
    let mut daemon = Daemon::start(&config);
    let all = NONSENSE.len();
    exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task, run_at) select 't' || (n - 1), now() + interval '1 hour' from generate_series(1, {all}) n"
    ));
    exam.wait_for_answer("select count(*) from aftercommit.hold", &all.to_string())
        .await;
    for (number, nonsense) in NONSENSE.iter().enumerate() {
        edit(&exam, &format!("t{number}"), nonsense);
    }
    exam.wait_for_answer(
        "select count(*) from aftercommit.hold where state <> 'dead'",
        "0",
    )
    .await;
    let held: usize = exam
        .postgres
        .psql("select count(*) from aftercommit.hold")
        .parse()
        .expect("a number");
    eprintln!("{held} of {all} are dead");
    let printed = wait_for_printed(&daemon, all - held).await;
    assert_eq!(printed.len(), all - held);
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let log = daemon.log();
    assert!(
        !log.contains(CANARY_PAYLOAD) && !log.contains("panicked"),
        "{log}"
    );
}

/// A disk that is full, under the hold table, the outbox or the checkpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_everything_is_kept() {
    let exam = Exam::start();
    exam.postgres.psql(
        "create function exam.full_disk() returns trigger language plpgsql as
           $$ begin raise exception 'could not extend file \"base/1/2\": No space left on device' using errcode = '53100'; end $$;
         create trigger full_disk before insert or update on aftercommit.hold execute function exam.full_disk()",
    );
    exam.divert("new.task = 'fails'");
    let config = exam.config().replace(
        "backoff =",
        "hold_after = \"0s\", attempts = 100000, backoff =",
    );
    let mut daemon = Daemon::start(&config);
    let confirmed = exam.confirmed();
    insert(&exam, "('fails', 'k'), ('behind', 'k'), ('free', null)");
    exam.wait_for_names(&["free"]).await;
    let record = daemon
        .wait_for_log("what is wrong", |record| {
            says(record, "what is settled cannot be written down")
        })
        .await;
    let words = record["error"].as_str().expect("words");
    assert!(words.contains("No space left on device"), "{record}");
    // Others still flow; and the daemon is asked to stop, and starts again.
    insert(&exam, "('free', null)");
    exam.wait_for_names(&["free", "free"]).await;
    assert!(exam.confirmed() <= confirmed + (1 << 20));
    assert_eq!(
        exam.postgres
            .psql("select count(*) from aftercommit.outbox"),
        "4"
    );
    daemon.kill9();
    assert_discreet(&daemon);
    // What Redis has taken is not pushed again, though nothing of it could be written down.
    let mut daemon = Daemon::start(&config);
    daemon
        .wait_for_log("what is wrong", |record| {
            says(record, "what is settled cannot be written down")
        })
        .await;
    exam.postgres
        .psql("drop trigger full_disk on aftercommit.hold");
    exam.wait_for_answer("select count(*) from aftercommit.hold", "2")
        .await;
    exam.bind();
    exam.nothing_left().await;
    assert_eq!(exam.names().await, ["free", "free", "fails", "behind"]);
    assert_discreet(&daemon);
}

/// A role of the daemon's own, with what init gives it.
fn own_role(exam: &Exam) -> String {
    exam.postgres
        .psql("create role daemon login replication; grant aftercommit_daemon to daemon");
    let url = exam.postgres.url(&format!("daemon:{CANARY_SECRET}"));
    exam.config_through(&url, &exam.redis.url(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_rights_on_the_hold_is_told_once_with_the_remedy() {
    let exam = Exam::start();
    let config = own_role(&exam);
    exam.postgres
        .psql("revoke update on aftercommit.hold from aftercommit_daemon");
    let mut daemon = Daemon::start(&config);
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(78));
    let log = daemon.log();
    assert!(
        log.contains("role \"daemon\" may not hold tasks") && log.contains("grant update on"),
        "{log}"
    );
    exam.postgres
        .psql("grant update on aftercommit.hold to aftercommit_daemon");

    // Taken away while it runs: it keeps what it cannot write down, and says so; a look every 20 seconds finds the
    // reason, and it stops with the remedy.
    let mut daemon = Daemon::start(&config);
    insert(&exam, "('before', null)");
    exam.wait_for_names(&["before"]).await;
    exam.wait_for_answer("select count(*) from aftercommit.outbox", "0")
        .await;
    exam.postgres
        .psql("revoke select, insert on aftercommit.hold from aftercommit_daemon");
    exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task, options, run_at) values ('kept', null, now() + interval '3 seconds'), ('fails', '{UNBOUND}', null)"
    ));
    let record = daemon
        .wait_for_log("the refusal", |record| {
            record["error"]
                .as_str()
                .is_some_and(|words| words.contains("permission denied for table hold"))
        })
        .await;
    assert!(
        record["error"]
            .as_str()
            .expect("words")
            .contains("aftercommit init"),
        "{record}"
    );
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(78));
    assert!(
        daemon.log().contains("may not hold tasks"),
        "{}",
        daemon.tail()
    );
    assert_discreet(&daemon);
    exam.postgres
        .psql("grant select, insert on aftercommit.hold to aftercommit_daemon");
    exam.bind();
    let _daemon = Daemon::start(&config);
    exam.nothing_left().await;
    let mut names = exam.names().await;
    names.sort();
    assert_eq!(names, ["before", "fails", "kept"]);
}

/// The application locks its own outbox, or rows of it, while settled rows are to leave: what is due is dispatched all the
/// same, and the rows go when they can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_on_the_outbox_hold_nobody_up() {
    let exam = Exam::start();
    let daemon = Daemon::start(&exam.config());
    exam.postgres.psql(
        "insert into aftercommit.outbox (task, run_at) select 'due', now() + n * interval '3 seconds' from generate_series(1, 3) n",
    );
    exam.wait_for_answer("select count(*) from aftercommit.hold", "3")
        .await;
    // The row of a task is locked by its own transaction's successor, say: before it is settled.
    let application = exam.postgres.client().await;
    let lock = "lock table aftercommit.outbox in access exclusive mode";
    application
        .batch_execute(&format!("begin; insert into aftercommit.outbox (task) values ('first'), ('second'); commit; begin; {lock}"))
        .await
        .expect("a lock");
    exam.wait_for_pushed(2).await;
    // The whole table, then one row.
    exam.wait_for_pushed(3).await;
    application
        .batch_execute("rollback; begin; insert into aftercommit.outbox (task) values ('third'), ('fourth'); commit")
        .await
        .expect("rows");
    application
        .batch_execute("begin; select from aftercommit.outbox for update")
        .await
        .expect("locks");
    let locked = application
        .query_one("select count(*) from aftercommit.outbox", &[])
        .await
        .expect("a number");
    eprintln!("{} rows locked", locked.get::<_, i64>(0));
    exam.wait_for_pushed(6).await;
    exam.insert(100);
    exam.wait_for_pushed(106).await;
    exam.wait_for_pushed(107).await;
    application
        .batch_execute("rollback")
        .await
        .expect("the end");
    exam.nothing_left().await;
    assert_eq!(exam.pushed().await, 107);
    assert_discreet(&daemon);
}

/// Rows that the application changes or takes away before they are settled are tasks as they were committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_changed_before_they_are_settled_are_sent_as_they_were_committed() {
    let exam = Exam::start();
    let config = exam.config();
    let mut daemon = Daemon::start(&config);
    exam.postgres.psql(
        "insert into aftercommit.outbox (task) values ('changed'), ('deleted'), ('kept');
         update aftercommit.outbox set task = 'never', args = '[1]' where task = 'changed';
         delete from aftercommit.outbox where task = 'deleted'",
    );
    exam.wait_for_names(&["changed", "deleted", "kept"]).await;
    exam.nothing_left().await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);
}

/// An operator's transaction that stays open holds the lock of the slot's hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_who_forgets_to_commit_loses_nothing() {
    let exam = Exam::start();
    let config = exam.config();
    let daemon = Daemon::start(&config);
    exam.insert(10);
    exam.nothing_left().await;
    let operator = exam.postgres.client().await;
    operator
        .batch_execute("begin; select aftercommit.hold_lock('aftercommit')")
        .await
        .expect("the lock");
    exam.insert(100);
    exam.wait_for_pushed(110).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    exam.insert(100);
    exam.wait_for_pushed(210).await;
    operator.batch_execute("rollback").await.expect("the end");
    exam.nothing_left().await;
    assert_eq!(exam.pushed().await, 210);
    assert_discreet(&daemon);
}
