//! Redis streams and lists, on one server, behind sentinels, or in a cluster.
//!
//! - **Delivered** means: a script in Redis has added the entry or message, and its answer has come. With `replicas`, so many
//!   replicas have it, too.
//! - **A batch goes in parts**: on one server some hundred tasks each, so that Redis has work while the next part is written; in a
//!   cluster what is in one slot, and tasks of one key that go to several slots are sent one after the other. A part is a script: it
//!   is applied whole, with the note of its tasks, or up to the task at which Redis stops it. One that was not applied as a whole
//!   leaves no note by itself, and no later part of its batch is applied without the note of the one before (`parts.rs`).
//! - **Repeats**: none, by lost answers, outages or crashes, as long as Redis keeps what it has. Two things see to that.
//!   1. *Marks*: the script that adds tasks also notes which they are, in a ledger beside the streams or lists (a hash;
//!      [`crate::sink::marks`]). What is noted is not sent again. It notes what was added and nothing else, so a task that comes
//!      late, from the hold table, is never taken for one that was there. And the script does nothing when the ledger bears
//!      another name than the one that was given with the batch: who looks at the ledger writes a new name into it first, so
//!      what was sent before that look and hangs in the network is not applied after it. In a cluster there is one ledger for
//!      each slot that has streams or lists: a script reaches no further, and needs to reach no further.
//!   2. *Ids*, in streams: an entry's id is `<LSN of the commit>-<row in the transaction, times 1,000,000>`, so Redis itself
//!      refuses a task that is there, also where the ledger is gone. An id must be greater than the last one of the stream,
//!      though. So a refusal says only that the stream is beyond this position: the script looks for the entry of this id, and
//!      when that is another task, or none, the task is late (it was held or scheduled, or somebody else adds to this stream) and
//!      is added behind the last entry, under the id after it: that is what the 1,000,000 leave room for. A late task is not
//!      lost; but of its repeat only the ledger knows. The same is true for one whose entry was trimmed or deleted.
//! - **Order**: tasks of one stream or list stay in the order of the batches, and so do those of one key.
//! - **What Redis can lose**: all that was added since its last save, when it crashes without `appendonly yes` and `appendfsync
//!   always`; whole streams and lists under `maxmemory-policy allkeys-*`; at a failover, what the new primary had not got:
//!   `replicas = 1` waits for it. What it loses with the ledger beside it comes again only if it was not yet settled. And a
//!   stream with `maxlen` or `max_age` drops its oldest entries whether they were read or not.
//!
//! The ledger is called `aftercommit:marks:1:<scope>` (in a cluster `aftercommit:{<number>}:marks:1:<scope>`), and expires a
//! week after the last batch. It is as durable as what is beside it. No more than 4 MiB of notes are kept: who falls further
//! behind may repeat the rest when it is killed.

pub(super) mod batch;
mod events;
pub(super) mod form;
mod ledgers;
mod message;
mod parts;
mod probe;
pub(super) mod push;
pub(super) mod script;
mod send;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use self::events::{Entries, Messages};
use self::form::Form;
pub use self::message::Format;
use self::push::Pusher;
use super::broker_url::client_config;
use super::redis_client::servers;
use super::settings::{Either, check_timeout, default_timeout};
use super::{Invalid, SecretFile, Settings, Sink};
use crate::envelope::template::Template;

/// `[sink.redis.<name>]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where Redis is: `redis://`, `rediss://`, `redis+socket://`, `redis+sentinel://`, `redis+cluster://`.
    pub url: Option<SecretString>,
    /// A file that holds the URL; instead of `url`, which it becomes when the configuration is loaded.
    pub url_file: Option<PathBuf>,
    /// The stream that tasks are added to. The row's `queue` overrides it.
    pub stream: Option<Template>,
    /// The list that tasks are pushed to; instead of `stream`. The row's `queue` overrides it.
    pub list: Option<Template>,
    /// How a task is written.
    #[serde(default)]
    pub format: Format,
    /// The stream is trimmed to about so many entries.
    pub maxlen: Option<u64>,
    /// Entries whose commit is longer ago are trimmed, while others come.
    #[serde(default, deserialize_with = "crate::units::duration")]
    pub max_age: Duration,
    /// At which end of the list tasks are pushed.
    #[serde(default)]
    pub push: Push,
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

/// At which end of a list tasks are pushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Push {
    /// At the left: for consumers with BRPOP.
    #[default]
    Left,
    /// At the right: for consumers with BLPOP.
    Right,
}

impl Push {
    fn command(self) -> &'static str {
        match self {
            Push::Left => "LPUSH",
            Push::Right => "RPUSH",
        }
    }
}

impl Config {
    /// The stream or list, and its setting.
    fn target(&self) -> Result<(&'static str, &Template), Invalid> {
        let (setting, name) = match (&self.stream, &self.list) {
            (Some(stream), None) => ("stream", stream),
            (None, Some(list)) => ("list", list),
            (None, None) => {
                return Err(Invalid::new(
                    "stream",
                    "is missing: name a stream, or with list a list",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(Invalid::new("list", "and stream exclude each other"));
            }
        };
        if name.fixed() == Some("") {
            return Err(Invalid::new(setting, "must not be empty"));
        }
        if name.is_open() {
            return Err(Invalid::new(
                setting,
                "begins with a field, so that a row could choose any key of this Redis: begin with a literal, as in \"events:{task}\"",
            ));
        }
        Ok((setting, name))
    }

    fn form(&self) -> Result<Arc<dyn Form>, Invalid> {
        let (_, name) = self.target()?;
        Ok(match self.list {
            Some(_) => Arc::new(Messages {
                list: name.clone(),
                format: self.format,
                push: self.push,
            }),
            None => Arc::new(Entries {
                stream: name.clone(),
                format: self.format,
                maxlen: self.maxlen,
                max_age: self.max_age,
            }),
        })
    }
}

impl Settings for Config {
    fn validate(&self) -> Result<(), Invalid> {
        let url = Either::url(&self.url, &self.url_file).one("redis://host:6379/0")?;
        url.map(parse).transpose()?;
        let (setting, _) = self.target()?;
        if setting == "list" && self.maxlen.is_some() {
            return Err(Invalid::new("maxlen", "is for streams"));
        }
        if setting == "list" && !self.max_age.is_zero() {
            return Err(Invalid::new("max_age", "is for streams"));
        }
        if self.maxlen.is_some() && !self.max_age.is_zero() {
            return Err(Invalid::new("max_age", "and maxlen exclude each other"));
        }
        if self.maxlen == Some(0) {
            return Err(Invalid::new("maxlen", "must be at least 1"));
        }
        if setting == "stream" && self.push != Push::default() {
            return Err(Invalid::new("push", "is for lists"));
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
        let form = self.form()?;
        let pusher = Pusher::new(servers, tls, form, self.replicas, self.timeout);
        Ok(Box::new(pusher))
    }
}

fn parse(url: &SecretString) -> Result<servers::Servers, Invalid> {
    servers::parse(url.expose_secret()).map_err(|words| Invalid::new("url", words))
}
