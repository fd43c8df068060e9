//! The NATS sink on a real nats-server: what its answers, its settings and other writers make of a batch.

use std::future::IntoFuture as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::nats::Config;
use aftercommit::sink::{Outage, Outcome, Settings as _, Sight, Sink};
use async_nats::jetstream::stream::{Config as Stream, DiscardPolicy, StorageType};
use serde_json::{Value, json};

use crate::support::nats::{Nats, STREAM, is_there};
use crate::support::tls::Certificates;

fn open(nats: &Nats, settings: Value) -> Box<dyn Sink> {
    let mut config =
        json!({"url": nats.url(), "stream": STREAM, "subject": "tasks.{task}", "timeout": "2s"});
    for (key, value) in settings.as_object().expect("settings") {
        config[key] = value.clone();
    }
    let config = config.as_object_mut().expect("settings");
    config.retain(|_, value| !value.is_null());
    let config: Config = serde_json::from_value(json!(config)).expect("settings");
    config.open().expect("a sink")
}

fn task(id: &str, key: Option<&str>, more: &[(Field, &str)]) -> Task {
    let mut fields = vec![(Field::Id, id), (Field::Task, "shop.paid")];
    fields.extend(key.map(|key| (Field::Key, key)));
    fields.extend_from_slice(more);
    Task::from_fields(fields, Position::default(), Timestamp(0))
}

fn of_one_key(prefix: &str, count: usize) -> Vec<Task> {
    (0..count)
        .map(|n| task(&format!("{prefix}{n}"), Some("k"), &[]))
        .collect()
}

fn ids(tasks: &[Task]) -> Vec<String> {
    tasks.iter().map(|task| task.id().to_owned()).collect()
}

async fn deliver(sink: &mut Box<dyn Sink>, tasks: &[Task]) -> Vec<Outcome> {
    sink.deliver(tasks).await.expect("it is there")
}

async fn outage(sink: &mut Box<dyn Sink>, tasks: &[Task]) -> String {
    let Outage { cause, .. } = sink.deliver(tasks).await.expect_err("it is away");
    cause.to_string()
}

fn all_delivered(outcomes: &[Outcome]) -> bool {
    outcomes.iter().all(|it| *it == Outcome::Delivered)
}

#[tokio::test]
async fn a_message_carries_what_the_row_says() {
    if !is_there() {
        return;
    }
    let nats = Nats::start();
    let mut sink = open(&nats, json!({}));
    let tasks = [
        task(
            "1",
            None,
            &[
                (Field::Args, "[1]"),
                (Field::Headers, "{\"traceparent\": \"00-1\"}"),
            ],
        ),
        task(
            "2",
            None,
            &[
                (Field::Payload, "{ \"a\":12345678901234567890123 }"),
                (Field::Queue, "tasks.fast"),
            ],
        ),
        task(
            "3",
            None,
            &[
                (Field::Body, "\\x00ff0d0a"),
                (Field::Options, "{\"content_type\": \"a/b\"}"),
            ],
        ),
    ];
    assert!(all_delivered(&deliver(&mut sink, &tasks).await));
    let stored = nats.stored();
    let seen: Vec<_> = stored
        .iter()
        .map(|it| {
            (
                it.id(),
                it.subject.as_str(),
                it.header("Content-Type").unwrap_or_default(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("1".to_owned(), "tasks.shop.paid", "application/json"),
            ("2".to_owned(), "tasks.fast", "application/json"),
            ("3".to_owned(), "tasks.shop.paid", "a/b"),
        ]
    );
    assert_eq!(stored[0].payload, b"{\"args\":[1],\"kwargs\":{}}");
    assert_eq!(stored[1].payload, b"{ \"a\":12345678901234567890123 }");
    assert_eq!(stored[2].payload, b"\x00\xff\r\n");
    assert_eq!(stored[0].header("traceparent"), Some("00-1"));
    assert_eq!(stored[0].header("aftercommit-task"), Some("shop.paid"));
    assert_eq!(stored[0].header("aftercommit-lsn"), Some("0/0"));
}

#[test]
fn a_key_stays_in_order_beside_other_writers() {
    if !is_there() {
        return;
    }
    let nats = Nats::start();
    let stop = AtomicBool::new(false);
    let other = std::thread::scope(|scope| {
        let others = scope.spawn(|| nats.write_until("tasks.other", &stop));
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let mut sink = open(&nats, json!({}));
            for n in 0..40 {
                let tasks = of_one_key(&format!("{n}-"), 100);
                assert!(all_delivered(&deliver(&mut sink, &tasks).await));
            }
        });
        stop.store(true, Ordering::Relaxed);
        others.join().expect("the other writer")
    });
    assert!(other > 10, "{other} of another writer, between ours");
    let stored = nats.stored();
    let ours: Vec<String> = stored
        .iter()
        .filter_map(|it| it.header("Nats-Msg-Id").map(str::to_owned))
        .collect();
    let expected: Vec<String> = (0..40)
        .flat_map(|n| ids(&of_one_key(&format!("{n}-"), 100)))
        .collect();
    assert_eq!(ours, expected);
}

