//! Celery over RabbitMQ: each task is a message to its queue, confirmed.
//!
//! - **Delivered** means: RabbitMQ has confirmed the message, and has found a queue for it. In a durable queue it is then on
//!   disk, in a quorum queue with a majority.
//! - **Nothing is declared**: a declaration that differs from the workers' (`x-max-priority`, quorum) would stop them. A task
//!   whose queue, exchange or binding is not there is retried: it comes with the first worker, or with the next deployment.
//! - **Repeats**: what was under way at a crash, an outage or a lost answer comes again, with the same task id, which is also
//!   the `message_id`. RabbitMQ keeps no notes for us.
//! - **Order**: one task of a key is under way at a time; see [`crate::sink::amqp`], which does the sending, also for what the
//!   broker can lose. Several workers, priorities, and tasks with an eta break it beyond the broker, as for every producer.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::Config;
use crate::envelope::celery::{Defaults, Message};
use crate::envelope::{Unfit, amqp};
use crate::outbox::Task;
use crate::pg::Timestamp;
use crate::sink::amqp::outcome::shown;
use crate::sink::amqp::probe::Place;
use crate::sink::amqp::publisher::{Letter, Letters, Publisher};
use crate::sink::amqp::url::Address;
use crate::sink::{Cause, Delivery, Outcome, Probe, Sink};

/// The message carries its eta, and a worker keeps it in memory, unacknowledged, until then: good for a short while.
const KEPT_BY_WORKERS: Duration = Duration::from_secs(2);

/// Publishes tasks to the queues of RabbitMQ that workers read.
pub struct RabbitMq {
    publisher: Publisher,
    letters: CeleryLetters,
}

struct CeleryLetters {
    defaults: Defaults,
}

impl RabbitMq {
    pub(super) fn new(
        address: Address,
        tls: Option<Arc<ClientConfig>>,
        config: &Config,
    ) -> RabbitMq {
        RabbitMq {
            publisher: Publisher::new(address, tls, config.timeout),
            letters: CeleryLetters {
                defaults: Defaults {
                    queue: config.queue.clone(),
                    origin: "aftercommit".to_owned(),
                },
            },
        }
    }
}

impl Letters for CeleryLetters {
    type Letter<'t> = CeleryLetter<'t>;

    fn letter<'t>(&'t self, task: &'t Task, now: Timestamp) -> Result<CeleryLetter<'t>, Unfit> {
        Message::new(task, &self.defaults, now).map(CeleryLetter)
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

struct CeleryLetter<'t>(Message<'t>);

impl Letter for CeleryLetter<'_> {
    fn exchange(&self) -> &str {
        &self.0.exchange
    }

    fn routing_key(&self) -> &str {
        &self.0.routing_key
    }

    fn write_properties(&self, out: &mut Vec<u8>) -> Result<(), Unfit> {
        amqp::celery(&self.0)?.write(out)
    }

    fn write_body(&self, out: &mut Vec<u8>) {
        self.0.write_body(out);
    }
}

impl Sink for RabbitMq {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(self.publisher.publish(&self.letters, batch))
    }

    fn probe(&mut self) -> Probe<'_> {
        Box::pin(
            self.publisher
                .look(Place::Queue(&self.letters.defaults.queue)),
        )
    }

    fn keeps(&self) -> Duration {
        KEPT_BY_WORKERS
    }
}
