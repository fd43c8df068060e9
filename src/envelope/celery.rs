//! A task as a Celery message, protocol 2 (Celery documentation, chapter "Message Protocol").
//!
//! What a worker would choke on is refused here, before anything is sent: a worker that meets a message without `id`
//! or with a body of two elements dies or hangs, and the broker hands it the same message again.
//!
//! Decisions that the protocol leaves open:
//! - `argsrepr` and `kwargsrepr` are the JSON texts (Celery: Python's repr), cut at 1,024 characters like Celery's. They
//!   appear in the worker's log and in its events: `options.argsrepr` and `options.kwargsrepr` hide secrets, as in Celery.
//! - A task that has expired is sent none the less: the worker discards it and records it as revoked, as it does with
//!   those that expire while they wait. `expires_at = -infinity` is refused, it can only be a mistake.
//! - `run_at` and `expires_at` of `infinity`: never to run is refused; never to expire is no expiry.
//! - `options.chord` is carried, but a chord's end needs more than messages: the application tells its result backend how
//!   many tasks there are (`app.backend.set_chord_size(group, count)`), in its own process, as Celery's `chord()` does.
//! - `payload` alone is refused: Celery calls functions, and only the application knows which argument it is.

use std::borrow::Cow;

use super::call::Call;
use super::json::{self, Kind};
use super::options::{Options, Row};
use super::ready::Ready;
use super::{Unfit, check_json};
use crate::outbox::{Field, Task};
use crate::pg::{Moment, Timestamp};

/// Characters of `argsrepr` and `kwargsrepr`, at most: Celery's own limit.
pub const REPR_CHARS: usize = 1024;

/// The highest priority: kombu clamps to 0..=9.
pub const MAX_PRIORITY: u8 = 9;

/// The commit's LSN, in every message: what was written with the task is on a replica that has replayed beyond it.
pub const LSN_HEADER: &str = "aftercommit-lsn";

/// The commit's time, in every message.
pub const COMMITTED_AT_HEADER: &str = "aftercommit-committed-at";

/// What a row without a queue of its own, and without an origin, gets.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// The queue.
    pub queue: String,
    /// The header `origin`: who sent it.
    pub origin: String,
}

/// A task that has been found fit, and can be written as a Celery message.
pub struct Message<'t> {
    task: &'t Task,
    defaults: &'t Defaults,
    content: Content<'t>,
    /// The exchange; empty for the default one, where the routing key is the queue.
    pub exchange: Cow<'t, str>,
    /// The routing key.
    pub routing_key: Cow<'t, str>,
    /// 0..=9
    pub priority: u8,
    /// When it is to run; the message says so as well.
    pub eta: Option<Timestamp>,
    pub(super) properties: Properties<'t>,
}

enum Content<'t> {
    Call(Box<Call<'t>>),
    Ready(Ready<'t>),
}

/// Message properties, where they differ from the default.
#[derive(Default)]
pub(super) struct Properties<'t> {
    /// JSON; the task's id, if none.
    pub(super) correlation_id: Option<&'t [u8]>,
    /// JSON; empty, if none.
    pub(super) reply_to: Option<&'t [u8]>,
    /// JSON; 2, if none.
    pub(super) delivery_mode: Option<&'t [u8]>,
    /// Milliseconds until the message expires.
    pub(super) expiration: Option<u64>,
    /// Others, spliced as they are: name without quotes, and JSON value.
    pub(super) others: Vec<(&'t [u8], &'t [u8])>,
}

impl<'t> Message<'t> {
    /// Checks `task`, and says where it goes. `now` is needed for the expiration, which the wire counts from now.
    ///
    /// # Errors
    /// Says which column is unfit, and what to write instead.
    pub fn new(
        task: &'t Task,
        defaults: &'t Defaults,
        now: Timestamp,
    ) -> Result<Message<'t>, Unfit> {
        if task.id().is_empty() {
            return Err(Unfit::new(
                "id is empty: a worker hangs on a message without one",
            ));
        }
        if task.name().is_empty() {
            return Err(Unfit::new("task is empty: it must name a Celery task"));
        }
        if task.get(Field::Payload).is_some() {
            return Err(Unfit::new(
                "payload is set, but a Celery task takes args and kwargs: fill these, or map the column to kwargs \
                 ([outbox.columns] kwargs = \"payload\")",
            ));
        }
        let row = if task.get(Field::Body).is_some() {
            Row::Ready
        } else {
            Row::Call
        };
        let options = match task.get(Field::Options) {
            Some(text) => Options::parse(text, row)?,
            None => Options::default(),
        };
        let (exchange, routing_key) = route(task, &options, defaults)?;
        let (eta, expires) = (moment(task, Field::RunAt)?, moment(task, Field::ExpiresAt)?);
        let mut properties = Properties {
            reply_to: options.reply_to,
            delivery_mode: options.delivery_mode,
            expiration: expires.map(|at| at.0.saturating_sub(now.0).max(0) as u64 / 1000),
            ..Properties::default()
        };
        let mut priority = match task.text(Field::Priority) {
            Some(text) => Some(parse_priority(text).ok_or(Unfit::new("priority must be 0 to 9"))?),
            None => None,
        };
        let content = match row {
            Row::Ready => {
                Content::Ready(Ready::new(task, &options, &mut properties, &mut priority)?)
            }
            Row::Call => Content::Call(Box::new(Call::new(task, options, eta, expires)?)),
        };
        Ok(Message {
            task,
            defaults,
            content,
            exchange,
            routing_key,
            priority: priority.unwrap_or(0),
            eta,
            properties,
        })
    }

    /// The task's id.
    pub fn id(&self) -> &'t str {
        self.task.id()
    }

    /// The body's content type.
    pub fn content_type(&self) -> &str {
        match &self.content {
            Content::Call(_) => "application/json",
            Content::Ready(ready) => &ready.content_type,
        }
    }

    /// The body's encoding.
    pub fn content_encoding(&self) -> &str {
        match &self.content {
            Content::Call(_) => "utf-8",
            Content::Ready(ready) => &ready.content_encoding,
        }
    }

    /// Appends the body: for a call, the three elements as JSON.
    pub fn write_body(&self, out: &mut Vec<u8>) {
        match &self.content {
            Content::Call(call) => call.write_body(out),
            Content::Ready(ready) => out.extend_from_slice(&ready.body),
        }
    }

    /// Appends the headers, as a JSON object.
    pub fn write_headers(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        match &self.content {
            Content::Call(call) => call.write_headers(self.task, &self.defaults.origin, out),
            Content::Ready(ready) => out.extend_from_slice(ready.headers),
        }
        if out.last() != Some(&b'{') {
            out.push(b',');
        }
        write_name(out, LSN_HEADER);
        out.push(b'"');
        self.task.position.commit_lsn.write(out);
        out.extend_from_slice(b"\",");
        write_name(out, COMMITTED_AT_HEADER);
        write_time(out, Some(self.task.committed_at));
        out.push(b'}');
    }
}

