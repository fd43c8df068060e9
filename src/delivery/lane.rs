//! A lane: takes tasks in order, hands them to its sink in batches, and reports what became of them.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Passage;
use super::queue::LaneQueue;
use crate::backoff::Backoff;
use crate::failpoint::{self, Point};
use crate::outbox::Task;
use crate::sink::{Cause, Outage, Outcome, Sink};
use crate::units::BackoffRange;
use crate::watermark::Ticket;

/// At most so many tasks, and bytes, are in the sink's hands at a time. Large enough to make a round trip cheap, small
/// enough that a batch, its encoding and its copy in a client library stay a small part of the memory budget.
const BATCH_TASKS: usize = 3072;
const BATCH_BYTES: usize = 1 << 20;

/// What became of some tasks of a lane.
#[derive(Debug)]
pub enum Report {
    /// Delivered; so many tasks of each transaction, and their bytes in all.
    Delivered {
        /// Transactions and the number of their tasks that were delivered.
        counts: Vec<(Ticket, u64)>,
        /// Tasks in all.
        tasks: u64,
        /// Their size in all.
        bytes: usize,
    },
    /// Can never be delivered as it is.
    Rejected {
        /// The task.
        task: Task,
        /// Why.
        cause: Cause,
    },
}

/// One lane of a sink.
pub struct Lane {
    /// The sink's name in the configuration, for the log.
    pub name: Arc<str>,
    /// The sink, this lane's own.
    pub sink: Box<dyn Sink>,
    /// Pauses between attempts, by route.
    pub backoffs: Arc<[BackoffRange]>,
    /// Pauses while the sink is away.
    pub outage_backoff: BackoffRange,
    /// Tasks, in order. The lane ends when it is closed and all is delivered.
    pub inbox: mpsc::Receiver<Vec<Passage>>,
    /// Where the lane reports to.
    pub reports: mpsc::Sender<Report>,
}

impl Lane {
    /// Runs until the inbox is closed and everything that came through it is settled, or nobody listens any more.
    pub async fn run(mut self) {
        let mut queue = LaneQueue::default();
        let mut outage = Backoff::new(self.outage_backoff);
        let mut open = true;
        loop {
            while open {
                match self.inbox.try_recv() {
                    Ok(passages) => passages.into_iter().for_each(|passage| queue.push(passage)),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => open = false,
                }
            }
            let batch = queue.next_batch(Instant::now().into_std(), BATCH_TASKS, BATCH_BYTES);
            if !batch.is_empty() {
                if !self.hand_over(batch, &mut queue, &mut outage).await {
                    return;
                }
                continue;
            }
            let due = queue.next_due();
            if !open && due.is_none() {
                return;
            }
            tokio::select! {
                message = self.inbox.recv(), if open => match message {
                    Some(passages) => passages.into_iter().for_each(|passage| queue.push(passage)),
                    None => open = false,
                },
                () = sleep_until(due), if due.is_some() => {}
            }
        }
    }

    /// Hands one batch to the sink and reports. False when nobody listens to the reports any more.
    async fn hand_over(
        &mut self,
        batch: Vec<Passage>,
        queue: &mut LaneQueue,
        outage: &mut Backoff,
    ) -> bool {
        let (tasks, tags): (Vec<Task>, Vec<(Ticket, usize)>) = batch
            .into_iter()
            .map(|p| (p.task, (p.ticket, p.route)))
            .unzip();
        let answer = self.sink.deliver(&tasks).await;
        failpoint::reach(Point::Acknowledged);
        let batch = tasks
            .into_iter()
            .zip(tags)
            .map(|(task, (ticket, route))| Passage {
                task,
                ticket,
                route,
            });
        match answer {
            Ok(outcomes) => {
                assert_eq!(
                    outcomes.len(),
                    batch.len(),
                    "a sink answers for each task of a batch"
                );
                if outage.attempts() > 0 {
                    info!(sink = %self.name, attempts = outage.attempts(), "the sink is back");
                    outage.reset();
                }
                self.settle(batch.zip(outcomes), queue).await
            }
            Err(Outage(cause)) => {
                queue.give_back(batch.collect());
                // What waits for longer must not keep the read buffers alive.
                while let Ok(passages) = self.inbox.try_recv() {
                    for mut passage in passages {
                        passage.task.detach();
                        queue.push(passage);
                    }
                }
                let pause = outage.next(fastrand::f64());
                if outage.attempts() == 1 {
                    warn!(sink = %self.name, %cause, "the sink is away; its tasks wait");
                } else {
                    info!(sink = %self.name, %cause, attempts = outage.attempts(), "the sink is still away");
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => true,
                    () = self.reports.closed() => false,
                }
            }
        }
    }

    async fn settle(
        &mut self,
        results: impl Iterator<Item = (Passage, Outcome)>,
        queue: &mut LaneQueue,
    ) -> bool {
        let mut counts: Vec<(Ticket, u64)> = Vec::new();
        let (mut tasks, mut bytes) = (0, 0);
        let mut rejected = Vec::new();
        let now = Instant::now().into_std();
        for (passage, outcome) in results {
            match outcome {
                Outcome::Delivered => {
                    queue.delivered(&passage);
                    tasks += 1;
                    bytes += passage.task.size();
                    match counts.last_mut() {
                        Some((ticket, count)) if *ticket == passage.ticket => *count += 1,
                        _ => counts.push((passage.ticket, 1)),
                    }
                }
                Outcome::Retry(cause) => {
                    let route = passage.route;
                    let (id, lsn) = (
                        passage.task.id().to_owned(),
                        passage.task.position.commit_lsn,
                    );
                    let attempts = queue.retry(passage, self.backoffs[route], now, fastrand::f64());
                    warn!(sink = %self.name, id, %lsn, %cause, attempts, "not delivered; will be tried again");
                }
                Outcome::Reject(cause) => rejected.push((passage.task, cause)),
            }
        }
        if tasks > 0
            && self
                .reports
                .send(Report::Delivered {
                    counts,
                    tasks,
                    bytes,
                })
                .await
                .is_err()
        {
            return false;
        }
        if let Some((task, cause)) = rejected.first() {
            error!(
                sink = %self.name, id = task.id(), task = task.name(), lsn = %task.position.commit_lsn, %cause,
                others = rejected.len() - 1, "rejected: this task can never be delivered as it is"
            );
        }
        for (task, cause) in rejected {
            if self
                .reports
                .send(Report::Rejected { task, cause })
                .await
                .is_err()
            {
                return false;
            }
        }
        true
    }
}

async fn sleep_until(due: Option<std::time::Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}
