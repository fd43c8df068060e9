//! What people do with Django and Celery, through the real ones: each scenario is played by `django/drive.py` in a
//! Django process, dispatched by the daemon to a real Celery worker over a real Redis or RabbitMQ, and judged here.

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
use crate::support::rabbitmq::{self, RabbitMq};
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, until};

/// The application's role may insert into the outbox, the daemon's may replicate: that has to be enough for both.
const APPLICATION: &str = "shop";
const DAEMON: &str = "aftercommit";

/// A Django project, the worker of its tasks, and the daemon between them.
struct Stack {
    postgres: Postgres,
    broker: Broker,
    project: Project,
    daemon: Daemon,
    worker: Worker,
}

/// A private broker.
enum Broker {
    Redis(Redis),
    RabbitMq(RabbitMq),
}

impl Broker {
    /// `None`, and says so, where there is none on this machine.
    fn start(kind: &Kind) -> Option<Broker> {
        match kind {
            Kind::Redis => Some(Broker::Redis(Redis::start())),
            Kind::RabbitMq | Kind::Quorum if !rabbitmq::is_installed() => None,
            Kind::RabbitMq | Kind::Quorum => {
                let server = RabbitMq::start();
                let arguments = match kind {
                    Kind::Quorum => json!({"x-queue-type": "quorum"}),
                    _ => json!({}),
                };
                // Queues that no worker declares, at least not at first.
                for queue in ["celery", "d01"] {
                    server.default_vhost().queue(queue, arguments.clone());
                }
                Some(Broker::RabbitMq(server))
            }
        }
    }

    fn url(&self) -> String {
        match self {
            Broker::Redis(server) => server.url(0),
            Broker::RabbitMq(server) => server.url("/"),
        }
    }

    /// The task ids of the messages of a queue that no worker reads, in their order.
    fn ids(&self, queue: &str) -> Vec<String> {
        match self {
            Broker::Redis(server) => server.ids(0, queue),
            Broker::RabbitMq(server) => {
                let messages = server.default_vhost().peek(queue);
                messages.iter().map(rabbitmq::id).collect()
            }
        }
    }
}

enum Kind {
    Redis,
    RabbitMq,
    /// RabbitMQ with quorum queues.
    Quorum,
}

impl Stack {
    /// `worker_query` is added to the worker's database URL. `None` without such a broker.
    fn start(kind: &Kind, postgres: Postgres, worker_query: &str) -> Option<Stack> {
        let broker = Broker::start(kind)?;
        init(&config(&postgres.url(SUPERUSER), &broker.url(), ""));
        postgres.psql(&format!(
            "create role {APPLICATION} login in role aftercommit_app;
             create role {DAEMON} login replication in role aftercommit_daemon;
             grant create on schema public to {APPLICATION}"
        ));
        let project = project(postgres.url(APPLICATION), broker.url());
        project.run(&[
            "-m",
            "django",
            "migrate",
            "--run-syncdb",
            "--verbosity",
            "0",
        ]);
        let daemon = Daemon::start(&config(&postgres.url(DAEMON), &broker.url(), ""));
        let mut workers = project.clone();
        if matches!(kind, Kind::Quorum) {
            workers.settings = "scenarios.quorum";
        }
        workers.database_url.push_str(worker_query);
        let worker = Worker::start(&workers, 2, "celery,e01");
        Some(Stack {
            postgres,
            broker,
            project,
            daemon,
            worker,
        })
    }

