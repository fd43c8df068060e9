//! The SQS sink on moto: what its answers and settings make of a batch.

use std::time::Duration;

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::sqs::Config;
use aftercommit::sink::{Outage, Outcome, Settings as _, Sight, Sink};
use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::exam::{Exam, assert_discreet};
use crate::support::moto::{Moto, Queue, attribute, id};
use crate::support::proxy::Proxy;

fn config(queue: &str, settings: Value) -> Config {
    let mut config = json!({
        "queue": queue,
        "region": "us-east-1",
        "endpoint_url": format!("http://127.0.0.1:{}", Moto::shared().port()),
        "access_key_id": "test",
        "secret_access_key": "test",
        "timeout": "60s",
    });
    for (key, value) in settings.as_object().expect("settings") {
        config[key] = value.clone();
    }
    let config = config.as_object_mut().expect("settings");
    config.retain(|_, value| !value.is_null());
    serde_json::from_value(json!(config)).expect("settings")
}

fn open(queue: &Queue<'_>, settings: Value) -> Box<dyn Sink> {
    config(&queue.name, settings).open().expect("a sink")
}

fn task(id: &str, key: Option<&str>, more: &[(Field, &str)]) -> Task {
    let mut fields = vec![(Field::Id, id), (Field::Task, "shop.paid")];
    fields.extend(key.map(|key| (Field::Key, key)));
    fields.extend_from_slice(more);
    Task::from_fields(fields, Position::default(), Timestamp(0))
}

async fn deliver(sink: &mut Box<dyn Sink>, tasks: &[Task]) -> Vec<Outcome> {
    sink.deliver(tasks).await.expect("it is there")
}

fn all_delivered(outcomes: &[Outcome]) -> bool {
    outcomes.iter().all(|it| *it == Outcome::Delivered)
}

#[tokio::test]
async fn a_message_carries_what_the_row_says() {
    for fifo in [false, true] {
        let queue = Moto::shared().queue(fifo, json!({}));
        let mut sink = open(&queue, json!({"format": "payload"}));
        let fields = [
            (Field::Payload, "{\"n\": 1}"),
            (Field::Headers, "{\"traceparent\": \"00-1\"}"),
        ];
        let tasks = [
            task("7", Some("order:7"), &fields),
            task("8", None, &fields),
        ];
        assert!(all_delivered(&deliver(&mut sink, &tasks).await));
        let mut messages = queue.take();
        messages.sort_by_key(id);
        assert_eq!(messages[0]["Body"], "{\"n\": 1}");
        for (name, value) in [
            ("aftercommit-id", "7"),
            ("aftercommit-task", "shop.paid"),
            ("aftercommit-key", "order:7"),
            ("content-type", "application/json"),
            ("traceparent", "00-1"),
        ] {
            assert_eq!(attribute(&messages[0], name), Some(value), "{name}");
        }
        if fifo {
            assert_eq!(messages[0]["Attributes"]["MessageGroupId"], "order:7");
            assert_eq!(messages[0]["Attributes"]["MessageDeduplicationId"], "7");
            assert_eq!(messages[1]["Attributes"]["MessageGroupId"], "8");
        }
    }
}

#[tokio::test]
async fn a_fifo_queue_drops_repeats() {
    let queue = Moto::shared().queue(true, json!({}));
    let mut sink = open(&queue, json!({}));
    let tasks = [task("1", Some("a"), &[]), task("2", Some("a"), &[])];
    for _ in 0..3 {
        assert!(all_delivered(&deliver(&mut sink, &tasks).await));
    }
    let ids: Vec<String> = queue.take().iter().map(id).collect();
    assert_eq!(ids, ["1", "2"]);
}

