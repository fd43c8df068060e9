//! Row 29: no room is left on the disk under the hold table, where the log goes, or for file descriptors.

use std::fs::File;
use std::io::Read as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use redis::AsyncCommands as _;
use serde_json::Value;

use super::sheet::{Sheet, sit};
use super::trial::{Life, Trial, edited};
use super::{BROKER_BACK, DAEMON_BACK, Outlet, by_profile};
use crate::support::disk::Disk;
use crate::support::exam::{IN_FLIGHT, LIST, says};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, eventually};

/// What the daemon says when it cannot write to the hold table.
const TOLD: &str = "what is settled cannot be written down";
/// The disk under the hold table, in MiB: at first, and when somebody has made room.
const SMALL: u32 = 32;
const LARGE: u32 = 1_024;
/// Rows of a transaction.
const AT_ONCE: usize = 500;
/// `[limits] in_flight`: so many that other sinks' tasks still pass when the disk is full.
const ROOM: usize = 20_000;
/// From commit to delivery at another sink, meanwhile.
const OTHERS: Duration = Duration::from_secs(1);
/// From when there is room to when the hold table grows again.
const GROWS: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_29_disk() {
    let name = "the disk under the hold table is full";
    sit("29", name, full_disk).await;
}

async fn full_disk(sheet: Sheet) {
    let disk = match Disk::mount(SMALL) {
        Ok(disk) => disk,
        Err(why) => return sheet.skip(format!("no disk can be mounted: {why}")),
    };
    let beyond = by_profile(ROOM, 5 * ROOM);
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    move_hold(&trial, &disk);
    let proxy = Proxy::start(trial.exam.redis.port());
    let other = Redis::start();
    let config = config(&trial, &proxy, &other);
    let mut life = trial.start(&config);
    let mut writer = trial.exam.writer(1).await;
    writer.insert(1).await.expect("a row");
    trial.wait_for(1).await;
    // Its answer has come, too, or it would go to the hold with the others.
    let left = "select count(*) from aftercommit.outbox";
    trial.exam.wait_for_answer(left, "0").await;
    let mut rows = 4 * AT_ONCE;
    proxy.refuse();
    writer.insert(rows).await.expect("rows");
    wait_for_held(&trial, rows).await;

    disk.fill();
    while warnings(&life).is_empty() {
        assert!(rows < ROOM / 2, "the disk is never full");
        writer.insert(AT_ONCE).await.expect("rows");
        rows += AT_ONCE;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let others_beside = others(&trial, &other, 100).await;
    sheet.time("another sink's tasks", others_beside, OTHERS);
    // The server is none the worse for it: not even what is in memory needs room on that disk.
    let client = trial.exam.postgres.client().await;
    let checkpoint = client.batch_execute("checkpoint").await;
    let failed = usize::from(checkpoint.is_err());
    sheet.count("checkpoints failed", failed, 0);
    let confirmed = trial.exam.confirmed();
    // More than there is room for in the daemon.
    for _ in 0..beyond / AT_ONCE {
        writer.insert(AT_ONCE).await.expect("rows");
        rows += AT_ONCE;
    }
    let down = life.peer_down();
    tokio::time::sleep(by_profile(Duration::from_secs(3), Duration::from_secs(30))).await;
    life.peer_up(&down);
    let moved = usize::from(trial.exam.confirmed() != confirmed);
    sheet.count("confirmed meanwhile", moved, 0);
    tells_once(&life);

    life.kill9();
    drop(life);
    let mut life = trial.start(&config);
    life.wait_for_log("the full disk", |record| says(record, TOLD))
        .await;
    disk.resize(LARGE);
    let there_is_room = Instant::now();
    life.wait_for_log("the end of it", |record| says(record, "written down again"))
        .await;
    sheet.time("grows again", there_is_room.elapsed(), GROWS);
    wait_for_held(&trial, rows).await;
    others(&trial, &other, 100).await;
    tells_once(&life);
    sheet.at_least("held", rows, 2 * AT_ONCE);

    proxy.pass();
    trial.recovery(Instant::now(), BROKER_BACK).await;
    trial.conclude(life, 0).await;
}

/// Two sinks, of which the outlet is behind the proxy.
fn config(trial: &Trial, proxy: &Proxy, other: &Redis) -> String {
    let broker = trial.exam.redis.url_through(proxy.port(), 0);
    let config = trial.config_through(&trial.exam.postgres_url(), &broker);
    let other_sink = format!(
        "[sink.celery.other]\nbroker_url = \"{}\"\n\n[[route]]\ntask = \"other.*\"\nsink = \"other\"\n\n[[route]]\ntask = \"*\"",
        other.url(0)
    );
    let config = edited(&config, "[[route]]\ntask = \"*\"", &other_sink);
    let config = edited(&config, "backoff =", "hold_after = \"1s\", backoff =");
    let limit = format!("in_flight = {IN_FLIGHT}");
    edited(&config, &limit, &format!("in_flight = {ROOM}"))
}

async fn wait_for_held(trial: &Trial, rows: usize) {
    let count = "select count(*) from aftercommit.hold";
    trial.exam.wait_for_answer(count, &rows.to_string()).await;
}

/// What the daemon has said of it, loudly.
fn warnings(life: &Life) -> Vec<Value> {
    let mut records = life.records();
    records.retain(|record| record["level"] == "WARN" && says(record, TOLD));
    records
}

/// It has said so once, and what to do.
fn tells_once(life: &Life) {
    let warnings = warnings(life);
    life.sheet().count("warnings", warnings.len(), 1);
    let clear = |record: &Value| {
        let words = record["error"].as_str().unwrap_or_default();
        words.contains("No space left on device") && words.contains("make room")
    };
    let unclear = warnings.iter().filter(|record| !clear(record)).count();
    life.sheet().count("unclear warnings", unclear, 0);
}

/// The hold table, and its indexes, on a disk of their own.
fn move_hold(trial: &Trial, disk: &Disk) {
    let postgres = &trial.exam.postgres;
    postgres.psql(&format!(
        "create tablespace small location '{}'",
        disk.path().display()
    ));
    postgres.psql("alter table aftercommit.hold set tablespace small");
    let indexes =
        "select indexrelid::regclass from pg_index where indrelid = 'aftercommit.hold'::regclass";
    for index in postgres.psql(indexes).lines() {
        postgres.psql(&format!("alter index {index} set tablespace small"));
    }
}

/// Commits tasks for another sink; how long until they are there.
async fn others(trial: &Trial, other: &Redis, tasks: usize) -> Duration {
    let start = Instant::now();
    let mut broker = other.connection().await;
    let before: usize = broker.llen(LIST).await.expect("LLEN");
    trial.exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task) select 'other.task' from generate_series(1, {tasks})"
    ));
    eventually(PATIENCE, "another sink's tasks", || {
        let mut broker = broker.clone();
        async move {
            let come: usize = broker.llen(LIST).await.expect("LLEN");
            (come >= before + tasks).then_some(())
        }
    })
    .await;
    start.elapsed()
}

