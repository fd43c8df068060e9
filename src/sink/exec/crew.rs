//! The sink: which worker gets which task, and what its end means.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::process::{Program, Worker, cause};
use crate::backoff::Backoff;
use crate::envelope::plain;
use crate::outbox::Task;
use crate::sink::served;
use crate::sink::serving::{Server, Serves, Service, Tag};
use crate::sink::{Cause, Closing, Delivery, Outcome, Probe, Sight, Sink};
use crate::units::BackoffRange;

/// Pauses between starts, where workers end and never answer.
const RESTARTS: BackoffRange = BackoffRange {
    min: Duration::from_millis(200),
    max: Duration::from_secs(10),
};

/// Hands tasks to processes of its own.
pub struct Exec {
    program: Program,
    workers: usize,
    timeout: Duration,
    idle: Vec<Worker>,
    /// One for each process that there is, those that are being ended included.
    guards: JoinSet<()>,
    /// Workers that ended without an answer since there was one.
    silent: usize,
    restarts: Backoff,
    not_before: Option<Instant>,
}

impl Exec {
    pub(super) fn new(program: Program, workers: usize, timeout: Duration) -> Exec {
        Exec {
            program,
            workers,
            timeout,
            idle: Vec::new(),
            guards: JoinSet::new(),
            silent: 0,
            restarts: Backoff::new(RESTARTS),
            not_before: None,
        }
    }

    async fn work_off(&mut self, mut server: Server) -> Result<(), Cause> {
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return Err(Cause::new(format!(
                "workers of {} end without an answer; they are started again in a moment",
                self.program.name()
            )));
        }
        self.wait_for_ends().await;
        let mut under_way = FuturesUnordered::new();
        let mut outage = None;
        // Whether the tasks or the program are to blame shows when another one is answered.
        let mut silent: Vec<(Tag, Cause)> = Vec::new();
        loop {
            if under_way.is_empty() && server.is_empty() && outage.is_none() {
                server.answer_silent(&mut silent);
            }
            let takes = outage.is_none() && under_way.len() < self.workers;
            let (tag, worker, end) = tokio::select! {
                biased;
                Some(end) = under_way.next() => end,
                Some((tag, task)) = server.next(), if takes => {
                    let mut line = Vec::new();
                    if let Err(unfit) = plain::write(&mut line, &task) {
                        server.answer(tag, Outcome::Reject(Cause::new(unfit.into_words())));
                        continue;
                    }
                    line.push(b'\n');
                    match self.worker() {
                        Ok(worker) => under_way.push(work(tag, worker, line, self.timeout)),
                        Err(cause) => outage = Some(cause),
                    }
                    continue;
                }
                // What is under way is let come to its end before: it would only be done twice.
                else => return outage.map_or(Ok(()), Err),
            };
            self.idle.extend(worker);
            match end {
                Ok(outcome) => {
                    self.silent = 0;
                    self.restarts.reset();
                    server.answer_silent(&mut silent);
                    server.answer(tag, outcome);
                }
                Err(cause) => {
                    self.silent += 1;
                    if self.silent >= self.workers.max(2) {
                        self.pause();
                        outage.get_or_insert(cause);
                    } else {
                        silent.push((tag, cause));
                    }
                }
            }
        }
    }

    /// A worker with nothing to do, or a new one.
    fn worker(&mut self) -> Result<Worker, Cause> {
        while let Some(mut worker) = self.idle.pop() {
            if worker.is_ready() {
                return Ok(worker);
            }
        }
        let name = self.program.name();
        let started = self.program.start(&mut self.guards);
        started.map_err(|error| Cause::new(format!("{name} cannot be started: {error}")))
    }

    /// The next start has to wait, unless this is the first time.
    fn pause(&mut self) {
        self.silent = 0;
        let again = self.restarts.attempts() > 0;
        let pause = self.restarts.next(fastrand::f64());
        self.not_before = again.then(|| Instant::now() + pause);
    }

    /// Waits for processes that are being ended, as after a batch that was dropped: what they do must not go on beside the
    /// next task of its key. Their guards bound the wait.
    async fn wait_for_ends(&mut self) {
        self.idle.retain_mut(Worker::is_ready);
        while self.guards.len() > self.idle.len() && self.guards.join_next().await.is_some() {}
    }
}

/// Lets a worker do a task. It comes back with an answer, and only then.
async fn work(
    tag: Tag,
    mut worker: Worker,
    line: Vec<u8>,
    limit: Duration,
) -> (Tag, Option<Worker>, Result<Outcome, Cause>) {
    match timeout(limit, worker.ask(&line)).await {
        Ok(Ok(outcome)) => (tag, Some(worker), Ok(outcome)),
        Ok(Err(why)) => (tag, None, Err(cause(why, worker.end().await))),
        Err(_) => {
            let why = format!("the worker has not answered within {limit:?}, and was ended");
            (tag, None, Err(cause(&why, worker.end().await)))
        }
    }
}

impl Serves for Exec {
    fn side_by_side(&mut self) -> usize {
        // Of one that comes to its end without an answer it shows by the next what that means.
        self.workers.max(2)
    }

    fn serve(&mut self, server: Server) -> Service<'_> {
        Box::pin(self.work_off(server))
    }
}

impl Sink for Exec {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(served::deliver(self, batch))
    }

    fn serves(&mut self) -> Option<&mut dyn Serves> {
        Some(self)
    }

    fn probe(&mut self) -> Probe<'_> {
        let sight = match self.program.find() {
            Ok(path) => Sight::Good(format!("{} can be started", path.display())),
            Err(words) => Sight::Fault(
                words,
                "see to it that command names a program which the daemon's user may run".to_owned(),
            ),
        };
        Box::pin(std::future::ready(vec![sight]))
    }

    fn close(&mut self) -> Closing<'_> {
        Box::pin(async move {
            self.idle.drain(..).for_each(Worker::release);
            while self.guards.join_next().await.is_some() {}
        })
    }
}
