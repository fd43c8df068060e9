//! Redis streams and lists on real servers: nothing comes twice, nothing that is late is lost, wherever the servers are.

mod cluster;
mod daemon;
mod lists;
mod parts;
mod sentinel;
mod streams;
mod tls_celery;
mod tls_cluster;
mod tls_sentinel;

use aftercommit::outbox::{Field, Position, TableName, Task};
use aftercommit::pg::{Lsn, Timestamp};
use aftercommit::sink::marks::{History, Scope, Settled, Terms};
use aftercommit::sink::redis::Config;
use aftercommit::sink::{Outcome, Settings as _, Sink};
use serde_json::{Value, json};

/// A sink with these settings, and a short timeout where they have none.
fn open(mut settings: Value) -> Box<dyn Sink> {
    if settings.get("timeout").is_none() {
        settings["timeout"] = json!("1s");
    }
    let config: Config = serde_json::from_value(settings).expect("settings");
    config.open().expect("a sink")
}

fn position(n: u64) -> Position {
    Position {
        commit_lsn: Lsn(0x100_0000 + 0x100 * (n / 3)),
        ordinal: n % 3,
    }
}

/// The id of the entry of row `n`.
fn entry(n: u64) -> String {
    let Position {
        commit_lsn,
        ordinal,
    } = position(n);
    format!("{}-{}", commit_lsn.0, ordinal * 1_000_000)
}

/// The task of row `n`: three rows in each transaction.
fn task(n: u64, fields: &[(Field, &str)]) -> Task {
    let id = n.to_string();
    let standard = [(Field::Id, id.as_str()), (Field::Task, "app.tasks.work")];
    let all = standard.into_iter().chain(fields.iter().copied());
    Task::from_fields(all, position(n), Timestamp(0))
}

fn tasks(numbers: impl IntoIterator<Item = u64>) -> Vec<Task> {
    numbers.into_iter().map(|n| task(n, &[])).collect()
}

/// What is handed over, as a lane does: each time, any of it may have been handed over before.
struct Lane {
    sink: Box<dyn Sink>,
    generation: u64,
    settled: Settled,
}

impl Lane {
    fn new(sink: Box<dyn Sink>) -> Lane {
        Lane {
            sink,
            generation: 1,
            settled: Settled::default(),
        }
    }

    async fn hand(&mut self, tasks: &[Task]) -> Result<Vec<Outcome>, String> {
        let table = TableName::ours();
        let history = History {
            system_id: 42,
            timeline: 1,
            slot: "aftercommit",
            table: &table,
        };
        let terms = Terms {
            scope: Scope::new(&history, "events", 0, self.generation),
            turn: 1,
            settled: self.settled,
        };
        let delivery = self.sink.deliver_once(tasks, terms).await;
        delivery.map_err(|outage| outage.to_string())
    }

    async fn delivers(&mut self, tasks: &[Task]) {
        let outcomes = self.hand(tasks).await.expect("no outage");
        assert_eq!(outcomes, vec![Outcome::Delivered; tasks.len()]);
    }
}

fn numbers(ids: Vec<String>) -> Vec<u64> {
    let number = |id: String| id.parse().expect("a number");
    ids.into_iter().map(number).collect()
}
