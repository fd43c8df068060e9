//! Dramatiq workers (Python), over the broker that they already use. The URL's scheme says which: `amqp://` is RabbitMQ, whose
//! contract stands at the head of `rabbitmq.rs`; the rest of this is about Redis.
//!
//! - **Delivered** means: a script in Redis has added the messages, each in the queue's hash (`<namespace>:<queue>.msgs`) and
//!   with its id in the queue's list, as Dramatiq's own script does it; and its answer has come.
//! - **A batch goes in parts**, each applied only where the one before was, as in [`crate::sink::redis`]. What is unfit is rejected,
//!   and is in none of them.
//! - **Repeats**: none, by lost answers, outages or crashes, as long as Redis keeps what it has: the engine is that of
//!   [`crate::sink::redis`], and its marks are noted in the same script. A task has the same `message_id` whenever it is sent.
//! - **Order**: tasks of one queue stay in the order of the batches. Several threads of workers, retries and delays break it
//!   beyond the broker, as they do for every producer.
//! - **What Redis can lose**: as for [`crate::sink::redis`]. And what a killed worker had fetched waits until the others notice
//!   (Dramatiq's `heartbeat_timeout`, a minute).
//! - **run_at**: what is further ahead than `ahead` waits in the hold table, where it can be taken back; the rest goes to the
//!   delay queue with its eta, and workers keep it in memory.
//!
//! The message: [`crate::envelope::dramatiq`]. Redis Cluster is not offered, since Dramatiq's script cannot run there.

mod rabbitmq;
mod redis;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use self::rabbitmq::RabbitMq;
use self::redis::Messages;
use super::amqp::nodes::Nodes;
use super::broker_url::client_config;
use super::redis::push::Pusher;
use super::redis_client::servers::{self, Servers};
use super::settings::{Either, check_timeout, default_timeout};
use super::{Invalid, SecretFile, Settings, Sink, amqp};
use crate::envelope::dramatiq::{Defaults, is_queue};

/// Dramatiq refuses longer delays.
const LONGEST_DELAY: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// `[sink.dramatiq.<name>]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the broker of the Dramatiq application is.
    pub url: Option<SecretString>,
    /// A file that holds the URL; instead of `url`, which it becomes when the configuration is loaded.
    pub url_file: Option<PathBuf>,
    /// The queue of tasks that name none.
    #[serde(default = "default_queue")]
    pub queue: String,
    /// The `namespace` of Dramatiq's `RedisBroker`; only for Redis.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// How long before its `run_at` a task is handed to Dramatiq, which keeps it until then.
    #[serde(default = "default_ahead", deserialize_with = "crate::units::duration")]
    pub ahead: Duration,
    /// So many replicas must have a batch, too; only for Redis.
    #[serde(default)]
    pub replicas: u32,
    /// How long one batch may take before the broker counts as away.
    #[serde(
        default = "default_timeout",
        deserialize_with = "crate::units::duration"
    )]
    pub timeout: Duration,
}

fn default_queue() -> String {
    "default".to_owned()
}

fn default_namespace() -> String {
    "dramatiq".to_owned()
}

fn default_ahead() -> Duration {
    Duration::from_secs(2)
}

/// Where the broker is, by the URL's scheme.
enum Broker {
    Redis(Box<Servers>),
    RabbitMq(Vec<amqp::url::Address>),
}

fn parse(url: &SecretString) -> Result<Broker, Invalid> {
    let url = url.expose_secret();
    let broker = match amqp::url::is_amqp(url) {
        true => amqp::url::parse(url).map(Broker::RabbitMq),
        false => servers::parse(url).map(Box::new).map(Broker::Redis),
    };
    match broker {
        Ok(Broker::Redis(servers)) if matches!(*servers, Servers::Cluster { .. }) => {
            Err(Invalid::new(
                "url",
                "names a Redis Cluster, where Dramatiq cannot work: name one Redis, or its sentinels",
            ))
        }
        Ok(broker) => Ok(broker),
        Err(words) => Err(Invalid::new("url", words)),
    }
}

impl Config {
    fn defaults(&self) -> Defaults {
        Defaults {
            queue: self.queue.clone(),
            ahead: self.ahead,
        }
    }
}

impl Settings for Config {
    fn validate(&self) -> Result<(), Invalid> {
        let url = Either::url(&self.url, &self.url_file);
        let url = url.one("give the Dramatiq broker's, redis://host:6379/0 or amqp://host")?;
        if let Some(Broker::RabbitMq(_)) = url.map(parse).transpose()?
            && self.replicas > 0
        {
            return Err(Invalid::new("replicas", "is for Redis"));
        }
        if !is_queue(&self.queue) {
            return Err(Invalid::new(
                "queue",
                "must be a name that Dramatiq takes: a letter or _, then letters, digits, dots, _ and -",
            ));
        }
        if self.namespace.is_empty() || self.namespace == "aftercommit" {
            return Err(Invalid::new("namespace", "must be that of the workers"));
        }
        if self.ahead >= LONGEST_DELAY {
            return Err(Invalid::new("ahead", "must be shorter than 7 days"));
        }
        check_timeout("timeout", self.timeout)
    }

    fn secrets(&mut self) -> Vec<SecretFile<'_>> {
        vec![SecretFile {
            key: "url_file",
            file: &mut self.url_file,
            secret: &mut self.url,
        }]
    }

    fn open(&self) -> Result<Box<dyn Sink>, Invalid> {
        self.validate()?;
        let url = self.url.as_ref().ok_or(Invalid::unread("url_file"))?;
        Ok(match parse(url)? {
            Broker::Redis(servers) => {
                let tls = client_config("url", servers.login().tls.as_ref())?;
                let form = Messages::new(&self.namespace, self.defaults());
                let (replicas, timeout) = (self.replicas, self.timeout);
                Box::new(Pusher::new(
                    *servers,
                    tls,
                    Arc::new(form),
                    replicas,
                    timeout,
                ))
            }
            Broker::RabbitMq(nodes) => Box::new(RabbitMq::new(Nodes::new("url", nodes)?, self)),
        })
    }
}
