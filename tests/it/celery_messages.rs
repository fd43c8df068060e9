//! Our Celery messages beside Celery's own, captured on Redis (`tests/fixtures/celery_redis`), field by field.
//!
//! Not compared: `origin` and `delivery_tag`, which differ for every sender and every message; `reply_to`, the sending
//! thread's reply queue, unless the row names one; our two headers. `argsrepr` and `kwargsrepr` are compared with the
//! JSON text, which we write instead of Python's repr.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aftercommit::envelope::celery::{Defaults, Message};
use aftercommit::envelope::kombu::{self, Lists};
use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::{Lsn, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use uuid::Uuid;

const ID: &str = "11111111-2222-3333-4444-555555555555";
const ADD: &str = "proj.tasks.add";
const NOTHING: &[(&str, Value)] = &[];

/// A row, and where our message is meant to differ from the captured one: path and our value (null: left out).
struct Case<'a> {
    file: &'a str,
    row: &'a [(Field, &'a str)],
    differs: &'a [(&'a str, Value)],
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/celery_redis")
}

fn fixture(file: &str) -> Value {
    let text = std::fs::read_to_string(folder().join(file)).expect(file);
    // Python wrote the capture: its decoded body holds two words that are no JSON.
    let text = text
        .replace("Infinity,", "null,")
        .replace(": NaN", ": null");
    serde_json::from_str(&text).expect(file)
}

/// The messages of a fixture: list key and envelope.
fn messages(fixture: &Value) -> Vec<(String, Value)> {
    let one = |m: &Value| {
        (
            m["list_key"].as_str().unwrap().to_owned(),
            m["envelope"].clone(),
        )
    };
    match fixture["messages"].as_array() {
        Some(several) => several.iter().map(one).collect(),
        None => vec![one(fixture)],
    }
}

fn lists(fixture: &Value) -> Lists {
    let options = &fixture["app_conf"]["broker_transport_options"];
    let steps = options["priority_steps"].as_array();
    Lists {
        prefix: options["global_keyprefix"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        separator: options["sep"].as_str().unwrap_or("\x06\x16").to_owned(),
        steps: steps.map_or(vec![0, 3, 6, 9], |s| {
            s.iter().map(|s| s.as_u64().unwrap() as u8).collect()
        }),
    }
}

fn task(fields: &[(Field, &str)]) -> Task {
    let mut all = BTreeMap::from([(Field::Id as usize, ID), (Field::Task as usize, ADD)]);
    all.extend(
        fields
            .iter()
            .map(|(field, value)| (*field as usize, *value)),
    );
    let all = all
        .into_iter()
        .map(|(field, value)| (Field::ALL[field], value));
    let position = Position {
        commit_lsn: Lsn(0x16_B374_D848),
        ordinal: 7,
    };
    Task::from_fields(all, position, Timestamp(848_621_664_024_870))
}

/// Our message and the keys of the lists that it goes to.
fn encode(
    task: &Task,
    lists: &Lists,
    fixture: &Value,
    now: Timestamp,
) -> Result<(Vec<String>, Value), String> {
    let defaults = Defaults {
        queue: fixture["app_conf"]["task_default_queue"]
            .as_str()
            .unwrap_or("celery")
            .to_owned(),
        origin: "aftercommit".to_owned(),
    };
    let message = Message::new(task, &defaults, now).map_err(|unfit| unfit.to_string())?;
    let mut text = Vec::new();
    kombu::write(&mut text, &message, Uuid::nil(), &mut Vec::new());
    let queues = if message.exchange.is_empty() {
        vec![message.routing_key.to_string()]
    } else {
        let table = &fixture["keys"][lists.bindings_key(&message.exchange)]["value"];
        let bindings = table
            .as_array()
            .unwrap()
            .iter()
            .map(|b| b.as_str().unwrap());
        bindings
            .filter_map(|b| lists.bound_queue(b, &message.routing_key))
            .map(str::to_owned)
            .collect()
    };
    let key = |queue: String| {
        let mut key = Vec::new();
        lists.write_key(&mut key, &queue, message.priority);
        String::from_utf8(key).unwrap()
    };
    Ok((
        queues.into_iter().map(key).collect(),
        serde_json::from_slice(&text).expect("our message is JSON"),
    ))
}

/// Every leaf of a message by its path; the body is decoded, if it is JSON.
fn leaves(envelope: &Value) -> BTreeMap<String, Value> {
    let mut leaves = BTreeMap::new();
    for part in ["headers", "properties"] {
        for (name, value) in envelope[part].as_object().unwrap() {
            leaves.insert(format!("{part}.{name}"), value.clone());
        }
    }
    for part in ["content-type", "content-encoding"] {
        leaves.insert(part.to_owned(), envelope[part].clone());
    }
    assert_eq!(
        envelope.as_object().unwrap().len(),
        5,
        "body, content type and encoding, headers, properties"
    );
    let bytes = STANDARD.decode(envelope["body"].as_str().unwrap()).unwrap();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| envelope["body"].clone());
    leaves.insert("body".to_owned(), body);
    leaves
}

