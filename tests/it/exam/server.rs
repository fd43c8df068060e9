//! Rows 4, 5, 6, 7 and 9: what happens to the Postgres server, with the daemon beside it.

use std::time::{Duration, Instant};

use super::exposure::Exposure;
use super::sheet::{Sheet, sit};
use super::trial::{Life, Trial};
use super::{DAEMON_BACK, Outlet, SERVER_BACK, by_profile, is_full};
use crate::support::proxy::{Fault, Proxy};
use crate::support::wait::{PATIENCE, eventually};

/// A server that hangs, or cannot be reached any more, is noticed within this time.
const NOTICED: Duration = Duration::from_secs(45);
/// As long as a server may take to shut down with us beside it.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// A checkpoint of ours every second at most; the rest is for a busy machine.
const CHECKPOINT: Duration = Duration::from_secs(2);
/// While its walsender is terminated twice a second, no longer pause between new deliveries.
const SILENCE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_04() {
    sit("4", "kill -9 of Postgres", kills).await;
}

async fn kills(sheet: Sheet) {
    let rounds = by_profile(3, 20);
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let mut random = trial.exam.random(0);
    let config = trial.config();
    let life = trial.start(&config);
    let load = trial.load();
    for round in 0..rounds {
        let before = trial.different().await;
        trial.wait_for(before + 1).await;
        let moment = Duration::from_millis(random.u64(..500));
        trial.look_on(moment).await;
        trial.exam.postgres.kill9();
        if round == 0 {
            let down = life.peer_down();
            tokio::time::sleep(Duration::from_secs(3)).await;
            life.peer_up(&down);
        }
        trial.exam.postgres.restart();
        trial.recovery(Instant::now(), SERVER_BACK).await;
    }
    load.stop().await;
    sheet.at_least("kills", rounds, rounds);
    trial.conclude(life, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_05() {
    sit(
        "5",
        "kill -9 of Postgres and the daemon together",
        both_killed,
    )
    .await;
}

async fn both_killed(sheet: Sheet) {
    let rounds = by_profile(4, 30);
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let mut random = trial.exam.random(0);
    let mut exposure = Exposure::default();
    let config = trial.config();
    let load = trial.load();
    for round in 0..rounds {
        let born = Instant::now();
        let mut life = trial.start(&config);
        trial.recovery(born, DAEMON_BACK).await;
        let moment = Duration::from_millis(random.u64(..2_500));
        trial.look_on(moment).await;
        match round % 2 {
            0 => {
                life.kill9();
                trial.exam.postgres.kill9();
            }
            _ => {
                trial.exam.postgres.kill9();
                life.kill9();
            }
        }
        let died = Instant::now();
        trial.exam.postgres.restart();
        // What the server wrote down of the slot may be old; ours is not.
        let position = "select greatest(
                (select lsn from aftercommit.checkpoint),
                (select confirmed_flush_lsn from pg_replication_slots)) - '0/0'";
        let position = trial.exam.postgres.psql(position).parse();
        let position = position.expect("a position");
        exposure
            .death_at(&mut trial, born..died, position, CHECKPOINT)
            .await;
    }
    let life = trial.start(&config);
    trial.recovery(Instant::now(), SERVER_BACK).await;
    load.stop().await;
    sheet.at_least("kills", rounds, rounds);
    let duplicates = Outlet::Redis.duplicates(exposure.allowed);
    trial.conclude(life, duplicates).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_06() {
    sit("6", "fast and smart stop of Postgres", stops).await;
}

async fn stops(sheet: Sheet) {
    let rounds = by_profile(1, 10);
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let config = trial.config();
    let life = trial.start(&config);
    for _ in 0..rounds {
        // Fast, under load.
        let load = trial.load();
        let before = trial.different().await;
        trial.wait_for(before + 100).await;
        let took = trial.exam.postgres.stop_fast().await;
        sheet.time("fast stop", took, SHUTDOWN);
        trial.exam.postgres.restart();
        trial.recovery(Instant::now(), SERVER_BACK).await;
        load.stop().await;
        // Fast, at rest.
        trial.check(0).await;
        let took = trial.exam.postgres.stop_fast().await;
        sheet.time("fast stop", took, SHUTDOWN);
        trial.exam.postgres.restart();
        // Smart: a server that waits for its clients, and we are the last one.
        let load = trial.load();
        trial.recovery(Instant::now(), SERVER_BACK).await;
        load.stop().await;
        let took = trial.exam.postgres.stop_smart().await;
        sheet.time("smart stop", took, SHUTDOWN);
        trial.exam.postgres.restart();
    }
    trial.conclude(life, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_07() {
    sit("7", "walsender terminated twice a second", walsenders).await;
}

async fn walsenders(sheet: Sheet) {
    let kills: u32 = by_profile(10, 120);
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let config = trial.config();
    let life = trial.start(&config);
    let load = trial.load();
    trial.wait_for(1).await;
    let client = trial.exam.postgres.client().await;
    let (start, mut known, mut new) = (Instant::now(), 0, Instant::now());
    let mut longest = Duration::ZERO;
    let mut killed = 0;
    for kill in 1..=kills {
        while start.elapsed() < kill * Duration::from_millis(500) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let different = trial.different().await;
            longest = longest.max(new.elapsed());
            if different > known {
                (known, new) = (different, Instant::now());
            }
        }
        let sql = "select pg_terminate_backend(active_pid) from pg_replication_slots where active";
        killed += client.query(sql, &[]).await.expect("the slot").len();
    }
    load.stop().await;
    sheet.at_least("kills", killed, kills as usize / 2);
    sheet.time("longest silence", longest, SILENCE);
    trial.conclude(life, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_09() {
    let both = |sheet: Sheet| async move {
        // Side by side: both wait, most of the time.
        tokio::join!(stopped(sheet.clone()), behind_a_black_hole(sheet));
    };
    sit("9", "Postgres hangs; the way to it is a black hole", both).await;
}

async fn stopped(sheet: Sheet) {
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let config = trial.config();
    let mut life = trial.start(&config);
    let load = trial.load();
    trial.wait_for(100).await;
    trial.exam.postgres.stop();
    hang(&sheet, &mut life).await;
    trial.exam.postgres.cont();
    trial.recovery(Instant::now(), SERVER_BACK).await;
    load.stop().await;
    trial.conclude(life, 0).await;
}

async fn behind_a_black_hole(sheet: Sheet) {
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let proxy = Proxy::start(trial.exam.postgres.port());
    let url = trial.exam.postgres_url_through(proxy.port());
    let config = trial.config_through(&url, &trial.exam.redis.url(0));
    let mut life = trial.start(&config);
    let load = trial.load();
    trial.wait_for(100).await;
    proxy.both(Fault::BlackHole);
    hang(&sheet, &mut life).await;
    // What the black hole took would be sent again by a real network; here those connections are dead.
    proxy.reset();
    proxy.pass();
    trial.recovery(Instant::now(), SERVER_BACK).await;
    load.stop().await;
    trial.conclude(life, 0).await;
}

/// The server does not answer from now on, for as long as the profile says.
async fn hang(sheet: &Sheet, life: &mut Life) {
    let (start, down) = (Instant::now(), life.peer_down());
    let length = by_profile(Duration::from_secs(4), Duration::from_secs(60));
    if is_full() {
        let gone = |record: &serde_json::Value| {
            let message = record["message"].as_str().unwrap_or_default();
            message.starts_with("no connection to Postgres")
        };
        eventually(PATIENCE, "word of a lost connection", || {
            let noticed = life.records().iter().any(gone);
            async move { noticed.then_some(()) }
        })
        .await;
        sheet.time("noticed", start.elapsed(), NOTICED);
    }
    tokio::time::sleep(length.saturating_sub(start.elapsed())).await;
    life.peer_up(&down);
}
