//! The daemon's life: how it stops, how another takes over, and how it ends by itself.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::daemon::Daemon;
use crate::support::exam::ledger::{Delivery, Receipt};
use crate::support::exam::{Exam, IN_FLIGHT, assert_discreet, says};
use crate::support::proxy::Proxy;
use crate::support::wait::{PATIENCE, eventually};

/// Container runtimes kill after ten seconds.
const STOPS_WITHIN: Duration = Duration::from_secs(10);

/// One transaction of many rows.
const BULK: usize = 200_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_the_middle_of_a_large_transaction_completes_it() {
    let exam = Exam::start();
    let mut daemon = Daemon::start(&exam.config());
    exam.bulk(BULK);
    // Late, so that the rest is done within the time that a stop may take, on a slow machine too.
    exam.wait_for_pushed(BULK / 5 * 4).await;
    daemon.signal(Signal::TERM);
    assert!(exam.pushed().await < BULK, "it was over already");
    let status = daemon.ended(STOPS_WITHIN).await;
    assert_eq!(status.code(), Some(0));

    let next = Daemon::start(&exam.config());
    exam.insert(1);
    exam.wait_for_pushed(BULK + 1).await;
    assert_eq!(exam.pushed().await, BULK + 1, "each task once");
    assert_eq!(exam.different().await, BULK + 1);
    assert_discreet(&daemon);
    assert_discreet(&next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_leaves_whole_lines_on_standard_output() {
    let exam = Exam::start();
    let sink = "[sink.stdout.workers]\n\n[[route]]";
    let config = exam.config();
    let (before, rest) = config
        .split_once("[sink.celery.workers]")
        .expect("the sink");
    let (_, route) = rest.split_once("[[route]]").expect("the route");
    let config = format!("{before}{sink}{route}");
    let load = exam.load(2, Duration::from_millis(20));
    let mut deliveries = Vec::new();
    for _ in 0..3 {
        let mut daemon = Daemon::start(&config);
        eventually(PATIENCE, "lines", || async {
            (daemon.stdout().len() > 200).then_some(())
        })
        .await;
        assert_eq!(daemon.terminate().await.code(), Some(0));
        deliveries.extend(daemon.stdout().iter().map(|line| Delivery::of_line(line)));
    }
    load.stop().await;
    let mut daemon = run_until(&config, "now");
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(0));
    deliveries.extend(daemon.stdout().iter().map(|line| Delivery::of_line(line)));
    Receipt::new(&exam.written().await, &deliveries, &exam.held().await).assert_sound("stdout", 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_sigterm_stops_at_once() {
    let mut exam = Exam::start();
    let load = exam.load(2, Duration::from_millis(20));
    let mut daemon = Daemon::start(&exam.config());
    exam.wait_for_pushed(1).await;
    exam.redis.stop();
    // Now a batch is under way that is not answered.
    let written = exam.written().await.len() + IN_FLIGHT;
    eventually(PATIENCE, "more than is in flight", || async {
        (exam.written().await.len() > written).then_some(())
    })
    .await;
    daemon.signal(Signal::TERM);
    daemon
        .wait_for_log("the beginning of the drain", |record| {
            says(record, "draining")
        })
        .await;
    let second = Instant::now();
    daemon.signal(Signal::TERM);
    let status = daemon.ended(STOPS_WITHIN).await;
    assert_eq!(status.code(), Some(0));
    assert!(
        second.elapsed() < Duration::from_secs(3),
        "{:?}",
        second.elapsed()
    );
    exam.redis.cont();
    load.stop().await;
    let next = Daemon::start(&exam.config());
    exam.receipt()
        .await
        .assert_sound("a second SIGTERM", IN_FLIGHT);
    assert_discreet(&daemon);
    assert_discreet(&next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_while_the_broker_is_away_ends_in_time_and_loses_nothing() {
    let mut exam = Exam::start();
    let proxy = Proxy::start(exam.redis.port());
    let config = exam.config_through(
        &exam.postgres_url(),
        &exam.redis.url_through(proxy.port(), 0),
    );
    let load = exam.load(2, Duration::from_millis(50));
    let mut daemon = Daemon::start(&config);
    exam.wait_for_pushed(1).await;
    proxy.refuse();
    daemon
        .wait_for_log("word of the outage", |record| says(record, "is away"))
        .await;
    daemon.signal(Signal::TERM);
    let status = daemon.ended(STOPS_WITHIN).await;
    assert_eq!(status.code(), Some(0));
    // What was in flight is held, and comes from there.
    let records = daemon.records();
    let given_up = |record: &serde_json::Value| says(record, "not delivered in time");
    assert!(!records.iter().any(given_up));
    let held = exam
        .postgres
        .psql("select count(*) > 0 from aftercommit.hold");
    assert_eq!(held, "t");
    proxy.pass();
    load.stop().await;
    let next = Daemon::start(&config);
    exam.receipt()
        .await
        .assert_sound("SIGTERM in an outage", IN_FLIGHT);
    exam.nothing_left().await;
    assert_discreet(&daemon);
    assert_discreet(&next);
}

/// `aftercommit run --until <position>`
fn run_until(config: &str, position: &str) -> Daemon {
    Daemon::start_with(config, |command| {
        command.args(["--until", position]);
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn until_now_ends_when_all_is_delivered_and_not_before() {
    let mut exam = Exam::start();
    let status = run_until(&exam.config(), "now").ended(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "an empty outbox");

    let load = exam.load(2, Duration::ZERO);
    eventually(PATIENCE, "some thousand rows", || async {
        (exam.written().await.len() > 3_000).then_some(())
    })
    .await;
    load.stop().await;
    let proxy = Proxy::start(exam.redis.port());
    proxy.refuse();
    let config = exam.config_through(
        &exam.postgres_url(),
        &exam.redis.url_through(proxy.port(), 0),
    );
    let mut daemon = run_until(&config, "now");
    daemon
        .wait_for_log("word of the outage", |record| says(record, "is away"))
        .await;
    assert_eq!(exam.pushed().await, 0);
    proxy.pass();
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(0));
    // All of it is settled at the moment when the daemon has ended: delivered, or held.
    let (pushed, written) = (exam.pushed().await, exam.written().await.len());
    let held = exam.postgres.psql("select count(*) from aftercommit.hold");
    assert_eq!(pushed + held.parse::<usize>().expect("a number"), written);
    let mut rest = Daemon::start(&exam.config());
    rest.wait_for_log("its start", |record| says(record, "streaming"))
        .await;
    exam.wait_for_pushed(written).await;
    assert_eq!(rest.terminate().await.code(), Some(0));
    exam.receipt().await.assert_sound("--until now", 0);
    assert_discreet(&daemon);

    let status = run_until(&exam.config(), "now").ended(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "nothing new in the outbox");
    assert_eq!(exam.pushed().await, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn until_a_position_waits_for_the_server_to_come_so_far() {
    let exam = Exam::start();
    exam.insert(10);
    let position = exam.postgres.psql("select pg_current_wal_insert_lsn()");
    let mut daemon = run_until(&exam.config(), &position);
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(0));
    assert_eq!(exam.pushed().await, 10);

    // A position to come, and nothing in the outbox on the way there.
    let position = exam
        .postgres
        .psql("select pg_current_wal_insert_lsn() + 100000");
    let mut daemon = run_until(&exam.config(), &position);
    daemon
        .wait_for_log("streaming", |record| says(record, "streaming"))
        .await;
    exam.insert(1);
    exam.wait_for_pushed(11).await;
    assert!(daemon.running());
    exam.postgres
        .psql("create table other as select repeat('x', 100) from generate_series(1, 2000)");
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(0));
    assert_eq!(exam.pushed().await, 11);
    assert_discreet(&daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let exam = Exam::start();
    for (redirection, total) in [("2>&-", 100), ("2>/dev/full", 200), (">&- 2>&- <&-", 300)] {
        let mut daemon = Daemon::start_with(&exam.config(), |command| {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", &format!("exec \"$0\" \"$@\" {redirection}")])
                .arg(command.get_program())
                .args(command.get_args())
                .stdout(Stdio::null());
            *command = shell;
        });
        exam.insert(100);
        exam.wait_for_pushed(total).await;
        assert_eq!(daemon.terminate().await.code(), Some(0), "{redirection}");
        assert_eq!(exam.pushed().await, total);
    }
}
