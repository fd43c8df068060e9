//! Throws tasks away; for benches only.
//!
//! Delivered means: dropped. It never retries, rejects, or is away.

use std::future::ready;

use serde::Deserialize;

use super::{Delivery, Outcome, Sink};
use crate::outbox::Task;

/// `[sink.null.<name>]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Config {
    /// Makes the sink.
    pub fn open(&self) -> Null {
        Null
    }
}

/// Throws tasks away.
pub struct Null;

impl Sink for Null {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(ready(Ok(vec![Outcome::Delivered; batch.len()])))
    }
}
