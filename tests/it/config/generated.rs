//! The configuration under generated texts: no panic, and no secret in what is shown.

use proptest::prelude::*;

use super::parse;

/// Pieces of which a configuration may be made, right and wrong.
fn piece() -> impl Strategy<Value = String> {
    const KEYS: &[&str] = &[
        "url",
        "url_file",
        "slot",
        "table",
        "timeout",
        "replicas",
        "memory",
        "in_flight",
        "task",
        "sink",
        "retry",
        "broker_url",
        "queue",
        "level",
        "postgres",
        "gate.timeout",
        "x",
        "\"?\"",
        "'${A}'",
        "columns",
        "listen",
    ];
    const HEADS: &[&str] = &[
        "[postgres]",
        "[outbox]",
        "[outbox.columns]",
        "[gate]",
        "[limits]",
        "[log]",
        "[admin]",
        "[[route]]",
        "[route]",
        "[route.retry]",
        "[sink]",
        "[sink.celery]",
        "[sink.celery.a]",
        "[sink.stdout.a]",
        "[sink.webhook.a]",
        "[[sink.celery.a]]",
        "[a.b.c]",
        "[[gate]]",
    ];
    const VALUES: &[&str] = &[
        "1",
        "-1",
        "0",
        "1.5",
        "true",
        "\"\"",
        "\"5s\"",
        "\"64MiB\"",
        "\"${NONE}\"",
        "\"${PASSWORD}\"",
        "'${'",
        "[1, \"a\"]",
        "[]",
        "{}",
        "{ backoff = \"1s..2s\" }",
        "{ a = { b = [{}] } }",
        "1979-05-27",
        "\"redis://h\"",
        "\"postgres://h/d\"",
        "\"postgres://u:pw@h/d?sslmode=maybe\"",
        "\"rediss://:pw@h/0?ssl_certfile=x\"",
        "\"\"\"\na\n\"\"\"",
        "\"unclosed",
        "é",
    ];
    prop_oneof![
        2 => proptest::sample::select(HEADS).prop_map(|head| head.to_owned()),
        5 => (proptest::sample::select(KEYS), proptest::sample::select(VALUES))
            .prop_map(|(key, value)| format!("{key} = {value}")),
        1 => "[ -~]{0,12}",
    ]
}

proptest! {
    #[test]
    fn no_order_of_pieces_makes_it_panic(pieces in prop::collection::vec(piece(), 0..14)) {
        if let Err(error) = parse(&pieces.join("\n")) {
            prop_assert!(!error.contains("hunter2"), "{error}");
        }
    }

    /// One slip of the finger, anywhere.
    #[test]
    fn no_slip_shows_a_secret(at in 0..400_usize, remove in 0..3_usize, put in "[ -~\n]{0,2}") {
        let text = "[postgres]
url = \"postgres://app:hunter2@db/app\"
[gate]
replicas = [\"postgres://app:hunter2@r1/app\", 'postgres://app:hunter2@r2/app']
[sink.celery.workers]
broker_url = 'redis://:hunter2@localhost:6379/0'
[sink.celery.more]
broker_url = \"rediss://localhost:6379/0?ssl_keyfile=/hunter2&ssl_certfile=/c\" # not redis://u:hunter2@h
[[route]]
task = \"*\"
sink = \"workers\"
";
        let at = at % text.len();
        let end = (at + remove).min(text.len());
        let text = format!("{}{put}{}", &text[..at], &text[end..]);
        match parse(&text) {
            Err(error) => prop_assert!(!error.contains("hunter2"), "{error}"),
            Ok(config) => {
                let shown = format!("{config:?}");
                prop_assert!(!shown.contains("hunter2"), "{shown}");
            }
        }
    }
}
