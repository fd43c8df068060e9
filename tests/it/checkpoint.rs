//! Where the daemon starts: from its own checkpoint, which a crash of the server does not take back as it does the slot's
//! position.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::exam::{Exam, assert_discreet, says};

/// A position, as a number.
fn number(lsn: &str) -> u64 {
    let (high, low) = lsn.split_once('/').expect("an LSN");
    let half = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
    half(high) << 32 | half(low)
}

fn checkpoint(exam: &Exam) -> u64 {
    number(&exam.postgres.psql("select lsn from aftercommit.checkpoint"))
}

/// Where the daemon asked the server to start.
async fn started(daemon: &mut Daemon) -> u64 {
    let record = daemon
        .wait_for_log("its start", |record| says(record, "streaming"))
        .await;
    number(record["start"].as_str().expect("an LSN"))
}

/// Some tasks, delivered and written down, of which the server forgets in a crash that they were confirmed.
async fn settled_and_forgotten(exam: &mut Exam) -> u64 {
    exam.postgres.psql("checkpoint");
    let mut daemon = Daemon::start(&exam.config());
    exam.insert(500);
    exam.wait_for_pushed(500).await;
    exam.nothing_left().await;
    exam.insert(1);
    exam.nothing_left().await;
    daemon.kill9();
    exam.postgres.kill9();
    exam.postgres.restart();
    let (kept, slot) = (checkpoint(exam), exam.confirmed());
    eprintln!("checkpoint {kept}, slot {slot}");
    assert!(slot < kept, "the slot's position has not gone back");
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_settled_is_not_repeated_after_a_crash_of_both() {
    let mut exam = Exam::start();
    let kept = settled_and_forgotten(&mut exam).await;
    // While nobody reads.
    exam.insert(10);
    let mut daemon = Daemon::start(&exam.config());
    assert_eq!(started(&mut daemon).await, kept);
    exam.wait_for_pushed(511).await;
    exam.nothing_left().await;
    assert_eq!(exam.pushed().await, 511, "something came twice");
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);
}

/// A first task that fails holds the settled position back; what was reached before is not forgotten for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_does_not_go_back() {
    let mut exam = Exam::start();
    exam.divert("new.task = 'fails'");
    let kept = settled_and_forgotten(&mut exam).await;
    exam.postgres
        .psql("insert into aftercommit.outbox (task) values ('fails')");
    exam.insert(1);
    let config = exam
        .config()
        .replace("backoff =", "hold_after = \"1h\", backoff =");
    let mut daemon = Daemon::start(&config);
    exam.wait_for_pushed(502).await;
    exam.wait_for_answer("select count(*) from aftercommit.outbox", "1")
        .await;
    let now = checkpoint(&exam);
    assert!(now >= kept, "{now} < {kept}");
    // Nor does the next session of the same daemon start below.
    let sql = "select pg_terminate_backend(active_pid) from pg_replication_slots";
    exam.postgres.psql(sql);
    daemon
        .wait_for_log("another session", |record| says(record, "connected again"))
        .await;
    let starts: Vec<Value> = daemon.records();
    let starts = starts.iter().filter(|record| says(record, "streaming"));
    for start in starts {
        let start = number(start["start"].as_str().expect("an LSN"));
        assert!(start >= kept, "{start} < {kept}");
    }
    daemon.kill9();
    exam.postgres.kill9();
    exam.postgres.restart();
    exam.bind();
    let mut daemon = Daemon::start(&exam.config());
    exam.nothing_left().await;
    // The one beside the task that failed was above the settled position, and came again.
    assert!(exam.pushed().await <= 504, "{}", exam.pushed().await);
    assert_eq!(exam.different().await, 503);
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_not_ours_is_not_believed() {
    let exam = Exam::start();
    let mut expected = 0;
    for nonsense in [
        "timeline = timeline + 1, lsn = pg_current_wal_lsn() + 100000",
        "timeline = -1, lsn = pg_current_wal_lsn() + 100000",
        "system_id = '42', lsn = pg_current_wal_lsn() + 100000",
        "system_id = 'canary-payload-93ab', lsn = pg_current_wal_lsn() + 100000",
        "slot = 'another', lsn = pg_current_wal_lsn() + 100000",
        // Of a position that the server has not come to nothing is known.
        "lsn = pg_current_wal_lsn() + 100000",
        "lsn = 'FFFFFFFF/FFFFFFFF'",
    ] {
        let mut daemon = Daemon::start(&exam.config());
        exam.insert(5);
        exam.nothing_left().await;
        assert_eq!(daemon.terminate().await.code(), Some(0));
        assert_discreet(&daemon);
        exam.postgres
            .psql(&format!("update aftercommit.checkpoint set {nonsense}"));
        // Would be skipped, and so would those that come later.
        exam.insert(5);
        let mut daemon = Daemon::start(&exam.config());
        started(&mut daemon).await;
        exam.insert(5);
        expected += 15;
        exam.wait_for_pushed(expected).await;
        exam.nothing_left().await;
        assert_eq!(exam.pushed().await, expected, "{nonsense}");
        assert_eq!(daemon.terminate().await.code(), Some(0));
        let below = "select bool_and(lsn <= pg_current_wal_lsn()) from aftercommit.checkpoint where slot = 'aftercommit'";
        assert_eq!(exam.postgres.psql(below), "t", "{nonsense}");
        assert_discreet(&daemon);
    }
}

/// The second of two daemons takes over what the first one held, and releases nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_what_is_held() {
    const TASKS: usize = 300;
    let exam = Exam::start();
    exam.divert("new.task = 'fails'");
    let config = exam.config().replace(
        "backoff =",
        "attempts = 100000, hold_after = \"0s\", backoff =",
    );
    let mut first = Daemon::start(&config);
    exam.insert(1);
    exam.wait_for_pushed(1).await;
    let mut second = Daemon::start(&config);
    second
        .wait_for_log("that it stands by", |record| says(record, "standing by"))
        .await;
    exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task, key, run_at)
         select 'n' || n, n % 7, now() + interval '3 seconds' + n * interval '10 milliseconds' from generate_series(1, {TASKS}) n;
         insert into aftercommit.outbox (task, key) select 'fails', 'k' from generate_series(1, 5)"
    ));
    // Of five tasks of a failing key, and of those whose time has come.
    exam.wait_for_pushed(1 + TASKS / 3).await;
    first.kill9();
    let killed = Instant::now();
    let before = exam.pushed().await;
    exam.wait_for_pushed(before + 20).await;
    let took = killed.elapsed();
    eprintln!("took over within {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    exam.bind();
    exam.nothing_left().await;
    let (all, different) = (exam.pushed().await, exam.different().await);
    assert_eq!(different, TASKS + 6);
    eprintln!("{} came twice", all - different);
    // What was under way when the first one was killed.
    assert!(all - different <= 30, "{all} of {different}");
    assert!(second.running());
    assert_discreet(&second);
}
