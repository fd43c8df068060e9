//! Pure: what an error of Kafka's means for a task.

use rdkafka::error::RDKafkaErrorCode::{self, *};

use crate::sink::{Cause, Outcome};

/// Why a message was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// It never will be.
    ForEver(Cause),
    /// It may be, later.
    ForNow(Cause),
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Outcome {
        match refusal {
            Refusal::ForEver(cause) => Outcome::Reject(cause),
            Refusal::ForNow(cause) => Outcome::Retry(cause),
        }
    }
}

/// What an error means.
pub(super) fn of(code: RDKafkaErrorCode) -> Refusal {
    let in_words = |words: &'static str| Refusal::ForNow(Cause::new(words));
    match code {
        MessageSizeTooLarge | InvalidMessageSize | MessageBatchTooLarge => {
            Refusal::ForEver(Cause::new(
                "the message is larger than message.max.bytes, of the topic or of the sink's properties, lets pass",
            ))
        }
        InvalidRecord => Refusal::ForEver(Cause::new(
            "Kafka finds the message invalid for its topic (a compacted topic needs a key)",
        )),
        InvalidTopic => Refusal::ForEver(Cause::new("the topic's name is not allowed")),
        UnknownTopic | UnknownTopicOrPartition | UnknownPartition => {
            in_words("the topic does not exist: create it, or allow us to describe it")
        }
        TopicAuthorizationFailed => {
            in_words("we are not allowed to write to the topic: grant Write and Describe")
        }
        ClusterAuthorizationFailed => in_words(
            "we are not allowed to write idempotently: grant IdempotentWrite on the cluster",
        ),
        NotEnoughReplicas | NotEnoughReplicasAfterAppend => {
            in_words("fewer replicas are in sync than the topic's min.insync.replicas")
        }
        LeaderNotAvailable => in_words("the partition has no leader"),
        PurgeQueue | PurgeInflight | Fatal | GaplessGuarantee => {
            in_words("Kafka has not confirmed it in time")
        }
        other => Refusal::ForNow(Cause::new(format!("Kafka does not take it: {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        for code in [
            MessageSizeTooLarge,
            MessageBatchTooLarge,
            InvalidRecord,
            InvalidTopic,
        ] {
            assert!(matches!(of(code), Refusal::ForEver(_)), "{code}");
        }
        for code in [
            UnknownTopicOrPartition,
            TopicAuthorizationFailed,
            ClusterAuthorizationFailed,
            NotEnoughReplicas,
            NotEnoughReplicasAfterAppend,
            LeaderNotAvailable,
            PurgeQueue,
            PolicyViolation,
            OutOfOrderSequenceNumber,
            Unknown,
        ] {
            assert!(matches!(of(code), Refusal::ForNow(_)), "{code}");
        }
    }
}
