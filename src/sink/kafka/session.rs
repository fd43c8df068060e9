//! A producer of librdkafka, what it reports, and what is known of the cluster's topics.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer,
};
use tokio::sync::mpsc;

use super::Config;
use super::trouble::Trouble;
use super::verdict::{self, Refusal};
use crate::envelope::parcel::Parcel;
use crate::sink::{Cause, Outage};

/// How a producer sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Manner {
    /// Many messages in a request, and nothing more once one is refused.
    Quick,
    /// Each message in a request of its own; a refusal concerns nobody else.
    Careful,
}

/// What became of the message with this number.
pub(super) type Report = (usize, Result<(), RDKafkaErrorCode>);

/// A question is asked anew after so long, so that nobody waits for its answer who is not interested any more.
const SLICE: Duration = Duration::from_secs(2);

/// librdkafka tells the same trouble every 30 s only. What is older than this is past.
const MEMORY: Duration = Duration::from_secs(60);

/// The last thing that went wrong with the cluster as a whole, and when.
type Troubled = Arc<Mutex<Option<(Instant, Trouble)>>>;

/// A producer; whoever drops it takes back what it has not sent yet.
pub(super) struct Session {
    producer: Option<Arc<ThreadedProducer<Ear>>>,
    reports: mpsc::UnboundedReceiver<Report>,
    troubled: Troubled,
    /// Topics that are there.
    topics: HashSet<String>,
    /// Messages without a report.
    under_way: usize,
}

impl Session {
    /// Starts the producer; it connects by itself. The files that it needs may have changed since the last one was started.
    pub(super) fn open(config: &Config, manner: Manner) -> Result<Session, Outage> {
        let (report, reports) = mpsc::unbounded_channel();
        let troubled = Troubled::default();
        let ear = Ear {
            report,
            troubled: troubled.clone(),
        };
        let made = config.make(manner, |client| {
            ThreadedProducer::from_config_and_context(client, ear)
        });
        let producer = made.map_err(|invalid| {
            let words = format!("librdkafka cannot be started: {invalid}");
            Outage::new(Cause::new(words))
        })?;
        Ok(Session {
            producer: Some(Arc::new(producer)),
            reports,
            troubled,
            topics: HashSet::new(),
            under_way: 0,
        })
    }

    /// Gives a message to the producer, which copies it. Its report bears `number`.
    pub(super) fn send(
        &mut self,
        number: usize,
        topic: &str,
        key: Option<&[u8]>,
        parcel: &Parcel<'_>,
    ) -> Result<(), RDKafkaErrorCode> {
        let Some(producer) = &self.producer else {
            return Err(RDKafkaErrorCode::Fail);
        };
        let mut headers = OwnedHeaders::new_with_capacity(parcel.headers.len());
        for (name, value) in &parcel.headers {
            headers = headers.insert(Header {
                key: name,
                value: Some(value.as_bytes()),
            });
        }
        let mut record = BaseRecord::with_opaque_to(topic, number)
            .payload(&*parcel.value)
            .headers(headers);
        if let Some(key) = key {
            record = record.key(key);
        }
        match producer.send(record) {
            Ok(()) => self.under_way += 1,
            Err((error, _)) => return Err(code_of(&error)),
        }
        Ok(())
    }

    /// Messages of which nothing was heard yet.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// The next report, or nothing within this time.
    pub(super) async fn report(&mut self, within: Duration) -> Option<Report> {
        let report = tokio::time::timeout(within, self.reports.recv()).await;
        let report = report.ok().flatten()?;
        self.under_way = self.under_way.saturating_sub(1);
        Some(report)
    }

    /// Takes back what has not been sent, and lets go of what has; each message still has its report.
    pub(super) fn purge(&self) {
        if let Some(producer) = &self.producer {
            producer.purge(PurgeConfig::default().queue().inflight());
        }
    }

    /// Whether the topic is there.
    pub(super) async fn has(
        &mut self,
        topic: &str,
        within: Duration,
    ) -> Result<Result<(), Refusal>, Outage> {
        if self.topics.contains(topic) {
            return Ok(Ok(()));
        }
        let metadata = self.ask(topic, within).await?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let error = match found {
            None => Some(RDKafkaErrorCode::UnknownTopicOrPartition),
            Some(found) => found.error().map(RDKafkaErrorCode::from),
        };
        Ok(match error {
            None => {
                self.topics.insert(topic.to_owned());
                Ok(())
            }
            Some(code) => Err(verdict::of(code)),
        })
    }

    /// What the cluster says of itself and of a topic.
    pub(super) async fn ask(&self, topic: &str, within: Duration) -> Result<Metadata, Outage> {
        let asked = tokio::time::timeout(within, self.ask_again_and_again(topic)).await;
        match asked {
            Ok(Some(metadata)) => Ok(metadata),
            Ok(None) | Err(_) => Err(self.away(within)),
        }
    }

    async fn ask_again_and_again(&self, topic: &str) -> Option<Metadata> {
        loop {
            let producer = self.producer.clone()?;
            let topic = topic.to_owned();
            let asked = tokio::task::spawn_blocking(move || {
                producer.client().fetch_metadata(Some(&topic), SLICE)
            });
            match asked.await {
                Ok(Ok(metadata)) => return Some(metadata),
                Ok(Err(_)) if self.trouble().is_some_and(|trouble| trouble.stays) => return None,
                // librdkafka answers at once where it knows already that nobody is there.
                Ok(Err(_)) => tokio::time::sleep(SLICE / 20).await,
                Err(_) => return None,
            }
        }
    }

    /// The cluster has not answered for so long.
    pub(super) fn away(&self, within: Duration) -> Outage {
        Outage::new(Cause::new(match self.trouble() {
            Some(Trouble { words, stays: true }) => words,
            Some(Trouble { words, .. }) => {
                format!("Kafka has not answered within {within:?}: {words}")
            }
            None => format!("Kafka has not answered within {within:?}"),
        }))
    }

    /// What is wrong now, or was a moment ago.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        let troubled = self.troubled.lock();
        let troubled = troubled.unwrap_or_else(PoisonError::into_inner);
        let (since, trouble) = troubled.as_ref()?;
        (since.elapsed() < MEMORY).then(|| trouble.clone())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.purge();
        // Its threads are waited for, which takes a moment.
        let producer = self.producer.take();
        std::thread::spawn(move || drop(producer));
    }
}

/// Hears what librdkafka has to say.
struct Ear {
    report: mpsc::UnboundedSender<Report>,
    troubled: Troubled,
}

impl Ear {
    /// What passes is not told in place of what stays.
    fn note(&self, trouble: Trouble) {
        let mut troubled = self.troubled.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = |(_, known): &(Instant, Trouble)| known.stays;
        if trouble.stays || !troubled.as_ref().is_some_and(stays) {
            *troubled = Some((Instant::now(), trouble));
        }
    }
}

impl ClientContext for Ear {
    /// A broker that hangs up is no error to librdkafka, but a line in its log.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Quiet.log(level, facility, message);
        if facility == "FAIL" {
            self.note(Trouble::of(None, message));
        }
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        if code != Some(RDKafkaErrorCode::AllBrokersDown) {
            self.note(Trouble::of(code, reason));
        }
    }
}

/// Whose errors come with its answers.
pub(super) struct Quiet;

impl ClientContext for Quiet {
    /// At once a line for each attempt to connect: what it comes to is told with the outcome.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "librdkafka: {message}");
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

impl ProducerContext for Ear {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let result = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(code_of(error)),
        };
        // Nobody listens any more to a producer that is on its way out.
        let _ = self.report.send((number, result));
    }
}

fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)
}
