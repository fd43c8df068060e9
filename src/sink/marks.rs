//! Pure: marks, by which a sink knows what its place has already.
//!
//! A broker that can store a note in the same atomic step as the messages makes each task arrive once: the note says which
//! tasks these messages are, and what is noted is not sent again, be it that an answer was lost, or that we or Postgres
//! have died before it was written down that they were delivered.
//!
//! A note ([`encoding`]) lists exactly the tasks that it is about, never "all up to here": what has taken another way (it is
//! held, scheduled, rejected, tried again, routed elsewhere, in another lane) is in no note, and so cannot be taken for
//! applied. A task's mark is its [`Position`], which it has whether it comes from the stream or from the hold table, and a
//! hash of its id: positions mean something only in one history of one server ([`Scope`]), and where a history was
//! replaced behind our back (a disk that was set back to an older state), the hash tells.
//!
//! Notes that cannot be read, that are gone, or that belong to another scope mean that a task may come a second time. They
//! never mean that one is lost.

pub mod encoding;
pub mod memory;

use std::fmt;
use std::sync::Arc;

pub use memory::Memory;

use crate::outbox::{Position, TableName, Task};
use crate::pg::Lsn;

/// What names a task.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mark {
    /// Its position.
    pub position: Position,
    /// [`encoding::hash`] of its id.
    pub hash: u32,
}

impl Mark {
    /// The mark of a task.
    pub fn of(task: &Task) -> Mark {
        Mark {
            position: task.position,
            hash: encoding::hash(task.id()),
        }
    }
}

/// Where marks mean something: one history of one server, as it comes to one lane of one sink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scope {
    /// Names the history, and the lane.
    name: Arc<str>,
    /// Changes whenever tasks that were handed over may be handed over again without an outage between. The notes are
    /// read again then.
    pub generation: u64,
}

/// The history that positions belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct History<'a> {
    /// The server's system identifier.
    pub system_id: u64,
    /// Its timeline.
    pub timeline: u32,
    /// The slot.
    pub slot: &'a str,
    /// The outbox: rows of others are not counted in a [`Position`].
    pub table: &'a TableName,
}

impl Scope {
    /// The scope of a sink's lane, in a history.
    pub fn new(history: &History<'_>, sink: &str, lane: usize, generation: u64) -> Scope {
        let History {
            system_id,
            timeline,
            slot,
            table,
        } = history;
        Scope {
            name: format!(
                "{system_id}:{timeline}:{slot}:{}:{sink:?}:{lane}",
                table.to_sql()
            )
            .into(),
            generation,
        }
    }
}

/// The name; the same after a restart.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What will never come again, so that its notes can go.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Settled {
    /// The server sends nothing again that was committed below, not even after a crash.
    pub below: Lsn,
    /// What became of the batch of this turn, and of those before, is written down.
    pub turn: u64,
}

/// The terms on which a batch is handed over.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Where its marks mean something.
    pub scope: Scope,
    /// Counts the batches.
    pub turn: u64,
    /// What can be forgotten.
    pub settled: Settled,
}

#[cfg(test)]
mod tests;
