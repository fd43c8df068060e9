//! Tasks as entries of a stream, or as messages of a list.

use std::borrow::Cow;
use std::time::Duration;

use super::Push;
use super::batch::{Group, Kind};
use super::form::{Fit, Form, Look, Write};
use super::message::{self, Format};
use super::script::{self, WORDING};
use crate::clock;
use crate::envelope::Unfit;
use crate::envelope::template::Template;
use crate::outbox::{Field, Position, Task};
use crate::pg::Timestamp;
use crate::sink::redis_client::outcome::Wording;
use crate::sink::redis_client::resp;

/// Between two rows of a transaction there is room for so many ids.
const ROOM: u64 = 1_000_000;

/// Where no name is known, rights for commands are looked for with a key that we may use.
const OURS: &[u8] = b"aftercommit:marks:1:";

/// Entries of streams.
pub(super) struct Entries {
    pub(super) stream: Template,
    pub(super) format: Format,
    pub(super) maxlen: Option<u64>,
    pub(super) max_age: Duration,
}

/// Messages of lists.
pub(super) struct Messages {
    pub(super) list: Template,
    pub(super) format: Format,
    pub(super) push: Push,
}

impl Form for Entries {
    fn wording(&self) -> &'static Wording {
        &WORDING
    }

    fn script(&self) -> &'static [u8] {
        script::PUSH_TO_STREAMS
    }

    fn how(&self, _group: &Group) -> (Cow<'static, [u8]>, String) {
        if !self.max_age.is_zero() {
            let age = i64::try_from(self.max_age.as_micros()).unwrap_or(i64::MAX);
            let oldest = Timestamp(clock::now().0.saturating_sub(age)).rfc3339();
            let oldest = oldest.map(|time| time.to_string()).unwrap_or_default();
            return (Cow::Borrowed(b"AGE"), oldest);
        }
        match self.maxlen {
            Some(maxlen) => (Cow::Borrowed(b"MAXLEN"), maxlen.to_string()),
            None => (Cow::Borrowed(b""), String::new()),
        }
    }

    fn check<'t>(&'t self, task: &'t Task, _now: Timestamp) -> Result<Fit<'t>, Unfit> {
        Ok(Box::new(Entry { form: self, task }))
    }

    fn look(&self) -> Look {
        let mut look = Look::default();
        let stream = self.stream.fixed().map(str::as_bytes);
        look.keys.extend(stream.map(|key| (key.to_vec(), "stream")));
        let stream = stream.unwrap_or(OURS);
        look.command(&[b"XADD", stream, b"*", b"", b""]);
        look.command(&[b"XRANGE", stream, b"-", b"+"]);
        look.command(&[b"XINFO", b"STREAM", stream]);
        look.command(&[b"XTRIM", stream, b"MAXLEN", b"1"]);
        look
    }
}

impl Form for Messages {
    fn wording(&self) -> &'static Wording {
        &WORDING
    }

    fn script(&self) -> &'static [u8] {
        script::RUN_COMMANDS
    }

    fn how(&self, group: &Group) -> (Cow<'static, [u8]>, String) {
        (Cow::Owned(group.kinds()), String::new())
    }

    fn check<'t>(&'t self, task: &'t Task, _now: Timestamp) -> Result<Fit<'t>, Unfit> {
        Ok(Box::new(Message { form: self, task }))
    }

    fn look(&self) -> Look {
        let mut look = Look::default();
        let list = self.list.fixed().map(str::as_bytes);
        look.keys.extend(list.map(|key| (key.to_vec(), "list")));
        let push = self.push.command().as_bytes();
        look.command(&[push, list.unwrap_or(OURS), b""]);
        look
    }
}

/// An entry of a stream.
struct Entry<'t> {
    form: &'t Entries,
    task: &'t Task,
}

impl Write for Entry<'_> {
    fn place(&self, out: &mut Vec<u8>) -> Result<(), Unfit> {
        name(self.task, &self.form.stream, "stream", out)
    }

    fn add(&self, group: &mut Group, place: &[u8]) -> Result<(), Unfit> {
        let Entry { form, task } = self;
        let key = group.first_key(place, |group| vec![group.key(place, Kind::Stream)]);
        let count = 2 * message::fields(form.format, task);
        resp::write_bulk(&mut group.body, key.to_string().as_bytes());
        resp::write_bulk(&mut group.body, id(task.position).as_bytes());
        resp::write_bulk(&mut group.body, count.to_string().as_bytes());
        group.arguments += 3 + count;
        message::write_entry(&mut group.body, form.format, task)
    }
}

/// A message of a list.
struct Message<'t> {
    form: &'t Messages,
    task: &'t Task,
}

impl Write for Message<'_> {
    fn place(&self, out: &mut Vec<u8>) -> Result<(), Unfit> {
        name(self.task, &self.form.list, "list", out)
    }

    fn add(&self, group: &mut Group, place: &[u8]) -> Result<(), Unfit> {
        let Message { form, task } = self;
        group.enter(place, |group, _| {
            let key = group.key(place, Kind::List);
            (vec![key], (form.push.command(), key), None)
        });
        group.argument(|out| message::write_message(out, form.format, task))
    }
}

/// The row's queue, or what the setting makes of the row.
fn name(
    task: &Task,
    template: &Template,
    setting: &'static str,
    out: &mut Vec<u8>,
) -> Result<(), Unfit> {
    match task.get(Field::Queue).filter(|queue| !queue.is_empty()) {
        Some(queue) => out.extend_from_slice(queue),
        None => out.extend_from_slice(template.name(task, setting)?.as_bytes()),
    }
    Ok(())
}

/// The id of an entry: the commit's LSN, and the row's number in its transaction, with room for those that are late.
fn id(position: Position) -> String {
    let Position {
        commit_lsn,
        ordinal,
    } = position;
    format!("{}-{}", commit_lsn.0.max(1), ordinal.saturating_mul(ROOM))
}
