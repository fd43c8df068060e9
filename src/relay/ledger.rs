//! What is to be written down: gathered while the keeper is busy, and handed over when its hands are free.

use tokio::sync::mpsc;

use crate::delivery::{Ids, Rows, Work};
use crate::hold::Park;
use crate::intake::{Confirmation, Session};
use crate::pg::ConfirmedLsn;
use crate::watermark::Ticket;

/// Settled rows that have not left the outbox yet: more are not gathered while the database does not take them. Enough for a
/// burst: the deletes catch up behind it.
const SETTLED_ROWS: usize = 1 << 17;

/// What is to be written down, and what is.
#[derive(Debug)]
pub(super) struct Ledger {
    pending: Work,
    /// The keeper has work in its hands.
    busy: bool,
    /// Settled rows in it.
    in_hand: usize,
    /// How far everything is settled, and written down.
    written: Confirmation,
    keeper: mpsc::Sender<Work>,
}

impl Ledger {
    pub(super) fn new(keeper: mpsc::Sender<Work>) -> Ledger {
        Ledger {
            pending: Work::default(),
            busy: false,
            in_hand: 0,
            written: Confirmation::default(),
            keeper,
        }
    }

    /// Whether there is room for more settled tasks.
    pub(super) fn has_room(&self) -> bool {
        self.in_hand + self.pending.delivered.len() < SETTLED_ROWS
    }

    /// Up to where everything is settled, and written down.
    pub(super) fn written(&self) -> Confirmation {
        self.written
    }

    /// The generation of sessions whose positions these are.
    pub(super) fn generation(&self) -> u64 {
        self.pending.confirmation.generation
    }

    /// Whether everything is written down, up to this position.
    pub(super) fn is_clear(&self, lsn: ConfirmedLsn) -> bool {
        !self.busy && self.pending.is_empty() && (self.written.lsn == lsn || self.is_unset())
    }

    /// No session has been: there is nothing to confirm.
    fn is_unset(&self) -> bool {
        self.pending.confirmation.generation == 0
    }

    /// Another server, or another history of it, begins: gives back the sizes of the tasks that will not be held, since
    /// they come again if they exist there.
    pub(super) fn begin(&mut self, session: Session, lsn: ConfirmedLsn) -> usize {
        self.pending.confirmation = Confirmation {
            generation: session.generation,
            identity: session.identity,
            lsn,
        };
        self.pending.tickets.clear();
        let parks = std::mem::take(&mut self.pending.parks);
        parks.iter().map(|park| park.task.size()).sum()
    }

    /// Tasks were delivered.
    pub(super) fn delivered(&mut self, tasks: u64, ids: &Ids) {
        self.pending.settled += tasks;
        self.pending.delivered.append(ids);
    }

    /// A task is to be held.
    pub(super) fn park(&mut self, ticket: Ticket, park: Park) {
        self.pending.park(ticket, park);
    }

    /// What became of tasks that came from the hold.
    pub(super) fn rows(&mut self, rows: Rows) {
        self.pending.rows.append(rows);
    }

    /// A lane's report is in it.
    pub(super) fn covers(&mut self, lane: usize, seq: u64) {
        self.pending.covers(lane, seq);
    }

    /// What was in the keeper's hands is written down.
    pub(super) fn is_written(&mut self, confirmation: Confirmation) {
        self.busy = false;
        self.in_hand = 0;
        self.written = confirmation;
    }

    /// Gives the keeper its next work, if there is any and its hands are free. False when the keeper has died.
    pub(super) fn hand_over(&mut self, lsn: ConfirmedLsn) -> bool {
        self.pending.confirmation.lsn = lsn;
        let confirmation = self.pending.confirmation;
        if self.busy || self.pending.is_empty() && confirmation == self.written {
            return true;
        }
        let work = std::mem::take(&mut self.pending);
        self.pending.confirmation = confirmation;
        self.busy = true;
        self.in_hand = work.delivered.len();
        // It has room for one, and has none.
        self.keeper.try_send(work).is_ok()
    }
}
