//! Messages to any exchange of an AMQP 0-9-1 broker: RabbitMQ.
//!
//! - **Delivered** means: the broker has confirmed the message (publisher confirms), and it did not come back (mandatory).
//!   For a persistent message in a durable queue, RabbitMQ confirms when it is on disk; in a quorum queue, when a majority
//!   has it.
//! - **Unroutable**: RabbitMQ confirms messages for which it finds no queue, and drops them. They come back to us first; the
//!   task is rejected, and exactly this one. A missing exchange or right is retried: an operator mends it without a change to
//!   the row.
//! - **Repeats**: after a lost answer, an outage or a crash, what was under way is sent again, with the same `message_id`,
//!   the task's id. RabbitMQ drops no repeats: consumers do, by that id.
//! - **Order**: one task of a key is under way at a time, and the next follows when it is confirmed; other keys and tasks
//!   without one do not wait. In a queue, messages of a key stay in this order, until several consumers, priorities or a
//!   returned message (requeue) break it. A single key is thus as fast as confirms come, one after the other.
//! - **What the broker can lose**: transient messages and queues that are not durable, when it starts again; what is over
//!   `x-max-length` (unless `x-overflow` is reject-publish), or expires; what a dead-letter exchange cannot route; classic
//!   queues of a node whose disk is gone.
//! - **Several nodes** in one URL, `;` between: when one cannot be reached, refuses us or breaks the connection, the next one is
//!   used (`nodes.rs`), and what was under way is sent again there: a repeat, where the lost node had passed it on. They must be
//!   nodes of one cluster: two brokers are two sets of queues, and no consumer finds all. A queue that is on one node only
//!   (classic, not mirrored) is gone with that node all the same.
//! - **Away**: a broker, or each of its nodes, that refuses our login or certificate, is silent for twice the heartbeat or longer
//!   than `timeout`, or takes nothing (alarms of memory and disk). Nobody's attempts burn; what was under way is sent again.
//!   `amqps://` never falls back to plain text. Only new connections are asked for a password: that it has changed shows then, and
//!   a URL in a file is read again.
//!
//! `check --online` sees, and changes nothing: whether the broker, or each of its nodes, lets us in and takes messages, and whether
//! they are of one cluster; whether the exchange, or the
//! queue of the default exchange, is there; whether that queue is durable, if our user may configure it (we ask for a queue that
//! RabbitMQ never makes, and its refusal tells). It cannot see what only the management interface shows: which queues are bound
//! for a routing key, their length limits and policies, the members of a quorum queue.
//!
//! The body and the properties: [`crate::envelope::amqp::event`].
//!
//! The client is our own: we need few methods of the protocol, each message that comes back matched with its task (by
//! `message_id`, in the order of publishing), headers written without a detour over a tree of values, and a batch that may be
//! dropped at any await.

mod flow;
mod link;
mod login;
pub mod method;
pub(super) mod nodes;
pub(super) mod outcome;
pub(super) mod probe;
pub(super) mod publisher;
mod rest;
pub mod url;
pub mod wire;

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use self::nodes::Nodes;
use self::outcome::shown;
use self::probe::Place;
use self::publisher::{Letter, Letters, Publisher};
use self::url::Address;
use super::settings::{Either, check_timeout, default_timeout};
use super::{Cause, Delivery, Invalid, Outcome, Probe, SecretFile, Settings, Sink};
use crate::envelope::Unfit;
use crate::envelope::amqp::event::Event;
use crate::envelope::template::Template;
use crate::outbox::{Field, Task};
use crate::pg::Timestamp;

/// `[sink.amqp.<name>]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the broker is, and how to get in; with `;` between, each node of a cluster.
    pub url: Option<SecretString>,
    /// A file that holds the URL; instead of `url`, which it becomes when the configuration is loaded.
    pub url_file: Option<PathBuf>,
    /// The exchange; empty for the default one, where the routing key is the queue. Fields of the task may stand behind a
    /// literal beginning: `shop.{task}`.
    pub exchange: String,
    /// The routing key, with fields of the task. A row's queue replaces it.
    #[serde(default = "default_routing_key")]
    pub routing_key: String,
    /// Messages outlive a restart of the broker, in queues that do.
    #[serde(default = "default_persistent")]
    pub persistent: bool,
    /// How long the broker may stay without an answer before it counts as away.
    #[serde(
        default = "default_timeout",
        deserialize_with = "crate::units::duration"
    )]
    pub timeout: Duration,
}

