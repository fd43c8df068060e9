//! A task as a BullMQ job (tried with 5.81 and 6.7): a hash in Redis, of which this makes `data` and `opts`.
//!
//! - `task` is the job's name. `data` is the row's payload; or its kwargs; a job takes one value, so args are refused.
//! - The job's id is the task's. BullMQ keeps whole numbers for its own ids: such an id becomes `id-<number>`.
//! - `options` is BullMQ's: what its workers read is checked. What needs more than the job (repeats, parents, deduplication,
//!   keepLogs) is not offered. Headers are options of names of one's own: `job.opts.traceparent`.
//! - `priority` is BullMQ's, too: 1 comes first, up to 2,097,152, and what has none comes before all.
//! - `expires_at` is refused: BullMQ would run the job at any time.

use std::borrow::Cow;
use std::io::Write as _;

use super::job::{self, Members, Rule};
use super::json::{self, Dialect, Kind};
use super::{Unfit, check_json};
use crate::outbox::{Field, Task};

/// BullMQ's own limit.
const LOWEST_PRIORITY: u32 = 1 << 21;

/// Keys beside the jobs' own: an id of this name would be one of them.
const TAKEN: [&str; 17] = [
    "active",
    "completed",
    "delayed",
    "events",
    "failed",
    "id",
    "limiter",
    "marker",
    "meta",
    "paused",
    "pc",
    "prioritized",
    "repeat",
    "stalled",
    "stalled-check",
    "wait",
    "waiting-children",
];

/// A task that has been found fit, and can be written as a BullMQ job.
pub struct Job<'t> {
    task: &'t Task,
    /// The queue.
    pub queue: &'t str,
    /// The job's id.
    pub id: Cow<'t, str>,
    /// What the job is given.
    pub data: &'t [u8],
    /// 0 is none.
    pub priority: u32,
    /// It comes before those that wait.
    pub is_last_in_first_out: bool,
    attempts: Cow<'t, str>,
    members: Members<'t>,
}

fn rule(name: &[u8]) -> Rule {
    match name {
        b"attempts" | b"stackTraceLimit" => Rule::Count,
        b"lifo" => Rule::Flag,
        b"backoff" | b"removeOnComplete" | b"removeOnFail" => Rule::Other,
        b"jobId" => Rule::Column("id"),
        b"priority" => Rule::Column("priority"),
        b"delay" => Rule::Column("run_at"),
        b"timestamp" | b"prevMillis" | b"repeatJobKey" => Rule::Internal,
        b"repeat"
        | b"jobSchedulerId"
        | b"parent"
        | b"deduplication"
        | b"debounce"
        | b"keepLogs"
        | b"sizeLimit"
        | b"telemetry"
        | b"failParentOnFailure"
        | b"continueParentOnFailure"
        | b"ignoreDependencyOnFailure"
        | b"removeDependencyOnFailure"
        | b"de"
        | b"kl"
        | b"tm"
        | b"omc"
        | b"fpof"
        | b"cpof"
        | b"idof"
        | b"rdof"
        | b"ocf" => Rule::NotOffered,
        _ => Rule::Free,
    }
}

