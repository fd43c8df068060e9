//! Pure: what a lane tells its sink of its tasks, so that it can tell which of them its place has already.

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
        self.settled.turn = seq;
        let generation = self.scope.as_ref().map(|scope| scope.generation);
        if generation == Some(saved.generation) {
            self.settled.below = saved.lsn.lsn();
        }
    }

    /// The terms of a batch, whose outcomes go into the report number `turn`.
    pub(super) fn terms(&self, turn: u64) -> Option<Terms<'_>> {
        Some(Terms {
            scope: self.scope.as_ref()?,
            turn,
            settled: self.settled,
        })
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
        assert!(marking.terms(1).is_none());
        let identity = Identity {
            system_id: 7,
            timeline: 3,
        };
        marking.begin(1, identity);
        marking.written(4, confirmation(1, identity));
        let terms = marking.terms(5).expect("terms");
        assert_eq!(
            terms.scope.to_string(),
            "7:3:slot:\"aftercommit\".\"outbox\":\"sink\":2"
        );
        let settled = |below, turn| Settled {
            below: Lsn(below),
            turn,
        };
        assert_eq!((terms.turn, terms.settled), (5, settled(105, 4)));
        // Another generation: its positions may be others, and the server may have gone back.
        marking.begin(2, identity);
        marking.written(6, confirmation(1, identity));
        assert_eq!(
            marking.terms(7).expect("terms").settled,
            settled(0, 6),
            "late word of the last one"
        );
        marking.written(7, confirmation(2, identity));
        assert_eq!(marking.terms(8).expect("terms").settled, settled(105, 7));
    }
}
