//! Celery over Redis, on real servers: where messages go, and what each way of failing is answered with.

use std::io::Write as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::celery::Config;
use aftercommit::sink::{Outcome, Settings as _, Sink};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::support::port::free_port;
use crate::support::redis::{Options, Redis};

fn task(id: &str, fields: &[(Field, &str)]) -> Task {
    let standard = [(Field::Id, id), (Field::Task, "app.tasks.work")];
    let all = standard.into_iter().chain(fields.iter().copied());
    Task::from_fields(all, Position::default(), Timestamp(0))
}

fn config(settings: Value) -> Config {
    serde_json::from_value(settings).expect("settings")
}

fn open(url: &str) -> Box<dyn Sink> {
    config(json!({"broker_url": url, "timeout": "2s"}))
        .open()
        .expect("a sink")
}

fn sink(server: &Redis) -> Box<dyn Sink> {
    open(&format!("redis://127.0.0.1:{}", server.port()))
}

async fn outage(sink: &mut Box<dyn Sink>) -> String {
    let tasks = [task("x", &[])];
    let outage = sink.deliver(&tasks).await.expect_err("an outage");
    outage.to_string()
}

async fn deliver(sink: &mut Box<dyn Sink>, tasks: &[Task]) -> Vec<Outcome> {
    sink.deliver(tasks).await.expect("no outage")
}

fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Delivered => "delivered".to_owned(),
        Outcome::Retry(cause) => format!("retry: {cause}"),
        Outcome::RetryIn(after, cause) => format!("retry in {after:?}: {cause}"),
        Outcome::Reject(cause) => format!("reject: {cause}"),
        Outcome::Unsent => "unsent".to_owned(),
    }
}

#[tokio::test]
async fn queues_priorities_prefix_and_separator_name_the_list() {
    let server = Redis::start();
    let url = format!("redis://127.0.0.1:{}/3", server.port());
    let settings = json!({
        "broker_url": url, "queue": "standard", "global_keyprefix": "app:", "sep": "|", "priority_steps": [0, 5],
    });
    let mut sink = config(settings).open().unwrap();
    let tasks = [
        task("1", &[]),
        task("2", &[(Field::Priority, "7")]),
        task("3", &[(Field::Queue, "high")]),
        task("4", &[]),
        task("5", &[(Field::Queue, "high"), (Field::Priority, "5")]),
        task("6", &[(Field::Priority, "4")]),
    ];
    assert!(
        deliver(&mut sink, &tasks)
            .await
            .iter()
            .all(|o| *o == Outcome::Delivered)
    );
    let list = |key: &str| server.ids(3, key);
    assert_eq!(list("app:standard"), ["1", "4", "6"]);
    assert_eq!(list("app:standard|5"), ["2"]);
    assert_eq!(list("app:high"), ["3"]);
    assert_eq!(list("app:high|5"), ["5"]);
}