#[tokio::test]
async fn a_full_stream_is_an_outage_and_keeps_the_order() {
    if !is_there() {
        return;
    }
    let nats = Nats::start_with("");
    nats.make_stream(Stream {
        max_messages: 50,
        discard: DiscardPolicy::New,
        ..Stream::default()
    });
    let mut sink = open(&nats, json!({}));
    let tasks = of_one_key("", 80);
    let outcomes = deliver(&mut sink, &tasks).await;
    let stored = outcomes
        .iter()
        .take_while(|it| **it == Outcome::Delivered)
        .count();
    assert_eq!(stored, 50);
    assert!(
        outcomes[50..]
            .iter()
            .all(|it| matches!(it, Outcome::Retry(_)))
    );
    let words = outage(&mut sink, &tasks[50..]).await;
    assert!(words.contains("maximum messages exceeded"), "{words}");
    assert_eq!(nats.ids(), ids(&tasks[..50]));
    nats.purge(">");
    assert!(all_delivered(&deliver(&mut sink, &tasks[50..]).await));
    assert_eq!(nats.ids(), ids(&tasks[50..]));
}

#[tokio::test]
async fn a_stream_that_is_absent_is_an_outage_and_a_subject_of_none_is_not() {
    if !is_there() {
        return;
    }
    let nats = Nats::start_with("");
    let mut sink = open(&nats, json!({}));
    let tasks = of_one_key("", 3);
    let words = outage(&mut sink, &tasks).await;
    assert!(words.contains("stream not found"), "{words}");
    nats.make_stream(Stream::default());
    let elsewhere = task("x", None, &[(Field::Queue, "elsewhere")]);
    let outcomes = deliver(&mut sink, std::slice::from_ref(&elsewhere)).await;
    assert!(matches!(&outcomes[0], Outcome::Retry(_)), "{outcomes:?}");
    assert!(all_delivered(&deliver(&mut sink, &tasks).await));
    nats.delete_stream();
    outage(&mut sink, &of_one_key("later", 3)).await;
}

