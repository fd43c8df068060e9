//! A task as a value with headers, for brokers that take just that: Kafka, SQS.
//!
//! `aftercommit-id`, `aftercommit-task` and `aftercommit-lsn` are in every message; `aftercommit-committed-at`, `-priority` and
//! `-expires-at` where there is one; `content-type`; then the row's own headers.

use std::borrow::Cow;

use serde::Deserialize;

use super::celery::{COMMITTED_AT_HEADER, LSN_HEADER, json_column};
use super::event::{self, Content};
use super::json::{self, Dialect, Kind};
use super::{Unfit, plain};
use crate::outbox::{Field, Task};
use crate::pg::Moment;

/// The content type of a CloudEvent in structured mode.
const CLOUD_EVENT: &str = "application/cloudevents+json";

/// What the value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The row as one JSON object.
    #[default]
    Json,
    /// Its payload or body, as it is.
    Payload,
    /// A CloudEvent in structured mode: one JSON object.
    CloudeventsStructured,
}

/// What a task is sent as.
pub struct Parcel<'t> {
    /// The value.
    pub value: Cow<'t, [u8]>,
    /// Names and texts; the names differ but for their case.
    pub headers: Vec<Header<'t>>,
}

/// A name and its text.
pub type Header<'t> = (Cow<'t, str>, Cow<'t, str>);

impl<'t> Parcel<'t> {
    /// Makes it. `source` is that of CloudEvents.
    ///
    /// # Errors
    /// Says which column is unfit.
    pub fn new(format: Format, source: &str, task: &'t Task) -> Result<Parcel<'t>, Unfit> {
        if task.id().is_empty() {
            return Err(Unfit::new("id is empty: nobody could tell a repeat by it"));
        }
        let (value, content_type) = match format {
            Format::Json => {
                let mut out = Vec::with_capacity(task.size() + 256);
                plain::write(&mut out, task)?;
                (Cow::Owned(out), Cow::Borrowed(event::JSON))
            }
            Format::CloudeventsStructured => {
                let mut out = Vec::with_capacity(task.size() + 256);
                event::write_cloud_event(&mut out, task, source)?;
                (Cow::Owned(out), Cow::Borrowed(CLOUD_EVENT))
            }
            Format::Payload => {
                let ready = Content::ready(task)?.ok_or(Unfit::new(
                    "payload and body are NULL, and the sink sends nothing else (format = \"payload\")",
                ))?;
                (ready.bytes, ready.content_type)
            }
        };
        Ok(Parcel {
            value,
            headers: headers(task, content_type)?,
        })
    }
}

fn headers<'t>(task: &'t Task, content_type: Cow<'t, str>) -> Result<Vec<Header<'t>>, Unfit> {
    let lsn = task.position.commit_lsn.to_string();
    let mut headers: Vec<Header<'t>> = vec![
        ("aftercommit-id".into(), task.id().into()),
        ("aftercommit-task".into(), task.name().into()),
        (LSN_HEADER.into(), lsn.into()),
    ];
    if let Some(time) = task.committed_at.rfc3339() {
        let time = time.as_str().to_owned();
        headers.push((COMMITTED_AT_HEADER.into(), time.into()));
    }
    if let Some(priority) = task.text(Field::Priority) {
        if priority.parse::<i64>().is_err() {
            return Err(Unfit::new("priority must be a whole number"));
        }
        headers.push(("aftercommit-priority".into(), priority.into()));
    }
    if let Some(at) = expiry(task)? {
        headers.push(("aftercommit-expires-at".into(), at.into()));
    }
    headers.push(("content-type".into(), content_type));
    let own = headers.len();
    let Some(text) = json_column(task, Field::Headers, Kind::Object)? else {
        return Ok(headers);
    };
    for member in json::members(text, Dialect::Strict) {
        let (name, value) = member.map_err(|defect| Unfit::new(format!("headers {defect}")))?;
        let name = name_of(name)?;
        let value = match json::kind(value) {
            Some(Kind::Null) => continue,
            Some(Kind::String) => json::text(value),
            Some(Kind::Number | Kind::Boolean) => std::str::from_utf8(value).ok().map(Cow::from),
            _ => None,
        };
        let words = "must be a string, a number or a boolean";
        let value = value.ok_or_else(|| Unfit::new(format!("headers.{name} {words}")))?;
        let is_known = |(known, _): &Header<'_>| known.eq_ignore_ascii_case(name);
        if headers.iter().skip(own).any(is_known) {
            return Err(Unfit::new(format!("headers.{name} is there twice")));
        }
        headers.push((name.into(), value));
    }
    Ok(headers)
}

