//! Tasks with a time: held, dispatched when it has come, and cancelled before.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::daemon::{Daemon, init};
use crate::support::exam::unbound::UNBOUND;
use crate::support::exam::{Exam, LIST, assert_discreet};
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::tasks::{Tasks, to_stdout};
use crate::support::wait::{PATIENCE, until};

/// How late a task may be. Fifty milliseconds are promised; these tests share the machine, and half of a debug build's.
const LATE_AT_MEDIAN: Duration = Duration::from_millis(100);

/// Microseconds since 1970, by the clock that this machine's server has too.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(now.expect("after 1970").as_micros()).expect("before 292277")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_go_when_their_time_has_come() {
    const TASKS: usize = 100;
    let postgres = Postgres::start(Options::default());
    let config = to_stdout(&postgres.url(SUPERUSER), "aftercommit", "");
    init(&config);
    let (_daemon, mut tasks) = Tasks::of(&config);
    // Committed in another order than they are due; one in ten shares its key with others.
    postgres.psql(&format!(
        "insert into aftercommit.outbox (task, key, run_at, kwargs)
         select 'a.scheduled', case when n % 10 = 0 then 'k' end, at, json_build_object('due', (extract(epoch from at) * 1000000)::int8)
         from (select n, now() + interval '2 seconds' + n * interval '20 milliseconds' as at from generate_series(1, {TASKS}) n) n
         order by random()"
    ));
    let (mut late, mut last) = (Vec::new(), 0);
    for _ in 0..TASKS {
        let task = tasks.next().await;
        let now = now();
        let due = task["kwargs"]["due"].as_i64().expect("a time");
        assert!(now >= due, "{} µs early", due - now);
        assert!(due > last, "one that was due later came earlier");
        last = due;
        late.push(Duration::from_micros((now - due).unsigned_abs()));
    }
    late.sort();
    let median = late[TASKS / 2];
    eprintln!(
        "{TASKS} tasks, late by: p50 {median:?}, p90 {:?}, max {:?}",
        late[TASKS * 9 / 10],
        late[TASKS - 1]
    );
    assert!(median < LATE_AT_MEDIAN, "{median:?}");
    until(PATIENCE, "an empty hold table", || {
        (postgres.psql("select count(*) from aftercommit.hold") == "0").then_some(())
    });
    assert!(tasks.none().await);
}

/// Name, eta and id of each message, the oldest first.
async fn messages(exam: &Exam) -> Vec<(String, Value, String)> {
    let messages = exam.redis.lrange(LIST).await;
    let read = |message: &Vec<u8>| {
        let message: Value = serde_json::from_slice(message).expect("JSON");
        let headers = &message["headers"];
        let text = |name: &str| headers[name].as_str().expect("a string").to_owned();
        (text("task"), headers["eta"].clone(), text("id"))
    };
    messages.iter().rev().map(read).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduled_tasks_outlive_the_daemon() {
    const TASKS: usize = 40;
    let exam = Exam::start();
    let config = exam.config();
    let mut daemon = Daemon::start(&config);
    exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task, key, run_at)
         select 'n' || n, case when n % 4 = 0 then 'k' || n % 3 end, now() + interval '3 seconds' + n * interval '100 milliseconds'
         from generate_series(1, {TASKS}) n order by random()"
    ));
    // A worker keeps what is due in a moment, with its eta.
    exam.postgres
        .psql("insert into aftercommit.outbox (task, run_at) values ('soon', now() + interval '1900 milliseconds')");
    exam.wait_for_answer("select count(*) from aftercommit.hold", &TASKS.to_string())
        .await;
    exam.wait_for_names(&["soon"]).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));

    let mut daemon = Daemon::start(&config);
    exam.wait_for_pushed(6).await;
    daemon.kill9();
    let mut daemon = Daemon::start(&config);
    exam.wait_for_pushed(25).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let early = now();
    let mut daemon = Daemon::start(&config);
    exam.nothing_left().await;

    let messages = messages(&exam).await;
    let mut seen = std::collections::HashSet::new();
    let mut twice = 0;
    let mut names = Vec::new();
    for (name, eta, id) in &messages {
        let eta = eta.as_str().unwrap_or_else(|| panic!("{name} has no eta"));
        assert!(eta.contains('T'), "{eta}");
        match seen.insert(id) {
            true => names.push(name.as_str()),
            false => twice += 1,
        }
    }
    eprintln!("{twice} of {TASKS} came twice after a kill -9");
    let expected: Vec<String> = (1..=TASKS).map(|n| format!("n{n}")).collect();
    assert_eq!(names[0], "soon");
    assert_eq!(names[1..], expected, "in the order in which they were due");
    assert!(twice <= 6, "{twice}");
    assert!(now() - early < 60_000_000);
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_cancelled_until_it_is_too_late() {
    let exam = Exam::start();
    let config = exam.config();
    let daemon = Daemon::start(&config.replace("backoff =", "attempts = 100000, backoff ="));
    exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task, run_at, options)
         select task, now() + after, options::json from (values
           ('never', interval '3 seconds', null), ('kept', interval '3 seconds', null),
           ('dropped', interval '3 seconds', null), ('comes', interval '4 seconds', null),
           ('fails', interval '2100 milliseconds', '{UNBOUND}')) t (task, after, options)"
    ));
    exam.wait_for_answer("select count(*) from aftercommit.hold", "5")
        .await;
    let id = |task: &str| {
        exam.postgres.psql(&format!(
            "select id from aftercommit.hold where task = '{task}'"
        ))
    };
    // As the application's own role.
    exam.postgres
        .psql("create role shop login; grant aftercommit_app to shop");
    let shop = exam.postgres.client_as("shop").await;
    let cancel = async |client: &tokio_postgres::Client, id: &str| {
        let sql = format!("select aftercommit.cancel('{id}'::uuid)");
        let row = client.query_one(&sql, &[]).await.expect("an answer");
        row.get::<_, String>(0)
    };
    let ids = ["never", "kept", "dropped", "fails"].map(id);
    let [never, kept, dropped, fails] = &ids;
    assert_eq!(cancel(&shop, never).await, "cancelled");
    assert_eq!(cancel(&shop, never).await, "not held");
    // Their time comes while it is open whether they will be cancelled.
    let undecided = exam.postgres.client_as("shop").await;
    undecided.batch_execute("begin").await.expect("begin");
    assert_eq!(cancel(&undecided, kept).await, "cancelled");
    let decided = exam.postgres.client_as("shop").await;
    decided.batch_execute("begin").await.expect("begin");
    assert_eq!(cancel(&decided, dropped).await, "cancelled");

    exam.wait_for_names(&["comes"]).await;
    exam.wait_for_answer(
        "select count(*) from aftercommit.hold where attempts > 0 and task = 'fails'",
        "1",
    )
    .await;
    assert_eq!(cancel(&shop, fails).await, "too late");
    undecided.batch_execute("rollback").await.expect("rollback");
    decided.batch_execute("commit").await.expect("commit");
    exam.wait_for_names(&["comes", "kept"]).await;
    exam.wait_for_answer(
        "select count(*) from aftercommit.hold where task = 'kept'",
        "0",
    )
    .await;
    assert_eq!(cancel(&shop, kept).await, "not held");
    exam.bind();
    exam.wait_for_names(&["comes", "kept", "fails"]).await;
    exam.nothing_left().await;
    assert_discreet(&daemon);
}

