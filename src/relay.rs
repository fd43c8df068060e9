//! Floor 7: the loop between the stream and the lanes. It selects, makes an event of what is ready, and handles it.
//!
//! The relay owns the gate's queue and the watermark. One direction: items come from the intake, wait at the gate until
//! their transaction is visible, are routed and go into a lane; reports come back and move the watermark; its position
//! goes to the intake, which confirms it.

mod gatehouse;
mod outgoing;
mod phase;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

pub use self::gatehouse::Gate;
use self::gatehouse::{Gatehouse, size};
use self::outgoing::Outgoing;
pub use self::outgoing::SinkLanes;
pub use self::phase::End;
use self::phase::Phase;
use crate::delivery::{Passage, Report};
use crate::failpoint::{self, Point};
use crate::gate::clearance::Clearance;
use crate::gate::watcher::News;
use crate::intake::{Batch, Confirmation, Item, Line, Order, Session};
use crate::outbox::Task;
use crate::outbox::assembler::Event;
use crate::pg::Lsn;
use crate::replication::Stop;
use crate::route::Router;
use crate::watermark::{Begun, Ticket, Watermark};

/// Items at the gate, for each task of the budget: an empty transaction and a keepalive take room too.
const WAITING_ITEMS: u64 = 4;

/// Transactions that are not wholly settled, or stand behind one that is not. A task that is tried again and again lets
/// all others pass, but not for ever: each of their transactions is remembered until the server may forget it.
const TRANSACTIONS: usize = 1 << 18;

/// Room for messages to a lane beyond the in-flight limit: what one message of the intake can bring on top of it.
pub const LANE_SLACK: usize = 1 << 17;

/// The relay's ends of its channels.
#[derive(Debug)]
pub struct Channels {
    /// From the intake: what it has read.
    pub batches: mpsc::Receiver<Batch>,
    /// From the intake: how it stands.
    pub line: watch::Receiver<Line>,
    /// To the intake: what may be confirmed.
    pub confirmed: watch::Sender<Confirmation>,
    /// To the intake: what to do.
    pub orders: watch::Sender<Order>,
    /// From the lanes.
    pub reports: mpsc::Receiver<Report>,
    /// Signals to stop: 1 is SIGTERM or SIGINT, 2 a second one.
    pub signals: watch::Receiver<u8>,
}

/// What the relay may hold at a time.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Tasks.
    pub tasks: u64,
    /// Bytes of tasks.
    pub bytes: usize,
}

/// The transaction whose events are coming through.
#[derive(Clone, Copy, Debug)]
enum Passing {
    /// None.
    Between,
    /// One whose rows go on their way, from row `skip` on.
    Open { ticket: Ticket, skip: u64 },
    /// One that was taken before the connection was lost.
    Known,
    /// Nothing passes any more: the daemon drains, and this would be new, or could never be confirmed. Never left, or a
    /// keepalive behind what was not taken would confirm it.
    Closed,
}

/// The relay.
pub struct Relay {
    router: Router,
    /// By route: index of its sink.
    sink_of_route: Vec<usize>,
    outgoing: Outgoing,
    gatehouse: Gatehouse,
    budget: Budget,
    channels: Channels,

    watermark: Watermark,
    passing: Passing,
    phase: Phase,
    session: Option<Session>,
    /// The intake has ended, and said why.
    intake_halted: bool,
    /// A lane does not take what it is sent.
    lane_died: bool,
    /// Bytes of the tasks that are waiting or in a lane.
    bytes: usize,
    /// Tasks that were rejected; they stay unsettled.
    rejected: u64,
    delivered: u64,
}

enum Wake {
    Signal(u8),
    Deadline,
    Report(Report),
    News(News),
    Line,
    IntakeGone,
    Batch(Batch),
    LanesGone,
}

impl Relay {
    /// A relay at rest. `gate` is `None` where neither visibility nor replicas are asked for.
    pub fn new(
        router: Router,
        sink_of_route: Vec<usize>,
        sinks: Vec<SinkLanes>,
        gate: Option<Gate>,
        budget: Budget,
        channels: Channels,
    ) -> Relay {
        Relay {
            router,
            sink_of_route,
            outgoing: Outgoing::new(sinks),
            gatehouse: Gatehouse::new(gate),
            budget,
            channels,
            watermark: Watermark::default(),
            passing: Passing::Between,
            phase: Phase::Running,
            session: None,
            intake_halted: false,
            lane_died: false,
            bytes: 0,
            rejected: 0,
            delivered: 0,
        }
    }

