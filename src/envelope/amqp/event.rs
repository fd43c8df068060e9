//! A task as a message that is no Celery call: its payload or its body as they are, or the call as plain JSON.
//!
//! - `payload` is the body as it is, `application/json`; `body` is the bytes as they are, `application/octet-stream`. With
//!   neither, the body is `{"id": …, "task": …, "args": […], "kwargs": {…}}`, with what the row has.
//! - `options` may give content_type, content_encoding, correlation_id, reply_to, and delivery_mode (1 is transient).
//! - Properties beside: `message_id` is the task's id, `type` its name, `timestamp` the commit's time, `expiration` what is
//!   left until `expires_at`, `app_id` is aftercommit.
//! - Headers: those of the row, `aftercommit-lsn` and `aftercommit-committed-at`.

use std::borrow::Cow;

use super::{Basic, unquoted};
use crate::envelope::celery::{
    COMMITTED_AT_HEADER, LSN_HEADER, inside, json_column, moment, reserved, write_name, write_time,
};
use crate::envelope::json::{self, Dialect, Kind};
use crate::envelope::{Unfit, check_json, decode_bytea};
use crate::outbox::{Field, Task};
use crate::pg::Timestamp;

/// A task that has been found fit.
pub struct Event<'t> {
    task: &'t Task,
    content: Content<'t>,
    headers: Option<&'t [u8]>,
    options: Options<'t>,
    priority: Option<u8>,
    expiration: Option<u64>,
    persistent: bool,
}

enum Content<'t> {
    Payload(&'t [u8]),
    Body(Vec<u8>),
    Call {
        args: Option<&'t [u8]>,
        kwargs: Option<&'t [u8]>,
    },
}

#[derive(Default)]
struct Options<'t> {
    content_type: Option<Cow<'t, str>>,
    content_encoding: Option<Cow<'t, str>>,
    correlation_id: Option<Cow<'t, str>>,
    reply_to: Option<Cow<'t, str>>,
    persistent: Option<bool>,
}

impl<'t> Event<'t> {
    /// Checks `task`. `now` is needed for the expiration, which the wire counts from now; `persistent` is what a row gets
    /// that does not say.
    ///
    /// # Errors
    /// Says which column is unfit, and what to write instead.
    pub fn new(task: &'t Task, now: Timestamp, persistent: bool) -> Result<Event<'t>, Unfit> {
        if task.id().is_empty() {
            return Err(Unfit::new("id is empty: nobody could tell a repeat by it"));
        }
        let headers = match json_column(task, Field::Headers, Kind::Object)? {
            Some(headers) => own_headers(headers)?,
            None => None,
        };
        let options = match json_column(task, Field::Options, Kind::Object)? {
            Some(options) => Options::new(options)?,
            None => Options::default(),
        };
        let priority = match task.text(Field::Priority) {
            Some(text) => Some(
                text.parse()
                    .map_err(|_| Unfit::new("priority must be 0 to 255"))?,
            ),
            None => None,
        };
        let expires = moment(task, Field::ExpiresAt)?;
        Ok(Event {
            task,
            content: Content::new(task)?,
            headers,
            persistent: options.persistent.unwrap_or(persistent),
            options,
            priority,
            expiration: expires.map(|at| at.0.saturating_sub(now.0).max(0) as u64 / 1000),
        })
    }

    /// Its properties.
    pub fn basic(&self) -> Basic<'_> {
        let borrowed = |text: &'_ Option<Cow<'t, str>>| text.clone();
        let default = match self.content {
            Content::Body(_) => "application/octet-stream",
            Content::Payload(_) | Content::Call { .. } => "application/json",
        };
        let seconds = self.task.committed_at.to_unix_micros() / 1_000_000;
        Basic {
            content_type: Some(borrowed(&self.options.content_type).unwrap_or(default.into())),
            content_encoding: borrowed(&self.options.content_encoding),
            headers: self.headers().into(),
            delivery_mode: if self.persistent { 2 } else { 1 },
            priority: self.priority,
            correlation_id: borrowed(&self.options.correlation_id),
            reply_to: borrowed(&self.options.reply_to),
            expiration: self.expiration,
            message_id: self.task.id().into(),
            timestamp: u64::try_from(seconds).ok(),
            kind: Some(self.task.name().into()),
            app_id: Some("aftercommit".into()),
        }
    }

