//! Throws tasks away; for benches only.
//!
//! Delivered means: dropped. It never retries, rejects, or is away.

use std::future::ready;

use serde::Deserialize;

use super::{Delivery, Invalid, Outcome, Probe, Settings, Sight, Sink};
use crate::outbox::Task;

/// `[sink.null.<name>]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Settings for Config {
    fn open(&self) -> Result<Box<dyn Sink>, Invalid> {
        Ok(Box::new(Null))
    }
}

/// Throws tasks away.
pub struct Null;

impl Sink for Null {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(ready(Ok(vec![Outcome::Delivered; batch.len()])))
    }

    fn probe(&mut self) -> Probe<'_> {
        let words = "throws all tasks away".to_owned();
        let remedy = "name another sink: this one is for benches".to_owned();
        Box::pin(ready(vec![Sight::Risk(words, remedy)]))
    }
}
