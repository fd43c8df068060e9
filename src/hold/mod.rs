//! Floor 3: the hold table, `aftercommit.hold`: tasks that wait for their time, for another attempt, or for somebody to
//! look at them. And what is written in the same transactions: the deletes of settled rows, and the checkpoint.
//!
//! A task is held when its row is committed; then it is settled for the slot. Rows that block are queues, one for each
//! slot, sink and key, in the order of `hold_id`: parked in order, they come back in order. `sql/hold.sql` says how; what
//! changes a queue is serialized by a lock of the transaction, which every function here takes by itself.
//!
//! A row that somebody has changed by hand is taken as it is. It is in the queue of the slot, sink and key that stand in it,
//! and the queue that it left goes on at the next [`mend`], or when another row of it is removed. Its fields are text, which
//! nobody here reads: what is no JSON, no number or no date is for the sink to refuse, and makes it a dead task. Due at
//! `-infinity` is now, and at `infinity` never, until somebody changes that. What the table's checks refuse does not come
//! so far.

mod copy;
mod due;
mod healing;
mod park;
mod remedy;
mod settle;
mod store;
mod wire;

use std::sync::Arc;
use std::time::Duration;

pub use due::{Batch, Due, Outlook, Place, due, held_keys, held_positions, mend, outlook};
pub use healing::{begin_healing, end_healing, healing_since, mark_known, note_beginning};
pub use park::park;
pub use remedy::remedied;
pub use settle::{
    Checkpoint, correct_checkpoint, delete_settled, delete_unlocked, read_checkpoint,
    write_checkpoint,
};
pub use store::{Queue, Settled, bury, postpone, remove, settle_queues};

use crate::outbox::Task;
use crate::pg::Timestamp;

/// How a connection has to plan that works on the table. Autovacuum may have looked when it was all but empty, and then it
/// fills: to the planner, who takes it for empty still, one index is as good as another, or none. So queues are asked for in
/// the order of `hold_id + 0`, which only their index has.
pub const PLANNER: &str = "set enable_seqscan = off; set enable_sort = off";

/// Why a task is held.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Its time has not come.
    Scheduled,
    /// It was tried, or waits behind one of its key that was, or for its sink to come back.
    Retrying,
    /// It is not sent again by itself.
    Dead,
}

impl State {
    /// The word in the table.
    pub fn name(self) -> &'static str {
        match self {
            State::Scheduled => "scheduled",
            State::Retrying => "retrying",
            State::Dead => "dead",
        }
    }

    /// The state of this name; the table knows no other.
    pub(crate) fn named(name: &str) -> State {
        match name {
            "scheduled" => State::Scheduled,
            "retrying" => State::Retrying,
            _ => State::Dead,
        }
    }
}

/// A task that is to be held.
#[derive(Clone, Debug)]
pub struct Park {
    /// The task.
    pub task: Task,
    /// Name of its sink.
    pub sink: Arc<str>,
    /// Pattern of its route.
    pub route: Arc<str>,
    /// Why.
    pub state: State,
    /// When it is sent, from the server's now; `None` for a dead one, or where `due_at` says it.
    pub due_in: Option<Duration>,
    /// When it is sent, by the server's clock: for a scheduled one.
    pub due_at: Option<Timestamp>,
    /// Later tasks of its key wait for it. Means nothing where it has no key.
    pub blocks: bool,
    /// How often it was tried. After a task that was tried, the rest of its key waits until it is gone; after one that was
    /// not, each is sent at its own time, in order.
    pub attempts: u32,
    /// Why it was not delivered.
    pub error: Option<String>,
}

/// A held task whose time has come.
#[derive(Clone, Debug)]
pub struct Released {
    /// The row.
    pub hold_id: i64,
    /// The task, with its position.
    pub task: Task,
    /// Name of its sink.
    pub sink: Arc<str>,
    /// Pattern of its route.
    pub route: String,
    /// Why it was held.
    pub state: State,
    /// How often it was tried.
    pub attempts: u32,
}

/// A held task that was tried in vain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Postponed {
    /// The row.
    pub hold_id: i64,
    /// When it is sent again, from the server's now.
    pub due_in: Duration,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it was not delivered.
    pub error: String,
}

/// A held task that is given up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Buried {
    /// Its row.
    pub hold_id: i64,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it cannot be delivered.
    pub error: String,
    /// Whether later tasks of its key wait for it.
    pub blocks: bool,
}
