//! Pure: what a lane tells its sink of its tasks, so that it can tell which of them its place has already.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::intake::{Confirmation, Identity};
use crate::outbox::TableName;
use crate::pg::Lsn;
use crate::sink::marks::{History, Scope, Settled, Terms};

/// What positions mean in one lane, and what of it is settled.
#[derive(Debug)]
pub struct Marking {
    slot: String,
    table: TableName,
    sink: Arc<str>,
    /// The lane's number among those of its sink.
    lane: usize,
    /// Before anything is known of that, no task comes.
    scope: Option<Scope>,
    settled: Settled,
    /// The batches that were handed over.
    turn: u64,
    /// Of those that are answered and whose report is not written down: turn and number of the report.
    reported: VecDeque<(u64, u64)>,
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
            turn: 0,
            reported: VecDeque::new(),
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
        self.settled.below = Lsn::ZERO;
    }

    /// The reports up to `seq` are written down; and `saved`, below which the server sends nothing again.
    pub(super) fn written(&mut self, seq: u64, saved: Confirmation) {
        while let Some((turn, report)) = self.reported.front()
            && *report <= seq
        {
            self.settled.turn = *turn;
            self.reported.pop_front();
        }
        if self.generation() == Some(saved.generation) {
            self.settled.below = saved.lsn.lsn();
        }
    }

    /// The generation of what comes now.
    pub(super) fn generation(&self) -> Option<u64> {
        self.scope.as_ref().map(|scope| scope.generation)
    }

    /// The terms of the next batch.
    pub(super) fn terms(&mut self) -> Option<Terms> {
        self.turn += 1;
        Some(Terms {
            scope: self.scope.clone()?,
            turn: self.turn,
            settled: self.settled,
        })
    }

    /// What became of the batch stands in the report of this number.
    pub(super) fn answered(&mut self, report: u64) {
        self.reported.push_back((self.turn, report));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watermark::Watermark;

    /// Confirmed up to 105, in a generation.
    fn confirmation(generation: u64, identity: Identity) -> Confirmation {
        let mut mark = Watermark::default();
        mark.keepalive(Lsn(105));
        Confirmation {
            generation,
            identity,
            lsn: mark.confirmed(),
        }
    }

    #[test]
    fn what_is_settled_counts_in_its_own_generation() {
        let table = TableName::ours();
        let mut marking = Marking::new("slot", &table, &"sink".into(), 2);
        assert!(marking.terms().is_none());
        let identity = Identity {
            system_id: 7,
            timeline: 3,
        };
        marking.begin(1, identity);
        let mut turn = || marking.terms().expect("terms");
        assert_eq!(turn().turn, 2);
        for report in [4, 4, 6] {
            marking.answered(report);
            marking.terms();
        }
        marking.written(5, confirmation(1, identity));
        let terms = marking.terms().expect("terms");
        assert_eq!(
            terms.scope.to_string(),
            "7:3:slot:\"aftercommit\".\"outbox\":\"sink\":2"
        );
        let settled = |below, turn| Settled {
            below: Lsn(below),
            turn,
        };
        assert_eq!((terms.turn, terms.settled), (6, settled(105, 3)));
        // Another generation: its positions may be others, and the server may have gone back.
        marking.begin(2, identity);
        marking.written(6, confirmation(1, identity));
        let terms = marking.terms().expect("terms");
        assert_eq!(terms.settled, settled(0, 4), "late word of the last one");
        marking.written(7, confirmation(2, identity));
        let terms = marking.terms().expect("terms");
        assert_eq!(terms.settled, settled(105, 4));
    }
}
