//! RabbitMQ: the queues of Celery's and Dramatiq's workers, and an exchange with a queue.

use std::path::Path;

use serde_json::json;

use super::{Found, Place, queues};
use crate::support::exam::ledger::Delivery;
use crate::support::exam::{CANARY_SECRET, Exam, LIST};
use crate::support::rabbitmq::RabbitMq;
use crate::support::rabbitmq_reader::Reader;

/// The exchange.
const EXCHANGE: &str = "exam";

/// Who the daemon logs in as: somebody else in each virtual host.
fn user(vhost: &str) -> String {
    format!("exam-{}", vhost.replace('/', "own"))
}

/// Who the messages are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Celery,
    Amqp,
    Dramatiq,
}

impl Kind {
    /// `[sink.<type>.workers]`, with a URL, or with a file of one.
    fn sink(self, from: &str, value: &str) -> String {
        let (kind, url, target) = match self {
            Kind::Celery => ("celery", "broker_url", format!("queue = \"{LIST}\"")),
            Kind::Amqp => ("amqp", "url", format!("exchange = \"{EXCHANGE}\"")),
            Kind::Dramatiq => ("dramatiq", "url", format!("queue = \"{LIST}\"")),
        };
        format!("[sink.{kind}.workers]\n{url}{from} = \"{value}\"\n{target}\n")
    }
}

/// The actor of a message of Dramatiq's, of which only the beginning is there.
fn actor(beginning: &[u8]) -> String {
    let text = String::from_utf8_lossy(beginning);
    let rest = text.split("\"actor_name\":\"").nth(1);
    let name = rest.and_then(|rest| rest.split('"').next());
    name.expect("an actor").to_owned()
}

enum Server {
    /// A virtual host of the one that tests share.
    Shared(String),
    Own(RabbitMq),
}

/// A durable queue.
pub(super) struct OnRabbitMq {
    server: Server,
    kind: Kind,
    reader: Reader,
    read: usize,
}

impl OnRabbitMq {
    pub(super) fn new(kind: Kind, own: bool) -> OnRabbitMq {
        let server = match own {
            true => Server::Own(RabbitMq::start()),
            false => Server::Shared(RabbitMq::shared().vhost().name),
        };
        OnRabbitMq::on(server, kind)
    }

    fn on(server: Server, kind: Kind) -> OnRabbitMq {
        let (broker, name) = match &server {
            Server::Shared(name) => (RabbitMq::shared(), name.as_str()),
            Server::Own(broker) => (broker, "/"),
        };
        let vhost = broker.vhost_of(name);
        broker.set_user(&user(name), CANARY_SECRET);
        vhost.permit(&user(name), true);
        vhost.queue(LIST, json!({}));
        vhost.exchange(EXCHANGE, "topic");
        vhost.bind(EXCHANGE, LIST, "exam.#");
        let reader = Reader::start(broker.port(), name, LIST);
        OnRabbitMq {
            server,
            kind,
            reader,
            read: 0,
        }
    }

    /// The server.
    fn broker(&self) -> &RabbitMq {
        match &self.server {
            Server::Shared(_) => RabbitMq::shared(),
            Server::Own(broker) => broker,
        }
    }

    fn own(&mut self) -> &mut RabbitMq {
        match &mut self.server {
            Server::Shared(_) => panic!("this one is for others, too"),
            Server::Own(broker) => broker,
        }
    }

    fn url(&self, port: u16, password: &str) -> String {
        let url = self.broker().url_through(port, self.vhost());
        url.replace("guest:guest", &format!("{}:{password}", user(self.vhost())))
    }

    /// The name of the virtual host.
    fn vhost(&self) -> &str {
        match &self.server {
            Server::Shared(name) => name,
            Server::Own(_) => "/",
        }
    }
}

impl Place for OnRabbitMq {
    fn port(&self, _: &Exam) -> u16 {
        self.broker().port()
    }

    fn sink(&self, _: &Exam, port: u16) -> String {
        self.kind.sink("", &self.url(port, CANARY_SECRET))
    }

    fn read(&mut self, _: &Exam, found: &mut Found) {
        let messages = self.reader.messages_from(self.read);
        let decode = match self.kind {
            Kind::Celery => Delivery::of_call,
            _ => Delivery::of_event,
        };
        self.read += messages.len();
        for it in &messages {
            match self.kind {
                Kind::Dramatiq if it.body.len() < it.length => {
                    found.add(&it.id, &actor(&it.body), it.length, || {
                        panic!("it is cut off")
                    });
                }
                Kind::Dramatiq => queues::add_dramatiq_message(&it.body, found),
                Kind::Celery | Kind::Amqp => found.add(&it.id, &it.task, it.length, || {
                    decode(&it.id, &it.lsn, &it.body)
                }),
            }
        }
    }

    fn rewind(&mut self) {
        self.reader.rewind();
        self.read = 0;
    }

    fn stop(&mut self, _: &Exam) {
        self.own().stop();
    }

    fn cont(&mut self, _: &Exam) {
        self.own().cont();
    }

    fn kill9(&mut self, _: &mut Exam) {
        self.own().kill9();
    }

    fn restart(&mut self, _: &mut Exam) {
        self.own().restart();
    }

    fn fill(&mut self, _: &Exam) {
        self.own()
            .ctl(&["set_vm_memory_high_watermark", "0.000001"]);
    }

    fn make_room(&mut self, _: &Exam) {
        self.own().ctl(&["set_vm_memory_high_watermark", "0.4"]);
    }

    fn admit(&mut self, _: &Exam, password: Option<&str>) {
        let (broker, user) = (self.broker(), user(self.vhost()));
        // Its connections end with it.
        broker.remove_user(&user);
        if let Some(password) = password {
            broker.set_user(&user, password);
            broker.vhost_of(self.vhost()).permit(&user, true);
        }
    }

    fn secret(&self, _: &Exam, password: &str) -> String {
        self.url(self.broker().port(), password)
    }

    fn sink_from(&self, file: &Path) -> String {
        self.kind.sink("_file", &file.display().to_string())
    }
}
