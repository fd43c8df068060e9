//! BullMQ on Redis.

use std::collections::{BTreeMap, HashMap};

use aftercommit::envelope::bullmq::Job;
use aftercommit::outbox::Field;
use aftercommit::sink::Outcome;
use aftercommit::sink::bullmq::Config;
use serde_json::{Value, json};

use super::{deliver, delivers, fixture, fixtures, open, task};
use crate::support::queue_workers::QueueWorker;
use crate::support::redis::Redis;

const VERSIONS: [&str; 2] = ["bullmq", "bullmq5"];

/// All keys of a server, as the fixtures have them.
fn keys(server: &Redis) -> BTreeMap<String, Value> {
    let names: Vec<String> = server.ask(&["KEYS", "bull:*"]);
    let value = |key: &String| {
        let kind: String = server.ask(&["TYPE", key]);
        match kind.as_str() {
            "hash" => json!(server.ask::<HashMap<String, String>>(&["HGETALL", key])),
            "list" => json!(server.ask::<Vec<String>>(&["LRANGE", key, "0", "-1"])),
            "zset" => json!(server.ask::<Vec<String>>(&["ZRANGE", key, "0", "-1", "WITHSCORES"])),
            "stream" => {
                let entries: Vec<(String, Vec<String>)> = server.ask(&["XRANGE", key, "-", "+"]);
                json!(
                    entries
                        .into_iter()
                        .map(|(_, fields)| fields)
                        .collect::<Vec<_>>()
                )
            }
            _ => json!(server.ask::<String>(&["GET", key])),
        }
    };
    names.iter().map(|key| (key.clone(), value(key))).collect()
}

