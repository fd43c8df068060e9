//! Messages to topics of Apache Kafka, through librdkafka. In builds with the feature `kafka`.
//!
//! - **Delivered** means: all replicas of the partition that are in sync have the message (`acks=all`). How many these are at
//!   least is the topic's `min.insync.replicas`.
//! - **Repeats**: Kafka itself drops what the client sends again after a lost answer (idempotent producer). What was under way
//!   when the daemon was killed, or when Kafka was away for longer than `timeout`, comes again, with the same
//!   `aftercommit-id`: a producer that starts anew is another one to Kafka.
//! - **Order**: the row's key is the message's key, and says the partition as Java's clients do (`murmur2_random`); tasks
//!   without a key go anywhere. Tasks of a key are sent one behind the other without waiting. When Kafka refuses one of them,
//!   the producer stops at once (`enable.gapless.guarantee`), so that none overtakes it; what is left of the batch is then sent
//!   by a second producer, of each key one at a time and each in a request of its own, so that a refusal concerns nobody else.
//!   So is a key whose tasks go to several topics. Adding partitions to a topic moves keys: what is under way then may be
//!   overtaken.
//! - **What is refused**: a message that is too large for the client (`message.max.bytes` in `properties`) or for the topic can
//!   never be delivered, and its task is held as dead. A topic that does not exist is not made: its tasks are tried again.
//! - **What the broker can lose**: with `min.insync.replicas = 1`, what was written while the other replicas were out of sync,
//!   when the leader's disk is lost; the same with `unclean.leader.election.enable`; everything at the end of the topic's
//!   retention; on a compacted topic, all but the last message of a key. Kafka confirms before it writes to disk: a message is
//!   as safe as its replicas do not fail together.
//!
//! **TLS and logins** are librdkafka's, by `properties`: `security.protocol`, `ssl.ca.location` (otherwise the authorities of the
//! operating system count), `ssl.certificate.location` and `ssl.key.location`; `sasl.mechanism` (PLAIN, SCRAM-SHA-256 or
//! SCRAM-SHA-512), `sasl.username`, and the key `password`. They need OpenSSL, and so the feature `kafka-tls`; without it there
//! is PLAIN alone, and whoever asks for more is refused. What is said of TLS without TLS is refused, too: nothing falls back to
//! plain. Files are read again when a producer is started, as after each outage.

mod flow;
mod probe;
mod properties;
mod security;
mod session;
mod topic;
mod trouble;
mod verdict;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _};
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;
use secrecy::SecretString;
use serde::Deserialize;

use self::flow::Kafka;
use self::security::Security;
use self::session::{Manner, Quiet};
use super::settings::{Either, check_timeout, default_timeout};
use super::{Delivery, Invalid, Probe, SecretFile, Settings, Sink};
use crate::envelope::parcel::Format;
use crate::envelope::template::Template;
use crate::outbox::Task;

/// `[sink.kafka.<name>]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Some of the cluster's brokers, with commas between: `host:9092,host2:9092`.
    pub brokers: String,
    /// The topic. The row's `queue` overrides it.
    pub topic: Template,
    /// What the message's value is.
    #[serde(default)]
    pub format: Format,
    /// The source of CloudEvents.
    #[serde(default = "default_source")]
    pub source: String,
    /// The password of SASL: librdkafka's `sasl.password`.
    pub password: Option<SecretString>,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// Properties of librdkafka.
    #[serde(default)]
    pub properties: BTreeMap<String, SecretString>,
    /// How long Kafka may confirm nothing before it counts as away.
    #[serde(
        default = "default_timeout",
        deserialize_with = "crate::units::duration"
    )]
    pub timeout: Duration,
}

fn default_source() -> String {
    "aftercommit".to_owned()
}

impl Config {
    /// A client of librdkafka. It reads files, and connects to nobody before it is used.
    fn make<C>(
        &self,
        manner: Manner,
        make: impl FnOnce(&ClientConfig) -> Result<C, KafkaError>,
    ) -> Result<C, Invalid> {
        properties::check_files(&self.security())?;
        let client = properties::client(
            &self.brokers,
            self.password.as_ref(),
            &self.properties,
            manner,
        );
        make(&client).map_err(|error| properties::refused(&error, &self.properties))
    }

    fn security(&self) -> Security<'_> {
        let has_password = self.password.is_some() || self.password_file.is_some();
        Security::of(&self.properties, has_password)
    }
}

impl Settings for Config {
    fn validate(&self) -> Result<(), Invalid> {
        if self.brokers.trim().is_empty() {
            return Err(Invalid::new("brokers", "is empty: host:9092,host2:9092"));
        }
        if self.brokers.contains("://") {
            return Err(Invalid::new(
                "brokers",
                "has a scheme, and takes hosts alone: host:9092,host2:9092",
            ));
        }
        if self.topic.is_open() {
            return Err(Invalid::new(
                "topic",
                "begins with a field, so that a row could choose any topic: begin with a literal, as in \"shop.{task}\"",
            ));
        }
        if let Some(fixed) = self.topic.fixed() {
            topic::check(fixed).map_err(|words| Invalid::new("topic", words))?;
        }
        let password = Either {
            setting: ("password", &self.password),
            file: ("password_file", &self.password_file),
        };
        password.at_most_one()?;
        properties::check(&self.properties)?;
        self.security().check(security::HAS_TLS)?;
        check_timeout("timeout", self.timeout)
    }

    fn secrets(&mut self) -> Vec<SecretFile<'_>> {
        vec![SecretFile {
            key: "password_file",
            file: &mut self.password_file,
            secret: &mut self.password,
        }]
    }

    fn open(&self) -> Result<Box<dyn Sink>, Invalid> {
        self.validate()?;
        if self.password_file.is_some() && self.password.is_none() {
            return Err(Invalid::unread("password_file"));
        }
        // librdkafka looks at its properties when a client is made.
        self.make(Manner::Quick, |client| {
            BaseProducer::from_config_and_context(client, Quiet)
        })?;
        Ok(Box::new(Kafka::new(self.clone())))
    }
}

impl Sink for Kafka {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(self.hand_over(batch))
    }

    fn probe(&mut self) -> Probe<'_> {
        Box::pin(self.look())
    }
}
