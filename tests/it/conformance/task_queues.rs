//! The queues of Sidekiq and Dramatiq; in Redis with the marks that keep repeats away, and without.

use aftercommit::outbox::Field;
use aftercommit::sink::{Settings as _, Sink};
use aftercommit::sink::{dramatiq, sidekiq};

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

/// A queue in Redis.
struct Queue {
    server: Redis,
    is_sidekiq: bool,
}

impl Queue {
    fn sidekiq() -> Queue {
        let server = Redis::start_with(Options {
            durable: true,
            ..Options::default()
        });
        for key in ["queue:taken", "dramatiq:taken"] {
            server.run(&["SET", key, "by another"]);
        }
        Queue {
            server,
            is_sidekiq: true,
        }
    }

    fn dramatiq() -> Queue {
        Queue {
            is_sidekiq: false,
            ..Queue::sidekiq()
        }
    }
}

impl Subject for Queue {
    fn sink(&self) -> Box<dyn Sink> {
        let config = serde_json::json!({"url": self.server.url(0)});
        match self.is_sidekiq {
            true => serde_json::from_value::<sidekiq::Config>(config)
                .unwrap()
                .open(),
            false => serde_json::from_value::<dramatiq::Config>(config)
                .unwrap()
                .open(),
        }
        .unwrap()
    }

    fn received(&self) -> Vec<String> {
        if self.is_sidekiq {
            let jobs = self.server.messages(0, "queue:default");
            return jobs
                .iter()
                .map(|job| job["jid"].as_str().unwrap().to_owned())
                .collect();
        }
        let ids: Vec<String> = self.server.ask(&["LRANGE", "dramatiq:default", "0", "-1"]);
        let messages: u64 = self.server.ask(&["HLEN", "dramatiq:default.msgs"]);
        assert!(messages <= ids.len() as u64);
        ids
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
