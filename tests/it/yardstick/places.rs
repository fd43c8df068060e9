//! The brokers: private servers, as the other tests have them.

use aftercommit::sink::{Settings, Sink};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answers::Protocol;
use super::{Place, measure};
use crate::support::nats::{self, Nats, STREAM};
use crate::support::rabbitmq::{self, RabbitMq, Vhost};
use crate::support::receiver::{Answer, Receiver};
use crate::support::redis::Redis;

/// Measures those that are wanted.
pub(super) fn all(wanted: &dyn Fn(&str) -> bool) {
    const MANY: usize = 90_000;
    if wanted("redis") {
        let redis = |settings: Value, is_celery| OnRedis {
            server: Redis::start(),
            settings,
            is_celery,
        };
        let mut celery = redis(json!({}), true);
        measure("celery, Redis", 0, MANY, &mut celery);
        measure("celery, Redis", 1_000, MANY, &mut celery);
        let mut stream = redis(json!({"stream": "events"}), false);
        measure("redis, stream", 1_000, MANY, &mut stream);
        let mut list = redis(json!({"list": "jobs"}), false);
        measure("redis, list", 1_000, MANY, &mut list);
    }
    if wanted("rabbitmq") && rabbitmq::is_installed() {
        let server = RabbitMq::start();
        let on = |kind: &'static str, exchange: Option<&'static str>| OnRabbitMq {
            vhost: server.vhost(),
            port: server.port(),
            kind,
            exchange,
        };
        measure("celery, RabbitMQ", 0, MANY, &mut on("classic", None));
        measure("celery, RabbitMQ", 1_000, MANY, &mut on("classic", None));
        measure(
            "celery, RabbitMQ, quorum",
            1_000,
            MANY,
            &mut on("quorum", None),
        );
        measure(
            "amqp, topic exchange",
            1_000,
            MANY,
            &mut on("classic", Some("shop")),
        );
    }
    if wanted("nats") && nats::is_there() {
        let mut place = OnNats(Nats::start().with_stream());
        measure("nats, JetStream", 0, MANY, &mut place);
        measure("nats, JetStream", 1_000, MANY, &mut place);
    }
    if wanted("webhook") {
        let mut place = Hooks(Receiver::deciding(|_| Answer::Status(204, Vec::new())));
        measure("webhook, 16 at a time", 1_000, 9_000, &mut place);
    }
}

fn open<C: Settings + DeserializeOwned>(settings: Value) -> Box<dyn Sink> {
    let config: C = serde_json::from_value(settings).expect("settings");
    config.open().expect("a sink")
}

struct OnRedis {
    server: Redis,
    settings: Value,
    is_celery: bool,
}

impl Place for OnRedis {
    fn sink(&self, port: u16) -> Box<dyn Sink> {
        let url = self.server.url_through(port, 0);
        if self.is_celery {
            return open::<aftercommit::sink::celery::Config>(json!({"broker_url": url}));
        }
        let mut settings = self.settings.clone();
        settings["url"] = json!(url);
        open::<aftercommit::sink::redis::Config>(settings)
    }

    fn port(&self) -> u16 {
        self.server.port()
    }

    fn protocol(&self) -> Protocol {
        Protocol::Redis
    }

    fn reset(&mut self) {
        self.server.run(&["FLUSHALL"]);
    }
}

struct OnRabbitMq<'a> {
    vhost: Vhost<'a>,
    port: u16,
    kind: &'static str,
    exchange: Option<&'static str>,
}

const QUEUE: &str = "celery";

impl Place for OnRabbitMq<'_> {
    fn sink(&self, port: u16) -> Box<dyn Sink> {
        let url = self.vhost.url_through(port);
        match self.exchange {
            None => open::<aftercommit::sink::celery::Config>(json!({"broker_url": url})),
            Some(exchange) => {
                open::<aftercommit::sink::amqp::Config>(json!({"url": url, "exchange": exchange}))
            }
        }
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn protocol(&self) -> Protocol {
        Protocol::Amqp
    }

    fn reset(&mut self) {
        // Only what is there can be deleted.
        self.vhost.queue(QUEUE, json!({"x-queue-type": self.kind}));
        self.vhost.delete_queue(QUEUE);
        self.vhost.queue(QUEUE, json!({"x-queue-type": self.kind}));
        if let Some(exchange) = self.exchange {
            self.vhost.exchange(exchange, "topic");
            self.vhost.bind(exchange, QUEUE, "shop.#");
        }
    }
}

struct OnNats(Nats);

impl Place for OnNats {
    fn sink(&self, port: u16) -> Box<dyn Sink> {
        open::<aftercommit::sink::nats::Config>(json!({
            "url": self.0.url_through(port),
            "stream": STREAM,
            "subject": "tasks.{task}",
        }))
    }

    fn port(&self) -> u16 {
        self.0.port()
    }

    fn protocol(&self) -> Protocol {
        Protocol::Nats
    }

    fn reset(&mut self) {
        // Another one: the ids of the last run would be repeats to this one.
        self.0 = Nats::start().with_stream();
    }
}

struct Hooks(Receiver);

impl Place for Hooks {
    fn sink(&self, port: u16) -> Box<dyn Sink> {
        open::<aftercommit::sink::webhook::Config>(json!({
            "url": format!("http://127.0.0.1:{port}/hooks"),
            "allow_addresses": ["127.0.0.0/8"],
            "concurrency": 16,
        }))
    }

    fn port(&self) -> u16 {
        self.0.port()
    }

    fn protocol(&self) -> Protocol {
        Protocol::Http
    }

    fn reset(&mut self) {
        self.0 = Receiver::deciding(|_| Answer::Status(204, Vec::new()));
    }
}
