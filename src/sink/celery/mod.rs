//! Celery workers, over the broker that they already use.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

/// `[sink.celery.<name>]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The same URL as the Celery application's `broker_url`.
    pub broker_url: Option<SecretString>,
    /// A file that holds the URL; instead of `broker_url`.
    pub broker_url_file: Option<PathBuf>,
    /// The queue of tasks that name none (Celery: `task_default_queue`).
    #[serde(default = "default_queue")]
    pub queue: String,
    /// Celery's `broker_transport_options["global_keyprefix"]`.
    #[serde(default)]
    pub global_keyprefix: String,
    /// Celery's `broker_transport_options["priority_steps"]`.
    #[serde(default = "default_priority_steps")]
    pub priority_steps: Vec<u8>,
    /// Celery's `broker_transport_options["sep"]`, between queue and priority step.
    #[serde(default = "default_sep")]
    pub sep: String,
    /// How long one batch may take before the broker counts as away.
    #[serde(
        default = "default_timeout",
        deserialize_with = "crate::units::duration"
    )]
    pub timeout: Duration,
}

fn default_queue() -> String {
    "celery".to_owned()
}

fn default_priority_steps() -> Vec<u8> {
    vec![0, 3, 6, 9]
}

fn default_sep() -> String {
    "\u{6}\u{16}".to_owned()
}

fn default_timeout() -> Duration {
    Duration::from_secs(10)
}
