//! A task as a Dramatiq message (2.2.0; the form is that of 1.x, too): one JSON object, on Redis and RabbitMQ.
//!
//! - `task` is the actor's name, `queue` its queue: a worker looks for the actor by the name alone, in any queue that it reads.
//! - `options` is Dramatiq's: what retries, time limits, results and callbacks read is checked, since a worker whose middleware
//!   stumbles acknowledges the message without a retry. Other names go through, for middleware of one's own.
//! - Dramatiq has no headers: those of the row are options, too. Names of options are not for headers.
//! - `expires_at` is `max_age`, from the commit on. `run_at` ahead is `eta`, in the delay queue (`<queue>.DQ`).
//! - `priority` is `broker_priority`: RabbitMQ's, in queues with `x-max-priority`. Redis has none.
//! - The id of the message within Redis (`redis_message_id`) is the task's id, too: what is sent again while it is still there is
//!   the same entry.

use std::borrow::Cow;
use std::io::Write as _;

use super::job::{self, Members, Rule};
use super::json::{self, Dialect, Kind};
use super::{Unfit, celery};
use crate::outbox::{Field, Task};
use crate::pg::Timestamp;

/// What Dramatiq appends to the name of a queue for messages that wait for their time.
const DELAYED: &str = ".DQ";

/// A task that has been found fit, and can be written as a Dramatiq message.
pub struct Message<'t> {
    task: &'t Task,
    queue: Cow<'t, str>,
    args: &'t [u8],
    kwargs: &'t [u8],
    members: Members<'t>,
    eta: Option<Timestamp>,
    max_age: Option<i64>,
    priority: Option<u8>,
}

fn rule(name: &[u8]) -> Rule {
    match name {
        b"max_retries" => Rule::CountOrNull,
        b"min_backoff" | b"max_backoff" | b"time_limit" | b"max_age" | b"result_ttl" => Rule::Count,
        b"store_results" | b"notify_shutdown" | b"pipe_ignore" => Rule::Flag,
        b"on_success" | b"on_failure" | b"on_retry_exhausted" | b"group_completion_uuid" => {
            Rule::Text
        }
        b"pipe_target" | b"group_completion_callbacks" => Rule::Other,
        b"broker_priority" => Rule::Column("priority"),
        b"eta" | b"delay" => Rule::Column("run_at"),
        b"redis_message_id" => Rule::Column("id"),
        b"retries" | b"traceback" | b"requeue_timestamp" | b"throws" | b"retry_when" => {
            Rule::Internal
        }
        _ => Rule::Free,
    }
}

