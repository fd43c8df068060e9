//! The queues of Sidekiq, Dramatiq and BullMQ; in Redis with the marks that keep repeats away, and without.

use aftercommit::outbox::Field;
use aftercommit::sink::{Settings, Sink};
use aftercommit::sink::{bullmq, dramatiq, sidekiq};
use serde::de::DeserializeOwned;

use super::redis::WithMarks;
use super::{Fields, Subject};
use crate::support::redis::{Options, Redis};

conforms!(sidekiq_on_redis, super::Queue::sidekiq());
conforms!(
    sidekiq_on_redis_with_marks,
    super::WithMarks(super::Queue::sidekiq())
);
conforms!(dramatiq_on_redis, super::Queue::dramatiq());
conforms!(
    dramatiq_on_redis_with_marks,
    super::WithMarks(super::Queue::dramatiq())
);

conforms!(bullmq_on_redis, super::Queue::bullmq());
conforms!(
    bullmq_on_redis_with_marks,
    super::WithMarks(super::Queue::bullmq())
);

/// A queue in Redis.
struct Queue {
    server: Redis,
    open: fn(serde_json::Value) -> Box<dyn Sink>,
    /// The ids in the default queue.
    read: fn(&Redis) -> Vec<String>,
}

fn open<C: Settings + DeserializeOwned>(config: serde_json::Value) -> Box<dyn Sink> {
    serde_json::from_value::<C>(config).unwrap().open().unwrap()
}

impl Queue {
    fn new(open: fn(serde_json::Value) -> Box<dyn Sink>, read: fn(&Redis) -> Vec<String>) -> Queue {
        let server = Redis::start_with(Options {
            durable: true,
            ..Options::default()
        });
        for key in ["queue:taken", "dramatiq:taken", "bull:taken:wait"] {
            server.run(&["SET", key, "by another"]);
        }
        Queue { server, open, read }
    }

    fn sidekiq() -> Queue {
        Queue::new(open::<sidekiq::Config>, |server| {
            let jobs = server.messages(0, "queue:default");
            let id = |job: &serde_json::Value| job["jid"].as_str().unwrap().to_owned();
            jobs.iter().map(id).collect()
        })
    }

    fn dramatiq() -> Queue {
        Queue::new(open::<dramatiq::Config>, |server| {
            let ids: Vec<String> = server.ask(&["LRANGE", "dramatiq:default", "0", "-1"]);
            for id in &ids {
                let is_there: bool = server.ask(&["HEXISTS", "dramatiq:default.msgs", id]);
                assert!(is_there, "{id} has no message");
            }
            ids
        })
    }

    fn bullmq() -> Queue {
        Queue::new(open::<bullmq::Config>, |server| {
            let mut ids: Vec<String> = server.ask(&["LRANGE", "bull:default:wait", "0", "-1"]);
            ids.reverse();
            for id in &ids {
                let is_there: bool = server.ask(&["EXISTS", &format!("bull:default:{id}")]);
                assert!(is_there, "{id} has no job");
            }
            ids
        })
    }
}

impl Subject for Queue {
    fn sink(&self) -> Box<dyn Sink> {
        (self.open)(serde_json::json!({"url": self.server.url(0)}))
    }

    fn received(&self) -> Vec<String> {
        let ids = (self.read)(&self.server);
        // BullMQ's ids are no whole numbers.
        let ids = ids.into_iter();
        ids.map(|id| id.strip_prefix("id-").map_or(id.clone(), str::to_owned))
            .collect()
    }

    fn set_away(&mut self, away: bool) {
        match away {
            true => self.server.kill9(),
            false => self.server.restart(),
        }
    }

    fn rejected(&self) -> Fields {
        &[(Field::Args, "{}")]
    }

    fn retried(&self) -> Option<Fields> {
        Some(&[(Field::Queue, "taken")])
    }
}
