//! The Kafka sink over TLS: a front ends it, and asks for a certificate or a login, before the cluster that librdkafka plays.

use std::fs;
use std::path::Path;
use std::time::Instant;

use aftercommit::sink::{Outage, Settings as _, Sight, Sink};
use serde_json::{Value, json};

use crate::kafka::{all_delivered, batch, config, in_order};
use crate::support::daemon::{Daemon, program};
use crate::support::exam::{CANARY_SECRET, Exam, assert_discreet, says};
use crate::support::kafka::{Kafka, TOPIC};
use crate::support::kafka_front::{Admission, KafkaFront, USER};
use crate::support::process::scratch;
use crate::support::scram::Mechanism;
use crate::support::tls::Certificates;
use crate::support::wait::PATIENCE;

/// A cluster of two brokers, and what stands in front of it.
struct Place {
    kafka: Kafka,
    front: KafkaFront,
    certificates: Certificates,
}

impl Place {
    fn new(admission: Admission) -> Place {
        Place::with(Certificates::new(), admission)
    }

    fn with(certificates: Certificates, admission: Admission) -> Place {
        let kafka = Kafka::start(2);
        let front = KafkaFront::start(&kafka.brokers(), &certificates, admission);
        Place {
            kafka,
            front,
            certificates,
        }
    }

    /// Properties that let us in where nobody asks who we are.
    fn tls(&self) -> Value {
        json!({
            "security.protocol": "ssl",
            "ssl.ca.location": self.certificates.authority(),
        })
    }

    fn login(&self, mechanism: Mechanism) -> Value {
        json!({
            "security.protocol": "sasl_ssl",
            "ssl.ca.location": self.certificates.authority(),
            "sasl.mechanism": mechanism.name(),
            "sasl.username": USER,
        })
    }

    fn sink(&self, settings: Value) -> Box<dyn Sink> {
        let config = config(&self.front.brokers(), settings);
        config.open().expect("a sink")
    }

    fn with_properties(&self, properties: &Value) -> Box<dyn Sink> {
        self.sink(json!({ "properties": properties }))
    }

    /// That a batch goes through, in order, and with both brokers.
    async fn delivers(&self, sink: &mut Box<dyn Sink>) {
        let before = self.kafka.ids(TOPIC).len();
        assert_eq!(before, 0);
        let tasks = batch("a", 200, 20);
        // On a busy machine the two brokers' logins may take longer than the sink waits.
        let since = Instant::now();
        let outcomes = loop {
            match sink.deliver(&tasks).await {
                Ok(outcomes) => break outcomes,
                Err(outage) => assert!(since.elapsed() < PATIENCE, "{outage}"),
            }
        };
        assert!(all_delivered(&outcomes), "{outcomes:?}");
        assert_eq!(self.kafka.ids(TOPIC).len(), tasks.len());
        in_order(&self.kafka, &tasks);
        assert!(self.front.let_in() >= 2, "{}", self.front.let_in());
        let since = Instant::now();
        let lets_in = Sight::Good("Kafka lets us in: 2 brokers".to_owned());
        let seen = loop {
            match sink.probe().await {
                seen if seen[0] == lets_in => break seen,
                seen => assert!(since.elapsed() < PATIENCE, "{seen:?}"),
            }
        };
        assert!(
            !seen.iter().any(|it| matches!(it, Sight::Fault(..))),
            "{seen:?}"
        );
    }

    /// That nothing goes through, and that both the daemon and whoever looks hear the same.
    async fn refuses(&self, sink: &mut Box<dyn Sink>, words: &str) {
        let Outage { cause, .. } = sink
            .deliver(&batch("a", 20, 20))
            .await
            .expect_err("an outage");
        assert!(cause.to_string().contains(words), "{cause}");
        let seen = sink.probe().await;
        match &seen[..] {
            [Sight::Fault(said, _)] => assert!(said.contains(words), "{said}"),
            _ => panic!("{seen:?}"),
        }
        assert_eq!(self.kafka.ids(TOPIC), [""; 0]);
    }
}

/// As an object with more in it, or with something else.
fn and(properties: &Value, more: &[(&str, Value)]) -> Value {
    let mut properties = properties.clone();
    for (name, value) in more {
        properties[*name] = value.clone();
    }
    properties
}

#[tokio::test]
async fn tasks_go_over_tls_and_to_each_broker() {
    let place = Place::new(Admission::Open);
    let mut sink = place.with_properties(&place.tls());
    place.delivers(&mut sink).await;
}

