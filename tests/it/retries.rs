//! Tasks that fail for a while: tried again in place, then from the hold table; their keys wait, and nobody else.

use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::{Daemon, aftercommit};
use crate::support::exam::unbound::UNBOUND;
use crate::support::exam::{Exam, IN_FLIGHT, assert_discreet, says};
use crate::support::wait::{PATIENCE, eventually};

/// The exam's configuration, with this as the route's `retry`.
fn config(exam: &Exam, retry: &str) -> String {
    let config = exam.config();
    let usual = "retry = { backoff = \"50ms..500ms\" }";
    assert!(config.contains(usual), "{config}");
    config.replace(usual, &format!("retry = {{ {retry} }}"))
}

fn insert(exam: &Exam, rows: &str) {
    exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task, key, options) values {rows}"
    ));
}

/// The records of a daemon's log about attempts: what was decided, and after how many attempts.
fn attempts(daemon: &Daemon) -> Vec<(String, u64)> {
    let records = daemon.records();
    let about = |record: &Value| {
        let message = record["message"].as_str()?;
        let decided = message.strip_prefix("not delivered; ");
        let decided = decided.or_else(|| message.starts_with("dead: ").then_some("dead"))?;
        Some((
            decided.to_owned(),
            record["attempts"].as_u64().unwrap_or_default(),
        ))
    };
    records.iter().filter_map(about).collect()
}

fn decided(words: &[(&str, u64)]) -> Vec<(String, u64)> {
    let words = words.iter();
    words
        .map(|(words, attempts)| ((*words).to_owned(), *attempts))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_key_waits_in_order_whatever_happens_to_the_daemon() {
    let mut exam = Exam::start();
    exam.divert("new.key in ('key-3', 'key-8')");
    let config = config(
        &exam,
        "attempts = 100000, backoff = \"100ms..300ms\", hold_after = \"400ms\"",
    );
    let load = exam.load(2, Duration::from_millis(40));
    let mut daemon = Daemon::start(&config);
    let failing = "select count(*) from aftercommit.hold where attempts > 1 and state = 'retrying' and due_at is not null";
    exam.wait_for_answer(failing, "2").await;
    let behind = |least: usize| {
        let sql = format!(
            "select count(*) >= {least} from aftercommit.hold where attempts = 0 and due_at is null and blocks"
        );
        let exam = &exam;
        async move { exam.wait_for_answer(&sql, "t").await }
    };
    behind(2).await;
    // The others flow.
    let before = exam.pushed().await;
    exam.wait_for_pushed(before + 500).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);

    let mut daemon = Daemon::start(&config);
    behind(4).await;
    let before = exam.pushed().await;
    exam.wait_for_pushed(before + 500).await;
    daemon.kill9();

    let daemon = Daemon::start(&config);
    behind(6).await;
    let before = exam.pushed().await;
    exam.wait_for_pushed(before + 500).await;
    let keys = "select string_agg(distinct key, ' ' order by key) from aftercommit.hold";
    assert_eq!(exam.postgres.psql(keys), "key-3 key-8");
    // They come while more of their keys are committed, behind them.
    exam.bind();
    exam.wait_for_answer("select count(*) from aftercommit.hold", "0")
        .await;
    load.stop().await;
    let receipt = exam.receipt().await;
    // In flight at the kill -9, or settled and not confirmed yet.
    receipt.assert_sound("two keys fail", 3 * IN_FLIGHT);
    exam.nothing_left().await;
    assert_discreet(&daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_are_counted_in_place_and_in_the_hold() {
    let exam = Exam::start();
    let in_place = "attempts = 3, backoff = \"50ms..100ms\", hold_after = \"1m\"";
    let mut daemon = Daemon::start(&config(&exam, in_place));
    insert(
        &exam,
        &format!("('bad', 'k', '{UNBOUND}'), ('behind', 'k', null), ('other', 'o', null)"),
    );
    // Dead, it lets its key go on.
    exam.wait_for_names(&["other", "behind"]).await;
    let held = "select state || ' ' || attempts || ' ' || blocks || ' ' || last_error from aftercommit.hold";
    exam.wait_for_answer(&format!("select count(*) from ({held}) h"), "1")
        .await;
    let words = exam.postgres.psql(held);
    assert!(
        words.starts_with("dead 3 false tried 3 times; the last time: no queue is bound"),
        "{words}"
    );
    let again = "will be tried again";
    assert_eq!(
        attempts(&daemon),
        decided(&[(again, 1), (again, 2), ("dead", 0)])
    );
    assert_eq!(daemon.terminate().await.code(), Some(0));

    // All attempts again, now from the hold table at once; and its key waits for it this time.
    let from_hold =
        "attempts = 3, backoff = \"50ms..100ms\", hold_after = \"0s\", on_dead = \"block\"";
    let config = config(&exam, from_hold);
    let mut daemon = Daemon::start(&config);
    let retry = || {
        let output = aftercommit(&["hold", "retry", "--task", "bad"], &config);
        assert!(output.status.success(), "{output:?}");
    };
    retry();
    let dead = |times: usize| {
        let daemon = &daemon;
        let what = format!("death number {times}");
        async move {
            eventually(PATIENCE, &what, || async {
                let dead = attempts(daemon);
                let dead = dead.iter().filter(|(decided, _)| decided == "dead");
                (dead.count() == times).then_some(())
            })
            .await;
        }
    };
    dead(1).await;
    let held = "held, to be tried again";
    let three = [(held, 1), (held, 2), ("dead", 0)];
    assert_eq!(attempts(&daemon), decided(&three));
    exam.wait_for_answer(
        "select state || ' ' || attempts || ' ' || blocks from aftercommit.hold",
        "dead 3 true",
    )
    .await;
    insert(&exam, "('waits', 'k', null), ('free', 'f', null)");
    exam.wait_for_names(&["other", "behind", "free"]).await;
    exam.wait_for_answer("select count(*) from aftercommit.hold", "2")
        .await;
    retry();
    dead(2).await;
    exam.bind();
    retry();
    exam.wait_for_names(&["other", "behind", "free", "bad", "waits"])
        .await;
    exam.nothing_left().await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);
}

/// Between two attempts there is the pause that was announced, in place and from the hold table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_grow_and_are_kept() {
    let exam = Exam::start();
    let retry = "attempts = 7, backoff = \"200ms..1s\", hold_after = \"1s\"";
    let mut daemon = Daemon::start(&config(&exam, retry));
    insert(&exam, &format!("('bad', null, '{UNBOUND}')"));
    daemon
        .wait_for_log("its death", |record| says(record, "dead: "))
        .await;
    let records = daemon.records();
    let tries = records
        .iter()
        .filter(|record| says(record, "not delivered; ") || says(record, "dead: "));
    let at = |record: &Value| {
        let text = record["timestamp"].as_str().expect("a time").to_owned();
        let seconds = exam
            .postgres
            .psql(&format!("select extract(epoch from timestamptz '{text}')"));
        seconds.parse::<f64>().expect("seconds")
    };
    let pause = |record: &Value| {
        let text = record["pause"].as_str().unwrap_or("0ms").to_owned();
        match text.strip_suffix("ms") {
            Some(ms) => ms.parse::<f64>().expect("ms") / 1_000.0,
            None => text.trim_end_matches('s').parse().expect("s"),
        }
    };
    let tries: Vec<(f64, f64)> = tries.map(|record| (at(record), pause(record))).collect();
    assert_eq!(tries.len(), 7, "{}", daemon.tail());
    for pair in tries.windows(2) {
        let ((before, pause), (after, _)) = (pair[0], pair[1]);
        let late = after - before - pause;
        eprintln!("a pause of {pause:.3} s, and {late:.3} s");
        assert!((-0.005..5.0).contains(&late), "{tries:?}");
    }
    assert!(tries[5].1 > tries[0].1, "{tries:?}");
    let in_place = attempts(&daemon);
    let in_place = in_place
        .iter()
        .filter(|(words, _)| words == "will be tried again");
    assert!((1..6).contains(&in_place.count()), "{}", daemon.tail());
}

