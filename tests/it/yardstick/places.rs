//! The brokers: private servers, as the other tests have them.

use aftercommit::sink::{self, Settings, Sink};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answers::Protocol;
use super::{Place, measure};
#[cfg(feature = "sqs")]
use crate::support::moto::{Moto, Queue};
use crate::support::nats::{self, Nats, STREAM};
use crate::support::rabbitmq::{self, RabbitMq, Vhost};
use crate::support::receiver::{Answer, Receiver};
use crate::support::redis::Redis;

/// Measures those that are wanted.
pub(super) fn all(wanted: &dyn Fn(&str) -> bool) {
    const MANY: usize = 90_000;
    if wanted("redis") {
        let on = |kind| OnRedis {
            server: Redis::start(),
            kind,
        };
        measure("celery, Redis", 0, MANY, &mut on(Kind::Celery));
        measure("celery, Redis", 1_000, MANY, &mut on(Kind::Celery));
        measure("redis, stream", 1_000, MANY, &mut on(Kind::Stream));
        measure("redis, list", 1_000, MANY, &mut on(Kind::List));
        measure("sidekiq", 1_000, MANY, &mut on(Kind::Sidekiq));
        measure("dramatiq, Redis", 1_000, MANY, &mut on(Kind::Dramatiq));
        measure("bullmq", 1_000, MANY, &mut on(Kind::BullMq));
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
        measure("webhook, 16 at a time", 1_000, 9_000, &mut Hooks::new());
    }
    #[cfg(feature = "sqs")]
    if wanted("sqs") {
        measure("sqs, on moto", 1_000, 300, &mut OnMoto::new());
    }
}

fn open<C: Settings + DeserializeOwned>(settings: Value) -> Box<dyn Sink> {
    let config: C = serde_json::from_value(settings).expect("settings");
    config.open().expect("a sink")
}

/// What is pushed to Redis.
enum Kind {
    Celery,
    Stream,
    List,
    Sidekiq,
    Dramatiq,
    BullMq,
}

struct OnRedis {
    server: Redis,
    kind: Kind,
}

impl Place for OnRedis {
    fn sink(&self, port: u16) -> Box<dyn Sink> {
        let url = self.server.url_through(port, 0);
        match self.kind {
            Kind::Celery => open::<sink::celery::Config>(json!({"broker_url": url})),
            Kind::Stream => open::<sink::redis::Config>(json!({"url": url, "stream": "events"})),
            Kind::List => open::<sink::redis::Config>(json!({"url": url, "list": "jobs"})),
            Kind::Sidekiq => open::<sink::sidekiq::Config>(json!({"url": url})),
            Kind::Dramatiq => open::<sink::dramatiq::Config>(json!({"url": url})),
            Kind::BullMq => open::<sink::bullmq::Config>(json!({"url": url})),
        }
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
            None => open::<sink::celery::Config>(json!({"broker_url": url})),
            Some(exchange) => open::<sink::amqp::Config>(json!({"url": url, "exchange": exchange})),
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
        open::<sink::nats::Config>(json!({
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

pub(super) struct Hooks(Receiver);

impl Hooks {
    pub(super) fn new() -> Hooks {
        Hooks(Receiver::deciding(|_| Answer::Status(204, Vec::new())))
    }
}

impl Place for Hooks {
    fn sink(&self, port: u16) -> Box<dyn Sink> {
        open::<sink::webhook::Config>(json!({
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
        *self = Hooks::new();
    }
}

/// A standard queue drops no repeats: one will do.
#[cfg(feature = "sqs")]
struct OnMoto(Queue<'static>);

#[cfg(feature = "sqs")]
impl OnMoto {
    fn new() -> OnMoto {
        OnMoto(Moto::shared().queue(false, json!({})))
    }
}

#[cfg(feature = "sqs")]
impl Place for OnMoto {
    fn sink(&self, port: u16) -> Box<dyn Sink> {
        open::<sink::sqs::Config>(json!({
            "queue": self.0.name,
            "region": "us-east-1",
            "endpoint_url": format!("http://127.0.0.1:{port}"),
            "access_key_id": "test",
            "secret_access_key": "test",
            // What plays SQS is slow.
            "timeout": "60s",
        }))
    }

    fn port(&self) -> u16 {
        Moto::shared().port()
    }

    fn protocol(&self) -> Protocol {
        Protocol::Http
    }

    fn reset(&mut self) {}
}
