//! Pure: tasks that were delivered, and whose lane does not know.
//!
//! A batch that ends in an outage is handed over again, whole. Where a place does not drop repeats by itself, a sink
//! remembers what of the batch it had delivered, and answers for it the next time without sending it.

use std::collections::HashSet;

use crate::outbox::{Position, Task};

/// Of outages that follow each other and batches that never come again, so much is remembered.
const MOST: usize = 1 << 16;

/// What was delivered, and is owed an answer.
#[derive(Debug, Default)]
pub(super) struct Answered {
    tasks: HashSet<(Position, Box<str>)>,
}

impl Answered {
    /// It is delivered.
    pub(super) fn insert(&mut self, task: &Task) {
        if self.tasks.len() >= MOST {
            self.tasks.clear();
        }
        self.tasks.insert(of(task));
    }

    /// Whether it was delivered.
    pub(super) fn contains(&self, task: &Task) -> bool {
        !self.tasks.is_empty() && self.tasks.contains(&of(task))
    }

    /// The lane has its answer.
    pub(super) fn forget<'t>(&mut self, batch: impl IntoIterator<Item = &'t Task>) {
        if self.tasks.is_empty() {
            return;
        }
        for task in batch {
            self.tasks.remove(&of(task));
        }
    }
}

fn of(task: &Task) -> (Position, Box<str>) {
    (task.position, task.id().into())
}
