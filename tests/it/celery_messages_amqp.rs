//! Our Celery messages beside Celery's own, captured on RabbitMQ (`tests/fixtures/celery_rabbitmq`), field by field; and
//! beside what its client was seen to write there (`wire_tap.txt`), type by type. What we write is read by a reader of its own.
//!
//! Not compared: `origin`; `reply_to`, the sending thread's reply queue, unless the row names one; our two headers and our
//! `message_id`; `x-delivery-count`, which quorum queues add. `argsrepr` and `kwargsrepr` are compared with the JSON text.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use aftercommit::envelope::celery::{Defaults, Message};
use aftercommit::envelope::{amqp, native_delay};
use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::{Lsn, Moment, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/celery_rabbitmq")
}

fn fixture(file: &str) -> Value {
    let text = std::fs::read_to_string(folder().join(file)).expect(file);
    // Python wrote the capture: its decoded body holds two words that are no JSON.
    let text = text
        .replace("   Infinity,", "   null,")
        .replace(": NaN\n", ": null\n");
    serde_json::from_str(&text).expect(file)
}

/// A value of a field table, with the type that it had there.
enum Typed {
    Text(String),
    Nothing,
    Integer(char, i64),
    Boolean(bool),
    Double(f64),
    List(Vec<Typed>),
    Table(Vec<(String, Typed)>),
}

impl Typed {
    fn value(&self) -> Value {
        match self {
            Typed::Text(text) => json!(text),
            Typed::Nothing => Value::Null,
            Typed::Integer(_, number) => json!(number),
            Typed::Boolean(is) => json!(is),
            Typed::Double(number) => json!(number),
            Typed::List(list) => list.iter().map(Typed::value).collect(),
            Typed::Table(table) => {
                let members = table
                    .iter()
                    .map(|(name, value)| (name.clone(), value.value()));
                Value::Object(members.collect())
            }
        }
    }

    /// As the tap has it: the type's letter, and Python's form of the value.
    fn python(&self) -> String {
        let list = |all: Vec<String>| format!("[{}]", all.join(", "));
        match self {
            Typed::Text(text) => format!("'S', '{text}'"),
            Typed::Nothing => "'V', None".to_owned(),
            Typed::Integer(letter, number) => format!("'{letter}', {number}"),
            Typed::Boolean(true) => "'t', True".to_owned(),
            Typed::Boolean(false) => "'t', False".to_owned(),
            Typed::Double(number) => format!("'d', {number:?}"),
            Typed::List(all) => {
                let all = all.iter().map(|value| format!("({})", value.python()));
                format!("'A', {}", list(all.collect()))
            }
            Typed::Table(all) => {
                let all = all
                    .iter()
                    .map(|(name, value)| format!("('{name}', {})", value.python()));
                format!("'F', {}", list(all.collect()))
            }
        }
    }
}

/// Reads the properties of a content header.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn number(&mut self, bytes: usize) -> u64 {
        let taken = self.take(bytes).iter();
        taken.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn text(&mut self, length: usize) -> String {
        let length = self.number(length) as usize;
        String::from_utf8(self.take(length).to_vec()).expect("UTF-8")
    }

    fn long(&mut self) -> Reader<'a> {
        let length = self.number(4) as usize;
        Reader(self.take(length))
    }

    fn value(&mut self) -> Typed {
        match char::from(self.take(1)[0]) {
            'S' => Typed::Text(self.text(4)),
            'V' => Typed::Nothing,
            'I' => Typed::Integer('I', (self.number(4) as u32 as i32).into()),
            'L' => Typed::Integer('L', self.number(8) as i64),
            't' => Typed::Boolean(self.number(1) == 1),
            'd' => Typed::Double(f64::from_bits(self.number(8))),
            'F' => Typed::Table(self.long().table()),
            'A' => {
                let mut inner = self.long();
                let mut list = Vec::new();
                while !inner.0.is_empty() {
                    list.push(inner.value());
                }
                Typed::List(list)
            }
            other => panic!("type {other}"),
        }
    }

    fn table(&mut self) -> Vec<(String, Typed)> {
        let mut table = Vec::new();
        while !self.0.is_empty() {
            table.push((self.text(1), self.value()));
        }
        table
    }
}

