//! The Kafka sink on the cluster that librdkafka plays: what its answers and settings make of a batch.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::kafka::Config;
use aftercommit::sink::{Outcome, Settings as _, Sight, Sink};
use rdkafka::types::RDKafkaApiKey::Produce;
use rdkafka::types::RDKafkaRespErr::{self, *};
use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::exam::{Exam, assert_discreet};
use crate::support::kafka::{Kafka, TOPIC};

pub(crate) fn config(brokers: &str, settings: Value) -> Config {
    let mut config = json!({"brokers": brokers, "topic": TOPIC, "timeout": "5s"});
    for (key, value) in settings.as_object().expect("settings") {
        config[key] = value.clone();
    }
    serde_json::from_value(config).expect("settings")
}

fn open(kafka: &Kafka, settings: Value) -> Box<dyn Sink> {
    config(&kafka.brokers(), settings).open().expect("a sink")
}

fn task(id: &str, key: Option<&str>, more: &[(Field, &str)]) -> Task {
    let mut fields = vec![(Field::Id, id), (Field::Task, "shop.paid")];
    fields.extend(key.map(|key| (Field::Key, key)));
    fields.extend_from_slice(more);
    Task::from_fields(fields, Position::default(), Timestamp(0))
}

pub(crate) fn batch(prefix: &str, count: usize, keys: usize) -> Vec<Task> {
    (0..count)
        .map(|n| {
            task(
                &format!("{prefix}{n}"),
                Some(&format!("k{}", n % keys)),
                &[],
            )
        })
        .collect()
}

async fn deliver(sink: &mut Box<dyn Sink>, tasks: &[Task]) -> Vec<Outcome> {
    sink.deliver(tasks).await.expect("it is there")
}

pub(crate) fn all_delivered(outcomes: &[Outcome]) -> bool {
    outcomes.iter().all(|it| *it == Outcome::Delivered)
}

fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Delivered => "delivered".to_owned(),
        Outcome::Retry(cause) | Outcome::RetryIn(_, cause) => format!("retry: {cause}"),
        Outcome::Reject(cause) => format!("reject: {cause}"),
        Outcome::Unsent => "unsent".to_owned(),
    }
}

#[tokio::test]
async fn a_message_carries_what_the_row_says() {
    let kafka = Kafka::start(1);
    let fields = [
        (Field::Payload, "{\"n\": 1}"),
        (Field::Headers, "{\"traceparent\": \"00-1\"}"),
    ];
    for (format, value) in [
        ("payload", "{\"n\": 1}"),
        (
            "json",
            "{\"id\":\"7\",\"task\":\"shop.paid\",\"payload\":{\"n\": 1}",
        ),
        (
            "cloudevents-structured",
            "{\"specversion\":\"1.0\",\"id\":\"7\",\"source\":\"/shop\"",
        ),
    ] {
        kafka.create(format);
        let settings = json!({"topic": format, "format": format, "source": "/shop"});
        let mut sink = open(&kafka, settings);
        let tasks = [
            task("7", Some("order:7"), &fields),
            task("8", None, &fields),
        ];
        assert!(all_delivered(&deliver(&mut sink, &tasks).await));
        let mut stored = kafka.stored(format);
        stored.sort_by_key(|message| message.id());
        assert_eq!(stored[0].key.as_deref(), Some(&b"order:7"[..]));
        assert_eq!(stored[1].key, None);
        let text = String::from_utf8(stored[0].value.clone()).expect("UTF-8");
        assert!(text.starts_with(value), "{text}");
        let content_type = match format {
            "cloudevents-structured" => "application/cloudevents+json",
            _ => "application/json",
        };
        for (name, value) in [
            ("aftercommit-id", "7"),
            ("aftercommit-task", "shop.paid"),
            ("aftercommit-lsn", "0/0"),
            ("content-type", content_type),
            ("traceparent", "00-1"),
        ] {
            assert_eq!(stored[0].header(name), Some(value), "{name}");
        }
    }
}

/// The partitions that Kafka's own clients in Java choose: murmur2 of the key, its sign taken off, modulo their number.
#[tokio::test]
async fn a_key_is_in_one_partition_and_the_one_that_java_chooses() {
    let kafka = Kafka::start(2);
    let mut sink = open(&kafka, json!({}));
    let mut partition_of = BTreeMap::new();
    for round in 0..3 {
        let tasks = batch(&format!("{round}-"), 200, 40);
        assert!(all_delivered(&deliver(&mut sink, &tasks).await));
    }
    let stored = kafka.stored(TOPIC);
    assert_eq!(stored.len(), 600);
    for message in &stored {
        let key = String::from_utf8(message.key.clone().expect("a key")).expect("UTF-8");
        let partition = *partition_of.entry(key).or_insert(message.partition);
        assert_eq!(partition, message.partition);
    }
    for (key, partition) in &partition_of {
        assert_eq!(murmur2(key.as_bytes()) % 4, *partition as u32, "{key}");
    }
    let mut used: Vec<i32> = partition_of.into_values().collect();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used, [0, 1, 2, 3]);
}

