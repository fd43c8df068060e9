//! The webhook sink against a receiver on real sockets: what is sent, what an answer means, and where it does not go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::{Lsn, Timestamp};
use aftercommit::sink::{Outage, Outcome, Settings as _, Sight, Sink, webhook};
use base64::Engine as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::support::handover::hand_over;
use crate::support::receiver::{Answer, Receiver, Request};
use crate::support::tls::Certificates;

const SECRETS: [&str; 2] = [
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
];

/// A sink to `receiver`, with these settings on top.
fn sink(receiver: &Receiver, settings: Value) -> Box<dyn Sink> {
    to(&receiver.url(), settings)
}

fn to(url: &str, settings: Value) -> Box<dyn Sink> {
    let mut config = json!({"url": url, "allow_addresses": ["127.0.0.0/8", "::1"]});
    let config_keys = config.as_object_mut().expect("an object");
    config_keys.extend(settings.as_object().expect("an object").clone());
    let config: webhook::Config = serde_json::from_value(config).expect("settings");
    config.open().expect("settings that do")
}

fn task(id: &str, fields: &[(Field, &str)]) -> Task {
    let mut all = vec![(Field::Id, id), (Field::Task, "shop.paid")];
    all.extend_from_slice(fields);
    let position = Position {
        commit_lsn: Lsn(0x1_0000_0100),
        ordinal: 0,
    };
    Task::from_fields(all, position, Timestamp(848_000_000_000_000))
}

fn keyed(count: usize, keys: usize) -> Vec<Task> {
    let task = |n: usize| task(&format!("{n}"), &[(Field::Key, &format!("k{}", n % keys))]);
    (0..count).map(task).collect()
}

fn delivered(outcomes: &[Outcome]) -> usize {
    outcomes
        .iter()
        .filter(|outcome| **outcome == Outcome::Delivered)
        .count()
}

/// Answers as the header `x-answer` of a task says.
fn as_told(request: &Request) -> Answer {
    match request.header("x-answer") {
        "" => Answer::Status(204, Vec::new()),
        "silence" => Answer::Silence,
        "close" => Answer::Close,
        "redirect" => Answer::Status(307, vec!["location: http://169.254.169.254/".to_owned()]),
        "later" => Answer::Status(503, vec!["retry-after: 7".to_owned()]),
        "garbage" => Answer::Raw(b"220 mail.example.com ESMTP\r\n\r\n".to_vec()),
        "flood" => Answer::Raw([&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b'x'; 4 << 20]].concat()),
        "endless" => Answer::Raw([&b"HTTP/1.1 200 OK\r\nx: "[..], &vec![b'x'; 4 << 20]].concat()),
        status => Answer::Status(status.parse().expect("a status"), Vec::new()),
    }
}

fn answered(answer: &str) -> Vec<Task> {
    vec![task(
        "1",
        &[(Field::Headers, &format!("{{\"x-answer\": \"{answer}\"}}"))],
    )]
}

#[tokio::test]
async fn a_request_is_signed_with_each_secret() {
    let receiver = Receiver::start();
    let mut sink = sink(&receiver, json!({"secret": SECRETS.join(" ")}));
    let tasks = [task("e1", &[(Field::Kwargs, "{\"n\": 1}")])];
    assert_eq!(sink.deliver(&tasks).await, Ok(vec![Outcome::Delivered]));
    let [request] = &receiver.requests()[..] else {
        panic!("one request")
    };
    let timestamp = request.header("webhook-timestamp");
    let sent_at: u64 = timestamp.parse().expect("seconds");
    let now = std::time::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_secs();
    assert!(now.abs_diff(sent_at) < 60, "{sent_at}");
    let base64 = base64::engine::general_purpose::STANDARD;
    let signatures = SECRETS.map(|secret| {
        let key = base64.decode(&secret["whsec_".len()..]).expect("base64");
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key).expect("a key");
        mac.update(format!("e1.{timestamp}.").as_bytes());
        mac.update(&request.body);
        format!("v1,{}", base64.encode(mac.finalize().into_bytes()))
    });
    assert_eq!(request.header("webhook-id"), "e1");
    assert_eq!(request.header("webhook-signature"), signatures.join(" "));
}

