//! The Kafka sink, beside a bare loop of the same library, librdkafka, with messages like the sink's. librdkafka's own threads,
//! which play the brokers, too, are not in the processor's time.

use std::time::{Duration, Instant};

use aftercommit::sink::Settings as _;
use aftercommit::sink::kafka::Config;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::json;

use super::{BATCH, Load, Run, compare, runtime, through};
use crate::support::kafka::{Kafka, Stored, TOPIC};
use crate::support::wait::PATIENCE;

const COUNT: usize = 90_000;
const KEYS: usize = 1_000;

/// Measures it, and prints a line of the table.
pub(super) fn measure() {
    let runtime = runtime();
    let load = Load::new(COUNT, KEYS);
    let messages = runtime.block_on(messages());
    compare("kafka, 1 broker", KEYS, &load, || {
        let kafka = Kafka::start(1);
        let ours = runtime.block_on(async {
            let mut sink = config(&kafka).open().expect("a sink");
            Run::measure(&load, async |batch| through(&mut sink, batch).await).await
        });
        let kafka = Kafka::start(1);
        let producer = producer(&kafka);
        let bare = runtime.block_on(Run::measure(&load, async |batch| {
            exchange(&producer, &messages[..batch.len()]);
        }));
        (ours, bare)
    });
}

fn config(kafka: &Kafka) -> Config {
    let settings = json!({"brokers": kafka.brokers(), "topic": TOPIC});
    serde_json::from_value(settings).expect("settings")
}

/// What the sink makes of a batch.
async fn messages() -> Vec<Stored> {
    let kafka = Kafka::start(1);
    let mut sink = config(&kafka).open().expect("a sink");
    through(&mut sink, &Load::new(BATCH, KEYS).batches[0]).await;
    kafka.stored(TOPIC)
}

/// With what the sink relies on.
fn producer(kafka: &Kafka) -> BaseProducer {
    ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "1")
        .create()
        .expect("a producer")
}

/// Sends messages, and waits until all are stored.
fn exchange(producer: &BaseProducer, messages: &[Stored]) {
    for message in messages {
        let all = OwnedHeaders::new_with_capacity(message.headers.len());
        let headers = message.headers.iter().fold(all, |all, (key, value)| {
            let value = Some(value);
            all.insert(Header { key, value })
        });
        let record = BaseRecord::to(TOPIC)
            .payload(&message.value)
            .key(message.key.as_deref().unwrap_or_default())
            .headers(headers);
        producer
            .send(record)
            .map_err(|(error, _)| error)
            .expect("room");
    }
    // Its own flush() waits in steps of 100 ms.
    let deadline = Instant::now() + PATIENCE;
    while producer.in_flight_count() > 0 {
        assert!(Instant::now() < deadline, "all of it");
        producer.poll(Duration::from_millis(1));
    }
}