/// As `org.apache.kafka.common.utils.Utils.murmur2` defines it, without its sign.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes(word.try_into().expect("four bytes")).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (n, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * n);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    (hash ^ (hash >> 15)) & 0x7fff_ffff
}

/// What the broker answers to the first request, and again to that message alone, and what comes of it.
#[tokio::test]
async fn what_kafka_answers_and_what_comes_of_it() {
    for (error, outcome) in [
        (
            RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
            "reject: the message is larger than",
        ),
        (
            RD_KAFKA_RESP_ERR_INVALID_RECORD,
            "reject: Kafka finds the message invalid",
        ),
        (
            RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
            "retry: we are not allowed to write",
        ),
        (
            RD_KAFKA_RESP_ERR_POLICY_VIOLATION,
            "retry: Kafka does not take it",
        ),
    ] {
        let kafka = Kafka::start(1);
        let mut sink = open(&kafka, json!({}));
        assert!(all_delivered(&deliver(&mut sink, &batch("a", 3, 3)).await));
        kafka.cluster.request_errors(Produce, &[error, error]);
        let tasks = [task("b0", Some("k"), &[]), task("b1", Some("k"), &[])];
        let outcomes = deliver(&mut sink, &tasks).await;
        assert!(
            words(&outcomes[0]).starts_with(outcome),
            "{error:?}: {outcomes:?}"
        );
        assert!(
            words(&outcomes[1]).contains("an earlier task of its key"),
            "{outcomes:?}"
        );
        assert_eq!(kafka.stored(TOPIC).len(), 3, "{error:?}");
        // The sink goes on.
        assert!(all_delivered(&deliver(&mut sink, &tasks).await));
        assert_eq!(kafka.stored(TOPIC).len(), 5);
    }
}

/// What librdkafka mends by itself costs no task an attempt.
#[tokio::test]
async fn what_passes_is_waited_for() {
    for error in [
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RD_KAFKA_RESP_ERR__TRANSPORT,
    ] {
        let kafka = Kafka::start(1);
        let mut sink = open(&kafka, json!({"timeout": "20s"}));
        kafka.cluster.request_errors(Produce, &[error]);
        let tasks = batch("a", 20, 3);
        assert!(
            all_delivered(&deliver(&mut sink, &tasks).await),
            "{error:?}"
        );
        in_order(&kafka, &tasks);
    }
}

/// Each task is there once, those of a key in their order.
pub(crate) fn in_order(kafka: &Kafka, tasks: &[Task]) {
    let mut of_key: HashMap<Vec<u8>, Vec<String>> = HashMap::new();
    for message in kafka.stored(TOPIC) {
        let ids = of_key
            .entry(message.key.clone().expect("a key"))
            .or_default();
        ids.push(message.id());
    }
    for (key, ids) in of_key {
        let tasks = tasks.iter().filter(|task| task.key() == Some(&key));
        let expected: Vec<&str> = tasks.map(Task::id).collect();
        assert_eq!(ids, expected);
    }
}

#[tokio::test]
async fn each_way_to_compress_is_in_the_build() {
    let kafka = Kafka::start(1);
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        kafka.create(codec);
        let settings = json!({"topic": codec, "properties": {"compression.type": codec}});
        let mut sink = open(&kafka, settings);
        let text = format!("\"{}\"", "x".repeat(3000));
        let tasks = [task(codec, Some("k"), &[(Field::Payload, &text)])];
        assert!(all_delivered(&deliver(&mut sink, &tasks).await));
        let stored = kafka.stored(codec);
        let value = String::from_utf8_lossy(&stored[0].value);
        assert!(value.contains(&text), "{codec}: {value}");
    }
}

/// One refusal stops the producer; what is left goes message by message, and only the one that is to blame is refused.
#[tokio::test]
async fn a_refusal_concerns_one_message() {
    let kafka = Kafka::start(1);
    // The cluster that is played does not look at sequence numbers: one request at a time stands in for that.
    let mut sink = open(&kafka, json!({"properties": {"linger.ms": "50"}}));
    assert!(all_delivered(&deliver(&mut sink, &batch("a", 1, 1)).await));
    let too_large = RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    kafka.cluster.request_errors(
        Produce,
        &[
            too_large,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
            too_large,
        ],
    );
    let tasks: Vec<Task> = (0..6)
        .map(|n| task(&format!("b{n}"), Some("k0"), &[]))
        .collect();
    let outcomes = deliver(&mut sink, &tasks).await;
    assert_eq!(outcomes[0], Outcome::Delivered, "{outcomes:?}");
    assert!(matches!(outcomes[1], Outcome::Reject(_)), "{outcomes:?}");
    for outcome in &outcomes[2..] {
        assert!(
            words(outcome).contains("an earlier task of its key"),
            "{outcomes:?}"
        );
    }
    let ids = kafka.ids(TOPIC);
    assert_eq!(ids, ["a0", "b0"]);
}

