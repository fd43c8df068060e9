//! NATS: JetStream, whose streams store and acknowledge; core NATS only where it is asked for in words.
//!
//! - **Delivered** means: the stream has acknowledged the message with a sequence number, or as a repeat of one that it has.
//!   With `jetstream = false` it only means that the server has taken it off the wire: see below.
//! - **Repeats**: the task's id is the message's `Nats-Msg-Id`, and the stream drops what comes again within its
//!   `duplicate_window` (two minutes by default), so that lost answers, outages and crashes repeat nothing within it.
//! - **Order** is that of each key, also where a message is refused or its answer lost: none of a key is stored before those
//!   ahead of it are. How that goes with many on their way at once, stands at the head of `flow.rs`. With replicas it goes one
//!   by one within a key, and side by side over keys: guards and replicas do not go together (`stream.rs`).
//! - **What the broker can lose**: a stream in memory, all at a restart; one on disk, what was written in the last two minutes
//!   at a crash of the *machine* (nats-server's `sync_interval`; a kill of the server alone loses nothing), unless it has
//!   replicas; with `discard = old`, what is beyond its limits, read or not; before nats-server 2.10.5 the same with
//!   `discard = new`, where `max_bytes` is the limit; with retention `interest`, what no consumer wants.
//!   `check --online` tells these settings.
//! - **`jetstream = false, acknowledge = "none"`**: publishing to subscribers as they are at that moment. Lost is what nobody is
//!   subscribed to, what a subscriber's connection or a server on the way drops, and what a slow subscriber cannot take.
//!   Nothing drops repeats. It is for tasks that may be lost.
//!
//! The stream has to be there; it is not made here. The wire is spoken by this room itself: the order of a key rests on
//! knowing what was sent on which connection and in which order, and a client that reconnects and sends again by itself cannot
//! promise that.

mod connection;
mod flow;
mod link;
mod login;
mod message;
mod probe;
mod protocol;
mod publisher;
mod servers;
mod stream;
mod subject;
mod verdict;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use self::connection::Manner;
use self::login::Identity;
use self::publisher::{Publisher, Scratch};
use self::servers::Server;
use self::subject::Subject;
use super::settings::{Either, check_timeout, default_timeout};
use super::{Invalid, SecretFile, Settings, Sink};
use crate::tls::{self, Names, Roots, Rules};

/// `[sink.nats.<name>]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The servers of one cluster: `nats://host:4222`, several with commas between; `tls://` for TLS.
    pub url: Option<SecretString>,
    /// A file that holds the URLs; instead of `url`, which it becomes when the configuration is loaded.
    pub url_file: Option<PathBuf>,
    /// The stream that stores the tasks.
    pub stream: Option<String>,
    /// Where a task goes, unless the row's `queue` says it: text with `{task}`, `{key}`, `{queue}` or `{id}` in it.
    pub subject: String,
    /// Whether a stream stores the messages.
    #[serde(default = "yes")]
    pub jetstream: bool,
    /// Who acknowledges a message.
    #[serde(default)]
    pub acknowledge: Acknowledge,
    /// The user.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<SecretString>,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// A token; instead of a user.
    pub token: Option<SecretString>,
    /// A file that holds the token.
    pub token_file: Option<PathBuf>,
    /// A file that holds the seed of a user's key; instead of a user.
    pub nkey_seed_file: Option<PathBuf>,
    /// A credentials file: a JWT and its key; instead of a user.
    pub credentials_file: Option<PathBuf>,
    /// Whether TLS is demanded where the URL does not.
    #[serde(default)]
    pub tls: bool,
    /// Whether TLS comes before anything else (the server's `handshake_first`).
    #[serde(default)]
    pub tls_first: bool,
    /// The authorities, PEM; the system's, if not given.
    pub tls_ca_file: Option<PathBuf>,
    /// Our certificate chain, PEM.
    pub tls_certificate_file: Option<PathBuf>,
    /// The key of our certificate, PEM.
    pub tls_key_file: Option<PathBuf>,
    /// The first levels of the subjects that answers come to.
    #[serde(default = "default_inbox_prefix")]
    pub inbox_prefix: String,
    /// The first levels of JetStream's API; with a domain, `$JS.<domain>.API`.
    #[serde(default = "default_api_prefix")]
    pub api_prefix: String,
    /// How long a server may be silent before it counts as away.
    #[serde(
        default = "default_timeout",
        deserialize_with = "crate::units::duration"
    )]
    pub timeout: Duration,
}

/// Who acknowledges a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acknowledge {
    /// The stream.
    #[default]
    Stream,
    /// Nobody.
    None,
}

fn yes() -> bool {
    true
}

fn default_inbox_prefix() -> String {
    "_INBOX".to_owned()
}

fn default_api_prefix() -> String {
    "$JS.API".to_owned()
}

const NAMES: Names = Names {
    roots: "tls_ca_file",
    certificate: "tls_certificate_file",
    key: "tls_key_file",
};

impl Config {
    /// What was checked, but for the URL where a file holds it.
    fn parse(&self) -> Result<(Option<Vec<Server>>, Subject, Identity), Invalid> {
        let url = Either::url(&self.url, &self.url_file);
        let url = url.one("give nats://host:4222, or url_file")?;
        let servers = url
            .map(|url| servers::parse(url.expose_secret()))
            .transpose();
        let servers = servers.map_err(|words| Invalid::new("url", words))?;
        let subject = Subject::parse(&self.subject);
        let subject = subject.map_err(|words| Invalid::new("subject", words))?;
        Ok((servers, subject, self.identity()?))
    }

