//! Rows 10 and 13: what happens to the broker.

use std::time::{Duration, Instant};

use super::sheet::{Sheet, sit};
use super::trial::Trial;
use super::{BROKER_BACK, Outlet, by_profile};
use crate::support::exam::IN_FLIGHT;
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::wait::{PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_10() {
    sit("10", "kill -9 of a durable broker", kills).await;
}

async fn kills(sheet: Sheet) {
    let rounds = by_profile(4, 50);
    let mut trial = Trial::durable(&sheet);
    let mut random = trial.exam.random(0);
    let config = trial.config();
    let life = trial.start(&config);
    let load = trial.load();
    for round in 0..rounds {
        let before = trial.different().await;
        trial.wait_for(before + 1).await;
        tokio::time::sleep(Duration::from_millis(random.u64(..200))).await;
        trial.exam.redis.kill9();
        if round == 0 {
            let down = life.peer_down();
            tokio::time::sleep(Duration::from_secs(3)).await;
            life.peer_up(&down);
        }
        trial.exam.redis.restart();
        trial.recovery(Instant::now(), BROKER_BACK).await;
    }
    load.stop().await;
    sheet.at_least("kills", rounds, rounds);
    let duplicates = Outlet::Redis.duplicates(rounds * IN_FLIGHT);
    trial.conclude(life, duplicates).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_13() {
    sit("13", "the broker applies, its answer is lost", lost_answers).await;
}

async fn lost_answers(sheet: Sheet) {
    let rounds = by_profile(3, 40);
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let proxy = Proxy::start(trial.exam.redis.port());
    let redis = trial.exam.redis.url_through(proxy.port(), 0);
    let config = trial.config_through(&trial.exam.postgres_url(), &redis);
    let life = trial.start(&config);
    let load = trial.load();
    // Of tasks that were applied without an answer; some of them were answered just before.
    let mut unanswered = 0;
    for _ in 0..rounds {
        // About nine batches are answered.
        let before = trial.different().await;
        trial.wait_for(before + 250).await;
        let before = trial.deliveries().await.len();
        proxy.set(Way::Down, Fault::BlackHole);
        // The lane waits for an answer that will not come, and what is committed meanwhile waits behind it.
        eventually(PATIENCE, "tasks that wait", || async {
            let written = trial.exam.written().await.len();
            (written > trial.exam.pushed().await + 100).then_some(())
        })
        .await;
        proxy.reset();
        unanswered += trial.deliveries().await.len() - before;
        proxy.pass();
        trial.recovery(Instant::now(), BROKER_BACK).await;
    }
    load.stop().await;
    sheet.at_least("applied around a lost answer", unanswered, rounds);
    trial
        .conclude(life, Outlet::Redis.duplicates(unanswered))
        .await;
}
