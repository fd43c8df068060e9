//! Our Celery messages beside Celery's own, captured on Redis and on RabbitMQ (`tests/fixtures/celery_*`), field by field.
//!
//! A captured message's id, task and times go into a row, with what a row of [`rows`] says beside them; what we make of the row
//! has to be the message. Not compared: `origin`, and what no two messages share ([`Broker::FRESH`]); `reply_to`, the sending
//! thread's reply queue, unless the row names one; our two headers; `x-delivery-count`, which quorum queues add. `argsrepr` and
//! `kwargsrepr` are compared with the JSON text, which we write instead of Python's repr.

mod amqp;
mod properties;
mod redis;
mod rows;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use aftercommit::envelope::celery::{Defaults, Message};
use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::{Lsn, Moment, Timestamp};
use serde_json::{Map, Value, json};

use rows::{NOT_OFFERED, Row};

/// A message: a captured one, or ours.
struct Sent {
    /// Where it goes: the keys of lists, or exchange and routing key.
    to: Vec<String>,
    /// Each header as `headers.<name>`, and each property by its name.
    values: BTreeMap<String, Value>,
    body: Vec<u8>,
}

impl Sent {
    fn text(&self, path: &str) -> Option<&str> {
        self.values.get(path)?.as_str()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a body of JSON")
    }

    /// Adds values under a prefix.
    fn extend(&mut self, prefix: &str, values: &Value) {
        let values = values.as_object().expect("an object").iter();
        let named = values.map(|(name, value)| (format!("{prefix}{name}"), value.clone()));
        self.values.extend(named);
    }

    /// The values under a prefix.
    fn under(&self, prefix: &str) -> Map<String, Value> {
        let all = self.values.iter();
        let named = all.filter_map(|(path, value)| Some((path.strip_prefix(prefix)?, value)));
        named
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .collect()
    }

    /// Takes out what we alone add to each message.
    fn take_own_headers(&mut self) {
        for name in ["aftercommit-lsn", "aftercommit-committed-at"] {
            let header = self.values.remove(&format!("headers.{name}"));
            assert!(header.is_some_and(|value| value.is_string()), "{name}");
        }
    }
}

/// What the two brokers have each in its own way.
trait Broker {
    /// Under `tests/fixtures`.
    const FOLDER: &str;
    /// Properties that are others in every message.
    const FRESH: &[&str];
    /// In milliseconds.
    const LONGEST_EXPIRATION: u64;
    /// As [`rows::NOT_OFFERED`], of captures that are only here.
    const NOT_OFFERED: &[(&str, &str)];

    /// As [`rows::rows`], of captures that are only here.
    fn rows() -> Vec<Row>;

