//! Celery's queues, streams and lists in Redis; with the marks that keep repeats away, and without.

use aftercommit::outbox::{Field, TableName, Task};
use aftercommit::sink::celery;
use aftercommit::sink::marks::{History, Scope, Settled, Terms};
use aftercommit::sink::redis;
use aftercommit::sink::{Delivery, Probe, Settings as _, Sink};

use super::{Fields, Subject, first_ones};
use crate::support::redis::{Options, Redis};

conforms!(celery_on_redis, super::CeleryOnRedis::start());
conforms!(
    celery_on_redis_with_marks,
    super::WithMarks(super::CeleryOnRedis::start())
);
conforms!(redis_stream, super::OnRedis::stream());
conforms!(
    redis_stream_with_marks,
    super::WithMarks(super::OnRedis::stream())
);
conforms!(redis_list, super::OnRedis::list());
conforms!(
    redis_list_with_marks,
    super::WithMarks(super::OnRedis::list())
);

struct CeleryOnRedis(Redis);

impl CeleryOnRedis {
    fn start() -> CeleryOnRedis {
        CeleryOnRedis(Redis::start_with(Options {
            durable: true,
            ..Options::default()
        }))
    }
}

impl Subject for CeleryOnRedis {
    fn sink(&self) -> Box<dyn Sink> {
        let config = serde_json::json!({"broker_url": self.0.url(0)});
        let config: celery::Config = serde_json::from_value(config).unwrap();
        config.open().unwrap()
    }

    fn received(&self) -> Vec<String> {
        self.0.ids(0, "celery")
    }

    fn set_away(&mut self, away: bool) {
        if away {
            self.0.kill9()
        } else {
            self.0.restart()
        }
    }

    fn rejected(&self) -> Fields {
        &[(Field::Args, "{}")]
    }

    fn retried(&self) -> Option<Fields> {
        Some(&[(
            Field::Options,
            "{\"exchange\": \"nobody\", \"routing_key\": \"home\"}",
        )])
    }
}

/// A stream or a list.
struct OnRedis {
    server: Redis,
    is_stream: bool,
}

impl OnRedis {
    fn stream() -> OnRedis {
        let CeleryOnRedis(server) = CeleryOnRedis::start();
        server.run(&["SET", "taken", "by another"]);
        OnRedis {
            server,
            is_stream: true,
        }
    }

    fn list() -> OnRedis {
        OnRedis {
            is_stream: false,
            ..OnRedis::stream()
        }
    }
}

impl Subject for OnRedis {
    fn sink(&self) -> Box<dyn Sink> {
        let kind = if self.is_stream { "stream" } else { "list" };
        let config = serde_json::json!({"url": self.server.url(0), kind: "tasks"});
        let config: redis::Config = serde_json::from_value(config).unwrap();
        config.open().unwrap()
    }

    fn received(&self) -> Vec<String> {
        match self.is_stream {
            true => self.server.entry_ids("tasks"),
            false => {
                let messages = self.server.messages(0, "tasks");
                let id = |message: &serde_json::Value| message["id"].as_str().unwrap().to_owned();
                messages.iter().map(id).collect()
            }
        }
    }

    fn set_away(&mut self, away: bool) {
        if away {
            self.server.kill9()
        } else {
            self.server.restart()
        }
    }

    fn rejected(&self) -> Fields {
        &[(Field::Args, "{}")]
    }

    fn retried(&self) -> Option<Fields> {
        Some(&[(Field::Queue, "taken")])
    }
}

/// A sink whose tasks are handed over on terms, as a lane does.
pub(super) struct WithMarks<S>(pub(super) S);

struct Marking {
    sink: Box<dyn Sink>,
    scope: Scope,
}

impl<S: Subject> Subject for WithMarks<S> {
    fn sink(&self) -> Box<dyn Sink> {
        let table = TableName::ours();
        let history = History {
            system_id: 1,
            timeline: 1,
            slot: "slot",
            table: &table,
        };
        Box::new(Marking {
            sink: self.0.sink(),
            scope: Scope::new(&history, "sink", 0, 0),
        })
    }

    /// Nothing comes twice: where the suite would overlook a repeat, this does not.
    fn received(&self) -> Vec<String> {
        let received = self.0.received();
        assert_eq!(first_ones(received.clone()), received);
        received
    }

    fn set_away(&mut self, away: bool) {
        self.0.set_away(away);
    }

    fn rejected(&self) -> Fields {
        self.0.rejected()
    }

    fn retried(&self) -> Option<Fields> {
        self.0.retried()
    }
}

impl Sink for Marking {
    fn probe(&mut self) -> Probe<'_> {
        self.sink.probe()
    }

    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        // Any of them may have been delivered before.
        self.scope.generation += 1;
        let terms = Terms {
            scope: self.scope.clone(),
            turn: 1,
            settled: Settled::default(),
        };
        self.sink.deliver_once(batch, terms)
    }
}
