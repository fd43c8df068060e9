//! Other task queues than Celery, each with its real worker: what it is handed runs as what its own client sends.

mod bullmq;
mod daemon;
mod dramatiq;
mod sidekiq;

use std::path::Path;

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::{Lsn, Timestamp};
use aftercommit::sink::{Outcome, Settings, Sink};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::support::handover::hand_over;

/// 2026-11-22, in the middle of the day.
const COMMITTED: Timestamp = Timestamp(848_664_000_000_000);

fn open<C: Settings + DeserializeOwned>(settings: Value) -> Box<dyn Sink> {
    let config: C = serde_json::from_value(settings).expect("settings");
    config.open().expect("a sink")
}

fn task(id: &str, name: &str, fields: &[(Field, &str)]) -> Task {
    committed_at(COMMITTED, id, name, fields)
}

/// A task that was committed ten seconds ago.
fn recent(id: &str, name: &str, fields: &[(Field, &str)]) -> Task {
    let ago = Timestamp(aftercommit::clock::now().0 - 10_000_000);
    committed_at(ago, id, name, fields)
}

fn committed_at(at: Timestamp, id: &str, name: &str, fields: &[(Field, &str)]) -> Task {
    let standard = [(Field::Id, id), (Field::Task, name)];
    let all = standard.into_iter().chain(fields.iter().copied());
    let position = Position {
        commit_lsn: Lsn(0x100),
        ordinal: 0,
    };
    Task::from_fields(all, position, at)
}

async fn deliver(sink: &mut Box<dyn Sink>, tasks: &[Task]) -> Vec<Outcome> {
    hand_over(sink, tasks).await.expect("no outage")
}

async fn delivers(sink: &mut Box<dyn Sink>, tasks: &[Task]) {
    let outcomes = deliver(sink, tasks).await;
    assert_eq!(outcomes, vec![Outcome::Delivered; tasks.len()]);
}

/// A moment from now, as Postgres writes it.
fn in_seconds(seconds: i64) -> String {
    let at = aftercommit::clock::now().0 + 1_000_000 * seconds;
    let text = Timestamp(at).rfc3339().expect("a year of four digits");
    text.as_str().replace('T', " ").replace("+00:00", "+00")
}

fn fixture(folder: &str, file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder);
    let text = std::fs::read_to_string(path.join(file)).expect(file);
    serde_json::from_str(&text).expect(file)
}

/// The files of a folder of fixtures.
fn fixtures(folder: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder);
    let files = std::fs::read_dir(path).expect(folder);
    let mut names: Vec<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect();
    names.sort();
    names
}
