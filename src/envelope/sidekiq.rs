//! A task as a Sidekiq job: one JSON object (tried with Sidekiq 6.4 and 7.3; the form is that of 8, too).
//!
//! - `task` is the class, `args` are those of its `perform`. Jobs have no keyword arguments: kwargs that are not empty become the
//!   last argument, a hash with strings as keys.
//! - `jid` is the task's id, as it is.
//! - What a class says with `sidekiq_options` is written into its jobs by the Ruby client, and so is not in ours: `retry` is the
//!   sink's (as for Ruby's `Sidekiq::Client.push` with the name of a class), and `options` override it and say the rest. What
//!   Sidekiq itself reads is checked. Other names go through, for middleware of one's own.
//! - Headers are members of the job, as middleware for tracing expects them. Names of options are not for headers.
//! - `run_at` a little ahead is a place in the set `schedule`. Sidekiq has no expiry of its own and no priorities within a queue:
//!   `expires_at` is refused, `priority` is left aside.

use std::io::Write as _;
use std::time::Duration;

use super::job::{self, Members, Rule};
use super::{Unfit, json};
use crate::outbox::{Field, Task};
use crate::pg::Timestamp;

/// Ruby reads so many levels.
const MAX_DEPTH: usize = 100;

/// What a row without options of its own gets.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// The queue.
    pub queue: String,
    /// `retry`, as JSON.
    pub retry: String,
    /// What is no further ahead than this is scheduled.
    pub ahead: Duration,
}

/// A task that has been found fit, and can be written as a Sidekiq job.
pub struct Job<'t> {
    task: &'t Task,
    defaults: &'t Defaults,
    queue: &'t str,
    args: &'t [u8],
    kwargs: &'t [u8],
    members: Members<'t>,
    /// When it is to run, if that is ahead.
    pub at: Option<Timestamp>,
}

fn rule(name: &[u8]) -> Rule {
    match name {
        b"retry" => Rule::CountOrFlag,
        b"backtrace" => Rule::CountOrFlag,
        b"dead" => Rule::Flag,
        b"retry_for" | b"expires_in" => Rule::Number,
        b"retry_queue" | b"wrapped" | b"display_class" | b"bid" | b"locale" | b"profile" => {
            Rule::Text
        }
        b"tags" => Rule::Texts,
        b"cattr" => Rule::Object,
        b"class" => Rule::Column("task"),
        b"args" => Rule::Column("args"),
        b"jid" => Rule::Column("id"),
        b"queue" => Rule::Column("queue"),
        b"at" => Rule::Column("run_at"),
        b"created_at" | b"enqueued_at" | b"failed_at" | b"retried_at" | b"retry_count"
        | b"discarded_at" | b"error_message" | b"error_class" | b"error_backtrace"
        | b"interrupt_count" | b"pool" => Rule::Internal,
        _ => Rule::Free,
    }
}

impl<'t> Job<'t> {
    /// Checks `task`, and says where it goes.
    ///
    /// # Errors
    /// Says which column is unfit, and what to write instead.
    pub fn new(task: &'t Task, defaults: &'t Defaults, now: Timestamp) -> Result<Job<'t>, Unfit> {
        job::check_call(task, "Sidekiq")?;
        if task.get(Field::ExpiresAt).is_some() {
            return Err(Unfit::new(
                "expires_at is set, and Sidekiq would run the job at any time: leave it out, or let the job look at the time",
            ));
        }
        let queue = task.text(Field::Queue).unwrap_or(&defaults.queue);
        if queue.is_empty() {
            return Err(Unfit::new(
                "queue is empty: name one, or leave it NULL for the sink's",
            ));
        }
        let members = Members::new(task, rule)?;
        let (args, kwargs) = (job::args(task)?, job::kwargs(task)?);
        // The job is a level above its args, and kwargs are within these.
        let levels = (1 + json::depth(args))
            .max(2 + json::depth(kwargs))
            .max(members.depth());
        if levels > MAX_DEPTH {
            return Err(Unfit::new(format!(
                "args, kwargs or options are nested too deeply: Ruby reads {MAX_DEPTH} levels, with the job's own"
            )));
        }
        Ok(Job {
            task,
            defaults,
            queue,
            args,
            kwargs,
            members,
            at: job::run_at(task, now, defaults.ahead)?,
        })
    }

    /// The queue.
    pub fn queue(&self) -> &'t str {
        self.queue
    }

    /// Appends the job. `now` is when it enters the queue.
    pub fn write(&self, out: &mut Vec<u8>, now: Timestamp) {
        out.extend_from_slice(b"{\"class\":");
        json::write_string(out, self.task.name());
        out.extend_from_slice(b",\"args\":");
        self.write_args(out);
        out.extend_from_slice(b",\"queue\":");
        json::write_string(out, self.queue);
        out.extend_from_slice(b",\"jid\":");
        json::write_string(out, self.task.id());
        out.extend_from_slice(b",\"created_at\":");
        write_seconds(out, self.task.committed_at);
        if self.at.is_none() {
            out.extend_from_slice(b",\"enqueued_at\":");
            write_seconds(out, now);
        }
        if !self.members.has("retry") {
            out.extend_from_slice(b",\"retry\":");
            out.extend_from_slice(self.defaults.retry.as_bytes());
        }
        self.members.write(out, self.task);
        out.push(b'}');
    }

    fn write_args(&self, out: &mut Vec<u8>) {
        let is_empty = |json: &[u8]| {
            let bytes = json.iter().filter(|byte| !byte.is_ascii_whitespace());
            bytes.take(3).count() == 2
        };
        if is_empty(self.kwargs) {
            out.extend_from_slice(self.args);
            return;
        }
        let args = self.args.trim_ascii();
        out.extend_from_slice(args.strip_suffix(b"]").unwrap_or(args));
        if !is_empty(args) {
            out.push(b',');
        }
        out.extend_from_slice(self.kwargs);
        out.push(b']');
    }
}

/// Appends seconds since 1970 with a fraction: 8 writes whole milliseconds, and still reads these, which 6 and 7 write.
pub fn write_seconds(out: &mut Vec<u8>, at: Timestamp) {
    let micros = at.to_unix_micros();
    let (seconds, rest) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{seconds}.{rest:06}");
}
