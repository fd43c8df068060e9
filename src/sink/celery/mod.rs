//! Celery workers, over the broker that they already use. The URL's scheme says which: `amqp://` is RabbitMQ, whose contract
//! stands at the head of `rabbitmq.rs`; the rest of this is about Redis.
//!
//! - **Delivered** means: Redis has answered the EXEC of its part's MULTI, and each message stands in its list. With
//!   Redis's default settings it is then in memory only; see below.
//! - **A batch goes in parts**, of some hundred tasks where Redis is near, each applied whole or not at all: one MULTI, with one LPUSH
//!   per list, which is sent once the one before is answered (`parts.rs`). Tasks that are unfit are rejected, and are in none of them.
//! - **Repeats**: none, by lost answers, outages or crashes, as long as Redis keeps what it has and lets us write to our
//!   own key there: each part leaves a note of its tasks in its own transaction, and what is noted is not sent again. The
//!   head of `ledger.rs` says how, and where it ends. A task that comes a second time nevertheless carries the same task
//!   id, and a delivery tag of its own.
//! - **Order**: tasks of one list stay in the order of the batches. Several workers, priorities, and tasks with an eta
//!   break it beyond the broker, as they do for every producer.
//! - **What the broker can lose**: all that was pushed since its last save, when it crashes without `appendonly yes` and
//!   `appendfsync always`; whole lists under `maxmemory-policy allkeys-*`; writes that a replica had not yet got, at a
//!   failover; a message whose worker dies, until the worker's visibility timeout has passed.
//!
//! Named exchanges are resolved as kombu does: by the sets `_kombu.binding.<exchange>`, which workers keep. Without a
//! bound queue the task is retried, not rejected: the binding comes with the first worker, or with the next deployment.

mod backlog;
mod batch;
mod ledger;
mod parts;
mod probe;
mod rabbitmq;
mod redis;
mod refusals;
mod sentinels;
mod transaction;

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

pub use self::backlog::Backlog;
pub use self::rabbitmq::RabbitMq;
pub use self::redis::Redis;
use super::amqp::nodes::Nodes;
use super::broker_url::client_config;
use super::redis_client::servers::Servers;
use super::redis_client::url;
use super::settings::{Either, check_timeout, default_timeout};
use super::{Invalid, SecretFile, Settings, Sink, amqp};
use crate::envelope::celery::MAX_PRIORITY;
use crate::envelope::native_delay;

/// `[sink.celery.<name>]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The same URL as the Celery application's `broker_url`.
    pub broker_url: Option<SecretString>,
    /// A file that holds the URL; instead of `broker_url`, which it becomes when the configuration is loaded.
    pub broker_url_file: Option<PathBuf>,
    /// Celery's `broker_transport_options["master_name"]`: what sentinels call the primary.
    pub master_name: Option<String>,
    /// The user that sentinels ask for (Celery: `sentinel_kwargs`).
    pub sentinel_username: Option<String>,
    /// The password that sentinels ask for.
    pub sentinel_password: Option<SecretString>,
    /// A file that holds it; instead of `sentinel_password`.
    pub sentinel_password_file: Option<PathBuf>,
    /// Whether the sentinels speak TLS, too (Celery: `sentinel_kwargs`).
    #[serde(default)]
    pub sentinel_ssl: bool,
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
    /// What is to run within this time goes to Celery's delay queues in RabbitMQ at once, instead of into the hold table.
    #[serde(default, deserialize_with = "crate::units::duration")]
    pub native_delay: Duration,
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

