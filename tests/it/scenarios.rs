//! What people do with Django and Celery, through the real ones: each scenario is played by `django/drive.py` in a
//! Django process, dispatched by the daemon to a real Celery worker over a real Redis, and judged here.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::support::celery::{Project, Worker};
use crate::support::daemon::{Daemon, init};
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, eventually, until};

/// The application's role may insert into the outbox, the daemon's may replicate: that has to be enough for both.
const APPLICATION: &str = "shop";
const DAEMON: &str = "aftercommit";

/// A Django project, the worker of its tasks, and the daemon between them.
struct Stack {
    postgres: Postgres,
    redis: Redis,
    project: Project,
    daemon: Daemon,
    worker: Worker,
}

impl Stack {
    /// `worker_query` is added to the worker's database URL.
    fn start(postgres: Postgres, worker_query: &str) -> Stack {
        let redis = Redis::start();
        init(&config(&postgres.url(SUPERUSER), &redis.url(0), ""));
        postgres.psql(&format!(
            "create role {APPLICATION} login in role aftercommit_app;
             create role {DAEMON} login replication in role aftercommit_daemon;
             grant create on schema public to {APPLICATION}"
        ));
        let project = project(postgres.url(APPLICATION), redis.url(0));
        project.run(&[
            "-m",
            "django",
            "migrate",
            "--run-syncdb",
            "--verbosity",
            "0",
        ]);
        let daemon = Daemon::start(&config(&postgres.url(DAEMON), &redis.url(0), ""));
        let mut workers = project.clone();
        workers.database_url.push_str(worker_query);
        let worker = Worker::start(&workers, 2, "celery,e01");
        Stack {
            postgres,
            redis,
            project,
            daemon,
            worker,
        }
    }

    /// The stack that most scenarios share; they do not see each other's tasks.
    fn shared() -> &'static Stack {
        static STACK: LazyLock<Stack> = LazyLock::new(|| {
            let postgres = Postgres::start(Options {
                settings: &[("deadlock_timeout", "100ms")],
                ..Options::default()
            });
            Stack::start(postgres, "")
        });
        &STACK
    }

    /// Plays a scenario to its end.
    fn play(&self, arguments: &[&str]) -> Report {
        let mut command = vec![DRIVER];
        command.extend(arguments);
        let output = self.project.python(&command).output().expect("python");
        assert!(
            output.status.success(),
            "{arguments:?} did not come to its end:\n{}\n--- daemon:\n{}\n--- worker:\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.daemon.tail(),
            self.worker.tail(),
        );
        serde_json::from_slice(&output.stdout).expect("a report")
    }
}

const DRIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/django/drive.py");

fn project(database_url: String, broker_url: String) -> Project {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Project {
        path: vec![root.join("examples/django"), root.join("tests/it/django")],
        settings: "scenarios.settings",
        app: "shop",
        database_url,
        broker_url,
    }
}

fn config(postgres_url: &str, broker_url: &str, more: &str) -> String {
    format!(
        r#"
{more}

[postgres]
url = "{postgres_url}"
slot = "aftercommit"
publication = "aftercommit"

[sink.celery.workers]
broker_url = "{broker_url}"

[[route]]
task = "*"
sink = "workers"
"#
    )
}

/// What a scenario has sent, and what the worker has run.
#[derive(Deserialize, Debug)]
struct Report {
    sent: Vec<String>,
    runs: Vec<Run>,
    /// Rows that the scenario's transactions left behind.
    entities: u64,
    #[serde(flatten)]
    more: Map<String, Value>,
}

/// One attempt of a task.
#[derive(Deserialize, Debug)]
struct Run {
    task_id: String,
    retries: u64,
    /// When it began, in seconds.
    at: f64,
    /// Whether it found the row that it is about.
    found: Option<bool>,
    details: Option<Value>,
}

impl Report {
    fn found(&self, found: bool) -> usize {
        self.runs
            .iter()
            .filter(|run| run.found == Some(found))
            .count()
    }

