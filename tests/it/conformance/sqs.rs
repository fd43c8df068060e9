//! SQS, played by moto: a standard queue, which there keeps its order, and a FIFO queue.

use std::sync::Mutex;

use aftercommit::outbox::Field;
use aftercommit::sink::sqs;
use aftercommit::sink::{Settings as _, Sink};

use super::{Fields, Subject};
use crate::support::moto::{self, Moto, Queue};
use crate::support::proxy::Proxy;

/// Without the large tasks, which SQS does not take.
macro_rules! on_sqs {
    ($name:ident, $fifo:expr, $($more:ident)*) => {
        conforms!($name, super::OnSqs::new($fifo), if true,
            what_is_delivered_has_arrived_in_order
            a_rejected_task_harms_no_neighbour
            a_retried_task_harms_no_neighbour
            an_outage_loses_nothing
            a_place_that_is_away_at_first_is_found_later
            a_look_tells_whether_the_place_is_there_and_changes_nothing
            the_same_id_may_come_again
            $($more)*
        );
    };
}

// moto is slow with FIFO queues: what takes it half a minute is tried on one kind.
on_sqs!(standard, false, a_delivery_may_be_dropped_at_any_await);
on_sqs!(fifo, true,);

/// A queue, by way of a proxy that takes it away.
struct OnSqs {
    queue: Queue<'static>,
    proxy: Proxy,
    received: Mutex<Vec<String>>,
}

impl OnSqs {
    fn new(fifo: bool) -> OnSqs {
        let server = Moto::shared();
        OnSqs {
            queue: server.queue(fifo, serde_json::json!({})),
            proxy: Proxy::start(server.port()),
            received: Mutex::default(),
        }
    }
}

impl Subject for OnSqs {
    fn sink(&self) -> Box<dyn Sink> {
        let config = serde_json::json!({
            "queue": self.queue.name,
            "region": "us-east-1",
            "endpoint_url": format!("http://127.0.0.1:{}", self.proxy.port()),
            "access_key_id": "test",
            "secret_access_key": "test",
            // What is played in Python takes its time on a busy machine.
            "timeout": "60s",
        });
        let config: sqs::Config = serde_json::from_value(config).unwrap();
        config.open().unwrap()
    }

    fn received(&self) -> Vec<String> {
        let mut received = self.received.lock().unwrap();
        received.extend(self.queue.take().iter().map(moto::id));
        received.clone()
    }

    fn set_away(&mut self, away: bool) {
        self.proxy.set_away(away);
    }

    /// Each takes what plays SQS a second.
    fn drops(&self) -> usize {
        15
    }

    fn rejected(&self) -> Fields {
        &[(Field::Headers, "{\"a\": \"b\\u0000\"}")]
    }

    fn retried(&self) -> Option<Fields> {
        Some(if self.queue.name.ends_with(".fifo") {
            &[(Field::Queue, "elsewhere.fifo")]
        } else {
            &[(Field::Queue, "elsewhere")]
        })
    }

    fn keeps_all_in_order(&self) -> bool {
        false
    }
}
