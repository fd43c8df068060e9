//! Floor 4: the destinations, one file each. This file holds the contract and the only list of them.

pub mod celery;
pub mod marks;
pub mod null;
pub mod stdout;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use self::marks::Terms;
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
}

/// The sink as a whole is away: connection, authentication, a blocked broker. No task of the batch is to blame, and
/// each may or may not have been applied. The lane pauses and hands the same batch over again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Outage(pub Cause);

/// What [`Sink::deliver`] returns.
pub type Delivery<'a> = Pin<Box<dyn Future<Output = Result<Vec<Outcome>, Outage>> + Send + 'a>>;

/// A destination.
///
/// The contract, which `tests/it/conformance.rs` checks for every sink:
/// - `deliver` answers with exactly one [`Outcome`] per task, in the batch's order, or with an [`Outage`].
/// - `Delivered` means that the broker has confirmed the task, not that it was written to a socket.
/// - Within a batch and between batches, tasks of one key are applied in the order given; where one task of a key is
///   not delivered, no later task of this key in the batch is.
/// - A task may be handed over again, with the same id: after `Retry`, after an outage, after a crash.
/// - What would harm the receiver is rejected before anything of it is sent, and harms no neighbour in the batch.
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

    /// How long before its `run_at` a task may be handed over: its message says when it is to run, and the receiver keeps
    /// it until then. What is further ahead waits in the hold table.
    fn keeps(&self) -> Duration {
        Duration::ZERO
    }
}

/// `[sink.<type>.<name>]`: the only list of sink types.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tables {
    /// `[sink.celery.<name>]`
    pub celery: BTreeMap<String, celery::Config>,
    /// `[sink.null.<name>]`
    pub null: BTreeMap<String, null::Config>,
    /// `[sink.stdout.<name>]`
    pub stdout: BTreeMap<String, stdout::Config>,
}

/// A sink's name in the configuration, and its client.
pub type Named = (Arc<str>, Box<dyn Sink>);

impl Tables {
    /// A client of each sink; it connects when it is first used.
    ///
    /// # Errors
    /// The key that makes no sense, and why.
    pub fn open(&self) -> Result<Vec<Named>, String> {
        let mut sinks: Vec<Named> = Vec::new();
        for (name, config) in &self.celery {
            let sink = config
                .open()
                .map_err(|invalid| format!("[sink.celery.{name}] {invalid}"))?;
            sinks.push((name.as_str().into(), Box::new(sink)));
        }
        for (name, config) in &self.null {
            sinks.push((name.as_str().into(), Box::new(config.open())));
        }
        for (name, config) in &self.stdout {
            sinks.push((name.as_str().into(), Box::new(config.open())));
        }
        Ok(sinks)
    }
}
