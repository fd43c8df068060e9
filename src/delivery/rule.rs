//! Pure: what a route says of failures.

use std::sync::Arc;
use std::time::Duration;

use crate::route::{Config, OnDead};
use crate::units::BackoffRange;

/// What a route says of failures, as a lane needs it.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The route's pattern, its name in the hold table.
    pub route: Arc<str>,
    /// After so many attempts a task is dead.
    pub attempts: u32,
    /// The pause between two attempts.
    pub backoff: BackoffRange,
    /// How long a task is tried again in place before it is held.
    pub hold_after: Duration,
    /// Whether a dead task keeps its key waiting.
    pub dead_blocks: bool,
}

impl From<&Config> for Rule {
    fn from(route: &Config) -> Rule {
        Rule {
            route: route.task.to_string().into(),
            attempts: route.retry.attempts.get(),
            backoff: route.retry.backoff,
            hold_after: route.retry.hold_after,
            dead_blocks: route.retry.on_dead == OnDead::Block,
        }
    }
}
