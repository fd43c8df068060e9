use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use uuid::Uuid;

use super::celery::{Defaults, Message};
use super::kombu::{self, Lists};
use crate::outbox::{Field, Position, Spans, Task};
use crate::pg::Timestamp;

const ID: &str = "11111111-2222-3333-4444-555555555555";

fn task(fields: &[(Field, &str)]) -> Task {
    let standard = [(Field::Id, ID), (Field::Task, "proj.tasks.add")];
    let all = standard.into_iter().chain(fields.iter().copied());
    Task::from_fields(all, Position::default(), Timestamp(0))
}

fn defaults() -> Defaults {
    Defaults {
        queue: "celery".to_owned(),
        origin: "aftercommit".to_owned(),
    }
}

fn lists(separator: &str, steps: &[u8]) -> Lists {
    Lists {
        prefix: "p:".to_owned(),
        separator: separator.to_owned(),
        steps: steps.to_vec(),
    }
}

#[test]
fn a_priority_goes_to_the_step_below_it() {
    for (separator, steps, priority, key) in [
        ("\x06\x16", &[0, 3, 6, 9][..], 0, "p:q"),
        ("\x06\x16", &[0, 3, 6, 9], 2, "p:q"),
        ("\x06\x16", &[0, 3, 6, 9], 3, "p:q\x06\x163"),
        ("\x06\x16", &[0, 3, 6, 9], 8, "p:q\x06\x166"),
        ("\x06\x16", &[0, 3, 6, 9], 9, "p:q\x06\x169"),
        (":", &[0], 9, "p:q"),
    ] {
        let mut out = Vec::new();
        lists(separator, steps).write_key(&mut out, "q", priority);
        assert_eq!(String::from_utf8(out).unwrap(), key);
    }
}

#[test]
fn bindings_take_what_kombus_exchanges_take() {
    let lists = lists("\x06\x16", &[0]);
    let topic = |bound: &str| format!("{bound}\x06\x16^regex$\x06\x16q");
    for (bound, key, taken) in [
        ("a.b", "a.b", true),
        ("a.b", "a.b.c", false),
        ("a.*", "a.b", true),
        ("a.*", "a.b.c", false),
        ("a.*", "a.", false),
        ("*", "a", true),
        ("*", "a.b", false),
        ("#", "", true),
        ("#", "a.b.c", true),
        ("a.#", "a.b.c", true),
        ("a.#", "a.", true),
        ("a.#", "a", false),
        ("#.z", "a.b.z", true),
        ("#.z", "z", false),
        ("a.#.z", "a.b.c.z", true),
        ("a.#.z", "a.z", false),
        ("#.b.#.d", "a.b.b.c.d", true),
        ("#.b.#.d", "a.c.c.d", false),
        ("*.#.*", "a.b", false),
        ("*.#.*", "a.b.c", true),
    ] {
        assert_eq!(
            lists.bound_queue(&topic(bound), key).is_some(),
            taken,
            "{bound} {key}"
        );
    }
    // Hostile patterns take time in proportion, not for ever.
    let (bound, key) = (["#"; 60].join(".") + ".x", ["a"; 2000].join("."));
    assert_eq!(lists.bound_queue(&topic(&bound), &key), None);
    assert_eq!(lists.bound_queue("rk\x06\x16\x06\x16q", "rk"), Some("q"));
    assert_eq!(lists.bound_queue("rk\x06\x16\x06\x16q", "rk2"), None);
    for odd in [
        "",
        "rk",
        "rk\x06\x16\x06\x16",
        "rk\x06\x16\x06\x16q\x06\x16more",
    ] {
        assert_eq!(lists.bound_queue(odd, "rk"), None, "{odd:?}");
    }
}

