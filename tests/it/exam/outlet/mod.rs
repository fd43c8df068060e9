//! Where a row's tasks go: what the configuration says, what has come there, and what can happen to it.
//!
//! One file for each kind of place. The sink is called `workers`, as in [`Exam::config`].

mod exec;
mod jetstream;
#[cfg(feature = "kafka")]
mod kafka;
mod queues;
mod rabbitmq;
mod redis;
#[cfg(feature = "sqs")]
mod sqs;
mod stdout;
mod webhook;

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::path::Path;

use aftercommit::sink::{Sink, Tables};
use serde::Deserialize;

use super::sheet::{Sheet, sit};
use super::{is_full, is_wide};
use crate::support::exam::ledger::Delivery;
use crate::support::exam::load::KEYS;
use crate::support::exam::{Exam, IN_FLIGHT};
use crate::support::{nats, rabbitmq as rabbitmq_server};

/// A sink, and what is behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outlet {
    /// `celery`, over the Redis of the [`Exam`].
    Redis,
    /// `celery`, over RabbitMQ.
    CeleryRabbitMq,
    /// `amqp`: a topic exchange.
    Amqp,
    /// `redis`: a stream of the Redis of the [`Exam`].
    RedisStream,
    /// `redis`: a list.
    RedisList,
    /// `nats`: JetStream.
    JetStream,
    /// `webhook`: an HTTP server in this process.
    Webhook,
    /// `exec`: processes that write down what they get.
    Exec,
    /// `stdout`: a file.
    Stdout,
    /// `sidekiq`: a queue in the Redis of the [`Exam`].
    Sidekiq,
    /// `dramatiq`: a queue there.
    DramatiqRedis,
    /// `dramatiq`, over RabbitMQ.
    DramatiqRabbitMq,
    /// `bullmq`: a queue in the Redis of the [`Exam`].
    BullMq,
    /// `kafka`: a topic of the cluster that librdkafka plays.
    Kafka,
    /// `sqs`: a standard queue of moto's.
    Sqs,
    /// `sqs`: a FIFO queue.
    SqsFifo,
}

/// Requests of ten, with the default of `concurrency`.
const SQS_UNDER_WAY: usize = 160;

impl fmt::Display for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outlet::Redis => "Celery on Redis",
            Outlet::CeleryRabbitMq => "Celery on RabbitMQ",
            Outlet::Amqp => "amqp",
            Outlet::RedisStream => "Redis stream",
            Outlet::RedisList => "Redis list",
            Outlet::JetStream => "JetStream",
            Outlet::Webhook => "webhook",
            Outlet::Exec => "exec",
            Outlet::Stdout => "stdout",
            Outlet::Sidekiq => "Sidekiq",
            Outlet::DramatiqRedis => "Dramatiq on Redis",
            Outlet::DramatiqRabbitMq => "Dramatiq on RabbitMQ",
            Outlet::BullMq => "BullMQ",
            Outlet::Kafka => "Kafka",
            Outlet::Sqs => "SQS",
            Outlet::SqsFifo => "SQS, FIFO",
        })
    }
}