#[tokio::test]
async fn too_large_for_the_client_is_never_sent() {
    let kafka = Kafka::start(1);
    let mut sink = open(&kafka, json!({"properties": {"message.max.bytes": "2000"}}));
    let large = format!("\"{}\"", "x".repeat(3000));
    let tasks = [
        task("1", Some("a"), &[]),
        task("2", Some("a"), &[(Field::Payload, &large)]),
        task("3", Some("a"), &[]),
        task("4", Some("b"), &[]),
    ];
    let outcomes = deliver(&mut sink, &tasks).await;
    assert!(
        words(&outcomes[1]).starts_with("reject: the message is larger"),
        "{outcomes:?}"
    );
    assert!(matches!(outcomes[2], Outcome::Retry(_)), "{outcomes:?}");
    let mut ids = kafka.ids(TOPIC);
    ids.sort();
    assert_eq!(ids, ["1", "4"]);
}

#[tokio::test]
async fn topics_are_not_made_and_a_key_waits_across_them() {
    let kafka = Kafka::start(1);
    kafka.create("other");
    let mut sink = open(&kafka, json!({}));
    let tasks = [
        task("1", Some("a"), &[]),
        task("2", Some("a"), &[(Field::Queue, "other")]),
        task("3", Some("a"), &[(Field::Queue, "nobody")]),
        task("4", Some("a"), &[]),
        task("5", Some("b"), &[(Field::Queue, "no topic")]),
        task("6", Some("b"), &[]),
        task("7", None, &[(Field::Queue, "other")]),
    ];
    let outcomes = deliver(&mut sink, &tasks).await;
    let said: Vec<String> = outcomes.iter().map(words).collect();
    for (n, expected) in [
        (0, "delivered"),
        (1, "delivered"),
        (2, "retry: the topic does not exist"),
        (3, "retry: an earlier task"),
        (4, "reject: the topic is no name for a topic"),
        (5, "retry: an earlier task"),
        (6, "delivered"),
    ] {
        assert!(said[n].starts_with(expected), "{n}: {said:?}");
    }
    assert_eq!(kafka.ids(TOPIC), ["1"]);
    let mut other = kafka.ids("other");
    other.sort();
    assert_eq!(other, ["2", "7"]);
    // Once it is there, its tasks go.
    kafka.create("nobody");
    assert!(all_delivered(&deliver(&mut sink, &tasks[2..4]).await));
}

/// A broker that is away is no outage as long as others answer: the keys of their partitions go on.
#[tokio::test]
async fn a_partition_whose_leader_is_away_stops_its_keys_alone() {
    let kafka = Kafka::start(2);
    for partition in 0..4 {
        let leader = if partition == 2 { 2 } else { 1 };
        let led = kafka
            .cluster
            .partition_leader(TOPIC, partition, Some(leader));
        led.expect("a partition");
    }
    let mut sink = open(&kafka, json!({}));
    let tasks = batch("a", 40, 40);
    assert!(all_delivered(&deliver(&mut sink, &tasks).await));
    let stored = kafka.stored(TOPIC);
    kafka.cluster.broker_down(2).expect("a broker");
    let tasks = batch("b", 40, 40);
    let outcomes = deliver(&mut sink, &tasks).await;
    let mut stuck = 0;
    for (task, outcome) in tasks.iter().zip(&outcomes) {
        let home = stored.iter().find(|it| it.key.as_deref() == task.key());
        let is_stuck = home.expect("its key was there").partition == 2;
        assert_eq!(
            matches!(outcome, Outcome::Retry(_)),
            is_stuck,
            "{outcomes:?}"
        );
        stuck += usize::from(is_stuck);
    }
    assert!(stuck > 0 && stuck < 40);
    kafka.cluster.broker_up(2).expect("a broker");
    assert!(all_delivered(&deliver(&mut sink, &tasks).await));
}