    /// Where our message is meant to differ from a captured one: path and our value (null: left out).
    fn differs(file: &str) -> Vec<(&'static str, Value)>;

    /// The messages of a fixture.
    fn captured(fixture: &Value) -> Vec<Sent>;

    /// Ours, sent by the application of the fixture.
    fn ours(message: &Message<'_>, fixture: &Value) -> Sent;
}

fn folder<B: Broker>() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(B::FOLDER)
}

/// The names of all fixtures.
fn files<B: Broker>() -> Vec<String> {
    let entries = fs::read_dir(folder::<B>()).expect("fixtures");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let mut files: Vec<String> = names
        .map(|name| name.into_string().expect("UTF-8"))
        .filter(|name| name.ends_with(".json"))
        .collect();
    files.sort();
    files
}

fn fixture<B: Broker>(file: &str) -> Value {
    let text = fs::read_to_string(folder::<B>().join(file)).expect(file);
    // Python wrote the capture: its decoded body holds two words that are no JSON.
    let text = text
        .replace("   Infinity,", "   null,")
        .replace(": NaN\n", ": null\n");
    serde_json::from_str(&text).expect(file)
}

fn task(fields: &[(Field, &str)]) -> Task {
    let position = Position {
        commit_lsn: Lsn(0x16_B374_D848),
        ordinal: 7,
    };
    let at = Timestamp(848_621_664_024_870);
    Task::from_fields(fields.iter().copied(), position, at)
}

/// What we make of a row.
fn ours<B: Broker>(task: &Task, fixture: &Value, now: Timestamp) -> Sent {
    let queue = &fixture["app_conf"]["task_default_queue"];
    let defaults = Defaults {
        queue: queue.as_str().unwrap_or("celery").to_owned(),
        origin: "aftercommit".to_owned(),
    };
    let message = Message::new(task, &defaults, now).expect("a message");
    B::ours(&message, fixture)
}

/// The row that a captured message would have come from: its id, its task, its times, and `fields`.
fn row_of(theirs: &Sent, fields: &[(Field, &str)]) -> Task {
    let postgres = |path| Some(theirs.text(path)?.replace('T', " "));
    let (eta, expires) = (postgres("headers.eta"), postgres("headers.expires"));
    let mut all = vec![
        (Field::Id, theirs.text("headers.id").expect("an id")),
        (Field::Task, theirs.text("headers.task").expect("a task")),
    ];
    all.extend(eta.as_deref().map(|at| (Field::RunAt, at)));
    all.extend(expires.as_deref().map(|at| (Field::ExpiresAt, at)));
    let fields: Vec<_> = fields
        .iter()
        .map(|(field, text)| (*field, rows::fill(text, theirs)))
        .collect();
    all.extend(fields.iter().map(|(field, text)| (*field, text.as_str())));
    task(&all)
}

/// When a captured message was sent, of those that say how long it is from then until they expire.
fn sent_at(theirs: &Sent, row: &Task) -> Timestamp {
    let (Some(expires), Some(left)) = (row.text(Field::ExpiresAt), theirs.text("expiration"))
    else {
        return Timestamp(0);
    };
    let Ok(Moment::At(expires)) = Moment::parse(expires.as_bytes()) else {
        panic!("{expires} is a moment");
    };
    let left: i64 = left.parse().expect("milliseconds");
    Timestamp(expires.0 - left * 1000)
}

/// Celery leaves the lowest priority out at times, and the longest expiration that a broker takes is its own affair.
fn normalize<B: Broker>(theirs: &mut Sent) {
    theirs
        .values
        .entry("priority".to_owned())
        .or_insert(json!(0));
    if let Some(expiration) = theirs.values.get_mut("expiration") {
        let ms = expiration.as_str().map(str::parse::<u64>);
        let ms = ms.expect("text").expect("milliseconds");
        *expiration = ms.min(B::LONGEST_EXPIRATION).to_string().into();
    }
}

fn compare<B: Broker>((file, index, fields): &Row) {
    let fixture = fixture::<B>(file);
    let mut theirs = B::captured(&fixture).swap_remove(*index);
    let row = row_of(&theirs, fields);
    let mut ours = ours::<B>(&row, &fixture, sent_at(&theirs, &row));
    assert_eq!(ours.to, theirs.to, "{file}");
    assert_eq!(ours.json(), theirs.json(), "{file}");

    normalize::<B>(&mut theirs);
    theirs.values.remove("headers.x-delivery-count");
    ours.take_own_headers();
    let options: Value =
        serde_json::from_str(row.text(Field::Options).unwrap_or("{}")).expect(file);
    let is_given = |name: &str| options.get(name).is_some();
    if !is_given("reply_to") {
        assert_eq!(ours.text("reply_to"), Some(""), "{file}");
        ours.values.remove("reply_to");
        assert!(theirs.values.remove("reply_to").is_some(), "{file}");
    }
    for path in ["headers.origin"].iter().chain(B::FRESH) {
        let both = [&mut ours, &mut theirs].map(|sent| sent.values.remove(*path));
        assert!(both.iter().all(Option::is_some), "{file}: {path}");
    }
    for (repr, field, empty) in [
        ("argsrepr", Field::Args, "[]"),
        ("kwargsrepr", Field::Kwargs, "{}"),
    ] {
        if !is_given(repr) {
            let json = row.text(field).unwrap_or(empty);
            theirs
                .values
                .insert(format!("headers.{repr}"), cut(json).into());
        }
    }
    for (path, value) in B::differs(file) {
        match value {
            Value::Null => theirs.values.remove(path),
            value => theirs.values.insert(path.to_owned(), value),
        };
    }
    assert_eq!(ours.values, theirs.values, "{file}");
}

/// Cut at 1,024 characters; Celery cuts its own representation a little later.
fn cut(json: &str) -> String {
    match json.chars().count() {
        0..=1024 => json.to_owned(),
        _ => json.chars().take(1021).chain("...".chars()).collect(),
    }
}

/// How the names of captures of older releases begin, which have a test of their own.
const RELEASE: &str = "version_";

/// Every fixture is compared, or named with the reason why not.
fn every_option_makes_celerys_message<B: Broker>() {
    let rows = [rows::rows(), B::rows()].concat();
    rows.iter().for_each(compare::<B>);
    let not_offered = [NOT_OFFERED, B::NOT_OFFERED].concat();
    for file in files::<B>() {
        if file.starts_with(RELEASE) {
            continue;
        }
        let is_compared = rows.iter().any(|(compared, ..)| *compared == file);
        let is_excused = not_offered.iter().any(|(excused, _)| *excused == file);
        assert!(
            is_compared != is_excused,
            "{file}: compare it, or say in NOT_OFFERED why not"
        );
    }
}

/// Every captured message, put into a row as the application could: it leaves as it came.
fn a_ready_made_message_is_sent_as_it_is<B: Broker>(at_least: usize) {
    let mut seen = 0;
    for file in files::<B>() {
        let fixture = fixture::<B>(&file);
        for mut theirs in B::captured(&fixture) {
            let row = ready_made(&theirs);
            let mut ours = ours::<B>(&row, &fixture, Timestamp(0));
            assert_eq!(ours.to, theirs.to, "{file}");
            assert_eq!(ours.body, theirs.body, "{file}");
            normalize::<B>(&mut theirs);
            ours.take_own_headers();
            for path in B::FRESH {
                let [ours, theirs] = [&mut ours, &mut theirs].map(|sent| sent.values.remove(*path));
                assert_ne!(ours, theirs, "{file}: {path} is fresh");
            }
            assert_eq!(ours.values, theirs.values, "{file}");
            seen += 1;
        }
    }
    assert!(seen >= at_least, "{seen}");
}

/// The row that carries a message whole.
fn ready_made(message: &Sent) -> Task {
    let hex: String = message
        .body
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let headers = Value::Object(message.under("headers."));
    let mut properties = message.under("");
    properties.retain(|name, _| !name.starts_with("headers.") && !name.starts_with("content"));
    let info = &message.values.get("delivery_info");
    let to = |name: &str, at: usize| match info {
        Some(info) => info[name].clone(),
        None => json!(message.to[at]),
    };
    let content = |name: &str| {
        let underscored = message.values.get(&format!("content_{name}"));
        underscored.or_else(|| message.values.get(&format!("content-{name}")))
    };
    let options = json!({
        "content_type": content("type"),
        "content_encoding": content("encoding"),
        "exchange": to("exchange", 0),
        "routing_key": to("routing_key", 1),
        "properties": properties,
    });
    task(&[
        (Field::Id, message.text("correlation_id").expect("an id")),
        (Field::Task, "proj.tasks.add"),
        (Field::Body, &format!("\\x{hex}")),
        (Field::Headers, &headers.to_string()),
        (Field::Options, &options.to_string()),
    ])
}
