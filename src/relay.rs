//! Floor 7: the loop between the stream and the lanes. It selects, makes an event of what is ready, and handles it.
//!
//! The relay owns the gate's queue and the watermark. One direction: items come from the intake, wait at the gate until
//! their transaction is visible, are routed and go into a lane; reports come back and move the watermark. Its position,
//! and what became of the tasks, goes to the keeper, who writes it down and lets the intake confirm it.

mod gatehouse;
mod ledger;
mod outgoing;
mod phase;
mod reports;
mod strain;
mod timing;

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

pub use self::gatehouse::Gate;
use self::gatehouse::Gatehouse;
use self::ledger::Ledger;
use self::outgoing::Outgoing;
pub use self::outgoing::SinkLanes;
pub use self::phase::End;
use self::phase::Phase;
use self::strain::Gauge;
use crate::budget::Memory;
use crate::clock;
use crate::delivery::{KeyHasher, News as Kept, Report, Strain, Wishes, Work};
use crate::failpoint::{self, Point};
use crate::gate::clearance::Clearance;
use crate::gate::watcher::News;
use crate::intake::{Batch, Item, Line, Order, Session};
use crate::outbox::assembler::Event;
use crate::outbox::{Position, Task};
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
    /// To the intake: what to do.
    pub orders: watch::Sender<Order>,
    /// From the lanes.
    pub reports: mpsc::Receiver<Report>,
    /// To the lanes: what is to become of tasks that are not in a sink's hands.
    pub strain: watch::Sender<Strain>,
    /// To the keeper: what is to be written down. It has one piece of work at a time.
    pub work: mpsc::Sender<Work>,
    /// To the keeper: what else is wanted.
    pub wishes: watch::Sender<Wishes>,
    /// From the keeper: what is written down, held, or due.
    pub kept: mpsc::Receiver<Kept>,
    /// Whose room is given back when tasks are settled.
    pub memory: Arc<Memory>,
    /// Signals to stop: 1 is SIGTERM or SIGINT, 2 a second one.
    pub signals: watch::Receiver<u8>,
}

/// Where tasks go.
#[derive(Clone, Debug)]
pub struct Routes {
    /// Finds a task's route.
    pub router: Router,
    /// By route: its pattern, and the index of its sink.
    pub ways: Vec<(Arc<str>, usize)>,
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
    routes: Routes,
    outgoing: Outgoing,
    gatehouse: Gatehouse,
    /// Tasks that are read and not settled, at most.
    max_tasks: u64,
    channels: Channels,
    ledger: Ledger,
    gauge: Gauge,

    watermark: Watermark,
    passing: Passing,
    phase: Phase,
    session: Option<Session>,
    /// The intake has ended, and said why.
    intake_halted: bool,
    /// The keeper does not take what it is given.
    keeper_died: bool,
    /// The generation for which it is known what is held.
    told: u64,
    /// Rows that the server may send again, and that are held already.
    held: HashSet<Position>,
    /// Tasks from the hold that are in a lane.
    released: usize,
    delivered: u64,
}

enum Wake {
    Signal(u8),
    Deadline,
    Report(Report),
    Kept(Kept),
    Strained,
    News(News),
    Line,
    IntakeGone,
    Batch(Batch),
    PartGone,
}