#[tokio::test]
async fn what_the_body_is() {
    let fields = [
        (Field::Payload, "{\"n\":\n1}"),
        (Field::Key, "żółw 1"),
        (
            Field::Headers,
            "{\"traceparent\": \"00-ab-cd-01\", \"X-Count\": 3, \"x-none\": null}",
        ),
    ];
    for (format, content_type, body, expected) in [
        ("json", "application/json", None, &[][..]),
        (
            "payload",
            "application/json",
            Some("{\"n\":\n1}"),
            &[
                ("aftercommit-task", "shop.paid"),
                ("aftercommit-key", "%C5%BC%C3%B3%C5%82w%201"),
            ],
        ),
        (
            "cloudevents",
            "application/json",
            Some("{\"n\":\n1}"),
            &[
                ("ce-id", "e1"),
                ("ce-specversion", "1.0"),
                ("ce-source", "/shop"),
                ("ce-type", "shop.paid"),
                ("ce-partitionkey", "%C5%BC%C3%B3%C5%82w%201"),
                ("ce-time", "2026-11-14T19:33:20.000000+00:00"),
            ],
        ),
        (
            "cloudevents-structured",
            "application/cloudevents+json; charset=UTF-8",
            None,
            &[],
        ),
    ] {
        let receiver = Receiver::start();
        let extra = ["Authorization: Bearer t0ken", "X-From: us"];
        let settings = json!({"format": format, "source": "/shop", "extra_headers": extra});
        let mut sink = sink(&receiver, settings);
        assert_eq!(
            sink.deliver(&[task("e1", &fields)]).await,
            Ok(vec![Outcome::Delivered])
        );
        let [request] = &receiver.requests()[..] else {
            panic!("one request")
        };
        assert_eq!(request.line, "POST /hooks?a=b HTTP/1.1");
        assert_eq!(
            request.header("host"),
            format!("127.0.0.1:{}", receiver.port())
        );
        assert_eq!(request.header("content-type"), content_type);
        if let Some(body) = body {
            assert_eq!(request.body, body.as_bytes());
        }
        let always = [
            ("webhook-id", "e1"),
            ("webhook-signature", ""),
            ("authorization", "Bearer t0ken"),
            ("x-from", "us"),
            ("traceparent", "00-ab-cd-01"),
            ("x-count", "3"),
            ("x-none", ""),
            ("aftercommit-lsn", "1/100"),
            (
                "aftercommit-committed-at",
                "2026-11-14T19:33:20.000000+00:00",
            ),
        ];
        for (name, value) in always.iter().chain(expected) {
            assert_eq!(request.header(name), *value, "{format}: {name}");
        }
        match format {
            "json" => {
                let object = request.json();
                assert_eq!(
                    (&object["id"], &object["payload"]["n"]),
                    (&json!("e1"), &json!(1))
                );
            }
            "cloudevents-structured" => {
                let event = request.json();
                assert_eq!(
                    (&event["type"], &event["data"]["n"]),
                    (&json!("shop.paid"), &json!(1))
                );
                assert_eq!(event["partitionkey"], "żółw 1");
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn several_tasks_in_an_array() {
    let receiver = Receiver::deciding(|request| match request.json() {
        Value::Array(tasks) if tasks.iter().any(|task| task["queue"] == "bad") => {
            Answer::Status(422, Vec::new())
        }
        _ => Answer::Status(200, Vec::new()),
    });
    let mut sink = sink(&receiver, json!({"batch": 3}));
    let mut tasks = keyed(10, 2);
    tasks[4] = task("4", &[(Field::Key, "k0"), (Field::Queue, "bad")]);
    tasks[7] = task("7", &[(Field::Key, "k1"), (Field::Payload, "{no")]);
    let outcomes = sink.deliver(&tasks).await.expect("it is there");
    let kinds: Vec<&str> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Delivered => "delivered",
            Outcome::Reject(_) => "rejected",
            Outcome::Retry(_) | Outcome::RetryIn(..) => "behind",
            Outcome::Unsent => "unsent",
        })
        .collect();
    let expected = ["delivered"; 3]
        .into_iter()
        .chain(["rejected"; 3])
        .chain(["behind"; 4]);
    assert_eq!(kinds, expected.collect::<Vec<_>>());
    let ids = |request: &Request| -> Vec<String> {
        let tasks = request.json();
        let ids = tasks.as_array().expect("an array").iter();
        ids.map(|task| task["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    let requests = receiver.requests();
    assert_eq!(
        requests.iter().map(ids).collect::<Vec<_>>(),
        [["0", "1", "2"], ["3", "4", "5"]]
    );
    // The same tasks, the same id; others, another.
    let again = sink.deliver(&tasks[..3]).await.expect("it is there");
    assert_eq!(delivered(&again), 3);
    let id = |request: &Request| request.header("webhook-id").to_owned();
    let requests = receiver.requests();
    assert_eq!(id(&requests[0]), id(&requests[2]));
    assert_ne!(id(&requests[0]), id(&requests[1]));
}

#[tokio::test]
async fn what_is_no_header_is_a_dead_row_and_no_injection() {
    let receiver = Receiver::start();
    let mut sink = sink(&receiver, json!({"extra_headers": ["X-Ours: 1"]}));
    let long = format!("{{\"x\": \"{}\"}}", "a".repeat(64 << 10));
    let mut tasks: Vec<Task> = [
        "{\"x\": \"a\\r\\nevil: 1\"}",
        "{\"x\\r\\nevil\": \"1\"}",
        "{\"x\": \"żółw\"}",
        "{\"x\": [1]}",
        "{\"\": \"1\"}",
        "{\"Host\": \"elsewhere\"}",
        "{\"content-length\": 1}",
        "{\"webhook-id\": \"1\"}",
        "{\"x-ours\": \"2\"}",
        "[]",
        &long,
    ]
    .map(|headers| task("e1", &[(Field::Headers, headers)]))
    .into();
    for id in ["", "a.b", "a b", "a\r\nb", &"x".repeat(256)] {
        tasks.push(task(id, &[]));
    }
    let outcomes = sink.deliver(&tasks).await.expect("it is there");
    for (outcome, task) in outcomes.iter().zip(&tasks) {
        assert!(
            matches!(outcome, Outcome::Reject(_)),
            "{outcome:?} {task:?}"
        );
    }
    assert!(receiver.requests().is_empty());
}

#[tokio::test]
async fn what_an_answer_means() {
    let receiver = Receiver::deciding(as_told);
    let mut sink = sink(&receiver, json!({"timeout": "300ms"}));
    for answer in [
        "redirect", "500", "404", "close", "garbage", "endless", "silence",
    ] {
        let outcomes = sink.deliver(&answered(answer)).await.expect("it is there");
        assert!(
            matches!(outcomes[..], [Outcome::Retry(_)]),
            "{answer}: {outcomes:?}"
        );
    }
    for answer in ["400", "410", "422"] {
        let outcomes = sink.deliver(&answered(answer)).await.expect("it is there");
        assert!(
            matches!(outcomes[..], [Outcome::Reject(_)]),
            "{answer}: {outcomes:?}"
        );
    }
    for answer in ["401", "407"] {
        assert!(sink.deliver(&answered(answer)).await.is_err(), "{answer}");
    }
    for answer in ["200", "flood"] {
        let outcomes = sink.deliver(&answered(answer)).await;
        assert_eq!(outcomes, Ok(vec![Outcome::Delivered]), "{answer}");
    }
    let outcomes = sink.deliver(&answered("later")).await.expect("it is there");
    assert!(
        matches!(outcomes[..], [Outcome::RetryIn(pause, _)] if pause == Duration::from_secs(7)),
        "{outcomes:?}"
    );
}

#[tokio::test]
async fn a_receiver_that_hangs_is_away_and_its_tasks_are_not_to_blame() {
    let receiver = Receiver::deciding(|_| Answer::Silence);
    let settings = json!({"timeout": "300ms", "concurrency": 4});
    let began = std::time::Instant::now();
    let outage = sink(&receiver, settings).deliver(&keyed(500, 100)).await;
    assert!(outage.is_err(), "{outage:?}");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "it does not wait for each"
    );
}

#[tokio::test]
async fn a_probe_without_an_answer_does_not_bring_a_receiver_back() {
    for batch in [1, 10] {
        let answers = Arc::new(AtomicBool::new(false));
        let receiver = Receiver::deciding({
            let answers = answers.clone();
            move |_| match answers.load(Ordering::Relaxed) {
                true => Answer::Status(204, Vec::new()),
                false => Answer::Silence,
            }
        });
        let settings = json!({"timeout": "300ms", "concurrency": 4, "batch": batch});
        let mut sink = sink(&receiver, settings);
        let tasks = keyed(500, 100);
        let outage = sink.deliver(&tasks).await;
        assert!(outage.is_err(), "{outage:?}");
        assert!(sink.most() <= 10, "so few are handed to it next");
        for probe in &tasks[..2] {
            let outage = sink.deliver(std::slice::from_ref(probe)).await;
            assert!(outage.is_err(), "{outage:?}");
        }
        answers.store(true, Ordering::Relaxed);
        let outcomes = sink.deliver(&tasks).await.expect("it is back");
        assert_eq!(delivered(&outcomes), tasks.len());
    }
}

#[tokio::test]
async fn connections_are_used_again_and_a_closed_one_costs_nothing() {
    let receiver = Receiver::start();
    let mut sink = sink(&receiver, json!({"concurrency": 1}));
    for n in 1..=5 {
        let tasks = keyed(20, 3);
        let outcomes = sink.deliver(&tasks).await.expect("it is there");
        assert_eq!(delivered(&outcomes), 20);
        assert_eq!(receiver.connections(), n);
        receiver.hang_up();
    }
}

#[tokio::test]
async fn keys_go_side_by_side_and_each_in_order() {
    let receiver = Receiver::deciding(|_| Answer::Late(Duration::from_millis(5), 204));
    let mut sink = sink(&receiver, json!({"concurrency": 8}));
    let outcomes = sink.deliver(&keyed(120, 12)).await.expect("it is there");
    assert_eq!(delivered(&outcomes), 120);
    assert!(
        (2..=8).contains(&receiver.most_at_once()),
        "{}",
        receiver.most_at_once()
    );
    assert!(receiver.connections() <= 8);
    let mut last = std::collections::HashMap::new();
    for request in receiver.requests() {
        let n: usize = request.header("webhook-id").parse().expect("a number");
        let before = last.insert(n % 12, n);
        assert!(
            before.is_none_or(|before| before < n),
            "{n} after {before:?}"
        );
    }
    // One key alone is never in two hands.
    let receiver = Receiver::deciding(|_| Answer::Late(Duration::from_millis(5), 204));
    let outcomes = self::sink(&receiver, json!({}))
        .deliver(&keyed(20, 1))
        .await;
    assert_eq!(outcomes.map(|outcomes| delivered(&outcomes)), Ok(20));
    assert_eq!(receiver.most_at_once(), 1);
}

#[tokio::test]
async fn what_was_answered_before_an_outage_is_not_sent_again() {
    let mut receiver = Receiver::deciding(|request| match request.header("webhook-id") {
        "7" => Answer::Status(401, Vec::new()),
        _ => Answer::Status(204, Vec::new()),
    });
    let mut sink = sink(&receiver, json!({"concurrency": 1}));
    let mut left = keyed(10, 3);
    for _ in 0..3 {
        let cut = hand_over(&mut sink, &left).await;
        (_, left) = cut.expect_err("it does not let us in");
    }
    receiver.close();
    sink.deliver(&left).await.expect_err("it is away");
    let seen = |id: &str| {
        receiver
            .requests()
            .iter()
            .filter(|r| r.header("webhook-id") == id)
            .count()
    };
    assert_eq!((seen("0"), seen("6"), seen("7"), seen("8")), (1, 1, 3, 0));
}

#[tokio::test]
async fn an_address_that_is_not_allowed_is_not_connected_to() {
    let receiver = Receiver::start();
    let port = receiver.port();
    for host in [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "0x7f.1",
    ] {
        for allowed in [json!([]), json!(["10.0.0.0/8"])] {
            let url = format!("http://{host}:{port}/");
            let mut sink = to(&url, json!({"allow_addresses": allowed}));
            let Err(Outage { cause, .. }) = sink.deliver(&keyed(1, 1)).await else {
                panic!("{host} was connected to");
            };
            assert!(
                cause.to_string().contains("allow_addresses") || host.starts_with(['2', '0']),
                "{cause}"
            );
            assert!(matches!(sink.probe().await[..], [Sight::Fault(..)]));
        }
    }
    let mut never = to(
        "http://169.254.169.254/latest",
        json!({"allow_addresses": ["0.0.0.0/0", "::/0"]}),
    );
    let Err(Outage { cause, .. }) = never.deliver(&keyed(1, 1)).await else {
        panic!("it was connected to");
    };
    assert!(cause.to_string().contains("link-local"), "{cause}");
    assert_eq!(receiver.connections(), 0);
    let mut allowed = to(&format!("http://localhost:{port}/"), json!({}));
    assert_eq!(
        allowed.deliver(&keyed(1, 1)).await,
        Ok(vec![Outcome::Delivered])
    );
}

fn server(certificates: &Certificates) -> ServerConfig {
    let chain = CertificateDer::pem_file_iter(certificates.certificate()).expect("a file");
    let chain = chain.collect::<Result<_, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(certificates.key()).expect("a key");
    let provider = rustls::crypto::ring::default_provider();
    ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate")
}

#[tokio::test]
async fn only_a_certificate_that_is_trusted_will_do() {
    let certificates = Certificates::new();
    let decide = |_: &Request| Answer::Status(204, Vec::new());
    let receiver = Receiver::with_tls(Some(server(&certificates)), decide);
    let trusted = json!({"ca_file": certificates.authority()});
    let outcomes = sink(&receiver, trusted.clone())
        .deliver(&keyed(40, 5))
        .await;
    assert_eq!(outcomes.map(|outcomes| delivered(&outcomes)), Ok(40));
    let sights = sink(&receiver, trusted.clone()).probe().await;
    assert!(matches!(sights[0], Sight::Good(_)), "{sights:?}");
    let before = receiver.requests().len();
    let others = Certificates::new();
    let other = json!({"ca_file": others.authority()});
    for mut refused in [
        // Another authority; another name; and nothing is sent in plain where TLS is asked for.
        sink(&receiver, other),
        to(
            &format!("https://[::ffff:127.0.0.1]:{}/", receiver.port()),
            trusted.clone(),
        ),
        to(&Receiver::start().url().replace("http:", "https:"), trusted),
    ] {
        let outage = refused.deliver(&keyed(3, 3)).await;
        assert!(outage.is_err(), "{outage:?}");
    }
    assert_eq!(receiver.requests().len(), before);
}

#[test]
fn settings_that_do_not_do_are_told_and_not_repeated() {
    for (settings, key) in [
        (json!({}), "url"),
        (json!({"url": "hunter2"}), "url"),
        (json!({"url": "ftp://hunter2/"}), "url"),
        (json!({"url": "https://u:hunter2@h/"}), "url"),
        (json!({"url": "https:///hunter2"}), "url"),
        (
            json!({"url": "https://hunter2/", "url_file": "f"}),
            "url_file",
        ),
        (json!({"url": "https://h/", "secret": "hunter2"}), "secret"),
        (
            json!({"url": "https://h/", "secret": SECRETS[0], "secret_file": "f"}),
            "secret_file",
        ),
        (
            json!({"url": "https://h/", "extra_headers": ["hunter2"]}),
            "extra_headers",
        ),
        (
            json!({"url": "https://h/", "extra_headers": ["Host: hunter2"]}),
            "extra_headers",
        ),
        (
            json!({"url": "https://h/", "extra_headers": ["a: hunter2\r\nb: c"]}),
            "extra_headers",
        ),
        (
            json!({"url": "https://h/", "allow_addresses": ["10/8"]}),
            "allow_addresses",
        ),
        (
            json!({"url": "https://h/", "concurrency": 0}),
            "concurrency",
        ),
        (json!({"url": "https://h/", "batch": 0}), "batch"),
        (
            json!({"url": "https://h/", "batch": 2, "format": "cloudevents"}),
            "batch",
        ),
        (json!({"url": "https://h/", "timeout": "0s"}), "timeout"),
        (json!({"url": "https://h/", "source": "a b"}), "source"),
        (json!({"url": "https://h/", "key_file": "f"}), "key_file"),
    ] {
        let config: webhook::Config = serde_json::from_value(settings.clone()).expect("settings");
        let invalid = config.validate().expect_err("it does not do");
        assert_eq!(invalid.key, key, "{settings}");
        assert!(!invalid.to_string().contains("hunter2"), "{invalid}");
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    }
}