impl Settings for Config {
    fn validate(&self) -> Result<(), Invalid> {
        let url = Either {
            setting: ("broker_url", &self.broker_url),
            file: ("broker_url_file", &self.broker_url_file),
        };
        if let Some(url) = url.one("give the Celery application's, or broker_url_file")? {
            self.check_delay(&self.parse(url)?)?;
        }
        let sentinel_password = Either {
            setting: ("sentinel_password", &self.sentinel_password),
            file: ("sentinel_password_file", &self.sentinel_password_file),
        };
        sentinel_password.at_most_one()?;
        if self.queue.is_empty() {
            return Err(Invalid::new("queue", "must not be empty"));
        }
        if self.sep.is_empty() {
            return Err(Invalid::new("sep", "must not be empty"));
        }
        let ascending = self
            .priority_steps
            .windows(2)
            .all(|pair| pair.first() < pair.last());
        if !ascending
            || self.priority_steps.first() != Some(&0)
            || self.priority_steps.iter().any(|step| *step > MAX_PRIORITY)
        {
            return Err(Invalid::new(
                "priority_steps",
                "must ascend from 0, up to 9 at most: [0, 3, 6, 9]",
            ));
        }
        check_timeout("timeout", self.timeout)
    }

    fn secrets(&mut self) -> Vec<SecretFile<'_>> {
        vec![
            SecretFile {
                key: "broker_url_file",
                file: &mut self.broker_url_file,
                secret: &mut self.broker_url,
            },
            SecretFile {
                key: "sentinel_password_file",
                file: &mut self.sentinel_password_file,
                secret: &mut self.sentinel_password,
            },
        ]
    }

    fn open(&self) -> Result<Box<dyn Sink>, Invalid> {
        self.validate()?;
        let url = self
            .broker_url
            .as_ref()
            .ok_or(Invalid::unread("broker_url_file"))?;
        Ok(match self.parse(url)? {
            Address::Redis(servers) => {
                let tls = client_config("broker_url", servers.login().tls.as_ref())?;
                Box::new(Redis::new(*servers, tls, self))
            }
            Address::RabbitMq(nodes) => {
                Box::new(RabbitMq::new(Nodes::new("broker_url", nodes)?, self))
            }
        })
    }
}

impl Config {
    fn parse(&self, url: &SecretString) -> Result<Address, Invalid> {
        let url = url.expose_secret();
        let is_sentinel = sentinels::is_sentinel(url);
        let for_sentinels = [
            ("master_name", self.master_name.is_some()),
            ("sentinel_username", self.sentinel_username.is_some()),
            ("sentinel_password", self.sentinel_password.is_some()),
            ("sentinel_ssl", self.sentinel_ssl),
        ];
        if let Some((key, _)) = for_sentinels
            .iter()
            .find(|(_, given)| *given && !is_sentinel)
        {
            return Err(Invalid::new(key, "is for a broker_url of sentinel://"));
        }
        let redis = |servers| Address::Redis(Box::new(servers));
        let address = match (is_sentinel, &self.master_name) {
            (true, Some(name)) if !name.is_empty() => {
                let manner = sentinels::Manner {
                    service: name,
                    user: self.sentinel_username.as_deref(),
                    password: self.sentinel_password.as_ref(),
                    tls: self.sentinel_ssl,
                };
                sentinels::parse(url, &manner).map(redis)
            }
            (true, _) => {
                return Err(Invalid::new(
                    "master_name",
                    "is missing: give Celery's broker_transport_options[\"master_name\"], what the sentinels call the primary",
                ));
            }
            _ if amqp::url::is_amqp(url) => amqp::url::parse(url).map(Address::RabbitMq),
            _ => url::parse(url).map(Servers::One).map(redis),
        };
        address.map_err(|words| Invalid::new("broker_url", words))
    }

    fn check_delay(&self, address: &Address) -> Result<(), Invalid> {
        let longest = Duration::from_secs(native_delay::LONGEST.into());
        match address {
            _ if self.native_delay.is_zero() => Ok(()),
            Address::Redis(_) => Err(Invalid::new(
                "native_delay",
                "is for RabbitMQ: with Redis, tasks wait in the hold table until their time has come",
            )),
            Address::RabbitMq(_) if self.native_delay > longest => Err(Invalid::new(
                "native_delay",
                "must not be longer than 3106d: that is all that Celery's delay queues have room for",
            )),
            Address::RabbitMq(_) => Ok(()),
        }
    }
}

/// Where the broker is, by the URL's scheme.
enum Address {
    Redis(Box<Servers>),
    RabbitMq(Vec<amqp::url::Address>),
}