/// What would poison a worker, or would silently do something else than the row says, with the words that name it.
#[test]
fn what_is_unfit_is_refused_with_the_reason() {
    use Field::*;
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let digits = format!("[{}]", "9".repeat(5000));
    let hex = |text: &str| {
        format!(
            "\\x{}",
            text.bytes().map(|b| format!("{b:02x}")).collect::<String>()
        )
    };
    let three = hex("[[], {}, {}]");
    let headers = format!(r#"{{"task": "a.b", "id": "{ID}"}}"#);
    let headers = headers.as_str();
    let two = hex("[[], {}]");
    let four = hex("[[], {}, {}, {}]");
    let swapped = hex("[{}, [], {}]");
    let no_json = hex("[[], {}, {}");
    let latin1 = "\\x5b5be95d2c7b7d2c7b7d5d";
    let v1 = |id: &str| {
        hex(&format!(
            r#"{{"task": "a.b", "id": "{id}", "args": [], "kwargs": {{}}}}"#
        ))
    };
    let v1_other = v1("another");
    let v1_no_id = hex(r#"{"task": "a.b", "args": []}"#);
    let v1_args = hex(&format!(r#"{{"task": "a.b", "id": "{ID}", "args": {{}}}}"#));
    let cases: &[(&[(Field, &str)], &str)] = &[
        (&[(Id, "")], "id is empty"),
        (&[(Task, "")], "task is empty"),
        (&[(Args, "{}")], "args must be an array, not an object"),
        (&[(Args, "[1")], "args is not JSON"),
        (&[(Args, "[NaN]")], "args is not JSON"),
        (&[(Args, &deep)], "args is nested deeper than 200 levels"),
        (
            &[(Args, &digits)],
            "args holds an integer of more than 4300 digits",
        ),
        (&[(Kwargs, "[]")], "kwargs must be an object, not an array"),
        (
            &[(Kwargs, "\"x\"")],
            "kwargs must be an object, not a string",
        ),
        (&[(Payload, "{}")], "kwargs = \"payload\""),
        (&[(Payload, "{}"), (Kwargs, "{}")], "payload is set"),
        (&[(Headers, "[]")], "headers must be an object"),
        (&[(Headers, "{\"id\": \"x\"}")], "headers.id is reserved"),
        (&[(Headers, "{\"\\u0069d\": \"x\"}")], "is reserved"),
        (
            &[(Headers, "{\"a\": 1, \"aftercommit-lsn\": \"0/0\"}")],
            "headers.aftercommit-lsn is reserved",
        ),
        (
            &[(Headers, "{\"compression\": \"x\"}")],
            "headers.compression is reserved",
        ),
        (&[(Priority, "10")], "priority must be 0 to 9"),
        (&[(Priority, "-1")], "priority must be 0 to 9"),
        (&[(RunAt, "infinity")], "run_at is infinity"),
        (
            &[(RunAt, "10000-01-01 00:00:00+00")],
            "run_at must be in the years 1 to 9999",
        ),
        (&[(RunAt, "0044-03-15 00:00:00+00 BC")], "run_at must be"),
        (&[(ExpiresAt, "-infinity")], "expires_at is -infinity"),
        (&[(ExpiresAt, "tomorrow")], "expires_at is not a timestamp"),
        (
            &[(RunAt, "2031-02-03 04:05:06")],
            "run_at is a timestamp without a time zone; the column has to be a timestamptz",
        ),
        (&[(Queue, "")], "queue is empty"),
        (&[(Options, "[]")], "options is no JSON object"),
        (&[(Options, "{\"retries\": 1")], "options is no JSON object"),
        (
            &[(Options, "{\"retires\": 1}")],
            "options.retires is not known",
        ),
        (&[(Options, "{\"countdown\": 1}")], "set the column run_at"),
        (&[(Options, "{\"queue\": \"x\"}")], "set the column queue"),
        (
            &[(Options, "{\"retries\": -1}")],
            "options.retries must be a whole number from 0",
        ),
        (
            &[(Options, "{\"retries\": \"1\"}")],
            "options.retries must be",
        ),
        (
            &[(Options, "{\"time_limit\": \"20\"}")],
            "options.time_limit must be a number of seconds",
        ),
        (
            &[(Options, "{\"soft_time_limit\": -1}")],
            "options.soft_time_limit must be",
        ),
        (
            &[(Options, "{\"ignore_result\": 1}")],
            "options.ignore_result must be true or false",
        ),
        (
            &[(Options, "{\"delivery_mode\": 3}")],
            "options.delivery_mode must be 1",
        ),
        (
            &[(Options, "{\"shadow\": 1}")],
            "options.shadow must be a string",
        ),
        (
            &[(Options, "{\"link\": \"a.b\"}")],
            "options.link must be a task signature",
        ),
        (
            &[(Options, "{\"link\": {\"args\": []}}")],
            "options.link must be",
        ),
        (
            &[(Options, "{\"link\": [{\"task\": \"a\", \"args\": {}}]}")],
            "options.link must be",
        ),
        (
            &[(Options, "{\"chain\": {\"task\": \"a\"}}")],
            "options.chain must be a list",
        ),
        (
            &[(Options, "{\"chord\": [{\"task\": \"a\"}]}")],
            "options.chord must be",
        ),
        (
            &[(Options, "{\"stamped_headers\": [\"x\"]}")],
            "not in options.stamps",
        ),
        (
            &[(Options, "{\"content_type\": \"text/plain\"}")],
            "is for rows with a body",
        ),
        (
            &[(Options, "{\"exchange\": \"x\"}")],
            "options.exchange needs options.routing_key",
        ),
        (
            &[
                (Options, "{\"exchange\": \"x\", \"routing_key\": \"y\"}"),
                (Queue, "q"),
            ],
            "exclude each other",
        ),
        (
            &[(Options, "{\"routing_key\": \"y\"}"), (Queue, "q")],
            "queue and options.routing_key differ",
        ),
        (&[(Body, "plain")], "body must be a bytea"),
        (
            &[(Body, "\\x5"), (Headers, headers)],
            "body must be a bytea",
        ),
        (&[(Body, "\\x"), (Headers, headers)], "body is empty"),
        (
            &[(Body, &two), (Headers, headers)],
            "exactly an array and two objects",
        ),
        (
            &[(Body, &four), (Headers, headers)],
            "exactly an array and two objects",
        ),
        (
            &[(Body, &swapped), (Headers, headers)],
            "exactly an array and two objects",
        ),
        (&[(Body, &no_json), (Headers, headers)], "body is not JSON"),
        (&[(Body, latin1), (Headers, headers)], "body is not UTF-8"),
        (
            &[(Body, &three)],
            "the body must be an object, not an array",
        ),
        (
            &[(Body, &three), (Headers, "{\"task\": \"a.b\"}")],
            "headers.id is missing",
        ),
        (
            &[
                (Body, &three),
                (Headers, "{\"task\": \"a.b\", \"id\": null}"),
            ],
            "headers.id is missing",
        ),
        (
            &[
                (Body, &three),
                (Headers, "{\"task\": \"a.b\", \"id\": \"x\"}"),
            ],
            "headers.id is not the row's id",
        ),
        (
            &[(Body, &three), (Headers, "{\"id\": \"x\"}")],
            "headers.task is missing",
        ),
        (
            &[(Body, &three), (Headers, headers), (Args, "[]")],
            "args and body exclude each other",
        ),
        (
            &[
                (Body, &three),
                (Headers, headers),
                (RunAt, "2031-02-03 04:05:06+00"),
            ],
            "headers.eta",
        ),
        (
            &[
                (Body, &three),
                (Headers, headers),
                (ExpiresAt, "2031-02-03 04:05:06+00"),
            ],
            "headers.expires",
        ),
        (
            &[
                (Body, &three),
                (Headers, headers),
                (Options, "{\"content_type\": \"\"}"),
            ],
            "must not be empty",
        ),
        (
            &[
                (Body, &three),
                (Headers, headers),
                (Options, "{\"retries\": 1}"),
            ],
            "not for rows with a body",
        ),
        (
            &[
                (Body, &three),
                (Headers, headers),
                (Options, "{\"properties\": {\"priority\": 77}}"),
            ],
            "options.properties.priority",
        ),
        (
            &[
                (Body, &three),
                (Headers, headers),
                (
                    Options,
                    "{\"content_type\": \"application/x-python-serialize\"}",
                ),
            ],
            "body is no pickle",
        ),
        (
            &[
                (Body, &three),
                (Options, "{\"content_type\": \"application/x-yaml\"}"),
            ],
            "headers lack task and id",
        ),
        (&[(Body, &v1_other)], "body.id is not the row's id"),
        (
            &[(Body, &v1_no_id)],
            "headers lack task and id, and so does the body",
        ),
        (&[(Body, &v1_args)], "body.args is unfit"),
    ];
    let defaults = defaults();
    for (fields, words) in cases {
        let task = task(fields);
        let shown: Vec<String> = fields
            .iter()
            .map(|(f, v)| format!("{f:?}={:.60}", v))
            .collect();
        match Message::new(&task, &defaults, Timestamp(0)) {
            Ok(_) => panic!("{shown:?} is taken"),
            Err(unfit) => assert!(unfit.to_string().contains(words), "{shown:?}: {unfit}"),
        }
    }
}

/// What looks odd and is in order.
#[test]
fn what_is_fit_is_taken() {
    use Field::*;
    let defaults = defaults();
    for fields in [
        &[
            (Args, "null"),
            (Kwargs, "null"),
            (Headers, "null"),
            (Options, "null"),
        ][..],
        &[(Headers, "{}"), (Options, "{}")],
        &[(
            Options,
            "{\"retries\": null, \"link\": null, \"link_error\": [], \"chain\": []}",
        )],
        &[(RunAt, "-infinity"), (ExpiresAt, "infinity")],
        &[
            (Queue, "q"),
            (Options, "{\"routing_key\": \"q\", \"exchange\": \"\"}"),
        ],
        &[(Id, "42"), (Task, "żółć \"quoted\"")],
        &[
            (Headers, "\n{\n \"a\" : \"b\\n\"\n}\n"),
            (Kwargs, "\n{\n \"a\" : 1}\n"),
        ],
    ] {
        let task = task(fields);
        let message = Message::new(&task, &defaults, Timestamp(0))
            .unwrap_or_else(|e| panic!("{fields:?}: {e}"));
        let mut text = Vec::new();
        kombu::write(&mut text, &message, Uuid::nil(), &mut Vec::new());
        let message: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(message["headers"]["id"], task.id());
        let body = STANDARD.decode(message["body"].as_str().unwrap()).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body.as_array().map(Vec::len), Some(3));
    }
}

/// A column of type json is spared the pass over its syntax, not the limits; a text column is spared nothing.
#[test]
fn a_columns_type_vouches_for_the_syntax_alone() {
    let message = |args: &str, json: &[Field]| {
        let row = format!("{ID}proj.tasks.add{args}");
        let ends = [ID.len(), ID.len() + "proj.tasks.add".len(), row.len()].map(|end| end as u32);
        let mut spans = Spans::default();
        spans[Field::Id as usize] = Some((0, ends[0]));
        spans[Field::Task as usize] = Some((ends[0], ends[1]));
        spans[Field::Args as usize] = Some((ends[1], ends[2]));
        let json = json.iter().copied().collect();
        let task = Task::new(row.into(), spans, json, Position::default(), Timestamp(0));
        let defaults = defaults();
        Message::new(&task, &defaults, Timestamp(0))
            .map(|message| {
                let mut body = Vec::new();
                message.write_body(&mut body);
                String::from_utf8(body).unwrap()
            })
            .map_err(|unfit| unfit.to_string())
    };
    let deep = "[".repeat(201) + "1" + &"]".repeat(201);
    let long = format!("[{}]", "1".repeat(4301));
    for (args, words) in [
        ("{}", "args must be an array, not an object"),
        (deep.as_str(), "args is nested deeper than 200 levels"),
        (
            long.as_str(),
            "args holds an integer of more than 4300 digits",
        ),
    ] {
        for json in [&[][..], &[Field::Args]] {
            assert_eq!(message(args, json).unwrap_err(), words);
        }
    }
    let body = message(" [1, 2]", &[Field::Args]).unwrap();
    assert!(body.starts_with("[ [1, 2],{},"), "{body}");
    assert_eq!(message("null", &[Field::Args]), message("null", &[]));
    assert_eq!(
        message("[1,]", &[Field::Kwargs]).unwrap_err(),
        "args is not JSON (at byte 3)"
    );
}