impl<'t> Message<'t> {
    /// Checks `task`, and says where it goes: to `queue`, if it names none. What is ahead of `now` waits in the delay queue.
    ///
    /// # Errors
    /// Says which column is unfit, and what to write instead.
    pub fn new(task: &'t Task, queue: &'t str, now: Timestamp) -> Result<Message<'t>, Unfit> {
        job::check_call(task, "Dramatiq")?;
        let queue = task.text(Field::Queue).unwrap_or(queue);
        if !is_queue(queue) {
            return Err(Unfit::new(
                "queue is no name of a Dramatiq queue: a letter or _, then letters, digits, dots, _ and -; not ending in .DQ or .XQ",
            ));
        }
        let members = Members::new(task, rule)?;
        for name in ["pipe_target", "group_completion_callbacks"] {
            if members
                .option(name)
                .is_some_and(|value| !is_messages(value))
            {
                return Err(Unfit::new(format!(
                    "options.{name} must be a Dramatiq message, or a list of them, as Message.asdict() gives it"
                )));
            }
        }
        let expires = celery::moment(task, Field::ExpiresAt)?;
        if expires.is_some() && members.option("max_age").is_some() {
            return Err(Unfit::new(
                "expires_at and options.max_age exclude each other",
            ));
        }
        // No age at all would be for ever.
        let age = |at: Timestamp| (at.0.saturating_sub(task.committed_at.0) / 1_000).max(1);
        let priority = match task.text(Field::Priority) {
            Some(text) => Some(
                text.parse()
                    .map_err(|_| Unfit::new("priority must be 0 to 255"))?,
            ),
            None => None,
        };
        let eta = job::run_at(task, now)?;
        Ok(Message {
            task,
            queue: match eta {
                Some(_) => Cow::Owned(format!("{queue}{DELAYED}")),
                None => Cow::Borrowed(queue),
            },
            args: job::args(task)?,
            kwargs: job::kwargs(task)?,
            members,
            eta,
            max_age: expires.map(age),
            priority,
        })
    }

    /// The queue; for what is ahead, its delay queue.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The priority within RabbitMQ.
    pub fn priority(&self) -> Option<u8> {
        self.priority
    }

    /// Appends the message; with `redis_message_id` as Redis needs it.
    pub fn write(&self, out: &mut Vec<u8>, redis_message_id: Option<&str>) {
        out.extend_from_slice(b"{\"queue_name\":");
        json::write_string(out, &self.queue);
        out.extend_from_slice(b",\"actor_name\":");
        json::write_string(out, self.task.name());
        out.extend_from_slice(b",\"args\":");
        out.extend_from_slice(self.args);
        out.extend_from_slice(b",\"kwargs\":");
        out.extend_from_slice(self.kwargs);
        out.extend_from_slice(b",\"options\":{");
        let start = out.len();
        self.write_options(out, redis_message_id);
        // Each comes with a comma before it, the first one too.
        out.remove(start);
        out.extend_from_slice(b"},\"message_id\":");
        json::write_string(out, self.task.id());
        // Writing to a Vec cannot fail.
        let _ = write!(
            out,
            ",\"message_timestamp\":{}}}",
            milliseconds(self.task.committed_at)
        );
    }

    fn write_options(&self, out: &mut Vec<u8>, redis_message_id: Option<&str>) {
        if let Some(id) = redis_message_id {
            out.extend_from_slice(b",\"redis_message_id\":");
            json::write_string(out, id);
        }
        if let Some(eta) = self.eta {
            let _ = write!(out, ",\"eta\":{}", milliseconds(eta));
        }
        if let Some(max_age) = self.max_age {
            let _ = write!(out, ",\"max_age\":{max_age}");
        }
        if let Some(priority) = self.priority {
            let _ = write!(out, ",\"broker_priority\":{priority}");
        }
        self.members.write(out, self.task);
    }
}

/// Since 1970, rounded up: nothing runs too early.
fn milliseconds(at: Timestamp) -> i64 {
    at.to_unix_micros().saturating_add(999).div_euclid(1_000)
}

/// Whether actors can be declared for it. Names of delay queues and of those for dead messages are made from it.
pub fn is_queue(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let other = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.starts_with(first)
        && name.chars().all(other)
        && !name.ends_with(DELAYED)
        && !name.ends_with(".XQ")
}

/// One message, or a list of them: what a worker makes messages of when it is done.
fn is_messages(value: &[u8]) -> bool {
    match json::kind(value) {
        Some(Kind::Null) => true,
        Some(Kind::Array) => {
            json::elements(value, Dialect::Strict).all(|element| element.is_ok_and(is_message))
        }
        _ => is_message(value),
    }
}

fn is_message(value: &[u8]) -> bool {
    const MEMBERS: [(&[u8], Kind); 7] = [
        (b"queue_name", Kind::String),
        (b"actor_name", Kind::String),
        (b"args", Kind::Array),
        (b"kwargs", Kind::Object),
        (b"options", Kind::Object),
        (b"message_id", Kind::String),
        (b"message_timestamp", Kind::Number),
    ];
    let mut seen = 0;
    let known = |(name, value): (&[u8], &[u8])| {
        let kind = json::kind(value);
        MEMBERS
            .iter()
            .any(|(known, expected)| *known == name && Some(*expected) == kind)
    };
    json::kind(value) == Some(Kind::Object)
        && json::members(value, Dialect::Strict).all(|member| {
            seen += 1;
            member.is_ok_and(known)
        })
        && seen == MEMBERS.len()
}