    /// The stack of a broker that most scenarios share; they do not see each other's tasks.
    fn shared(kind: Kind) -> Option<&'static Stack> {
        static REDIS: LazyLock<Option<Stack>> = LazyLock::new(|| Stack::quick(&Kind::Redis));
        static RABBITMQ: LazyLock<Option<Stack>> = LazyLock::new(|| Stack::quick(&Kind::RabbitMq));
        static QUORUM: LazyLock<Option<Stack>> = LazyLock::new(|| Stack::quick(&Kind::Quorum));
        match kind {
            Kind::Redis => REDIS.as_ref(),
            Kind::RabbitMq => RABBITMQ.as_ref(),
            Kind::Quorum => QUORUM.as_ref(),
        }
    }

    fn quick(kind: &Kind) -> Option<Stack> {
        let postgres = Postgres::start(Options {
            settings: &[("deadlock_timeout", "100ms")],
            ..Options::default()
        });
        Stack::start(kind, postgres, "")
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

fn a01_fifty_atomic_requests_run_fifty_tasks(stack: &Stack) {
    let report = stack.play(&["A01"]);
    report.assert_all("statuses", json!(200));
    report.assert_what_was_sent(50);
}

fn a02_a_view_that_raises_leaves_neither_row_nor_message(stack: &Stack) {
    let report = stack.play(&["A02"]);
    report.assert_all("statuses", json!(500));
    assert_eq!((report.runs.len(), report.entities), (0, 0));
    assert_eq!(outbox_rows(&stack.postgres, "A02"), 0);
}

fn a03_a_non_atomic_request_delivers_each_statement_and_a_later_exception_cancels_nothing(
    stack: &Stack,
) {
    let report = stack.play(&["A03"]);
    report.assert_all("statuses", json!(500));
    report.assert_once_each(20);
}

fn a04_enqueued_in_on_commit_runs_once(stack: &Stack) {
    let report = stack.play(&["A04"]);
    report.assert_all("statuses", json!(200));
    report.assert_once_each(20);
}

fn b01_a_transaction_that_sleeps_after_the_insert(stack: &Stack) {
    let report = stack.play(&["B01"]);
    report.assert_what_was_sent(4);
    report.assert_after_commit();
}

fn b02_an_autocommit_view_that_raises_keeps_its_rows_and_its_tasks(stack: &Stack) {
    let report = stack.play(&["B02"]);
    report.assert_all("statuses", json!(500));
    assert_eq!(report.entities, 2);
    report.assert_once_each(2);
}

fn b03_a_countdown_is_waited_for(stack: &Stack) {
    let report = stack.play(&["B03"]);
    report.assert_what_was_sent(3);
    let not_before = report.more["not_before"].as_f64().expect("a time");
    assert!(
        report.runs.iter().all(|run| run.at >= not_before),
        "{report:#?}"
    );
}

fn b04_a_transaction_longer_than_the_countdown_runs_at_once_after_commit(stack: &Stack) {
    let report = stack.play(&["B04"]);
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

fn b05_an_atomic_task_that_retries_keeps_its_id_and_its_failures_leave_nothing(stack: &Stack) {
    let report = stack.play(&["B05"]);
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

fn b06_a_task_that_always_fails_is_tried_six_times(stack: &Stack) {
    let report = stack.play(&["B06"]);
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

fn b07_an_expired_task_does_not_run(stack: &Stack) {
    let report = stack.play(&["B07"]);
    report.assert_what_was_sent(1);
    assert_ne!(report.more["expired"], json!(report.runs[0].task_id));
}

fn b08_ids_priorities_headers_and_arguments_arrive_intact(stack: &Stack) {
    let report = stack.play(&["B08"]);
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

fn c01_a_rolled_back_savepoint_sends_nothing(stack: &Stack) {
    stack.play(&["C01"]).assert_what_was_sent(2);
}

fn c02_released_savepoints_are_sent_unless_an_outer_one_is_rolled_back(stack: &Stack) {
    stack.play(&["C02"]).assert_what_was_sent(4);
}

fn d01_commit_order_is_the_order_of_dispatch(stack: &Stack) {
    let report = stack.play(&["D01"]);
    report.assert_what_was_sent(6);
    // The queue that no worker reads.
    assert_eq!(json!(stack.broker.ids("d01")), report.more["commit_order"]);
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

fn d02_the_loser_of_a_serializable_conflict_sends_nothing(stack: &Stack) {
    assert_loser_sent_nothing(&stack.play(&["D02"]), "40001");
}

fn d03_the_loser_of_a_repeatable_read_conflict_sends_nothing(stack: &Stack) {
    assert_loser_sent_nothing(&stack.play(&["D03"]), "40001");
}

fn d04_the_victim_of_a_deadlock_sends_nothing_and_its_second_try_once(stack: &Stack) {
    let report = stack.play(&["D04"]);
    assert_eq!(report.more["sqlstates"], json!(["40P01"]));
    assert_eq!(report.more["losers"].as_array().map(Vec::len), Some(1));
    report.assert_what_was_sent(2);
}

fn d05_ten_waiters_for_one_row_send_ten_tasks(stack: &Stack) {
    let report = stack.play(&["D05"]);
    assert_eq!(report.more["counter"], json!(10));
    report.assert_what_was_sent(10);
}

fn e01_five_thousand_rows_wait_for_one_commit(stack: &Stack) {
    let report = stack.play(&["E01"]);
    assert_eq!(report.more["early"], json!(0));
    report.assert_what_was_sent(5000);
}

fn e03_a_prepared_transaction_is_sent_when_it_is_committed(stack: &Stack) {
    let report = stack.play(&["E03"]);
    assert_eq!(report.more["early"], json!(0));
    report.assert_what_was_sent(1);
}

/// What the example's README promises.
fn the_example_sends_a_receipt_for_each_order_that_was_placed(stack: &Stack) {
    let counts = stack
        .project
        .run(&["-m", "django", "place_orders", "--count", "40"]);
    let counts: Value = serde_json::from_str(&counts).expect("JSON");
    assert_eq!(counts, json!({"placed": 36, "rolled_back": 4}));
    until(PATIENCE, "36 receipts", || {
        (stack.postgres.psql("select count(*) from orders_receipt") == "36").then_some(())
    });
}

/// Django's own test cases, on a database that a daemon watches: what they roll back is seen by them and sent to
/// nobody, and what they truncate harms nobody.
fn e02_django_test_cases_see_their_rows_and_send_nothing(kind: &Kind) {
    let Some(broker) = Broker::start(kind) else {
        return;
    };
    let postgres = Postgres::start(Options::default());
    // The name that Django gives to the test database of `app`.
    postgres.psql("create database test_app");
    let database = |name: &str| postgres.url(SUPERUSER).replace("/app", &format!("/{name}"));
    let config = config(&database("test_app"), &broker.url(), "");
    init(&config);
    let _daemon = Daemon::start(&config);

    let mut project = project(database("app"), broker.url());
    project.settings = "shop.settings";
    project.run(&["-m", "django", "test", "--keepdb", "orders"]);

    let sql = "select aftercommit.enqueue('the.only.one')";
    let id = postgres.psql_in("test_app", sql);
    let ids = until(PATIENCE, "a message", || {
        let ids = broker.ids("celery");
        (!ids.is_empty()).then_some(ids)
    });
    assert_eq!(ids, [id], "what Django rolled back was sent");
}

/// With synchronous replication a commit is decoded long before it is visible: here 500 ms.
async fn x01_with_synchronous_replication_no_task_looks_in_vain(kind: &Kind) {
    // The worker's own commits need not wait, or the queue would, until every row is visible.
    let local = "?options=-c%20synchronous_commit%3Dlocal";
    let Some(mut stack) = Stack::start(kind, Postgres::start(Options::default()), local) else {
        return;
    };
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
        &stack.broker.url(),
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

macro_rules! scenarios {
    ($broker:ident, $kind:ident, $($scenario:ident)*) => {
        mod $broker {
            use super::{Kind, Stack};

            $(
                #[test]
                fn $scenario() {
                    if let Some(stack) = Stack::shared(Kind::$kind) {
                        super::$scenario(stack);
                    }
                }
            )*

            #[test]
            fn e02_django_test_cases_see_their_rows_and_send_nothing() {
                super::e02_django_test_cases_see_their_rows_and_send_nothing(&Kind::$kind);
            }

            #[tokio::test]
            async fn x01_with_synchronous_replication_no_task_looks_in_vain() {
                super::x01_with_synchronous_replication_no_task_looks_in_vain(&Kind::$kind).await;
            }
        }
    };
    ($($broker:ident: $kind:ident,)*) => {
        $(
            scenarios!($broker, $kind,
                a01_fifty_atomic_requests_run_fifty_tasks
                a02_a_view_that_raises_leaves_neither_row_nor_message
                a03_a_non_atomic_request_delivers_each_statement_and_a_later_exception_cancels_nothing
                a04_enqueued_in_on_commit_runs_once
                b01_a_transaction_that_sleeps_after_the_insert
                b02_an_autocommit_view_that_raises_keeps_its_rows_and_its_tasks
                b03_a_countdown_is_waited_for
                b04_a_transaction_longer_than_the_countdown_runs_at_once_after_commit
                b05_an_atomic_task_that_retries_keeps_its_id_and_its_failures_leave_nothing
                b06_a_task_that_always_fails_is_tried_six_times
                b07_an_expired_task_does_not_run
                b08_ids_priorities_headers_and_arguments_arrive_intact
                c01_a_rolled_back_savepoint_sends_nothing
                c02_released_savepoints_are_sent_unless_an_outer_one_is_rolled_back
                d01_commit_order_is_the_order_of_dispatch
                d02_the_loser_of_a_serializable_conflict_sends_nothing
                d03_the_loser_of_a_repeatable_read_conflict_sends_nothing
                d04_the_victim_of_a_deadlock_sends_nothing_and_its_second_try_once
                d05_ten_waiters_for_one_row_send_ten_tasks
                e01_five_thousand_rows_wait_for_one_commit
                e03_a_prepared_transaction_is_sent_when_it_is_committed
                the_example_sends_a_receipt_for_each_order_that_was_placed
            );
        )*
    };
}

scenarios!(over_redis: Redis, over_rabbitmq: RabbitMq, over_quorum_queues: Quorum,);
