//! Which properties of librdkafka are ours, and which the operator's.

use std::collections::BTreeMap;
use std::fs::File;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use secrecy::{ExposeSecret as _, SecretString};

use super::security::Security;
use super::session::Manner;
use crate::sink::Invalid;

/// Those that the sink relies on, or that have a key of their own, and why they are not to be given.
const OURS: [(&str, &str); 25] = [
    ("bootstrap.servers", "is the key brokers"),
    ("metadata.broker.list", "is the key brokers"),
    ("sasl.password", "is the key password"),
    ("delivery.timeout.ms", "is the key timeout"),
    ("message.timeout.ms", "is the key timeout"),
    ("enable.idempotence", RELIED_ON),
    ("enable.gapless.guarantee", RELIED_ON),
    ("acks", RELIED_ON),
    ("request.required.acks", RELIED_ON),
    ("retries", RELIED_ON),
    ("message.send.max.retries", RELIED_ON),
    ("max.in.flight", RELIED_ON),
    ("max.in.flight.requests.per.connection", RELIED_ON),
    ("queuing.strategy", RELIED_ON),
    ("partitioner", RELIED_ON),
    ("batch.num.messages", RELIED_ON),
    ("delivery.report.only.error", RELIED_ON),
    ("transactional.id", RELIED_ON),
    ("allow.auto.create.topics", RELIED_ON),
    ("topic.metadata.propagation.max.ms", RELIED_ON),
    ("log_level", "follows the daemon's log"),
    ("log.queue", "follows the daemon's log"),
    ("plugin.library.paths", "would load foreign code"),
    ("ssl.engine.location", "would load foreign code"),
    ("test.mock.num.brokers", "would deliver to nobody"),
];

const RELIED_ON: &str = "is what order and delivery rest on, and not to be changed";

/// Looks for those that are ours.
pub(super) fn check(properties: &BTreeMap<String, SecretString>) -> Result<(), Invalid> {
    for (name, why) in OURS {
        if properties.contains_key(name) {
            return Err(Invalid::new(
                "properties",
                format!("has {name}, which {why}"),
            ));
        }
    }
    match properties.keys().any(|name| name.contains('\0')) {
        true => Err(Invalid::new("properties", "has a name that is none")),
        false => Ok(()),
    }
}

/// All of a client's.
pub(super) fn client(
    brokers: &str,
    password: Option<&SecretString>,
    properties: &BTreeMap<String, SecretString>,
    manner: Manner,
) -> ClientConfig {
    let mut client = ClientConfig::new();
    // Tasks come in batches, so a request is full soon; and a cluster that is back is found soon.
    client.set("client.id", "aftercommit");
    client.set("linger.ms", "1");
    client.set("reconnect.backoff.max.ms", "1000");
    for (name, value) in properties {
        client.set(name, value.expose_secret());
    }
    if let Some(password) = password {
        client.set("sasl.password", password.expose_secret());
    }
    client.set("bootstrap.servers", brokers);
    client.set("enable.idempotence", "true");
    client.set("acks", "all");
    client.set("partitioner", "murmur2_random");
    client.set("allow.auto.create.topics", "false");
    // Messages do not end by themselves, one here and one there: they are given up all at once.
    client.set("message.timeout.ms", "0");
    match manner {
        Manner::Quick => client.set("enable.gapless.guarantee", "true"),
        Manner::Careful => client.set("batch.num.messages", "1"),
    };
    // Who hangs up is told from here on.
    client.set_log_level(RDKafkaLogLevel::Info);
    client
}

/// Reads what librdkafka is going to read, and names what it could not.
pub(super) fn check_files(security: &Security<'_>) -> Result<(), Invalid> {
    for (name, path) in security.files() {
        if let Err(error) = File::open(&path) {
            let path = path.display();
            let words = format!("has {name} = {path}, which cannot be read: {error}");
            return Err(Invalid::new("properties", words));
        }
    }
    Ok(())
}

/// librdkafka does not take a property, or not its value. Values that may be secret are not repeated.
pub(super) fn refused(error: &KafkaError, given: &BTreeMap<String, SecretString>) -> Invalid {
    let words = match error {
        KafkaError::ClientConfig(_, description, name, _) => {
            let what = description.split('"').next().unwrap_or_default();
            let what = what.trim_end_matches([' ', ':']);
            format!("has {name:?}, which librdkafka does not take: {what}")
        }
        KafkaError::ClientCreation(words) => {
            let is_in_words = |secret: &SecretString| {
                let value = secret.expose_secret();
                value.len() > 3 && words.contains(value)
            };
            let mut hidden = given.iter().filter(|(name, _)| !is_public(name));
            match hidden.any(|(_, secret)| is_in_words(secret)) {
                true => "do not go together, in librdkafka's eyes".to_owned(),
                false => format!("are refused by librdkafka: {words}"),
            }
        }
        _ => "are not taken by librdkafka".to_owned(),
    };
    Invalid::new("properties", words)
}

/// Whether a property's value is the name of a file or of a way to do something.
fn is_public(name: &str) -> bool {
    name.ends_with(".location")
        || matches!(
            name,
            "security.protocol"
                | "sasl.mechanism"
                | "sasl.mechanisms"
                | "compression.codec"
                | "compression.type"
        )
}
