//! Floor 4: the destinations, a file or a room each. This file holds the contract and the only list of them.

#[cfg(any(feature = "amqp", feature = "celery"))]
#[cfg_attr(
    not(all(feature = "amqp", feature = "celery")),
    allow(dead_code, reason = "some of it is for the others")
)]
pub mod amqp;
#[cfg(any(feature = "amqp", feature = "celery", feature = "redis"))]
#[cfg_attr(
    not(all(feature = "amqp", feature = "celery", feature = "redis")),
    allow(dead_code, reason = "some of it is for the others")
)]
mod broker_url;
#[cfg(feature = "bullmq")]
pub mod bullmq;
#[cfg(feature = "celery")]
pub mod celery;
#[cfg(feature = "dramatiq")]
pub mod dramatiq;
#[cfg(feature = "exec")]
pub mod exec;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod marks;
#[cfg(feature = "nats")]
pub mod nats;
pub mod null;
#[cfg(any(
    feature = "exec",
    feature = "kafka",
    feature = "sqs",
    feature = "webhook"
))]
mod order;
#[cfg(feature = "redis")]
// The engine of several sinks: a build that leaves some of them out does not need all of it.
#[cfg_attr(
    not(all(feature = "bullmq", feature = "dramatiq", feature = "sidekiq")),
    allow(dead_code)
)]
pub mod redis;
#[cfg(any(feature = "celery", feature = "redis"))]
#[cfg_attr(
    not(all(feature = "celery", feature = "redis")),
    allow(dead_code, reason = "some of it is for the others")
)]
pub mod redis_client;
pub mod renewed;
#[cfg(any(feature = "exec", feature = "webhook"))]
mod served;
pub mod serving;
#[cfg_attr(
    not(all(feature = "celery", feature = "redis")),
    allow(dead_code, reason = "some of it is for the others")
)]
mod settings;
#[cfg(feature = "sidekiq")]
pub mod sidekiq;
#[cfg(feature = "sqs")]
pub mod sqs;
#[cfg(feature = "stdout")]
pub mod stdout;
#[cfg(feature = "webhook")]
pub mod webhook;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use self::marks::Terms;
use self::serving::Serves;
pub use self::settings::{Invalid, SecretFile, Settings};
use crate::outbox::Task;

/// Why something was not delivered, in words for the log and the operator. Never holds a payload or a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Cause(Cow<'static, str>);

impl Cause {
    /// A cause in words.
    pub fn new(words: impl Into<Cow<'static, str>>) -> Cause {
        Cause(words.into())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A sink's answer for one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The broker has confirmed it.
    Delivered,
    /// Not delivered, or not known to be: the same task, with the same id, may be handed over again.
    Retry(Cause),
    /// The same, and the receiver asks for so long a pause at least.
    RetryIn(Duration, Cause),
    /// It can never be delivered as it is.
    Reject(Cause),
    /// Not tried: the batch would have lasted too long. It comes first the next time, and no attempt is counted.
    Unsent,
}

/// The sink as a whole is away: connection, authentication, a blocked broker. No task of the batch is to blame. The lane
/// pauses, and hands over again what was not answered for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Outage {
    /// Why.
    pub cause: Cause,
    /// What was answered for before it went: an outcome for each task of the batch, or none at all. [`Outcome::Unsent`] says
    /// here that a task may have been applied or not.
    pub outcomes: Vec<Outcome>,
}

impl Outage {
    /// Nothing was answered for.
    pub fn new(cause: Cause) -> Outage {
        Outage {
            cause,
            outcomes: Vec::new(),
        }
    }

    /// So much of the batch was answered for. A sink without marks says so, lest it is sent again.
    #[cfg(any(
        feature = "amqp",
        feature = "celery",
        feature = "exec",
        feature = "kafka",
        feature = "nats",
        feature = "sqs",
        feature = "webhook"
    ))]
    fn amid(self, known: Vec<Option<Outcome>>) -> Outage {
        let outcomes = known.into_iter();
        Outage {
            outcomes: outcomes
                .map(|known| known.unwrap_or(Outcome::Unsent))
                .collect(),
            ..self
        }
    }
}

/// What [`Sink::deliver`] returns.
pub type Delivery<'a> = Pin<Box<dyn Future<Output = Result<Vec<Outcome>, Outage>> + Send + 'a>>;

/// What a look at a sink's place has shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sight {
    /// As it should be.
    Good(String),
    /// Messages may be lost or stay undelivered: what it is, and the remedy.
    Risk(String, String),
    /// Nothing can be delivered: what it is, and the remedy.
    Fault(String, String),
}

/// What [`Sink::probe`] returns.
pub type Probe<'a> = Pin<Box<dyn Future<Output = Vec<Sight>> + Send + 'a>>;