/// Our message.
struct Ours {
    exchange: String,
    routing_key: String,
    flags: u64,
    /// In the order in which they stand there.
    properties: Vec<(&'static str, Typed)>,
    body: Vec<u8>,
}

impl Ours {
    fn new(task: &Task, now: Timestamp) -> Result<Ours, String> {
        let defaults = Defaults {
            queue: "celery".to_owned(),
            origin: "aftercommit".to_owned(),
        };
        let message = Message::new(task, &defaults, now).map_err(|unfit| unfit.to_string())?;
        let mut bytes = Vec::new();
        let basic = amqp::celery(&message).map_err(|unfit| unfit.to_string())?;
        basic.write(&mut bytes).map_err(|unfit| unfit.to_string())?;
        let mut body = Vec::new();
        message.write_body(&mut body);
        let mut reader = Reader(&bytes);
        let flags = reader.number(2);
        let mut properties = Vec::new();
        for (bit, name) in [
            (15, "content_type"),
            (14, "content_encoding"),
            (13, "headers"),
            (12, "delivery_mode"),
            (11, "priority"),
            (10, "correlation_id"),
            (9, "reply_to"),
            (8, "expiration"),
            (7, "message_id"),
        ] {
            if flags >> bit & 1 == 1 {
                let value = match name {
                    "headers" => Typed::Table(reader.long().table()),
                    "delivery_mode" | "priority" => Typed::Integer('b', reader.number(1) as i64),
                    _ => Typed::Text(reader.text(1)),
                };
                properties.push((name, value));
            }
        }
        assert!(
            reader.0.is_empty(),
            "something stands behind the properties"
        );
        Ok(Ours {
            exchange: message.exchange.to_string(),
            routing_key: message.routing_key.to_string(),
            flags,
            properties,
            body,
        })
    }

    /// Properties and headers by name; `message_id` and our own headers are taken out.
    fn values(&self, id: &str) -> Map<String, Value> {
        let named = self.properties.iter();
        let mut values: Map<String, Value> = named
            .map(|(name, value)| ((*name).to_owned(), value.value()))
            .collect();
        assert_eq!(values.remove("message_id"), Some(json!(id)));
        let headers = values["headers"].as_object_mut().expect("headers");
        for own in ["aftercommit-lsn", "aftercommit-committed-at"] {
            assert!(headers.remove(own).is_some(), "{own}");
        }
        values
    }
}

fn task(fields: &[(Field, &str)]) -> Task {
    let position = Position {
        commit_lsn: Lsn(0x16_B374_D848),
        ordinal: 7,
    };
    let at = Timestamp(848_621_664_024_870);
    Task::from_fields(fields.iter().copied(), position, at)
}

/// An instant, as Postgres writes it.
fn postgres(rfc3339: &Value) -> Option<String> {
    Some(rfc3339.as_str()?.replace('T', " "))
}

/// The row of a captured message has its id and its times; `row` says the rest. `differs` is where our message is meant to
/// differ: path and our value (null: left out).
fn compare(file: &str, index: usize, row: &[(Field, &str)], differs: &[(&str, Value)]) {
    let mut theirs = fixture(file)["messages"][index].take();
    let headers = &theirs["properties"]["headers"];
    let (id, name) = (&headers["id"], &headers["task"]);
    let (id, name) = (
        id.as_str().unwrap().to_owned(),
        name.as_str().unwrap().to_owned(),
    );
    let (eta, expires) = (postgres(&headers["eta"]), postgres(&headers["expires"]));
    let mut fields = vec![(Field::Id, id.as_str()), (Field::Task, name.as_str())];
    fields.extend(eta.as_deref().map(|at| (Field::RunAt, at)));
    fields.extend(expires.as_deref().map(|at| (Field::ExpiresAt, at)));
    fields.extend(row);
    let task = task(&fields);
    // It was sent when it had so long to live.
    let expiration = theirs["properties"]["expiration"].as_str();
    let now = match (
        expires.as_deref().map(|at| Moment::parse(at.as_bytes())),
        expiration,
    ) {
        (Some(Ok(Moment::At(at))), Some(ms)) => Timestamp(at.0 - ms.parse::<i64>().unwrap() * 1000),
        _ => Timestamp(0),
    };
    let ours = Ours::new(&task, now).expect(file);

    let (exchange, routing_key) = match theirs["exchange"].as_str().unwrap() {
        native_delay::EXCHANGE => ("qt", "qt"),
        exchange => (exchange, theirs["routing_key"].as_str().unwrap()),
    };
    assert_eq!(
        (ours.exchange.as_str(), ours.routing_key.as_str()),
        (exchange, routing_key),
        "{file}"
    );
    let body: Value = serde_json::from_slice(&ours.body).expect(file);
    assert_eq!(body, theirs["body_decoded"], "{file}");

    let mut values = Value::Object(ours.values(&id));
    let theirs = &mut theirs["properties"];
    let options = task.text(Field::Options).unwrap_or("{}");
    let options: Value = serde_json::from_str(options).unwrap();
    let is_given = |name: &str| options.get(name).is_some();
    if !is_given("reply_to") {
        assert_eq!(values["reply_to"].take(), "");
        assert!(theirs["reply_to"].take().is_string());
    }
    for values in [&mut values, &mut *theirs] {
        let headers = values["headers"].as_object_mut().unwrap();
        assert!(
            headers
                .remove("origin")
                .is_some_and(|origin| origin.is_string())
        );
        headers.remove("x-delivery-count");
    }
    for (repr, field, empty) in [
        ("argsrepr", Field::Args, "[]"),
        ("kwargsrepr", Field::Kwargs, "{}"),
    ] {
        if !is_given(repr) {
            theirs["headers"][repr] = cut(task.text(field).unwrap_or(empty)).into();
        }
    }
    for (path, value) in differs {
        let (part, name) = match path.strip_prefix("headers.") {
            Some(name) => (&mut theirs["headers"], name),
            None => (&mut *theirs, *path),
        };
        part[name] = value.clone();
    }
    assert_eq!(&values, theirs, "{file}");
}

fn cut(json: &str) -> String {
    match json.chars().count() {
        0..=1024 => json.to_owned(),
        _ => json.chars().take(1021).chain("...".chars()).collect(),
    }
}

/// Fixtures whose message is made of a row by its fields: file, number of the message, row, and where we differ.
type Row<'a> = (
    &'a str,
    usize,
    &'a [(Field, &'a str)],
    &'a [(&'a str, Value)],
);