    /// Runs until a signal, `--until`, or an error that needs the operator; then the intake has been told to finish.
    pub async fn run(mut self) -> End {
        let end = loop {
            match self.select().await {
                Wake::Signal(1) => self.drain(End::Clean),
                Wake::Signal(_) => {
                    warn!(
                        in_flight = self.watermark.outstanding(),
                        "stopping at once; what is in flight may be sent again"
                    );
                    break End::Clean;
                }
                Wake::Deadline => {
                    warn!(
                        in_flight = self.watermark.outstanding(),
                        "what is in flight was not delivered in time; it is not lost, and some of it may be sent twice"
                    );
                    break self.phase.take_end();
                }
                Wake::Report(report) => self.report(report),
                Wake::News(News::Cleared(clearance)) => self.cleared(clearance),
                Wake::News(News::ServerLeaving) => {
                    self.channels.orders.send_replace(Order::Leave);
                }
                Wake::Line => self.line(),
                Wake::Batch(batch) => self.batch(batch),
                Wake::IntakeGone | Wake::LanesGone => break End::part_died(),
            }
            if self.lane_died {
                break End::part_died();
            }
            self.publish();
            if self.drained() {
                break self.phase.take_end();
            }
        };
        info!(delivered = self.delivered, confirmed = %self.watermark.confirmed().lsn(), "stopping");
        self.channels.orders.send_replace(Order::Finish);
        // Until the intake has closed: it may be handing over what nobody will take.
        while self.channels.batches.recv().await.is_some() {}
        end
    }

    /// Waits for the next thing to do, by priority.
    async fn select(&mut self) -> Wake {
        let room = self.watermark.outstanding() + self.gatehouse.tasks() < self.budget.tasks
            && self.bytes < self.budget.bytes
            && (self.gatehouse.items() as u64) < self.budget.tasks.saturating_mul(WAITING_ITEMS)
            && self.watermark.transactions() < TRANSACTIONS;
        let deadline = self.phase.deadline();
        let take = room && !self.intake_halted && (deadline.is_none() || self.is_completing());
        tokio::select! {
            biased;
            // 1. A change of phase.
            Ok(()) = self.channels.signals.changed() => Wake::Signal(*self.channels.signals.borrow()),
            () = sleep_until(deadline), if deadline.is_some() => Wake::Deadline,
            changed = self.channels.line.changed(), if !self.intake_halted => match changed {
                Ok(()) => Wake::Line,
                Err(_) => Wake::IntakeGone,
            },
            // 2. Outcomes.
            report = self.channels.reports.recv() => report.map_or(Wake::LanesGone, Wake::Report),
            // 3. The gate.
            Some(news) = self.gatehouse.news() => Wake::News(news),
            // 4. Intake, only with budget in hand. That it has ended, the line tells.
            Some(batch) = self.channels.batches.recv(), if take => Wake::Batch(batch),
        }
    }

    /// The intake stands differently. What stood between is not seen, and need not be.
    fn line(&mut self) {
        let line = self.channels.line.borrow_and_update().clone();
        match line {
            Line::Up(session) if self.session == Some(session) => {}
            Line::Up(session) => {
                self.end_session();
                self.begin_session(session);
            }
            Line::Down => self.end_session(),
            Line::Halted(halt) => {
                self.end_session();
                self.intake_halted = true;
                self.drain(End::Halted(halt));
            }
        }
    }

    fn batch(&mut self, batch: Batch) {
        let is_current =
            |session: Option<Session>| session.is_some_and(|it| it.number == batch.session);
        if !is_current(self.session) {
            // It may have overtaken the word of its session.
            self.line();
        }
        if !is_current(self.session) {
            return;
        }
        for item in batch.items {
            self.bytes += size(&item);
            if let Some(item) = self.gatehouse.arrive(item) {
                self.pass(item);
            }
        }
        self.send_off();
    }

    fn begin_session(&mut self, session: Session) {
        let before = self.channels.confirmed.borrow().generation;
        if before != session.generation {
            self.watermark.reset();
            self.rejected = 0;
            self.channels.confirmed.send_replace(Confirmation {
                generation: session.generation,
                lsn: self.watermark.confirmed(),
            });
        }
        self.session = Some(session);
        self.gatehouse.open(session.walsender_pid);
    }

    /// What waits at the gate comes again with the next session; what was let through stays on its way.
    fn end_session(&mut self) {
        self.session = None;
        if !matches!(self.passing, Passing::Closed) {
            self.passing = Passing::Between;
        }
        self.bytes -= self.gatehouse.close();
    }

    fn cleared(&mut self, clearance: Clearance) {
        self.gatehouse.learn(clearance);
        while let Some(item) = self.gatehouse.next() {
            self.pass(item);
        }
        self.send_off();
    }

