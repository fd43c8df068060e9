//! Row 15: a broker that is there, and has no room, or lacks what messages go to.

use std::time::{Duration, Instant};

use super::outlet::over;
use super::sheet::Sheet;
use super::trial::{Life, Trial};
use super::{BROKER_BACK, Outlet, by_profile};

over! {"15", "the broker has no room for messages", no_room;
    row_15_celery_redis: Redis, Always;
    row_15_redis_stream: RedisStream, InFull;
    row_15_redis_list: RedisList, InFull;
    row_15_celery_rabbitmq: CeleryRabbitMq, Always;
    row_15_amqp: Amqp, InFull;
    row_15_nats: JetStream, Always;
    row_15_sidekiq: Sidekiq, InFull;
    row_15_dramatiq_redis: DramatiqRedis, InFull;
    row_15_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_15_bullmq: BullMq, InFull;
    row_15_kafka: Kafka, InFull;
}

async fn no_room(sheet: Sheet, outlet: Outlet) {
    let rounds = by_profile(1, 5);
    let mut trial = Trial::own(&sheet, outlet);
    let config = trial.config();
    let life = trial.start(&config);
    let load = trial.load();
    for _ in 0..rounds {
        let before = trial.different().await;
        trial.wait_for(before + 200).await;
        trial.place.fill(&trial.exam);
        trial.wait_for_silence().await;
        be_calm(&mut trial, &life).await;
        let room = Instant::now();
        trial.place.make_room(&trial.exam);
        trial.recovery(room, BROKER_BACK).await;
    }
    load.stop().await;
    sheet.at_least("times full", rounds, rounds);
    none_is_dead(&trial);
    let duplicates = outlet.duplicates(rounds * outlet.in_hands());
    trial.conclude(life, duplicates).await;
}

over! {"15", "what messages go to is absent", absent;
    row_15_absent_nats: JetStream, Always;
    row_15_absent_kafka: Kafka, InFull;
    row_15_absent_sqs: Sqs, InFull;
}

async fn absent(sheet: Sheet, outlet: Outlet) {
    let mut trial = Trial::own(&sheet, outlet);
    trial.place.vanish(&trial.exam);
    let config = trial.config();
    let life = trial.start(&config);
    let load = trial.load();
    be_calm(&mut trial, &life).await;
    let come = trial.different().await;
    sheet.count("delivered to nowhere", come, 0);
    trial.place.appear(&trial.exam);
    trial.recovery(Instant::now(), BROKER_BACK).await;
    load.stop().await;
    none_is_dead(&trial);
    trial.conclude(life, 0).await;
}

/// It is tried again and again, and no more often than need be. What little comes fits: a smaller message, or memory that
/// was given back; the broker has said that it has it.
async fn be_calm(trial: &mut Trial, life: &Life) {
    let before = trial.different().await;
    let down = life.peer_down();
    trial
        .look_on(by_profile(Duration::from_secs(3), Duration::from_secs(20)))
        .await;
    life.peer_up(&down);
    let come = trial.different().await - before;
    if come > 0 {
        trial.sheet.note(format!("{come} had room meanwhile"));
    }
}

/// Nothing was wrong with any task.
fn none_is_dead(trial: &Trial) {
    let dead = "select count(*) from aftercommit.hold where state = 'dead'";
    let dead = trial.exam.postgres.psql(dead).parse().expect("a number");
    trial.sheet.count("dead", dead, 0);
}
