//! A lane: takes tasks in order, hands them to its sink, in batches or one by one, and reports what became of them.
//!
//! A sink that is away as a whole burns nobody's attempts: the lane pauses and hands the same batch over again. Past
//! `hold_after`, or under strain, it *spills*: all it has goes to the hold, in order, and so does what comes. What comes
//! back from there, a task now and then, is the probe: when the sink takes it, the lane goes on.

mod serving;
mod stall;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::queue::{At, LaneQueue, Verdict};
use super::{KeyHasher, Marking, Message, Origin, Passage, Report, Rule, Strain};
use crate::backoff::Backoff;
use crate::clock;
use crate::failpoint::{self, Point};
use crate::outbox::Task;
use crate::sink::{Cause, Outage, Outcome, Sink};
use crate::units::BackoffRange;

/// At most so many tasks, and bytes, are in the sink's hands at a time. Large enough to make a round trip cheap, small
/// enough that a batch, its encoding and its copy in a client library stay a small part of the memory budget.
const BATCH_TASKS: usize = 3072;
const BATCH_BYTES: usize = 1 << 20;

/// So many go to a sink that was away, to see whether it is back. Few: where it hangs, later tasks of their keys stay in the
/// daemon until it is given up, and could use up what all sinks may have in flight.
const TRIAL_TASKS: usize = 8;

/// From a delivery that took so long on, the next one waits a little for company: what was settled makes room, and what
/// comes into it would otherwise just miss the batch, and wait for a whole delivery. Each of the two would then carry half
/// of what may be under way.
const FAR: Duration = Duration::from_millis(20);
/// It waits for this part of the time that the delivery took, and not longer than that.
const GATHERING_PART: u32 = 16;
const GATHERING: Duration = Duration::from_millis(10);

/// A sink that goes away again so soon after it was back was not: the pauses go on growing.
const STEADY: Duration = Duration::from_secs(5);

/// One lane of a sink.
pub struct Lane {
    /// Its index among all lanes.
    pub index: usize,
    /// The sink's name in the configuration.
    pub name: Arc<str>,
    /// The sink, this lane's own.
    pub sink: Box<dyn Sink>,
    /// What it tells the sink of its tasks.
    pub marking: Marking,
    /// What each route says of failures.
    pub rules: Arc<[Rule]>,
    /// For the keys.
    pub hasher: KeyHasher,
    /// Whether the ids of delivered rows are wanted.
    pub with_ids: bool,
    /// Pauses while the sink is away.
    pub outage_backoff: BackoffRange,
    /// How long the sink may be away before the lane spills.
    pub spill_after: Duration,
    /// At most so many tasks are in the sink's hands: what may come twice, also of those that come from the hold, which
    /// `limits.in_flight` does not count.
    pub in_hands: usize,
    /// Tasks, in order, and news. The lane ends when it is closed and all is settled.
    pub inbox: mpsc::Receiver<Message>,
    /// Where the lane reports to.
    pub reports: mpsc::Sender<Report>,
    /// What is to become of tasks that are not in the sink's hands.
    pub strain: watch::Receiver<Strain>,
}

/// The sink is away.
struct Away {
    cause: Cause,
    backoff: Backoff,
    next_try: Instant,
    spill_at: Instant,
    spilled: bool,
}

struct Running {
    name: Arc<str>,
    marking: Marking,
    outage_backoff: BackoffRange,
    spill_after: Duration,
    in_hands: usize,
    inbox: mpsc::Receiver<Message>,
    reports: mpsc::Sender<Report>,
    strain: watch::Receiver<Strain>,
    queue: LaneQueue,
    away: Option<Away>,
    /// When the sink was last back, and how it had been away.
    recovered: Option<(Instant, Away)>,
    /// Until then, tasks are gathered for the next batch.
    gathers: Option<Instant>,
    /// The inbox is open.
    open: bool,
}

impl Lane {
    /// Runs until the inbox is closed and everything that came through it is settled, or nobody listens any more.
    pub async fn run(self) {
        let mut sink = self.sink;
        let mut running = Running {
            queue: LaneQueue::new(
                self.index,
                self.name.clone(),
                self.rules,
                self.hasher,
                self.with_ids,
            ),
            name: self.name,
            marking: self.marking,
            outage_backoff: self.outage_backoff,
            spill_after: self.spill_after,
            in_hands: self.in_hands,
            inbox: self.inbox,
            reports: self.reports,
            strain: self.strain,
            away: None,
            recovered: None,
            gathers: None,
            open: true,
        };
        match sink.serves().is_some() {
            true => running.serve(&mut *sink).await,
            false => running.work(&mut *sink).await,
        }
        sink.close().await;
    }
}

