//! Pure: what a lane reports to the relay, and what the relay gives the keeper to write down.

use std::collections::HashSet;

use crate::hold::{Buried, Park, Postponed};
use crate::outbox::Task;
use crate::watermark::Ticket;

use super::Origin;

/// The ids of rows, one after the other in one text.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    text: String,
    ends: Vec<usize>,
}

impl Ids {
    /// Adds one.
    pub fn push(&mut self, id: &str) {
        self.text.push_str(id);
        self.ends.push(self.text.len());
    }

    /// Adds those of `other`.
    pub fn append(&mut self, other: &Ids) {
        let offset = self.text.len();
        self.text.push_str(&other.text);
        self.ends.extend(other.ends.iter().map(|end| offset + end));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .filter_map(|(start, end)| self.text.get(start..*end))
    }
}

/// What became of tasks that came from the hold table.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Delivered.
    pub removed: Vec<i64>,
    /// Tried in vain.
    pub postponed: Vec<Postponed>,
    /// Given up.
    pub buried: Vec<Buried>,
    /// Not tried after all: they stay as they are, and are due as before.
    pub returned: Vec<i64>,
}

impl Rows {
    /// How many tasks these are.
    pub fn len(&self) -> usize {
        self.removed.len() + self.postponed.len() + self.buried.len() + self.returned.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds those of `other`.
    pub fn append(&mut self, mut other: Rows) {
        self.removed.append(&mut other.removed);
        self.postponed.append(&mut other.postponed);
        self.buried.append(&mut other.buried);
        self.returned.append(&mut other.returned);
    }

    /// Their rows.
    pub fn hold_ids(&self) -> impl Iterator<Item = i64> {
        let postponed = self.postponed.iter().map(|row| row.hold_id);
        let buried = self.buried.iter().map(|row| row.hold_id);
        let settled = self.removed.iter().chain(&self.returned).copied();
        settled.chain(postponed).chain(buried)
    }

    /// Leaves these rows as they are, whatever became of their tasks.
    pub(super) fn give_back(&mut self, rows: &HashSet<i64>) {
        let stays = |hold_id: i64| !rows.contains(&hold_id);
        self.removed.retain(|hold_id| stays(*hold_id));
        self.postponed.retain(|row| stays(row.hold_id));
        self.buried.retain(|row| stays(row.hold_id));
        self.returned.retain(|hold_id| stays(*hold_id));
        self.returned.extend(rows);
    }

    /// Whether the hold table changes by them.
    pub fn change_something(&self) -> bool {
        self.len() > self.returned.len()
    }
}

/// What became of some tasks of a lane.
#[derive(Debug, Default)]
pub struct Report {
    /// The lane: its index among all lanes.
    pub lane: usize,
    /// Counts the reports of the lane.
    pub seq: u64,
    /// Transactions, and the number of their tasks that were delivered.
    pub counts: Vec<(Ticket, u64)>,
    /// Tasks that were delivered, in all.
    pub delivered: u64,
    /// Size of those that came from the stream; and of those that were dropped, since they come again.
    pub bytes: usize,
    /// Their ids, where settled rows are to be deleted.
    pub ids: Ids,
    /// Tasks from the stream that are to be held, those of a key in their order.
    pub parks: Vec<(Ticket, Park)>,
    /// What became of tasks that came from the hold table.
    pub rows: Rows,
    /// The sink has gone away, or come back.
    pub away: Option<bool>,
}

impl Report {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.delivered == 0
            && self.bytes == 0
            && self.parks.is_empty()
            && self.rows.is_empty()
            && self.away.is_none()
    }

    /// A task was dropped, since it belongs to an earlier generation of sessions: it comes again, from where it came.
    pub(super) fn dropped(&mut self, task: &Task, origin: Origin) {
        match origin {
            Origin::Stream(_) => self.bytes += task.size(),
            Origin::Hold { hold_id, .. } => self.rows.returned.push(hold_id),
        }
    }

    /// A task was delivered.
    pub(super) fn delivered(&mut self, task: &Task, origin: Origin, with_id: bool) {
        self.delivered += 1;
        match origin {
            Origin::Hold { hold_id, .. } => self.rows.removed.push(hold_id),
            Origin::Stream(ticket) => {
                self.bytes += task.size();
                if with_id {
                    self.ids.push(task.id());
                }
                match self.counts.last_mut() {
                    Some((last, count)) if *last == ticket => *count += 1,
                    _ => self.counts.push((ticket, 1)),
                }
            }
        }
    }
}

/// What the keeper is to write down.
#[derive(Debug, Default)]
pub struct Work {
    /// Rows that a broker has: they leave the outbox, where it is to be emptied.
    pub delivered: Ids,
    /// How many tasks from the stream are settled by this.
    pub settled: u64,
    /// Tasks for the hold; their rows leave the outbox too.
    pub parks: Vec<Park>,
    /// The ticket of each of them.
    pub tickets: Vec<Ticket>,
    /// What became of tasks that came from the hold.
    pub rows: Rows,
    /// The last report of each lane that is in it: lane and number.
    pub lanes: Vec<(usize, u64)>,
    /// How far everything is settled once this is written.
    pub confirmation: crate::intake::Confirmation,
}

impl Work {
    /// Whether rows of the database change by it.
    pub fn changes_rows(&self) -> bool {
        !self.delivered.is_empty() || self.changes_hold()
    }

    /// Whether the hold table changes by it.
    pub fn changes_hold(&self) -> bool {
        !self.parks.is_empty() || self.rows.change_something()
    }

    /// Whether there is nothing in it but a confirmation.
    pub fn is_empty(&self) -> bool {
        self.settled == 0 && self.parks.is_empty() && self.rows.is_empty()
    }

    /// Adds a task that is to be held.
    pub fn park(&mut self, ticket: Ticket, park: Park) {
        self.tickets.push(ticket);
        self.parks.push(park);
    }

    /// A lane's report is in it.
    pub fn covers(&mut self, lane: usize, seq: u64) {
        match self.lanes.iter_mut().find(|(known, _)| *known == lane) {
            Some((_, last)) => *last = seq,
            None => self.lanes.push((lane, seq)),
        }
    }
}

/// What has been written down.
#[derive(Debug, Default)]
pub struct Written {
    /// Tasks that are in the hold now, and so settled: ticket and size of each.
    pub parked: Vec<(Ticket, usize)>,
    /// [`Work::lanes`].
    pub lanes: Vec<(usize, u64)>,
    /// [`Work::confirmation`].
    pub confirmation: crate::intake::Confirmation,
    /// The last one that is in the checkpoint: what a crash of the server cannot set back.
    pub saved: crate::intake::Confirmation,
}

/// Tickets and sizes of tasks.
pub(super) fn sizes(work: &Work) -> Vec<(Ticket, usize)> {
    let sizes = work.parks.iter().map(|park| Task::size(&park.task));
    work.tickets.iter().copied().zip(sizes).collect()
}
