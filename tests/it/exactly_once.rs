//! Nothing is pushed to Redis twice: under lost answers, kill -9 of the daemon and of Postgres, failing lists, and with
//! tasks that go by the hold table. And where that ends, at a Redis that has lost its notes, how much comes again.

use std::time::Duration;

use redis::AsyncCommands;

use crate::support::daemon::Daemon;
use crate::support::exam::{Exam, IN_FLIGHT, LIST, assert_discreet, says};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, eventually};

/// How many messages there are, and of how many different tasks.
async fn counts(exam: &Exam) -> (usize, usize) {
    (exam.pushed().await, exam.different().await)
}

/// How often the daemon's sink was away, and how many tasks it did not send, because they were there.
fn skipped(daemon: &Daemon) -> (usize, u64) {
    let records = daemon.records();
    let away = records.iter().filter(|record| says(record, "away")).count();
    let had = records
        .iter()
        .filter(|record| says(record, "had them already"))
        .filter_map(|record| record["tasks"].as_u64());
    (away, had.sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_answer_in_ten_is_lost() {
    let mut exam = Exam::start();
    let proxy = Proxy::start(exam.redis.port());
    let load = exam.load(2, Duration::from_millis(100));
    let url = exam.redis.url_through(proxy.port(), 0);
    let mut daemon = Daemon::start(&exam.config_through(&exam.postgres_url(), &url));
    let mut random = exam.random(0);
    for _ in 0..15 {
        let (before, connections) = (exam.pushed().await, proxy.accepted());
        exam.wait_for_pushed(before + 1).await;
        tokio::time::sleep(Duration::from_millis(random.u64(..100))).await;
        // A batch's whole answer has about a hundred bytes.
        proxy.set(Way::Down, Fault::CutAfter(random.u64(..100)));
        eventually(PATIENCE, "a new connection", || async {
            (proxy.accepted() > connections).then_some(())
        })
        .await;
        proxy.pass();
    }
    load.stop().await;
    let receipt = exam.receipt().await;
    exam.nothing_left().await;
    let (away, had) = skipped(&daemon);
    eprintln!("{away} outages, {had} tasks not sent again");
    assert!(had > 0, "no answer of a batch was lost");
    receipt.assert_sound("lost answers", 0);
    assert!(daemon.terminate().await.success());
    assert_discreet(&daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_the_daemon_under_load() {
    const ROUNDS: usize = 40;
    let mut exam = Exam::start();
    let mut random = exam.random(0);
    let load = exam.load(3, Duration::from_millis(60));
    let mut known = 0;
    for round in 0..ROUNDS {
        let before = exam.pushed().await;
        let mut daemon = Daemon::start(&exam.config());
        if round % 4 != 0 {
            exam.wait_for_pushed(before + 1).await;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(..250))).await;
        daemon.kill9();
        known += skipped(&daemon).1;
        assert_discreet(&daemon);
    }
    load.stop().await;
    let mut daemon = Daemon::start(&exam.config());
    let receipt = exam.receipt().await;
    exam.nothing_left().await;
    known += skipped(&daemon).1;
    eprintln!("{known} tasks not sent again");
    assert!(known > 0, "no kill has left a task in doubt");
    receipt.assert_sound("kill -9 of the daemon", 0);
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_the_middle_of_a_large_transaction() {
    const ROWS: usize = 60_000;
    let exam = Exam::start();
    exam.bulk(ROWS);
    let mut known = 0;
    for part in 1..=4 {
        let mut daemon = Daemon::start(&exam.config());
        exam.wait_for_pushed(ROWS * part / 5).await;
        daemon.kill9();
        known += skipped(&daemon).1;
    }
    let mut daemon = Daemon::start(&exam.config());
    exam.nothing_left().await;
    known += skipped(&daemon).1;
    eprintln!("{known} tasks not sent again");
    assert!(known as usize > ROWS, "the transaction comes again, whole");
    assert_eq!(counts(&exam).await, (ROWS, ROWS));
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_postgres_and_of_both() {
    const ROUNDS: usize = 6;
    let mut exam = Exam::start();
    let keep = |exam: &Exam| format!("{}\n[outbox]\nretention = \"keep\"\n", exam.config());
    let mut random = exam.random(0);
    let mut committed = 0;
    // Rows that stay, and rows that are deleted: the position is written down at other times.
    let mut daemon = Daemon::start(&exam.config());
    for round in 0..2 * ROUNDS {
        if round == ROUNDS {
            exam.nothing_left().await;
            assert!(daemon.terminate().await.success());
            daemon = Daemon::start(&keep(&exam));
        }
        for _ in 0..20 {
            let rows = random.usize(1..200);
            exam.bulk(rows);
            committed += rows;
        }
        let before = exam.pushed().await;
        exam.wait_for_pushed((before + 1).min(committed)).await;
        tokio::time::sleep(Duration::from_millis(random.u64(..100))).await;
        exam.postgres.kill9();
        if round % 2 == 1 {
            daemon.kill9();
        }
        exam.postgres.restart();
        if round % 2 == 1 {
            let config = if round < ROUNDS {
                exam.config()
            } else {
                keep(&exam)
            };
            daemon = Daemon::start(&config);
        }
    }
    exam.wait_for_pushed(committed).await;
    exam.insert(1);
    exam.wait_for_pushed(committed + 1).await;
    assert_eq!(counts(&exam).await, (committed + 1, committed + 1));
    assert!(daemon.terminate().await.success());
    assert_discreet(&daemon);
}

/// One task in ten goes to a list of the wrong type, by way of the hold, while the daemon is killed and answers are lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_list_the_hold_and_kills() {
    const ROUNDS: usize = 12;
    const ROWS: usize = 400;
    let exam = Exam::start();
    let proxy = Proxy::start(exam.redis.port());
    let url = exam.redis.url_through(proxy.port(), 0);
    let config = exam.config_through(&exam.postgres_url(), &url).replace(
        "\"50ms..500ms\"",
        "\"20ms..100ms\", hold_after = \"50ms\", attempts = 10000",
    );
    let mut connection = exam.redis.connection().await;
    let () = connection.set("taken", "by another").await.expect("SET");
    let mut random = exam.random(0);
    let mut known = 0;
    for round in 0..ROUNDS {
        exam.postgres.psql(&format!(
            "do $$ begin for n in 1 .. {ROWS} loop
               insert into aftercommit.outbox (task, key, queue)
               values ('exam.single', n % 50, case when n % 10 = 0 then 'taken' end);
               commit;
             end loop; end $$"
        ));
        let before = exam.pushed().await;
        let mut daemon = Daemon::start(&config);
        exam.wait_for_pushed(before + 1).await;
        tokio::time::sleep(Duration::from_millis(random.u64(..300))).await;
        if round % 3 == 0 {
            proxy.set(Way::Down, Fault::CutAfter(random.u64(..400)));
            tokio::time::sleep(Duration::from_millis(random.u64(..300))).await;
        }
        daemon.kill9();
        known += skipped(&daemon).1;
        proxy.pass();
        // Mended for a moment, now and then: what waits in the hold comes through, in parts.
        if round % 4 == 3 {
            let () = connection.rename("taken", "mended").await.expect("RENAME");
            let mut daemon = Daemon::start(&config);
            tokio::time::sleep(Duration::from_millis(random.u64(200..600))).await;
            daemon.kill9();
            known += skipped(&daemon).1;
            let length: usize = connection.llen("taken").await.unwrap_or(0);
            if length > 0 {
                let () = connection
                    .rename("taken", format!("part-{round}"))
                    .await
                    .expect("RENAME");
            }
            let () = connection.set("taken", "again").await.expect("SET");
        }
    }
    let () = connection.del("taken").await.expect("DEL");
    let mut daemon = Daemon::start(&config);
    exam.nothing_left().await;
    known += skipped(&daemon).1;
    assert!(daemon.terminate().await.success());
    let mut ids = exam.redis.ids(0, LIST);
    let direct = ids.len();
    for list in ["taken", "part-3", "part-7", "part-11"] {
        ids.extend(exam.redis.ids(0, list));
    }
    eprintln!(
        "{direct} direct, {} by the hold, {known} not sent again",
        ids.len() - direct
    );
    assert_eq!(ids.len(), ROUNDS * ROWS);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), ROUNDS * ROWS);
}

/// The answer is lost, and Redis stays away: the batch in doubt goes to the hold with all the rest, and comes from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_in_doubt_when_it_spilled_does_not_come_again() {
    let mut exam = Exam::start();
    let proxy = Proxy::start(exam.redis.port());
    let url = exam.redis.url_through(proxy.port(), 0);
    let config = exam
        .config_through(&exam.postgres_url(), &url)
        .replace("\"50ms..500ms\"", "\"50ms..500ms\", hold_after = \"300ms\"");
    let load = exam.load(2, Duration::from_millis(20));
    let mut daemon = Daemon::start(&config);
    for round in 0..4 {
        let before = exam.pushed().await;
        exam.wait_for_pushed(before + 100).await;
        // Applied, and not answered.
        proxy.set(Way::Down, Fault::CutAfter(30));
        daemon
            .wait_for_log("the outage", |record| says(record, "the sink is away"))
            .await;
        proxy.refuse();
        if round % 2 == 1 {
            // What was not confirmed comes again, and goes to the hold without a look at what is there.
            daemon.kill9();
            assert_discreet(&daemon);
            daemon = Daemon::start(&config);
        }
        let held = "select count(*) > 200 from aftercommit.hold";
        eventually(PATIENCE, "tasks in the hold", || async {
            (exam.postgres.psql(held) == "t").then_some(())
        })
        .await;
        proxy.pass();
    }
    load.stop().await;
    let receipt = exam.receipt().await;
    exam.nothing_left().await;
    eprintln!("{:?}", skipped(&daemon));
    receipt.assert_sound("spilled in doubt", 0);
    assert!(daemon.terminate().await.success());
    assert_discreet(&daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_routes_change_nothing() {
    const ROUNDS: usize = 8;
    let mut exam = Exam::start();
    let load = exam.load(3, Duration::from_millis(60));
    let first = "[[route]]\ntask = \"exam.*\"\nsink = \"workers\"\n\n[[route]]\ntask = \"*\"";
    let other = exam.config().replacen("[[route]]\ntask = \"*\"", first, 1);
    let mut random = exam.random(0);
    for round in 0..ROUNDS {
        let before = exam.pushed().await;
        let config = if round % 2 == 0 {
            exam.config()
        } else {
            other.clone()
        };
        let mut daemon = Daemon::start(&config);
        exam.wait_for_pushed(before + 1).await;
        tokio::time::sleep(Duration::from_millis(random.u64(..200))).await;
        daemon.kill9();
    }
    load.stop().await;
    let mut daemon = Daemon::start(&exam.config());
    exam.receipt().await.assert_sound("changed routes", 0);
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_redis_and_another_one_get_again_what_was_in_flight() {
    let exam = Exam::start();
    let mut connection = exam.redis.connection().await;
    // Nothing in flight: nothing comes again.
    let mut daemon = Daemon::start(&exam.config());
    exam.insert(1_000);
    exam.wait_for_pushed(1_000).await;
    exam.nothing_left().await;
    let () = connection.flushall().await.expect("FLUSHALL");
    exam.insert(500);
    exam.wait_for_pushed(500).await;
    exam.nothing_left().await;
    assert_eq!(counts(&exam).await, (500, 500));

    // Killed at work, and Redis has lost what it had: what was not written down comes again, and all the rest.
    exam.insert(5_000);
    exam.wait_for_pushed(2_000).await;
    daemon.kill9();
    let pushed = exam.pushed().await - 500;
    let () = connection.flushall().await.expect("FLUSHALL");
    let left: usize = exam
        .postgres
        .psql("select count(*) from aftercommit.outbox")
        .parse()
        .expect("a number");
    let mut daemon = Daemon::start(&exam.config());
    exam.nothing_left().await;
    let (again, different) = counts(&exam).await;
    eprintln!("{pushed} were pushed, {left} were left in the outbox, {again} came after the flush");
    assert_eq!(again, different);
    assert!(again >= 5_000 - pushed, "something was lost");
    assert!(
        again <= left + IN_FLIGHT,
        "more than the unsettled ones came again"
    );

    // The same with a Redis that has never had anything.
    let other = Redis::start();
    exam.insert(5_000);
    exam.wait_for_pushed(again + 2_000).await;
    daemon.kill9();
    let pushed = exam.pushed().await - again;
    let left: usize = exam
        .postgres
        .psql("select count(*) from aftercommit.outbox")
        .parse()
        .expect("a number");
    let config = exam.config_through(&exam.postgres_url(), &other.url(0));
    let mut daemon = Daemon::start(&config);
    exam.nothing_left().await;
    assert!(daemon.terminate().await.success());
    let elsewhere = other.ids(0, LIST);
    let here = exam.redis.ids(0, LIST).split_off(again);
    let repeated = elsewhere.iter().filter(|id| here.contains(id)).count();
    eprintln!(
        "{pushed} here, {} elsewhere, {repeated} at both",
        elsewhere.len()
    );
    assert_eq!(here.len() + elsewhere.len() - repeated, 5_000);
    assert!(repeated <= left + IN_FLIGHT);
}