#[test]
fn every_option_makes_celerys_message() {
    use Field::*;
    let args = (Args, "[2, 3]");
    // The same instant, always in UTC: Postgres keeps no time zone.
    let utc = |eta: &str| [("headers.eta", json!(eta))];
    let rows: &[Row<'_>] = &[
        ("01_delay_args.json", 0, &[args], &[]),
        (
            "02_kwargs_unicode.json",
            0,
            &[
                (Args, "[1]"),
                (
                    Kwargs,
                    r#"{"y": "żółć ☃ \"quoted\" \\ \n", "nested": {"a": [1, null, true, 1.5]}}"#,
                ),
            ],
            &[],
        ),
        ("03_task_id.json", 0, &[args], &[]),
        ("04_countdown_30.json", 0, &[args], &[]),
        ("05_eta_utc.json", 0, &[args], &[]),
        (
            "06_eta_warsaw.json",
            0,
            &[args],
            &utc("2031-02-03T04:05:06.789012+00:00"),
        ),
        ("08_expires_seconds.json", 0, &[args], &[]),
        // RabbitMQ closes the channel at a longer one.
        (
            "09_expires_datetime.json",
            0,
            &[args],
            &[("expiration", json!("4294967295"))],
        ),
        ("10_priority_0.json", 0, &[args], &[]),
        ("10_priority_1.json", 0, &[args, (Priority, "1")], &[]),
        ("10_priority_3.json", 0, &[args, (Priority, "3")], &[]),
        ("10_priority_5.json", 0, &[args, (Priority, "5")], &[]),
        ("10_priority_6.json", 0, &[args, (Priority, "6")], &[]),
        ("10_priority_9.json", 0, &[args, (Priority, "9")], &[]),
        (
            "11_custom_headers.json",
            0,
            &[
                args,
                (
                    Headers,
                    r#"{"x-trace": "abc", "x-num": 7, "x-big": 1099511627776, "x-f": 1.5, "x-list": [1, "a", null], "x-map": {"k": true}}"#,
                ),
            ],
            // It was captured by a client that cut it.
            &[("headers.x-f", json!(1.5))],
        ),
        (
            "12_time_limits.json",
            0,
            &[
                args,
                (Options, r#"{"time_limit": 20, "soft_time_limit": 10}"#),
            ],
            &[],
        ),
        // Celery leaves the priority out here, which is the lowest.
        (
            "13_queue_high.json",
            0,
            &[args, (Queue, "high")],
            &[("priority", json!(0))],
        ),
        (
            "14_exchange_routing_key.json",
            0,
            &[
                args,
                (Options, r#"{"exchange": "myex", "routing_key": "my.rk"}"#),
            ],
            &[],
        ),
        (
            "15_ignore_result.json",
            0,
            &[args, (Options, r#"{"ignore_result": true}"#)],
            &[],
        ),
        (
            "16_shadow.json",
            0,
            &[args, (Options, r#"{"shadow": "pretty-name"}"#)],
            &[],
        ),
        (
            "17_link_and_link_error.json",
            0,
            &[
                args,
                (
                    Options,
                    r#"{"link": {"task": "proj.tasks.add", "args": [10], "options": {"task_id": "22222222-0000-0000-0000-000000000000"}},
                        "link_error": [{"task": "proj.tasks.onerr"}]}"#,
                ),
            ],
            &[],
        ),
        (
            "18_chain.json",
            0,
            &[
                (Args, "[1, 2]"),
                (
                    Options,
                    r#"{"chain": [
                        {"task": "proj.tasks.add", "args": [8], "options": {"task_id": "c462d417-2aa8-4e05-8f94-1d8e250f99f6", "reply_to": "bddc8428-8472-35f5-bccf-32810443c221"}},
                        {"task": "proj.tasks.add", "args": [4], "options": {"task_id": "9f387d77-90b6-43d0-90ae-b18eb4d9bfac", "reply_to": "bddc8428-8472-35f5-bccf-32810443c221"}}
                    ], "reply_to": "bddc8428-8472-35f5-bccf-32810443c221"}"#,
                ),
            ],
            &[],
        ),
        (
            "19_group.json",
            0,
            &[
                (Args, "[0, 0]"),
                (
                    Options,
                    r#"{"group_id": "9df85b3c-4882-426d-bcab-c1a95b489405", "group_index": 0}"#,
                ),
            ],
            &[],
        ),
        (
            "19_group.json",
            1,
            &[
                (Args, "[1, 1]"),
                (
                    Options,
                    r#"{"group_id": "9df85b3c-4882-426d-bcab-c1a95b489405", "group_index": 1}"#,
                ),
            ],
            &[],
        ),
        (
            "20_chord.json",
            0,
            &[(Args, "[1, 1]"), (Options, CHORD)],
            &[],
        ),
        (
            "20_chord.json",
            1,
            &[
                (Args, "[2, 2]"),
                (Options, &CHORD.replace("index\": 0", "index\": 1")),
            ],
            &[],
        ),
        (
            "21_stamps.json",
            0,
            &[
                args,
                (
                    Options,
                    r#"{"stamps": {"monitor": "m-1", "tenant": "acme"}}"#,
                ),
            ],
            &[],
        ),
        (
            "22_special_types.json",
            0,
            &[
                (
                    Args,
                    r#"[{"__type__": "date", "__value__": "2030-01-02"}, {"__type__": "datetime", "__value__": "2031-02-03T04:05:06.789012+00:00"}]"#,
                ),
                (
                    Kwargs,
                    r#"{"d": {"__type__": "decimal", "__value__": "1.10"}, "u": {"__type__": "uuid", "__value__": {"hex": "11111111222233334444555555555555"}}, "b": {"__type__": "bytes", "__value__": "raw"}, "b2": {"__type__": "base64", "__value__": "/wA="}, "t": {"__type__": "time", "__value__": "01:02:03"}}"#,
                ),
            ],
            &[],
        ),
        (
            "26_retries_root_parent_group.json",
            0,
            &[
                args,
                (
                    Options,
                    r#"{"retries": 2, "root_id": "r-1", "parent_id": "p-1", "group": "g-1", "group_index": 4, "replaced_task_nesting": 1, "reply_to": "my-reply"}"#,
                ),
            ],
            &[],
        ),
        (
            "28_transient.json",
            0,
            &[args, (Options, r#"{"delivery_mode": 1}"#)],
            &[],
        ),
        (
            "29_send_task.json",
            0,
            &[
                (Args, "[1]"),
                (Kwargs, r#"{"k": "v"}"#),
                (Options, r#"{"argsrepr": "(***)", "kwargsrepr": "{***}"}"#),
            ],
            // send_task() does not know the task's own; false is what the worker takes null for.
            &[("headers.ignore_result", json!(false))],
        ),
        (
            "30_argsrepr_long.json",
            0,
            &[(
                Args,
                &fixture("30_argsrepr_long.json")["messages"][0]["body_decoded"][0].to_string(),
            )],
            &[],
        ),
        (
            "31_expiration_and_countdown.json",
            0,
            &[args, (Queue, "high"), (Priority, "4")],
            &[],
        ),
        (
            "32_tz_app.json",
            0,
            &[args],
            &utc("2026-11-22T00:15:00.711444+00:00"),
        ),
        (
            "33_tz_app_utc.json",
            0,
            &[args],
            &utc("2026-11-22T00:15:01.173913+00:00"),
        ),
        (
            "34_result_backend_rpc.json",
            0,
            &[
                args,
                (
                    Options,
                    r#"{"reply_to": "0311d11b-3918-3ff5-9edf-b7d077633562"}"#,
                ),
            ],
            &[],
        ),
        ("36_sent_event.json", 0, &[args], &[]),
        (
            "60_max_priority.json",
            0,
            &[args, (Queue, "prio10"), (Priority, "9")],
            &[],
        ),
        ("61_quorum_direct.json", 0, &[args, (Queue, "qq")], &[]),
        (
            "62_quorum_topic_countdown.json",
            0,
            &[args, (Options, TOPIC)],
            &[],
        ),
        (
            "63_quorum_topic_eta.json",
            0,
            &[args, (Options, TOPIC)],
            &[],
        ),
        (
            "64_quorum_topic_no_delay.json",
            0,
            &[args, (Options, TOPIC)],
            &[],
        ),
    ];
    for (file, index, row, differs) in rows {
        compare(file, *index, row, differs);
    }
    let named: Vec<&str> = rows.iter().map(|(file, ..)| *file).collect();
    for file in files() {
        let is_named = named.contains(&file.as_str());
        let why = NOT_OFFERED.iter().find(|(name, _)| *name == file);
        assert!(
            is_named != why.is_some(),
            "{file}: compare it, or say in NOT_OFFERED why not"
        );
    }
}

const TOPIC: &str = r#"{"exchange": "qt", "routing_key": "qt"}"#;
const CHORD: &str = r#"{"group": "422d4ca3-5984-443b-a4f3-5f22433b2f09", "group_index": 0, "chord": {"task": "proj.tasks.onerr",
    "options": {"task_id": "5d70cfd3-90e2-428b-9a0c-ee684c916174", "reply_to": "ad486bd9-5587-3945-a5e1-0e10dbc563a4", "group_id": "422d4ca3-5984-443b-a4f3-5f22433b2f09"}}}"#;

/// Fixtures of messages that a row's fields cannot make, and why.
const NOT_OFFERED: &[(&str, &str)] = &[
    (
        "07_eta_naive.json",
        "a naive eta is read in the worker's time zone; a timestamptz always has an offset",
    ),
    ("23_serializer_pickle.json", "as a ready-made message only"),
    ("24_compression_zlib.json", "as a ready-made message only"),
    ("25_compression_gzip.json", "as a ready-made message only"),
    ("27_protocol1.json", "as a ready-made message only"),
    (
        "35_floats_bigints.json",
        "NaN and Infinity are no JSON for Postgres; as a ready-made message only",
    ),
    (
        "65_quorum_topic_countdown_delivered.json",
        "the message of 62, after its delay",
    ),
];

/// Names of the fixtures.
fn files() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap();
    let mut files: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect();
    files.sort();
    files
}

/// Every captured message, put into a row as the application could: it leaves as it came.
#[test]
fn a_ready_made_message_is_sent_as_it_is() {
    let mut seen = 0;
    for file in files() {
        for theirs in fixture(&file)["messages"].as_array().unwrap() {
            let body = match &theirs["body_raw"] {
                Value::String(text) => text.clone().into_bytes(),
                other => STANDARD.decode(other["_base64"].as_str().unwrap()).unwrap(),
            };
            let hex: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
            let mut expected = theirs["properties"].clone();
            let properties = expected.as_object_mut().unwrap();
            let mut given = properties.clone();
            given.retain(|name, _| {
                !matches!(
                    name.as_str(),
                    "headers" | "content_type" | "content_encoding"
                )
            });
            properties.entry("priority").or_insert(json!(0));
            if let Some(ms) = properties.get_mut("expiration") {
                *ms = ms
                    .as_str()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
                    .min(u32::MAX.into())
                    .to_string()
                    .into();
            }
            let options = json!({
                "content_type": expected["content_type"],
                "content_encoding": expected["content_encoding"],
                "exchange": theirs["exchange"],
                "routing_key": theirs["routing_key"],
                "properties": given,
            });
            let id = expected["correlation_id"].as_str().unwrap();
            let row = task(&[
                (Field::Id, id),
                (Field::Task, "proj.tasks.add"),
                (Field::Body, &format!("\\x{hex}")),
                (Field::Headers, &expected["headers"].to_string()),
                (Field::Options, &options.to_string()),
            ]);
            let ours = Ours::new(&row, Timestamp(0)).expect(&file);
            assert_eq!(
                (json!(ours.exchange), json!(ours.routing_key)),
                (theirs["exchange"].clone(), theirs["routing_key"].clone()),
                "{file}"
            );
            assert_eq!(ours.body, body, "{file}");
            assert_eq!(Value::Object(ours.values(id)), expected, "{file}");
            seen += 1;
        }
    }
    assert!(seen >= 49, "{seen}");
}

/// What was seen on the wire: each property and header in its order, with its type.
#[test]
fn types_and_order_are_those_of_celerys_client() {
    let tap = std::fs::read_to_string(folder().join("wire_tap.txt")).unwrap();
    let theirs = tap.split_once("HEADER class 60 bodysize 81 ").unwrap().1;
    let (theirs, body) = theirs.split_once("\n rest b''\nBODY b'").unwrap();
    let id = "11111111-2222-3333-4444-555555555555";
    let row = task(&[
        (Field::Id, id),
        (Field::Task, "proj.tasks.add"),
        (Field::Args, "[2, 3]"),
        (Field::Priority, "5"),
        (Field::RunAt, "2026-11-22 00:16:50.132927+00"),
        (Field::ExpiresAt, "2026-11-22 00:17:20.132927+00"),
        (
            Field::Headers,
            r#"{"x-str": "abc", "x-num": 7, "x-big": 1099511627776, "x-neg": -5, "x-f": 1.5, "x-list": [1, "a", null], "x-map": {"k": true}}"#,
        ),
        (
            Field::Options,
            r#"{"time_limit": 20, "argsrepr": "(2, 3)", "reply_to": "c0e7cda4-e0a4-35f2-9106-0006541cacbb"}"#,
        ),
    ]);
    let Ok(Moment::At(sent)) = Moment::parse(b"2026-11-22 00:16:20.132927+00") else {
        panic!("a moment");
    };
    let ours = Ours::new(&row, sent).unwrap();
    let (message_id, lsn) = (1 << 7, "('aftercommit-");
    let mut text = format!("flags 0b{:016b}", ours.flags - message_id);
    for (name, value) in &ours.properties {
        match value {
            Typed::Table(headers) => {
                for (name, value) in headers {
                    let value = match name.as_str() {
                        "origin" => "'S', 'gen14417@vm'".to_owned(),
                        _ => value.python(),
                    };
                    let line = format!("('{name}', {value})");
                    if !line.starts_with(lsn) {
                        write!(text, "\n   H {line}").unwrap();
                    }
                }
            }
            _ if *name == "message_id" => {}
            Typed::Integer(_, number) => write!(text, "\n {name} {number}").unwrap(),
            value => write!(text, "\n {name} {}", value.value().as_str().unwrap()).unwrap(),
        }
    }
    assert_eq!(text, theirs);
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    assert_eq!(
        json(&ours.body),
        json(body.trim_end().trim_end_matches('\'').as_bytes())
    );
}

/// Delayed messages take the way that Celery's take.
#[test]
fn a_delay_is_written_as_celery_writes_it() {
    for (file, seconds) in [
        ("62_quorum_topic_countdown.json", 3),
        ("63_quorum_topic_eta.json", 2),
    ] {
        let theirs = &fixture(file)["messages"][0];
        assert_eq!(theirs["exchange"], native_delay::EXCHANGE);
        assert_eq!(
            theirs["routing_key"],
            native_delay::routing_key(seconds, "qt")
        );
    }
}
