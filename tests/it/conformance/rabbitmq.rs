//! Celery's queues and an exchange in RabbitMQ.

use std::sync::Mutex;

use aftercommit::outbox::Field;
use aftercommit::sink::amqp;
use aftercommit::sink::celery;
use aftercommit::sink::dramatiq;
use aftercommit::sink::{Settings as _, Sink};

use super::{Fields, Subject};
use crate::support::proxy::Proxy;
use crate::support::rabbitmq::{self, RabbitMq, Vhost};

conforms!(
    celery_on_rabbitmq,
    super::OnRabbitMq::celery("classic"),
    if crate::support::rabbitmq::is_installed()
);
conforms!(
    celery_on_quorum_queues,
    super::OnRabbitMq::celery("quorum"),
    if crate::support::rabbitmq::is_installed()
);
conforms!(
    dramatiq_on_rabbitmq,
    super::OnRabbitMq::dramatiq(),
    if crate::support::rabbitmq::is_installed()
);
conforms!(
    exchange_on_rabbitmq,
    super::OnRabbitMq::amqp(),
    if crate::support::rabbitmq::is_installed()
);

/// A virtual host of the RabbitMQ that tests share, by way of a proxy that takes it away.
struct OnRabbitMq {
    vhost: Vhost<'static>,
    proxy: Proxy,
    queue: &'static str,
    received: Mutex<Vec<String>>,
    open: fn(String) -> Box<dyn Sink>,
    rejected: Fields,
    retried: Fields,
}

impl OnRabbitMq {
    fn new(queue: &'static str, kind: &str, open: fn(String) -> Box<dyn Sink>) -> OnRabbitMq {
        let server = RabbitMq::shared();
        let vhost = server.vhost();
        vhost.queue(queue, serde_json::json!({"x-queue-type": kind}));
        OnRabbitMq {
            vhost,
            proxy: Proxy::start(server.port()),
            queue,
            received: Mutex::default(),
            open,
            rejected: &[(Field::Args, "{}")],
            retried: &[(Field::Queue, "nobody")],
        }
    }

    fn celery(kind: &str) -> OnRabbitMq {
        OnRabbitMq::new("celery", kind, |url| {
            let config = serde_json::json!({"broker_url": url});
            let config: celery::Config = serde_json::from_value(config).unwrap();
            config.open().unwrap()
        })
    }

    fn dramatiq() -> OnRabbitMq {
        OnRabbitMq::new("default", "classic", |url| {
            let config = serde_json::json!({"url": url});
            let config: dramatiq::Config = serde_json::from_value(config).unwrap();
            config.open().unwrap()
        })
    }

    fn amqp() -> OnRabbitMq {
        let subject = OnRabbitMq::new("events", "classic", |url| {
            let config = serde_json::json!({"url": url, "exchange": "shop"});
            let config: amqp::Config = serde_json::from_value(config).unwrap();
            config.open().unwrap()
        });
        let vhost = &subject.vhost;
        vhost.exchange("shop", "topic");
        vhost.bind("shop", "events", "app.#");
        // A queue that has no room for anything refuses each message.
        let full = serde_json::json!({"x-max-length": 0, "x-overflow": "reject-publish"});
        vhost.queue("full", full);
        vhost.bind("shop", "full", "full");
        OnRabbitMq {
            rejected: &[(Field::Queue, "nobody")],
            retried: &[(Field::Queue, "full")],
            ..subject
        }
    }
}

impl Subject for OnRabbitMq {
    fn keeps_all_in_order(&self) -> bool {
        false
    }

    fn sink(&self) -> Box<dyn Sink> {
        (self.open)(self.vhost.url_through(self.proxy.port()))
    }

    fn received(&self) -> Vec<String> {
        let mut received = self.received.lock().unwrap();
        received.extend(self.vhost.take(self.queue).iter().map(rabbitmq::id));
        received.clone()
    }

    fn set_away(&mut self, away: bool) {
        self.proxy.set_away(away);
    }

    fn rejected(&self) -> Fields {
        self.rejected
    }

    fn retried(&self) -> Option<Fields> {
        Some(self.retried)
    }
}
