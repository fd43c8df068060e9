//! Messages to queues of Amazon SQS, standard and FIFO. In builds with the feature `sqs`.
//!
//! - **Delivered** means: SQS has answered that it has stored the message, which it does on several servers.
//! - **Repeats**: what was under way at a lost answer, an outage or a crash is sent again, with the same `aftercommit-id`. A FIFO
//!   queue drops what comes again within five minutes: the task's id is the deduplication id. A standard queue drops nothing,
//!   and may by itself hand a message out twice.
//! - **Order**: one task of a key is under way at a time, and the next follows when SQS has it; other keys and tasks without one
//!   do not wait. In a FIFO queue the key is the message group, whose messages stay in this order; a task without a key is a
//!   group of its own. **A standard queue does not keep the order of its messages**, whatever is done here.
//! - **What is refused**: a message of more than 1 MiB with its attributes, with characters that SQS does not take, with more
//!   than six headers. SQS is not asked about these: its replacements for tests do not check them. The task is held as dead.
//! - **What the broker can lose**: what nobody has read at the end of the queue's retention (four days, unless it was set).
//!
//! A task whose `run_at` is up to 15 minutes ahead goes to a standard queue at once, with its delay; FIFO queues have no delay
//! for single messages, and its task waits in the hold table.
//!
//! Requests carry up to ten messages and 1 MiB, and several are under way at a time. A key or id that SQS does not take as a
//! group or deduplication id (128 characters of visible ASCII) is replaced by its hash.
//!
//! The client is Amazon's, with rustls and ring. Credentials that are not configured come from where its clients look for them:
//! environment, profile, web identity, container, instance. SSO is not built in.

mod client;
mod flow;
mod message;
mod probe;
mod queue;
mod verdict;

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use self::flow::Sqs;
use super::settings::{Either, check_timeout, default_timeout};
use super::{Delivery, Invalid, Probe, SecretFile, Settings, Sink};
use crate::envelope::parcel::Format;
use crate::envelope::template::Template;
use crate::outbox::Task;

/// More requests at a time help nobody.
const MOST_CONCURRENCY: u32 = 256;

/// `[sink.sqs.<name>]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The queue's name or URL. The row's `queue`, a name, overrides it.
    pub queue: Template,
    /// The region; otherwise that of the environment.
    pub region: Option<String>,
    /// Where SQS is, if not in Amazon's cloud.
    pub endpoint_url: Option<String>,
    /// The id of an access key.
    pub access_key_id: Option<String>,
    /// Its secret.
    pub secret_access_key: Option<SecretString>,
    /// A file that holds the secret.
    pub secret_access_key_file: Option<PathBuf>,
    /// What the message's body is.
    #[serde(default)]
    pub format: Format,
    /// The source of CloudEvents.
    #[serde(default = "default_source")]
    pub source: String,
    /// Requests that are under way at a time.
    #[serde(default = "default_concurrency")]
    pub concurrency: u32,
    /// How long a request may take before SQS counts as away.
    #[serde(
        default = "default_timeout",
        deserialize_with = "crate::units::duration"
    )]
    pub timeout: Duration,
}

fn default_source() -> String {
    "aftercommit".to_owned()
}

fn default_concurrency() -> u32 {
    16
}

impl Config {
    fn side_by_side(&self) -> usize {
        usize::try_from(self.concurrency).unwrap_or(1)
    }

    /// Whether the queue is FIFO: its name ends in `.fifo`, and that never is a field.
    fn is_fifo(&self) -> bool {
        queue::is_fifo(&self.queue.to_string())
    }
}

impl Settings for Config {
    fn validate(&self) -> Result<(), Invalid> {
        if self.queue.is_open() {
            return Err(Invalid::new(
                "queue",
                "begins with a field, so that a row could choose any queue: begin with a literal, as in \"shop-{key}\"",
            ));
        }
        match self.queue.fixed() {
            Some(url) if queue::is_url(url) => {}
            Some(name) => queue::check(name).map_err(|words| Invalid::new("queue", words))?,
            None if queue::is_url(&self.queue.to_string()) => {
                let words = "is a URL with a field in it: write the queue's name instead, as in \"shop-{key}\"";
                return Err(Invalid::new("queue", words));
            }
            None => {}
        }
        let secret = Either {
            setting: ("secret_access_key", &self.secret_access_key),
            file: ("secret_access_key_file", &self.secret_access_key_file),
        };
        secret.at_most_one()?;
        let has_secret = self.secret_access_key.is_some() || self.secret_access_key_file.is_some();
        if self.access_key_id.is_some() != has_secret {
            let words = "and secret_access_key need each other";
            return Err(Invalid::new("access_key_id", words));
        }
        if let Some(url) = &self.endpoint_url
            && !queue::is_url(url)
        {
            let words = "is no URL: http://localhost:5000";
            return Err(Invalid::new("endpoint_url", words));
        }
        if self.concurrency == 0 || self.concurrency > MOST_CONCURRENCY {
            let words = format!("must be 1 to {MOST_CONCURRENCY}");
            return Err(Invalid::new("concurrency", words));
        }
        check_timeout("timeout", self.timeout)
    }

    fn secrets(&mut self) -> Vec<SecretFile<'_>> {
        vec![SecretFile {
            key: "secret_access_key_file",
            file: &mut self.secret_access_key_file,
            secret: &mut self.secret_access_key,
        }]
    }

    fn open(&self) -> Result<Box<dyn Sink>, Invalid> {
        self.validate()?;
        if self.access_key_id.is_some() && self.secret_access_key.is_none() {
            return Err(Invalid::unread("secret_access_key_file"));
        }
        Ok(Box::new(Sqs::new(self.clone())))
    }
}

impl Sink for Sqs {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(self.hand_over(batch))
    }

    fn probe(&mut self) -> Probe<'_> {
        Box::pin(self.look())
    }

    fn keeps(&self) -> Duration {
        match self.config.is_fifo() {
            true => Duration::ZERO,
            false => Duration::from_secs(message::LONGEST_DELAY.unsigned_abs()),
        }
    }
}