    /// So many tasks ran, once each, and found their row.
    fn assert_once_each(&self, count: usize) {
        let ids: BTreeSet<&str> = self.runs.iter().map(|run| run.task_id.as_str()).collect();
        assert_eq!(self.runs.len(), count, "runs: {self:#?}");
        assert_eq!(ids.len(), count, "a task ran twice: {self:#?}");
        assert_eq!(self.found(true), count, "DoesNotExist: {self:#?}");
    }

    /// What was sent, and nothing else, ran once each and found its row.
    fn assert_what_was_sent(&self, count: usize) {
        let sent: BTreeSet<&str> = self.sent.iter().map(String::as_str).collect();
        let ran: BTreeSet<&str> = self.runs.iter().map(|run| run.task_id.as_str()).collect();
        assert_eq!(sent.len(), count);
        assert_eq!(ran, sent);
        self.assert_once_each(count);
    }

    fn assert_all(&self, name: &str, value: Value) {
        let list = self.more[name].as_array().expect("a list");
        assert!(list.iter().all(|item| *item == value), "{name}: {list:?}");
    }

    /// No task began before its transaction was committed.
    fn assert_after_commit(&self) {
        for run in &self.runs {
            let commit = self.more["before_commit"][&run.task_id].as_f64();
            assert!(run.at >= commit.expect("the time of a commit"), "{self:#?}");
        }
    }
}

/// Rows in the outbox that were written for a scenario.
fn outbox_rows(postgres: &Postgres, scenario: &str) -> u64 {
    let sql = format!("select count(*) from aftercommit.outbox where args ->> 0 = '{scenario}'");
    postgres.psql(&sql).parse().expect("a number")
}

#[test]
fn a01_fifty_atomic_requests_run_fifty_tasks() {
    let report = Stack::shared().play(&["A01"]);
    report.assert_all("statuses", json!(200));
    report.assert_what_was_sent(50);
}

#[test]
fn a02_a_view_that_raises_leaves_neither_row_nor_message() {
    let stack = Stack::shared();
    let report = stack.play(&["A02"]);
    report.assert_all("statuses", json!(500));
    assert_eq!((report.runs.len(), report.entities), (0, 0));
    assert_eq!(outbox_rows(&stack.postgres, "A02"), 0);
}

#[test]
fn a03_a_non_atomic_request_delivers_each_statement_and_a_later_exception_cancels_nothing() {
    let report = Stack::shared().play(&["A03"]);
    report.assert_all("statuses", json!(500));
    report.assert_once_each(20);
}

#[test]
fn a04_enqueued_in_on_commit_runs_once() {
    let report = Stack::shared().play(&["A04"]);
    report.assert_all("statuses", json!(200));
    report.assert_once_each(20);
}

#[test]
fn b01_a_transaction_that_sleeps_after_the_insert() {
    let report = Stack::shared().play(&["B01"]);
    report.assert_what_was_sent(4);
    report.assert_after_commit();
}

#[test]
fn b02_an_autocommit_view_that_raises_keeps_its_rows_and_its_tasks() {
    let report = Stack::shared().play(&["B02"]);
    report.assert_all("statuses", json!(500));
    assert_eq!(report.entities, 2);
    report.assert_once_each(2);
}

#[test]
fn b03_a_countdown_is_waited_for() {
    let report = Stack::shared().play(&["B03"]);
    report.assert_what_was_sent(3);
    let not_before = report.more["not_before"].as_f64().expect("a time");
    assert!(
        report.runs.iter().all(|run| run.at >= not_before),
        "{report:#?}"
    );
}

#[test]
fn b04_a_transaction_longer_than_the_countdown_runs_at_once_after_commit() {
    let report = Stack::shared().play(&["B04"]);
    report.assert_what_was_sent(1);
    report.assert_after_commit();
    let commit = report.more["before_commit"][&report.sent[0]]
        .as_f64()
        .expect("a time");
    let wait = report.runs[0].at - commit;
    assert!(
        wait < 10.0,
        "{wait} s after COMMIT, on however busy a machine"
    );
}

