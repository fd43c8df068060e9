//! Dramatiq over RabbitMQ: each task is a message to its queue, confirmed.
//!
//! - **Delivered** means: RabbitMQ has confirmed the message, and has found a queue for it. Dramatiq's queues are durable, and so
//!   are the messages: it is then on disk.
//! - **Nothing is declared**: a declaration that differs from the workers' (`max_priority`, quorum) would stop them. A task whose
//!   queue is not there is retried: it comes with the first worker that has an actor for it.
//! - **Repeats**: what was under way at a crash, an outage or a lost answer comes again, with the same `message_id`. RabbitMQ
//!   keeps no notes for us.
//! - **Several nodes** of one cluster stand in the URL as they do in Dramatiq's: when one is lost, what was under way is sent again at
//!   the next.
//! - **Order**: one task of a key is under way at a time; see [`crate::sink::amqp`], which does the sending, also for what the
//!   broker can lose. Several threads of workers, priorities, retries and delays break it beyond the broker.

use std::time::Duration;

use super::Config;
use crate::envelope::dramatiq::{Defaults, Message};
use crate::envelope::{Unfit, amqp};
use crate::outbox::Task;
use crate::pg::Timestamp;
use crate::sink::amqp::nodes::Nodes;
use crate::sink::amqp::outcome::shown;
use crate::sink::amqp::probe::Place;
use crate::sink::amqp::publisher::{Letter, Letters, Publisher};
use crate::sink::{Cause, Delivery, Outcome, Probe, Sink};

/// Publishes messages to the queues of RabbitMQ that workers read.
pub(super) struct RabbitMq {
    publisher: Publisher,
    letters: DramatiqLetters,
}

struct DramatiqLetters {
    defaults: Defaults,
}

struct DramatiqLetter<'t> {
    id: &'t str,
    message: Message<'t>,
}

impl RabbitMq {
    pub(super) fn new(nodes: Nodes, config: &Config) -> RabbitMq {
        RabbitMq {
            publisher: Publisher::new(nodes, config.timeout),
            letters: DramatiqLetters {
                defaults: config.defaults(),
            },
        }
    }
}

impl Letters for DramatiqLetters {
    type Letter<'t> = DramatiqLetter<'t>;

    fn letter<'t>(&'t self, task: &'t Task, now: Timestamp) -> Result<DramatiqLetter<'t>, Unfit> {
        Ok(DramatiqLetter {
            id: task.id(),
            message: Message::new(task, &self.defaults, now)?,
        })
    }

    /// Its queue comes with the first worker, or with the next deployment.
    fn unroutable(&self, _exchange: &str, routing_key: &str) -> Outcome {
        let queue = shown(routing_key);
        Outcome::Retry(Cause::new(format!(
            "there is no queue {queue}: start a worker that has an actor for it"
        )))
    }
}

impl Letter for DramatiqLetter<'_> {
    fn exchange(&self) -> &str {
        ""
    }

    fn routing_key(&self) -> &str {
        self.message.queue()
    }

    fn write_properties(&self, out: &mut Vec<u8>) -> Result<(), Unfit> {
        amqp::job(self.id, self.message.priority()).write(out)
    }

    fn write_body(&self, out: &mut Vec<u8>) {
        self.message.write(out, None);
    }
}

impl Sink for RabbitMq {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(self.publisher.publish(&self.letters, batch))
    }

    fn probe(&mut self) -> Probe<'_> {
        Box::pin(
            self.publisher
                .look([Place::Queue(&self.letters.defaults.queue)]),
        )
    }

    fn keeps(&self) -> Duration {
        self.letters.defaults.ahead
    }
}