impl Relay {
    /// A relay at rest. `gate` is `None` where neither visibility nor replicas are asked for.
    pub fn new(
        routes: Routes,
        sinks: Vec<SinkLanes>,
        hasher: KeyHasher,
        gate: Option<Gate>,
        max_tasks: u64,
        channels: Channels,
    ) -> Relay {
        Relay {
            routes,
            outgoing: Outgoing::new(sinks, hasher),
            gatehouse: Gatehouse::new(gate),
            max_tasks,
            ledger: Ledger::new(channels.work.clone()),
            gauge: Gauge::default(),
            channels,
            watermark: Watermark::default(),
            passing: Passing::Between,
            phase: Phase::Running,
            session: None,
            intake_halted: false,
            keeper_died: false,
            told: 0,
            held: HashSet::new(),
            released: 0,
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
                Wake::Kept(kept) => self.kept(kept),
                Wake::Strained => {}
                Wake::News(News::Cleared(clearance)) => self.cleared(clearance),
                Wake::News(News::ServerLeaving) => {
                    self.channels.orders.send_replace(Order::Leave);
                }
                Wake::Line => self.line(),
                Wake::Batch(batch) => self.batch(batch),
                Wake::IntakeGone | Wake::PartGone => break self.part_died(),
            }
            self.hand_over();
            if self.keeper_died || self.outgoing.lane_died() {
                break self.part_died();
            }
            if self.drained() {
                break self.phase.take_end();
            }
        };
        info!(delivered = self.delivered, confirmed = %self.ledger.written().lsn.lsn(), "stopping");
        self.channels.orders.send_replace(Order::Finish);
        // Until the intake has closed: it may be handing over what nobody will take.
        while self.channels.batches.recv().await.is_some() {}
        end
    }

    /// A part has ended. Where the intake has halted, the keeper has no session to write in any more, and ends too: the
    /// reason is the intake's.
    fn part_died(&mut self) -> End {
        match self.intake_halted {
            true => self.phase.take_end(),
            false => End::part_died(),
        }
    }

    /// Waits for the next thing to do, by priority.
    async fn select(&mut self) -> Wake {
        let room = self.watermark.outstanding() + self.gatehouse.tasks() < self.max_tasks
            && (self.gatehouse.items() as u64) < self.max_tasks.saturating_mul(WAITING_ITEMS)
            && self.watermark.transactions() < TRANSACTIONS;
        let deadline = self.phase.deadline();
        let is_told = self
            .session
            .is_none_or(|session| session.generation == self.told);
        let take = room
            && self.ledger.has_room()
            && is_told
            && !self.intake_halted
            && (deadline.is_none() || self.is_completing());
        let has_room = room && self.channels.memory.has_room();
        let strain = self.gauge.look(has_room, &self.phase);
        self.channels
            .strain
            .send_if_modified(|known| std::mem::replace(known, strain) != strain);
        let strain_at = self.gauge.due();
        tokio::select! {
            biased;
            // 1. A change of phase.
            Ok(()) = self.channels.signals.changed() => Wake::Signal(*self.channels.signals.borrow()),
            () = clock::sleep_until(deadline), if deadline.is_some() => Wake::Deadline,
            changed = self.channels.line.changed(), if !self.intake_halted => match changed {
                Ok(()) => Wake::Line,
                Err(_) => Wake::IntakeGone,
            },
            // 2. Outcomes.
            report = self.channels.reports.recv() => report.map_or(Wake::PartGone, Wake::Report),
            kept = self.channels.kept.recv() => kept.map_or(Wake::PartGone, Wake::Kept),
            () = clock::sleep_until(strain_at), if strain_at.is_some() => Wake::Strained,
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
        batch.charge.take_over();
        for item in batch.items {
            if let Some(item) = self.gatehouse.arrive(item) {
                self.pass(item);
            }
        }
        self.outgoing.send_off();
    }

    fn begin_session(&mut self, session: Session) {
        if self.ledger.generation() != session.generation {
            self.watermark.reset(session.start);
            let dropped = self.ledger.begin(session, self.watermark.confirmed());
            self.channels.memory.free(dropped);
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
        self.channels.memory.free(self.gatehouse.close());
    }

    fn cleared(&mut self, clearance: Clearance) {
        self.gatehouse.learn(clearance);
        while let Some(item) = self.gatehouse.next() {
            self.pass(item);
        }
        self.outgoing.send_off();
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
            self.channels.memory.free(task.size());
            return;
        };
        if task.position.ordinal < skip {
            self.channels.memory.free(task.size());
            return;
        }
        self.watermark.open();
        failpoint::reach(Point::InTransaction);
        self.dispatch(task, ticket);
    }

    fn drain(&mut self, end: End) {
        self.channels
            .wishes
            .send_if_modified(|wishes| !std::mem::replace(&mut wishes.draining, true));
        if let (End::Clean, false) = (&end, self.phase.is_draining()) {
            let in_flight = self.watermark.outstanding();
            info!(in_flight, released = self.released, "draining");
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
        self.phase.is_draining()
            && self.watermark.outstanding() == 0
            && self.released == 0
            && self.ledger.is_clear(self.watermark.confirmed())
            && !self.is_completing()
    }

    fn hand_over(&mut self) {
        let lsn = self.watermark.confirmed();
        self.keeper_died |= !self.ledger.hand_over(lsn);
    }

    /// Ends the daemon once everything is settled up to where it was to go.
    fn ends_here(&mut self) {
        let written = self.ledger.written();
        let session = self
            .session
            .filter(|session| session.generation == written.generation);
        let until = session.and_then(|session| session.until);
        let reached = until.is_some_and(|until| until != Lsn::ZERO && written.lsn.lsn() >= until);
        if reached && !self.phase.is_draining() {
            info!(?until, "everything up to there is settled");
            self.drain(End::Clean);
        }
    }
}

#[cfg(test)]
mod tests;
