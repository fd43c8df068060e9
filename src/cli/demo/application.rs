//! The application: a few processes that write orders in transactions, and enqueue a task for each.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::{Statement, Transaction};

use super::Error;
use super::act::Clock;
use super::ledger::Event;
use super::plan::{self, End};
use super::postgres::{Database, Session};
use super::worker::Queue;

/// Name of the tasks: the one that `examples/django` has.
const TASK: &str = "orders.tasks.send_receipt";

const PLACE: &str = "insert into orders_order (id, customer, total, placed_at) \
                     values ($1, 'customer ' || $2::bigint, 12.50, now())";

const ENQUEUE: &str = "insert into aftercommit.outbox (id, task, kwargs, key) \
                       values ($1::text::uuid, $2, $3::text::json, $4)";

/// How a task gets to the worker.
#[derive(Clone)]
pub(super) enum HandOver {
    /// Into the queue, inside of the transaction.
    Direct(Queue),
    /// Into the queue, when COMMIT has returned.
    OnCommit(Queue),
    /// Into the outbox, inside of the transaction.
    Outbox,
}

/// One process of the application, with one connection.
pub(super) struct Application {
    database: Database,
    process: Process,
    hand_over: HandOver,
    clock: Clock,
    events: mpsc::Sender<Event>,
}

/// What is gone when the process dies.
struct Process {
    session: Session,
    place: Statement,
    /// Prepared where there is an outbox.
    enqueue: Option<Statement>,
}

impl Process {
    async fn start(database: &Database, hand_over: &HandOver) -> Result<Process, Error> {
        let session = database.session("shop").await?;
        let place = session.client.prepare(PLACE).await?;
        let enqueue = match hand_over {
            HandOver::Direct(_) | HandOver::OnCommit(_) => None,
            HandOver::Outbox => Some(session.client.prepare(ENQUEUE).await?),
        };
        Ok(Process {
            session,
            place,
            enqueue,
        })
    }
}

impl Application {
    /// Connects.
    pub(super) async fn start(
        database: &Database,
        hand_over: HandOver,
        clock: Clock,
        events: mpsc::Sender<Event>,
    ) -> Result<Application, Error> {
        Ok(Application {
            database: database.clone(),
            process: Process::start(database, &hand_over).await?,
            hand_over,
            clock,
            events,
        })
    }

    /// Runs its transactions, each when it is due.
    pub(super) async fn run(
        mut self,
        transactions: Vec<plan::Transaction>,
        begin: Duration,
    ) -> Result<(), Error> {
        for transaction in transactions {
            self.clock.sleep_until(begin + transaction.at).await;
            self.transact(&transaction).await?;
            if transaction.end == End::CommitThenDie {
                self.report(Event::Died).await;
                self.process = Process::start(&self.database, &self.hand_over).await?;
            }
        }
        Ok(())
    }

    async fn transact(&mut self, plan: &plan::Transaction) -> Result<(), Error> {
        let mut orders = vec![plan.order];
        let Process {
            session,
            place,
            enqueue,
        } = &mut self.process;
        let office = Office {
            place,
            enqueue: enqueue.as_ref(),
            hand_over: &self.hand_over,
            plan,
        };
        let mut transaction = session.client.transaction().await?;
        office.place(&transaction, plan.order).await?;
        tokio::time::sleep(plan.before).await;
        office.enqueue(&transaction, plan.order).await?;
        if let Some(extra) = plan.extra {
            let savepoint = transaction.transaction().await?;
            office.place(&savepoint, extra.order).await?;
            office.enqueue(&savepoint, extra.order).await?;
            if extra.released {
                savepoint.commit().await?;
                orders.push(extra.order);
            } else {
                savepoint.rollback().await?;
                let undone = Event::SavepointUndone { order: extra.order };
                let _ = self.events.send(undone).await;
            }
        }
        if plan.after > Duration::ZERO {
            tokio::time::sleep(plan.after).await;
        }
        if plan.end == End::RollBack {
            transaction.rollback().await?;
            self.report(Event::RolledBack { orders }).await;
            return Ok(());
        }
        let asked = self.clock.now();
        transaction.commit().await?;
        // A dead process hands nothing over; what it had written down to do after COMMIT is gone with it.
        if let (HandOver::OnCommit(queue), End::Commit) = (&self.hand_over, plan.end) {
            for &order in &orders {
                queue.put(order, plan::task_id(order), plan.key()).await;
            }
        }
        self.report(Event::Committed { orders, asked }).await;
        Ok(())
    }

    async fn report(&self, event: Event) {
        // The act that listens ends only after its application, or with an error of its own.
        let _ = self.events.send(event).await;
    }
}

/// The statements of one transaction.
struct Office<'a> {
    place: &'a Statement,
    enqueue: Option<&'a Statement>,
    hand_over: &'a HandOver,
    plan: &'a plan::Transaction,
}

impl Office<'_> {
    async fn place(&self, transaction: &Transaction<'_>, order: u64) -> Result<(), Error> {
        let customer = self.plan.customer.cast_signed();
        transaction
            .execute(self.place, &[&order.cast_signed(), &customer])
            .await?;
        Ok(())
    }

    async fn enqueue(&self, transaction: &Transaction<'_>, order: u64) -> Result<(), Error> {
        if let HandOver::Direct(queue) = self.hand_over {
            queue
                .put(order, plan::task_id(order), self.plan.key())
                .await;
        }
        if let Some(statement) = self.enqueue {
            let kwargs = format!(r#"{{"order_id": {order}}}"#);
            transaction
                .execute(
                    statement,
                    &[&plan::task_id(order), &TASK, &kwargs, &self.plan.key()],
                )
                .await?;
        }
        Ok(())
    }
}
