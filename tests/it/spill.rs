//! A sink that is away for long: its tasks go to the hold table and come back in order, and nobody else notices.

use std::time::{Duration, Instant};

use crate::support::daemon::Daemon;
use crate::support::exam::{Exam, IN_FLIGHT, assert_discreet, says};
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, eventually};

/// What the server keeps for the slot while a sink is away: it does not grow with the outage.
const WAL_KEPT: u64 = 32 << 20;

/// The exam's configuration, with its sink behind the proxy, and `other.*` for another one.
fn config(exam: &Exam, proxy: &Proxy, other: &Redis) -> String {
    let broker = exam.redis.url_through(proxy.port(), 0);
    let config = exam.config_through(&exam.postgres_url(), &broker);
    config
        .replace(
            "[[route]]",
            &format!(
                "[sink.celery.other]\nbroker_url = \"{}\"\n\n[[route]]\ntask = \"other.*\"\nsink = \"other\"\n\n[[route]]",
                other.url(0)
            ),
        )
        .replace("backoff =", "hold_after = \"1s\", backoff =")
}

/// Bytes of WAL that the server keeps for the slot.
fn kept(exam: &Exam) -> u64 {
    let sql = "select pg_current_wal_lsn() - restart_lsn from pg_replication_slots";
    exam.postgres.psql(sql).parse().expect("bytes")
}

/// Commits tasks for the other sink, one a transaction; how many of them come there in a second.
async fn others_rate(exam: &Exam, other: &Redis, sent: &mut usize) -> f64 {
    const TASKS: usize = 2_000;
    let start = Instant::now();
    exam.postgres.psql(&format!(
        "do $$ begin
           perform set_config('synchronous_commit', 'off', false);
           for n in 1 .. {TASKS} loop
             insert into aftercommit.outbox (task, key) values ('other.task', n % 100);
             commit;
           end loop;
         end $$"
    ));
    *sent += TASKS;
    let connection = other.connection().await;
    eventually(PATIENCE, "the other sink's tasks", || {
        let (mut connection, sent) = (connection.clone(), *sent);
        async move {
            let come: usize = redis::AsyncCommands::llen(&mut connection, "celery")
                .await
                .ok()?;
            (come >= sent).then_some(())
        }
    })
    .await;
    TASKS as f64 / start.elapsed().as_secs_f64()
}

