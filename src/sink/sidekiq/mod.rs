//! Sidekiq workers (Ruby), over the Redis that they already use.
//!
//! - **Delivered** means: a script in Redis has pushed the jobs to the lists of their queues (`queue:<name>`) and has put the
//!   queues' names into `queues`, as Sidekiq's own client does it; and its answer has come.
//! - **A batch goes in parts**, each applied only where the one before was, as in [`crate::sink::redis`]. What is unfit is rejected,
//!   and is in none of them.
//! - **Repeats**: none, by lost answers, outages or crashes, as long as Redis keeps what it has: the engine is that of
//!   [`crate::sink::redis`], and its marks are noted in the same script. A job has the same `jid` whenever it is sent.
//! - **Order**: jobs of one queue stay in the order of the batches. Several threads of workers and retries break it beyond the
//!   broker, and so does `schedule`.
//! - **What Redis can lose**: as for [`crate::sink::redis`]. And Sidekiq (without Pro's `super_fetch`) loses the job that a worker
//!   is at when it is killed.
//! - **run_at**: it waits in the hold table, where it can be taken back, and is looked for each second. What is no further ahead
//!   than `ahead` goes to Sidekiq's own set `schedule`, at which its workers look about every five seconds.
//!
//! The job: [`crate::envelope::sidekiq`]. Redis Cluster is not offered: Sidekiq cannot work there.

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
use crate::envelope::sidekiq::{Defaults, Job, write_seconds};
use crate::outbox::Task;
use crate::pg::Timestamp;

const WORDING: Wording = Wording {
    url: "url",
    kind: "part of a Sidekiq queue",
    rights: "+eval +type +hget +hset +hdel +hkeys +hmget +expire +lpush +sadd +zadd",
    keys: "~queue:* ~queues ~schedule (with the namespace before them, if there is one) and ~aftercommit:*",
    cluster: ", where Sidekiq cannot work: name one Redis",
};

/// `[sink.sidekiq.<name>]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The same URL as the Sidekiq application's.
    pub url: Option<SecretString>,
    /// A file that holds the URL; instead of `url`, which it becomes when the configuration is loaded.
    pub url_file: Option<PathBuf>,
    /// The queue of tasks that name none.
    #[serde(default = "default_queue")]
    pub queue: String,
    /// The namespace of the gem redis-namespace, which Sidekiq 6 and older may use; none, if empty.
    #[serde(default)]
    pub namespace: String,
    /// Sidekiq's `retry` of tasks whose options don't say it.
    #[serde(default)]
    pub retry: Retry,
    /// How long before its `run_at` a task is handed to Sidekiq, which keeps it until then.
    #[serde(default, deserialize_with = "crate::units::duration")]
    pub ahead: Duration,
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

/// Whether a job is tried again when it fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(untagged)]
pub enum Retry {
    /// Yes, 25 times; or never.
    Flag(bool),
    /// So many times.
    Times(u32),
}

impl Default for Retry {
    fn default() -> Retry {
        Retry::Flag(true)
    }
}

fn default_queue() -> String {
    "default".to_owned()
}

fn parse(url: &SecretString) -> Result<Servers, Invalid> {
    match servers::parse(url.expose_secret()) {
        Ok(Servers::Cluster { .. }) => Err(Invalid::new(
            "url",
            "names a Redis Cluster, where Sidekiq cannot work: name one Redis, or its sentinels",
        )),
        Ok(servers) => Ok(servers),
        Err(words) => Err(Invalid::new("url", words)),
    }
}

impl Settings for Config {
    fn validate(&self) -> Result<(), Invalid> {
        let url = Either::url(&self.url, &self.url_file);
        let url = url.one("give the Sidekiq application's, redis://host:6379/0")?;
        url.map(parse).transpose()?;
        if self.queue.is_empty() {
            return Err(Invalid::new("queue", "must not be empty"));
        }
        if self.namespace == "aftercommit" {
            return Err(Invalid::new("namespace", "must be that of the workers"));
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
        let (form, replicas) = (Arc::new(Jobs::new(self)), self.replicas);
        Ok(Box::new(Pusher::new(
            servers,
            tls,
            form,
            replicas,
            self.timeout,
        )))
    }
}

/// Jobs of queues, and scheduled ones.
struct Jobs {
    /// With its colon.
    prefix: String,
    defaults: Defaults,
}

impl Jobs {
    fn new(config: &Config) -> Jobs {
        Jobs {
            prefix: match config.namespace.as_str() {
                "" => String::new(),
                namespace => format!("{namespace}:"),
            },
            defaults: Defaults {
                queue: config.queue.clone(),
                retry: match config.retry {
                    Retry::Flag(flag) => flag.to_string(),
                    Retry::Times(times) => times.to_string(),
                },
                ahead: config.ahead,
            },
        }
    }

    fn key(&self, name: &str) -> Vec<u8> {
        format!("{}{name}", self.prefix).into_bytes()
    }
}

impl Form for Jobs {
    fn wording(&self) -> &'static Wording {
        &WORDING
    }

    fn script(&self) -> &'static [u8] {
        script::RUN_COMMANDS
    }

    fn how(&self, group: &Group) -> (Cow<'static, [u8]>, String) {
        (Cow::Owned(group.kinds()), String::new())
    }

    fn check<'t>(&'t self, task: &'t Task, now: Timestamp) -> Result<Fit<'t>, Unfit> {
        Ok(Box::new(Checked {
            jobs: self,
            job: Job::new(task, &self.defaults, now)?,
            now,
        }))
    }

    fn look(&self) -> Look {
        let queue = self.key(&format!("queue:{}", self.defaults.queue));
        let (queues, schedule) = (self.key("queues"), self.key("schedule"));
        let mut look = Look::default();
        look.command(&[b"LPUSH", &queue, b""]);
        look.command(&[b"SADD", &queues, b""]);
        look.command(&[b"ZADD", &schedule, b"0", b""]);
        look.keys = vec![(queue, "list"), (queues, "set"), (schedule, "zset")];
        look
    }

    fn keeps(&self) -> Duration {
        self.defaults.ahead
    }
}

/// A job that can be written.
struct Checked<'t> {
    jobs: &'t Jobs,
    job: Job<'t>,
    now: Timestamp,
}

impl Write for Checked<'_> {
    fn place(&self, out: &mut Vec<u8>) -> Result<(), Unfit> {
        out.extend_from_slice(self.jobs.prefix.as_bytes());
        match self.job.at {
            Some(_) => out.extend_from_slice(b"schedule"),
            None => {
                out.extend_from_slice(b"queue:");
                out.extend_from_slice(self.job.queue().as_bytes());
            }
        }
        Ok(())
    }

    fn add(&self, group: &mut Group, place: &[u8]) -> Result<(), Unfit> {
        let Checked { jobs, job, now } = self;
        group.enter(place, |group, is_new| {
            if job.at.is_some() {
                let schedule = group.key(place, Kind::SortedSet);
                return (vec![schedule], ("ZADD", schedule), None);
            }
            let queues = group.key(&jobs.key("queues"), Kind::Set);
            let queue = group.key(place, Kind::List);
            if is_new {
                group.first(("SADD", queues), job.queue().as_bytes());
            }
            (vec![queues, queue], ("LPUSH", queue), None)
        });
        if let Some(at) = job.at {
            group.argument(|out| {
                write_seconds(out, at);
                Ok(())
            })?;
        }
        group.argument(|out| {
            job.write(out, *now);
            Ok(())
        })
    }
}