    fn identity(&self) -> Result<Identity, Invalid> {
        let given = [
            ("user", self.user.is_some()),
            ("token", self.token.is_some() || self.token_file.is_some()),
            ("nkey_seed_file", self.nkey_seed_file.is_some()),
            ("credentials_file", self.credentials_file.is_some()),
        ];
        let mut given = given.into_iter().filter(|(_, given)| *given);
        let (first, second) = (given.next(), given.next());
        if let (Some((first, _)), Some((second, _))) = (first, second) {
            return Err(Invalid::new(
                second,
                format!("and {first} exclude each other: one of them logs in"),
            ));
        }
        for (key, secret, file) in [
            ("password_file", &self.password, &self.password_file),
            ("token_file", &self.token, &self.token_file),
        ] {
            if secret.is_some() && file.is_some() {
                return Err(Invalid::new(
                    key,
                    "and the secret itself exclude each other",
                ));
            }
        }
        let password = self.password.is_some() || self.password_file.is_some();
        if self.user.is_some() != password {
            return Err(Invalid::new("user", "and password go together"));
        }
        let identity = match (&self.user, &self.password, &self.token) {
            (Some(user), Some(password), _) => Identity::Password(user.clone(), password.clone()),
            (_, _, Some(token)) => Identity::Token(token.clone()),
            _ => match (&self.nkey_seed_file, &self.credentials_file) {
                (Some(path), _) => Identity::Key(path.clone()),
                (_, Some(path)) => Identity::Credentials(path.clone()),
                _ => Identity::Url,
            },
        };
        Ok(identity)
    }

    fn wants_tls(&self) -> bool {
        self.tls
            || self.tls_first
            || self.tls_ca_file.is_some()
            || self.tls_certificate_file.is_some()
    }
}

impl Settings for Config {
    fn validate(&self) -> Result<(), Invalid> {
        self.parse()?;
        match (self.jetstream, self.acknowledge, &self.stream) {
            (true, Acknowledge::Stream, Some(stream)) => {
                let forbidden =
                    |c: char| c.is_whitespace() || c.is_control() || ".*>\\/".contains(c);
                if stream.is_empty() || stream.contains(forbidden) {
                    return Err(Invalid::new(
                        "stream",
                        "must be a stream's name: without spaces, dots, *, > and slashes",
                    ));
                }
            }
            (true, Acknowledge::Stream, None) => {
                return Err(Invalid::new(
                    "stream",
                    "is missing: name the stream that stores the tasks",
                ));
            }
            (true, Acknowledge::None, _) => {
                return Err(Invalid::new(
                    "acknowledge",
                    "must not be \"none\" with JetStream: its acknowledgement is what keeps tasks from being lost",
                ));
            }
            (false, Acknowledge::Stream, _) => {
                return Err(Invalid::new(
                    "jetstream",
                    "is false: then nothing stores or acknowledges tasks, and they can be lost; if that may be, say so with acknowledge = \"none\"",
                ));
            }
            (false, Acknowledge::None, Some(_)) => {
                return Err(Invalid::new("stream", "needs jetstream = true"));
            }
            (false, Acknowledge::None, None) => {}
        }
        for (key, prefix) in [
            ("inbox_prefix", &self.inbox_prefix),
            ("api_prefix", &self.api_prefix),
        ] {
            let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>');
            if prefix.len() > 200 || prefix.contains(bad) || prefix.split('.').any(str::is_empty) {
                return Err(Invalid::new(
                    key,
                    "must be levels of a subject, without * and >",
                ));
            }
        }
        if self.tls_certificate_file.is_some() != self.tls_key_file.is_some() {
            return Err(Invalid::new(
                "tls_certificate_file",
                "and tls_key_file go together",
            ));
        }
        check_timeout("timeout", self.timeout)
    }

    fn secrets(&mut self) -> Vec<SecretFile<'_>> {
        vec![
            SecretFile {
                key: "url_file",
                file: &mut self.url_file,
                secret: &mut self.url,
            },
            SecretFile {
                key: "password_file",
                file: &mut self.password_file,
                secret: &mut self.password,
            },
            SecretFile {
                key: "token_file",
                file: &mut self.token_file,
                secret: &mut self.token,
            },
        ]
    }

    fn open(&self) -> Result<Box<dyn Sink>, Invalid> {
        self.validate()?;
        let (servers, subject, identity) = self.parse()?;
        let servers = servers.ok_or_else(|| Invalid::unread("url_file"))?;
        let rules = Rules {
            roots: match &self.tls_ca_file {
                Some(file) => Roots::File(file.clone()),
                None => Roots::System,
            },
            check_name: true,
            client: self
                .tls_certificate_file
                .clone()
                .zip(self.tls_key_file.clone()),
        };
        let tls = match self.wants_tls() || servers.iter().any(|server| server.tls) {
            true => {
                let tls = tls::client_config(&rules, NAMES);
                Some(Arc::new(tls.map_err(|words| {
                    Invalid::new("tls", format!("needs files that do not do: {words}"))
                })?))
            }
            false => None,
        };
        Ok(Box::new(Publisher {
            servers,
            manner: Manner {
                identity,
                tls_wanted: self.wants_tls(),
                tls_first: self.tls_first,
                tls,
            },
            subject,
            stream: self.stream.clone(),
            api_prefix: self.api_prefix.clone(),
            inbox_prefix: self.inbox_prefix.clone(),
            timeout: self.timeout,
            first: 0,
            link: None,
            scratch: Scratch::default(),
        }))
    }
}