impl Outlet {
    /// Why it cannot be sat here.
    fn absent(self) -> Option<&'static str> {
        match self {
            Outlet::CeleryRabbitMq | Outlet::Amqp | Outlet::DramatiqRabbitMq
                if !rabbitmq_server::is_installed() =>
            {
                Some("no RabbitMQ here; scripts/apt-install.sh rabbitmq-server")
            }
            Outlet::Kafka if cfg!(not(feature = "kafka")) => {
                Some("built without the feature kafka")
            }
            Outlet::Sqs | Outlet::SqsFifo if cfg!(not(feature = "sqs")) => {
                Some("built without the feature sqs")
            }
            Outlet::JetStream if !nats::is_there() => {
                Some("no nats-server here; scripts/apt-install.sh nats-server")
            }
            Outlet::SqsFifo if is_full() => {
                Some("moto's FIFO queues get slower with each message: the quick profile sits it")
            }
            _ => None,
        }
    }

    /// Whether the sink knows what its place has, or the place itself, so that nothing comes twice, whatever happens.
    fn excludes_repeats(self) -> bool {
        self.is_in_redis() || matches!(self, Outlet::JetStream | Outlet::SqsFifo)
    }

    /// Whether it is a key of the Redis of the [`Exam`].
    pub(super) fn is_in_redis(self) -> bool {
        matches!(
            self,
            Outlet::Redis
                | Outlet::RedisStream
                | Outlet::RedisList
                | Outlet::Sidekiq
                | Outlet::DramatiqRedis
                | Outlet::BullMq
        )
    }

    /// A count, or a part of it: where a server in Python is behind it, which does not get far.
    pub(super) fn gently(self, count: usize) -> usize {
        match self {
            Outlet::Sqs | Outlet::SqsFifo => count / 10,
            _ => count,
        }
    }

    /// How many may come twice, when so many were in flight, or settled and not confirmed.
    pub(super) fn duplicates(self, exposed: usize) -> usize {
        if self.excludes_repeats() { 0 } else { exposed }
    }

    /// How many tasks can be in its hands at a time, under way and not answered.
    pub(super) fn in_hands(self) -> usize {
        match self {
            Outlet::Webhook => webhook::CONCURRENCY,
            Outlet::Exec => exec::WORKERS,
            Outlet::Sqs | Outlet::SqsFifo => SQS_UNDER_WAY,
            _ => IN_FLIGHT,
        }
    }

    /// How many tasks the sink has under way at a time, of as many as are in flight.
    pub(super) fn under_way(self, in_flight: usize) -> usize {
        match self {
            Outlet::Webhook => webhook::CONCURRENCY,
            Outlet::Exec => exec::WORKERS,
            // One of each key.
            Outlet::CeleryRabbitMq | Outlet::Amqp | Outlet::DramatiqRabbitMq => in_flight.min(KEYS),
            Outlet::Sqs | Outlet::SqsFifo => SQS_UNDER_WAY,
            _ => in_flight,
        }
    }

    /// Whether what was delivered is seen a while later only.
    pub(super) fn is_seen_late(self) -> bool {
        matches!(
            self,
            Outlet::CeleryRabbitMq
                | Outlet::Amqp
                | Outlet::DramatiqRabbitMq
                | Outlet::JetStream
                | Outlet::Kafka
                | Outlet::Sqs
                | Outlet::SqsFifo
        )
    }

    /// Gets it ready. One of its own can be stopped and killed, and keeps what it has acknowledged; otherwise it may be
    /// shared with other tests.
    pub(super) fn open(self, own: bool) -> Box<dyn Place> {
        let on_redis = |kind| Box::new(redis::OnRedis::new(kind));
        let on_rabbitmq = |kind| Box::new(rabbitmq::OnRabbitMq::new(kind, own));
        match self {
            Outlet::Redis => on_redis(redis::Kind::Celery),
            Outlet::RedisStream => on_redis(redis::Kind::Stream),
            Outlet::RedisList => on_redis(redis::Kind::List),
            Outlet::Sidekiq => on_redis(redis::Kind::Sidekiq),
            Outlet::DramatiqRedis => on_redis(redis::Kind::Dramatiq),
            Outlet::BullMq => on_redis(redis::Kind::BullMq),
            Outlet::CeleryRabbitMq => on_rabbitmq(rabbitmq::Kind::Celery),
            Outlet::Amqp => on_rabbitmq(rabbitmq::Kind::Amqp),
            Outlet::DramatiqRabbitMq => on_rabbitmq(rabbitmq::Kind::Dramatiq),
            Outlet::JetStream => Box::new(jetstream::OnJetStream::start()),
            Outlet::Webhook => Box::new(webhook::Hooks::start()),
            Outlet::Exec => Box::new(exec::Workers::start()),
            Outlet::Stdout => Box::new(stdout::Files::new()),
            #[cfg(feature = "kafka")]
            Outlet::Kafka => Box::new(kafka::OnKafka::start()),
            #[cfg(feature = "sqs")]
            Outlet::Sqs => Box::new(sqs::OnSqs::start(false)),
            #[cfg(feature = "sqs")]
            Outlet::SqsFifo => Box::new(sqs::OnSqs::start(true)),
            #[cfg(not(all(feature = "kafka", feature = "sqs")))]
            _ => panic!("not in this build"),
        }
    }
}

/// A client in this process, of the sink that a configuration has.
pub(super) fn client(config: &str) -> Box<dyn Sink> {
    let config: toml::Table = toml::from_str(config).expect("a configuration");
    let sinks: Tables = config["sink"].clone().try_into().expect("a sink");
    let (_, _, settings) = sinks.each().next().expect("a sink");
    settings.open().expect("a sink")
}

/// The task of the rows that the checker knows of.
const ROW: &str = "exam.row";

/// What was found at a place.
#[derive(Default)]
pub(super) struct Found {
    /// The checker's rows.
    pub(super) rows: Vec<Delivery>,
    /// All the rest.
    pub(super) others: Vec<Other>,
}

/// A message of a task that the checker does not know of.
#[derive(Clone, Debug)]
pub(super) struct Other {
    pub(super) id: String,
    pub(super) task: String,
    /// Its length in bytes.
    pub(super) length: usize,
}

#[derive(Deserialize)]
struct Head<'m> {
    #[serde(borrow)]
    id: Cow<'m, str>,
    #[serde(borrow)]
    task: Cow<'m, str>,
}

