//! Celery over RabbitMQ: each task is a message to its queue, confirmed.
//!
//! - **Delivered** means: RabbitMQ has confirmed the message, and has found a queue for it. In a durable queue it is then on
//!   disk, in a quorum queue with a majority.
//! - **Nothing is declared**: a declaration that differs from the workers' (`x-max-priority`, quorum) would stop them. A task
//!   whose queue, exchange or binding is not there is retried: it comes with the first worker, or with the next deployment.
//! - **Repeats**: what was under way at a crash, an outage or a lost answer comes again, with the same task id, which is also
//!   the `message_id`. RabbitMQ keeps no notes for us.
//! - **Scheduled tasks**: with `native_delay`, what is to run within that time goes to Celery's delay queues at once, instead of
//!   into the hold table. Which queue it reaches is decided there, when its time has come: what no queue is bound for by then
//!   is dropped there, or waits for one where the delay queues are quorum queues (Celery's default). It cannot be cancelled.
//! - **Several nodes** of one cluster stand in the URL as they do in Celery's: when one is lost, what was under way is sent again at
//!   the next.
//! - **Order**: one task of a key is under way at a time; see [`crate::sink::amqp`], which does the sending, also for what the
//!   broker can lose, and for what `check --online` sees: here the queue of tasks that name none, and with `native_delay` the
//!   delay exchange. Several workers, priorities, and tasks with an eta break it beyond the broker, as for every producer.

use std::time::Duration;

use super::Config;
use crate::envelope::celery::{Defaults, Message};
use crate::envelope::{Unfit, amqp, native_delay};
use crate::outbox::Task;
use crate::pg::Timestamp;
use crate::sink::amqp::nodes::Nodes;
use crate::sink::amqp::outcome::shown;
use crate::sink::amqp::probe::Place;
use crate::sink::amqp::publisher::{Letter, Letters, Publisher};
use crate::sink::{Cause, Delivery, Outcome, Probe, Sink};

/// The message carries its eta, and a worker keeps it in memory, unacknowledged, until then: good for a short while.
const KEPT_BY_WORKERS: Duration = Duration::from_secs(2);

/// Publishes tasks to the queues of RabbitMQ that workers read.
pub struct RabbitMq {
    publisher: Publisher,
    letters: CeleryLetters,
    keeps: Duration,
}

struct CeleryLetters {
    defaults: Defaults,
    /// Whether tasks with an eta go to the delay queues.
    delays: bool,
}

impl RabbitMq {
    pub(super) fn new(nodes: Nodes, config: &Config) -> RabbitMq {
        RabbitMq {
            publisher: Publisher::new(nodes, config.timeout),
            letters: CeleryLetters {
                defaults: Defaults {
                    queue: config.queue.clone(),
                    origin: "aftercommit".to_owned(),
                },
                delays: !config.native_delay.is_zero(),
            },
            keeps: KEPT_BY_WORKERS.max(config.native_delay),
        }
    }
}

impl Letters for CeleryLetters {
    type Letter<'t> = CeleryLetter<'t>;

    fn letter<'t>(&'t self, task: &'t Task, now: Timestamp) -> Result<CeleryLetter<'t>, Unfit> {
        let message = Message::new(task, &self.defaults, now)?;
        let delay = match message.eta {
            Some(eta) if self.delays => seconds(now, eta),
            _ => 0,
        };
        Ok(CeleryLetter {
            delayed: (delay > 0).then(|| native_delay::routing_key(delay, &message.routing_key)),
            message,
        })
    }

    /// Its queue comes with the first worker, or with the next deployment.
    fn unroutable(&self, exchange: &str, routing_key: &str) -> Outcome {
        let routing_key = shown(routing_key);
        let words = match exchange {
            "" => format!("there is no queue {routing_key}: start a worker that declares it"),
            exchange => format!(
                "no queue is bound to the exchange {} for the routing key {routing_key}: start a worker that declares it",
                shown(exchange)
            ),
        };
        Outcome::Retry(Cause::new(words))
    }
}

/// Whole seconds from now on, as Celery counts them: the worker waits for what is left of the last one.
fn seconds(now: Timestamp, eta: Timestamp) -> u32 {
    let seconds = eta.0.saturating_sub(now.0).max(0) / 1_000_000;
    u32::try_from(seconds).map_or(native_delay::LONGEST, |seconds| {
        seconds.min(native_delay::LONGEST)
    })
}

struct CeleryLetter<'t> {
    message: Message<'t>,
    /// The routing key by which it goes through the delay queues.
    delayed: Option<String>,
}

impl Letter for CeleryLetter<'_> {
    fn exchange(&self) -> &str {
        match self.delayed {
            Some(_) => native_delay::EXCHANGE,
            None => &self.message.exchange,
        }
    }

    fn routing_key(&self) -> &str {
        match &self.delayed {
            Some(key) => key,
            None => &self.message.routing_key,
        }
    }

    fn write_properties(&self, out: &mut Vec<u8>) -> Result<(), Unfit> {
        amqp::celery(&self.message)?.write(out)
    }

    fn write_body(&self, out: &mut Vec<u8>) {
        self.message.write_body(out);
    }
}

impl Sink for RabbitMq {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(self.publisher.publish(&self.letters, batch))
    }

    fn probe(&mut self) -> Probe<'_> {
        let places = [
            Some(Place::Queue(&self.letters.defaults.queue)),
            (self.letters.delays).then_some(Place::Exchange(native_delay::EXCHANGE)),
        ];
        Box::pin(self.publisher.look(places.into_iter().flatten()))
    }

    fn keeps(&self) -> Duration {
        self.keeps
    }
}
