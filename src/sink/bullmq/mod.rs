//! BullMQ workers (Node), over the Redis that they already use.
//!
//! - **Delivered** means: a script in Redis has added the jobs as BullMQ's own script does it (the job's hash, the queue's list or
//!   priorities, its marker and events), and its answer has come.
//! - **A batch goes in parts**, each applied only where the one before was, as in [`crate::sink::redis`]; in a cluster, what is in
//!   one slot. What is unfit is rejected, and is in none of them.
//! - **Repeats**: none, by lost answers, outages or crashes, as long as Redis keeps what it has: the engine is that of
//!   [`crate::sink::redis`], and its marks are noted in the same script. And a job whose id is still there, be it done or failed, is
//!   not added again, as for every producer. So a dead task that comes back from the hold needs `removeOnFail`, or a look at the job.
//! - **Order**: jobs of one queue stay in the order of the batches. Several workers, retries, priorities and `lifo` break it beyond
//!   the broker.
//! - **What Redis can lose**: as for [`crate::sink::redis`].
//! - **run_at** waits in the hold table, where it can be taken back, and enters its queue when it is due.
//!
//! The job: [`crate::envelope::bullmq`]. For a cluster, the prefix needs a hash tag, as BullMQ's has there.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::broker_url::client_config;
use super::redis::batch::{Group, Kind};
use super::redis::form::{Fit, Form, Look, Write};
use super::redis::push::Pusher;
use super::redis::script;
use super::redis_client::outcome::Wording;
use super::redis_client::servers::{self, Servers};
use super::settings::{Either, check_timeout, default_timeout};
use super::{Invalid, SecretFile, Settings, Sink};
use crate::envelope::Unfit;
use crate::envelope::bullmq::{Job, is_queue};
use crate::outbox::Task;
use crate::pg::Timestamp;

const WORDING: Wording = Wording {
    url: "url",
    kind: "part of a BullMQ queue",
    rights: "+eval +type +hget +hset +hdel +hkeys +hmget +expire +exists +del +llen +lpush +rpush +zadd +incr +xadd",
    keys: "~<prefix>:* and ~aftercommit:*",
    cluster: ": write redis+cluster:// instead of redis://, and a prefix with a hash tag, as in \"{bull}\"",
};

/// What a queue consists of, in the order of the script.
const PARTS: [(&str, Kind, &str); 8] = [
    ("wait", Kind::List, "list"),
    ("paused", Kind::List, "list"),
    ("active", Kind::List, "list"),
    ("prioritized", Kind::SortedSet, "zset"),
    ("pc", Kind::Text, "string"),
    ("meta", Kind::Hash, "hash"),
    ("events", Kind::Stream, "stream"),
    ("marker", Kind::SortedSet, "zset"),
];

/// `[sink.bullmq.<name>]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the Redis of the BullMQ application is.
    pub url: Option<SecretString>,
    /// A file that holds the URL; instead of `url`, which it becomes when the configuration is loaded.
    pub url_file: Option<PathBuf>,
    /// The queue of tasks that name none.
    #[serde(default = "default_queue")]
    pub queue: String,
    /// BullMQ's `prefix`.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// BullMQ's `attempts` of tasks whose options don't say it.
    #[serde(default = "default_attempts")]
    pub attempts: u32,
    /// So many replicas must have a batch, too.
    #[serde(default)]
    pub replicas: u32,
    /// How long one batch may take before Redis counts as away.
    #[serde(
        default = "default_timeout",
        deserialize_with = "crate::units::duration"
    )]
    pub timeout: Duration,
}

fn default_queue() -> String {
    "default".to_owned()
}

fn default_prefix() -> String {
    "bull".to_owned()
}

fn default_attempts() -> u32 {
    1
}

fn parse(url: &SecretString) -> Result<Servers, Invalid> {
    servers::parse(url.expose_secret()).map_err(|words| Invalid::new("url", words))
}

