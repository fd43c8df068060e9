//! `webhook`, with one request at a time and with several.

use aftercommit::outbox::Field;
use aftercommit::sink::webhook;
use aftercommit::sink::{Settings as _, Sink};

use super::{Fields, Subject};
use crate::support::receiver::{Answer, Receiver};

conforms!(webhook_one_by_one, super::Hooks::start(1));
conforms!(webhook_side_by_side, super::Hooks::start(8));

/// `webhook`, with so many requests at a time.
struct Hooks {
    receiver: Receiver,
    concurrency: usize,
}

impl Hooks {
    fn start(concurrency: usize) -> Hooks {
        Hooks {
            receiver: Receiver::deciding(|request| match request.header("x-answer") {
                "" => Answer::Status(204, Vec::new()),
                status => Answer::Status(status.parse().unwrap(), Vec::new()),
            }),
            concurrency,
        }
    }
}

impl Subject for Hooks {
    fn sink(&self) -> Box<dyn Sink> {
        let config = serde_json::json!({
            "url": self.receiver.url(),
            "allow_addresses": ["127.0.0.0/8"],
            "concurrency": self.concurrency,
        });
        let config: webhook::Config = serde_json::from_value(config).unwrap();
        config.open().unwrap()
    }

    fn received(&self) -> Vec<String> {
        let requests = self.receiver.requests();
        let taken = requests
            .iter()
            .filter(|request| request.header("x-answer").is_empty());
        taken
            .map(|request| request.header("webhook-id").to_owned())
            .collect()
    }

    fn keeps_all_in_order(&self) -> bool {
        self.concurrency == 1
    }

    fn set_away(&mut self, away: bool) {
        if away {
            self.receiver.close()
        } else {
            self.receiver.open()
        }
    }

    fn rejected(&self) -> Fields {
        &[(Field::Payload, "{no json")]
    }

    fn retried(&self) -> Option<Fields> {
        Some(&[(Field::Headers, "{\"x-answer\": 503}")])
    }
}
