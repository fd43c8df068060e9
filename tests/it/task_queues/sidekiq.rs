//! Sidekiq on Redis.

use aftercommit::envelope::sidekiq::{Defaults, Job};
use aftercommit::outbox::Field;
use aftercommit::pg::Timestamp;
use aftercommit::sink::sidekiq::Config;
use aftercommit::sink::{Outcome, Sink};
use serde_json::{Value, json};

use super::{COMMITTED, deliver, delivers, fixture, fixtures, in_seconds, open, task};
use crate::support::queue_workers::QueueWorker;
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, until};

fn sink(server: &Redis) -> Box<dyn Sink> {
    open::<Config>(json!({"url": server.url(0)}))
}

fn defaults() -> Defaults {
    Defaults {
        queue: "default".to_owned(),
        retry: "true".to_owned(),
    }
}

/// What Sidekiq's own client writes, from the same call; but for ids and times, which are the row's, and our two headers.
#[test]
fn jobs_are_as_sidekiq_writes_them() {
    let options = |json: &'static str| (Field::Options, json);
    let rows: [(&str, Vec<(Field, &str)>); 11] = [
        ("01_args", vec![(Field::Args, "[2, 3]")]),
        (
            "02_unicode_and_nested",
            vec![
                (Field::Args, "[\"Łódź ☃\"]"),
                (Field::Kwargs, "{\"a\": [1, null, true]}"),
            ],
        ),
        (
            "03_big_integers_and_floats",
            vec![(
                Field::Args,
                "[1208925819614629174706176, -1208925819614629174706176, 0.1, 1e300]",
            )],
        ),
        ("04_nothing", vec![(Field::Kwargs, "{ }")]),
        (
            "05_retry",
            vec![options(
                r#"{"retry": 3, "backtrace": 5, "dead": false, "retry_queue": "slow", "tags": null}"#,
            )],
        ),
        (
            "06_no_retry",
            vec![options(r#"{"retry": false, "backtrace": true}"#)],
        ),
        (
            "07_tags",
            vec![options(r#"{"tags": ["a", "b"], "retry": null}"#)],
        ),
        (
            "08_queue",
            vec![(Field::Args, "[1]"), (Field::Queue, "other")],
        ),
        (
            "09_at",
            vec![
                (Field::Args, "[1]"),
                (Field::RunAt, "2026-11-22 13:00:00.5+00"),
            ],
        ),
        (
            "10_own_member",
            vec![
                (Field::Args, "[1]"),
                options(r#"{"mine": {"a": [1]}}"#),
                (Field::Headers, r#"{"trace_id": "abc"}"#),
            ],
        ),
        (
            "11_wrapped",
            vec![
                (
                    Field::Args,
                    r#"[{"job_class": "ReceiptJob", "job_id": "x", "arguments": [1]}]"#,
                ),
                options(r#"{"wrapped": "ReceiptJob"}"#),
            ],
        ),
    ];
    assert_eq!(fixtures("sidekiq").len(), rows.len());
    for (file, row) in rows {
        let fixture = fixture("sidekiq", &format!("{file}.json"));
        let scheduled = fixture["schedule"].as_array().unwrap().first();
        let (queue, mut theirs) = match scheduled {
            Some(entry) => (None, entry["job"].clone()),
            None => {
                let keys = fixture["keys"].as_object().unwrap();
                let (queue, jobs) = keys.iter().next().expect("a queue");
                assert_eq!(
                    fixture["queues"],
                    json!([queue.strip_prefix("queue:").unwrap()])
                );
                (queue.strip_prefix("queue:"), jobs[0].clone())
            }
        };
        let class = theirs["class"].as_str().unwrap().to_owned();
        let task = task("an-id", &class, &row);
        let defaults = defaults();
        let job = Job::new(&task, &defaults, COMMITTED).expect(file);
        assert_eq!(job.at.is_some(), queue.is_none());
        assert_eq!(job.queue(), theirs["queue"]);
        assert!(queue.is_none_or(|queue| queue == job.queue()));
        let mut ours = Vec::new();
        job.write(&mut ours, Timestamp(COMMITTED.0 + 1_500_000));
        let mut ours: Value = serde_json::from_slice(&ours).expect(file);
        let members = ours.as_object_mut().unwrap();
        assert_eq!(members.remove("aftercommit-lsn"), Some(json!("0/100")));
        assert!(members.remove("aftercommit-committed-at").is_some());
        assert_eq!(members["created_at"], json!(1_795_348_800.0));
        assert!(
            members
                .get("enqueued_at")
                .is_none_or(|at| *at == json!(1_795_348_801.5))
        );
        for time in ["created_at", "enqueued_at"] {
            if theirs[time].is_f64() {
                theirs[time] = members[time].clone();
            }
        }
        theirs["jid"] = json!("an-id");
        assert_eq!(ours, theirs, "{file}");
    }
}

#[test]
fn what_would_harm_a_worker_is_refused() {
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let (fits, too_deep) = (deep(99), deep(100));
    let deepest = format!("{{\"a\": {}}}", deep(98));
    for (field, value, words) in [
        (Field::Payload, "{}", "payload is set"),
        (Field::Body, "\\x00", "body is set"),
        (
            Field::ExpiresAt,
            "2030-01-01 00:00:00+00",
            "expires_at is set",
        ),
        (Field::Args, "{}", "args must be an array"),
        (Field::Args, &too_deep, "nested too deeply"),
        (Field::Kwargs, &deepest, "nested too deeply"),
        (Field::Queue, "", "queue is empty"),
        (Field::RunAt, "infinity", "never run"),
        (
            Field::Options,
            r#"{"retry": "5"}"#,
            "options.retry must be true, false or a whole number from 0",
        ),
        (Field::Options, r#"{"retry": -1}"#, "options.retry must be"),
        (
            Field::Options,
            r#"{"backtrace": "all"}"#,
            "options.backtrace must be",
        ),
        (
            Field::Options,
            r#"{"dead": 0}"#,
            "options.dead must be true or false",
        ),
        (
            Field::Options,
            r#"{"retry_for": "1h"}"#,
            "options.retry_for must be a number",
        ),
        (
            Field::Options,
            r#"{"tags": "a"}"#,
            "options.tags must be a list of strings",
        ),
        (
            Field::Options,
            r#"{"cattr": 1}"#,
            "options.cattr must be an object",
        ),
        (
            Field::Options,
            r#"{"wrapped": {}}"#,
            "options.wrapped must be a string",
        ),
        (Field::Options, r#"{"retry_count": 1}"#, "their own notes"),
        (
            Field::Options,
            r#"{"class": "Other"}"#,
            "set the column task",
        ),
        (Field::Options, r#"{"at": 5}"#, "set the column run_at"),
        (Field::Headers, r#"{"jid": "x"}"#, "headers.jid is reserved"),
    ] {
        let task = task("1", "Work", &[(field, value)]);
        let unfit = Job::new(&task, &defaults(), Timestamp(0))
            .err()
            .expect(value);
        assert!(unfit.to_string().contains(words), "{value}: {unfit}");
    }
    assert!(
        Job::new(
            &task("1", "Work", &[(Field::Args, &fits)]),
            &defaults(),
            COMMITTED
        )
        .is_ok()
    );
}

#[tokio::test]
async fn a_real_worker_runs_what_it_is_handed() {
    let server = Redis::start();
    let Some(worker) = QueueWorker::sidekiq(&server.url(0), 4, &["default", "other"]) else {
        return;
    };
    let mut sink = open::<Config>(json!({"url": server.url(0), "ahead": "1h"}));
    let later = in_seconds(2);
    let all = r#"{"retry": 3, "backtrace": 10, "dead": true, "retry_queue": "other", "retry_for": 3600, "tags": ["a"],
        "cattr": {}, "display_class": "Shown", "mine": {"a": [1]}}"#;
    let tasks = [
        task(
            "1",
            "Work",
            &[(
                Field::Args,
                "[1180591620717411303424, \"Łódź\", {\"a\": [1.5, null]}]",
            )],
        ),
        task(
            "2",
            "Work",
            &[
                (Field::Args, "[7]"),
                (Field::Kwargs, "{\"n\": 7, \"nested\": {\"list\": [true]}}"),
            ],
        ),
        task("3", "NobodyKnows", &[]),
        task(
            "4",
            "Work",
            &[
                (Field::Queue, "other"),
                (Field::Headers, "{\"traceparent\": \"00-ab\"}"),
            ],
        ),
        task("5", "Work", &[(Field::RunAt, &later)]),
        task("6", "Flaky", &[(Field::Args, "[6]"), (Field::Options, all)]),
        task("7", "Work", &[(Field::Options, "{\"retry\": \"x\"}")]),
        task("8", "Flaky", &[(Field::Options, "{\"retry\": false}")]),
    ];
    let before = aftercommit::clock::now();
    let outcomes = deliver(&mut sink, &tasks).await;
    for (task, outcome) in tasks.iter().zip(&outcomes) {
        assert_eq!(
            *outcome == Outcome::Delivered,
            task.id() != "7",
            "{outcome:?}"
        );
    }
    let record = worker.wait_for(7);
    let of = |id: &str| -> Vec<&Value> { record.iter().filter(|line| line["jid"] == id).collect() };
    assert!(worker.record_text().contains("1180591620717411303424"));
    assert_eq!(of("1")[0]["args"][1], "Łódź");
    assert_eq!(of("1")[0]["args"][2], json!({"a": [1.5, null]}));
    assert_eq!(
        of("2")[0]["args"],
        json!([7, {"n": 7, "nested": {"list": [true]}}])
    );
    assert_eq!(of("4")[0]["message"]["traceparent"], "00-ab");
    assert_eq!(of("4")[0]["message"]["queue"], "other");
    assert_eq!(of("5").len(), 1);
    assert!(
        aftercommit::clock::now().0 - before.0 >= 2_000_000,
        "it ran too early"
    );
    let flaky = of("6");
    assert_eq!(
        flaky.len(),
        2,
        "it fails once, and keeps what it needs for the second time"
    );
    assert_eq!(flaky[1]["args"], json!([6]));
    let message = &flaky[1]["message"];
    assert_eq!(
        (&message["queue"], &message["retry_count"]),
        (&json!("other"), &json!(0))
    );
    assert_eq!(message["mine"], json!({"a": [1]}));
    assert_eq!(of("8").len(), 1);
    // Only the one of a class that nobody knows waits for its retry.
    let retries: Vec<String> = until(PATIENCE, "one retry", || {
        let retries: Vec<String> = server.ask(&["ZRANGE", "retry", "0", "-1"]);
        (retries.len() == 1).then_some(retries)
    });
    assert!(retries[0].contains("NobodyKnows"), "{retries:?}");
    let queues: std::collections::BTreeSet<String> = server.ask(&["SMEMBERS", "queues"]);
    assert!(queues.contains("default") && queues.contains("other"));
}

#[tokio::test]
async fn a_queue_is_worked_through_in_order() {
    let server = Redis::start();
    let Some(worker) = QueueWorker::sidekiq(&server.url(0), 1, &["orders"]) else {
        return;
    };
    let mut sink = open::<Config>(json!({"url": server.url(0), "queue": "orders", "retry": 5}));
    let ids: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    let tasks: Vec<_> = ids.iter().map(|id| task(id, "Work", &[])).collect();
    for batch in tasks.chunks(130) {
        delivers(&mut sink, batch).await;
    }
    let record = worker.wait_for(500);
    let ran: Vec<&str> = record
        .iter()
        .map(|line| line["jid"].as_str().unwrap())
        .collect();
    assert_eq!(ran, ids);
    assert!(record.iter().all(|line| line["message"]["retry"] == 5));
}

#[tokio::test]
async fn a_queue_that_is_something_else_holds_up_only_its_own() {
    let server = Redis::start();
    server.run(&["SET", "queue:taken", "by another"]);
    let mut sink = sink(&server);
    let tasks = [
        task("1", "Work", &[]),
        task("2", "Work", &[(Field::Queue, "taken")]),
        task("3", "Work", &[(Field::ExpiresAt, "2099-01-01 00:00:00+00")]),
        task("4", "Work", &[(Field::RunAt, "2099-01-01 00:00:00+00")]),
        task("5", "Work", &[]),
    ];
    let outcomes = deliver(&mut sink, &tasks).await;
    for delivered in [0, 3, 4] {
        assert_eq!(outcomes[delivered], Outcome::Delivered);
    }
    let Outcome::Retry(cause) = &outcomes[1] else {
        panic!("{outcomes:?}");
    };
    assert!(cause.to_string().contains("queue:taken"), "{cause}");
    assert!(matches!(outcomes[2], Outcome::Reject(_)));
    let jobs = server.messages(0, "queue:default");
    let ids: Vec<&Value> = jobs.iter().map(|job| &job["jid"]).collect();
    assert_eq!(ids, ["1", "5"]);
    let queues: Vec<String> = server.ask(&["SMEMBERS", "queues"]);
    assert_eq!(queues, ["default"]);
    // Without the set of queues nothing can be pushed; a namespace has one of its own.
    server.run(&["DEL", "queues"]);
    server.run(&["SET", "queues", "by another"]);
    let outcomes = deliver(&mut sink, &tasks[..1]).await;
    assert!(matches!(&outcomes[0], Outcome::Retry(cause) if cause.to_string().contains("queues")));
    let mut sink = open::<Config>(json!({"url": server.url(0), "namespace": "shop"}));
    delivers(&mut sink, &tasks[..1]).await;
    assert_eq!(server.messages(0, "shop:queue:default").len(), 1);
}
