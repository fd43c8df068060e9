//! A task as a NATS message: its headers and its body, pure.
//!
//! `Nats-Msg-Id` is the task's id, by which a stream drops repeats. `aftercommit-task`, `aftercommit-lsn` and
//! `aftercommit-committed-at` are in every message; `aftercommit-priority` and `aftercommit-expires-at` where the row has them; the
//! row's own headers follow. Names that begin with `Nats-` are orders to the server, and refused in a row.

use std::borrow::Cow;
use std::io::Write as _;

use crate::envelope::celery::{COMMITTED_AT_HEADER, LSN_HEADER};
use crate::envelope::json::{self, Dialect, Kind};
use crate::envelope::{Unfit, check_json};
use crate::outbox::{Field, Task};
use crate::pg::Moment;

/// A stream stores no larger block of headers.
const MAX_HEADERS: usize = u16::MAX as usize;

/// The stream's last message has to be this one.
const GUARD: &str = "Nats-Expected-Last-Msg-Id";

/// Appends the block of headers, from its first line to its empty one.
///
/// # Errors
/// The column that does not do.
pub(super) fn write_headers(
    out: &mut Vec<u8>,
    task: &Task,
    content_type: &str,
    stream: Option<&str>,
    behind: Option<&Task>,
) -> Result<(), Unfit> {
    let start = out.len();
    out.extend_from_slice(b"NATS/1.0\r\n");
    let id = task.id();
    if id.is_empty() || id.trim() != id {
        return Err(Unfit::new(
            "id is empty, or begins or ends with a space: streams know repeats by it",
        ));
    }
    line(out, "Nats-Msg-Id", id).map_err(|words| Unfit::new(format!("id {words}")))?;
    if let Some(stream) = stream {
        plain(out, "Nats-Expected-Stream", stream);
    }
    if let Some(behind) = behind {
        plain(out, GUARD, behind.id());
    }
    line(out, "aftercommit-task", task.name())
        .map_err(|words| Unfit::new(format!("task {words}")))?;
    out.extend_from_slice(LSN_HEADER.as_bytes());
    out.extend_from_slice(b": ");
    task.position.commit_lsn.write(out);
    out.extend_from_slice(b"\r\n");
    if let Some(time) = task.committed_at.rfc3339() {
        plain(out, COMMITTED_AT_HEADER, time.as_str());
    }
    if let Some(priority) = task.text(Field::Priority) {
        if priority.parse::<i64>().is_err() {
            return Err(Unfit::new("priority must be a whole number"));
        }
        plain(out, "aftercommit-priority", priority);
    }
    write_expiry(out, task)?;
    line(out, "Content-Type", content_type)
        .map_err(|words| Unfit::new(format!("options.content_type {words}")))?;
    write_own(out, task)?;
    out.extend_from_slice(b"\r\n");
    if out.len() - start > MAX_HEADERS {
        return Err(Unfit::new(format!(
            "headers are larger than the {MAX_HEADERS} bytes that a stream stores"
        )));
    }
    Ok(())
}

fn write_expiry(out: &mut Vec<u8>, task: &Task) -> Result<(), Unfit> {
    let Some(text) = task.get(Field::ExpiresAt) else {
        return Ok(());
    };
    let at = match Moment::parse(text) {
        Ok(Moment::Never) => return Ok(()),
        Ok(Moment::At(at)) => at.rfc3339(),
        Ok(Moment::Past) => None,
        Err(defect) => return Err(Unfit::new(format!("expires_at is {defect}"))),
    };
    let at = at.ok_or(Unfit::new("expires_at must be in the years 1 to 9999"))?;
    plain(out, "aftercommit-expires-at", at.as_str());
    Ok(())
}

/// The row's own headers: strings as they are, other scalars as JSON writes them; null is none.
fn write_own(out: &mut Vec<u8>, task: &Task) -> Result<(), Unfit> {
    let Some(headers) = task.get(Field::Headers) else {
        return Ok(());
    };
    if json::kind(headers) == Some(Kind::Null) {
        return Ok(());
    }
    check_json(task, Field::Headers, Kind::Object)
        .map_err(|defect| Unfit::new(format!("headers {defect}")))?;
    for member in json::members(headers, Dialect::Strict) {
        let (name, value) = member.map_err(|defect| Unfit::new(format!("headers {defect}")))?;
        let name = name_of(name)?;
        let value = match json::kind(value) {
            Some(Kind::Null) => continue,
            Some(Kind::String) => json::text(value),
            Some(Kind::Number | Kind::Boolean) => {
                std::str::from_utf8(value).ok().map(Cow::Borrowed)
            }
            _ => None,
        };
        let value = value.ok_or_else(|| {
            Unfit::new(format!(
                "headers.{name} must be a string, a number or a boolean"
            ))
        })?;
        line(out, name, &value).map_err(|words| Unfit::new(format!("headers.{name} {words}")))?;
    }
    Ok(())
}