#[tokio::test]
async fn a_stream_that_does_not_acknowledge_is_told_and_keeps_the_others_going() {
    if !is_there() {
        return;
    }
    let nats = Nats::start_with("");
    nats.make_stream(Stream {
        no_ack: true,
        storage: StorageType::Memory,
        ..Stream::default()
    });
    let mut sink = open(&nats, json!({"timeout": "400ms"}));
    let outcomes = deliver(&mut sink, &of_one_key("", 2)).await;
    assert!(
        outcomes.iter().all(|it| matches!(it, Outcome::Retry(_))),
        "{outcomes:?}"
    );
    let seen = sink.probe().await;
    assert!(
        seen.iter()
            .any(|it| matches!(it, Sight::Fault(words, _) if words.contains("no_ack"))),
        "{seen:?}"
    );
    assert!(
        seen.iter()
            .any(|it| matches!(it, Sight::Risk(words, _) if words.contains("memory"))),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_server_that_hangs_is_an_outage_in_time() {
    if !is_there() {
        return;
    }
    let nats = Nats::start();
    let mut sink = open(&nats, json!({"timeout": "500ms"}));
    let tasks = of_one_key("", 20);
    assert!(all_delivered(&deliver(&mut sink, &tasks[..10]).await));
    nats.stop();
    for _ in 0..2 {
        let start = std::time::Instant::now();
        let words = outage(&mut sink, &tasks[10..]).await;
        assert!(words.contains("has not answered"), "{words}");
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    nats.cont();
    let mut outcomes = sink.deliver(&tasks[10..]).await;
    for _ in 0..20 {
        if outcomes.is_err() {
            outcomes = sink.deliver(&tasks[10..]).await;
        }
    }
    assert!(all_delivered(&outcomes.expect("it is back")));
    assert_eq!(nats.ids(), ids(&tasks), "each once");
}

#[tokio::test]
async fn logins_are_those_of_the_server() {
    if !is_there() {
        return;
    }
    let key = nkeys::KeyPair::new_user();
    let settings = format!(
        "authorization {{ users: [ {}, {{ user: u, password: \"p@ss\", permissions: {{ publish: [\"tasks.shop.>\"] }} }}, {{ nkey: {} }} ] }}",
        Nats::admin(),
        key.public_key()
    );
    let nats = Nats::start_with(&settings).with_stream();
    let seed = nats.folder().join("seed");
    std::fs::write(&seed, format!("# ours\n{}\n", key.seed().expect("a seed"))).expect("a file");
    let wrong = nats.folder().join("wrong");
    std::fs::write(&wrong, "nothing").expect("a file");
    let in_url = nats.url().replace("nats://", "nats://u:p%40ss@");
    for (n, login) in [
        json!({"user": "u", "password": "p@ss"}),
        json!({"url": in_url}),
        json!({"nkey_seed_file": seed}),
    ]
    .into_iter()
    .enumerate()
    {
        let mut sink = open(&nats, login);
        let tasks = [task(&format!("{n}"), None, &[])];
        assert!(all_delivered(&deliver(&mut sink, &tasks).await), "{n}");
    }
    for (login, words) in [
        (json!({}), "Authorization Violation"),
        (
            json!({"user": "u", "password": "s3cret"}),
            "Authorization Violation",
        ),
        (json!({"token": "s3cret"}), "Authorization Violation"),
        (json!({"nkey_seed_file": wrong}), "no seed"),
        (json!({"credentials_file": seed}), "no seed"),
    ] {
        let cause = outage(&mut open(&nats, login), &of_one_key("w", 1)).await;
        assert!(cause.contains(words), "{cause}");
        assert!(!cause.contains("s3cret"), "{cause}");
    }
    // What it may not publish to is retried; the neighbours go on.
    let mut sink = open(&nats, json!({"user": "u", "password": "p@ss"}));
    let tasks = [
        task("a", Some("k"), &[]),
        task("b", Some("k"), &[(Field::Queue, "tasks.forbidden")]),
        task("c", Some("k"), &[]),
        task("d", None, &[]),
    ];
    let outcomes = deliver(&mut sink, &tasks).await;
    let delivered: Vec<bool> = outcomes
        .iter()
        .map(|it| *it == Outcome::Delivered)
        .collect();
    assert_eq!(delivered, [true, false, false, true], "{outcomes:?}");
    assert_eq!(nats.ids()[3..], ["a", "d"]);
    let seen = sink.probe().await;
    assert!(
        seen.iter()
            .any(|it| matches!(it, Sight::Risk(words, _) if words.contains("does not tell"))),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_server_that_has_let_us_in_may_refuse_us_later() {
    if !is_there() {
        return;
    }
    let settings = |ours: &str| format!("authorization {{ users: [ {}{ours} ] }}", Nats::admin());
    let let_in = settings(
        ", { user: u, password: \"p\", permissions: { publish: [\"$JS.API.>\", \"tasks.shop.>\"], subscribe: [\">\"] } }",
    );
    let mut nats = Nats::start_with(&let_in).with_stream();
    let login = json!({"user": "u", "password": "p"});
    let mut sink = open(&nats, login.clone());
    let once = json!({"user": "u", "password": "p", "jetstream": false, "acknowledge": "none", "stream": null});
    let mut unstored = open(&nats, once);
    let other = task("other", None, &[(Field::Queue, "tasks.other")]);
    for sink in [&mut sink, &mut unstored] {
        assert!(all_delivered(&deliver(sink, &of_one_key("a", 3)).await));
    }
    nats.restart();
    // The answer to the login is not taken for one to what comes behind it.
    for sink in [&mut sink, &mut unstored] {
        let tasks = [other.clone(), task("fits", None, &[])];
        // It may be noticed only now that the connection is gone.
        let outcomes = match sink.deliver(&tasks).await {
            Ok(outcomes) => outcomes,
            Err(_) => deliver(sink, &tasks).await,
        };
        assert!(matches!(outcomes[0], Outcome::Retry(_)), "{outcomes:?}");
        assert_eq!(outcomes[1], Outcome::Delivered);
    }
    nats.reload(&settings(""));
    for sink in [&mut sink, &mut unstored] {
        let mut told = 0;
        for _ in 0..4 {
            let cause = outage(sink, &of_one_key("b", 3)).await;
            told += usize::from(cause.contains("Authorization Violation"));
        }
        assert!(told >= 3, "{told} of 4");
    }
    nats.reload(&let_in);
    for sink in [&mut sink, &mut unstored] {
        assert!(all_delivered(&deliver(sink, &of_one_key("b", 3)).await));
    }
}

#[tokio::test]
async fn tls_is_demanded_and_checked() {
    if !is_there() {
        return;
    }
    let (ours, others) = (Certificates::new(), Certificates::new());
    let tls = |more: &str| {
        format!(
            "tls {{ cert_file: \"{}\", key_file: \"{}\" {more} }}",
            ours.certificate().display(),
            ours.key().display()
        )
    };
    let plain = Nats::start();
    let cause = outage(&mut open(&plain, json!({"tls": true})), &of_one_key("", 1)).await;
    assert!(cause.contains("offers no TLS"), "{cause}");

    // The harness speaks no TLS: the sink finds no stream, but it is let in.
    let nats = Nats::start_with(&tls(""));
    let url = nats.url().replace("nats://", "tls://");
    let good = json!({"url": url, "tls_ca_file": ours.authority()});
    let cause = outage(&mut open(&nats, good), &of_one_key("", 1)).await;
    assert!(cause.contains("stream not found"), "{cause}");
    for (settings, words) in [
        (json!({}), "demands TLS"),
        (json!({"url": url}), "cannot be reached"),
        (
            json!({"url": url, "tls_ca_file": others.authority()}),
            "cannot be reached",
        ),
    ] {
        let cause = outage(&mut open(&nats, settings), &of_one_key("", 1)).await;
        assert!(cause.contains(words), "{cause}");
    }
}

#[tokio::test]
async fn another_server_of_the_list_is_taken() {
    if !is_there() {
        return;
    }
    let nats = Nats::start();
    let nobody = crate::support::port::free_port();
    let url = format!("nats://127.0.0.1:{nobody},{}", nats.url());
    let mut sink = open(&nats, json!({"url": url}));
    assert!(all_delivered(&deliver(&mut sink, &of_one_key("", 3)).await));
}

#[tokio::test]
async fn without_a_stream_who_is_subscribed_gets_it() {
    if !is_there() {
        return;
    }
    let nats = Nats::start_with("");
    let (ready, subscribed) = tokio::sync::oneshot::channel();
    let client = nats.client().await;
    let reader = tokio::spawn(async move {
        use futures_util::StreamExt as _;
        let messages = client.subscribe("tasks.>").await.expect("a subscription");
        client.flush().await.expect("sent");
        ready.send(()).expect("the test is there");
        let ids = messages.take(30).map(|message| {
            let headers = message.headers.expect("headers");
            headers.get("Nats-Msg-Id").expect("an id").to_string()
        });
        ids.collect::<Vec<String>>().await
    });
    subscribed.await.expect("subscribed");
    let settings = json!({"jetstream": false, "acknowledge": "none", "stream": null});
    let mut sink = open(&nats, settings);
    let seen = sink.probe().await;
    assert!(
        seen.iter().any(|it| matches!(it, Sight::Risk(..))),
        "{seen:?}"
    );
    let tasks = of_one_key("", 30);
    assert!(all_delivered(&deliver(&mut sink, &tasks).await));
    assert_eq!(reader.await.expect("the messages"), ids(&tasks));
}

#[test]
fn settings_that_make_no_sense() {
    let good = json!({"url": "nats://h", "stream": "S", "subject": "tasks.{task}"});
    for (settings, key) in [
        (json!({"url": null}), "url"),
        (json!({"url_file": "/f"}), "url_file"),
        (json!({"url": "redis://h"}), "url"),
        (json!({"stream": null}), "stream"),
        (json!({"stream": "a.b"}), "stream"),
        (json!({"subject": "{task}"}), "subject"),
        (json!({"jetstream": false}), "jetstream"),
        (json!({"acknowledge": "none"}), "acknowledge"),
        (json!({"jetstream": false, "acknowledge": "none"}), "stream"),
        (json!({"user": "u"}), "user"),
        (json!({"password": "p"}), "user"),
        (json!({"user": "u", "password": "p", "token": "t"}), "token"),
        (json!({"token": "t", "token_file": "/t"}), "token_file"),
        (
            json!({"nkey_seed_file": "/n", "credentials_file": "/c"}),
            "credentials_file",
        ),
        (json!({"tls_key_file": "/k"}), "tls_certificate_file"),
        (json!({"inbox_prefix": "a.>"}), "inbox_prefix"),
        (json!({"timeout": "0s"}), "timeout"),
    ] {
        let mut config = good.clone();
        for (key, value) in settings.as_object().expect("settings") {
            config[key] = value.clone();
        }
        let object = config.as_object_mut().expect("settings");
        object.retain(|_, value| !value.is_null());
        let config: Config = serde_json::from_value(config).expect("settings");
        assert_eq!(
            config.validate().expect_err("no sense").key,
            key,
            "{settings}"
        );
    }
    let config: Config = serde_json::from_value(good).expect("settings");
    assert_eq!(config.validate(), Ok(()));
}

/// Tasks a second, beside what async-nats publishes of the same bytes, with as many on their way. Prints, and asserts little: a
/// busy machine may be slow.
#[test]
#[ignore = "a measurement: run it alone, in a release build"]
fn throughput() {
    const COUNT: usize = 100_000;
    const BATCH: usize = 3_000;
    if !is_there() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let kwargs = format!("{{\"text\": \"{}\"}}", "x".repeat(200));
    let batches = |name: &str, keys: usize| -> Vec<Vec<Task>> {
        let task = |n: usize| {
            let key = (n % keys.max(1)).to_string();
            let key = (keys > 0).then_some(key.as_str());
            task(&format!("{name}-{n}"), key, &[(Field::Kwargs, &kwargs)])
        };
        let all: Vec<Task> = (0..COUNT).map(task).collect();
        all.chunks(BATCH).map(<[Task]>::to_vec).collect()
    };
    for round in 0..3 {
        for keys in [0, 1_000, 1] {
            let nats = Nats::start();
            let batches = batches(&format!("{round}-{keys}"), keys);
            let mut sink = open(&nats, json!({"timeout": "30s"}));
            let start = std::time::Instant::now();
            runtime.block_on(async {
                for batch in &batches {
                    assert!(all_delivered(&deliver(&mut sink, batch).await));
                }
            });
            let rate = COUNT as f64 / start.elapsed().as_secs_f64();
            println!("{keys} keys: {rate:.0} a second");
        }
        let nats = Nats::start();
        let body = format!("{{\"args\":[],\"kwargs\":{kwargs}}}");
        let start = std::time::Instant::now();
        runtime.block_on(async {
            let context = async_nats::jetstream::new(nats.client().await);
            for batch in 0..COUNT.div_ceil(BATCH) {
                let mut acks = Vec::with_capacity(BATCH);
                for n in 0..BATCH {
                    let mut headers = async_nats::HeaderMap::new();
                    headers.insert("Nats-Msg-Id", format!("{batch}-{n}").as_str());
                    headers.insert("Nats-Expected-Stream", STREAM);
                    headers.insert("aftercommit-task", "shop.paid");
                    headers.insert("aftercommit-lsn", "0/0");
                    headers.insert(
                        "aftercommit-committed-at",
                        "2000-01-01T00:00:00.000000+00:00",
                    );
                    headers.insert("Content-Type", "application/json");
                    let sent = context.publish_with_headers(
                        "tasks.shop.paid",
                        headers,
                        body.clone().into(),
                    );
                    acks.push(sent.await.expect("sent").into_future());
                }
                for ack in acks {
                    ack.await.expect("stored");
                }
            }
        });
        let rate = (COUNT.div_ceil(BATCH) * BATCH) as f64 / start.elapsed().as_secs_f64();
        println!("async-nats: {rate:.0} a second");
    }
}