#[test]
fn b05_an_atomic_task_that_retries_keeps_its_id_and_its_failures_leave_nothing() {
    let report = Stack::shared().play(&["B05"]);
    let attempts: Vec<_> = report
        .runs
        .iter()
        .map(|run| (&run.task_id, run.retries))
        .collect();
    let id = &report.sent[0];
    assert_eq!(attempts, [(id, 0), (id, 1), (id, 2)]);
    // The row and the task of the attempt that succeeded, and of no other.
    assert_eq!(report.more["values"], json!([2]));
    assert_eq!(report.more["next"], json!(1));
}

#[test]
fn b06_a_task_that_always_fails_is_tried_six_times() {
    let report = Stack::shared().play(&["B06"]);
    let attempts: Vec<_> = report
        .runs
        .iter()
        .map(|run| (&run.task_id, run.retries))
        .collect();
    let id = &report.sent[0];
    assert_eq!(
        attempts,
        [(id, 0), (id, 1), (id, 2), (id, 3), (id, 4), (id, 5)]
    );
    assert_eq!(report.entities, 0);
}

#[test]
fn b07_an_expired_task_does_not_run() {
    let report = Stack::shared().play(&["B07"]);
    report.assert_what_was_sent(1);
    assert_ne!(report.more["expired"], json!(report.runs[0].task_id));
}

#[test]
fn b08_ids_priorities_headers_and_arguments_arrive_intact() {
    let report = Stack::shared().play(&["B08"]);
    let calls = report.more["calls"].as_array().expect("the calls");
    assert_eq!((report.runs.len(), calls.len()), (4, 4), "{report:#?}");
    for call in calls {
        let run = report
            .runs
            .iter()
            .find(|run| call["id"] == json!(run.task_id));
        let details = run
            .and_then(|run| run.details.as_ref())
            .expect("a run of each call");
        for name in ["args", "kwargs", "priority"] {
            assert_eq!(details[name], call[name], "{name}");
        }
        assert_eq!(details["timelimit"], json!([300, 200]));
        assert_eq!(details["headers"]["tenant"], json!("Łódź"), "{details}");
        assert_eq!(details["headers"]["number"], call["number"]);
    }
}

#[test]
fn c01_a_rolled_back_savepoint_sends_nothing() {
    Stack::shared().play(&["C01"]).assert_what_was_sent(2);
}

#[test]
fn c02_released_savepoints_are_sent_unless_an_outer_one_is_rolled_back() {
    Stack::shared().play(&["C02"]).assert_what_was_sent(4);
}

#[tokio::test]
async fn d01_commit_order_is_the_order_of_dispatch() {
    let stack = Stack::shared();
    let report = stack.play(&["D01"]);
    report.assert_what_was_sent(6);
    // The queue that no worker reads; what was pushed first is at its end.
    let messages = stack.redis.lrange("d01").await;
    let ids = messages.iter().rev().map(|message| {
        let message: Value = serde_json::from_slice(message).expect("JSON");
        message["headers"]["id"].clone()
    });
    assert_eq!(Value::Array(ids.collect()), report.more["commit_order"]);
}

/// The winner's task and that of the second try ran once each; the loser's did not.
fn assert_loser_sent_nothing(report: &Report, sqlstate: &str) {
    assert_eq!(report.more["sqlstate"], json!(sqlstate));
    report.assert_what_was_sent(2);
    assert!(
        !report
            .sent
            .iter()
            .any(|id| report.more["loser"] == json!(id))
    );
}

#[test]
fn d02_the_loser_of_a_serializable_conflict_sends_nothing() {
    assert_loser_sent_nothing(&Stack::shared().play(&["D02"]), "40001");
}

#[test]
fn d03_the_loser_of_a_repeatable_read_conflict_sends_nothing() {
    assert_loser_sent_nothing(&Stack::shared().play(&["D03"]), "40001");
}

