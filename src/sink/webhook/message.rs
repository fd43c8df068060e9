//! Pure: a task, or several, as the headers and the body of a POST.
//!
//! What would harm a receiver is refused here: header values beyond printable ASCII, names that are ours, ids that would
//! make signatures ambiguous.

use std::borrow::Cow;
use std::fmt::Write as _;

use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::envelope::celery::{COMMITTED_AT_HEADER, LSN_HEADER, json_column};
use crate::envelope::event::{self, Content};
use crate::envelope::json::{self, Dialect, Kind};
use crate::envelope::{Unfit, plain};
use crate::outbox::{Field, Task};

/// The header with the id of a message: the same at each attempt.
pub(super) const ID: HeaderName = HeaderName::from_static("webhook-id");
/// The header with the time of an attempt.
pub(super) const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
/// The header with the signatures.
pub(super) const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// The headers of a row may have so many bytes: most servers take no more than 8 KiB of all.
const MOST_HEADERS: usize = 6 << 10;
/// There is room for so many headers from the start, which is enough for most requests.
const MANY_HEADERS: usize = 16;
/// No id is longer.
const LONGEST_ID: usize = 255;

/// What a header value cannot carry as it is (CloudEvents, HTTP binding 1.0.2, section 3.1.3.2).
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// What the body of a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The row as one JSON object.
    #[default]
    Json,
    /// Its payload or body, as it is.
    Payload,
    /// A CloudEvent in binary mode: attributes in headers, the payload as the body.
    Cloudevents,
    /// A CloudEvent in structured mode: one JSON object.
    CloudeventsStructured,
}

/// Headers and body of a request, but for what changes with each attempt.
pub(super) struct Message {
    pub(super) id: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// How tasks become messages.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) format: Format,
    /// The source of CloudEvents.
    pub(super) source: String,
    /// Headers of every request; a row cannot set them.
    pub(super) extra: HeaderMap,
}

impl Shape {
    /// One task as one message.
    ///
    /// # Errors
    /// Says which column is unfit.
    pub(super) fn message(&self, task: &Task) -> Result<Message, Unfit> {
        check_id(task.id())?;
        let mut headers = HeaderMap::with_capacity(MANY_HEADERS);
        headers.extend(
            self.extra
                .iter()
                .map(|(name, it)| (name.clone(), it.clone())),
        );
        self.take_headers(task, &mut headers)?;
        let mut body = Vec::new();
        let content_type = match self.format {
            Format::Json => {
                plain::write(&mut body, task)?;
                HeaderValue::from_static(event::JSON)
            }
            Format::CloudeventsStructured => {
                event::write_cloud_event(&mut body, task, &self.source)?;
                HeaderValue::from_static("application/cloudevents+json; charset=UTF-8")
            }
            Format::Payload => {
                let content = ready(task)?;
                set(&mut headers, "aftercommit-task", task.name())?;
                if let Some(key) = task.text(Field::Key) {
                    set(&mut headers, "aftercommit-key", key)?;
                }
                take_content(&mut body, content)?
            }
            Format::Cloudevents => {
                self.take_attributes(task, &mut headers)?;
                take_content(&mut body, Content::of(task)?)?
            }
        };
        headers.insert(CONTENT_TYPE, content_type);
        set(
            &mut headers,
            LSN_HEADER,
            &task.position.commit_lsn.to_string(),
        )?;
        if let Some(at) = task.committed_at.rfc3339() {
            set(&mut headers, COMMITTED_AT_HEADER, at.as_str())?;
        }
        Ok(Message {
            id: task.id().to_owned(),
            headers,
            body,
        })
    }

    /// Appends one task to an array.
    ///
    /// # Errors
    /// Says which column is unfit; then only a part is written.
    pub(super) fn write_element(&self, out: &mut Vec<u8>, task: &Task) -> Result<(), Unfit> {
        check_id(task.id())?;
        match self.format {
            Format::Json => plain::write(out, task),
            Format::CloudeventsStructured => event::write_cloud_event(out, task, &self.source),
            Format::Payload | Format::Cloudevents => {
                let content = ready(task)?;
                if !content.is_json {
                    return Err(Unfit::new("body cannot be part of a batch: JSON only"));
                }
                out.extend_from_slice(&content.bytes);
                Ok(())
            }
        }
    }

