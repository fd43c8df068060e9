//! On Redis.

use aftercommit::envelope::celery::Message;
use aftercommit::envelope::kombu::{self, Lists};
use aftercommit::outbox::Field;
use aftercommit::pg::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Broker, RELEASE, Row, Sent, files, fixture, ours, row_of, sent_at};

struct Redis;

impl Broker for Redis {
    const FOLDER: &str = "celery_redis";
    const FRESH: &[&str] = &["delivery_tag"];
    const LONGEST_EXPIRATION: u64 = u64::MAX;
    const NOT_OFFERED: &[(&str, &str)] = &[(
        "90_unacked_state_while_eta_held.json",
        "a worker's state, not a message that is sent",
    )];

    fn rows() -> Vec<Row> {
        use Field::{Args, Priority};
        let args = (Args, "[2, 3]");
        vec![
            ("50_global_keyprefix.json", 0, vec![args, (Priority, "6")]),
            (
                "51_sep_colon_priority_steps.json",
                0,
                vec![args, (Priority, "7")],
            ),
            ("52_queue_expires.json", 0, vec![args]),
        ]
    }

    fn differs(file: &str) -> Vec<(&'static str, Value)> {
        // The same instant, always in UTC: Postgres keeps no time zone.
        let utc = |eta| vec![("headers.eta", json!(eta))];
        match file {
            "06_eta_warsaw.json" => utc("2031-02-03T04:05:06.789012+00:00"),
            "32_tz_app.json" => utc("2026-11-22T00:14:38.035401+00:00"),
            "33_tz_app_utc.json" => utc("2026-11-22T00:14:38.459833+00:00"),
            // Celery lets argsrepr and kwargsrepr slip into the properties too; and send_task() does not know the task's
            // ignore_result, where false is what the worker takes null for.
            "29_send_task.json" => vec![
                ("argsrepr", Value::Null),
                ("kwargsrepr", Value::Null),
                ("headers.ignore_result", json!(false)),
            ],
            _ => Vec::new(),
        }
    }

    fn captured(fixture: &Value) -> Vec<Sent> {
        let one = |message: &Value| {
            let key = message["list_key"].as_str().expect("a list");
            read(vec![key.to_owned()], &message["envelope"])
        };
        match fixture["messages"].as_array() {
            Some(several) => several.iter().map(one).collect(),
            None if fixture["envelope"].is_object() => vec![one(fixture)],
            None => Vec::new(),
        }
    }

    fn ours(message: &Message<'_>, fixture: &Value) -> Sent {
        let mut text = Vec::new();
        kombu::write(&mut text, message, Uuid::nil(), &mut Vec::new());
        let envelope = serde_json::from_slice(&text).expect("our message is JSON");
        read(keys(message, fixture), &envelope)
    }
}

/// Reads an envelope.
fn read(keys: Vec<String>, envelope: &Value) -> Sent {
    let members = envelope.as_object().expect("an envelope");
    assert_eq!(
        members.len(),
        5,
        "body, content type and encoding, headers, properties"
    );
    let body = envelope["body"].as_str().expect("a body");
    let mut sent = Sent {
        to: keys,
        values: Default::default(),
        body: STANDARD.decode(body).expect("base64"),
    };
    sent.extend("headers.", &envelope["headers"]);
    sent.extend("", &envelope["properties"]);
    for name in ["content-type", "content-encoding"] {
        sent.values.insert(name.to_owned(), envelope[name].clone());
    }
    sent
}

/// The lists that our message goes to, with the settings and the bindings of a fixture.
fn keys(message: &Message<'_>, fixture: &Value) -> Vec<String> {
    let options = &fixture["app_conf"]["broker_transport_options"];
    let text = |name: &str| options[name].as_str();
    let steps = options["priority_steps"].as_array();
    let lists = Lists {
        prefix: text("global_keyprefix").unwrap_or_default().to_owned(),
        separator: text("sep").unwrap_or("\x06\x16").to_owned(),
        steps: steps.map_or(vec![0, 3, 6, 9], |steps| {
            let steps = steps.iter().map(|step| step.as_u64().expect("a step"));
            steps.map(|step| step as u8).collect()
        }),
    };
    let queues = if message.exchange.is_empty() {
        vec![message.routing_key.to_string()]
    } else {
        let table = &fixture["keys"][lists.bindings_key(&message.exchange)]["value"];
        let bindings = table.as_array().expect("bindings").iter();
        bindings
            .map(|binding| binding.as_str().expect("a binding"))
            .filter_map(|binding| lists.bound_queue(binding, &message.routing_key))
            .map(str::to_owned)
            .collect()
    };
    let key = |queue: String| {
        let mut key = Vec::new();
        lists.write_key(&mut key, &queue, message.priority);
        String::from_utf8(key).expect("UTF-8")
    };
    queues.into_iter().map(key).collect()
}

