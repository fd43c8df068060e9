//! What a task carries, for those who take events: the content by itself, or as a CloudEvent (specification 1.0.2).
//!
//! The content is the payload, or else the body that the application has built, or else the call: `{"args": …, "kwargs": …}`.
//! As a CloudEvent, `type` is the task's name, `time` that of the commit, and the key is the extension `partitionkey`.

use std::borrow::Cow;

use super::celery::json_column;
use super::json::{self, Dialect, Kind};
use super::{Unfit, check_json, decode_bytea, kombu};
use crate::outbox::{Field, Task};

/// The content type of JSON.
pub const JSON: &str = "application/json";

/// The content type of a body that says none.
const BYTES: &str = "application/octet-stream";

/// What a task carries.
#[derive(Clone, PartialEq, Eq)]
pub struct Content<'t> {
    /// As it is to be sent.
    pub bytes: Cow<'t, [u8]>,
    /// What it is.
    pub content_type: Cow<'t, str>,
    /// It is one of our JSON columns, or made of them.
    pub is_json: bool,
}

impl<'t> Content<'t> {
    /// What the task carries ready-made: its payload or its body. `None` where it has neither.
    ///
    /// # Errors
    /// Says which column is unfit.
    pub fn ready(task: &'t Task) -> Result<Option<Content<'t>>, Unfit> {
        match (task.get(Field::Payload), task.get(Field::Body)) {
            (Some(_), Some(_)) => Err(Unfit::new("payload and body exclude each other")),
            (None, None) => Ok(None),
            (Some(payload), None) => {
                let kind = json::kind(payload).unwrap_or(Kind::Object);
                check_json(task, Field::Payload, kind)
                    .map_err(|defect| Unfit::new(format!("payload {defect}")))?;
                Ok(Some(Content {
                    bytes: Cow::Borrowed(payload),
                    content_type: Cow::Borrowed(JSON),
                    is_json: true,
                }))
            }
            (None, Some(body)) => {
                let body = decode_bytea(body).ok_or(Unfit::new(
                    "body must be a bytea column (in hexadecimal form)",
                ))?;
                Ok(Some(Content {
                    bytes: Cow::Owned(body),
                    content_type: content_type(task)?.unwrap_or(Cow::Borrowed(BYTES)),
                    is_json: false,
                }))
            }
        }
    }

    /// What the task carries: ready-made, or its arguments.
    ///
    /// # Errors
    /// Says which column is unfit.
    pub fn of(task: &'t Task) -> Result<Content<'t>, Unfit> {
        if let Some(ready) = Content::ready(task)? {
            return Ok(ready);
        }
        let args = json_column(task, Field::Args, Kind::Array)?.unwrap_or(b"[]");
        let kwargs = json_column(task, Field::Kwargs, Kind::Object)?.unwrap_or(b"{}");
        let bytes = [b"{\"args\":", args, b",\"kwargs\":", kwargs, b"}"].concat();
        Ok(Content {
            bytes: Cow::Owned(bytes),
            content_type: Cow::Borrowed(JSON),
            is_json: true,
        })
    }
}

/// `options.content_type`.
fn content_type(task: &Task) -> Result<Option<Cow<'_, str>>, Unfit> {
    let Some(options) = json_column(task, Field::Options, Kind::Object)? else {
        return Ok(None);
    };
    let given = json::members(options, Dialect::Strict)
        .flatten()
        .filter(|(name, value)| *name == b"content_type" && json::kind(value) != Some(Kind::Null))
        .last();
    let Some((_, value)) = given else {
        return Ok(None);
    };
    let text = json::text(value).filter(|text| !text.is_empty());
    text.map(Some)
        .ok_or(Unfit::new("options.content_type must be a string"))
}

/// Appends the task as a CloudEvent in the JSON format (structured mode).
///
/// # Errors
/// Says which column is unfit; then only a part is written.
pub fn write_cloud_event(out: &mut Vec<u8>, task: &Task, source: &str) -> Result<(), Unfit> {
    let content = Content::of(task)?;
    out.extend_from_slice(b"{\"specversion\":\"1.0\",\"id\":");
    json::write_string(out, task.id());
    out.extend_from_slice(b",\"source\":");
    json::write_string(out, source);
    out.extend_from_slice(b",\"type\":");
    json::write_string(out, task.name());
    if let Some(time) = task.committed_at.rfc3339() {
        out.extend_from_slice(b",\"time\":");
        json::write_string(out, time.as_str());
    }
    if let Some(key) = task.text(Field::Key) {
        out.extend_from_slice(b",\"partitionkey\":");
        json::write_string(out, key);
    }
    out.extend_from_slice(b",\"datacontenttype\":");
    json::write_string(out, &content.content_type);
    if content.is_json {
        out.extend_from_slice(b",\"data\":");
        json::write_on_one_line(out, &content.bytes);
    } else {
        out.extend_from_slice(b",\"data_base64\":\"");
        kombu::write_base64(out, &content.bytes);
        out.push(b'"');
    }
    out.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Position;
    use crate::pg::Timestamp;

    fn task(fields: &[(Field, &'static str)]) -> Task {
        let all = [(Field::Id, "7"), (Field::Task, "shop.paid")];
        let all = all.into_iter().chain(fields.iter().copied());
        Task::from_fields(all, Position::default(), Timestamp(0))
    }

    #[test]
    fn what_a_task_carries() {
        for (fields, bytes, content_type) in [
            (&[][..], "{\"args\":[],\"kwargs\":{}}", JSON),
            (
                &[(Field::Args, "[1 ,2]"), (Field::Kwargs, "{\"a\": 1}")],
                "{\"args\":[1 ,2],\"kwargs\":{\"a\": 1}}",
                JSON,
            ),
            (&[(Field::Payload, " [\"x\"]")], " [\"x\"]", JSON),
            (&[(Field::Payload, "null")], "null", JSON),
            (&[(Field::Body, "\\x6869")], "hi", BYTES),
            (
                &[
                    (Field::Body, "\\x6869"),
                    (Field::Options, "{\"content_type\": \"text/plain\"}"),
                ],
                "hi",
                "text/plain",
            ),
        ] {
            let task = task(fields);
            let content = Content::of(&task).expect("it is fit");
            assert_eq!(content.bytes, bytes.as_bytes());
            assert_eq!(content.content_type, content_type);
        }
        assert!(matches!(Content::ready(&task(&[])), Ok(None)));
    }

    #[test]
    fn what_is_unfit_is_refused() {
        for fields in [
            &[(Field::Payload, "{no")][..],
            &[(Field::Payload, "1"), (Field::Body, "\\x00")],
            &[(Field::Body, "hi")],
            &[(Field::Args, "{}")],
            &[(Field::Kwargs, "[]")],
            &[
                (Field::Body, "\\x00"),
                (Field::Options, "{\"content_type\": 1}"),
            ],
            &[(Field::Body, "\\x00"), (Field::Options, "[]")],
        ] {
            assert!(Content::of(&task(fields)).is_err(), "{fields:?}");
        }
    }

    #[test]
    fn a_cloud_event_is_json() {
        let mut out = Vec::new();
        let with_key = task(&[(Field::Key, "a\"b"), (Field::Payload, "{\n\"n\": 1}")]);
        write_cloud_event(&mut out, &with_key, "/shop").expect("it is fit");
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "{\"specversion\":\"1.0\",\"id\":\"7\",\"source\":\"/shop\",\"type\":\"shop.paid\",\
             \"time\":\"2000-01-01T00:00:00.000000+00:00\",\"partitionkey\":\"a\\\"b\",\
             \"datacontenttype\":\"application/json\",\"data\":{ \"n\": 1}}"
        );
        let mut out = Vec::new();
        write_cloud_event(&mut out, &task(&[(Field::Body, "\\xff00")]), "/shop")
            .expect("it is fit");
        let event: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(event["data_base64"], "/wA=");
        assert_eq!(event["datacontenttype"], BYTES);
    }
}