    /// Several tasks as one message, of which `body` is the array. Its id is made of theirs: the same tasks, the same id.
    pub(super) fn array<'t>(&self, ids: impl Iterator<Item = &'t str>, body: Vec<u8>) -> Message {
        let mut hash = Sha256::new();
        for id in ids {
            hash.update(id);
            hash.update([0]);
        }
        let mut id = "batch_".to_owned();
        for byte in hash.finalize().iter().take(16) {
            let _ = write!(id, "{byte:02x}");
        }
        let mut headers = self.extra.clone();
        let content_type = match self.format {
            Format::CloudeventsStructured => "application/cloudevents-batch+json; charset=UTF-8",
            _ => event::JSON,
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Message { id, headers, body }
    }

    fn take_attributes(&self, task: &Task, headers: &mut HeaderMap) -> Result<(), Unfit> {
        set(headers, "ce-specversion", "1.0")?;
        set(headers, "ce-id", task.id())?;
        set(headers, "ce-source", &self.source)?;
        set(headers, "ce-type", task.name())?;
        if let Some(time) = task.committed_at.rfc3339() {
            set(headers, "ce-time", time.as_str())?;
        }
        if let Some(key) = task.text(Field::Key) {
            set(headers, "ce-partitionkey", key)?;
        }
        Ok(())
    }

    /// The row's own headers.
    fn take_headers(&self, task: &Task, out: &mut HeaderMap) -> Result<(), Unfit> {
        let Some(headers) = json_column(task, Field::Headers, Kind::Object)? else {
            return Ok(());
        };
        let mut bytes = 0;
        for (name, value) in json::members(headers, Dialect::Strict).flatten() {
            let shown = || -> String { String::from_utf8_lossy(name).chars().take(64).collect() };
            let unfit = |words: &str| Unfit::new(format!("headers.{} {words}", shown()));
            let value = match json::kind(value) {
                Some(Kind::Null) => continue,
                Some(Kind::String) => json::text(value).ok_or_else(|| unfit("is no text"))?,
                Some(Kind::Number | Kind::Boolean) => String::from_utf8_lossy(value),
                _ => return Err(unfit("must be a string, a number, true or false")),
            };
            let name = HeaderName::from_bytes(name)
                .map_err(|_| unfit("is no name for an HTTP header: letters, digits and dashes"))?;
            if is_reserved(&name) || self.extra.contains_key(&name) {
                return Err(unfit(
                    "is reserved: a header of the application needs a name of its own",
                ));
            }
            let value = printable(&value).ok_or_else(|| {
                unfit("holds more than printable ASCII, and HTTP carries no other")
            })?;
            bytes += name.as_str().len() + value.len();
            if bytes > MOST_HEADERS {
                return Err(Unfit::new(
                    "headers are longer than 6 KiB together: put it into the payload",
                ));
            }
            out.insert(name, value);
        }
        Ok(())
    }
}

fn ready(task: &Task) -> Result<Content<'_>, Unfit> {
    Content::ready(task)?.ok_or(Unfit::new(
        "payload and body are NULL, and format = \"payload\" sends nothing else",
    ))
}

/// What is to be sent is the only copy.
fn take_content(body: &mut Vec<u8>, content: Content<'_>) -> Result<HeaderValue, Unfit> {
    let content_type = printable(&content.content_type).ok_or(Unfit::new(
        "options.content_type holds more than printable ASCII",
    ))?;
    *body = content.bytes.into_owned();
    Ok(content_type)
}

/// Sets a header of ours; what a header cannot carry is encoded.
fn set(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), Unfit> {
    let encoded = Cow::from(utf8_percent_encode(value, ENCODED));
    if encoded.len() > MOST_HEADERS {
        return Err(Unfit::new(format!(
            "its header {name} would be longer than 6 KiB"
        )));
    }
    let value = HeaderValue::from_str(&encoded);
    let value = value.map_err(|_| Unfit::new(format!("its header {name} cannot be written")))?;
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}

/// A header's value, as it is. What lies beyond ASCII, receivers read as this or that.
fn printable(value: &str) -> Option<HeaderValue> {
    let fits = value
        .bytes()
        .all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    HeaderValue::from_str(value).ok().filter(|_| fits)
}

/// A dot in the id would let another body have the same signature (Standard Webhooks, "Signature scheme").
fn check_id(id: &str) -> Result<(), Unfit> {
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'.';
    match id.is_empty() || id.len() > LONGEST_ID || !id.bytes().all(fits) {
        true => Err(Unfit::new(
            "id must be 1 to 255 characters of printable ASCII without spaces and dots",
        )),
        false => Ok(()),
    }
}

/// Headers that are not the application's to set: ours, and those that tell where a message begins and ends.
fn is_reserved(name: &HeaderName) -> bool {
    const NAMES: [&str; 14] = [
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    ];
    let name = name.as_str();
    let ours = ["webhook-", "aftercommit-", "ce-", "proxy-"];
    NAMES.contains(&name) || ours.iter().any(|prefix| name.starts_with(prefix))
}

/// Reads `"Name: value"`, a header for every request.
///
/// # Errors
/// What is wrong with it, without its text; begins with a verb.
pub(super) fn parse_extra(line: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = line
        .split_once(':')
        .ok_or("holds what is no header: write \"Name: value\"")?;
    let name = HeaderName::from_bytes(name.trim().as_bytes())
        .map_err(|_| "holds a header whose name is none: letters, digits and dashes")?;
    if is_reserved(&name) && name != "user-agent" {
        return Err(format!("sets {name}, which is not to be set"));
    }
    let mut value = printable(value.trim())
        .ok_or_else(|| format!("holds a value of {name} that is more than printable ASCII"))?;
    value.set_sensitive(true);
    Ok((name, value))
}
