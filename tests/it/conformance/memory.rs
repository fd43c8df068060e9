//! The smallest sink that conforms: what the suite itself is tried on.

use std::sync::{Arc, Mutex};

use aftercommit::outbox::{Field, Task};
use aftercommit::sink::{Cause, Delivery, Outage, Outcome, Probe, Sight, Sink};

use super::{Fields, Subject};

conforms!(memory, super::Memory::default());

#[derive(Default, Clone)]
struct Memory(Arc<Mutex<(Vec<String>, bool)>>);

impl Subject for Memory {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(self.clone())
    }

    fn received(&self) -> Vec<String> {
        self.0.lock().unwrap().0.clone()
    }

    fn set_away(&mut self, away: bool) {
        self.0.lock().unwrap().1 = away;
    }

    fn rejected(&self) -> Fields {
        &[(Field::Queue, "reject")]
    }

    fn retried(&self) -> Option<Fields> {
        Some(&[(Field::Queue, "retry")])
    }
}

impl Sink for Memory {
    fn probe(&mut self) -> Probe<'_> {
        let sight = match self.0.lock().unwrap().1 {
            true => Sight::Fault("away".to_owned(), "wait".to_owned()),
            false => Sight::Good("here".to_owned()),
        };
        Box::pin(std::future::ready(vec![sight]))
    }

    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut place = self.0.lock().unwrap();
            if place.1 {
                return Err(Outage::new(Cause::new("away")));
            }
            let mut stopped = Vec::new();
            let outcome = |task: &Task| {
                let behind = task
                    .key()
                    .is_some_and(|key| stopped.contains(&key.to_vec()));
                let outcome = match task.text(Field::Queue) {
                    _ if behind => return Outcome::Retry(Cause::new("behind")),
                    Some("reject") => Outcome::Reject(Cause::new("rejected")),
                    Some("retry") => Outcome::Retry(Cause::new("retried")),
                    _ => {
                        place.0.push(task.id().to_owned());
                        return Outcome::Delivered;
                    }
                };
                stopped.extend(task.key().map(<[u8]>::to_vec));
                outcome
            };
            Ok(batch.iter().map(outcome).collect())
        })
    }
}