fn expiry(task: &Task) -> Result<Option<String>, Unfit> {
    let Some(text) = task.get(Field::ExpiresAt) else {
        return Ok(None);
    };
    let at = match Moment::parse(text) {
        Ok(Moment::Never) => return Ok(None),
        Ok(Moment::At(at)) => at.rfc3339(),
        Ok(Moment::Past) => None,
        Err(defect) => return Err(Unfit::new(format!("expires_at is {defect}"))),
    };
    let at = at.ok_or(Unfit::new("expires_at must be in the years 1 to 9999"))?;
    Ok(Some(at.as_str().to_owned()))
}

/// A header's name: visible ASCII without a colon, as HTTP has it, and none of ours.
fn name_of(name: &[u8]) -> Result<&str, Unfit> {
    let is_good = |b: &u8| b.is_ascii_graphic() && !matches!(b, b':' | b'"' | b'\\');
    let good = !name.is_empty() && name.len() <= 256 && name.iter().all(is_good);
    let Some(text) = std::str::from_utf8(name).ok().filter(|_| good) else {
        return Err(Unfit::new(
            "a name in headers is empty, long, or has something else in it than visible ASCII without : \" and \\",
        ));
    };
    let is_ours = text
        .get(.."aftercommit-".len())
        .is_some_and(|start| start.eq_ignore_ascii_case("aftercommit-"));
    if is_ours || text.eq_ignore_ascii_case("content-type") {
        return Err(Unfit::new(format!(
            "headers.{text} is reserved: a header of the application needs a name of its own"
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Position;
    use crate::pg::{Lsn, Timestamp};

    fn made(format: Format, fields: &[(Field, &'static str)]) -> Result<String, String> {
        let all = [(Field::Id, "7"), (Field::Task, "shop.paid")];
        let all = all.into_iter().chain(fields.iter().copied());
        let position = Position {
            commit_lsn: Lsn(0x1_0000_0100),
            ordinal: 0,
        };
        let task = Task::from_fields(all, position, Timestamp(0));
        let parcel = Parcel::new(format, "/shop", &task);
        let parcel = parcel.map_err(|unfit| unfit.to_string())?;
        let mut text = String::new();
        for (name, value) in &parcel.headers {
            text.push_str(&format!("{name}={value};"));
        }
        text.push_str(std::str::from_utf8(&parcel.value).expect("UTF-8"));
        Ok(text)
    }

    #[test]
    fn a_whole_one() {
        let fields = [
            (Field::Payload, "{\"n\": 1}"),
            (Field::Priority, "5"),
            (Field::ExpiresAt, "2000-01-01 01:00:00+00"),
            (
                Field::Headers,
                "{\"traceparent\": \"00-\\u00e4\", \"n\": 1.50, \"none\": null}",
            ),
        ];
        let headers = "aftercommit-id=7;aftercommit-task=shop.paid;aftercommit-lsn=1/100;\
             aftercommit-committed-at=2000-01-01T00:00:00.000000+00:00;aftercommit-priority=5;\
             aftercommit-expires-at=2000-01-01T01:00:00.000000+00:00;content-type=";
        let own = "traceparent=00-ä;n=1.50;";
        assert_eq!(
            made(Format::Payload, &fields).unwrap(),
            format!("{headers}application/json;{own}{{\"n\": 1}}")
        );
        let event = made(Format::CloudeventsStructured, &fields).unwrap();
        assert!(
            event.starts_with(&format!(
                "{headers}{CLOUD_EVENT};{own}{{\"specversion\":\"1.0\""
            )),
            "{event}"
        );
        let json = made(Format::Json, &fields).unwrap();
        assert!(
            json.contains(";{\"id\":\"7\",\"task\":\"shop.paid\""),
            "{json}"
        );
        assert!(made(Format::Json, &[(Field::Headers, "null")]).is_ok());
        assert!(made(Format::Json, &[(Field::ExpiresAt, "infinity")]).is_ok());
    }

    #[test]
    fn what_is_unfit_is_refused_in_words() {
        for (field, value, words) in [
            (Field::Id, "", "id is empty"),
            (Field::Payload, "{no", "payload"),
            (Field::Priority, "high", "priority must be"),
            (Field::ExpiresAt, "-infinity", "years 1 to 9999"),
            (Field::ExpiresAt, "tomorrow", "expires_at is"),
            (Field::Headers, "[]", "headers must be"),
            (Field::Headers, "{\"a\": [1]}", "headers.a must be"),
            (Field::Headers, "{\"a b\": 1}", "a name in headers"),
            (
                Field::Headers,
                "{\"a\": 1, \"A\": 2}",
                "headers.A is there twice",
            ),
            (Field::Headers, "{\"Aftercommit-id\": \"1\"}", "reserved"),
            (Field::Headers, "{\"Content-Type\": \"1\"}", "reserved"),
        ] {
            let error = made(Format::Json, &[(field, value)]).unwrap_err();
            assert!(error.contains(words), "{field:?} {words}: {error}");
        }
        let error = made(Format::Payload, &[]).unwrap_err();
        assert!(error.contains("payload and body are NULL"), "{error}");
    }
}