#[tokio::test]
async fn whom_it_does_not_trust_gets_nothing() {
    let words = "is not trusted: ssl.ca.location has to name its authority";
    let others = Certificates::new();
    let place = Place::new(Admission::Open);
    let foreign = [("ssl.ca.location", json!(others.authority()))];
    let mut sink = place.with_properties(&and(&place.tls(), &foreign));
    place.refuses(&mut sink, words).await;
    for certificates in [Certificates::expired(), Certificates::of_another_host()] {
        let place = Place::with(certificates, Admission::Open);
        let mut sink = place.with_properties(&place.tls());
        place.refuses(&mut sink, words).await;
        assert_eq!(place.front.let_in(), 0);
    }
}

/// Whoever turns the check of names off is told what that means.
#[tokio::test]
async fn names_count_unless_they_are_told_not_to() {
    let place = Place::with(Certificates::of_another_host(), Admission::Open);
    let unnamed = [("ssl.endpoint.identification.algorithm", json!("none"))];
    let mut sink = place.with_properties(&and(&place.tls(), &unnamed));
    place.delivers(&mut sink).await;
    let seen = sink.probe().await;
    let is_told = |sight: &Sight| matches!(sight, Sight::Risk(words, _) if words.contains("the names in the brokers' certificates"));
    assert!(seen.iter().any(is_told), "{seen:?}");
}

#[tokio::test]
async fn one_side_in_plain_is_told() {
    let place = Place::new(Admission::Open);
    let mut sink = place.with_properties(&json!({}));
    place
        .refuses(&mut sink, "its listener may be one with TLS")
        .await;
    let mut sink = config(&place.kafka.brokers(), json!({"properties": place.tls()}))
        .open()
        .expect("a sink");
    place
        .refuses(&mut sink, "its listener may be one without")
        .await;
}

#[tokio::test]
async fn a_certificate_of_ours_where_it_is_demanded() {
    let place = Place::new(Admission::Certificate);
    let ours = |of: &Certificates| {
        [
            ("ssl.certificate.location", json!(of.client())),
            ("ssl.key.location", json!(of.client_key())),
        ]
    };
    let mut nobody = place.with_properties(&place.tls());
    place
        .refuses(
            &mut nobody,
            "demands a certificate of ours: name it in ssl.certificate.location",
        )
        .await;
    let others = Certificates::new();
    let mut stranger = place.with_properties(&and(&place.tls(), &ours(&others)));
    place
        .refuses(&mut stranger, "does not take our certificate")
        .await;
    assert_eq!(place.front.let_in(), 0);
    let mut sink = place.with_properties(&and(&place.tls(), &ours(&place.certificates)));
    place.delivers(&mut sink).await;
}

#[tokio::test]
async fn logins_and_what_becomes_of_a_wrong_password() {
    for mechanism in [
        Mechanism::Plain,
        Mechanism::ScramSha256,
        Mechanism::ScramSha512,
    ] {
        let place = Place::new(Admission::Login(mechanism));
        place.front.admit(Some("right"));
        let with = |password: &str| {
            place.sink(json!({"properties": place.login(mechanism), "password": password}))
        };
        let mut sink = with("wrong");
        place
            .refuses(
                &mut sink,
                "refuses the login, see sasl.mechanism, sasl.username and password",
            )
            .await;
        assert_eq!(place.front.let_in(), 0);
        // The cluster's side is mended: the same sink goes on.
        place.front.admit(Some("wrong"));
        place.delivers(&mut sink).await;
    }
}

#[tokio::test]
async fn another_mechanism_than_the_brokers_is_told() {
    let place = Place::new(Admission::Login(Mechanism::ScramSha512));
    let settings = json!({"properties": place.login(Mechanism::Plain), "password": "x"});
    let mut sink = place.sink(settings);
    place
        .refuses(&mut sink, "supported mechanisms: SCRAM-SHA-512")
        .await;
}

