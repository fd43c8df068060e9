//! Celery's URL of sentinels, where Redis, and the sentinels, too, are behind TLS.

use std::path::Path;

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::{Settings as _, celery};
use serde_json::json;

use super::sentinel::{SECRETS, hand_over};
use super::{Lane, numbers, tasks};
use crate::support::celery::{Project, Worker};
use crate::support::redis_ha::{Guarded, SERVICE};
use crate::support::tls::Certificates;
use crate::support::wait::{PATIENCE, until};

fn options(certificates: &Certificates) -> String {
    format!("ssl_ca_certs={}", certificates.authority().display())
}

/// `options` are those of the first URL, whose database is 2.
fn url(ports: &[u16], options: &str) -> String {
    let places = ports.iter().enumerate().map(|(nth, port)| match nth {
        0 => format!(
            "sentinel://:{}@127.0.0.1:{port}/2?{options}",
            SECRETS.server
        ),
        _ => format!("sentinel://127.0.0.1:{port}"),
    });
    places.collect::<Vec<_>>().join(";")
}

fn open(url: &str, sentinel_ssl: bool) -> Lane {
    let settings = json!({
        "broker_url": url, "master_name": SERVICE, "sentinel_password": SECRETS.sentinel, "sentinel_ssl": sentinel_ssl,
        "timeout": "2s",
    });
    let config: celery::Config = serde_json::from_value(settings).expect("settings");
    Lane::new(config.open().expect("a sink"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_are_followed_over_tls() {
    let certificates = Certificates::new();
    let mut guarded = Guarded::start_with(Some(SECRETS), Some(&certificates));
    let options = options(&certificates);
    // As kombu without sentinel_kwargs: TLS to Redis only.
    let mut lane = open(&url(&guarded.sentinel_ports(false), &options), false);
    lane.delivers(&tasks(0..25)).await;
    let url = url(&guarded.sentinel_ports(true), &options);
    let mut lane = open(&url, true);
    lane.delivers(&tasks(0..50)).await;
    let seen = format!("{:?}", lane.sink.probe().await);
    for words in ["takes tasks", "a failover loses"] {
        assert!(seen.contains(words) && !seen.contains("Fault"), "{seen}");
    }
    for (name, value, words) in [
        ("appendonly", "no", "appendonly is off"),
        ("maxmemory-policy", "allkeys-lru", "drops whole queues"),
    ] {
        guarded.servers[0].run(&["CONFIG", "SET", name, value]);
        let seen = format!("{:?}", lane.sink.probe().await);
        assert!(seen.contains(words), "{seen}");
    }
    until(PATIENCE, "the replica", || {
        (guarded.servers[1].ids(2, "celery").len() == 50).then_some(())
    });
    let port = guarded.port(0);
    guarded.servers[0].kill9();
    assert!(lane.hand(&tasks(50..60)).await.is_err());
    assert_eq!(guarded.wait_for_failover(port), 1);
    hand_over(&mut lane, &tasks(50..60)).await;
    // A successor, to which all of it comes again.
    let mut lane = open(&url, true);
    lane.delivers(&tasks(0..70)).await;
    let arrived = numbers(guarded.servers[1].ids(2, "celery"));
    assert_eq!(arrived, (0..70).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_us_out_is_told_with_its_place_and_what_helps() {
    let (certificates, other) = (Certificates::new(), Certificates::new());
    let guarded = Guarded::start_with(Some(SECRETS), Some(&certificates));
    let good = url(&guarded.sentinel_ports(true), &options(&certificates));
    let sentinels = guarded.sentinel_ports(true);
    let login = format!(":{}@", SECRETS.server);
    for (url, ports, words) in [
        (
            url(&sentinels, &options(&other)),
            &sentinels,
            "issued it in ssl_ca_certs",
        ),
        (
            good.replace(&login, ":wrong-pw@"),
            &vec![guarded.port(0)],
            "refuses user or password of broker_url",
        ),
        (
            good.replace(&login, ""),
            &vec![guarded.port(0)],
            "put it into broker_url",
        ),
    ] {
        let mut lane = open(&url, true);
        let cause = lane.hand(&tasks(0..10)).await.expect_err("no way in");
        assert!(cause.contains(words), "{cause}");
        let at = |port: &u16| cause.contains(&format!("127.0.0.1:{port}"));
        assert!(ports.iter().any(at), "{cause}");
        assert!(!cause.contains("-pw"), "{cause}");
        let seen = format!("{:?}", lane.sink.probe().await);
        assert!(seen.contains("Fault") && seen.contains(words), "{seen}");
    }
    open(&good, true).delivers(&tasks(0..10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_with_the_same_url_gets_the_tasks() {
    let certificates = Certificates::new();
    let guarded = Guarded::start_with(Some(SECRETS), Some(&certificates));
    let url = url(&guarded.sentinel_ports(true), &options(&certificates));
    let task = |n: u64| {
        let id = format!("task-{n}");
        let fields = [(Field::Id, id.as_str()), (Field::Task, "work")];
        Task::from_fields(fields, Position::default(), Timestamp(0))
    };
    let tasks: Vec<Task> = (0..20).map(task).collect();
    let project = Project {
        path: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/celery_apps")],
        settings: "",
        app: "sentinels",
        database_url: String::new(),
        broker_url: url.clone(),
    };
    let worker = Worker::start(&project, 1, "celery");
    open(&url, true).delivers(&tasks).await;
    until(PATIENCE, "the tasks' runs", || {
        let log = worker.log();
        let has_run = |n: u64| log.contains(&format!("RAN {{\"id\": \"task-{n}\""));
        (0..20).all(has_run).then_some(())
    });
}
