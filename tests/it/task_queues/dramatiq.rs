//! Dramatiq on Redis and RabbitMQ.

use aftercommit::envelope::dramatiq::Message;
use aftercommit::outbox::Field;
use aftercommit::pg::Timestamp;
use aftercommit::sink::dramatiq::Config;
use aftercommit::sink::{Outcome, Sink};
use serde_json::{Value, json};

use super::{COMMITTED, deliver, delivers, fixture, fixtures, in_seconds, open, task};
use crate::support::queue_workers::QueueWorker;
use crate::support::rabbitmq::{RabbitMq, Vhost, is_installed};
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, until};

fn sink(server: &Redis) -> Box<dyn Sink> {
    open::<Config>(json!({"url": server.url(0)}))
}

/// Queue and message of the only message in a fixture.
fn captured(file: &str) -> Value {
    let fixture = fixture("dramatiq", file);
    let keys = fixture["keys"].as_object().expect("keys");
    let messages = keys.iter().find(|(key, _)| key.ends_with(".msgs"));
    let (key, messages) = messages.expect("a hash");
    let (id, message) = messages
        .as_object()
        .unwrap()
        .iter()
        .next()
        .expect("a message");
    let list = key.strip_suffix(".msgs").expect("a queue");
    assert_eq!(keys[list], json!([id]));
    assert_eq!(
        list,
        format!("dramatiq:{}", message["queue_name"].as_str().unwrap())
    );
    message.clone()
}