/// Rows that nobody can take; the log has a line for each, so many that they fill its queue in the daemon.
const REFUSED: usize = 6_000;
/// What a pipe takes that nobody reads, in bytes; a little less, since lines are not cut.
const PIPE: usize = 60_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_29_log_full() {
    sit("29", "the disk under the log is full", |sheet| async move {
        let full = File::options().write(true).open("/dev/full");
        log_to(sheet, full.expect("/dev/full").into()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_29_log_blocked() {
    sit("29", "nobody reads the log's pipe", |sheet| async move {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        log_to(sheet.clone(), writer.into()).await;
        let mut log = Vec::new();
        { reader }.read_to_end(&mut log).expect("what was written");
        sheet.at_least("bytes in the pipe", log.len(), PIPE);
        sheet.count("bytes in the pipe, and no more", log.len(), 1 << 16);
    })
    .await;
}

/// Much is to be logged, and cannot be; tasks are dispatched all the same.
async fn log_to(sheet: Sheet, stderr: Stdio) {
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let config = trial.config();
    let life = trial.start_logging_to(stderr, &config);
    let load = trial.load();
    trial.wait_for(100).await;
    for _ in 0..by_profile(1, 10) {
        let before: usize = trial.exam.held().await.len();
        trial.exam.postgres.psql(&format!(
            "insert into aftercommit.outbox (task, options)
             select 'refused', '{{\"time_limits\": 3}}' from generate_series(1, {REFUSED})"
        ));
        wait_for_held(&trial, before + REFUSED).await;
        trial.recovery(Instant::now(), DAEMON_BACK).await;
    }
    load.stop().await;
    trial.conclude(life, 0).await;
}

/// So many file descriptors the daemon may have.
const DESCRIPTORS: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_29_descriptors() {
    let name = "64 file descriptors";
    sit("29", name, few_descriptors).await;
}

async fn few_descriptors(sheet: Sheet) {
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let (postgres, redis) = (
        Proxy::start(trial.exam.postgres.port()),
        Proxy::start(trial.exam.redis.port()),
    );
    let config = trial.config_through(
        &trial.exam.postgres_url_through(postgres.port()),
        &trial.exam.redis.url_through(redis.port(), 0),
    );
    let life = trial.start(&config);
    life.limit_descriptors(DESCRIPTORS as u64);
    let load = trial.load();
    trial.wait_for(100).await;
    let rounds = by_profile(10, 30);
    for _ in 0..rounds {
        postgres.reset();
        redis.reset();
        // How soon is not asked here: whatever breaks again and again is left alone for longer each time.
        let before = trial.different().await;
        trial.wait_for(before + 1).await;
        sheet.count("descriptors", life.descriptors(), DESCRIPTORS);
    }
    sheet.at_least("connections cut", rounds, 10);
    load.stop().await;
    trial.conclude(life, 0).await;
}
