//! Pure: what names a lane's tasks to its sink, so that it can tell which of them its place has already.

use std::sync::Arc;

use super::{Origin, Passage};
use crate::intake::{Confirmation, Identity};
use crate::outbox::TableName;
use crate::sink::marks::{History, Mark, Marked, Scope, Settled};

/// Names the tasks of one lane.
#[derive(Debug)]
pub struct Marking {
    slot: String,
    table: TableName,
    sink: Arc<str>,
    /// The lane's number among those of its sink.
    lane: usize,
    /// What positions mean now. Before anything is known of that, no task comes.
    scope: Option<Scope>,
    settled: Settled,
    marks: Vec<Mark>,
}

impl Marking {
    /// For the lane of this number of a sink.
    pub fn new(slot: &str, table: &TableName, sink: &Arc<str>, lane: usize) -> Marking {
        Marking {
            slot: slot.to_owned(),
            table: table.clone(),
            sink: sink.clone(),
            lane,
            scope: None,
            settled: Settled::default(),
            marks: Vec::new(),
        }
    }

    /// A generation of sessions begins: the server sends again what is not confirmed.
    pub(super) fn begin(&mut self, generation: u64, identity: Identity) {
        let history = History {
            system_id: identity.system_id,
            timeline: identity.timeline,
            slot: &self.slot,
            table: &self.table,
        };
        self.scope = Some(Scope::new(&history, &self.sink, self.lane, generation));
        self.settled.below = crate::pg::Lsn::ZERO;
    }

    /// The reports up to `seq` are written down; and `saved`, below which the server sends nothing again.
    pub(super) fn written(&mut self, seq: u64, saved: Confirmation) {
        self.settled.turn = seq;
        let generation = self.scope.as_ref().map(|scope| scope.generation);
        if generation == Some(saved.generation) {
            self.settled.below = saved.lsn.lsn();
        }
    }

    /// The marks of a batch, whose outcomes go into the report number `turn`.
    pub(super) fn mark(&mut self, batch: &[Passage], turn: u64) -> Option<Marked<'_>> {
        let mark = |passage: &Passage| match passage.origin {
            Origin::Stream(_) => Mark::Stream(passage.task.position),
            Origin::Hold { hold_id, .. } => Mark::Held(hold_id),
        };
        self.marks.clear();
        self.marks.extend(batch.iter().map(mark));
        Some(Marked {
            scope: self.scope.as_ref()?,
            marks: &self.marks,
            turn,
            settled: self.settled,
        })
    }
}
