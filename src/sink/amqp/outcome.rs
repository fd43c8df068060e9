//! What a broker's refusals mean for a batch: one table.

use std::time::Duration;

use super::link::Trouble;
use super::method::Refusal;
use super::url::Address;
use crate::sink::{Cause, Outage, Outcome};

/// What becomes of a message that was alone when the broker closed its channel, and whether all to its exchange fare alike.
pub(super) fn refused(refusal: &Refusal, exchange: &str) -> (Outcome, bool) {
    let shown = shown(exchange);
    match refusal.code {
        404 => {
            let words = format!("there is no exchange {shown}: declare it");
            (Outcome::Retry(Cause::new(words)), true)
        }
        // Of a topic exchange, the right may hang on the routing key.
        403 if refusal.text.contains("topic") => {
            let words = format!(
                "the URL's user may not write to exchange {shown} with this routing key: rabbitmqctl set_topic_permissions"
            );
            (Outcome::Retry(Cause::new(words)), false)
        }
        403 if refusal.text.contains("internal") => {
            let words = format!("the exchange {shown} is internal, and takes no messages of ours");
            (Outcome::Reject(Cause::new(words)), true)
        }
        403 => {
            let words = format!(
                "the URL's user may not write to exchange {shown}: rabbitmqctl set_permissions"
            );
            (Outcome::Retry(Cause::new(words)), true)
        }
        406 if refusal.text.contains("larger than") => {
            let words = format!(
                "the message is too large: {} (max_message_size)",
                worded(refusal)
            );
            (Outcome::Reject(Cause::new(words)), false)
        }
        _ => {
            let words = format!("the broker refuses the message: {}", worded(refusal));
            (Outcome::Reject(Cause::new(words)), false)
        }
    }
}

/// The broker has a message and could not keep it.
pub(super) fn nacked() -> Outcome {
    Outcome::Retry(Cause::new(
        "RabbitMQ could not keep it: its queue is full (x-overflow: reject-publish), or has no leader",
    ))
}

/// The broker takes no messages, from nobody.
pub(super) fn blocked(address: &Address, why: &str) -> Outage {
    let why: String = why.chars().take(64).collect();
    Outage::new(Cause::new(format!(
        "{address} takes no messages: {why} (its memory or its disk; rabbitmq-diagnostics alarms)"
    )))
}

/// The broker hangs.
pub(super) fn late(address: &Address, patience: Duration) -> Outage {
    let words = format!("{address} has not answered within {patience:?}");
    Outage::new(Cause::new(words))
}

/// The outage that a broken or refused connection is.
pub(super) fn outage(trouble: Trouble, address: &Address) -> Outage {
    let words = match trouble {
        Trouble::Unreachable(e) => format!("{address} cannot be reached: {e}"),
        Trouble::Lost(e) => format!("{address} has closed the connection: {e}"),
        Trouble::Silent => format!("{address} has not been heard for twice the heartbeat"),
        Trouble::NotAmqp => format!("what answers at {address} speaks no AMQP 0-9-1"),
        Trouble::NoMechanism(offered) => {
            let offered: String = offered.chars().take(64).collect();
            format!(
                "{address} offers no login that fits ({offered}): PLAIN needs a user, EXTERNAL a client certificate"
            )
        }
        Trouble::Closed(refusal) => match refusal.code {
            403 => format!("{address} refuses user or password of the URL"),
            530 if refusal.text.contains("not found") => {
                format!("{address}: there is no such virtual host: rabbitmqctl add_vhost")
            }
            530 => format!(
                "{address}: {}: rabbitmqctl set_permissions",
                worded(&refusal)
            ),
            320 => format!("{address} shuts down, or an operator has closed the connection"),
            _ => format!("{address} closes the connection: {}", worded(&refusal)),
        },
    };
    Outage::new(Cause::new(words))
}

fn worded(refusal: &Refusal) -> String {
    let text: String = refusal.text.chars().take(160).collect();
    format!("{} {text}", refusal.code)
}

/// A name that came from a row, fit for a message.
pub(in crate::sink) fn shown(name: &str) -> String {
    let name: String = name.chars().take(128).collect();
    format!("{name:?}")
}
