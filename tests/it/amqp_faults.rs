//! The amqp sink where the way to RabbitMQ is broken: certificates, logins, silence, confirms that do not come.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::amqp::Config;
use aftercommit::sink::{Outcome, Settings as _, Sink};
use serde_json::json;

use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::rabbitmq::{Options, RabbitMq, Vhost, id, is_installed};
use crate::support::tls::{CLIENT, Certificates};
use crate::support::wait::PATIENCE;

fn task(id: &str) -> Task {
    let fields = [(Field::Id, id), (Field::Task, "order.paid")];
    Task::from_fields(fields, Position::default(), Timestamp(0))
}

/// A sink whose messages go to the queue `orders`.
fn open(url: &str, timeout: &str) -> Box<dyn Sink> {
    let settings = json!({"url": url, "exchange": "", "routing_key": "orders", "timeout": timeout});
    let config: Config = serde_json::from_value(settings).expect("settings");
    config.open().expect("a sink")
}

/// Why the sink is away.
async fn outage(sink: &mut Box<dyn Sink>) -> String {
    let answer = sink.deliver(&[task("refused")]).await;
    answer.expect_err("an outage").to_string()
}

async fn deliver(sink: &mut Box<dyn Sink>, id: &str) {
    let answer = sink.deliver(&[task(id)]).await;
    assert_eq!(answer, Ok(vec![Outcome::Delivered]));
}

fn ids(vhost: &Vhost<'_>) -> Vec<String> {
    vhost.peek("orders").iter().map(id).collect()
}

fn with(url: &str, options: &[(&str, &Path)]) -> String {
    let options = options.iter();
    let options: Vec<String> = options
        .map(|(name, file)| format!("{name}={}", file.display()))
        .collect();
    format!("{url}?{}", options.join("&"))
}

