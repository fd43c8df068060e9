//! Faults of the broker, and of the way to it. The exam has rows for a broker that is killed, for lost answers and for cut
//! connections.

use std::time::{Duration, Instant};

use redis::AsyncCommands;

use crate::support::daemon::Daemon;
use crate::support::exam::{
    CANARY_SECRET, Exam, IN_FLIGHT, LIST, assert_discreet, processor_time, says,
};
use crate::support::proxy::Proxy;
use crate::support::redis::{Options, Redis};
use crate::support::tls::Certificates;
use crate::support::wait::{PATIENCE, eventually};

/// From the broker's return to the first new delivery.
const RECOVERS_WITHIN: Duration = Duration::from_secs(5);

/// Watches a daemon whose broker is away for so long: it uses little of the processor, and says little.
pub(crate) async fn assert_calm(daemon: &Daemon, time: Duration) {
    let (used, records, since) = (
        processor_time(daemon),
        daemon.records().len(),
        Instant::now(),
    );
    tokio::time::sleep(time).await;
    let used = processor_time(daemon) - used;
    let elapsed = since.elapsed();
    eprintln!("{used:?} of processor time within {elapsed:?}");
    assert!(
        used < elapsed / 4,
        "{used:?} of processor time within {elapsed:?}"
    );
    let is_told = |record: &&serde_json::Value| record["level"] != "DEBUG";
    let said = daemon.records()[records..].iter().filter(is_told).count();
    // Some ten attempts, after pauses that grow to a second; and one that succeeds, before the next one fails, is told twice.
    assert!(
        said < 30,
        "{said} records within {elapsed:?}: {}",
        daemon.tail()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_is_waited_for() {
    let mut exam = Exam::start();
    let load = exam.load(2, Duration::from_millis(100));
    let mut daemon = Daemon::start(&exam.config());
    exam.wait_for_pushed(1).await;
    exam.redis.stop();
    assert_calm(&daemon, Duration::from_secs(5)).await;
    exam.redis.cont();
    let (back, before) = (Instant::now(), exam.pushed().await);
    exam.wait_for_pushed(before + 1).await;
    assert!(back.elapsed() < RECOVERS_WITHIN);
    // Its answer came within the sink's timeout.
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);
    assert_eq!(exam.pushed().await, exam.different().await, "each once");

    // Now it does not, and what was sent meanwhile is applied late: it comes twice, never in another order.
    let config = exam
        .config()
        .replace("queue =", "timeout = \"500ms\"\nqueue =");
    let mut daemon = Daemon::start(&config);
    let before = exam.pushed().await;
    exam.wait_for_pushed(before + 1).await;
    exam.redis.stop();
    daemon
        .wait_for_log("a third attempt", |record| record["attempts"] == 3)
        .await;
    exam.redis.cont();
    load.stop().await;
    let receipt = exam.receipt().await;
    let attempts = daemon.records();
    let attempts = attempts
        .iter()
        .filter(|record| says(record, "away"))
        .count();
    receipt.assert_sound("SIGSTOP beyond the timeout", attempts * IN_FLIGHT);
    assert_discreet(&daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_is_tried_again_without_a_storm() {
    let mut exam = Exam::start();
    let mut connection = exam.redis.connection().await;
    let mut set = async |name: &str, value: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg(name).arg(value);
        set.exec_async(&mut connection).await.expect("CONFIG SET");
    };
    set("maxmemory-policy", "noeviction").await;
    set("maxmemory", "4mb").await;
    let load = exam.load(3, Duration::from_millis(100));
    let mut daemon = Daemon::start(&exam.config());
    daemon
        .wait_for_log("what to do", |record| says(record, "raise its maxmemory"))
        .await;
    assert_calm(&daemon, Duration::from_secs(4)).await;
    let before = exam.pushed().await;
    set("maxmemory", "0").await;
    let back = Instant::now();
    exam.wait_for_pushed(before + 1).await;
    assert!(back.elapsed() < RECOVERS_WITHIN, "{:?}", back.elapsed());
    load.stop().await;
    exam.receipt().await.assert_sound("Redis out of memory", 0);
    assert_discreet(&daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_told_and_tried_again() {
    let exam = Exam::start();
    let proxy = Proxy::start(exam.redis.port());
    let url = format!("redis://:{CANARY_SECRET}-new@127.0.0.1:{}/0", proxy.port());
    exam.insert(10);
    let mut daemon = Daemon::start(&exam.config_through(&exam.postgres_url(), &url));
    daemon
        .wait_for_log("what is wrong", |record| {
            says(record, "refuses user or password of broker_url")
        })
        .await;
    let connections = proxy.accepted();
    assert_calm(&daemon, Duration::from_secs(4)).await;
    let connections = proxy.accepted() - connections;
    assert!(connections < 20, "{connections} attempts");
    assert!(daemon.running());

    let mut connection = exam.redis.connection().await;
    let mut set = redis::cmd("CONFIG");
    set.arg("SET")
        .arg("requirepass")
        .arg(format!("{CANARY_SECRET}-new"));
    set.exec_async(&mut connection).await.expect("CONFIG SET");
    let back = Instant::now();
    eventually(PATIENCE, "the messages", || {
        let mut connection = connection.clone();
        async move { (connection.llen(LIST).await == Ok(10)).then_some(()) }
    })
    .await;
    assert!(back.elapsed() < RECOVERS_WITHIN, "{:?}", back.elapsed());
    assert_discreet(&daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_url_leads_to_its_database() {
    let certificates = Certificates::new();
    let exam = Exam::start_with(Options {
        tls: Some(&certificates),
        ..Options::default()
    });
    let socket = format!(
        "redis+socket://:{CANARY_SECRET}@{}?virtual_host=3",
        exam.redis.socket().display()
    );
    let trusted = |path: &std::path::Path| {
        format!(
            "{}?ssl_cert_reqs=required&ssl_ca_certs={}",
            exam.redis.tls_url(5),
            path.display()
        )
    };
    let tls = trusted(&certificates.authority());
    for (url, database) in [(socket, 3), (exam.redis.url(4), 4), (tls, 5)] {
        let mut daemon = Daemon::start(&exam.config_through(&exam.postgres_url(), &url));
        exam.insert(10);
        let connection = exam.redis.connection_to(database).await;
        eventually(PATIENCE, "the messages", || {
            let mut connection = connection.clone();
            async move { (connection.llen(LIST).await == Ok(10)).then_some(()) }
        })
        .await;
        assert_eq!(daemon.terminate().await.code(), Some(0));
        assert_discreet(&daemon);
    }

    // Somebody else's authority.
    let other = Certificates::new();
    let url = trusted(&other.authority());
    let mut daemon = Daemon::start(&exam.config_through(&exam.postgres_url(), &url));
    exam.insert(1);
    let record = daemon
        .wait_for_log("the refusal", |record| says(record, "certificate"))
        .await;
    eprintln!("{record}");
    assert!(daemon.running());
    let mut connection = exam.redis.connection_to(5).await;
    assert_eq!(connection.llen(LIST).await, Ok(10));
    assert_discreet(&daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_is_down_does_not_hold_up_the_others() {
    const DOWN: usize = IN_FLIGHT / 2 + 20_000;
    // While there is room for one task, all of what the intake has read at once is taken: 256 KiB of rows of over 128 bytes.
    const READ: usize = (256 << 10) / 128;
    let exam = Exam::start();
    let other = Redis::start();
    let proxy = Proxy::start(other.port());
    proxy.refuse();
    let config = exam.config().replace(
        "[[route]]",
        &format!(
            "[sink.celery.down]\nbroker_url = \"{}\"\n\n[[route]]\ntask = \"down.*\"\nsink = \"down\"\n\n[[route]]",
            other.url_through(proxy.port(), 0)
        ),
    );
    let daemon = Daemon::start(&config);
    let down = |rows: usize| {
        exam.postgres.psql(&format!(
            "insert into aftercommit.outbox (task) select 'down.task' from generate_series(1, {rows})"
        ));
    };
    down(IN_FLIGHT / 2);
    exam.insert(2_000);
    exam.wait_for_pushed(2_000).await;
    // More than the budget of all sinks.
    down(20_000);
    exam.insert(10);
    exam.wait_for_pushed(2_010).await;
    let held = exam
        .postgres
        .psql("select count(*) from aftercommit.hold where state = 'retrying' and sink = 'down'");
    assert!(
        held.parse::<usize>().expect("a number") > DOWN - IN_FLIGHT - READ,
        "{held}"
    );

    proxy.pass();
    let connection = other.connection().await;
    eventually(PATIENCE, "the other sink's messages", || {
        let mut connection = connection.clone();
        async move { (connection.llen(LIST).await == Ok(DOWN)).then_some(()) }
    })
    .await;
    exam.nothing_left().await;
    assert_discreet(&daemon);
}