#[tokio::test]
async fn a_partition_without_a_leader_is_seen() {
    let kafka = Kafka::start(1);
    let led = kafka.cluster.partition_leader(TOPIC, 2, None);
    led.expect("a partition");
    let seen = open(&kafka, json!({})).probe().await;
    let is_told =
        |sight: &Sight| matches!(sight, Sight::Risk(words, _) if words.contains("no leader"));
    assert!(seen.iter().any(is_told), "{seen:?}");
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_seen() {
    let kafka = Kafka::start(3);
    let mut sink = open(&kafka, json!({"topic": "nobody"}));
    let seen = sink.probe().await;
    let is_told = |sight: &Sight| matches!(sight, Sight::Fault(words, _) if words.contains("the topic nobody"));
    assert!(seen.iter().any(is_told), "{seen:?}");
    // Three brokers, and one replica.
    let seen = open(&kafka, json!({})).probe().await;
    let is_told =
        |sight: &Sight| matches!(sight, Sight::Risk(words, _) if words.contains("one replica"));
    assert!(seen.iter().any(is_told), "{seen:?}");
    let seen = open(&kafka, json!({"topic": "shop-{task}"})).probe().await;
    assert!(matches!(seen[..], [Sight::Good(_)]), "{seen:?}");
}

#[test]
fn settings_that_do_not_do_are_told_in_words() {
    for (settings, words) in [
        (json!({"topic": "{task}"}), "topic begins with a field"),
        (json!({"topic": "a b"}), "topic is no name"),
        (json!({"brokers": "kafka://h"}), "brokers has a scheme"),
        (json!({"brokers": ""}), "brokers is empty"),
        (json!({"timeout": "0s"}), "timeout must be"),
        (
            json!({"password": "x", "password_file": "/x"}),
            "password_file and password",
        ),
        (
            json!({"properties": {"acks": "1"}}),
            "properties has acks, which is what order",
        ),
        (
            json!({"properties": {"sasl.password": "hunter2"}}),
            "properties has sasl.password, which is the key password",
        ),
        (
            json!({"properties": {"no.such": "hunter2"}}),
            "properties has \"no.such\", which librdkafka does not take: No such configuration property",
        ),
        (
            json!({"properties": {"linger.ms": "hunter2"}}),
            "properties has \"linger.ms\", which librdkafka does not take: Invalid value",
        ),
        (
            json!({"properties": {"security.protocol": "tls"}}),
            "properties has a security.protocol that there is not",
        ),
        (
            json!({"properties": {"security.protocol": "sasl_plaintext", "sasl.mechanism": "OAUTHBEARER", "sasl.username": "u"}, "password": "hunter2"}),
            "properties has sasl.mechanism = OAUTHBEARER, which no build",
        ),
        (
            json!({"properties": {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN", "sasl.username": "hunter2"}}),
            "password is missing: PLAIN needs it",
        ),
        (
            json!({"properties": {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN", "sasl.username": "u"}, "password_file": "/x"}),
            "password_file has not been read",
        ),
        #[cfg(not(feature = "kafka-tls"))]
        (
            json!({"properties": {"security.protocol": "sasl_plaintext", "sasl.mechanism": "SCRAM-SHA-256", "sasl.username": "u"}, "password": "hunter2"}),
            "properties has sasl.mechanism = SCRAM-SHA-256, and this build has no TLS for Kafka: build it with --features kafka-tls",
        ),
    ] {
        let error = match config("h:9092", settings.clone()).open() {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{settings} is taken"),
        };
        assert!(error.starts_with(words), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let plain = json!({"properties": {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN", "sasl.username": "u"}, "password": "hunter2"});
    let plain = config("h:9092", plain);
    assert!(plain.open().is_ok());
    assert!(!format!("{plain:?}").contains("hunter2"));
}

/// The daemon as a whole: killed under load, and with the brokers away, it loses nothing and keeps the order of each key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_and_outages_lose_nothing_and_keep_the_order() {
    const ROUNDS: usize = 5;
    const ROWS: usize = 400;
    let exam = Exam::start();
    let kafka = Kafka::start(2);
    let sink = format!(
        "[sink.kafka.workers]\nbrokers = \"{}\"\ntopic = \"{TOPIC}\"\ntimeout = \"2s\"\n",
        kafka.brokers()
    );
    let config = exam.config_with(&sink);
    let mut random = exam.random(0);
    for round in 0..ROUNDS {
        exam.write_numbered(ROWS, round * ROWS);
        let mut daemon = Daemon::start(&config);
        tokio::time::sleep(Duration::from_millis(200 + random.u64(..600))).await;
        if round % 2 == 0 {
            kafka.set_away(true);
            tokio::time::sleep(Duration::from_millis(random.u64(..1500))).await;
        }
        daemon.kill9();
        assert_discreet(&daemon);
        kafka.set_away(false);
    }
    let mut daemon = Daemon::start(&config);
    exam.nothing_left().await;
    assert!(daemon.terminate().await.success());
    assert_discreet(&daemon);
    let stored = kafka.stored(TOPIC);
    let values = stored.iter().map(|message| message.value.as_slice());
    let repeats = exam.assert_numbered(values, ROUNDS * ROWS);
    eprintln!("{repeats} repeats");
}
