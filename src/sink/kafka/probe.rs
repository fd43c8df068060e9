//! What Kafka says of itself and of the topic that concerns our messages: whether it takes them, and keeps them.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::{Metadata, MetadataTopic};

use super::flow::Kafka;
use super::session::{Manner, Quiet, Session};
use super::verdict::{self, Refusal};
use crate::sink::{Outage, Sight};

/// Asked for where topics differ from row to row: it is in every cluster that has consumers, and need not be.
const ANY: &str = "__consumer_offsets";

const PATIENCE: Duration = Duration::from_millis(4500);

const REMEDY: &str =
    "see to it that the brokers run, and that brokers, properties and password are right";

impl Kafka {
    pub(super) async fn look(&mut self) -> Vec<Sight> {
        match self.ask().await {
            Ok(sights) => sights,
            Err(Outage { cause, .. }) => vec![Sight::Fault(cause.to_string(), REMEDY.to_owned())],
        }
    }

    async fn ask(&mut self) -> Result<Vec<Sight>, Outage> {
        let session = Session::open(&self.config, Manner::Quick)?;
        let fixed = self.config.topic.fixed();
        let topic = fixed.unwrap_or(ANY);
        let metadata = session.ask(topic, self.patience()).await?;
        let brokers = metadata.brokers().len();
        let mut sights = vec![Sight::Good(format!("Kafka lets us in: {brokers} brokers"))];
        sights.extend(self.config.security().risks());
        if let Some(topic) = fixed {
            sights.extend(described(&metadata, topic));
            if let Some((found, _)) = there(&metadata, topic) {
                sights.extend(self.kept(topic, replicas(found)).await);
            }
        }
        Ok(sights)
    }

    /// For one question. There are two, and whoever looks has to hear what is wrong before their own patience ends.
    fn patience(&self) -> Duration {
        self.config.timeout.min(PATIENCE)
    }

    /// What the topic's settings lose.
    async fn kept(&self, topic: &str, replicas: usize) -> Vec<Sight> {
        let unknown = |why: String| {
            vec![Sight::Risk(
                format!("the settings of the topic {topic} cannot be read: {why}"),
                "grant DescribeConfigs on the topic, or see to it that min.insync.replicas is 2 at least".to_owned(),
            )]
        };
        let made = self.config.make(Manner::Quick, |client| {
            AdminClient::from_config_and_context(client, Quiet)
        });
        let admin = match made {
            Ok(admin) => admin,
            Err(invalid) => return unknown(format!("librdkafka cannot be started: {invalid}")),
        };
        let options = AdminOptions::new().request_timeout(Some(self.patience()));
        let asked = [ResourceSpecifier::Topic(topic)];
        let answer = admin.describe_configs(&asked, &options).await;
        // Its threads are waited for, which takes a moment.
        std::thread::spawn(move || drop(admin));
        match answer.as_deref() {
            Ok([Ok(settings)]) => risks(topic, replicas, settings),
            Ok([Err(code), ..]) => unknown(code.to_string()),
            Ok(_) => unknown("no answer is about it".to_owned()),
            Err(error) => unknown(match error.rdkafka_error_code() {
                Some(code) => code.to_string(),
                None => "they are not told".to_owned(),
            }),
        }
    }
}

/// The topic, or why not.
fn there<'m>(
    metadata: &'m Metadata,
    topic: &str,
) -> Option<(&'m MetadataTopic, Option<RDKafkaErrorCode>)> {
    let found = metadata
        .topics()
        .iter()
        .find(|found| found.name() == topic)?;
    Some((found, found.error().map(RDKafkaErrorCode::from)))
}

fn replicas(topic: &MetadataTopic) -> usize {
    let partitions = topic.partitions().iter();
    partitions
        .map(|partition| partition.replicas().len())
        .min()
        .unwrap_or(0)
}

fn described(metadata: &Metadata, topic: &str) -> Vec<Sight> {
    let found = there(metadata, topic);
    let error = match &found {
        None => Some(RDKafkaErrorCode::UnknownTopicOrPartition),
        Some((_, error)) => *error,
    };
    let (None, Some((found, _))) = (error, found) else {
        let code = error.unwrap_or(RDKafkaErrorCode::UnknownTopicOrPartition);
        let (Refusal::ForEver(cause) | Refusal::ForNow(cause)) = verdict::of(code);
        return vec![Sight::Fault(
            format!("the topic {topic}: {cause}"),
            "kafka-topics.sh --create, with a replication factor of 3".to_owned(),
        )];
    };
    let partitions = found.partitions();
    let replicas = replicas(found);
    let mut sights = vec![Sight::Good(format!(
        "the topic {topic} has {} partitions, with {replicas} replicas each",
        partitions.len()
    ))];
    let headless = partitions
        .iter()
        .filter(|partition| partition.leader() < 0)
        .count();
    if headless > 0 {
        sights.push(Sight::Risk(
            format!(
                "{headless} partitions of {topic} have no leader: the tasks of their keys wait"
            ),
            "see to it that the brokers that have them run".to_owned(),
        ));
    }
    if replicas == 1 && metadata.brokers().len() > 1 {
        sights.push(Sight::Risk(
            format!(
                "the topic {topic} has one replica: what it has is lost with that broker's disk"
            ),
            "give it a replication factor of 3, with kafka-reassign-partitions.sh".to_owned(),
        ));
    }
    sights
}

fn risks(topic: &str, replicas: usize, settings: &ConfigResource) -> Vec<Sight> {
    let value = |name: &str| {
        let entry = settings.get(name)?;
        entry.value.clone()
    };
    let mut sights = Vec::new();
    let mut risk = |words: String, remedy: &str| sights.push(Sight::Risk(words, remedy.to_owned()));
    if replicas > 1 && value("min.insync.replicas").is_some_and(|least| least == "1") {
        risk(
            format!(
                "the topic {topic} has min.insync.replicas = 1: while the other replicas are behind, a message is confirmed that one disk has"
            ),
            "set min.insync.replicas to 2, with kafka-configs.sh",
        );
    }
    if value("unclean.leader.election.enable").is_some_and(|on| on == "true") {
        risk(
            format!(
                "the topic {topic} has unclean.leader.election.enable: a replica that is behind may become the leader, and confirmed messages are lost"
            ),
            "set it to false",
        );
    }
    if value("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        risk(
            format!(
                "the topic {topic} is compacted: of a key only the last message stays, and messages without a key are refused"
            ),
            "set cleanup.policy to delete, where each task counts",
        );
    }
    sights
}
