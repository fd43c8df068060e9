//! Kafka, played by librdkafka.

use aftercommit::outbox::Field;
use aftercommit::sink::kafka;
use aftercommit::sink::{Settings as _, Sink};

use super::{Fields, Subject};
use crate::support::kafka::{Kafka, TOPIC};

conforms!(librdkafka, super::OnKafka(super::Kafka::start(3)));

/// A topic on three brokers.
struct OnKafka(Kafka);

impl Subject for OnKafka {
    fn sink(&self) -> Box<dyn Sink> {
        // A partition that is played keeps 5 MiB: compressed, the suite's messages are small.
        let config = serde_json::json!({
            "brokers": self.0.brokers(),
            "topic": TOPIC,
            "timeout": "6s",
            "properties": {"message.max.bytes": "4000000", "compression.type": "lz4"},
        });
        let config: kafka::Config = serde_json::from_value(config).unwrap();
        config.open().unwrap()
    }

    fn received(&self) -> Vec<String> {
        self.0.ids(TOPIC)
    }

    fn set_away(&mut self, away: bool) {
        self.0.set_away(away);
    }

    fn rejected(&self) -> Fields {
        &[(Field::Payload, "{no json")]
    }

    fn retried(&self) -> Option<Fields> {
        Some(&[(Field::Queue, "elsewhere")])
    }

    fn keeps_all_in_order(&self) -> bool {
        false
    }
}
