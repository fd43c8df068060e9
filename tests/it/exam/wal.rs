//! Rows 30 and 31: WAL that has nothing to do with the outbox, and commits that are decoded before they are visible.

use std::time::{Duration, Instant};

use super::sheet::{Sheet, sit};
use super::trial::{Life, Trial};
use super::{MEMORY, Outlet, by_profile};
use crate::support::daemon::init;
use crate::support::orders::{Probe, place_orders};
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::tasks::{Tasks, to_stdout};
use crate::support::wait::{PATIENCE, eventually};

/// How far the slot of an idle outbox may be behind.
const CLOSE: u64 = 16 << 20;
/// How long it may take to catch up with the last piece of foreign WAL.
const CATCHES_UP: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_30() {
    sit("30", "an idle outbox beside much foreign WAL", foreign_wal).await;
}

async fn foreign_wal(sheet: Sheet) {
    let pieces = by_profile(1, 20);
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    // A batch that Redis does not answer is not given up before the row is over: no task is sent twice.
    let config = trial
        .config()
        .replace("queue =", "timeout = \"10m\"\nqueue =");
    let life = trial.start(&config);
    let mut writer = trial.exam.writer(1).await;
    writer.insert(1).await.expect("a row");
    trial.wait_for(1).await;
    trial
        .exam
        .postgres
        .psql("create table noise (n int, filler text)");

    // Not a row in the outbox.
    let before = written(&trial);
    for _ in 0..pieces {
        be_busy(&trial);
        catch_up(&trial).await;
    }
    // One task that cannot be delivered.
    trial.exam.redis.stop();
    writer.insert(1).await.expect("a row");
    let commit = trial.exam.postgres.psql("select pg_current_wal_lsn()");
    for _ in 0..pieces {
        be_busy(&trial);
    }
    // The walsender has sent all of it, and has heard from us since.
    let postgres = &trial.exam.postgres;
    eventually(PATIENCE, "the walsender at the end of the WAL", || async {
        let sent = "select bool_and(sent_lsn >= pg_current_wal_lsn()) from pg_stat_replication";
        (postgres.psql(sent) == "t").then_some(())
    })
    .await;
    let end = postgres.psql("select clock_timestamp()");
    let heard = format!("select max(reply_time) > '{end}' from pg_stat_replication");
    eventually(PATIENCE, "a status update", || async {
        (postgres.psql(&heard) == "t").then_some(())
    })
    .await;
    let passed =
        format!("select (confirmed_flush_lsn >= '{commit}')::int from pg_replication_slots");
    let passed = postgres.psql(&passed).parse().expect("0 or 1");
    sheet.count("passed the task in flight", passed, 0);

    trial.exam.redis.cont();
    catch_up(&trial).await;
    let foreign = (written(&trial) - before) >> 20;
    sheet.at_least("MiB of foreign WAL", foreign as usize, 2 * 90 * pieces);
    trial.conclude(life, 0).await;
}

/// About 100 MB of WAL that has nothing to do with the outbox.
fn be_busy(trial: &Trial) {
    trial
        .exam
        .postgres
        .psql("insert into noise select n, repeat('x', 900) from generate_series(1, 100000) n");
    trial.exam.postgres.psql("truncate noise");
}

/// How much WAL there is, in bytes.
fn written(trial: &Trial) -> u64 {
    let sql = "select (pg_current_wal_lsn() - '0/0')::int8";
    trial.exam.postgres.psql(sql).parse().expect("a number")
}

/// Waits until the slot is close to the end of the WAL.
async fn catch_up(trial: &Trial) {
    let start = Instant::now();
    while trial.lag() > CLOSE && start.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    trial.sheet.wal("lag beside it", trial.lag(), CLOSE);
    trial.sheet.time("catches up", start.elapsed(), CATCHES_UP);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_31() {
    sit(
        "31",
        "synchronous replication with a slow standby",
        slow_standby,
    )
    .await;
}

async fn slow_standby(sheet: Sheet) {
    const CONTROL: usize = 1_000;
    let orders = by_profile(1_000, 10_000);
    let primary = Postgres::start(Options::default());
    primary.psql("create table public.orders (id int primary key)");
    let config = |more| to_stdout(&primary.url(SUPERUSER), "aftercommit", more);
    init(&config(""));
    let proxy = Proxy::start(primary.port());
    let _standby = primary.create_standby_through(proxy.port(), "standby", true);
    proxy.set(Way::Up, Fault::Delay(Duration::from_millis(5)));
    let probe = Probe::at(&primary).await;

    let (daemon, mut tasks) = Tasks::of(&config(""));
    let mut life = Life::watch(daemon, &sheet, MEMORY);
    let customers = place_orders(&primary, 0, orders).await;
    let too_early = probe.not_found(&mut tasks, orders).await;
    sheet.count("too early", too_early, 0);
    sheet.at_least("tasks", orders, orders);
    customers.join_all().await;
    life.stop().await;

    // What the gate is for: without it the same tasks come too early. On a busy machine it takes longer than 5 ms until
    // the probe has its task, and beside other tests often longer than 25.
    proxy.set(Way::Up, Fault::Delay(Duration::from_millis(25)));
    let (daemon, mut tasks) = Tasks::of(&config("[gate]\nvisibility = false"));
    let mut life = Life::watch(daemon, &sheet, MEMORY);
    let customers = place_orders(&primary, orders, CONTROL).await;
    let too_early = probe.not_found(&mut tasks, CONTROL).await;
    let least = by_profile(CONTROL / 20, CONTROL / 2);
    sheet.at_least("too early without the gate", too_early, least);
    customers.join_all().await;
    life.stop().await;
}