#[test]
fn every_option_makes_celerys_message() {
    super::every_option_makes_celerys_message::<Redis>();
}

#[test]
fn a_ready_made_message_is_sent_as_it_is() {
    super::a_ready_made_message_is_sent_as_it_is::<Redis>(52);
}

/// It is sent none the less: the worker discards it.
#[test]
fn what_expired_on_the_way_has_no_time_left() {
    let fixture = fixture::<Redis>("08_expires_seconds.json");
    let theirs = Redis::captured(&fixture).remove(0);
    let row = row_of(&theirs, &[]);
    let after = Timestamp(sent_at(&theirs, &row).0 + 3_600_000_000);
    let ours = ours::<Redis>(&row, &fixture, after);
    assert_eq!(ours.text("expiration"), Some("0"));
}

/// One message of each release of Celery that was captured: what it has, ours has. What later releases added, older ones
/// ignore.
#[test]
fn every_release_finds_its_fields() {
    const FRESH: [&str; 5] = [
        "headers.origin",
        "headers.argsrepr",
        "headers.kwargsrepr",
        "delivery_tag",
        "reply_to",
    ];
    let releases = files::<Redis>().into_iter();
    let releases: Vec<String> = releases.filter(|file| file.starts_with(RELEASE)).collect();
    assert!(releases.len() >= 7, "{releases:?}");
    for file in releases {
        let fixture = fixture::<Redis>(&file);
        let theirs = Redis::captured(&fixture).remove(0);
        let row = row_of(
            &theirs,
            &[
                (Field::Args, "[1]"),
                (Field::Kwargs, r#"{"a": 2}"#),
                (Field::Priority, "3"),
            ],
        );
        let ours = ours::<Redis>(&row, &fixture, sent_at(&theirs, &row));
        assert_eq!(ours.to, theirs.to, "{file}");
        assert_eq!(ours.json(), theirs.json(), "{file}");
        for (path, value) in &theirs.values {
            if !FRESH.contains(&path.as_str()) {
                assert_eq!(ours.values.get(path), Some(value), "{file}: {path}");
            }
        }
    }
}

#[test]
fn says_where_in_the_log_the_task_was_committed() {
    let fixture = fixture::<Redis>("03_task_id.json");
    let theirs = Redis::captured(&fixture).remove(0);
    let ours = ours::<Redis>(&row_of(&theirs, &[]), &fixture, Timestamp(0));
    for (name, value) in [
        ("aftercommit-lsn", "16/B374D848"),
        (
            "aftercommit-committed-at",
            "2026-11-22T00:14:24.024870+00:00",
        ),
        ("origin", "aftercommit"),
    ] {
        assert_eq!(ours.text(&format!("headers.{name}")), Some(value));
    }
}

/// Integers that no float holds, and the spelling of floats, go through as they were written.
#[test]
fn arguments_are_spliced_not_parsed() {
    let args = "[1180591620717411303424, 1.10, -0.0, 1e400, {\"b\":1, \"a\":2, \"b\":3}]";
    let fixture = fixture::<Redis>("03_task_id.json");
    let theirs = Redis::captured(&fixture).remove(0);
    let row = row_of(&theirs, &[(Field::Args, args)]);
    let ours = ours::<Redis>(&row, &fixture, Timestamp(0));
    let expected = format!(
        "[{args},{{}},{{\"callbacks\":null,\"errbacks\":null,\"chain\":null,\"chord\":null}}]"
    );
    assert_eq!(String::from_utf8(ours.body).expect("UTF-8"), expected);
}
