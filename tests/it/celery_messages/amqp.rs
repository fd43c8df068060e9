//! On RabbitMQ: also beside what Celery's client was seen to write there (`wire_tap.txt`), type by type.

use std::fmt::Write as _;

use aftercommit::envelope::celery::{Defaults, Message};
use aftercommit::envelope::{amqp, native_delay};
use aftercommit::outbox::Field;
use aftercommit::pg::Moment;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::properties::{Properties, Typed};
use super::{Broker, Row, Sent, fixture, folder, task};

struct RabbitMq;

impl Broker for RabbitMq {
    const FOLDER: &str = "celery_rabbitmq";
    const FRESH: &[&str] = &[];
    // RabbitMQ closes the channel at a longer one.
    const LONGEST_EXPIRATION: u64 = u32::MAX as u64;
    const NOT_OFFERED: &[(&str, &str)] = &[(
        "65_quorum_topic_countdown_delivered.json",
        "the message of 62, after its delay",
    )];

    fn rows() -> Vec<Row> {
        use Field::{Args, Options, Priority, Queue};
        let args = (Args, "[2, 3]");
        let topic = (Options, r#"{"exchange": "qt", "routing_key": "qt"}"#);
        vec![
            (
                "60_max_priority.json",
                0,
                vec![args, (Queue, "prio10"), (Priority, "9")],
            ),
            ("61_quorum_direct.json", 0, vec![args, (Queue, "qq")]),
            ("62_quorum_topic_countdown.json", 0, vec![args, topic]),
            ("63_quorum_topic_eta.json", 0, vec![args, topic]),
            ("64_quorum_topic_no_delay.json", 0, vec![args, topic]),
        ]
    }

    fn differs(file: &str) -> Vec<(&'static str, Value)> {
        // The same instant, always in UTC: Postgres keeps no time zone.
        let utc = |eta| vec![("headers.eta", json!(eta))];
        match file {
            "06_eta_warsaw.json" => utc("2031-02-03T04:05:06.789012+00:00"),
            "32_tz_app.json" => utc("2026-11-22T00:15:00.711444+00:00"),
            "33_tz_app_utc.json" => utc("2026-11-22T00:15:01.173913+00:00"),
            // It was captured by a client that cut it.
            "11_custom_headers.json" => vec![("headers.x-f", json!(1.5))],
            // send_task() does not know the task's own; false is what the worker takes null for.
            "29_send_task.json" => vec![("headers.ignore_result", json!(false))],
            _ => Vec::new(),
        }
    }

    fn captured(fixture: &Value) -> Vec<Sent> {
        let messages = fixture["messages"].as_array().expect("messages");
        messages.iter().map(captured).collect()
    }

    fn ours(message: &Message<'_>, _: &Value) -> Sent {
        let properties = Properties::read(&written(message));
        let mut sent = Sent {
            to: [&message.exchange, &message.routing_key]
                .map(|name| name.to_string())
                .into(),
            values: Default::default(),
            body: Vec::new(),
        };
        message.write_body(&mut sent.body);
        for (name, value) in properties.all {
            match name {
                "headers" => sent.extend("headers.", &value.value()),
                name => drop(sent.values.insert(name.to_owned(), value.value())),
            }
        }
        // Celery has none.
        let message_id = sent.values.remove("message_id");
        assert_eq!(message_id.as_ref(), sent.values.get("correlation_id"));
        sent
    }
}

fn captured(message: &Value) -> Sent {
    let text = |name: &str| message[name].as_str().expect(name).to_owned();
    // Where it was delayed, it had left Celery for the exchange of delays: a test of its own compares that.
    let to = match text("exchange") {
        exchange if exchange == native_delay::EXCHANGE => ["qt", "qt"].map(str::to_owned),
        exchange => [exchange, text("routing_key")],
    };
    let mut sent = Sent {
        to: to.into(),
        values: Default::default(),
        body: match &message["body_raw"] {
            Value::String(text) => text.clone().into_bytes(),
            other => STANDARD
                .decode(other["_base64"].as_str().expect("base64"))
                .expect("base64"),
        },
    };
    let mut properties = message["properties"].clone();
    sent.extend("headers.", &properties["headers"].take());
    let properties_alone = properties.as_object_mut().expect("properties");
    properties_alone.remove("headers");
    sent.extend("", &properties);
    sent
}

/// A message's properties, as we write them.
fn written(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let basic = amqp::celery(message).expect("properties");
    basic.write(&mut bytes).expect("properties");
    bytes
}

#[test]
fn every_option_makes_celerys_message() {
    super::every_option_makes_celerys_message::<RabbitMq>();
}

#[test]
fn a_ready_made_message_is_sent_as_it_is() {
    super::a_ready_made_message_is_sent_as_it_is::<RabbitMq>(49);
}

/// What was seen on the wire: each property and header in its order, with its type.
#[test]
fn types_and_order_are_those_of_celerys_client() {
    let tap = std::fs::read_to_string(folder::<RabbitMq>().join("wire_tap.txt")).unwrap();
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
    let defaults = Defaults {
        queue: "celery".to_owned(),
        origin: "gen14417@vm".to_owned(),
    };
    let message = Message::new(&row, &defaults, sent).expect("a message");
    let properties = Properties::read(&written(&message));
    let (message_id, lsn) = (1 << 7, "('aftercommit-");
    let mut text = format!("flags 0b{:016b}", properties.flags - message_id);
    for (name, value) in &properties.all {
        match value {
            Typed::Table(headers) => {
                for (name, value) in headers {
                    let line = format!("('{name}', {})", value.python());
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
    let mut ours = Vec::new();
    message.write_body(&mut ours);
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    assert_eq!(
        json(&ours),
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
        let theirs = &fixture::<RabbitMq>(file)["messages"][0];
        assert_eq!(theirs["exchange"], native_delay::EXCHANGE);
        assert_eq!(
            theirs["routing_key"],
            native_delay::routing_key(seconds, "qt")
        );
    }
}