#[tokio::test]
async fn a_named_exchange_finds_its_queues_by_their_bindings() {
    let server = Redis::start();
    let mut sink = sink(&server);
    let fields =
        |exchange: &str, key: &str| json!({"exchange": exchange, "routing_key": key}).to_string();
    let options = [
        fields("topic", "a.b"),
        fields("direct", "rk"),
        fields("topic", "z"),
        fields("nobody", "x"),
    ];
    let tasks: Vec<Task> = options
        .iter()
        .enumerate()
        .map(|(n, options)| task(&n.to_string(), &[(Field::Options, options)]))
        .collect();
    server.run(&[
        "SADD",
        "_kombu.binding.topic",
        "a.#\x06\x16^a\\..*?$\x06\x16q1",
        "*.b\x06\x16^x$\x06\x16q2",
    ]);
    server.run(&[
        "SADD",
        "_kombu.binding.direct",
        "rk\x06\x16\x06\x16q3",
        "other\x06\x16\x06\x16q4",
    ]);
    let outcomes = deliver(&mut sink, &tasks).await;
    assert!(outcomes[..2].iter().all(|o| *o == Outcome::Delivered));
    for unbound in &outcomes[2..] {
        let words = words(unbound);
        assert!(words.starts_with("retry: no queue is bound"), "{words}");
    }
    assert_eq!(
        (
            server.ids(0, "q1"),
            server.ids(0, "q2"),
            server.ids(0, "q3")
        ),
        (vec!["0".into()], vec!["0".into()], vec!["1".into()])
    );
    assert!(server.ids(0, "q4").is_empty());
    // Each copy has a delivery tag of its own.
    let tag = |list| server.messages(0, list)[0]["properties"]["delivery_tag"].clone();
    assert_ne!(tag("q1"), tag("q2"));
    // A worker comes, and declares what was missing.
    server.run(&["SADD", "_kombu.binding.nobody", "x\x06\x16\x06\x16q5"]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while deliver(&mut sink, &tasks[3..]).await != [Outcome::Delivered] {
        assert!(Instant::now() < deadline, "the new binding is not seen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.ids(0, "q5"), ["3"]);
}

#[tokio::test]
async fn a_server_that_refuses_is_an_outage_and_burns_nobody() {
    let server = Redis::start();
    let mut sink = sink(&server);
    for (switch, back, expected) in [
        (
            &["CONFIG", "SET", "maxmemory", "1"][..],
            &["CONFIG", "SET", "maxmemory", "0"][..],
            "out of memory",
        ),
        (
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
            "fewer replicas",
        ),
        (
            &["REPLICAOF", "127.0.0.1", "1"],
            &["REPLICAOF", "NO", "ONE"],
            "is a replica",
        ),
        (
            &["ACL", "SETUSER", "default", "-lpush"],
            &["ACL", "SETUSER", "default", "+lpush"],
            "lacks rights",
        ),
    ] {
        server.run(switch);
        let words = outage(&mut sink).await;
        assert!(words.contains(expected), "{switch:?}: {words}");
        assert!(
            words.contains(&format!("redis://127.0.0.1:{}/0", server.port())),
            "{words}"
        );
        server.run(back);
        assert_eq!(
            deliver(&mut sink, &[task(expected, &[])]).await,
            [Outcome::Delivered],
            "{switch:?}"
        );
    }
    assert_eq!(
        server.ids(0, "celery").len(),
        4,
        "what was refused was not applied"
    );
    // Without MULTI each LPUSH would be applied by itself, again and again. An open connection can find that out only
    // by trying; a new one tries without a task.
    server.run(&["ACL", "SETUSER", "default", "-multi"]);
    for _ in 0..3 {
        let words = outage(&mut sink).await;
        assert!(words.contains("lacks rights"), "{words}");
    }
    assert_eq!(server.ids(0, "celery").len(), 5);
}

#[tokio::test]
async fn a_list_that_is_not_ours_harms_no_other() {
    let server = Redis::start();
    let mut sink = sink(&server);
    let tasks = [
        task("1", &[]),
        task("2", &[(Field::Queue, "taken"), (Field::Key, "k")]),
        task("3", &[(Field::Queue, "taken")]),
        task("4", &[(Field::Key, "k")]),
        task("5", &[]),
    ];
    // Another program's key: the operator can mend it, so it is tried again.
    server.run(&["SET", "taken", "by another"]);
    let outcomes: Vec<String> = deliver(&mut sink, &tasks).await.iter().map(words).collect();
    for n in [1, 2] {
        assert!(
            outcomes[n].starts_with("retry: the Redis key taken is not a list"),
            "{outcomes:?}"
        );
    }
    assert_eq!(
        (outcomes[0].as_str(), outcomes[4].as_str()),
        ("delivered", "delivered")
    );
    server.run(&["FLUSHALL"]);

    // Rights for some queues only: nothing of the transaction is applied, so it is sent again without that list.
    server.run(&["ACL", "SETUSER", "app", "on", ">pw", "~celery", "+@all"]);
    let mut sink = open(&format!("redis://app:pw@127.0.0.1:{}", server.port()));
    let outcomes: Vec<String> = deliver(&mut sink, &tasks).await.iter().map(words).collect();
    for n in [1, 2] {
        assert!(
            outcomes[n].starts_with("reject: broker_url's user may not use the key taken"),
            "{outcomes:?}"
        );
    }
    assert!(
        outcomes[3].starts_with("retry: an earlier task of its key"),
        "{outcomes:?}"
    );
    assert_eq!(
        (outcomes[0].as_str(), outcomes[4].as_str()),
        ("delivered", "delivered")
    );
    assert_eq!(server.ids(0, "celery"), ["1", "5"]);

    // The same for bindings that this user may not read.
    let options = r#"{"exchange": "x", "routing_key": "y"}"#;
    let tasks = [task("6", &[(Field::Options, options)]), task("7", &[])];
    let outcomes: Vec<String> = deliver(&mut sink, &tasks).await.iter().map(words).collect();
    assert!(outcomes[0].contains("_kombu.binding.x"), "{outcomes:?}");
    assert_eq!(outcomes[1], "delivered");
}

#[tokio::test]
async fn logs_in_with_password_user_and_over_a_unix_socket() {
    let server = Redis::start_with(Options {
        password: Some("p@ss"),
        ..Options::default()
    });
    let (port, socket) = (server.port(), server.socket().display().to_string());
    for url in [
        format!("redis://:p%40ss@127.0.0.1:{port}"),
        format!("redis://default:p%40ss@localhost:{port}/1"),
        format!("redis+socket://:p%40ss@{socket}?virtual_host=2"),
    ] {
        let delivered = deliver(&mut open(&url), &[task("1", &[])]).await;
        assert_eq!(delivered, [Outcome::Delivered], "{url}");
    }
    for (url, expected) in [
        (format!("redis://127.0.0.1:{port}"), "asks for a password"),
        (
            format!("redis://:wrong@127.0.0.1:{port}"),
            "refuses user or password",
        ),
        (
            format!("redis://nobody:p%40ss@127.0.0.1:{port}"),
            "refuses user or password",
        ),
        (
            format!("redis://:p%40ss@127.0.0.1:{port}/99"),
            "DB index is out of range",
        ),
        (
            format!("redis+socket://:p%40ss@{socket}.none"),
            "cannot be reached",
        ),
    ] {
        let words = outage(&mut open(&url)).await;
        assert!(words.contains(expected), "{url}: {words}");
        assert!(
            !words.contains("p@ss") && !words.contains("wrong"),
            "{words}"
        );
    }
    // Against a server without a password, one is too many.
    let open_server = Redis::start();
    let words = outage(&mut open(&format!(
        "redis://:pw@127.0.0.1:{}",
        open_server.port()
    )))
    .await;
    assert!(
        words.contains("AUTH") || words.contains("password"),
        "{words}"
    );
}

#[tokio::test]
async fn a_stalled_server_is_an_outage_after_the_timeout() {
    let server = Redis::start();
    let settings =
        json!({"broker_url": format!("redis://127.0.0.1:{}", server.port()), "timeout": "200ms"});
    let mut sink = config(settings).open().unwrap();
    assert_eq!(
        deliver(&mut sink, &[task("1", &[])]).await,
        [Outcome::Delivered]
    );
    server.stop();
    for _ in 0..2 {
        let words = outage(&mut sink).await;
        assert!(words.contains("has not answered within 200ms"), "{words}");
    }
    server.cont();
    assert_eq!(
        deliver(&mut sink, &[task("2", &[])]).await,
        [Outcome::Delivered]
    );
    let ids = server.ids(0, "celery");
    let first = |id: &str| ids.iter().position(|other| other == id);
    assert!(first("1") < first("2") && first("2").is_some(), "{ids:?}");
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_opened_again_in_silence() {
    let server = Redis::start();
    let mut sink = sink(&server);
    for id in ["1", "2", "3"] {
        assert_eq!(
            deliver(&mut sink, &[task(id, &[])]).await,
            [Outcome::Delivered]
        );
        server.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        // The end of the stream is on its way through the kernel; there is nothing of ours to wait for.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(server.ids(0, "celery"), ["1", "2", "3"]);
}

#[tokio::test]
async fn what_is_no_redis_is_said_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
    });
    let words = outage(&mut open(&format!("redis://127.0.0.1:{port}"))).await;
    assert!(words.contains("is no Redis"), "{words}");
    answering.join().unwrap();
    let words = outage(&mut open(&format!("redis://127.0.0.1:{port}"))).await;
    assert!(words.contains("cannot be reached"), "{words}");
}

/// A CA, a server certificate for localhost, and a client certificate, as files in the server's folder to be.
fn certificates(folder: &std::path::Path) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name
        .push(DnType::CommonName, "the authority");
    std::fs::write(
        folder.join("ca.pem"),
        ca.self_signed(&ca_key).unwrap().pem(),
    )
    .unwrap();
    let issuer = Issuer::new(ca, ca_key);
    for (name, host) in [("server", "localhost"), ("client", "client")] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        std::fs::write(
            folder.join(format!("{name}.pem")),
            params.signed_by(&key, &issuer).unwrap().pem(),
        )
        .unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let key = KeyPair::generate().unwrap();
    let other = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(
        folder.join("other.pem"),
        other.self_signed(&key).unwrap().pem(),
    )
    .unwrap();
}

#[tokio::test]
async fn rediss_trusts_what_the_url_says() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let tls_port = free_port().to_string();
    let server = Redis::start_with(Options {
        settings: &[
            ("tls-port", &tls_port),
            ("tls-cert-file", &file("server.pem")),
            ("tls-key-file", &file("server.key")),
            ("tls-ca-cert-file", &file("ca.pem")),
            ("tls-auth-clients", "yes"),
        ],
        ..Options::default()
    });
    let ours = format!(
        "ssl_certfile={}&ssl_keyfile={}",
        file("client.pem"),
        file("client.key")
    );
    let (ca, other) = (file("ca.pem"), file("other.pem"));
    for (host, options) in [
        (
            "localhost",
            format!("ssl_cert_reqs=required&ssl_ca_certs={ca}&{ours}"),
        ),
        (
            "127.0.0.1",
            format!("ssl_check_hostname=false&ssl_ca_certs={ca}&{ours}"),
        ),
        ("127.0.0.1", format!("ssl_cert_reqs=none&{ours}")),
    ] {
        let mut sink = open(&format!("rediss://{host}:{tls_port}/0?{options}"));
        for n in 0..3 {
            let tasks: Vec<Task> = (0..200).map(|m| task(&format!("{n}-{m}"), &[])).collect();
            assert!(
                deliver(&mut sink, &tasks)
                    .await
                    .iter()
                    .all(|o| *o == Outcome::Delivered),
                "{options}"
            );
        }
    }
    assert_eq!(server.ids(0, "celery").len(), 3 * 3 * 200);
    for (host, options) in [
        ("127.0.0.1", format!("ssl_ca_certs={ca}&{ours}")),
        ("localhost", format!("ssl_ca_certs={other}&{ours}")),
        ("localhost", ours.clone()),
        ("localhost", format!("ssl_ca_certs={ca}")),
    ] {
        let words = outage(&mut open(&format!(
            "rediss://{host}:{tls_port}/0?{options}"
        )))
        .await;
        assert!(
            words.contains("cannot be reached") || words.contains("closed"),
            "{options}: {words}"
        );
    }
    let missing =
        config(json!({"broker_url": format!("rediss://h?ssl_ca_certs={}", file("none.pem"))}))
            .open();
    assert!(missing.err().unwrap().to_string().contains("ssl_ca_certs"));
}