/// What BullMQ's own client writes, from the same call, in versions 5 and 6; but for the time, which is the row's, our two
/// headers, and the counter for ids, of which a job with an id of its own takes none.
#[tokio::test]
async fn jobs_are_as_bullmq_writes_them() {
    let rows: [(&str, Vec<(Field, &str)>); 6] = [
        (
            "01_data",
            vec![(
                Field::Kwargs,
                r#"{"who": "Łódź ☃", "n": {"a": [1, null, true]}}"#,
            )],
        ),
        (
            "02_options",
            vec![(
                Field::Options,
                r#"{"attempts": 3, "backoff": {"type": "exponential", "delay": 1000}, "removeOnComplete": true,
                    "removeOnFail": {"count": 5}, "stackTraceLimit": 3}"#,
            )],
        ),
        ("03_priority", vec![(Field::Priority, "5")]),
        ("04_last_in", vec![(Field::Options, r#"{"lifo": true}"#)]),
        (
            "05_own_option",
            vec![
                (Field::Payload, "[1]"),
                (Field::Headers, r#"{"trace_id": "abc"}"#),
            ],
        ),
        ("06_paused", vec![]),
    ];
    assert_eq!(fixtures("bullmq").len(), VERSIONS.len() * rows.len());
    let server = Redis::start();
    let mut sink = open::<Config>(json!({"url": server.url(0)}));
    for (file, row) in rows {
        for version in VERSIONS {
            let fixture = fixture("bullmq", &format!("{file}_{version}.json"));
            let mut theirs: BTreeMap<String, Value> =
                serde_json::from_value(fixture["keys"].clone()).expect("keys");
            theirs.remove("bull:default:id");
            server.run(&["FLUSHALL"]);
            for (field, value) in theirs["bull:default:meta"].as_object().unwrap() {
                if field != "opts.maxLenEvents" {
                    server.run(&["HSET", "bull:default:meta", field, value.as_str().unwrap()]);
                }
            }
            delivers(&mut sink, &[task("an-id", "work", &row)]).await;
            let mut ours = keys(&server);
            ours.retain(|key, _| key.starts_with("bull:"));
            for job in [&mut theirs, &mut ours] {
                let job = job.get_mut("bull:default:an-id").expect("a job");
                for json in ["opts", "data"] {
                    job[json] = serde_json::from_str(job[json].as_str().unwrap()).expect(json);
                }
            }
            let job = ours.get_mut("bull:default:an-id").unwrap();
            let options = job["opts"].as_object_mut().unwrap();
            assert_eq!(options.remove("aftercommit-lsn"), Some(json!("0/100")));
            assert!(options.remove("aftercommit-committed-at").is_some());
            assert_eq!(job["timestamp"], "1795348800000");
            theirs.get_mut("bull:default:an-id").unwrap()["timestamp"] = json!("1795348800000");
            let events = theirs
                .get_mut("bull:default:events")
                .unwrap()
                .as_array_mut()
                .unwrap();
            events.retain(|event| event[1] != "paused");
            assert_eq!(ours, theirs, "{file} of {version}");
        }
    }
}

#[test]
fn what_would_harm_a_worker_is_refused() {
    for (field, value, words) in [
        (Field::Id, "", "id is empty"),
        (Field::Id, "a:b", "a colon"),
        (Field::Id, "meta", "a part of the queue"),
        (Field::Args, "[1]", "args is not empty"),
        (Field::Body, "\\x00", "body is set"),
        (Field::Payload, "{no", "payload is not JSON"),
        (
            Field::ExpiresAt,
            "2030-01-01 00:00:00+00",
            "expires_at is set",
        ),
        (Field::Queue, "", "queue is empty"),
        (Field::Queue, "a:b", "a colon"),
        (Field::Priority, "-1", "0 to 2097152"),
        (
            Field::Options,
            r#"{"attempts": "3"}"#,
            "options.attempts must be a whole number",
        ),
        (
            Field::Options,
            r#"{"lifo": 1}"#,
            "options.lifo must be true or false",
        ),
        (
            Field::Options,
            r#"{"backoff": "fast"}"#,
            "options.backoff must be",
        ),
        (
            Field::Options,
            r#"{"backoff": {"delay": 5}}"#,
            "options.backoff must be",
        ),
        (
            Field::Options,
            r#"{"removeOnFail": "yes"}"#,
            "options.removeOnFail must be",
        ),
        (
            Field::Options,
            r#"{"removeOnComplete": {"age": -1}}"#,
            "options.removeOnComplete must be",
        ),
        (
            Field::Options,
            r#"{"repeat": {"every": 5}}"#,
            "is not offered",
        ),
        (Field::Options, r#"{"delay": 5}"#, "set the column run_at"),
        (Field::Headers, r#"{"kl": 5}"#, "headers.kl is reserved"),
    ] {
        let task = task("an-id", "work", &[(field, value)]);
        let unfit = Job::new(&task, "default", 1).err().expect(value);
        assert!(unfit.to_string().contains(words), "{value}: {unfit}");
    }
    let both = task(
        "an-id",
        "work",
        &[(Field::Payload, "1"), (Field::Kwargs, "{\"a\": 1}")],
    );
    assert!(Job::new(&both, "default", 1).is_err());
}

#[tokio::test]
async fn real_workers_of_both_versions_run_what_they_are_handed() {
    for version in VERSIONS {
        let server = Redis::start();
        let Some(worker) = QueueWorker::bullmq(version, &server.url(0), 4, &["default", "other"])
        else {
            return;
        };
        let mut sink = open::<Config>(json!({"url": server.url(0)}));
        let all = r#"{"attempts": 5, "backoff": {"type": "exponential", "delay": 10, "jitter": 0.5}, "lifo": true,
            "removeOnComplete": {"age": 3600, "count": 100}, "removeOnFail": false, "stackTraceLimit": 5, "mine": {"a": [1]}}"#;
        let tasks = [
            task(
                "one",
                "work",
                &[(
                    Field::Kwargs,
                    "{\"who\": \"Łódź\", \"nested\": {\"list\": [1.5, null]}}",
                )],
            ),
            task("2", "work", &[(Field::Payload, "[1, {\"a\": 2}]")]),
            task(
                "3-b",
                "work",
                &[
                    (Field::Queue, "other"),
                    (Field::Headers, "{\"traceparent\": \"00-ab\"}"),
                ],
            ),
            task("4-b", "work", &[(Field::Priority, "7")]),
            task(
                "5-b",
                "flaky",
                &[(Field::Options, all), (Field::Kwargs, "{\"n\": 5}")],
            ),
            task("6-b", "work", &[(Field::Options, "{\"attempts\": true}")]),
        ];
        let outcomes = deliver(&mut sink, &tasks).await;
        for (task, outcome) in tasks.iter().zip(&outcomes) {
            assert_eq!(
                *outcome == Outcome::Delivered,
                task.id() != "6-b",
                "{outcome:?}"
            );
        }
        let record = worker.wait_for(7);
        let of =
            |id: &str| -> Vec<&Value> { record.iter().filter(|line| line["id"] == id).collect() };
        assert_eq!(
            of("one")[0]["data"],
            json!({"who": "Łódź", "nested": {"list": [1.5, null]}})
        );
        assert_eq!(of("id-2")[0]["data"], json!([1, {"a": 2}]));
        assert_eq!(of("3-b")[0]["queue"], "other");
        assert_eq!(of("3-b")[0]["opts"]["traceparent"], "00-ab");
        assert_eq!(of("4-b").len(), 1);
        let flaky = of("5-b");
        assert_eq!(
            flaky.len(),
            3,
            "it fails twice, and keeps what it needs for the third time"
        );
        assert_eq!(flaky[2]["data"], json!({"n": 5}));
        assert_eq!(flaky[2]["opts"]["mine"], json!({"a": [1]}));
        // What is sent again is known by its id.
        delivers(&mut sink, &tasks[..1]).await;
        let waiting: u64 = server.ask(&["LLEN", "bull:default:wait"]);
        assert_eq!(waiting, 0);
    }
}

#[tokio::test]
async fn a_queue_is_worked_through_in_order_under_its_prefix() {
    let server = Redis::start();
    let Some(worker) = QueueWorker::bullmq("bullmq", &server.url(0), 1, &["orders"]) else {
        return;
    };
    let mut sink = open::<Config>(json!({"url": server.url(0), "queue": "orders"}));
    let ids: Vec<String> = (0..500).map(|n| format!("n-{n}")).collect();
    let tasks: Vec<_> = ids.iter().map(|id| task(id, "work", &[])).collect();
    for batch in tasks.chunks(130) {
        delivers(&mut sink, batch).await;
    }
    let record = worker.wait_for(500);
    let ran: Vec<&str> = record
        .iter()
        .map(|line| line["id"].as_str().unwrap())
        .collect();
    assert_eq!(ran, ids);
}