fn compare(case: &Case<'_>, index: usize, now: Timestamp) {
    let fixture = fixture(case.file);
    let (list, envelope) = messages(&fixture).swap_remove(index);
    let task = task(case.row);
    let (keys, ours) = encode(&task, &lists(&fixture), &fixture, now).expect(case.file);
    assert_eq!(keys, [list], "{}", case.file);

    let (mut theirs, mut ours) = (leaves(&envelope), leaves(&ours));
    for (path, value) in case.differs {
        match value {
            Value::Null => theirs.remove(*path),
            value => theirs.insert((*path).to_owned(), value.clone()),
        };
    }
    for own in [
        "headers.aftercommit-lsn",
        "headers.aftercommit-committed-at",
    ] {
        assert!(
            ours.remove(own).is_some_and(|value| value.is_string()),
            "{own}"
        );
    }
    let options = task.text(Field::Options).unwrap_or("{}");
    let options: Value = serde_json::from_str(options).unwrap();
    let names_reply_to = options.get("reply_to").is_some();
    let mut ignored = vec!["headers.origin", "properties.delivery_tag"];
    if !names_reply_to {
        ignored.push("properties.reply_to");
    }
    for path in ignored {
        assert!(
            theirs.remove(path).is_some() && ours.remove(path).is_some(),
            "{path} is in both"
        );
    }
    for (repr, field, empty) in [
        ("argsrepr", Field::Args, "[]"),
        ("kwargsrepr", Field::Kwargs, "{}"),
    ] {
        if options.get(repr).is_none() {
            let json = task.text(field).unwrap_or(empty);
            theirs.insert(format!("headers.{repr}"), cut(json).into());
        }
    }
    assert_eq!(ours, theirs, "{}", case.file);
}

fn cut(json: &str) -> String {
    match json.chars().count() {
        0..=1024 => json.to_owned(),
        _ => json.chars().take(1021).chain("...".chars()).collect(),
    }
}

/// Microseconds since 2000 of 2026-11-22 00:00:00 UTC, the day of the captures.
const DAY: i64 = 9822 * 86_400_000_000;

fn at(hour: i64, minute: i64, micros: i64) -> Timestamp {
    Timestamp(DAY + (hour * 3600 + minute * 60) * 1_000_000 + micros)
}