impl Running {
    /// Hands batches to the sink until the inbox is closed and all that came through it is settled, or nobody listens any
    /// more.
    async fn work(&mut self, sink: &mut dyn Sink) {
        loop {
            let away = self.away.is_some();
            self.take_in();
            self.spill(&HashSet::new());
            let limit = if away { TRIAL_TASKS } else { BATCH_TASKS };
            let limit = limit.min(self.in_hands);
            let most = sink.most().min(limit).max(1);
            let batch = match self.may_try(most) {
                true => self.queue.next_batch(at(), most, BATCH_BYTES),
                false => Vec::new(),
            };
            let tried = !batch.is_empty();
            if tried && !self.hand_over(sink, batch).await {
                return;
            }
            if !self.report().await {
                return;
            }
            if !tried && !self.wait().await {
                return;
            }
        }
    }

    fn take_in(&mut self) {
        let detach = self.away.is_some();
        let Running {
            inbox,
            open,
            queue,
            marking,
            ..
        } = self;
        take_in(inbox, open, queue, marking, detach);
    }

    /// Reports what has become of tasks. False when nobody listens any more.
    async fn report(&mut self) -> bool {
        match self.queue.take_report() {
            Some(report) => self.reports.send(report).await.is_ok(),
            None => true,
        }
    }

    /// Whether it is time for a batch, of `most` tasks at most.
    fn may_try(&mut self, most: usize) -> bool {
        let now = Instant::now();
        let is_enough = !self.open || self.queue.ready() >= most;
        self.gathers = self.gathers.filter(|until| *until > now && !is_enough);
        let away = self.away.as_ref();
        self.gathers.is_none() && away.is_none_or(|away| away.spilled || away.next_try <= now)
    }

    /// Sends to the hold what has waited for long enough; but not the tasks of keys, given by their hashes, that are in the
    /// sink's hands.
    fn spill(&mut self, in_hands: &HashSet<u64>) {
        let strain = *self.strain.borrow_and_update();
        let now = Instant::now();
        if strain >= Strain::Leaves {
            if let Some(away) = &mut self.away {
                // Nothing is left to be tried.
                away.spilled = true;
            }
            let why = self.away.as_ref().map(|away| away.cause.clone());
            let why = why.unwrap_or_else(|| Cause::new("the daemon was stopped before its turn"));
            self.queue.spill(now.into_std(), in_hands, &why, true);
            return;
        }
        if strain == Strain::Drains {
            self.queue.give_back();
        }
        let Some(away) = &mut self.away else {
            if strain > Strain::None {
                self.queue.spill_waiting(now.into_std());
            }
            return;
        };
        if away.spilled {
            self.queue
                .spill(now.into_std(), in_hands, &away.cause, false);
        } else if strain > Strain::None || away.spill_at <= now {
            away.spilled = true;
            self.queue
                .spill(now.into_std(), in_hands, &away.cause, true);
            warn!(
                sink = %self.name, cause = %away.cause,
                "the sink stays away; its tasks go to the hold table, and come back when it does"
            );
        }
    }

    /// Hands one batch to the sink. False when nobody listens any more.
    async fn hand_over(&mut self, sink: &mut dyn Sink, batch: Vec<Passage>) -> bool {
        let (tasks, tags): (Vec<Task>, Vec<(Origin, usize)>) = batch
            .into_iter()
            .map(|p| (p.task, (p.origin, p.route)))
            .unzip();
        let generation = self.marking.generation();
        let since = Instant::now();
        let Some(answer) = self.deliver(sink, &tasks).await else {
            return false;
        };
        let took = since.elapsed();
        failpoint::reach(Point::Acknowledged);
        self.marking.answered(self.queue.turn());
        // What is not delivered of an earlier generation comes again.
        let is_void = generation != self.marking.generation();
        let passages = tasks.into_iter().zip(tags);
        let (outcomes, away) = match answer {
            Ok(outcomes) => (outcomes, None),
            Err(Outage { cause, outcomes }) if outcomes.is_empty() => {
                (vec![Outcome::Unsent; passages.len()], Some(cause))
            }
            Err(Outage { cause, outcomes }) => (outcomes, Some(cause)),
        };
        assert_eq!(
            outcomes.len(),
            passages.len(),
            "a sink answers for each task of a batch"
        );
        // What was abandoned tells nothing of the sink.
        if away.is_none() && outcomes.iter().any(|outcome| *outcome != Outcome::Unsent) {
            self.is_back();
        }
        for ((task, (origin, route)), outcome) in passages.zip(outcomes) {
            match outcome {
                Outcome::Delivered => self.queue.delivered(&task, origin),
                _ if is_void => self.queue.forget(&task, origin),
                outcome => self.outcome(Passage::new(task, origin, route), outcome),
            }
        }
        self.queue.finish_batch();
        match away {
            Some(cause) => self.is_away(cause),
            None => {
                let pause = (took / GATHERING_PART).min(GATHERING);
                self.gathers = (took >= FAR).then(|| Instant::now() + pause);
            }
        }
        true
    }

