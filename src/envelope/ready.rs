//! A row that carries a message which the application has built, Celery itself for instance: checked, and sent as it is.
//!
//! `body` holds the bytes, `headers` all of Celery's headers, `options` the rest: content_type (default
//! `application/json`), content_encoding (`utf-8`), exchange, routing_key, and `properties` of the broker (priority,
//! correlation_id, reply_to, delivery_mode, expiration; delivery_tag, delivery_info and body_encoding are made afresh).
//! The id in the message must be the row's, since it is the task's identity everywhere.
//!
//! A JSON body is looked into: three elements, or protocol 1's object. Of any other content type, and of a compressed
//! body, only what the headers say is checked.

use std::borrow::Cow;

use super::Unfit;
use super::celery::{
    COMMITTED_AT_HEADER, LSN_HEADER, Properties, inside, json_column, parse_priority, reserved,
};
use super::json::{self, Dialect, Kind};
use super::options::Options;
use crate::outbox::{Field, Task};

pub(super) struct Ready<'t> {
    pub(super) body: Vec<u8>,
    /// What stands between the braces of the headers.
    pub(super) headers: &'t [u8],
    pub(super) content_type: Cow<'t, str>,
    pub(super) content_encoding: Cow<'t, str>,
}

/// What the checks need of the headers.
#[derive(Default)]
struct Seen<'t> {
    task: Option<Cow<'t, str>>,
    id: Option<Cow<'t, str>>,
    eta: bool,
    expires: bool,
    compressed: bool,
}

impl<'t> Ready<'t> {
    pub(super) fn new(
        task: &'t Task,
        options: &Options<'t>,
        properties: &mut Properties<'t>,
        priority: &mut Option<u8>,
    ) -> Result<Ready<'t>, Unfit> {
        for field in [Field::Args, Field::Kwargs] {
            if task.get(field).is_some() {
                let name = field.name();
                return Err(Unfit::new(format!(
                    "{name} and body exclude each other: the body holds the arguments"
                )));
            }
        }
        let headers = json_column(task, Field::Headers, Kind::Object)?.unwrap_or(b"{}");
        let seen = Seen::new(headers)?;
        let content_type = option_text(options.content_type, "application/json");
        let content_encoding = option_text(options.content_encoding, "utf-8");
        if content_type.is_empty() || content_encoding.is_empty() {
            return Err(Unfit::new(
                "options.content_type and content_encoding must not be empty: a worker dies of a message without",
            ));
        }
        let body = task
            .get(Field::Body)
            .and_then(decode_bytea)
            .ok_or(Unfit::new(
                "body must be a bytea column (in hexadecimal form)",
            ))?;
        if body.is_empty() {
            return Err(Unfit::new("body is empty"));
        }
        let is_json = matches!(&*content_type, "application/json" | "json") && !seen.compressed;
        check_content(task, &seen, &body, is_json, &content_type)?;
        if task.get(Field::RunAt).is_some() && is_v2(&seen) && !seen.eta {
            return Err(Unfit::new(
                "run_at is set, but headers.eta of the ready-made message is not",
            ));
        }
        if task.get(Field::ExpiresAt).is_some() && is_v2(&seen) && !seen.expires {
            return Err(Unfit::new(
                "expires_at is set, but headers.expires of the ready-made message is not",
            ));
        }
        if let Some(given) = options.properties {
            take_properties(given, properties, priority)?;
        }
        Ok(Ready {
            body,
            headers: inside(headers).unwrap_or_default(),
            content_type,
            content_encoding,
        })
    }
}

fn is_v2(seen: &Seen<'_>) -> bool {
    seen.task.is_some()
}

fn option_text<'t>(option: Option<&'t [u8]>, default: &'static str) -> Cow<'t, str> {
    option
        .and_then(json::text)
        .unwrap_or(Cow::Borrowed(default))
}

impl<'t> Seen<'t> {
    fn new(headers: &'t [u8]) -> Result<Seen<'t>, Unfit> {
        let mut seen = Seen::default();
        for (name, value) in json::members(headers, Dialect::Strict).flatten() {
            let set = json::kind(value) != Some(Kind::Null);
            match name {
                b"task" => seen.task = filled(value),
                b"id" => seen.id = filled(value),
                b"eta" => seen.eta = set,
                b"expires" => seen.expires = set,
                b"compression" => seen.compressed = set,
                _ if name == LSN_HEADER.as_bytes() || name == COMMITTED_AT_HEADER.as_bytes() => {
                    return Err(reserved(name));
                }
                _ => {}
            }
        }
        Ok(seen)
    }
}

fn filled(value: &[u8]) -> Option<Cow<'_, str>> {
    json::text(value).filter(|text| !text.is_empty())
}

