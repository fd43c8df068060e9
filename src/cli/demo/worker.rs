//! The worker: a queue and a pool inside of this process, in the place of a broker and its workers. A task is run by
//! looking for its order's row, at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Error;
use super::act::Clock;
use super::ledger::Event;
use super::postgres::{Database, Session};

const WORKERS: usize = 8;
const QUEUE: usize = 256;

/// The way to the workers. They end when the last clone of it is gone and what it took has run.
#[derive(Clone)]
pub(super) struct Queue {
    workers: Vec<mpsc::Sender<u64>>,
    next: Arc<AtomicUsize>,
    events: mpsc::Sender<Event>,
    clock: Clock,
}

impl Queue {
    /// Starts the workers, each with a connection of its own.
    pub(super) async fn open(
        database: &Database,
        clock: Clock,
        events: &mpsc::Sender<Event>,
        crew: &mut JoinSet<Result<(), Error>>,
    ) -> Result<Queue, Error> {
        let mut workers = Vec::new();
        for _ in 0..WORKERS {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let session = database.session("shop").await?;
            crew.spawn(work(session, receiver, clock, events.clone()));
            workers.push(sender);
        }
        Ok(Queue {
            workers,
            next: Arc::default(),
            events: events.clone(),
            clock,
        })
    }

    /// Hands a task over.
    pub(super) async fn put(&self, order: u64, id: String, key: Option<String>) {
        let at = self.clock.now();
        let dispatched = Event::Dispatched { order, id, key, at };
        // A receiver that is gone has ended with an error, and that error ends the act.
        let _ = self.events.send(dispatched).await;
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let _ = self.workers[turn % self.workers.len()].send(order).await;
    }
}

async fn work(
    session: Session,
    mut tasks: mpsc::Receiver<u64>,
    clock: Clock,
    events: mpsc::Sender<Event>,
) -> Result<(), Error> {
    let look = session
        .client
        .prepare("select customer from orders_order where id = $1")
        .await?;
    while let Some(order) = tasks.recv().await {
        let row = session
            .client
            .query_opt(&look, &[&order.cast_signed()])
            .await?;
        let ran = Event::Ran {
            order,
            found: row.is_some(),
            at: clock.now(),
        };
        let _ = events.send(ran).await;
    }
    Ok(())
}