/// A transaction that cancels many and stays open holds up nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_are_being_cancelled_hold_up_no_other() {
    let exam = Exam::start();
    let _daemon = Daemon::start(&exam.config());
    exam.postgres.psql(
        "insert into aftercommit.outbox (task, run_at)
         select 'undecided', now() + interval '4 seconds' from generate_series(1, 3000)",
    );
    exam.wait_for_answer("select count(*) from aftercommit.hold", "3000")
        .await;
    let client = exam.postgres.client().await;
    let cancel = "begin; select aftercommit.cancel(id) from aftercommit.hold";
    client.batch_execute(cancel).await.expect("a cancel");
    exam.wait_for_answer(
        "select count(*) filter (where due_at < now()) from aftercommit.hold",
        "3000",
    )
    .await;
    exam.postgres.psql(
        "insert into aftercommit.outbox (task, run_at) values ('comes', now() + interval '2500 milliseconds')",
    );
    exam.wait_for_names(&["comes"]).await;
    client.batch_execute("commit").await.expect("commit");
    exam.nothing_left().await;
    assert_eq!(exam.names().await, ["comes"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_task_queues_behind_its_key() {
    let exam = Exam::start();
    let config = exam.config().replace(
        "backoff = \"50ms..500ms\"",
        "attempts = 10000, backoff = \"50ms..500ms\", hold_after = \"0s\"",
    );
    let mut daemon = Daemon::start(&config);
    // Committed before the one that fails, but due after it.
    exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task, key, run_at, options) values
           ('cancelled', 'k', now() + interval '2500 milliseconds', null), ('of k', 'k', now() + interval '2500 milliseconds', null), ('of o', 'o', now() + interval '2600 milliseconds', null),
           ('fails', 'k', null, '{UNBOUND}'), ('behind', 'k', null, null)"
    ));
    exam.wait_for_answer(
        "select count(*) from aftercommit.hold where state = 'scheduled'",
        "3",
    )
    .await;
    let client = exam.postgres.client().await;
    let cancel =
        "begin; select aftercommit.cancel(id) from aftercommit.hold where task = 'cancelled'";
    client.batch_execute(cancel).await.expect("a cancel");
    exam.wait_for_names(&["of o"]).await;
    exam.wait_for_answer(
        "select string_agg(task, ', ' order by hold_id) from aftercommit.hold where blocks and key = 'k'",
        "fails, behind, of k",
    )
    .await;
    client.batch_execute("commit").await.expect("commit");
    exam.postgres
        .psql("insert into aftercommit.outbox (task, key) values ('last', 'k')");
    exam.wait_for_answer("select count(*) from aftercommit.hold where blocks", "4")
        .await;
    daemon.kill9();
    let _daemon = Daemon::start(&config);
    exam.bind();
    exam.wait_for_names(&["of o", "fails", "behind", "of k", "last"])
        .await;
    exam.nothing_left().await;
}