#[tokio::test]
async fn tls_is_used_where_it_is_asked_for_and_nothing_else() {
    if !is_installed() {
        return;
    }
    let certificates = Certificates::new();
    let server = RabbitMq::start_with(Options {
        tls: Some(&certificates),
        ..Options::default()
    });
    let vhost = server.default_vhost();
    vhost.queue("orders", json!({}));
    let url = server.tls_url("/");
    let mut sink = open(
        &with(&url, &[("ssl_ca_certs", &certificates.authority())]),
        "5s",
    );
    deliver(&mut sink, "trusted").await;

    let other = Certificates::new();
    for (url, words) in [
        (
            with(&url, &[("ssl_ca_certs", &other.authority())]),
            "certificate",
        ),
        // The system's authorities do not know it either.
        (url.clone(), "certificate"),
        // TLS is spoken there, and nothing else.
        (server.url_through(server.tls_port(), "/"), "AMQP 0-9-1"),
    ] {
        let words_told = outage(&mut open(&url, "5s")).await;
        assert!(words_told.contains(words), "{words_told}");
        assert!(!words_told.contains("guest"), "{words_told}");
    }
    assert_eq!(ids(&vhost), ["trusted"]);
    drop(sink);

    // A port without TLS gets the beginning of a handshake, and no login in plain text.
    let plain = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = plain.local_addr().expect("an address").port();
    let heard = std::thread::spawn(move || {
        let mut heard = Vec::new();
        for _ in 0..3 {
            let (mut stream, _) = plain.accept().expect("a connection");
            let mut first = [0; 512];
            let length = stream.read(&mut first).expect("bytes");
            heard.push(first[..length].to_vec());
        }
        heard
    });
    let url = format!("amqps://me:s3cret@localhost:{port}/");
    let mut sink = open(
        &with(&url, &[("ssl_ca_certs", &certificates.authority())]),
        "5s",
    );
    for _ in 0..3 {
        outage(&mut sink).await;
    }
    for first in heard.join().expect("the listener") {
        assert_eq!(first[..2], [0x16, 3], "a TLS handshake");
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    if !is_installed() {
        return;
    }
    let certificates = Certificates::expired();
    let server = RabbitMq::start_with(Options {
        tls: Some(&certificates),
        ..Options::default()
    });
    let trusted = with(
        &server.tls_url("/"),
        &[("ssl_ca_certs", &certificates.authority())],
    );
    let words = outage(&mut open(&trusted, "5s")).await;
    assert!(words.to_lowercase().contains("expired"), "{words}");
}

#[tokio::test]
async fn a_certificate_is_a_login() {
    if !is_installed() {
        return;
    }
    let certificates = Certificates::new();
    let server = RabbitMq::start_with(Options {
        tls: Some(&certificates),
        client_certificates: true,
        ..Options::default()
    });
    let vhost = server.default_vhost();
    vhost.queue("orders", json!({}));
    server.user(CLIENT, "", &vhost);
    let (ca, certificate, key) = (
        certificates.authority(),
        certificates.client(),
        certificates.client_key(),
    );
    let all: [(&str, &Path); 3] = [
        ("ssl_ca_certs", &ca),
        ("ssl_certfile", &certificate),
        ("ssl_keyfile", &key),
    ];
    let url = server.tls_url("/");
    let anonymous = url.replace("guest:guest@", "");
    deliver(&mut open(&with(&anonymous, &all), "5s"), "external").await;
    // With a user, the certificate opens the way, and the password the door.
    deliver(&mut open(&with(&url, &all), "5s"), "plain").await;
    // Without one, there is no way.
    outage(&mut open(&with(&url, &all[..1]), "5s")).await;
    // Nobody of that name.
    server.ask("DELETE", &format!("users/{CLIENT}"), None);
    let words = outage(&mut open(&with(&anonymous, &all), "5s")).await;
    assert!(words.contains("refuses user or password"), "{words}");
    assert_eq!(ids(&vhost), ["external", "plain"]);
}

#[tokio::test]
async fn a_login_that_is_taken_back_is_an_outage_until_it_is_given_again() {
    if !is_installed() {
        return;
    }
    let server = RabbitMq::start();
    let vhost = server.default_vhost();
    vhost.queue("orders", json!({}));
    server.user("shop", "old", &vhost);
    let url = |password: &str| {
        server
            .url("/")
            .replace("guest:guest", &format!("shop:{password}"))
    };
    let mut sink = open(&url("old"), "5s");
    deliver(&mut sink, "1").await;
    // A new password is for new connections.
    server.user("shop", "new", &vhost);
    deliver(&mut sink, "2").await;
    server.ask("DELETE", "users/shop", None);
    let deadline = Instant::now() + PATIENCE;
    while sink.deliver(&[task("while it ends")]).await.is_ok() {
        assert!(Instant::now() < deadline, "its connection stays open");
    }
    server.user("shop", "new", &vhost);
    for _ in 0..3 {
        let words = outage(&mut sink).await;
        assert!(
            words.contains("refuses user or password of the URL"),
            "{words}"
        );
        assert!(!words.contains("old"), "{words}");
    }
    deliver(&mut open(&url("new"), "5s"), "3").await;
    server.user("shop", "old", &vhost);
    deliver(&mut sink, "4").await;
    let arrived = ids(&vhost);
    let known = arrived.iter().filter(|id| *id != "while it ends");
    assert!(known.eq(["1", "2", "3", "4"].iter()), "{arrived:?}");
}

#[tokio::test]
async fn silence_is_noticed_by_the_heartbeat() {
    if !is_installed() {
        return;
    }
    let server = RabbitMq::start();
    let vhost = server.default_vhost();
    vhost.queue("orders", json!({}));
    let proxy = Proxy::start(server.port());
    let url = vhost.url_through(proxy.port()) + "?heartbeat=1";
    // Far longer than the heartbeat.
    let mut sink = open(&url, "60s");
    deliver(&mut sink, "before").await;
    // It rests for several heartbeats, and is still there.
    tokio::time::sleep(Duration::from_secs(4)).await;
    deliver(&mut sink, "again").await;
    assert_eq!(proxy.accepted(), 1, "the connection was kept");

    for silence in ["a black hole", "SIGSTOP"] {
        match silence {
            "SIGSTOP" => server.stop(),
            _ => proxy.both(Fault::BlackHole),
        }
        let since = Instant::now();
        let words = outage(&mut sink).await;
        assert!(words.contains("twice the heartbeat"), "{words}");
        assert!(
            since.elapsed() < Duration::from_secs(5),
            "{:?}",
            since.elapsed()
        );
        match silence {
            "SIGSTOP" => server.cont(),
            _ => {
                proxy.both(Fault::Pass);
                proxy.reset();
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while sink.deliver(&[task(silence)]).await != Ok(vec![Outcome::Delivered]) {
            assert!(Instant::now() < deadline, "it is not seen that it is back");
        }
    }
}

#[tokio::test]
async fn what_is_never_confirmed_is_sent_again_under_the_same_id() {
    if !is_installed() {
        return;
    }
    let vhost = RabbitMq::shared().vhost();
    vhost.queue("orders", json!({}));
    let proxy = Proxy::start(RabbitMq::shared().port());
    let mut sink = open(&vhost.url_through(proxy.port()), "1s");
    deliver(&mut sink, "first").await;
    let names: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    let tasks: Vec<Task> = names.iter().map(|id| task(id)).collect();
    proxy.set(Way::Down, Fault::BlackHole);
    let since = Instant::now();
    let words = sink
        .deliver(&tasks)
        .await
        .expect_err("an outage")
        .to_string();
    assert!(words.contains("has not answered within 1s"), "{words}");
    assert!(
        since.elapsed() < Duration::from_secs(4),
        "{:?}",
        since.elapsed()
    );
    proxy.set(Way::Down, Fault::Pass);
    let answer = sink.deliver(&tasks).await;
    assert_eq!(answer, Ok(vec![Outcome::Delivered; tasks.len()]));
    assert_eq!(proxy.accepted(), 2, "the doubtful connection was closed");
    // They had arrived the first time.
    let arrived = ids(&vhost);
    let twice: Vec<&String> = names.iter().chain(&names).collect();
    assert!(
        arrived.iter().skip(1).eq(twice),
        "{} arrived",
        arrived.len()
    );
}