    fn outcome(&mut self, passage: Passage, outcome: Outcome) {
        let cause = match &outcome {
            Outcome::Delivered => return self.queue.delivered(&passage.task, passage.origin),
            Outcome::Unsent => {
                self.queue.outcome(passage, outcome, at());
                return;
            }
            Outcome::Retry(cause) | Outcome::RetryIn(_, cause) | Outcome::Reject(cause) => {
                cause.clone()
            }
        };
        let id = passage.task.id().to_owned();
        let lsn = passage.task.position.commit_lsn;
        let sink = &self.name;
        match self.queue.outcome(passage, outcome, at()) {
            Verdict::Delivered | Verdict::Behind => {}
            Verdict::Again { attempts, pause } => {
                warn!(%sink, id, %lsn, %cause, attempts, ?pause, "not delivered; will be tried again");
            }
            Verdict::Held { attempts, pause } => {
                warn!(%sink, id, %lsn, %cause, attempts, ?pause, "not delivered; held, to be tried again");
            }
            Verdict::Dead { words } => {
                error!(%sink, id, %lsn, cause = words, "dead: this task is not sent again by itself; it is kept in the hold table");
            }
        }
    }

    /// The daemon does not wait for an answer any longer.
    fn abandons(&self, tasks: usize) {
        warn!(
            sink = %self.name, tasks,
            "the sink has not answered within the time of a stop; what it has goes to the hold table, and comes again"
        );
    }

    fn is_back(&mut self) {
        let Some(away) = self.away.take() else { return };
        info!(sink = %self.name, attempts = away.backoff.attempts(), "the sink is back");
        self.queue.report_away(false);
        self.recovered = Some((Instant::now(), away));
    }

    fn is_away(&mut self, cause: Cause) {
        let now = Instant::now();
        let sink = &self.name;
        let was_away = self.away.is_some();
        if !was_away {
            self.queue.report_away(true);
            let recovered = self.recovered.take();
            let before = recovered.filter(|(at, _)| at.elapsed() < STEADY);
            self.away = before.map(|(_, away)| away);
        }
        let relapses = !was_away && self.away.is_some();
        let away = self.away.get_or_insert_with(|| Away {
            cause: cause.clone(),
            backoff: Backoff::new(self.outage_backoff),
            next_try: now,
            spill_at: now + self.spill_after,
            spilled: false,
        });
        let pause = away.backoff.next(fastrand::f64());
        let attempts = away.backoff.attempts();
        match (was_away, relapses) {
            (true, _) => info!(%sink, %cause, attempts, "the sink is still away"),
            (false, true) => info!(%sink, %cause, attempts, "the sink is away again"),
            (false, false) => warn!(%sink, %cause, "the sink is away; its tasks wait"),
        }
        away.cause = cause;
        away.next_try = now + pause;
        if away.spilled {
            self.queue
                .spill(now.into_std(), &HashSet::new(), &away.cause, true);
        }
    }

    /// Waits until there is something to do. False when there never will be.
    async fn wait(&mut self) -> bool {
        if !self.open && self.queue.is_empty() {
            return false;
        }
        let due = self.queue.next_due().map(Instant::from_std);
        let pause = match &self.away {
            Some(away) if away.spilled => None,
            Some(away) => Some(away.next_try.min(away.spill_at)),
            None => [due, self.gathers].into_iter().flatten().min(),
        };
        let received = tokio::select! {
            message = self.inbox.recv(), if self.open => Some(message),
            () = clock::sleep_until(pause), if pause.is_some() => None,
            Ok(()) = self.strain.changed() => None,
            () = self.reports.closed() => return false,
        };
        match received {
            Some(Some(message)) => {
                let away = self.away.is_some();
                hear(&mut self.queue, &mut self.marking, message, away);
            }
            Some(None) => self.open = false,
            None => {}
        }
        true
    }
}

/// Takes what is in the inbox. `detach`: it will wait for long, and must not keep the read buffer alive.
fn take_in(
    inbox: &mut mpsc::Receiver<Message>,
    open: &mut bool,
    queue: &mut LaneQueue,
    marking: &mut Marking,
    detach: bool,
) {
    while *open {
        match inbox.try_recv() {
            Ok(message) => hear(queue, marking, message, detach),
            Err(mpsc::error::TryRecvError::Empty) => return,
            Err(mpsc::error::TryRecvError::Disconnected) => *open = false,
        }
    }
}

fn hear(queue: &mut LaneQueue, marking: &mut Marking, message: Message, detach: bool) {
    match message {
        Message::Tasks(mut passages) => {
            if detach {
                passages
                    .iter_mut()
                    .for_each(|passage| passage.task.detach());
            }
            queue.extend(passages);
        }
        Message::Begins {
            generation,
            identity,
            held,
        } => {
            queue.begin(held);
            marking.begin(generation, identity);
        }
        Message::Written { seq, saved } => {
            queue.written(seq);
            marking.written(seq, saved);
        }
        Message::Freed(hashes) => queue.freed(&hashes),
    }
}

fn at() -> At {
    At {
        now: Instant::now().into_std(),
        wall: clock::now(),
        random: fastrand::f64(),
    }
}