/// More than 1 MiB in ten messages: several requests. And more than 1 MiB in one: none.
#[tokio::test]
async fn large_and_small_tasks_go_together() {
    let queue = Moto::shared().queue(false, json!({}));
    let mut sink = open(&queue, json!({}));
    let large = format!("\"{}\"", "ż".repeat(200_000));
    let too_large = format!("\"{}\"", "ż".repeat(600_000));
    let tasks: Vec<Task> = (0..25)
        .map(|n| {
            let payload = match n {
                7 => &too_large,
                n if n % 2 == 0 => &large,
                _ => "1",
            };
            let payload = (Field::Payload, payload);
            task(&format!("{n:02}"), None, &[payload])
        })
        .collect();
    let outcomes = deliver(&mut sink, &tasks).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Outcome::Reject(cause) if n == 7 => assert!(cause.to_string().contains("1 MiB")),
            outcome => assert_eq!(*outcome, Outcome::Delivered, "{n}"),
        }
    }
    let mut ids: Vec<String> = queue.take().iter().map(id).collect();
    ids.sort();
    let mut expected: Vec<&str> = tasks.iter().map(Task::id).collect();
    expected.remove(7);
    assert_eq!(ids, expected);
}

/// A queue whose own limit is lower refuses the request as a whole, and the sink finds who is to blame.
#[tokio::test]
async fn a_refused_request_concerns_one_message() {
    let queue = Moto::shared().queue(false, json!({"MaximumMessageSize": "2048"}));
    let mut sink = open(&queue, json!({}));
    let large = format!("\"{}\"", "x".repeat(3000));
    let tasks: Vec<Task> = (0..10)
        .map(|n| {
            let payload = if n == 4 { large.as_str() } else { "1" };
            task(&format!("{n}"), None, &[(Field::Payload, payload)])
        })
        .collect();
    let outcomes = deliver(&mut sink, &tasks).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        let rejected = matches!(outcome, Outcome::Reject(_));
        assert_eq!(rejected, n == 4, "{n}: {outcomes:?}");
    }
    assert_eq!(queue.take().len(), 9);
}

#[tokio::test]
async fn a_run_at_that_is_near_is_a_delay_and_one_that_is_past_is_none() {
    let queue = Moto::shared().queue(false, json!({}));
    let mut sink = open(&queue, json!({}));
    assert_eq!(sink.keeps().as_secs(), 900);
    let ahead = aftercommit::clock::now().0 + 300_000_000;
    let ahead = Timestamp(ahead)
        .rfc3339()
        .expect("a time of our days")
        .as_str()
        .replace('T', " ");
    let tasks = [
        task("1", None, &[(Field::RunAt, &ahead)]),
        task("2", None, &[(Field::RunAt, "2000-01-01 00:00:00+00")]),
    ];
    assert!(all_delivered(&deliver(&mut sink, &tasks).await));
    let ids: Vec<String> = queue.take().iter().map(id).collect();
    assert_eq!(ids, ["2"]);
    assert_eq!(queue.attribute("ApproximateNumberOfMessagesDelayed"), "1");
    let fifo = Moto::shared().queue(true, json!({}));
    assert!(open(&fifo, json!({})).keeps().is_zero());
}

#[tokio::test]
async fn queues_by_name_by_url_and_by_row() {
    let (first, second) = (
        Moto::shared().queue(false, json!({})),
        Moto::shared().queue(false, json!({})),
    );
    let mut sink = config(&first.url, json!({})).open().expect("a sink");
    let tasks = [
        task("1", Some("a"), &[]),
        task("2", Some("a"), &[(Field::Queue, &second.name)]),
        task("3", Some("a"), &[(Field::Queue, "nobody")]),
        task("4", Some("a"), &[]),
        task("5", None, &[(Field::Queue, "tasks.fifo")]),
        task("6", None, &[(Field::Queue, "https://example.com/queue")]),
    ];
    let outcomes = deliver(&mut sink, &tasks).await;
    assert!(all_delivered(&outcomes[..2]), "{outcomes:?}");
    assert!(
        matches!(&outcomes[2], Outcome::Retry(cause) if cause.to_string().contains("does not exist"))
    );
    assert!(matches!(&outcomes[3], Outcome::Retry(_)));
    assert!(matches!(&outcomes[4], Outcome::Reject(cause) if cause.to_string().contains("FIFO")));
    assert!(
        matches!(&outcomes[5], Outcome::Reject(cause) if cause.to_string().contains("no name"))
    );
    assert_eq!(first.take().len(), 1);
    assert_eq!(second.take().len(), 1);
}

