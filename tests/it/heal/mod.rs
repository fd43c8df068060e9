//! A lost slot: what is told of it, and how it is healed from the table. Row 17 of the exam loses slots under load.

mod in_doubt;
mod rows;

use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::exam::{Exam, IN_FLIGHT, assert_discreet, says};
use crate::support::postgres::Postgres;
use crate::support::wait::{PATIENCE, eventually};

/// The same configuration, with consent.
fn with_heal(config: &str) -> String {
    config.replacen("[postgres]\n", "[postgres]\nheal = true\n", 1)
}

/// The default: settled rows are deleted.
const DELETES: &str = "[outbox]";
const HEALING: &str = "making the slot again";
const HEALED: &str = "the slot is healed";

/// Takes the slot away, also from a walsender that reads it.
const DROP: &str = "do $$ begin
    for attempt in 1..1000 loop
      perform pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'aftercommit' and active;
      begin
        perform pg_drop_replication_slot('aftercommit');
        return;
      exception when object_in_use then perform pg_sleep(0.005);
      end;
    end loop;
    raise 'the slot is still in use';
  end $$";

fn count(daemon: &Daemon, words: &str) -> usize {
    let records = daemon.records();
    records.iter().filter(|record| says(record, words)).count()
}

/// Waits until the daemon has noted that all is settled which was in the table.
async fn wait_until_healed(daemon: &mut Daemon, server: &Postgres, times: usize) {
    eventually(PATIENCE, "the end of the healing", || {
        let done = count(daemon, HEALED) >= times;
        async move { done.then_some(()) }
    })
    .await;
    let mark = "select healing is null from aftercommit.checkpoint where slot = 'aftercommit'";
    assert_eq!(server.psql(mark), "t");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_the_middle_of_a_healing_loses_nothing() {
    const KILLS: usize = 4;
    let mut exam = Exam::start();
    let config = with_heal(&exam.config());
    exam.postgres.psql(DROP);
    let load = exam.load(3, Duration::ZERO);
    let rows = || exam.postgres.psql("select count(*) from exam.written");
    eventually(PATIENCE, "rows", || {
        let enough = rows().parse::<usize>().expect("a number") >= 12_000;
        async move { enough.then_some(()) }
    })
    .await;
    load.stop().await;
    let mut random = exam.random(7);
    let mut most = 0;
    for round in 0..KILLS {
        let before = exam.pushed().await;
        let mut daemon = Daemon::start(&config);
        // Some at work, and some as soon as the slot is there, or before.
        match round % 2 {
            0 => exam.wait_for_pushed(before + random.usize(1..1500)).await,
            _ => {
                daemon
                    .wait_for_log("the healing", |record| says(record, HEALING))
                    .await;
                tokio::time::sleep(Duration::from_millis(random.u64(..60))).await;
            }
        }
        daemon.kill9();
        most += IN_FLIGHT + exam.pushed().await - before;
        let mark = "select healing is not null from aftercommit.checkpoint";
        assert_eq!(exam.postgres.psql(mark), "t", "round {round}");
        assert_discreet(&daemon);
        exam.wait_until_idle().await;
    }
    let mut daemon = Daemon::start(&config);
    let log = daemon
        .wait_for_log("the healing", |record| says(record, HEALING))
        .await;
    assert!(
        log["cause"]
            .as_str()
            .expect("a cause")
            .contains("not all settled")
    );
    // The daemon lives, and its connections break.
    for connection in ["aftercommit", "aftercommit heal"] {
        let before = exam.pushed().await;
        let begun = count(&daemon, HEALING);
        exam.postgres.psql(&format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = '{connection}'"
        ));
        eventually(PATIENCE, "another healing", || {
            let again = count(&daemon, HEALING) > begun || count(&daemon, HEALED) > 0;
            async move { again.then_some(()) }
        })
        .await;
        most += IN_FLIGHT + exam.pushed().await - before;
    }
    wait_until_healed(&mut daemon, &exam.postgres, 1).await;
    let receipt = exam.receipt().await;
    receipt.assert_sound("kill -9 while healing", most);
    // Once it is healed, a start is a start like any other.
    assert!(daemon.terminate().await.success());
    let mut daemon = Daemon::start(&config);
    let streams = |record: &Value| says(record, "streaming");
    daemon.wait_for_log("the stream", streams).await;
    assert_eq!(count(&daemon, HEALING), 0, "{}", daemon.tail());
}

/// Two daemons find that the slot is gone: one of them heals it, the other one stands by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_heal_a_slot_once() {
    let mut exam = Exam::start();
    let config = with_heal(&exam.config());
    let load = exam.load(2, Duration::from_millis(60));
    exam.postgres.psql(DROP);
    let mut daemons = [Daemon::start(&config), Daemon::start(&config)];
    eventually(PATIENCE, "the end of the healing", || {
        let done = daemons.iter().any(|daemon| count(daemon, HEALED) > 0);
        async move { done.then_some(()) }
    })
    .await;
    // It may take two attempts: the other one may have caught the new slot before it was read, and left it again.
    let healed: usize = daemons.iter().map(|daemon| count(daemon, HEALED)).sum();
    assert_eq!(healed, 1);
    load.stop().await;
    let receipt = exam.receipt().await;
    receipt.assert_sound("two daemons", 0);
    for daemon in &mut daemons {
        assert!(daemon.terminate().await.success());
    }
}