    /// An item goes through the gate.
    fn pass(&mut self, item: Item) {
        match item {
            Item::Outbox(Event::Begin { commit_lsn, .. }) => self.pass_begin(commit_lsn),
            Item::Outbox(Event::Task(task)) => self.pass_task(task),
            Item::Outbox(Event::Commit { end_lsn }) => match self.passing {
                Passing::Open { .. } => {
                    self.watermark.commit(end_lsn);
                    self.passing = Passing::Between;
                }
                Passing::Known | Passing::Between => self.passing = Passing::Between,
                Passing::Closed => {}
            },
            Item::Keepalive(wal_end) => {
                if let Passing::Between = self.passing {
                    self.watermark.keepalive(wal_end);
                }
            }
        }
    }

    fn pass_begin(&mut self, commit_lsn: Lsn) {
        let closed = matches!(self.passing, Passing::Closed);
        if closed || self.phase.is_draining() && !self.watermark.in_transaction() {
            self.passing = Passing::Closed;
            return;
        }
        self.passing = match self.watermark.begin(commit_lsn) {
            Ok(Begun::Open { ticket, skip }) => Passing::Open { ticket, skip },
            Ok(Begun::Known) => Passing::Known,
            Err(gap) => {
                self.drain(End::halted(Stop::SlotLost, gap.to_string()));
                Passing::Closed
            }
        };
    }

    fn pass_task(&mut self, task: Task) {
        let Passing::Open { ticket, skip } = self.passing else {
            self.bytes -= task.size();
            return;
        };
        if task.position.ordinal < skip {
            self.bytes -= task.size();
            return;
        }
        self.watermark.open();
        failpoint::reach(Point::InTransaction);
        let Some(route) = self.router.route(task.name()) else {
            let cause = crate::sink::Cause::new(
                "no [[route]] matches its name; add one, with task = \"*\" for all the rest",
            );
            self.reject(&task, &cause);
            return;
        };
        let sink = self.sink_of_route[route];
        let passage = Passage {
            task,
            ticket,
            route,
        };
        self.outgoing.add(sink, passage);
    }

    fn send_off(&mut self) {
        self.lane_died |= !self.outgoing.send_off();
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Delivered {
                counts,
                tasks,
                bytes,
            } => {
                for (ticket, count) in counts {
                    self.watermark.settle(ticket, count);
                }
                self.delivered += tasks;
                self.bytes -= bytes;
                if self.phase.is_draining() {
                    failpoint::reach(Point::Draining);
                }
            }
            Report::Rejected { task, cause } => self.reject(&task, &cause),
        }
    }

    /// Without a hold table a task that can never be delivered stops the daemon: anything else would lose it. What comes
    /// behind it can't be confirmed, and would only be sent twice.
    fn reject(&mut self, task: &Task, cause: &crate::sink::Cause) {
        self.rejected += 1;
        self.bytes -= task.size();
        self.passing = Passing::Closed;
        let lsn = task.position.commit_lsn;
        let message = format!(
            "task {} ({:?}), committed at {lsn}, can never be delivered: {cause}. Nothing is lost: it stays in the outbox and in \
             the slot, and is tried again at the next start. Correct the configuration; or send it elsewhere, by a [[route]] \
             for exactly its name; or skip its whole transaction: \
             select pg_replication_slot_advance('<slot>', '{lsn}'::pg_lsn + 1)",
            task.id(),
            task.name(),
        );
        self.drain(End::halted(Stop::Runtime, message));
    }

    fn drain(&mut self, end: End) {
        if let (End::Clean, false) = (&end, self.phase.is_draining()) {
            info!(in_flight = self.watermark.outstanding(), "draining");
        }
        self.phase.drain(end);
    }

    /// A transaction of which only a part was taken is completed, or it would all come again; but not if it cannot be.
    fn is_completing(&self) -> bool {
        self.session.is_some()
            && self.watermark.in_transaction()
            && !matches!(self.passing, Passing::Closed)
    }

    fn drained(&self) -> bool {
        // A task may have been rejected on another generation, whose work no longer counts.
        let settled = self.watermark.outstanding() <= self.rejected;
        self.phase.is_draining() && settled && !self.is_completing()
    }

    fn publish(&mut self) {
        let Some(session) = self.session else { return };
        let lsn = self.watermark.confirmed();
        self.channels.confirmed.send_if_modified(|known| {
            let news = known.lsn != lsn && known.generation == session.generation;
            known.lsn = if news { lsn } else { known.lsn };
            news
        });
        if !self.phase.is_draining()
            && session
                .until
                .is_some_and(|until| until != Lsn::ZERO && lsn.lsn() >= until)
        {
            info!(until = ?session.until, "everything up to there is settled");
            self.drain(End::Clean);
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline).await;
    }
}

#[cfg(test)]
mod tests;
