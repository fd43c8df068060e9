//! Real Celery workers on real RabbitMQ servers: quorum queues and their delayed delivery, priorities, exchanges, and
//! what expires. What each worker is like stands in `celery_apps`.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::celery::Config;
use aftercommit::sink::{Outcome, Settings as _, Sight, Sink};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::celery::{Project, Worker};
use crate::support::handover::hand_over;
use crate::support::rabbitmq::{RabbitMq, Vhost, is_installed};
use crate::support::wait::{PATIENCE, until};

fn worker(app: &'static str, vhost: &Vhost<'_>, queues: &str) -> Worker {
    let project = Project {
        path: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/celery_apps")],
        settings: "",
        app,
        database_url: String::new(),
        broker_url: vhost.url(),
    };
    Worker::start(&project, 1, queues)
}

/// How a task was called.
#[derive(Deserialize, Debug)]
struct Run {
    id: String,
    /// When, in seconds since 1970.
    at: f64,
    args: Value,
    priority: Option<u8>,
    exchange: String,
    headers: Value,
}

fn runs(worker: &Worker) -> Vec<Run> {
    let log = worker.log();
    let lines = log.lines().filter_map(|line| line.strip_prefix("RAN "));
    lines
        .filter_map(|run| serde_json::from_str(run).ok())
        .collect()
}

/// Waits until so many tasks have run.
fn wait_for_runs(worker: &Worker, count: usize) -> Vec<Run> {
    until(PATIENCE, "the tasks' runs", || {
        let runs = runs(worker);
        (runs.len() >= count).then_some(runs)
    })
}

fn ids(runs: &[Run]) -> Vec<&str> {
    runs.iter().map(|run| run.id.as_str()).collect()
}

fn open(vhost: &Vhost<'_>, queue: &str, native_delay: &str) -> Box<dyn Sink> {
    let settings = json!({"broker_url": vhost.url(), "queue": queue, "timeout": "5s", "native_delay": native_delay});
    let config: Config = serde_json::from_value(settings).expect("settings");
    config.open().expect("a sink")
}

fn task(id: &str, fields: &[(Field, &str)]) -> Task {
    let standard = [(Field::Id, id), (Field::Task, "work")];
    let all = standard.into_iter().chain(fields.iter().copied());
    Task::from_fields(all, Position::default(), Timestamp(0))
}

async fn deliver(sink: &mut Box<dyn Sink>, tasks: &[Task]) {
    let outcomes = hand_over(sink, tasks).await.expect("no outage");
    assert!(
        outcomes
            .iter()
            .all(|outcome| *outcome == Outcome::Delivered),
        "{outcomes:?}"
    );
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs_f64()
}

/// So many seconds from now, as Postgres writes it.
fn ahead(seconds: f64) -> String {
    let at = Timestamp::from_unix_micros(((now() + seconds) * 1e6) as i64);
    let text = at.rfc3339().expect("a time");
    text.to_string().replace('T', " ")
}

#[tokio::test]
async fn tasks_with_a_time_go_through_celerys_own_delay_queues() {
    if !is_installed() {
        return;
    }
    let vhost = RabbitMq::shared().vhost();
    let mut sink = open(&vhost, "shop", "1h");
    assert_eq!(sink.keeps(), Duration::from_secs(3600));

    // Nobody has made the delay queues yet.
    let seen = sink.probe().await;
    let risks = |seen: &[Sight]| {
        let words = seen.iter().filter_map(|sight| match sight {
            Sight::Risk(words, _) => Some(words.clone()),
            _ => None,
        });
        words.collect::<Vec<String>>()
    };
    assert_eq!(
        risks(&seen),
        [
            "there is no queue \"shop\"",
            "there is no exchange \"celery_delayed_27\""
        ]
    );
    let soon = ahead(20.0);
    let early = [task("early", &[(Field::RunAt, &soon)])];
    let outcomes = sink.deliver(&early).await.expect("no outage");
    assert!(
        matches!(&outcomes[..], [Outcome::Retry(cause)] if cause.to_string().contains("celery_delayed_27")),
        "{outcomes:?}"
    );

    let worker = worker("quorum", &vhost, "shop");
    // A missing exchange is not asked for again within a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(risks(&sink.probe().await), Vec::<String>::new());

    let delays = [0.5, 1.2, 2.0, 3.7, 6.0];
    let times: Vec<String> = delays.iter().map(|seconds| ahead(*seconds)).collect();
    let sent = now();
    let names: Vec<String> = delays
        .iter()
        .map(|seconds| format!("in {seconds}"))
        .collect();
    let headers = (
        Field::Headers,
        r#"{"big": 1099511627776, "number": -1099511627776}"#,
    );
    let mut tasks: Vec<Task> = (names.iter().zip(&times))
        .map(|(id, at)| task(id, &[(Field::RunAt, at), headers]))
        .collect();
    tasks.push(task("now", &[(Field::Args, "[1]"), headers]));
    let options = (
        Field::Options,
        r#"{"exchange": "shop", "routing_key": "shop"}"#,
    );
    tasks.push(task("by exchange", &[options]));
    tasks.push(task(
        "by exchange, later",
        &[options, (Field::RunAt, &times[2])],
    ));
    deliver(&mut sink, &tasks).await;

    let all = wait_for_runs(&worker, tasks.len());
    assert_eq!(all.len(), tasks.len(), "{all:#?}");
    for run in &all {
        let place = names.iter().position(|name| *name == run.id);
        let delay = match run.id.as_str() {
            "by exchange, later" => delays[2],
            _ => place.map_or(0.0, |place| delays[place]),
        };
        let waited = run.at - sent;
        assert!(waited >= delay - 0.01, "{waited} s: {run:#?}");
        assert!(
            waited < delay + 10.0,
            "{waited} s, on however busy a machine: {run:#?}"
        );
        // What has less than a second to wait needs no delay queue.
        let expected = match run.id.as_str() {
            "now" | "in 0.5" => "",
            "by exchange" => "shop",
            _ => "celery_delayed_delivery",
        };
        assert_eq!(run.exchange, expected, "{run:#?}");
        if place.is_some() {
            // RabbitMQ has read these headers, and written them again.
            assert_eq!(
                run.headers,
                json!({"big": 1_099_511_627_776_i64, "number": -1_099_511_627_776_i64})
            );
        }
    }
    assert_eq!(runs(&worker).len(), tasks.len(), "each once");

    // What nobody is bound for when its time has come is kept there.
    let unbound = (
        Field::Options,
        r#"{"exchange": "shop", "routing_key": "later"}"#,
    );
    let at = ahead(2.1);
    deliver(&mut sink, &[task("kept", &[unbound, (Field::RunAt, &at)])]).await;
    let server = RabbitMq::shared();
    // Its last delay queue is that of two seconds. It has expired there: nobody can have it, and it is still counted.
    let path = format!("queues/{}/celery_delayed_1", vhost.name);
    until(PATIENCE, "a message that goes nowhere", || {
        let queue = server.ask("GET", &path, None);
        (queue["messages"] == 1 && queue["messages_ready"] == 0).then_some(())
    });
}