#[test]
fn files_that_do_not_do_are_told_in_words() {
    let certificates = Certificates::new();
    let folder = scratch("kafka");
    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "nothing").expect("a file");
    let others = Certificates::new();
    for (more, words) in [
        (
            vec![("ssl.ca.location", json!("/nowhere/ca.pem"))],
            "properties has ssl.ca.location = /nowhere/ca.pem, which cannot be read: No such file",
        ),
        (
            vec![("ssl.ca.location", json!(empty))],
            "properties are refused by librdkafka: ssl.ca.location failed",
        ),
        (
            vec![
                ("ssl.certificate.location", json!(certificates.client())),
                ("ssl.key.location", json!(empty)),
                ("ssl.key.password", json!("hunter2")),
            ],
            "properties are refused by librdkafka: ssl.key.location failed",
        ),
        (
            vec![
                ("ssl.certificate.location", json!(certificates.client())),
                ("ssl.key.location", json!(others.client_key())),
            ],
            "properties are refused by librdkafka: ",
        ),
        (
            vec![("ssl.key.pem", json!("hunter2"))],
            "properties are refused by librdkafka: ",
        ),
        (
            vec![("ssl.engine.location", json!("hunter2"))],
            "properties has ssl.engine.location, which would load foreign code",
        ),
        (
            vec![("security.protocol", json!("plaintext"))],
            "properties has ssl.ca.location, but security.protocol = plaintext is without TLS",
        ),
    ] {
        let tls = json!({
            "security.protocol": "ssl",
            "ssl.ca.location": certificates.authority(),
        });
        let config = config("h:9093", json!({"properties": and(&tls, &more)}));
        let error = match config.open() {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{more:?} is taken"),
        };
        assert!(error.starts_with(words), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}

fn table(place: &Place, properties: &Value, more: &str) -> String {
    let properties = properties.as_object().expect("properties").iter();
    let properties: Vec<String> = properties
        .map(|(name, value)| format!("\"{name}\" = {value}"))
        .collect();
    format!(
        "[sink.kafka.workers]\nbrokers = \"{}\"\ntopic = \"{TOPIC}\"\ntimeout = \"2s\"\nproperties = {{ {} }}\n{more}",
        place.front.brokers(),
        properties.join(", ")
    )
}

/// What `check --online` says, with these authorities as the system's.
fn look(config: &Path, authorities: &Path) -> (Option<i32>, String) {
    let mut command = program();
    command.args(["check", "--online", "-c"]).arg(config);
    let output = command
        .env("SSL_CERT_FILE", authorities)
        .output()
        .expect("the program");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8(text).expect("UTF-8"),
    )
}

/// The authorities of the operating system are those that count where none are named.
#[tokio::test]
async fn check_online_says_whether_kafka_lets_us_in() {
    let place = Place::new(Admission::Login(Mechanism::ScramSha256));
    place.front.admit(Some("right"));
    let mut properties = place.login(Mechanism::ScramSha256);
    properties
        .as_object_mut()
        .expect("an object")
        .remove("ssl.ca.location");
    let folder = scratch("kafka");
    let file = folder.path().join("app.toml");
    let with = |password: &str| {
        let sink = table(&place, &properties, &format!("password = \"{password}\"\n"));
        let sink = sink.replace("timeout = \"2s\"\n", "");
        let route = "[[route]]\ntask = \"*\"\nsink = \"workers\"\n";
        fs::write(
            &file,
            format!("[postgres]\nurl = \"postgres://app@localhost/app\"\n{sink}{route}"),
        )
        .expect("a file");
    };
    let others = Certificates::new();
    with("right");
    let (code, said) = look(&file, &place.certificates.authority());
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("ok: sink workers: Kafka lets us in: 2 brokers"),
        "{said}"
    );
    let (code, said) = look(&file, &others.authority());
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("error: sink workers: the certificate of sasl_ssl://127.0.0.1:"),
        "{said}"
    );
    with("hunter2");
    let (code, said) = look(&file, &place.certificates.authority());
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("error: sink workers: sasl_ssl://127.0.0.1:"),
        "{said}"
    );
    assert!(said.contains("refuses the login"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

/// The daemon as a whole: what is wrong is told, the tasks stay, and once a file is right they go, without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_wait_for_the_right_authority_and_the_right_password() {
    const ROWS: usize = 300;
    let exam = Exam::start();
    let place = Place::new(Admission::Login(Mechanism::ScramSha512));
    let right = format!("{CANARY_SECRET}-right");
    place.front.admit(Some(&right));
    let folder = scratch("kafka");
    let (authority, password) = (folder.path().join("ca.pem"), folder.path().join("password"));
    let others = Certificates::new();
    fs::copy(others.authority(), &authority).expect("a copy");
    fs::write(&password, format!("{CANARY_SECRET}-wrong\n")).expect("a file");
    let properties = and(
        &place.login(Mechanism::ScramSha512),
        &[("ssl.ca.location", json!(authority))],
    );
    let sink = table(
        &place,
        &properties,
        &format!("password_file = {}\n", json!(password)),
    );
    let mut daemon = Daemon::start(&exam.config_with(&sink));
    exam.write_numbered(ROWS, 0);
    let told = |words: &'static str| move |record: &Value| says(record, words);
    daemon
        .wait_for_log(
            "a word on the authority",
            told("is not trusted: ssl.ca.location"),
        )
        .await;
    fs::copy(place.certificates.authority(), &authority).expect("a copy");
    daemon
        .wait_for_log(
            "a word on the password",
            told("refuses the login, see sasl.mechanism"),
        )
        .await;
    assert_eq!(place.kafka.ids(TOPIC), [""; 0]);
    fs::write(&password, format!("{right}\n")).expect("a file");
    exam.nothing_left().await;
    assert!(daemon.terminate().await.success());
    assert_discreet(&daemon);
    let stored = place.kafka.stored(TOPIC);
    let values = stored.iter().map(|message| message.value.as_slice());
    assert_eq!(exam.assert_numbered(values, ROWS), 0);
}