#[test]
fn d04_the_victim_of_a_deadlock_sends_nothing_and_its_second_try_once() {
    let report = Stack::shared().play(&["D04"]);
    assert_eq!(report.more["sqlstates"], json!(["40P01"]));
    assert_eq!(report.more["losers"].as_array().map(Vec::len), Some(1));
    report.assert_what_was_sent(2);
}

#[test]
fn d05_ten_waiters_for_one_row_send_ten_tasks() {
    let report = Stack::shared().play(&["D05"]);
    assert_eq!(report.more["counter"], json!(10));
    report.assert_what_was_sent(10);
}

#[test]
fn e01_five_thousand_rows_wait_for_one_commit() {
    let report = Stack::shared().play(&["E01"]);
    assert_eq!(report.more["early"], json!(0));
    report.assert_what_was_sent(5000);
}

/// Django's own test cases, on a database that a daemon watches: what they roll back is seen by them and sent to
/// nobody, and what they truncate harms nobody.
#[tokio::test]
async fn e02_django_test_cases_see_their_rows_and_send_nothing() {
    let postgres = Postgres::start(Options::default());
    let redis = Redis::start();
    // The name that Django gives to the test database of `app`.
    postgres.psql("create database test_app");
    let database = |name: &str| postgres.url(SUPERUSER).replace("/app", &format!("/{name}"));
    let config = config(&database("test_app"), &redis.url(0), "");
    init(&config);
    let _daemon = Daemon::start(&config);

    let mut project = project(database("app"), redis.url(0));
    project.settings = "shop.settings";
    project.run(&["-m", "django", "test", "--keepdb", "orders"]);

    let sql = "select aftercommit.enqueue('the.only.one')";
    let id = postgres.psql_in("test_app", sql);
    let messages = eventually(PATIENCE, "a message", || async {
        let messages = redis.lrange("celery").await;
        (!messages.is_empty()).then_some(messages)
    })
    .await;
    assert_eq!(messages.len(), 1, "what Django rolled back was sent");
    let message: Value = serde_json::from_slice(&messages[0]).expect("JSON");
    assert_eq!(message["headers"]["id"], json!(id));
}

#[test]
fn e03_a_prepared_transaction_is_sent_when_it_is_committed() {
    let report = Stack::shared().play(&["E03"]);
    assert_eq!(report.more["early"], json!(0));
    report.assert_what_was_sent(1);
}

/// What the example's README promises.
#[test]
fn the_example_sends_a_receipt_for_each_order_that_was_placed() {
    let stack = Stack::shared();
    let counts = stack
        .project
        .run(&["-m", "django", "place_orders", "--count", "40"]);
    let counts: Value = serde_json::from_str(&counts).expect("JSON");
    assert_eq!(counts, json!({"placed": 36, "rolled_back": 4}));
    until(PATIENCE, "36 receipts", || {
        (stack.postgres.psql("select count(*) from orders_receipt") == "36").then_some(())
    });
}

/// With synchronous replication a commit is decoded long before it is visible: here 500 ms.
#[tokio::test]
async fn x01_with_synchronous_replication_no_task_looks_in_vain() {
    // The worker's own commits need not wait, or the queue would, until every row is visible.
    let local = "?options=-c%20synchronous_commit%3Dlocal";
    let mut stack = Stack::start(Postgres::start(Options::default()), local);
    let proxy = Proxy::start(stack.postgres.port());
    let standby = stack
        .postgres
        .create_standby_through(proxy.port(), "standby", true);
    proxy.set(Way::Up, Fault::Delay(Duration::from_millis(500)));
    let report = stack.play(&["X01", "X01"]);
    report.assert_what_was_sent(40);

    // The same without the gate: that is what it is for.
    assert!(stack.daemon.terminate().await.success());
    let open = config(
        &stack.postgres.url(DAEMON),
        &stack.redis.url(0),
        "[gate]\nvisibility = false",
    );
    stack.daemon = Daemon::start(&open);
    let report = stack.play(&["X01", "X01/open"]);
    assert_eq!(report.runs.len(), 40);
    assert!(
        report.found(false) > 20,
        "only {} looked in vain",
        report.found(false)
    );
    drop(standby);
}