#[test]
fn every_option_makes_celerys_message() {
    use Field::*;
    let args = (Args, "[2, 3]");
    let now = at(0, 0, 0);
    let simple = |file, row: &[(Field, &str)]| {
        compare(
            &Case {
                file,
                row,
                differs: NOTHING,
            },
            0,
            now,
        );
    };
    let own_id = |id| (Id, id);
    simple(
        "01_delay_args.json",
        &[own_id("b9aa6517-2c06-464e-b87a-8f96fc12e963"), args],
    );
    simple(
        "02_kwargs_unicode.json",
        &[
            own_id("54fa2af6-e2ee-47e4-8fbd-013c3dc8e465"),
            (Args, "[1]"),
            (
                Kwargs,
                r#"{"y": "żółć ☃ \"quoted\" \\ \n", "nested": {"a": [1, null, true, 1.5]}}"#,
            ),
        ],
    );
    simple("03_task_id.json", &[args]);
    simple(
        "04_countdown_30.json",
        &[args, (RunAt, "2026-11-22 00:14:24.02487+00")],
    );
    simple(
        "05_eta_utc.json",
        &[args, (RunAt, "2031-02-03 04:05:06.789012+00")],
    );
    for (file, priority) in [
        ("10_priority_0.json", "0"),
        ("10_priority_1.json", "1"),
        ("10_priority_3.json", "3"),
        ("10_priority_5.json", "5"),
        ("10_priority_6.json", "6"),
        ("10_priority_9.json", "9"),
        ("50_global_keyprefix.json", "6"),
        ("51_sep_colon_priority_steps.json", "7"),
    ] {
        simple(file, &[args, (Priority, priority)]);
    }
    simple(
        "11_custom_headers.json",
        &[
            args,
            (
                Headers,
                r#"{"x-trace": "abc", "x-num": 7, "x-big": 1099511627776, "x-f": 1.5, "x-list": [1, "a", null], "x-map": {"k": true}}"#,
            ),
        ],
    );
    simple(
        "12_time_limits.json",
        &[
            args,
            (Options, r#"{"time_limit": 20, "soft_time_limit": 10}"#),
        ],
    );
    simple("13_queue_high.json", &[args, (Queue, "high")]);
    simple(
        "14_exchange_routing_key.json",
        &[
            args,
            (Options, r#"{"exchange": "myex", "routing_key": "my.rk"}"#),
        ],
    );
    simple(
        "15_ignore_result.json",
        &[args, (Options, r#"{"ignore_result": true}"#)],
    );
    simple(
        "16_shadow.json",
        &[args, (Options, r#"{"shadow": "pretty-name"}"#)],
    );
    // The members that a signature leaves out are filled in.
    simple(
        "17_link_and_link_error.json",
        &[
            args,
            (
                Options,
                r#"{"link": {"task": "proj.tasks.add", "args": [10], "options": {"task_id": "22222222-0000-0000-0000-000000000000"}},
                    "link_error": [{"task": "proj.tasks.onerr"}]}"#,
            ),
        ],
    );
    simple(
        "18_chain.json",
        &[
            own_id("5a0f74b5-df46-4225-b017-1f3b8fc8c14d"),
            (Args, "[1, 2]"),
            (
                Options,
                r#"{"chain": [
                    {"task": "proj.tasks.add", "args": [8], "kwargs": {}, "options": {"task_id": "e902b5fa-65dc-4b5d-9f9a-e0169549e588", "reply_to": "8973816d-80d2-31c2-af70-f2e9189d1adf"}, "subtask_type": null, "immutable": false},
                    {"task": "proj.tasks.add", "args": [4], "kwargs": {}, "options": {"task_id": "9b96c60e-32e6-4e6b-bb1e-e0ae60fd9256", "reply_to": "8973816d-80d2-31c2-af70-f2e9189d1adf"}, "subtask_type": null, "immutable": false}
                ], "reply_to": "8973816d-80d2-31c2-af70-f2e9189d1adf"}"#,
            ),
        ],
    );
    for (index, id, both) in [
        (0, "02e61b99-4bb0-4543-b817-70b7ffeebe8e", "1"),
        (1, "189987c1-70e4-4fe9-aff6-4b9f969bb221", "0"),
    ] {
        let options = format!(
            r#"{{"group_id": "9fdb8259-3a83-4396-9d71-157c997c741c", "group_index": {both}}}"#
        );
        let args = format!("[{both}, {both}]");
        let row = [
            own_id(id),
            (Args, args.as_str()),
            (Options, options.as_str()),
        ];
        compare(
            &Case {
                file: "19_group.json",
                row: &row,
                differs: NOTHING,
            },
            index,
            now,
        );
    }
    for (index, id, n) in [
        (0, "c56025ad-cbb8-49ea-8790-2e516390744b", 1),
        (1, "e6795b58-e49d-49f4-b818-49bcca5b1496", 0),
    ] {
        let options = format!(
            r#"{{"group": "d78da762-9e9f-4c97-8478-1aae06deb7c3", "group_index": {n}, "chord": {{"task": "proj.tasks.onerr",
                "options": {{"task_id": "cd82c338-9ae3-4664-8b10-6a1af89fbd07", "reply_to": "a69b96c6-7bbc-39e3-95e9-1d6310910d24", "group_id": "d78da762-9e9f-4c97-8478-1aae06deb7c3"}}}}}}"#
        );
        let args = format!("[{0}, {0}]", n + 1);
        let row = [
            own_id(id),
            (Args, args.as_str()),
            (Options, options.as_str()),
        ];
        compare(
            &Case {
                file: "20_chord.json",
                row: &row,
                differs: NOTHING,
            },
            index,
            now,
        );
    }
    simple(
        "21_stamps.json",
        &[
            args,
            (
                Options,
                r#"{"stamped_headers": ["monitor", "tenant"], "stamps": {"monitor": "m-1", "tenant": "acme"}}"#,
            ),
        ],
    );
    simple(
        "21_stamps.json",
        &[
            args,
            (
                Options,
                r#"{"stamps": {"monitor": "m-1", "tenant": "acme"}}"#,
            ),
        ],
    );
    simple(
        "22_special_types.json",
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
    );
    simple(
        "26_retries_root_parent_group.json",
        &[
            args,
            (
                Options,
                r#"{"retries": 2, "root_id": "r-1", "parent_id": "p-1", "group": "g-1", "group_index": 4, "replaced_task_nesting": 1}"#,
            ),
        ],
    );
    simple(
        "28_transient.json",
        &[args, (Options, r#"{"delivery_mode": 1}"#)],
    );
    simple(
        "34_result_backend_rpc.json",
        &[
            args,
            (
                Options,
                r#"{"reply_to": "69005400-efdc-301b-b7d8-f65c1fa25bd7"}"#,
            ),
        ],
    );
    simple("36_sent_event.json", &[args]);
    simple("52_queue_expires.json", &[args]);
}

#[test]
fn expiry_is_a_header_and_milliseconds_from_now() {
    use Field::*;
    let expires = (ExpiresAt, "2026-11-22 00:14:55.610358+00");
    let row = [(Args, "[2, 3]"), expires];
    let case = |file, row, differs| Case { file, row, differs };
    compare(
        &case("08_expires_seconds.json", &row, NOTHING),
        0,
        at(0, 13, 55_610_358),
    );
    // Expired on the way: sent none the less, the worker discards it.
    let zero = [("properties.expiration", json!("0"))];
    compare(
        &case("08_expires_seconds.json", &row, &zero),
        0,
        at(0, 15, 0),
    );
    let row = [
        (Args, "[2, 3]"),
        (ExpiresAt, "2031-02-03 04:05:06.789012+00"),
    ];
    compare(
        &case("09_expires_datetime.json", &row, NOTHING),
        0,
        at(0, 13, 56_027_012),
    );
    let row = [
        (Args, "[2, 3]"),
        (RunAt, "2026-11-22 00:15:07.575349+00"),
        (ExpiresAt, "2026-11-22 00:16:07.575349+00"),
        (Queue, "high"),
        (Priority, "4"),
    ];
    compare(
        &case("31_expiration_and_countdown.json", &row, NOTHING),
        0,
        at(0, 14, 7_575_349),
    );
}

#[test]
fn where_we_differ_it_is_on_purpose() {
    use Field::*;
    let now = at(0, 0, 0);
    let args = (Args, "[2, 3]");
    // The same instants, always in UTC: Postgres keeps no time zone.
    for (file, run_at, eta) in [
        (
            "06_eta_warsaw.json",
            "2031-02-03 04:05:06.789012+00",
            "2031-02-03T04:05:06.789012+00:00",
        ),
        (
            "32_tz_app.json",
            "2026-11-22 00:14:38.035401+00",
            "2026-11-22T00:14:38.035401+00:00",
        ),
        (
            "33_tz_app_utc.json",
            "2026-11-22 00:14:38.459833+00",
            "2026-11-22T00:14:38.459833+00:00",
        ),
    ] {
        let differs = [("headers.eta", json!(eta))];
        compare(
            &Case {
                file,
                row: &[args, (RunAt, run_at)],
                differs: &differs,
            },
            0,
            now,
        );
    }
    // Celery lets argsrepr and kwargsrepr slip into the properties too; and send_task() does not know the task's
    // ignore_result, where false is what the worker takes null for.
    let row = [
        (Task, "other.lang.task"),
        (Args, "[1]"),
        (Kwargs, r#"{"k": "v"}"#),
        (Options, r#"{"argsrepr": "(***)", "kwargsrepr": "{***}"}"#),
    ];
    let differs = [
        ("properties.argsrepr", Value::Null),
        ("properties.kwargsrepr", Value::Null),
        ("headers.ignore_result", json!(false)),
    ];
    compare(
        &Case {
            file: "29_send_task.json",
            row: &row,
            differs: &differs,
        },
        0,
        now,
    );
    // Cut at 1,024 characters; Celery cuts its own representation a little later.
    let long = fixture("30_argsrepr_long.json")["messages"][0]["body_decoded"][0].to_string();
    assert!(long.len() > 1024);
    compare(
        &Case {
            file: "30_argsrepr_long.json",
            row: &[(Args, &long)],
            differs: NOTHING,
        },
        0,
        now,
    );
}

/// Fixtures of messages that a row's fields cannot make, or that are no messages, and why.
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
        "90_unacked_state_while_eta_held.json",
        "a worker's state, not a message that is sent",
    ),
];

/// One message of each release of Celery that was captured: what it has, ours has. What later releases added, older ones
/// ignore.
#[test]
fn every_release_finds_its_fields() {
    for (file, expires, now) in [
        (
            "version_v4.4.7.json",
            "2026-11-22 00:29:39.353299+00",
            at(0, 28, 39_353_299),
        ),
        (
            "version_v5.2.7.json",
            "2026-11-22 00:28:54.9558+00",
            at(0, 27, 54_955_800),
        ),
        (
            "version_v5.3.6.json",
            "2026-11-22 00:29:03.43624+00",
            at(0, 28, 3_436_240),
        ),
        (
            "version_v5.4.0.json",
            "2026-11-22 00:29:14.416185+00",
            at(0, 28, 14_416_185),
        ),
        (
            "version_v5.5.3.json",
            "2026-11-22 00:27:33.396486+00",
            at(0, 26, 33_396_486),
        ),
        (
            "version_v5.6.3.json",
            "2026-11-22 00:27:43.554087+00",
            at(0, 26, 43_554_087),
        ),
        (
            "version_v5.7.0.json",
            "2026-11-22 00:27:54.692793+00",
            at(0, 26, 54_692_793),
        ),
    ] {
        let fixture = fixture(file);
        let (list, envelope) = messages(&fixture).remove(0);
        let theirs = leaves(&envelope);
        let id = theirs["headers.id"].as_str().unwrap();
        let task = task(&[
            (Field::Id, id),
            (Field::Task, "t.dump"),
            (Field::Args, "[1]"),
            (Field::Kwargs, r#"{"a": 2}"#),
            (Field::Priority, "3"),
            (Field::ExpiresAt, expires),
        ]);
        let (keys, ours) = encode(&task, &lists(&fixture), &fixture, now).unwrap();
        assert_eq!(keys, [list], "{file}");
        let ours = leaves(&ours);
        for (path, value) in theirs {
            let sender_specific = [
                "origin",
                "delivery_tag",
                "reply_to",
                "argsrepr",
                "kwargsrepr",
            ];
            if !sender_specific.iter().any(|name| path.ends_with(name)) {
                assert_eq!(ours.get(&path), Some(&value), "{file}: {path}");
            }
        }
    }
}

/// Every captured message, put into a row as the application could: it leaves as it came.
#[test]
fn a_ready_made_message_is_sent_as_it_is() {
    let mut seen = 0;
    for file in files() {
        let fixture = fixture(&file);
        if fixture.get("messages").is_none() && fixture.get("envelope").is_none() {
            continue;
        }
        for (list, envelope) in messages(&fixture) {
            let (task, body) = ready_made(&envelope);
            let (keys, ours) = encode(&task, &lists(&fixture), &fixture, at(0, 0, 0)).expect(&file);
            assert_eq!(keys, [list], "{file}");
            assert_eq!(ours["body"], envelope["body"], "{file}");
            assert_eq!(
                STANDARD.decode(ours["body"].as_str().unwrap()).unwrap(),
                body,
                "{file}"
            );
            let (mut ours, mut theirs) = (leaves(&ours), leaves(&envelope));
            for own in [
                "headers.aftercommit-lsn",
                "headers.aftercommit-committed-at",
            ] {
                assert!(ours.remove(own).is_some(), "{own}");
            }
            let tags = [
                ours.remove("properties.delivery_tag"),
                theirs.remove("properties.delivery_tag"),
            ];
            assert_ne!(tags[0], tags[1], "the delivery tag is fresh");
            assert_eq!(ours, theirs, "{file}");
            seen += 1;
        }
    }
    assert!(seen >= 52, "{seen}");
}

/// The row that carries `envelope` whole, and its body's bytes.
fn ready_made(envelope: &Value) -> (Task, Vec<u8>) {
    let body = STANDARD.decode(envelope["body"].as_str().unwrap()).unwrap();
    let hex: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
    let delivery_info = &envelope["properties"]["delivery_info"];
    let options = json!({
        "content_type": envelope["content-type"],
        "content_encoding": envelope["content-encoding"],
        "exchange": delivery_info["exchange"],
        "routing_key": delivery_info["routing_key"],
        "properties": envelope["properties"],
    });
    let id = envelope["properties"]["correlation_id"].as_str().unwrap();
    let task = task(&[
        (Field::Id, id),
        (Field::Body, &format!("\\x{hex}")),
        (Field::Headers, &envelope["headers"].to_string()),
        (Field::Options, &options.to_string()),
    ]);
    (task, body)
}

fn files() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap();
    let mut files: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    files
}

#[test]
fn no_fixture_is_forgotten() {
    let source = include_str!("celery_messages.rs");
    for file in files() {
        let named = source.matches(&format!("\"{file}\"")).count();
        assert!(
            named > 0,
            "{file}: compare it, or say in NOT_OFFERED why not"
        );
    }
    for (file, why) in NOT_OFFERED {
        assert!(folder().join(file).exists() && !why.is_empty(), "{file}");
    }
}

#[test]
fn says_where_in_the_log_the_task_was_committed() {
    let fixture = fixture("03_task_id.json");
    let (_, ours) = encode(&task(&[]), &lists(&fixture), &fixture, at(0, 0, 0)).unwrap();
    assert_eq!(ours["headers"]["aftercommit-lsn"], "16/B374D848");
    assert_eq!(
        ours["headers"]["aftercommit-committed-at"],
        "2026-11-22T00:14:24.024870+00:00"
    );
    assert_eq!(ours["headers"]["origin"], "aftercommit");
}

/// Integers that no float holds, and the spelling of floats, go through as they were written.
#[test]
fn arguments_are_spliced_not_parsed() {
    let args = "[1180591620717411303424, 1.10, -0.0, 1e400, {\"b\":1, \"a\":2, \"b\":3}]";
    let fixture = fixture("03_task_id.json");
    let (_, ours) = encode(
        &task(&[(Field::Args, args)]),
        &lists(&fixture),
        &fixture,
        at(0, 0, 0),
    )
    .unwrap();
    let body = STANDARD.decode(ours["body"].as_str().unwrap()).unwrap();
    let expected = format!(
        "[{args},{{}},{{\"callbacks\":null,\"errbacks\":null,\"chain\":null,\"chord\":null}}]"
    );
    assert_eq!(String::from_utf8(body).unwrap(), expected);
}
