//! NATS JetStream.

use aftercommit::outbox::Field;
use aftercommit::sink::nats;
use aftercommit::sink::{Settings as _, Sink};

use super::{Fields, Subject};
use crate::support::nats::{Nats, STREAM};

conforms!(
    jetstream,
    super::OnNats::start(),
    if crate::support::nats::is_there()
);

/// JetStream, with a stream on disk.
struct OnNats(Nats);

impl OnNats {
    fn start() -> OnNats {
        OnNats(Nats::start_with("max_payload: 4MB\n").with_stream())
    }
}

impl Subject for OnNats {
    fn sink(&self) -> Box<dyn Sink> {
        let config =
            serde_json::json!({"url": self.0.url(), "stream": STREAM, "subject": "tasks.{task}"});
        let config: nats::Config = serde_json::from_value(config).unwrap();
        config.open().unwrap()
    }

    fn received(&self) -> Vec<String> {
        self.0.ids()
    }

    fn set_away(&mut self, away: bool) {
        if away {
            self.0.kill9()
        } else {
            self.0.restart()
        }
    }

    fn rejected(&self) -> Fields {
        &[(Field::Headers, "{\"a\": \"b\\r\\nc: d\"}")]
    }

    fn retried(&self) -> Option<Fields> {
        Some(&[(Field::Queue, "elsewhere")])
    }

    fn keeps_all_in_order(&self) -> bool {
        false
    }
}