/// What waits in place when the daemon stops is tried again when it would have been, not at once; nor does it forget how
/// often it was tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_outlives_the_daemon() {
    let exam = Exam::start();
    let config = config(&exam, "backoff = \"1h..1h\", hold_after = \"1d\"");
    let mut daemon = Daemon::start(&config);
    insert(
        &exam,
        &format!("('bad', 'k', '{UNBOUND}'), ('behind', 'k', null), ('alone', null, '{UNBOUND}')"),
    );
    eventually(PATIENCE, "two failures", || async {
        (attempts(&daemon).len() == 2).then_some(())
    })
    .await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let held = "select string_agg(concat_ws(' ', task, attempts, due_at > now() + interval '20 minutes'), ', ' \
                order by task) from aftercommit.hold";
    assert_eq!(exam.postgres.psql(held), "alone 1 t, bad 1 t, behind 0");
    assert_eq!(
        exam.postgres
            .psql("select count(*) from aftercommit.outbox"),
        "0"
    );
    // Whoever wants it sooner says so.
    exam.bind();
    let _daemon = Daemon::start(&config);
    for task in ["alone", "bad"] {
        exam.postgres.psql(&format!(
            "select aftercommit.hold_retry(hold_id) from aftercommit.hold where task = '{task}'"
        ));
        exam.wait_for_answer(
            &format!("select count(*) from aftercommit.hold where task = '{task}'"),
            "0",
        )
        .await;
    }
    exam.wait_for_names(&["alone", "bad", "behind"]).await;
    exam.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_is_dead_with_the_reason_and_never_sent() {
    let exam = Exam::start();
    let daemon = Daemon::start(&config(
        &exam,
        "attempts = 1000, backoff = \"100ms..200ms\", hold_after = \"0s\"",
    ));
    exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task, key, options, run_at, expires_at) values
           ('stale', 'k', null, null, now() - interval '1 second'),
           ('fresh', 'k', null, null, now() + interval '1 hour'),
           ('while it fails', 'l', '{UNBOUND}', null, now() + interval '2 seconds'),
           ('behind', 'l', null, null, null),
           ('before its time', 'm', null, now() + interval '4 seconds', now() + interval '3 seconds'),
           ('in time', 'm', null, now() + interval '4 seconds', null)"
    ));
    exam.wait_for_answer(
        "select string_agg(task, ', ' order by task) from aftercommit.hold where state = 'dead'",
        "before its time, stale, while it fails",
    )
    .await;
    let held = "select string_agg(concat_ws(' ', task, state, attempts > 1, last_error), ', ' order by task) \
                from aftercommit.hold";
    let expired = "it expired before it could be sent";
    exam.wait_for_answer(
        held,
        &format!(
            "before its time dead f {expired}, stale dead f {expired}, while it fails dead t {expired}"
        ),
    )
    .await;
    exam.bind();
    exam.wait_for_names(&["fresh", "behind", "in time"]).await;
    assert_discreet(&daemon);
}
