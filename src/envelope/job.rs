//! What the messages of job queues have in common: args and kwargs, and `options` and `headers` that become members of one
//! object, each checked by its name. A member of the wrong form makes a worker fail where it cannot retry.

use super::celery::{COMMITTED_AT_HEADER, LSN_HEADER, json_column, write_name, write_time};
use super::json::{self, Dialect, Kind};
use super::{Unfit, celery};
use crate::outbox::{Field, Task};
use crate::pg::Timestamp;

/// What may stand under a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Text,
    Flag,
    /// A whole number from 0.
    Count,
    CountOrFlag,
    /// The same, or `null`, which says something.
    CountOrNull,
    Number,
    Object,
    Texts,
    /// Checked by the envelope.
    Other,
    /// Nobody's business but the application's.
    Free,
    /// A column says it.
    Column(&'static str),
    /// The queue's own.
    Internal,
    /// More than a message.
    NotOffered,
}

/// The names that a queue knows.
pub(super) type Rules = fn(&[u8]) -> Rule;

/// Checks id, name, and that the row is a call.
pub(super) fn check_call(task: &Task, queue: &str) -> Result<(), Unfit> {
    if task.id().is_empty() {
        return Err(Unfit::new("id is empty: workers need one"));
    }
    if task.name().is_empty() {
        return Err(Unfit::new(format!(
            "task is empty: it must name what {queue} is to run"
        )));
    }
    for field in [Field::Payload, Field::Body] {
        if task.get(field).is_some() {
            return Err(Unfit::new(format!(
                "{} is set, but a job of {queue} takes args and kwargs: fill these, or map the column to one of them \
                 ([outbox.columns])",
                field.name()
            )));
        }
    }
    Ok(())
}

/// The positional arguments.
pub(super) fn args(task: &Task) -> Result<&[u8], Unfit> {
    Ok(json_column(task, Field::Args, Kind::Array)?.unwrap_or(b"[]"))
}

/// The keyword arguments.
pub(super) fn kwargs(task: &Task) -> Result<&[u8], Unfit> {
    Ok(json_column(task, Field::Kwargs, Kind::Object)?.unwrap_or(b"{}"))
}

/// When it is to run, if that is not now.
pub(super) fn run_at(task: &Task, now: Timestamp) -> Result<Option<Timestamp>, Unfit> {
    let at = celery::moment(task, Field::RunAt)?;
    Ok(at.filter(|at| *at > now))
}

/// Options and headers of a row, checked.
pub(super) struct Members<'t> {
    options: &'t [u8],
    headers: &'t [u8],
    rules: Rules,
}

impl<'t> Members<'t> {
    pub(super) fn new(task: &'t Task, rules: Rules) -> Result<Members<'t>, Unfit> {
        let object = |field| json_column(task, field, Kind::Object);
        let members = Members {
            options: object(Field::Options)?.unwrap_or(b"{}"),
            headers: object(Field::Headers)?.unwrap_or(b"{}"),
            rules,
        };
        for (name, value) in json::members(members.options, Dialect::Strict).flatten() {
            check("options", name)?;
            check_option(name, value, rules(name))?;
        }
        for (name, _) in json::members(members.headers, Dialect::Strict).flatten() {
            check("headers", name)?;
            if rules(name) != Rule::Free {
                return Err(celery::reserved(name));
            }
        }
        Ok(members)
    }

    /// An option's value; the last one, if there are several.
    pub(super) fn option(&self, name: &str) -> Option<&'t [u8]> {
        let all = json::members(self.options, Dialect::Strict).flatten();
        let found = all.filter(|(known, _)| *known == name.as_bytes()).last();
        found.map(|(_, value)| value)
    }

    /// Whether an option is given, and not as null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.option(name)
            .is_some_and(|value| json::kind(value) != Some(Kind::Null))
    }

    /// The deepest place in them.
    pub(super) fn depth(&self) -> usize {
        json::depth(self.options).max(json::depth(self.headers))
    }

    /// Appends them all, each with a comma before it; then the commit's LSN and time.
    pub(super) fn write(&self, out: &mut Vec<u8>, task: &Task) {
        for object in [self.options, self.headers] {
            for (name, value) in json::members(object, Dialect::Strict).flatten() {
                let is_null = json::kind(value) == Some(Kind::Null);
                if is_null && !matches!((self.rules)(name), Rule::CountOrNull | Rule::Free) {
                    continue;
                }
                out.extend_from_slice(b",\"");
                out.extend_from_slice(name);
                out.extend_from_slice(b"\":");
                out.extend_from_slice(value);
            }
        }
        out.push(b',');
        write_name(out, LSN_HEADER);
        json::write_string(out, &task.position.commit_lsn.to_string());
        out.push(b',');
        write_name(out, COMMITTED_AT_HEADER);
        write_time(out, Some(task.committed_at));
    }
}

/// Names are compared as they are written.
fn check(column: &str, name: &[u8]) -> Result<(), Unfit> {
    let words = if name.contains(&b'\\') {
        "has a name with an escape: write it as it is"
    } else if [LSN_HEADER, COMMITTED_AT_HEADER]
        .map(str::as_bytes)
        .contains(&name)
    {
        "has a name that is the daemon's own"
    } else {
        return Ok(());
    };
    Err(Unfit::new(format!("{column} {words}")))
}

fn check_option(name: &[u8], value: &[u8], rule: Rule) -> Result<(), Unfit> {
    let shown = String::from_utf8_lossy(name);
    let kind = json::kind(value);
    let is_count = value.len() <= 15 && value.iter().all(u8::is_ascii_digit);
    let is_flag = kind == Some(Kind::Boolean);
    let (fits, words) = match rule {
        Rule::Column(column) => {
            return Err(Unfit::new(format!(
                "options.{shown} is no option: set the column {column} instead"
            )));
        }
        Rule::Internal => {
            return Err(Unfit::new(format!(
                "options.{shown} is no option: workers keep their own notes under this name"
            )));
        }
        Rule::NotOffered => {
            return Err(Unfit::new(format!(
                "options.{shown} is not offered: it needs more than the job"
            )));
        }
        Rule::Free | Rule::Other => return Ok(()),
        _ if kind == Some(Kind::Null) => return Ok(()),
        Rule::Text => (json::text(value).is_some(), "a string"),
        Rule::Flag => (is_flag, "true or false"),
        Rule::Count => (is_count, "a whole number from 0"),
        Rule::CountOrNull => (is_count, "a whole number from 0, or null"),
        Rule::CountOrFlag => (is_count || is_flag, "true, false or a whole number from 0"),
        Rule::Number => (
            kind == Some(Kind::Number) && !value.starts_with(b"-") && value.len() <= 15,
            "a number from 0",
        ),
        Rule::Object => (kind == Some(Kind::Object), "an object"),
        Rule::Texts => (is_texts(value), "a list of strings"),
    };
    match fits {
        true => Ok(()),
        false => Err(Unfit::new(format!("options.{shown} must be {words}"))),
    }
}

fn is_texts(value: &[u8]) -> bool {
    json::kind(value) == Some(Kind::Array)
        && json::elements(value, Dialect::Strict)
            .all(|element| element.is_ok_and(|text| json::text(text).is_some()))
}