#[tokio::test]
async fn a_place_that_is_not_there_is_an_outage_and_is_seen() {
    let settings = json!({"endpoint_url": "http://127.0.0.1:9", "timeout": "2s"});
    let mut sink = config("tasks", settings).open().expect("a sink");
    let Outage { cause, .. } = sink
        .deliver(&[task("1", None, &[])])
        .await
        .expect_err("nobody is there");
    assert!(cause.to_string().contains("refused"), "{cause}");
    let seen = sink.probe().await;
    assert!(matches!(seen[..], [Sight::Fault(..)]), "{seen:?}");
    let mut sink = config("nobody", json!({})).open().expect("a sink");
    let seen = sink.probe().await;
    assert!(
        matches!(&seen[..], [Sight::Fault(words, _)] if words.contains("does not exist")),
        "{seen:?}"
    );
}

#[tokio::test]
async fn settings_that_lose_messages_are_seen() {
    let settings = json!({"MessageRetentionPeriod": "60", "MaximumMessageSize": "1024"});
    let queue = Moto::shared().queue(false, settings);
    let seen = open(&queue, json!({})).probe().await;
    for words in ["drops messages after 60 seconds", "1024 bytes at most"] {
        let is_told = |sight: &Sight| matches!(sight, Sight::Risk(risk, _) if risk.contains(words));
        assert!(seen.iter().any(is_told), "{words}: {seen:?}");
    }
}

#[test]
fn settings_that_do_not_do_are_told_in_words() {
    for (settings, words) in [
        (json!({"queue": "{task}"}), "queue begins with a field"),
        (json!({"queue": "a b"}), "queue is no name"),
        (
            json!({"queue": "https://h/{key}"}),
            "queue is a URL with a field",
        ),
        (
            json!({"access_key_id": null}),
            "access_key_id and secret_access_key need each other",
        ),
        (
            json!({"secret_access_key_file": "/x"}),
            "secret_access_key_file and",
        ),
        (
            json!({"endpoint_url": "localhost:5000"}),
            "endpoint_url is no URL",
        ),
        (json!({"concurrency": 0}), "concurrency must be"),
        (json!({"timeout": "0s"}), "timeout must be"),
    ] {
        let error = match config("tasks", settings.clone()).open() {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{settings} is taken"),
        };
        assert!(error.starts_with(words), "{error}");
    }
    let shown = format!(
        "{:?}",
        config("tasks", json!({"secret_access_key": "hunter2"}))
    );
    assert!(!shown.contains("hunter2"));
}

/// The daemon as a whole: killed under load, and with SQS away, it loses nothing and keeps the order of each key. A FIFO queue
/// has each task once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_and_outages_lose_nothing_and_add_nothing_twice() {
    const ROUNDS: usize = 3;
    // moto takes its time with FIFO queues.
    const ROWS: usize = 40;
    let exam = Exam::start();
    let queue = Moto::shared().queue(true, json!({}));
    let proxy = Proxy::start(Moto::shared().port());
    let sink = format!(
        "[sink.sqs.workers]\nqueue = \"{}\"\nregion = \"us-east-1\"\naccess_key_id = \"test\"\n\
         secret_access_key = \"test\"\nendpoint_url = \"http://127.0.0.1:{}\"\n",
        queue.name,
        proxy.port()
    );
    let config = exam.config_with(&sink);
    let mut random = exam.random(0);
    for round in 0..ROUNDS {
        exam.write_numbered(ROWS, round * ROWS);
        let mut daemon = Daemon::start(&config);
        tokio::time::sleep(Duration::from_millis(200 + random.u64(..600))).await;
        if round % 2 == 0 {
            proxy.refuse();
            tokio::time::sleep(Duration::from_millis(random.u64(..500))).await;
        }
        daemon.kill9();
        assert_discreet(&daemon);
        proxy.pass();
    }
    let mut daemon = Daemon::start(&config);
    exam.nothing_left().await;
    assert!(daemon.terminate().await.success());
    assert_discreet(&daemon);
    let messages = queue.take();
    let values = messages.iter().filter_map(|it| it["Body"].as_str());
    let repeats = exam.assert_numbered(values.map(str::as_bytes), ROUNDS * ROWS);
    assert_eq!(repeats, 0);
}
