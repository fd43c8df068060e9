//! One act: the same transactions, one way of handing their tasks over, and a live view of what comes of it.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Error;
use super::application::{Application, HandOver};
use super::celery::Celery;
use super::daemon::{Daemon, Order};
use super::ledger::Counts;
use super::plan::{self, Transaction};
use super::postgres::Database;
use super::screen::Screen;
use super::view::View;
use super::worker::Queue;

/// Events on their way to the ledger.
const EVENTS: usize = 4_096;
const FRAME: Duration = Duration::from_millis(100);
/// How long committed tasks may be on their way when the application has ended; what has not run by then is lost.
const PATIENCE: Duration = Duration::from_secs(15);

/// Time since the act began to be set up.
#[derive(Clone, Copy)]
pub(super) struct Clock(Instant);

impl Clock {
    /// Now.
    pub(super) fn now(self) -> Duration {
        self.0.elapsed()
    }

    /// Waits until then.
    pub(super) async fn sleep_until(self, time: Duration) {
        tokio::time::sleep_until(self.0 + time).await;
    }
}

/// How the tasks get to the worker.
pub(super) enum Way<'a> {
    /// Handed over inside of the transaction.
    Direct,
    /// Handed over when COMMIT has returned.
    OnCommit,
    /// Through the outbox and the daemon, which is killed in the middle; with Celery where it is there, else to the
    /// worker inside of this process.
    Outbox(&'a Daemon<'a>, Option<&'a mut Celery>),
}

/// Plays an act, and returns what it came to.
pub(super) async fn play(
    way: Way<'_>,
    database: &Database,
    plan: &[Transaction],
    length: Duration,
    screen: &mut Screen,
) -> Result<Counts, Error> {
    database.empty().await?;
    let clock = Clock(Instant::now());
    let (events, mut happened) = mpsc::channel(EVENTS);
    let mut crew = JoinSet::new();
    let queue = Queue::open(database, clock, &events, &mut crew).await?;
    let (orders, to_daemon) = mpsc::channel(2);
    let (ready, is_ready) = oneshot::channel();
    let (hand_over, kill_at) = match way {
        Way::Direct => (HandOver::Direct(queue.clone()), None),
        Way::OnCommit => (HandOver::OnCommit(queue.clone()), None),
        Way::Outbox(..) => (HandOver::Outbox, Some(length / 2)),
    };
    let reported = events.clone();
    let keeper = async move {
        let Way::Outbox(daemon, celery) = way else {
            let _ = ready.send(());
            return Ok(());
        };
        let (ended, daemon_ended) = oneshot::channel();
        let daemon = async {
            let kept = daemon.keep(database, queue, clock, reported.clone(), to_daemon, ready);
            kept.await?;
            let _ = ended.send(());
            Ok(())
        };
        match celery {
            Some(celery) => {
                let watch = celery.watch(clock, reported.clone(), daemon_ended);
                tokio::try_join!(daemon, watch).map(drop)
            }
            None => daemon.await,
        }
    };
    let show = async {
        if is_ready.await.is_err() {
            // The keeper has ended with an error, which is the act's.
            return std::future::pending().await;
        }
        let mut processes = Vec::new();
        for _ in 0..plan::CONNECTIONS {
            let one = Application::start(database, hand_over.clone(), clock, events.clone());
            processes.push(one.await?);
        }
        drop((hand_over, events));
        let begin = clock.now();
        let mut application = JoinSet::new();
        for (number, process) in (0..).zip(processes) {
            let own = plan.iter().filter(|one| one.connection() == number);
            application.spawn(process.run(own.cloned().collect(), begin));
        }
        let mut view = View::new(screen, length);
        let mut frames = tokio::time::interval(FRAME);
        let mut kill_at = kill_at;
        let mut left_at = None;
        loop {
            // Events first: at a frame, all that was reported has been counted.
            tokio::select! {
                biased;
                event = happened.recv() => match event {
                    Some(event) => view.record(event),
                    None => break,
                },
                Some(ended) = application.join_next() => {
                    ended.map_err(Error::Task)??;
                    if application.is_empty() {
                        left_at = Some(clock.now());
                    }
                }
                Some(ended) = crew.join_next() => ended.map_err(Error::Task)??,
                _ = frames.tick() => {
                    let now = clock.now();
                    let done = left_at.is_some_and(|left| {
                        view.counts().lost == 0 || now > left + PATIENCE
                    });
                    if kill_at.is_some_and(|time| now >= begin + time) {
                        kill_at = None;
                        let _ = orders.try_send(Order::Kill);
                    } else if done {
                        // A second one finds the channel full or closed, and changes nothing.
                        let _ = orders.try_send(Order::Stop);
                    }
                    view.draw(now.saturating_sub(begin)).await;
                }
            }
        }
        view.close().await;
        Ok(view.counts())
    };
    // The keeper's error ends the act; without one, the act is over when its events are.
    let ((), counts) = tokio::try_join!(keeper, show)?;
    Ok(counts)
}