impl Settings for Config {
    fn validate(&self) -> Result<(), Invalid> {
        let url = Either::url(&self.url, &self.url_file);
        let url = url.one("give the Redis of the BullMQ application, redis://host:6379/0")?;
        if let Some(Servers::Cluster { .. }) = url.map(parse).transpose()?
            && !(self.prefix.contains('{') && self.prefix.contains('}'))
        {
            return Err(Invalid::new(
                "prefix",
                "needs a hash tag in a cluster, as BullMQ's has there: \"{bull}\"",
            ));
        }
        if !is_queue(&self.queue) {
            return Err(Invalid::new("queue", "must not be empty, nor have a colon"));
        }
        if self.prefix.is_empty() || self.prefix.starts_with("aftercommit") {
            return Err(Invalid::new("prefix", "must be that of the workers"));
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
        let servers = parse(url)?;
        let tls = client_config("url", servers.login().tls.as_ref())?;
        let form = Arc::new(Jobs {
            prefix: self.prefix.clone(),
            queue: self.queue.clone(),
            attempts: self.attempts,
        });
        let pusher = Pusher::new(servers, tls, form, self.replicas, self.timeout);
        Ok(Box::new(pusher))
    }
}

/// Jobs of queues.
struct Jobs {
    prefix: String,
    queue: String,
    attempts: u32,
}

impl Form for Jobs {
    fn wording(&self) -> &'static Wording {
        &WORDING
    }

    fn script(&self) -> &'static [u8] {
        script::ADD_BULLMQ_JOBS
    }

    fn how(&self, group: &Group) -> (Cow<'static, [u8]>, String) {
        (Cow::Owned(group.kinds()), String::new())
    }

    fn check<'t>(&'t self, task: &'t Task, _now: Timestamp) -> Result<Fit<'t>, Unfit> {
        Ok(Box::new(Checked {
            prefix: &self.prefix,
            name: task.name(),
            job: Job::new(task, &self.queue, self.attempts)?,
        }))
    }

    fn look(&self) -> Look {
        let key = |name: &str| format!("{}:{}:{name}", self.prefix, self.queue).into_bytes();
        let mut look = Look::default();
        look.command(&[b"EXISTS", &key("x")]);
        look.command(&[b"HSET", &key("x"), b"", b""]);
        look.command(&[b"DEL", &key("x")]);
        look.command(&[b"LPUSH", &key("wait"), b""]);
        look.command(&[b"RPUSH", &key("wait"), b""]);
        look.command(&[b"LLEN", &key("active")]);
        look.command(&[b"ZADD", &key("marker"), b"0", b""]);
        look.command(&[b"INCR", &key("pc")]);
        look.command(&[b"XADD", &key("events"), b"*", b"", b""]);
        let parts = PARTS.iter().map(|(name, _, kind)| (key(name), *kind));
        look.keys = parts.collect();
        look
    }
}

/// A job that can be written.
struct Checked<'t> {
    prefix: &'t str,
    name: &'t str,
    job: Job<'t>,
}

impl Write for Checked<'_> {
    /// A queue's place bears the beginning of all its keys. It has no key of its own, but it is in their slot: by its tag, where
    /// there is a cluster.
    fn place(&self, out: &mut Vec<u8>) -> Result<(), Unfit> {
        for part in [self.prefix, ":", self.job.queue, ":"] {
            out.extend_from_slice(part.as_bytes());
        }
        Ok(())
    }

    fn add(&self, group: &mut Group, place: &[u8]) -> Result<(), Unfit> {
        let job = &self.job;
        let first = group.first_key(place, |group| {
            let key = |(name, kind, _): &(&str, Kind, &str)| {
                group.key(&[place, name.as_bytes()].concat(), *kind)
            };
            PARTS.iter().map(key).collect()
        });
        let push = match job.is_last_in_first_out {
            true => "RPUSH",
            false => "LPUSH",
        };
        let mut argument = |bytes: &[&[u8]]| {
            group.argument(|out| {
                bytes.iter().for_each(|bytes| out.extend_from_slice(bytes));
                Ok(())
            })
        };
        argument(&[first.to_string().as_bytes()])?;
        argument(&[place, job.id.as_bytes()])?;
        argument(&[job.id.as_bytes()])?;
        argument(&[self.name.as_bytes()])?;
        argument(&[job.data])?;
        let mut options = Vec::new();
        job.write_options(&mut options);
        argument(&[&options])?;
        argument(&[job.timestamp().to_string().as_bytes()])?;
        argument(&[job.priority.to_string().as_bytes()])?;
        argument(&[push.as_bytes()])
    }
}
