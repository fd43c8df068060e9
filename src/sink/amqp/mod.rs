//! AMQP 0-9-1, as RabbitMQ speaks it.

mod flow;
mod link;
mod login;
mod method;
pub(super) mod outcome;
pub(super) mod probe;
pub(super) mod publisher;
mod rest;
pub mod url;
mod wire;