#[test]
fn settings_that_do_not_do_are_named() {
    let good = "redis://localhost";
    for (settings, expected) in [
        (json!({}), "broker_url is missing"),
        (
            json!({"broker_url": good, "broker_url_file": "/x"}),
            "broker_url_file and broker_url exclude",
        ),
        (
            json!({"broker_url": "sentinel://guest@localhost"}),
            "master_name is missing",
        ),
        (
            json!({"broker_url": good, "master_name": "m"}),
            "master_name is for a broker_url of sentinel://",
        ),
        (
            json!({"broker_url": good, "queue": ""}),
            "queue must not be empty",
        ),
        (
            json!({"broker_url": good, "sep": ""}),
            "sep must not be empty",
        ),
        (
            json!({"broker_url": good, "priority_steps": []}),
            "priority_steps must ascend",
        ),
        (
            json!({"broker_url": good, "priority_steps": [1, 2]}),
            "priority_steps must ascend",
        ),
        (
            json!({"broker_url": good, "priority_steps": [0, 3, 3]}),
            "priority_steps must ascend",
        ),
        (
            json!({"broker_url": good, "priority_steps": [0, 10]}),
            "priority_steps must ascend",
        ),
        (
            json!({"broker_url": good, "timeout": "0s"}),
            "timeout must be",
        ),
    ] {
        let error = config(settings.clone())
            .validate()
            .expect_err(&settings.to_string());
        assert!(error.to_string().contains(expected), "{settings}: {error}");
    }
}
