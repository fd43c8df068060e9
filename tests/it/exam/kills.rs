//! Rows 1, 2 and 3: the daemon is killed at random and at named points, and stopped under load.

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::exposure::Exposure;
use super::outlet::over;
use super::sheet::{Sheet, sit};
use super::trial::Trial;
use super::{DAEMON_BACK, Outlet, by_profile};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::wait::PATIENCE;

over! {"1", "kill -9 of the daemon at random moments", random_kills;
    row_01_celery_redis: Redis, Always;
    row_01_celery_rabbitmq: CeleryRabbitMq, Always;
    row_01_amqp: Amqp, InFull;
    row_01_redis_stream: RedisStream, Always;
    row_01_redis_list: RedisList, InFull;
    row_01_nats: JetStream, Always;
    row_01_webhook: Webhook, Always;
    row_01_exec: Exec, InFull;
    row_01_stdout: Stdout, Always;
    row_01_sidekiq: Sidekiq, InFull;
    row_01_dramatiq_redis: DramatiqRedis, InFull;
    row_01_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_01_bullmq: BullMq, InFull;
    row_01_kafka: Kafka, InFull;
    row_01_sqs: Sqs, InFull;
    row_01_sqs_fifo: SqsFifo, InFull;
}

async fn random_kills(sheet: Sheet, outlet: Outlet) {
    let quick = if outlet == Outlet::Redis { 12 } else { 4 };
    let rounds = by_profile(quick, 200);
    let mut trial = Trial::new(&sheet, outlet);
    let mut random = trial.exam.random(0);
    let mut exposure = Exposure::default();
    let config = trial.config();
    let load = trial.load();
    for round in 0..rounds {
        let born = Instant::now();
        let mut life = trial.start(&config);
        // Two in three are killed at work, the others wherever they are in their start.
        if round % 3 != 0 {
            trial.recovery(born, DAEMON_BACK).await;
        }
        let moment = Duration::from_millis(random.u64(..600));
        trial.look_on(moment).await;
        life.kill9();
        exposure.death(&mut trial, born).await;
    }
    let life = trial.start(&config);
    load.stop().await;
    sheet.at_least("kills", rounds, rounds);
    let duplicates = outlet.duplicates(exposure.allowed);
    trial.conclude(life, duplicates).await;
}

/// Points of `failpoint`, and how often each is passed at most before the daemon dies there.
const POINTS: [(&str, usize); 6] = [
    ("in-transaction", 2_000),
    ("acknowledged", 20),
    ("recorded", 10),
    ("settling", 10),
    ("settled", 10),
    ("draining", 1),
];

over! {"2", "kill -9 of the daemon at named points", named_points;
    row_02_celery_redis: Redis, Always;
    row_02_celery_rabbitmq: CeleryRabbitMq, InFull;
    row_02_amqp: Amqp, InFull;
    row_02_redis_stream: RedisStream, InFull;
    row_02_redis_list: RedisList, InFull;
    row_02_nats: JetStream, InFull;
    row_02_webhook: Webhook, InFull;
    row_02_sidekiq: Sidekiq, InFull;
    row_02_dramatiq_redis: DramatiqRedis, InFull;
    row_02_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_02_bullmq: BullMq, InFull;
    row_02_kafka: Kafka, InFull;
    row_02_sqs: Sqs, InFull;
    row_02_sqs_fifo: SqsFifo, InFull;
}

async fn named_points(sheet: Sheet, outlet: Outlet) {
    let rounds = by_profile(2, 20);
    let mut trial = Trial::new(&sheet, outlet);
    let mut random = trial.exam.random(0);
    let mut exposure = Exposure::default();
    // Far enough away for something to be in flight all the time.
    let proxy = Proxy::start(trial.broker_port());
    proxy.set(Way::Down, Fault::Delay(Duration::from_millis(20)));
    let config = trial.config_by(&trial.exam.postgres_url(), Some(proxy.port()));
    let load = trial.load();
    for (point, most) in POINTS {
        let most = outlet.gently(most).max(1);
        let mut deaths = 0;
        for _ in 0..5 * rounds {
            if deaths == rounds {
                break;
            }
            let failpoint = format!("{point}:{}", random.usize(1..=most));
            let born = Instant::now();
            let mut life = trial.start_with(&config, &[("AFTERCOMMIT_FAILPOINT", &failpoint)]);
            if point == "draining" {
                let before = trial.different().await;
                trial.wait_for(before + 1).await;
                life.signal(Signal::TERM);
            }
            while life.running() && born.elapsed() < PATIENCE {
                trial.look_on(Duration::from_millis(20)).await;
            }
            let status = life.ended(PATIENCE).await;
            exposure.death(&mut trial, born).await;
            match status.signal() {
                Some(_) => deaths += 1,
                // Nothing was in flight: it was over before the point.
                None => life.exits(status, 0),
            }
        }
        sheet.at_least("deaths at each", deaths, rounds);
    }
    let life = trial.start(&config);
    load.stop().await;
    let duplicates = outlet.duplicates(exposure.allowed);
    trial.conclude(life, duplicates).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_03() {
    sit("3", "SIGTERM under load", sigterm).await;
}

async fn sigterm(sheet: Sheet) {
    let rounds = by_profile(6, 100);
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let mut random = trial.exam.random(0);
    let config = trial.config();
    let load = trial.load();
    for round in 0..rounds {
        let born = Instant::now();
        let mut life = trial.start(&config);
        trial.recovery(born, DAEMON_BACK).await;
        let moment = Duration::from_millis(random.u64(..300));
        trial.look_on(moment).await;
        match round % 2 {
            0 => life.stop().await,
            _ => {
                life.signal(Signal::INT);
                life.ends(0).await;
            }
        }
        // That nothing above it was left out, the checker tells.
        let confirmed = trial.exam.confirmed_at_rest().await;
        let deliveries = trial.deliveries().await.iter();
        let beyond = deliveries.filter(|it| it.lsn >= confirmed).count();
        sheet.count("delivered and not confirmed", beyond, 0);
    }
    let life = trial.start(&config);
    load.stop().await;
    sheet.at_least("stops", rounds, rounds);
    trial.conclude(life, 0).await;
}
