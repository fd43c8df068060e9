//! What the integration tests stand on: private real servers on free ports, the daemon as a real child process, Celery
//! workers, and a TCP proxy that makes faults. Nothing here looks a process up by its name, and nothing outlives the
//! test process, however that ends.

#![allow(
    dead_code,
    reason = "a harness offers more than the tests of one day use"
)]

pub(crate) mod celery;
pub(crate) mod daemon;
pub(crate) mod disk;
pub(crate) mod exam;
pub(crate) mod handover;
#[cfg(feature = "kafka")]
pub(crate) mod kafka;
#[cfg(feature = "kafka-tls")]
pub(crate) mod kafka_front;
#[cfg(feature = "sqs")]
pub(crate) mod moto;
pub(crate) mod nats;
pub(crate) mod nats_reader;
pub(crate) mod orders;
pub(crate) mod port;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod queue_workers;
pub(crate) mod rabbitmq;
pub(crate) mod rabbitmq_reader;
pub(crate) mod receiver;
pub(crate) mod redis;
pub(crate) mod redis_ha;
#[cfg(feature = "kafka-tls")]
pub(crate) mod scram;
pub(crate) mod tasks;
pub(crate) mod tls;
pub(crate) mod tls_front;
pub(crate) mod wait;
pub(crate) mod wall_clock;

mod tests;