async fn wait_for_held(exam: &Exam, least: usize) {
    exam.wait_for_answer(
        &format!("select count(*) >= {least} from aftercommit.hold"),
        "t",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_spills_and_drains_in_order_through_restarts() {
    let mut exam = Exam::start();
    let other = Redis::start();
    let proxy = Proxy::start(exam.redis.port());
    let config = config(&exam, &proxy, &other);
    let mut sent = 0;
    let mut daemon = Daemon::start(&config);
    let load = exam.load(2, Duration::from_millis(50));
    exam.wait_for_pushed(200).await;
    let with_both = others_rate(&exam, &other, &mut sent).await;

    proxy.refuse();
    wait_for_held(&exam, 500).await;
    // The machine has other things to do, too.
    let mut beside = 0.0;
    for _ in 0..4 {
        if beside < with_both / 2.0 {
            beside = others_rate(&exam, &other, &mut sent).await;
        }
    }
    eprintln!("the other sink: {with_both:.0} tasks a second, {beside:.0} while one is away");
    assert!(beside > with_both / 2.0, "{beside} of {with_both}");
    let mut most_kept = kept(&exam);
    // Restarts while it spills.
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);
    let mut daemon = Daemon::start(&config);
    wait_for_held(&exam, 1_500).await;
    most_kept = most_kept.max(kept(&exam));
    daemon.kill9();
    let mut daemon = Daemon::start(&config);
    wait_for_held(&exam, 2_500).await;
    let mut writer = exam.writer(0).await;
    writer.insert(5_000).await.expect("rows");
    wait_for_held(&exam, 7_500).await;
    most_kept = most_kept.max(kept(&exam));
    eprintln!("{most_kept} bytes of WAL kept");
    assert!(most_kept < WAL_KEPT, "{most_kept}");
    assert_eq!(
        exam.postgres
            .psql("select max(attempts) from aftercommit.hold"),
        "0",
        "an outage counts for nobody"
    );
    let records = daemon.records();
    let said = records
        .iter()
        .filter(|record| says(record, "go to the hold table"));
    assert_eq!(said.count(), 1, "{}", daemon.tail());

    // Restarts while it drains.
    let before = exam.pushed().await;
    proxy.pass();
    exam.wait_for_pushed(before + 500).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_discreet(&daemon);
    let mut daemon = Daemon::start(&config);
    let before = exam.pushed().await;
    exam.wait_for_pushed(before + 500).await;
    daemon.kill9();
    let daemon = Daemon::start(&config);
    exam.wait_for_answer("select count(*) from aftercommit.hold", "0")
        .await;
    load.stop().await;
    let receipt = exam.receipt().await;
    // Two kills; what was released from the hold when the second one came counts too.
    receipt.assert_sound("an outage with restarts", IN_FLIGHT + 4_096);
    exam.nothing_left().await;
    assert_discreet(&daemon);
}

/// Long before `hold_after`, the WAL that the server keeps makes a stalled sink spill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_lags_makes_a_stalled_sink_spill() {
    let exam = Exam::start();
    let proxy = Proxy::start(exam.redis.port());
    let broker = exam.redis.url_through(proxy.port(), 0);
    let config = exam
        .config_through(&exam.postgres_url(), &broker)
        .replace("backoff =", "hold_after = \"1h\", backoff =")
        .replace("in_flight =", "slot_lag = \"24MiB\"\nin_flight =");
    let mut daemon = Daemon::start(&config);
    exam.insert(1);
    exam.wait_for_pushed(1).await;
    proxy.refuse();
    exam.insert(20);
    daemon
        .wait_for_log("the outage", |record| says(record, "the sink is away"))
        .await;
    assert_eq!(
        exam.postgres.psql("select count(*) from aftercommit.hold"),
        "0"
    );
    exam.postgres.psql("create table foreign_rows (text text)");
    let foreign = || {
        exam.postgres.psql(
            "insert into foreign_rows select repeat(md5(n::text), 32) from generate_series(1, 16000) n",
        )
    };
    foreign();
    foreign();
    let record = daemon
        .wait_for_log("the reason", |record| says(record, "slot_lag"))
        .await;
    assert_eq!(record["limit"], 24 << 20, "{record}");
    exam.wait_for_answer(
        "select count(*) || ' ' || max(attempts) from aftercommit.hold",
        "20 0",
    )
    .await;
    // The slot goes on. Where its restart is depends on running transactions, which the server logs twice a minute.
    eventually(PATIENCE, "the slot to go on", || async {
        foreign();
        exam.postgres.psql("checkpoint");
        (kept(&exam) < 24 << 20).then_some(())
    })
    .await;
    proxy.pass();
    exam.nothing_left().await;
    assert_eq!(exam.pushed().await, 21);
    assert_discreet(&daemon);
}

/// Connections to Postgres that have died without a word: the one that looks into the hold table, too, is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_before_postgres_does_not_keep_what_is_due() {
    let exam = Exam::start();
    let proxy = Proxy::start(exam.postgres.port());
    let url = exam
        .postgres_url()
        .replace(&exam.postgres.port().to_string(), &proxy.port().to_string());
    let daemon = Daemon::start(&exam.config_through(&url, &exam.redis.url(0)));
    exam.postgres.psql(
        "insert into aftercommit.outbox (task, run_at) values ('held', now() + interval '10 seconds')",
    );
    exam.wait_for_answer("select count(*) from aftercommit.hold", "1")
        .await;
    proxy.both(Fault::BlackHole);
    // As the walsender's silence is noticed, so is the keeper's.
    exam.wait_for_answer(
        "select count(*) from aftercommit.hold where due_at < now()",
        "1",
    )
    .await;
    let connections = proxy.accepted();
    eventually(PATIENCE, "a new attempt", || async {
        (proxy.accepted() > connections).then_some(())
    })
    .await;
    let back = Instant::now();
    proxy.pass();
    exam.wait_for_names(&["held"]).await;
    eprintln!("went on {:?} later", back.elapsed());
    exam.nothing_left().await;
    assert_discreet(&daemon);
}