impl Found {
    /// A message of this task; one of the checker's is to be read.
    fn add(&mut self, id: &str, task: &str, length: usize, row: impl FnOnce() -> Delivery) {
        match task {
            ROW => self.rows.push(row()),
            _ => self.others.push(Other {
                id: id.to_owned(),
                task: task.to_owned(),
                length,
            }),
        }
    }

    /// A row that was written as one object.
    fn add_object(&mut self, object: &[u8]) {
        let head: Head = serde_json::from_slice(object).expect("a row");
        self.add(&head.id, &head.task, object.len(), || {
            Delivery::of_object(object)
        });
    }

    /// A message of kombu's Redis transport.
    fn add_celery(&mut self, message: &[u8]) {
        #[derive(Deserialize)]
        struct Envelope<'m> {
            #[serde(borrow)]
            headers: Head<'m>,
        }
        let Envelope { headers } = serde_json::from_slice(message).expect("a message");
        self.add(&headers.id, &headers.task, message.len(), || {
            Delivery::of_celery(message)
        });
    }
}

/// What a row asks for that an outlet has not.
const NOT_HERE: &str = "this outlet has nothing of the kind";

/// What is behind a sink.
pub(super) trait Place: Send + Sync {
    /// Where it listens on 127.0.0.1.
    fn port(&self, exam: &Exam) -> u16;

    /// `[sink.<type>.workers]`, by way of a port: a proxy's, or its own.
    fn sink(&self, exam: &Exam, port: u16) -> String;

    /// Appends what has come and was not read yet, in the order in which it came.
    fn read(&mut self, exam: &Exam, found: &mut Found);

    /// What stands where no row of the checker's goes, all of it.
    fn elsewhere(&self, _: &Exam) -> Vec<Other> {
        Vec::new()
    }

    /// From now on all is read again: what is there now counts, and not what was seen.
    fn rewind(&mut self);

    /// SIGSTOP, or what comes next to it.
    fn stop(&mut self, exam: &Exam);

    /// The end of [`stop`](Place::stop).
    fn cont(&mut self, exam: &Exam);

    /// kill -9.
    fn kill9(&mut self, exam: &mut Exam);

    /// It is back, with what it has acknowledged.
    fn restart(&mut self, exam: &mut Exam);

    /// From now on it has no room for anything.
    fn fill(&mut self, _: &Exam) {
        panic!("{NOT_HERE}");
    }

    /// The end of [`fill`](Place::fill).
    fn make_room(&mut self, _: &Exam) {
        panic!("{NOT_HERE}");
    }

    /// What messages go to is not there: no message was there yet.
    fn vanish(&mut self, _: &Exam) {
        panic!("{NOT_HERE}");
    }

    /// The end of [`vanish`](Place::vanish).
    fn appear(&mut self, _: &Exam) {
        panic!("{NOT_HERE}");
    }

    /// From now on only who has this password is let in, or nobody; whoever is in has to leave.
    fn admit(&mut self, _: &Exam, _password: Option<&str>) {
        panic!("{NOT_HERE}");
    }

    /// What stands in a file of secrets, for who has this password.
    fn secret(&self, _: &Exam, _password: &str) -> String {
        panic!("{NOT_HERE}");
    }

    /// As [`sink`](Place::sink), with [`secret`](Place::secret) in a file.
    fn sink_from(&self, _file: &Path) -> String {
        panic!("{NOT_HERE}");
    }

    /// Where the next daemon's stdout goes, if it is of interest.
    fn stdout(&mut self) -> Option<File> {
        None
    }
}

/// In which profiles a row is sat over an outlet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sat {
    Always,
    /// The quick profile leaves it out: the test run has little time.
    InFull,
}

/// Sits a row over one outlet.
pub(super) async fn sit_over<F>(
    (row, fault): (&str, &str),
    (outlet, sat): (Outlet, Sat),
    scenario: impl FnOnce(Sheet, Outlet) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let name = format!("{fault}, {outlet}");
    let scenario = |sheet: Sheet| {
        let why = match sat {
            Sat::InFull if !is_full() && !is_wide() => {
                Some("sat by `make exam`, and with EXAM=wide")
            }
            _ => outlet.absent(),
        };
        let sitting = match why {
            Some(why) => {
                sheet.skip(why);
                None
            }
            None => Some(scenario(sheet, outlet)),
        };
        async move {
            if let Some(sitting) = sitting {
                sitting.await;
            }
        }
    };
    sit(row, &name, scenario).await;
}

/// One test for each outlet that a row is sat over.
macro_rules! over {
    ($row:literal, $fault:literal, $scenario:path; $($test:ident: $outlet:ident, $sat:ident;)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                use crate::exam::outlet::{Outlet, Sat, sit_over};
                sit_over(($row, $fault), (Outlet::$outlet, Sat::$sat), $scenario).await;
            }
        )+
    };
}
pub(super) use over;