fn check_content(
    task: &Task,
    seen: &Seen<'_>,
    body: &[u8],
    is_json: bool,
    content_type: &str,
) -> Result<(), Unfit> {
    match (&seen.task, &seen.id) {
        (Some(_), None) => {
            return Err(Unfit::new(
                "headers.id is missing: a worker hangs on a message without one",
            ));
        }
        (None, Some(_)) => {
            return Err(Unfit::new(
                "headers.task is missing: a worker discards such a message",
            ));
        }
        (Some(_), Some(id)) => same_id(task, id, "headers.id")?,
        (None, None) if !is_json => {
            return Err(Unfit::new(
                "headers lack task and id: the whole of Celery's headers belongs into the column headers",
            ));
        }
        (None, None) => {}
    }
    if content_type == "application/x-python-serialize"
        && !seen.compressed
        && body.first() != Some(&0x80)
    {
        return Err(Unfit::new(
            "body is no pickle, but options.content_type says so",
        ));
    }
    if !is_json {
        return Ok(());
    }
    if std::str::from_utf8(body).is_err() {
        return Err(Unfit::new(
            "body is not UTF-8, but options.content_type says JSON",
        ));
    }
    if is_v2(seen) {
        check_three(body)
    } else {
        check_protocol_1(task, body)
    }
}

fn check_three(body: &[u8]) -> Result<(), Unfit> {
    let body = body.trim_ascii();
    json::check(body, Kind::Array, Dialect::Python)
        .map_err(|defect| Unfit::new(format!("body {defect}")))?;
    let kinds = json::elements(body, Dialect::Python)
        .flatten()
        .map(json::kind);
    if kinds.eq([Some(Kind::Array), Some(Kind::Object), Some(Kind::Object)]) {
        return Ok(());
    }
    Err(Unfit::new(
        "body must be [args, kwargs, embed]: exactly an array and two objects, or a worker dies of it",
    ))
}

fn check_protocol_1(task: &Task, body: &[u8]) -> Result<(), Unfit> {
    json::check(body, Kind::Object, Dialect::Python).map_err(|defect| {
        Unfit::new(format!(
            "headers lack task and id, and as a message of protocol 1 the body {defect}"
        ))
    })?;
    let (mut name, mut id) = (None, None);
    for (key, value) in json::members(body, Dialect::Python).flatten() {
        let fits = match key {
            b"task" => {
                name = filled(value);
                name.is_some()
            }
            b"id" => {
                id = filled(value);
                id.is_some()
            }
            b"args" => json::kind(value) == Some(Kind::Array),
            b"kwargs" => json::kind(value) == Some(Kind::Object),
            _ => true,
        };
        if !fits {
            let key = String::from_utf8_lossy(key);
            return Err(Unfit::new(format!(
                "body.{key} is unfit for a message of protocol 1"
            )));
        }
    }
    match (name, id) {
        (Some(_), Some(id)) => same_id(task, &id, "body.id"),
        _ => Err(Unfit::new(
            "headers lack task and id, and so does the body: a worker hangs on such a message",
        )),
    }
}

fn same_id(task: &Task, id: &str, place: &str) -> Result<(), Unfit> {
    if id == task.id() {
        Ok(())
    } else {
        Err(Unfit::new(format!(
            "{place} is not the row's id: insert the row with the task's id"
        )))
    }
}

fn take_properties<'t>(
    given: &'t [u8],
    properties: &mut Properties<'t>,
    priority: &mut Option<u8>,
) -> Result<(), Unfit> {
    for (name, value) in json::members(given, Dialect::Strict).flatten() {
        if json::kind(value) == Some(Kind::Null) {
            continue;
        }
        let text = json::text(value);
        let fits = match name {
            b"correlation_id" => {
                properties.correlation_id = Some(value);
                text.is_some()
            }
            b"reply_to" => {
                properties.reply_to = properties.reply_to.or(Some(value));
                text.is_some()
            }
            b"delivery_mode" => {
                properties.delivery_mode = properties.delivery_mode.or(Some(value));
                matches!(value, b"1" | b"2")
            }
            b"expiration" => {
                properties.expiration = text.and_then(|text| text.parse().ok());
                properties.expiration.is_some()
            }
            b"priority" => {
                let given = std::str::from_utf8(value).ok().and_then(parse_priority);
                *priority = priority.or(given);
                given.is_some()
            }
            b"delivery_tag" | b"delivery_info" | b"body_encoding" => true,
            _ => {
                properties.others.push((name, value));
                true
            }
        };
        if !fits {
            let name = String::from_utf8_lossy(name);
            return Err(Unfit::new(format!(
                "options.properties.{name} is not what Celery puts there"
            )));
        }
    }
    Ok(())
}

/// The bytes of `\x0123…`, the form that `bytea_output = hex` writes.
pub(crate) fn decode_bytea(text: &[u8]) -> Option<Vec<u8>> {
    let hex = text.strip_prefix(b"\\x")?;
    if !hex.len().is_multiple_of(2) {
        return None;
    }
    let nibble = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    hex.chunks_exact(2)
        .map(|pair| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        })
        .collect()
}