/// A header's name: visible ASCII without a colon, as HTTP has it, and none of the server's or ours.
fn name_of(name: &[u8]) -> Result<&str, Unfit> {
    let is_good = |b: &u8| b.is_ascii_graphic() && !matches!(b, b':' | b'"' | b'\\');
    let good = !name.is_empty() && name.len() <= 256 && name.iter().all(is_good);
    let Some(text) = std::str::from_utf8(name).ok().filter(|_| good) else {
        return Err(Unfit::new(
            "a name in headers is empty, long, or has something else in it than visible ASCII without : \" and \\",
        ));
    };
    let begins = |prefix: &str| {
        text.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    if begins("nats-") || begins("aftercommit-") || text.eq_ignore_ascii_case("content-type") {
        return Err(Unfit::new(format!(
            "headers.{text} is reserved: a header of the application needs a name of its own"
        )));
    }
    Ok(text)
}

/// Appends a header whose value comes from outside.
fn line(out: &mut Vec<u8>, name: &str, value: &str) -> Result<(), &'static str> {
    if value.contains(char::is_control) {
        return Err("has a line break or another control character in it, which a header may not");
    }
    plain(out, name, value);
    Ok(())
}

fn plain(out: &mut Vec<u8>, name: &str, value: &str) {
    // Writing to a Vec does not fail.
    let _ = write!(out, "{name}: {value}\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Position;
    use crate::pg::{Lsn, Timestamp};

    fn task(fields: &[(Field, &'static str)]) -> Task {
        let all = [(Field::Id, "7"), (Field::Task, "shop.paid")];
        let all = all.into_iter().chain(fields.iter().copied());
        let position = Position {
            commit_lsn: Lsn(0x1_0000_0100),
            ordinal: 0,
        };
        Task::from_fields(all, position, Timestamp(0))
    }

    fn headers(fields: &[(Field, &'static str)]) -> Result<String, String> {
        let mut out = Vec::new();
        match write_headers(&mut out, &task(fields), "text/plain", None, None) {
            Ok(()) => Ok(String::from_utf8(out).expect("UTF-8")),
            Err(unfit) => Err(unfit.into_words().into_owned()),
        }
    }

    #[test]
    fn a_whole_block() {
        let mut out = Vec::new();
        let fields = [
            (Field::Priority, "5"),
            (Field::ExpiresAt, "2000-01-01 01:00:00+00"),
            (
                Field::Headers,
                "{\"traceparent\": \"00-\\u00e4\", \"n\": 1.50, \"yes\": true, \"none\": null}",
            ),
        ];
        let before = task(&[]);
        write_headers(
            &mut out,
            &task(&fields),
            "a/b",
            Some("TASKS"),
            Some(&before),
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NATS/1.0\r\nNats-Msg-Id: 7\r\nNats-Expected-Stream: TASKS\r\nNats-Expected-Last-Msg-Id: 7\r\n\
             aftercommit-task: shop.paid\r\naftercommit-lsn: 1/100\r\n\
             aftercommit-committed-at: 2000-01-01T00:00:00.000000+00:00\r\naftercommit-priority: 5\r\n\
             aftercommit-expires-at: 2000-01-01T01:00:00.000000+00:00\r\nContent-Type: a/b\r\n\
             traceparent: 00-ä\r\nn: 1.50\r\nyes: true\r\n\r\n"
        );
        assert!(headers(&[(Field::ExpiresAt, "infinity")]).is_ok());
        assert!(headers(&[(Field::Headers, "null")]).is_ok());
        assert!(headers(&[(Field::Headers, "{}")]).is_ok());
    }

    #[test]
    fn what_would_harm_is_refused() {
        let long: &'static str =
            Box::leak(format!("{{\"a\": \"{}\"}}", "x".repeat(70_000)).into_boxed_str());
        for (field, value, words) in [
            (Field::Id, "", "id is empty"),
            (Field::Id, " 7", "id is empty, or begins"),
            (Field::Id, "7\r\nA: b", "id has a line break"),
            (Field::Task, "a\nb", "task has a line break"),
            (Field::Priority, "high", "priority"),
            (Field::ExpiresAt, "-infinity", "years 1 to 9999"),
            (Field::ExpiresAt, "tomorrow", "expires_at is"),
            (Field::Headers, "[]", "headers must be"),
            (Field::Headers, "{\"a\": [1]}", "headers.a must be"),
            (Field::Headers, "{\"a\": {}}", "headers.a must be"),
            (
                Field::Headers,
                "{\"a\": \"x\\r\\nb: c\"}",
                "headers.a has a line break",
            ),
            (
                Field::Headers,
                "{\"a\": \"\\u0000\"}",
                "headers.a has a line break",
            ),
            (Field::Headers, "{\"a: b\": 1}", "a name in headers"),
            (Field::Headers, "{\"a b\": 1}", "a name in headers"),
            (Field::Headers, "{\"\": 1}", "a name in headers"),
            (Field::Headers, "{\"\\u0061\": 1}", "a name in headers"),
            (Field::Headers, "{\"NATS-Rollup\": \"all\"}", "reserved"),
            (Field::Headers, "{\"Nats-Msg-Id\": \"1\"}", "reserved"),
            (Field::Headers, "{\"aftercommit-lsn\": \"1\"}", "reserved"),
            (Field::Headers, long, "larger than"),
        ] {
            let error = headers(&[(field, value)]).unwrap_err();
            assert!(error.contains(words), "{field:?} {words}: {error}");
        }
    }
}