/// What [`Sink::close`] returns.
pub type Closing<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A destination.
///
/// The contract, which `tests/it/conformance/` checks for every sink:
/// - `deliver` answers with exactly one [`Outcome`] per task, in the batch's order, or with an [`Outage`]. What is known of
///   a batch is said in an outage, too: what was delivered before it is not handed over again.
/// - `Delivered` means that the broker has confirmed the task, not that it was written to a socket.
/// - Within a batch and between batches, tasks of one key are applied in the order given; where one task of a key is
///   not delivered, no later task of this key in the batch is.
/// - A sink that sends one task of a key at a time need not wait for the longest row of one key, while others could go: it
///   leaves the rest of it `Unsent`. The first task of each key is tried, so that each batch gets on.
/// - A task may be handed over again, with the same id: after `Retry`, after an outage, after a crash.
/// - What would harm the receiver is rejected before anything of it is sent, and harms no neighbour in the batch.
/// - A sink that takes tasks one by one ([`Serves`]) has one of a key in its hands at a time.
/// - A sink connects by itself when it is first used and after each outage; it bounds every wait by a timeout.
/// - A sink answers. It does not retry, sleep between attempts, acknowledge, or know of the slot.
/// - Dropping the returned future is allowed at any await; the sink must then still be usable.
pub trait Sink: Send {
    /// Hands a batch over, in order, and waits for the broker's confirmation.
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a>;

    /// As [`deliver`](Sink::deliver), where `terms` say what positions mean. A sink that can store marks of tasks in one
    /// atomic step with what they are about does not apply a task again whose mark is there: it answers `Delivered` without
    /// sending it. This holds through outages, lost answers and crashes, as long as the place keeps what it has; how far it
    /// goes stands at the head of such a sink's file.
    fn deliver_once<'a>(&'a mut self, batch: &'a [Task], terms: Terms) -> Delivery<'a> {
        let _ = terms;
        self.deliver(batch)
    }

    /// Looks at the place: whether it is there and lets us in, whether we have the rights that we need, and which of its
    /// settings lose messages. Changes nothing there. The caller bounds the wait.
    fn probe(&mut self) -> Probe<'_>;

    /// As a sink that takes its tasks one by one; `None`, where it takes batches. It is the same for all of its life.
    fn serves(&mut self) -> Option<&mut dyn Serves> {
        None
    }

    /// How many tasks it wants in a batch, at most: not more than it can soon answer for.
    fn most(&self) -> usize {
        usize::MAX
    }

    /// It is not used any more: ends what it has started, within a bounded time.
    fn close(&mut self) -> Closing<'_> {
        Box::pin(std::future::ready(()))
    }

    /// How long before its `run_at` a task may be handed over: its message says when it is to run, and the receiver keeps
    /// it until then. What is further ahead waits in the hold table.
    fn keeps(&self) -> Duration {
        Duration::ZERO
    }
}

/// Declares [`Tables`].
macro_rules! tables {
    ($($kind:ident $($feature:literal)?,)*) => {
        /// The types of sinks that a build has when it is made with the cargo feature of the same name.
        pub const FEATURES: &[&str] = &[$($($feature,)?)*];

        /// `[sink.<type>.<name>]`.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Tables {
            $(
                $(#[cfg(feature = $feature)])?
                #[doc = concat!("`[sink.", stringify!($kind), ".<name>]`")]
                pub $kind: BTreeMap<String, $kind::Config>,
            )*
        }

        impl Tables {
            /// All sinks: type, name, and settings.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &str, &dyn Settings)> {
                let all = std::iter::empty();
                $(
                    $(#[cfg(feature = $feature)])?
                    let all = all.chain(self.$kind.iter().map(|(name, settings)| {
                        (stringify!($kind), name.as_str(), settings as &dyn Settings)
                    }));
                )*
                all
            }

            /// As [`each`](Tables::each).
            pub fn each_mut(&mut self) -> impl Iterator<Item = (&'static str, &str, &mut dyn Settings)> {
                let all = std::iter::empty();
                $(
                    $(#[cfg(feature = $feature)])?
                    let all = all.chain(self.$kind.iter_mut().map(|(name, settings)| {
                        (stringify!($kind), name.as_str(), settings as &mut dyn Settings)
                    }));
                )*
                all
            }
        }
    };
}

// The only list of sink types, with the cargo feature of each.
tables! {
    amqp "amqp",
    bullmq "bullmq",
    celery "celery",
    dramatiq "dramatiq",
    exec "exec",
    kafka "kafka",
    nats "nats",
    null,
    redis "redis",
    sidekiq "sidekiq",
    sqs "sqs",
    stdout "stdout",
    webhook "webhook",
}

/// A sink's name in the configuration, and its client.
pub type Named = (Arc<str>, Box<dyn Sink>);

impl Tables {
    /// A client of each sink; it connects when it is first used.
    ///
    /// # Errors
    /// The key that makes no sense, and why.
    pub fn open(&self) -> Result<Vec<Named>, String> {
        let open = |(kind, name, settings): (&str, &str, &dyn Settings)| match settings.open() {
            Ok(sink) => Ok((name.into(), sink)),
            Err(invalid) => Err(format!("[sink.{kind}.{name}] {invalid}")),
        };
        self.each().map(open).collect()
    }
}