#[tokio::test]
async fn higher_priorities_are_served_first() {
    if !is_installed() {
        return;
    }
    let vhost = RabbitMq::shared().vhost();
    vhost.queue("shop", json!({"x-max-priority": 10}));
    let mut sink = open(&vhost, "shop", "0s");
    let names: Vec<(String, String)> = (0..30)
        .map(|n| (n.to_string(), (n * 7 % 10).to_string()))
        .collect();
    let tasks: Vec<Task> = names
        .iter()
        .map(|(id, priority)| task(id, &[(Field::Priority, priority)]))
        .collect();
    deliver(&mut sink, &tasks).await;
    let worker = worker("priorities", &vhost, "shop");
    let runs = wait_for_runs(&worker, tasks.len());
    let mut expected: Vec<usize> = (0..30).collect();
    expected.sort_by_key(|n| (9 - n * 7 % 10, *n));
    let expected: Vec<String> = expected.iter().map(usize::to_string).collect();
    assert_eq!(ids(&runs), expected);
    assert_eq!(runs[0].priority, Some(9));
    assert_eq!(runs[0].args, json!([]));
}

#[tokio::test]
async fn an_exchange_finds_the_queue_by_the_routing_key() {
    if !is_installed() {
        return;
    }
    let vhost = RabbitMq::shared().vhost();
    let mut sink = open(&vhost, "mail", "0s");
    let to =
        |routing_key: &str| json!({"exchange": "shop", "routing_key": routing_key}).to_string();
    let (found, lost) = (to("mail.receipts"), to("sms"));
    let tasks = [
        task("found", &[(Field::Options, &found)]),
        task("lost", &[(Field::Options, &lost)]),
        task("by queue", &[]),
    ];
    let before = sink.deliver(&tasks).await.expect("no outage");
    assert!(
        before
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Retry(_))),
        "{before:?}"
    );
    let worker = worker("topic", &vhost, "mail");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let outcomes = sink.deliver(&tasks).await.expect("no outage");
    assert_eq!([&outcomes[0], &outcomes[2]], [&Outcome::Delivered; 2]);
    assert!(
        matches!(&outcomes[1], Outcome::Retry(cause) if cause.to_string().contains("\"shop\" for the routing key \"sms\"")),
        "{outcomes:?}"
    );
    let runs = wait_for_runs(&worker, 2);
    assert_eq!(ids(&runs), ["found", "by queue"]);
    assert_eq!(runs[0].exchange, "shop");
}

#[tokio::test]
async fn what_expires_is_not_run() {
    if !is_installed() {
        return;
    }
    let vhost = RabbitMq::shared().vhost();
    vhost.queue("shop", json!({"x-queue-type": "quorum"}));
    let mut sink = open(&vhost, "shop", "0s");
    let (soon, later) = (ahead(1.5), ahead(600.0));
    let tasks = [
        task("gone", &[(Field::ExpiresAt, &soon)]),
        task("stays", &[(Field::ExpiresAt, &later)]),
        task("for ever", &[(Field::ExpiresAt, "2099-01-01 00:00:00+00")]),
    ];
    deliver(&mut sink, &tasks).await;
    until(PATIENCE, "the end of the first", || {
        (vhost.peek("shop").len() == 2).then_some(())
    });
    let past = ahead(-1.0);
    deliver(&mut sink, &[task("late", &[(Field::ExpiresAt, &past)])]).await;
    deliver(&mut sink, &[task("last", &[])]).await;
    let worker = worker("quorum", &vhost, "shop");
    assert_eq!(
        ids(&wait_for_runs(&worker, 3)),
        ["stays", "for ever", "last"]
    );
}