/// What Dramatiq's own client writes, from the same call; but for ids and times, which are the row's, and our two headers.
#[test]
fn messages_are_as_dramatiq_writes_them() {
    let options = |json: &'static str| (Field::Options, json);
    let pipe = captured("14_pipeline.json")["options"]["pipe_target"].to_string();
    let pipe = format!("{{\"pipe_target\": {pipe}}}");
    let rows: [(&str, Vec<(Field, &str)>); 14] = [
        ("01_args", vec![(Field::Args, "[2, 3]")]),
        (
            "02_kwargs_unicode",
            vec![(
                Field::Kwargs,
                r#"{"who": "Łódź ☃", "n": {"a": [1, null, true]}}"#,
            )],
        ),
        (
            "03_big_integers_and_floats",
            vec![(
                Field::Args,
                "[1208925819614629174706176, -1208925819614629174706176, 0.1, 1e300]",
            )],
        ),
        ("04_nothing", vec![]),
        (
            "05_max_retries",
            vec![options(
                r#"{"max_retries": 3, "min_backoff": 100, "max_backoff": 2000}"#,
            )],
        ),
        (
            "06_max_retries_none",
            vec![options(r#"{"max_retries": null}"#)],
        ),
        (
            "07_time_limit_and_age",
            vec![
                options(r#"{"time_limit": 5000}"#),
                (Field::ExpiresAt, "2026-11-22 12:01:00+00"),
            ],
        ),
        (
            "08_callbacks",
            vec![options(
                r#"{"on_success": "work", "on_failure": "elsewhere"}"#,
            )],
        ),
        (
            "09_results",
            vec![options(
                r#"{"store_results": true, "result_ttl": 1000, "pipe_ignore": true, "notify_shutdown": true}"#,
            )],
        ),
        (
            "10_own_option",
            vec![
                options(r#"{"tags": ["a", 1]}"#),
                (Field::Headers, r#"{"trace_id": "abc"}"#),
            ],
        ),
        (
            "11_queue",
            vec![(Field::Args, "[1]"), (Field::Queue, "other")],
        ),
        (
            "12_delay",
            vec![
                (Field::Args, "[1]"),
                (Field::RunAt, "2026-11-22 12:00:30+00"),
            ],
        ),
        ("13_priority", vec![(Field::Priority, "5")]),
        (
            "14_pipeline",
            vec![(Field::Args, "[1]"), options(&pipe.leak()[..])],
        ),
    ];
    assert_eq!(fixtures("dramatiq").len(), rows.len());
    for (file, row) in rows {
        let mut theirs = captured(&format!("{file}.json"));
        let actor = theirs["actor_name"].as_str().unwrap().to_owned();
        let task = task("an-id", &actor, &row);
        let message = Message::new(&task, "default", COMMITTED).expect(file);
        let mut ours = Vec::new();
        message.write(&mut ours, Some("an-id"));
        let mut ours: Value = serde_json::from_slice(&ours).expect(file);
        assert_eq!(message.queue(), theirs["queue_name"]);
        let headers = ours["options"].as_object_mut().unwrap();
        assert_eq!(headers.remove("aftercommit-lsn"), Some(json!("0/100")));
        assert_eq!(
            headers.remove("aftercommit-committed-at"),
            Some(json!("2026-11-22T12:00:00.000000+00:00"))
        );
        assert_eq!(ours["message_timestamp"], json!(1_795_348_800_000_i64));
        theirs["message_id"] = json!("an-id");
        theirs["options"]["redis_message_id"] = json!("an-id");
        if !theirs["options"]["eta"].is_null() {
            let delay = theirs["options"]["eta"].as_i64().unwrap()
                - theirs["message_timestamp"].as_i64().unwrap();
            assert_eq!(delay, 30_000);
            theirs["options"]["eta"] = json!(1_795_348_800_000_i64 + delay);
        }
        theirs["message_timestamp"] = ours["message_timestamp"].clone();
        assert_eq!(ours, theirs, "{file}");
    }
}

#[test]
fn what_would_harm_a_worker_is_refused() {
    for (field, value, words) in [
        (Field::Payload, "{}", "payload is set"),
        (Field::Body, "\\x00", "body is set"),
        (Field::Args, "{}", "args must be an array"),
        (Field::Kwargs, "[]", "kwargs must be an object"),
        (Field::Queue, "default.DQ", "queue is no name"),
        (Field::Queue, "a queue", "queue is no name"),
        (Field::Queue, "", "queue is no name"),
        (Field::Priority, "300", "0 to 255"),
        (Field::RunAt, "infinity", "never run"),
        (Field::Options, "[]", "options must be an object"),
        (
            Field::Options,
            r#"{"max_retries": "3"}"#,
            "options.max_retries must be a whole number from 0, or null",
        ),
        (
            Field::Options,
            r#"{"min_backoff": 1.5}"#,
            "options.min_backoff must be",
        ),
        (
            Field::Options,
            r#"{"time_limit": -1}"#,
            "options.time_limit must be",
        ),
        (
            Field::Options,
            r#"{"on_failure": {}}"#,
            "options.on_failure must be a string",
        ),
        (
            Field::Options,
            r#"{"store_results": 1}"#,
            "options.store_results must be true or false",
        ),
        (
            Field::Options,
            r#"{"pipe_target": {"actor_name": "x"}}"#,
            "must be a Dramatiq message",
        ),
        (Field::Options, r#"{"eta": 5}"#, "set the column run_at"),
        (Field::Options, r#"{"retries": 5}"#, "their own notes"),
        (Field::Options, r#"{"\u0065ta": 5}"#, "an escape"),
        (
            Field::Options,
            r#"{"aftercommit-lsn": 5}"#,
            "the daemon's own",
        ),
        (
            Field::Headers,
            r#"{"max_retries": 5}"#,
            "headers.max_retries is reserved",
        ),
    ] {
        let task = task("1", "work", &[(field, value)]);
        let unfit = Message::new(&task, "default", Timestamp(0))
            .err()
            .expect(value);
        assert!(unfit.to_string().contains(words), "{value}: {unfit}");
    }
    for (id, name) in [("", "work"), ("1", "")] {
        assert!(Message::new(&task(id, name, &[]), "default", Timestamp(0)).is_err());
    }
}

/// The whole way, with everything that a row can say.
async fn a_real_worker_runs_them(worker: &QueueWorker, sink: &mut Box<dyn Sink>) {
    let later = in_seconds(2);
    let all = r#"{"max_retries": 3, "min_backoff": 10, "max_backoff": 100, "time_limit": 60000, "on_success": "done",
        "store_results": false, "notify_shutdown": true, "pipe_ignore": true, "result_ttl": 1000, "mine": {"a": [1]}}"#;
    let tasks = [
        task(
            "1",
            "work",
            &[(
                Field::Args,
                "[1180591620717411303424, \"Łódź\", {\"a\": [1.5, null]}]",
            )],
        ),
        task(
            "2",
            "work",
            &[(Field::Kwargs, "{\"n\": 7, \"nested\": {\"list\": [true]}}")],
        ),
        task("3", "nobody.knows", &[]),
        task(
            "4",
            "elsewhere",
            &[
                (Field::Queue, "other"),
                (Field::Headers, "{\"traceparent\": \"00-ab\"}"),
            ],
        ),
        task("5", "work", &[(Field::RunAt, &later)]),
        task(
            "6",
            "flaky",
            &[
                (Field::Args, "[6]"),
                (Field::Options, all),
                (Field::ExpiresAt, "2099-01-01 00:00:00+00"),
            ],
        ),
        task("7", "work", &[(Field::ExpiresAt, "2026-11-22 12:00:00+00")]),
    ];
    let before = aftercommit::clock::now();
    delivers(sink, &tasks).await;
    let record = worker.wait_for(7);
    let of = |id: &str| -> Vec<&Value> {
        record
            .iter()
            .filter(|line| line["message"]["message_id"] == id)
            .collect()
    };
    assert!(worker.record_text().contains("1180591620717411303424"));
    assert_eq!(of("1")[0]["args"][1], "Łódź");
    assert_eq!(of("1")[0]["args"][2], json!({"a": [1.5, null]}));
    assert_eq!(
        of("2")[0]["kwargs"],
        json!({"n": 7, "nested": {"list": [true]}})
    );
    assert_eq!(of("4")[0]["actor"], "elsewhere");
    assert_eq!(of("4")[0]["message"]["options"]["traceparent"], "00-ab");
    assert_eq!(of("5").len(), 1);
    assert!(
        aftercommit::clock::now().0 - before.0 >= 2_000_000,
        "it ran too early"
    );
    let flaky = of("6");
    assert_eq!(
        flaky.len(),
        3,
        "it fails twice, and keeps what it needs for the third time"
    );
    assert_eq!(flaky[2]["message"]["options"]["mine"], json!({"a": [1]}));
    assert_eq!(flaky[2]["args"], json!([6]));
    assert!(of("7").is_empty() && of("3").is_empty());
    worker.wait_for_log("exceeded its age limit");
    worker.wait_for_log("nobody.knows");
}

#[tokio::test]
async fn a_worker_on_redis_runs_what_it_is_handed() {
    let server = Redis::start();
    let worker = QueueWorker::dramatiq(&server.url(0), 4, &[]);
    let mut sink = sink(&server);
    a_real_worker_runs_them(&worker, &mut sink).await;
    // Nothing stays behind but the message for nobody, and the one that was too old: with the dead ones.
    for queue in ["default", "default.DQ", "other"] {
        let left: u64 = server.ask(&["HLEN", &format!("dramatiq:{queue}.msgs")]);
        assert_eq!(left, 0, "{queue}");
    }
    let dead: u64 = server.ask(&["HLEN", "dramatiq:default.XQ.msgs"]);
    assert_eq!(dead, 2);
}

#[tokio::test]
async fn a_queue_is_worked_through_in_order_in_its_namespace() {
    let server = Redis::start();
    let worker = QueueWorker::dramatiq(&server.url(0), 1, &[("NAMESPACE", "shop")]);
    let mut sink =
        open::<Config>(json!({"url": server.url(0), "namespace": "shop", "queue": "other"}));
    let ids: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    let tasks: Vec<_> = ids
        .iter()
        .map(|id| task(id, "elsewhere", &[(Field::Args, "[]")]))
        .collect();
    for batch in tasks.chunks(130) {
        delivers(&mut sink, batch).await;
    }
    let ran: Vec<String> = worker
        .wait_for(500)
        .iter()
        .map(|line| line["message"]["message_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ran, ids);
}

#[tokio::test]
async fn a_queue_that_is_something_else_holds_up_only_its_own() {
    let server = Redis::start();
    server.run(&["SET", "dramatiq:taken.msgs", "by another"]);
    let mut sink = sink(&server);
    let tasks = [
        task("1", "work", &[]),
        task("2", "work", &[(Field::Queue, "taken")]),
        task("3", "work", &[(Field::Options, "{\"max_retries\": true}")]),
        task("4", "work", &[]),
    ];
    let outcomes = deliver(&mut sink, &tasks).await;
    assert_eq!([&outcomes[0], &outcomes[3]], [&Outcome::Delivered; 2]);
    let Outcome::Retry(cause) = &outcomes[1] else {
        panic!("{outcomes:?}");
    };
    assert!(cause.to_string().contains("dramatiq:taken.msgs"), "{cause}");
    assert!(matches!(outcomes[2], Outcome::Reject(_)));
    let ids: Vec<String> = server.ask(&["LRANGE", "dramatiq:default", "0", "-1"]);
    assert_eq!(ids, ["1", "4"]);
    let list: u64 = server.ask(&["EXISTS", "dramatiq:taken"]);
    assert_eq!(list, 0);
}

#[tokio::test]
async fn a_worker_on_rabbitmq_runs_what_it_is_handed() {
    if !is_installed() {
        return;
    }
    let vhost = RabbitMq::shared().vhost();
    let mut sink = open::<Config>(json!({"url": vhost.url()}));
    // Its queues come with the first worker.
    let early = [task("0", "work", &[])];
    let outcomes = deliver(&mut sink, &early).await;
    let Outcome::Retry(cause) = &outcomes[0] else {
        panic!("{outcomes:?}");
    };
    assert!(cause.to_string().contains("start a worker"), "{cause}");
    let worker = QueueWorker::dramatiq(&vhost.url(), 4, &[("MAX_PRIORITY", "9")]);
    until(PATIENCE, "the worker's queues", || {
        worker_has_declared(&vhost).then_some(())
    });
    a_real_worker_runs_them(&worker, &mut sink).await;
    let left = vhost.take("default.XQ");
    assert_eq!(
        left.len(),
        2,
        "the message for nobody, and the one that was too old"
    );
}

/// All three queues for each of the two names that actors have.
fn worker_has_declared(vhost: &Vhost<'_>) -> bool {
    let queues = RabbitMq::shared().ask("GET", &format!("queues/{}", vhost.name), None);
    queues.as_array().is_some_and(|queues| queues.len() == 6)
}

/// Properties and body are those of Dramatiq's own client; only the message id is ours, and the body's two headers.
#[tokio::test]
async fn a_priority_is_one_on_rabbitmq() {
    if !is_installed() {
        return;
    }
    let vhost = RabbitMq::shared().vhost();
    vhost.queue("default", json!({"x-max-priority": 9}));
    let mut sink = open::<Config>(json!({"url": vhost.url()}));
    let tasks = [
        task("1", "work", &[(Field::Priority, "1")]),
        task("2", "work", &[(Field::Priority, "7")]),
        task("3", "work", &[]),
    ];
    delivers(&mut sink, &tasks).await;
    let messages = vhost.take("default");
    let ids: Vec<String> = messages.iter().map(crate::support::rabbitmq::id).collect();
    assert_eq!(ids, ["2", "1", "3"]);
    let properties = messages[0]["properties"].as_object().unwrap();
    assert_eq!(properties["priority"], 7);
    assert_eq!(properties["delivery_mode"], 2);
    let body: Value = serde_json::from_str(messages[0]["payload"].as_str().unwrap()).unwrap();
    assert_eq!(body["options"]["broker_priority"], 7);
    assert!(body["options"].get("redis_message_id").is_none());
}