    fn headers(&self) -> Vec<u8> {
        let mut out = vec![b'{'];
        if let Some(headers) = self.headers {
            out.extend_from_slice(headers);
            out.push(b',');
        }
        write_name(&mut out, LSN_HEADER);
        out.push(b'"');
        self.task.position.commit_lsn.write(&mut out);
        out.extend_from_slice(b"\",");
        write_name(&mut out, COMMITTED_AT_HEADER);
        write_time(&mut out, Some(self.task.committed_at));
        out.push(b'}');
        out
    }

    /// Appends its body.
    pub fn write_body(&self, out: &mut Vec<u8>) {
        match &self.content {
            Content::Payload(payload) => out.extend_from_slice(payload),
            Content::Body(body) => out.extend_from_slice(body),
            Content::Call { args, kwargs } => {
                out.extend_from_slice(b"{\"id\":");
                json::write_string(out, self.task.id());
                out.extend_from_slice(b",\"task\":");
                json::write_string(out, self.task.name());
                for (name, value) in [("args", args), ("kwargs", kwargs)] {
                    if let Some(value) = value {
                        out.push(b',');
                        write_name(out, name);
                        out.extend_from_slice(value);
                    }
                }
                out.push(b'}');
            }
        }
    }
}

impl<'t> Content<'t> {
    fn new(task: &'t Task) -> Result<Content<'t>, Unfit> {
        let calls = [Field::Args, Field::Kwargs];
        let fields = [Field::Payload, Field::Body].into_iter().chain(calls);
        let given: Vec<Field> = fields.filter(|field| task.get(*field).is_some()).collect();
        match (given.first(), given.get(1)) {
            (Some(first @ (Field::Payload | Field::Body)), Some(second)) => {
                return Err(Unfit::new(format!(
                    "{} and {} exclude each other: a message has one body",
                    first.name(),
                    second.name()
                )));
            }
            (Some(Field::Payload), None) => {
                let payload = task.get(Field::Payload).unwrap_or_default();
                let kind = json::kind(payload).unwrap_or(Kind::Object);
                check_json(task, Field::Payload, kind)
                    .map_err(|defect| Unfit::new(format!("payload {defect}")))?;
                return Ok(Content::Payload(payload));
            }
            (Some(Field::Body), None) => {
                let body = task.get(Field::Body).and_then(decode_bytea);
                let words = "body must be a bytea column (in hexadecimal form)";
                return body.map(Content::Body).ok_or(Unfit::new(words));
            }
            _ => {}
        }
        Ok(Content::Call {
            args: json_column(task, Field::Args, Kind::Array)?,
            kwargs: json_column(task, Field::Kwargs, Kind::Object)?,
        })
    }
}

impl<'t> Options<'t> {
    fn new(text: &'t [u8]) -> Result<Options<'t>, Unfit> {
        let mut options = Options::default();
        for (name, value) in json::members(text, Dialect::Strict).flatten() {
            let shown = || {
                String::from_utf8_lossy(name)
                    .chars()
                    .take(64)
                    .collect::<String>()
            };
            let place = match name {
                b"content_type" => &mut options.content_type,
                b"content_encoding" => &mut options.content_encoding,
                b"correlation_id" => &mut options.correlation_id,
                b"reply_to" => &mut options.reply_to,
                b"delivery_mode" => {
                    options.persistent = match value {
                        b"1" => Some(false),
                        b"2" => Some(true),
                        b"null" => None,
                        _ => {
                            return Err(Unfit::new(
                                "options.delivery_mode must be 1 (transient) or 2 (persistent)",
                            ));
                        }
                    };
                    continue;
                }
                _ => {
                    return Err(Unfit::new(format!(
                        "options.{} is not known to the amqp sink",
                        shown()
                    )));
                }
            };
            *place =
                match json::kind(value) {
                    Some(Kind::Null) => None,
                    _ => Some(json::text(value).ok_or_else(|| {
                        Unfit::new(format!("options.{} must be a string", shown()))
                    })?),
                };
        }
        Ok(options)
    }
}

/// What stands between the braces of a row's headers.
fn own_headers(headers: &[u8]) -> Result<Option<&[u8]>, Unfit> {
    for (name, _) in json::members(headers, Dialect::Strict).flatten() {
        let name = unquoted(name)?;
        if matches!(&*name, LSN_HEADER | COMMITTED_AT_HEADER) {
            return Err(reserved(name.as_bytes()));
        }
    }
    Ok(inside(headers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Position;
    use crate::pg::Lsn;

    const NOW: Timestamp = Timestamp(848_000_000_000_000);

    fn task(fields: &[(Field, &str)]) -> Task {
        let standard = [(Field::Id, "id-1"), (Field::Task, "order.paid")];
        let all = standard.into_iter().chain(fields.iter().copied());
        let position = Position {
            commit_lsn: Lsn(0x100),
            ordinal: 0,
        };
        Task::from_fields(all, position, NOW)
    }

    fn body(fields: &[(Field, &str)]) -> String {
        let task = task(fields);
        let mut out = Vec::new();
        Event::new(&task, NOW, true).unwrap().write_body(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_message_has_one_body() {
        use Field::*;
        for (fields, expected) in [
            (&[][..], "{\"id\":\"id-1\",\"task\":\"order.paid\"}"),
            (
                &[(Kwargs, "{\"a\": 1e2}"), (Args, "[1]")],
                "{\"id\":\"id-1\",\"task\":\"order.paid\",\"args\":[1],\"kwargs\":{\"a\": 1e2}}",
            ),
            (&[(Payload, " {\"n\": 1} ")], " {\"n\": 1} "),
            (&[(Payload, "null")], "null"),
            (&[(Body, "\\x6869")], "hi"),
            (&[(Body, "\\x")], ""),
        ] {
            assert_eq!(body(fields), expected);
        }
    }

    #[test]
    fn a_row_that_is_unfit_says_why() {
        use Field::*;
        for (fields, words) in [
            (
                &[(Payload, "1"), (Body, "\\x00")][..],
                "payload and body exclude",
            ),
            (&[(Payload, "1"), (Args, "[]")], "payload and args exclude"),
            (
                &[(Body, "\\x00"), (Kwargs, "{}")],
                "body and kwargs exclude",
            ),
            (&[(Payload, "{")], "payload is not JSON"),
            (&[(Args, "{}")], "args must be an array"),
            (&[(Body, "hi")], "bytea"),
            (&[(Headers, "[]")], "headers must be an object"),
            (&[(Headers, "{\"aftercommit-\\u006csn\": 1}")], "reserved"),
            (&[(Priority, "256")], "priority"),
            (&[(ExpiresAt, "-infinity")], "never run"),
            (
                &[(Options, "{\"countdown\": 1}")],
                "options.countdown is not known",
            ),
            (
                &[(Options, "{\"reply_to\": 1}")],
                "options.reply_to must be",
            ),
            (&[(Options, "{\"delivery_mode\": 3}")], "delivery_mode"),
            (&[(Id, "")], "id is empty"),
        ] {
            let task = task(fields);
            let error = Event::new(&task, NOW, true).err().expect(words);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn properties_say_what_the_row_says() {
        use Field::*;
        let row = task(&[
            (Headers, "{\"a\": 1}"),
            (Priority, "200"),
            (ExpiresAt, "2026-11-14 20:26:50+00"),
            (
                Options,
                "{\"content_type\": \"text/x\", \"correlation_id\": \"c\", \"reply_to\": null, \"delivery_mode\": 1}",
            ),
        ]);
        let event = Event::new(&row, NOW, true).unwrap();
        let basic = event.basic();
        assert_eq!(
            String::from_utf8_lossy(&basic.headers),
            "{\"a\": 1,\"aftercommit-lsn\":\"0/100\",\"aftercommit-committed-at\":\"2026-11-14T19:33:20.000000+00:00\"}"
        );
        assert_eq!(basic.content_type.as_deref(), Some("text/x"));
        assert_eq!(basic.correlation_id.as_deref(), Some("c"));
        assert_eq!((basic.reply_to, basic.delivery_mode), (None, 1));
        assert_eq!(basic.priority, Some(200));
        assert_eq!(basic.expiration, Some(3_210_000));
        assert_eq!(basic.timestamp, Some(1_794_684_800));
        assert_eq!(
            (&*basic.message_id, basic.kind.as_deref()),
            ("id-1", Some("order.paid"))
        );
        let row = task(&[(Body, "\\x00")]);
        let event = Event::new(&row, NOW, false).unwrap();
        assert_eq!(event.basic().delivery_mode, 1);
        assert_eq!(
            event.basic().content_type.as_deref(),
            Some("application/octet-stream")
        );
    }
}
