//! What the lanes and the keeper say, and what is decided on a task that does not go into a lane.

use tracing::{error, warn};

use super::Relay;
use super::timing::not_before;
use crate::delivery::{News, Origin, Passage, Report, Rows, Written};
use crate::failpoint::{self, Point};
use crate::hold::{Buried, Park, Released, State};
use crate::outbox::Task;
use crate::pg::Timestamp;
use crate::watermark::Ticket;

/// Why a task is dead that no route matches.
const NO_ROUTE: &str =
    "no [[route]] matches its name; add one, with task = \"*\" for all the rest, and retry it";

impl Relay {
    /// Finds a task's way: into a lane, or into the hold.
    pub(super) fn dispatch(&mut self, task: Task, ticket: Ticket) {
        if self.held.contains(&task.position) {
            // It came before, and its place is in the hold now.
            self.channels.memory.free(task.size());
            self.watermark.settle(ticket, 1);
            return;
        }
        let Some(route) = self.routes.router.route(task.name()) else {
            error!(
                id = task.id(), task = task.name(), lsn = %task.position.commit_lsn, cause = NO_ROUTE,
                "dead: this task is not sent; it is kept in the hold table"
            );
            return self.park(task, ticket, None, State::Dead, None);
        };
        let (_, sink) = self.routes.ways[route];
        if let Some(due_at) = not_before(&task, self.outgoing.keeps(sink)) {
            return self.park(task, ticket, Some(route), State::Scheduled, Some(due_at));
        }
        let passage = Passage {
            task,
            origin: Origin::Stream(ticket),
            route,
        };
        self.outgoing.add(sink, passage);
    }

    fn park(
        &mut self,
        mut task: Task,
        ticket: Ticket,
        route: Option<usize>,
        state: State,
        due_at: Option<Timestamp>,
    ) {
        task.detach();
        let way = route.map(|route| &self.routes.ways[route]);
        let sink = way.map(|(_, sink)| self.outgoing.name(*sink).clone());
        let park = Park {
            task,
            sink: sink.unwrap_or_default(),
            route: way.map(|(pattern, _)| pattern.clone()).unwrap_or_default(),
            state,
            due_in: None,
            due_at,
            blocks: false,
            attempts: 0,
            error: (state == State::Dead).then(|| NO_ROUTE.to_owned()),
        };
        self.ledger.park(ticket, park);
    }

    /// What became of tasks of a lane.
    pub(super) fn report(&mut self, report: Report) {
        for (ticket, count) in report.counts {
            self.watermark.settle(ticket, count);
        }
        self.delivered += report.delivered;
        if self.phase.is_draining() {
            failpoint::reach(Point::Draining);
        }
        self.channels.memory.free(report.bytes);
        self.released -= report.rows.len();
        self.ledger.delivered(report.delivered, &report.ids);
        for (ticket, park) in report.parks {
            // One from before another history of the server comes again, if it exists there.
            match self.watermark.knows(ticket) {
                true => self.ledger.park(ticket, park),
                false => self.channels.memory.free(park.task.size()),
            }
        }
        self.ledger.rows(report.rows);
        self.ledger.covers(report.lane, report.seq);
        if let Some(away) = report.away {
            let away = self.outgoing.set_away(report.lane, away);
            self.channels
                .wishes
                .send_modify(|wishes| wishes.away = away);
        }
    }

    /// What the keeper has to say.
    pub(super) fn kept(&mut self, news: News) {
        match news {
            News::Written(written) => self.written(written),
            News::Held {
                session,
                keys,
                positions,
            } => {
                self.told = session.generation;
                self.held = positions;
                self.outgoing.tell_begin(session, keys);
            }
            News::Freed(keys) => self.outgoing.tell_freed(&keys),
            News::Lags(lags) => self.gauge.set_lags(lags),
            News::Released(released) => {
                self.released += released.len();
                let mut rows = Rows::default();
                for released in released {
                    self.release(released, &mut rows);
                }
                self.released -= rows.len();
                self.ledger.rows(rows);
                self.outgoing.send_off();
            }
        }
    }

    fn written(&mut self, written: Written) {
        for &(ticket, bytes) in &written.parked {
            self.watermark.settle(ticket, 1);
            self.channels.memory.free(bytes);
        }
        self.outgoing.tell_written(&written);
        self.ledger.is_written(written.confirmation);
        self.ends_here();
    }

    /// A held task is due: it goes to the sink that it is held for; where that is gone, to where its name leads now.
    fn release(&mut self, released: Released, rows: &mut Rows) {
        let Released {
            hold_id,
            task,
            attempts,
            ..
        } = released;
        if self.phase.is_draining() {
            rows.returned.push(hold_id);
            return;
        }
        let ways = &self.routes.ways;
        let by_name = self.routes.router.route(task.name());
        let of_sink = self.outgoing.named(&released.sink);
        let route = match of_sink {
            Some(sink) => {
                let held_by = ways
                    .iter()
                    .position(|(pattern, to)| **pattern == *released.route && *to == sink);
                held_by
                    .or_else(|| by_name.filter(|route| ways[*route].1 == sink))
                    .or_else(|| ways.iter().position(|(_, to)| *to == sink))
                    .or(by_name)
            }
            None => by_name,
        };
        let Some(route) = route else {
            warn!(
                id = task.id(),
                task = task.name(),
                sink = &*released.sink,
                cause = NO_ROUTE,
                "dead: this held task has no sink any more"
            );
            rows.buried.push(Buried {
                hold_id,
                attempts,
                error: NO_ROUTE.to_owned(),
                blocks: false,
            });
            return;
        };
        let (_, sink) = ways[route];
        let passage = Passage {
            task,
            origin: Origin::Hold { hold_id, attempts },
            route,
        };
        self.outgoing.add(sink, passage);
    }
}
