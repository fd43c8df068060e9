//! Floor 3, pure: the rule that a task matches, and the sink that it names.

use serde::Deserialize;

use crate::units::BackoffRange;

/// `[[route]]`; the first match wins.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// An exact task name, a prefix (`audit.*`), or `*`.
    pub task: String,
    /// Name of the sink.
    pub sink: String,
    /// How failed attempts are repeated.
    #[serde(default)]
    pub retry: Retry,
}

/// How failed attempts are repeated.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// The pause between attempts; doubles from the first value to the second, with jitter.
    pub backoff: Option<BackoffRange>,
}