impl<'t> Job<'t> {
    /// Checks `task`, and says where it goes: to `queue`, if it names none. `attempts` is what its options may override.
    ///
    /// # Errors
    /// Says which column is unfit, and what to write instead.
    pub fn new(task: &'t Task, queue: &'t str, attempts: u32) -> Result<Job<'t>, Unfit> {
        if task.get(Field::Payload).is_none() {
            job::check_call(task, "BullMQ")?;
        }
        let id = task.id();
        if id.is_empty() || id.contains(':') || TAKEN.contains(&id) {
            return Err(Unfit::new(
                "id is empty, has a colon, or is the name of a part of the queue: BullMQ takes no such id",
            ));
        }
        if task.name().is_empty() {
            return Err(Unfit::new("task is empty: it must be the job's name"));
        }
        if task.get(Field::ExpiresAt).is_some() {
            return Err(Unfit::new(
                "expires_at is set, and BullMQ would run the job at any time: leave it out, or let the job look at the time",
            ));
        }
        let queue = task.text(Field::Queue).unwrap_or(queue);
        if !is_queue(queue) {
            return Err(Unfit::new(
                "queue is empty or has a colon: BullMQ takes no such name",
            ));
        }
        let members = Members::new(task, rule)?;
        check_backoff(&members)?;
        for name in ["removeOnComplete", "removeOnFail"] {
            if members.has(name) && !members.option(name).is_some_and(is_removal) {
                return Err(Unfit::new(format!(
                    "options.{name} must be true, false, a whole number, or an object such as {{\"age\": 3600, \"count\": 100}}"
                )));
            }
        }
        let priority = task.text(Field::Priority).map_or(Ok(0), str::parse);
        Ok(Job {
            task,
            queue,
            id: match id.bytes().all(|byte| byte.is_ascii_digit()) {
                true => Cow::Owned(format!("id-{id}")),
                false => Cow::Borrowed(id),
            },
            data: data(task)?,
            priority: priority
                .ok()
                .filter(|priority| *priority <= LOWEST_PRIORITY)
                .ok_or(Unfit::new("priority must be 0 to 2097152"))?,
            is_last_in_first_out: members.option("lifo") == Some(b"true"),
            attempts: match members.has("attempts") {
                true => Cow::Borrowed(""),
                false => Cow::Owned(attempts.to_string()),
            },
            members,
        })
    }

    /// Appends `opts`.
    pub fn write_options(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"jobId\":");
        json::write_string(out, &self.id);
        if !self.attempts.is_empty() {
            out.extend_from_slice(b",\"attempts\":");
            out.extend_from_slice(self.attempts.as_bytes());
        }
        if self.priority > 0 {
            // Writing to a Vec cannot fail.
            let _ = write!(out, ",\"priority\":{}", self.priority);
        }
        self.members.write(out, self.task);
        out.push(b'}');
    }

    /// When the row was committed, in milliseconds since 1970.
    pub fn timestamp(&self) -> i64 {
        self.task.committed_at.to_unix_micros().div_euclid(1_000)
    }
}

/// Whether BullMQ takes it for a queue's name.
pub fn is_queue(name: &str) -> bool {
    !name.is_empty() && !name.contains(':')
}

fn data(task: &Task) -> Result<&[u8], Unfit> {
    let kwargs = job::kwargs(task)?;
    let args = job::args(task)?;
    if json::elements(args, Dialect::Strict).next().is_some() {
        return Err(Unfit::new(
            "args is not empty, and a BullMQ job takes one value: write kwargs, or payload",
        ));
    }
    let Some(payload) = task.get(Field::Payload) else {
        return Ok(kwargs);
    };
    if json::members(kwargs, Dialect::Strict).next().is_some() {
        return Err(Unfit::new(
            "payload and kwargs exclude each other: a BullMQ job takes one value",
        ));
    }
    if task.get(Field::Body).is_some() {
        return Err(Unfit::new("payload and body exclude each other"));
    }
    let kind = json::kind(payload).unwrap_or(Kind::Object);
    check_json(task, Field::Payload, kind)
        .map_err(|defect| Unfit::new(format!("payload {defect}")))?;
    Ok(payload)
}

fn check_backoff(members: &Members<'_>) -> Result<(), Unfit> {
    let Some(value) = members.option("backoff").filter(|_| members.has("backoff")) else {
        return Ok(());
    };
    let mut has_type = false;
    let fits = is_count(value)
        || json::kind(value) == Some(Kind::Object)
            && json::members(value, Dialect::Strict)
                .flatten()
                .all(|(name, value)| match name {
                    b"type" => {
                        has_type = json::text(value).is_some_and(|text| !text.is_empty());
                        has_type
                    }
                    b"delay" => is_count(value),
                    b"jitter" => {
                        json::kind(value) == Some(Kind::Number) && !value.starts_with(b"-")
                    }
                    _ => false,
                })
            && has_type;
    match fits {
        true => Ok(()),
        false => Err(Unfit::new(
            "options.backoff must be milliseconds, or an object such as {\"type\": \"exponential\", \"delay\": 1000}",
        )),
    }
}

fn is_removal(value: &[u8]) -> bool {
    match json::kind(value) {
        Some(Kind::Boolean) => true,
        Some(Kind::Object) => json::members(value, Dialect::Strict)
            .flatten()
            .all(|(name, value)| matches!(name, b"age" | b"count" | b"limit") && is_count(value)),
        _ => is_count(value),
    }
}

fn is_count(value: &[u8]) -> bool {
    value.len() <= 15 && value.iter().all(u8::is_ascii_digit)
}
