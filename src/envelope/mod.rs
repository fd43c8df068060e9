//! Floor 3, pure: how a task becomes a broker's bytes.
//!
//! Nothing here sees a socket, a clock or randomness: the time and the delivery tag are passed in. JSON columns are
//! spliced as Postgres sent them, never parsed into values: an integer of any size and the order of keys survive.

pub mod amqp;
pub mod bullmq;
mod call;
pub mod celery;
pub mod dramatiq;
pub mod event;
mod job;
pub mod json;
pub mod kombu;
pub mod native_delay;
mod options;
pub mod parcel;
pub mod plain;
mod ready;
pub mod sidekiq;
pub mod template;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;

use crate::outbox::{Field, Task};

pub(crate) use ready::decode_bytea;

/// Checks a field's JSON: in full, or, where the column's type vouches for the syntax, its kind and its limits.
///
/// # Errors
/// The first defect.
pub(crate) fn check_json(task: &Task, field: Field, kind: json::Kind) -> Result<(), json::Defect> {
    let text = task.get(field).unwrap_or_default();
    match task.is_json(field) {
        true => json::check_vouched(text, kind),
        false => json::check(text, kind, json::Dialect::Strict),
    }
}

/// Why a task cannot become a message, in words that name the column and the remedy. Never holds a payload.
#[derive(Clone, PartialEq, Eq)]
pub struct Unfit(Cow<'static, str>);

impl Unfit {
    /// A reason in words.
    pub fn new(words: impl Into<Cow<'static, str>>) -> Unfit {
        Unfit(words.into())
    }

    /// The reason.
    pub fn into_words(self) -> Cow<'static, str> {
        self.0
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