fn default_routing_key() -> String {
    "{task}".to_owned()
}

fn default_persistent() -> bool {
    true
}

impl Config {
    fn addresses(&self) -> Result<Option<Vec<Address>>, Invalid> {
        let url = Either::url(&self.url, &self.url_file);
        let url = url.one("amqp://user:password@host/vhost, or url_file")?;
        let addresses = url.map(|url| url::parse(url.expose_secret())).transpose();
        addresses.map_err(|words| Invalid::new("url", words))
    }

    fn letters(&self) -> Result<EventLetters, Invalid> {
        let parse = |key: &'static str, text: &str| {
            let template = text.parse::<Template>();
            template.map_err(|error| Invalid::new(key, error.to_string()))
        };
        let exchange = parse("exchange", &self.exchange)?;
        let routing_key = parse("routing_key", &self.routing_key)?;
        if exchange.is_open() {
            return Err(Invalid::new(
                "exchange",
                "begins with a field, so that a row could choose any exchange: begin with a literal, as in \"shop.{task}\"",
            ));
        }
        if exchange.fixed() == Some("") && routing_key.is_open() {
            return Err(Invalid::new(
                "routing_key",
                "begins with a field, and without an exchange it names the queue: begin with a literal, as in \
                 \"shop.{task}\", or name an exchange",
            ));
        }
        Ok(EventLetters {
            exchange,
            routing_key,
            persistent: self.persistent,
        })
    }
}

impl Settings for Config {
    fn validate(&self) -> Result<(), Invalid> {
        self.addresses()?;
        self.letters()?;
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
        let Some(addresses) = self.addresses()? else {
            return Err(Invalid::unread("url_file"));
        };
        Ok(Box::new(Amqp {
            publisher: Publisher::new(Nodes::new("url", addresses)?, self.timeout),
            letters: self.letters()?,
        }))
    }
}

/// Publishes tasks to exchanges.
struct Amqp {
    publisher: Publisher,
    letters: EventLetters,
}

struct EventLetters {
    exchange: Template,
    routing_key: Template,
    persistent: bool,
}

impl Letters for EventLetters {
    type Letter<'t> = EventLetter<'t>;

    fn letter<'t>(&'t self, task: &'t Task, now: Timestamp) -> Result<EventLetter<'t>, Unfit> {
        Ok(EventLetter {
            exchange: self.exchange.name(task, "exchange")?,
            routing_key: match task.text(Field::Queue) {
                Some(queue) => Cow::Borrowed(queue),
                None => self.routing_key.name(task, "routing_key")?,
            },
            event: Event::new(task, now, self.persistent)?,
        })
    }

    fn unroutable(&self, exchange: &str, routing_key: &str) -> Outcome {
        let routing_key = shown(routing_key);
        Outcome::Reject(Cause::new(match exchange {
            "" => format!("there is no queue {routing_key}: declare it, then retry the task"),
            exchange => format!(
                "the exchange {} has no queue for the routing key {routing_key}: bind one, then retry the task",
                shown(exchange)
            ),
        }))
    }
}

struct EventLetter<'t> {
    exchange: Cow<'t, str>,
    routing_key: Cow<'t, str>,
    event: Event<'t>,
}

impl Letter for EventLetter<'_> {
    fn exchange(&self) -> &str {
        &self.exchange
    }

    fn routing_key(&self) -> &str {
        &self.routing_key
    }

    fn write_properties(&self, out: &mut Vec<u8>) -> Result<(), Unfit> {
        self.event.basic().write(out)
    }

    fn write_body(&self, out: &mut Vec<u8>) {
        self.event.write_body(out);
    }
}

impl Sink for Amqp {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(self.publisher.publish(&self.letters, batch))
    }

    fn probe(&mut self) -> Probe<'_> {
        let EventLetters {
            exchange,
            routing_key,
            ..
        } = &self.letters;
        let place = match (exchange.fixed(), routing_key.fixed()) {
            (Some(""), Some(queue)) => Some(Place::Queue(queue)),
            // It hangs on the row.
            (None | Some(""), _) => None,
            (Some(exchange), _) => Some(Place::Exchange(exchange)),
        };
        Box::pin(self.publisher.look(place))
    }
}
