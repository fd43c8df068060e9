//! The rows that make the captured messages.

use aftercommit::outbox::Field;
use serde_json::Value;

use super::Sent;

/// The fixture, the number of its message, and what the row says beside id, task and times.
///
/// What Celery made up in that run stands there as a word: see [`fill`].
pub(super) type Row = (&'static str, usize, Vec<(Field, &'static str)>);

/// Puts in what the sender of this message had made up: `$args`, the ids `$group`, `$chord`, `$first` and `$second` (of a chain),
/// the place `$index` in a group, and the queue for answers, `$reply_to`.
pub(super) fn fill(text: &str, theirs: &Sent) -> String {
    if !text.contains('$') {
        return text.to_owned();
    }
    let body = theirs.json();
    let id = |signature: &Value| signature["options"]["task_id"].clone();
    let embed = &body[2];
    let made_up = [
        ("$args", body[0].clone()),
        ("$group", theirs.values["headers.group"].clone()),
        ("$index", theirs.values["headers.group_index"].clone()),
        ("$chord", id(&embed["chord"])),
        ("$first", id(&embed["chain"][0])),
        ("$second", id(&embed["chain"][1])),
        ("$reply_to", theirs.values["reply_to"].clone()),
    ];
    let mut filled = text.to_owned();
    for (word, value) in made_up {
        let value = match value {
            Value::String(text) => text,
            value => value.to_string(),
        };
        filled = filled.replace(word, &value);
    }
    filled
}

/// Those of captures that both brokers have.
pub(super) fn rows() -> Vec<Row> {
    use Field::{Args, Headers, Kwargs, Options, Priority, Queue};
    let args = (Args, "[2, 3]");
    let mut rows = vec![
        ("01_delay_args.json", 0, vec![args]),
        (
            "02_kwargs_unicode.json",
            0,
            vec![
                (Args, "[1]"),
                (
                    Kwargs,
                    r#"{"y": "żółć ☃ \"quoted\" \\ \n", "nested": {"a": [1, null, true, 1.5]}}"#,
                ),
            ],
        ),
        ("03_task_id.json", 0, vec![args]),
        ("04_countdown_30.json", 0, vec![args]),
        ("05_eta_utc.json", 0, vec![args]),
        ("06_eta_warsaw.json", 0, vec![args]),
        ("08_expires_seconds.json", 0, vec![args]),
        ("09_expires_datetime.json", 0, vec![args]),
        ("10_priority_0.json", 0, vec![args, (Priority, "0")]),
        ("10_priority_1.json", 0, vec![args, (Priority, "1")]),
        ("10_priority_3.json", 0, vec![args, (Priority, "3")]),
        ("10_priority_5.json", 0, vec![args, (Priority, "5")]),
        ("10_priority_6.json", 0, vec![args, (Priority, "6")]),
        ("10_priority_9.json", 0, vec![args, (Priority, "9")]),
        (
            "11_custom_headers.json",
            0,
            vec![
                args,
                (
                    Headers,
                    r#"{"x-trace": "abc", "x-num": 7, "x-big": 1099511627776, "x-f": 1.5, "x-list": [1, "a", null], "x-map": {"k": true}}"#,
                ),
            ],
        ),
        ("13_queue_high.json", 0, vec![args, (Queue, "high")]),
        (
            "22_special_types.json",
            0,
            vec![
                (
                    Args,
                    r#"[{"__type__": "date", "__value__": "2030-01-02"}, {"__type__": "datetime", "__value__": "2031-02-03T04:05:06.789012+00:00"}]"#,
                ),
                (
                    Kwargs,
                    r#"{"d": {"__type__": "decimal", "__value__": "1.10"}, "u": {"__type__": "uuid", "__value__": {"hex": "11111111222233334444555555555555"}}, "b": {"__type__": "bytes", "__value__": "raw"}, "b2": {"__type__": "base64", "__value__": "/wA="}, "t": {"__type__": "time", "__value__": "01:02:03"}}"#,
                ),
            ],
        ),
        (
            "29_send_task.json",
            0,
            vec![
                (Args, "[1]"),
                (Kwargs, r#"{"k": "v"}"#),
                (Options, r#"{"argsrepr": "(***)", "kwargsrepr": "{***}"}"#),
            ],
        ),
        ("30_argsrepr_long.json", 0, vec![(Args, "$args")]),
        (
            "31_expiration_and_countdown.json",
            0,
            vec![args, (Queue, "high"), (Priority, "4")],
        ),
        ("32_tz_app.json", 0, vec![args]),
        ("33_tz_app_utc.json", 0, vec![args]),
        ("36_sent_event.json", 0, vec![args]),
    ];
    for (file, options) in [
        (
            "12_time_limits.json",
            r#"{"time_limit": 20, "soft_time_limit": 10}"#,
        ),
        (
            "14_exchange_routing_key.json",
            r#"{"exchange": "myex", "routing_key": "my.rk"}"#,
        ),
        ("15_ignore_result.json", r#"{"ignore_result": true}"#),
        ("16_shadow.json", r#"{"shadow": "pretty-name"}"#),
        // The members that a signature leaves out are filled in.
        (
            "17_link_and_link_error.json",
            r#"{"link": {"task": "proj.tasks.add", "args": [10], "options": {"task_id": "22222222-0000-0000-0000-000000000000"}},
                "link_error": [{"task": "proj.tasks.onerr"}]}"#,
        ),
        (
            "21_stamps.json",
            r#"{"stamped_headers": ["monitor", "tenant"], "stamps": {"monitor": "m-1", "tenant": "acme"}}"#,
        ),
        (
            "21_stamps.json",
            r#"{"stamps": {"monitor": "m-1", "tenant": "acme"}}"#,
        ),
        (
            "26_retries_root_parent_group.json",
            r#"{"retries": 2, "root_id": "r-1", "parent_id": "p-1", "group": "g-1", "group_index": 4,
                "replaced_task_nesting": 1, "reply_to": "my-reply"}"#,
        ),
        ("28_transient.json", r#"{"delivery_mode": 1}"#),
        ("34_result_backend_rpc.json", r#"{"reply_to": "$reply_to"}"#),
    ] {
        rows.push((file, 0, vec![args, (Options, options)]));
    }
    let chain = r#"{"chain": [
            {"task": "proj.tasks.add", "args": [8], "kwargs": {}, "options": {"task_id": "$first", "reply_to": "$reply_to"}, "subtask_type": null, "immutable": false},
            {"task": "proj.tasks.add", "args": [4], "options": {"task_id": "$second", "reply_to": "$reply_to"}}
        ], "reply_to": "$reply_to"}"#;
    let group = r#"{"group_id": "$group", "group_index": $index}"#;
    let chord = r#"{"group": "$group", "group_index": $index, "chord": {"task": "proj.tasks.onerr",
            "options": {"task_id": "$chord", "reply_to": "$reply_to", "group_id": "$group"}}}"#;
    for (file, index, options) in [
        ("18_chain.json", 0, chain),
        ("19_group.json", 0, group),
        ("19_group.json", 1, group),
        ("20_chord.json", 0, chord),
        ("20_chord.json", 1, chord),
    ] {
        rows.push((file, index, vec![(Args, "$args"), (Options, options)]));
    }
    rows
}

/// Fixtures of messages that a row's fields cannot make, and why.
pub(super) const NOT_OFFERED: &[(&str, &str)] = &[
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
];
