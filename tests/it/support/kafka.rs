//! A Kafka cluster that librdkafka plays, in this process: brokers on sockets of their own, but nothing on disk.

use std::collections::BTreeSet;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::wait::PATIENCE;

/// The topic that is there from the start, with [`PARTITIONS`].
pub(crate) const TOPIC: &str = "tasks";

/// Of each topic.
pub(crate) const PARTITIONS: i32 = 4;

/// A message of a topic.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) partition: i32,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Vec<u8>,
    pub(crate) headers: Vec<(String, String)>,
}

impl Stored {
    fn read(message: &BorrowedMessage<'_>) -> Stored {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).expect("UTF-8");
        let headers = message.headers().into_iter();
        let headers = headers.flat_map(|headers| headers.iter());
        Stored {
            partition: message.partition(),
            key: message.key().map(<[u8]>::to_owned),
            value: message.payload().unwrap_or_default().to_owned(),
            headers: headers
                .map(|header| {
                    (
                        header.key.to_owned(),
                        text(header.value.unwrap_or_default()),
                    )
                })
                .collect(),
        }
    }

    /// A header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find_map(|(known, value)| (known == name).then_some(value.as_str()))
    }

    /// The task's id.
    pub(crate) fn id(&self) -> String {
        self.header("aftercommit-id").expect("an id").to_owned()
    }
}

/// The cluster, gone when dropped.
pub(crate) struct Kafka {
    pub(crate) cluster: MockCluster<'static, DefaultProducerContext>,
}

impl Kafka {
    /// With so many brokers.
    pub(crate) fn start(brokers: i32) -> Kafka {
        let cluster = MockCluster::new(brokers).expect("a cluster that is played");
        let kafka = Kafka { cluster };
        kafka.create(TOPIC);
        kafka
    }

    /// Makes a topic.
    pub(crate) fn create(&self, topic: &str) {
        let created = self.cluster.create_topic(topic, PARTITIONS, 1);
        created.expect("a new topic");
    }

    /// Where it is.
    pub(crate) fn brokers(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// All that a topic has: partition behind partition, each in its order.
    pub(crate) fn stored(&self, topic: &str) -> Vec<Stored> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.brokers())
            .set("group.id", "tests")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "10")
            .create()
            .expect("a consumer");
        let mut from = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            from.add_partition_offset(topic, partition, Offset::Beginning)
                .expect("a partition");
        }
        consumer.assign(&from).expect("partitions");
        let mut all = Vec::new();
        let mut unread: BTreeSet<i32> = (0..PARTITIONS).collect();
        while !unread.is_empty() {
            match consumer.poll(PATIENCE) {
                Some(Ok(message)) => all.push(Stored::read(&message)),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    unread.remove(&partition);
                }
                Some(Err(error)) => eprintln!("reading {topic}: {error}"),
                None => panic!("{topic} is not read to its end"),
            }
        }
        all.sort_by_key(|message| message.partition);
        all
    }

    /// The ids of all tasks in a topic.
    pub(crate) fn ids(&self, topic: &str) -> Vec<String> {
        self.stored(topic).iter().map(Stored::id).collect()
    }

    /// Takes all brokers away, or brings them back with what they have.
    pub(crate) fn set_away(&self, away: bool) {
        let done = match away {
            true => self.cluster.broker_down(-1),
            false => self.cluster.broker_up(-1),
        };
        done.expect("brokers that do as they are told");
    }
}

/// Puts another port in where an answer names a broker's: a host, and 32 bits.
pub(crate) fn show(response: &mut [u8], broker: u16, ours: u16) {
    let address = |port: u16| [&b"127.0.0.1"[..], &u32::from(port).to_be_bytes()].concat();
    let (from, to) = (address(broker), address(ours));
    let mut at = 0;
    while let Some(part) = response.get_mut(at..at + from.len()) {
        if part == from {
            part.copy_from_slice(&to);
        }
        at += 1;
    }
}