pub(super) fn write_name(out: &mut Vec<u8>, name: &str) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// The text between the braces of a checked object; `None` if there is none.
pub(super) fn inside(object: &[u8]) -> Option<&[u8]> {
    let inner = object.trim_ascii().strip_prefix(b"{")?.strip_suffix(b"}")?;
    let inner = inner.trim_ascii();
    (!inner.is_empty()).then_some(inner)
}

pub(super) fn reserved(name: &[u8]) -> Unfit {
    let name = String::from_utf8_lossy(name);
    Unfit::new(format!(
        "headers.{name} is reserved: a header of the application needs a name of its own"
    ))
}

/// A JSON column's text; `None` for NULL and for JSON's null.
pub(crate) fn json_column(task: &Task, field: Field, kind: Kind) -> Result<Option<&[u8]>, Unfit> {
    let Some(text) = task.get(field) else {
        return Ok(None);
    };
    match check_json(task, field, kind) {
        Ok(()) => Ok(Some(text)),
        Err(json::Defect::OtherKind {
            found: Kind::Null, ..
        }) => Ok(None),
        Err(defect) => Err(Unfit::new(format!("{} {defect}", field.name()))),
    }
}

/// A moment that is not `infinity` where that means never to run; `None` where it says nothing.
pub(super) fn moment(task: &Task, field: Field) -> Result<Option<Timestamp>, Unfit> {
    let Some(text) = task.get(field) else {
        return Ok(None);
    };
    let name = field.name();
    match (field, Moment::parse(text)) {
        (_, Ok(Moment::At(at))) if at.rfc3339().is_some() => Ok(Some(at)),
        (Field::RunAt, Ok(Moment::Past)) | (Field::ExpiresAt, Ok(Moment::Never)) => Ok(None),
        (_, Ok(Moment::Never)) => Err(Unfit::new("run_at is infinity: it would never run")),
        (_, Ok(Moment::Past)) => Err(Unfit::new("expires_at is -infinity: it would never run")),
        (_, Ok(Moment::At(_))) => Err(Unfit::new(format!("{name} must be in the years 1 to 9999"))),
        (_, Err(defect)) => Err(Unfit::new(format!("{name} is {defect}"))),
    }
}

pub(super) fn parse_priority(text: &str) -> Option<u8> {
    text.parse()
        .ok()
        .filter(|priority| *priority <= MAX_PRIORITY)
}

fn route<'t>(
    task: &'t Task,
    options: &Options<'t>,
    defaults: &'t Defaults,
) -> Result<(Cow<'t, str>, Cow<'t, str>), Unfit> {
    let queue = task.text(Field::Queue);
    let exchange = options.exchange.and_then(json::text).unwrap_or_default();
    let routing_key = options.routing_key.and_then(json::text);
    if exchange.is_empty() {
        let queue = match (queue, routing_key) {
            (Some(queue), Some(key)) if key != queue => {
                return Err(Unfit::new(
                    "queue and options.routing_key differ: without an exchange the routing key is the queue",
                ));
            }
            (Some(queue), _) => Cow::Borrowed(queue),
            (None, Some(key)) => key,
            (None, None) => Cow::Borrowed(defaults.queue.as_str()),
        };
        if queue.is_empty() {
            return Err(Unfit::new(
                "queue is empty: name one, or leave it NULL for the sink's",
            ));
        }
        return Ok((exchange, queue));
    }
    if queue.is_some() {
        return Err(Unfit::new(
            "queue and options.exchange exclude each other: the exchange finds the queues",
        ));
    }
    match routing_key {
        Some(key) if !key.is_empty() => Ok((exchange, key)),
        _ => Err(Unfit::new(
            "options.exchange needs options.routing_key (fanout exchanges are not offered)",
        )),
    }
}

pub(super) fn write_time(out: &mut Vec<u8>, at: Option<Timestamp>) {
    match at.and_then(Timestamp::rfc3339) {
        Some(text) => {
            out.push(b'"');
            out.extend_from_slice(text.as_bytes());
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
}
