//! Rows 8, 10, 11 and 13: what happens to the broker.

use std::time::{Duration, Instant};

use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;

use super::outlet::over;
use super::sheet::Sheet;
use super::trial::{Trial, edited};
use super::{BROKER_BACK, Outlet, by_profile, is_full};
use crate::support::exam::{IN_FLIGHT, LIST};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, eventually};

/// From commit to delivery at another sink, until it is known that one hangs: its timeout, and a little more. What is of
/// keys that are in its hands stays in the budget so long.
const OTHERS_AT_FIRST: Duration = Duration::from_secs(11);
/// From then on.
const OTHERS: Duration = Duration::from_secs(1);
/// `[limits] slot_lag`, in bytes: beyond it, stalled sinks spill.
const SLOT_LAG: u64 = 32 << 20;
/// How far the slot may fall behind while a broker is away, in bytes: the limit, and what arrives until all before it is
/// spilled. It does not grow with the outage; the rows of row 11 make some 200 MiB of WAL.
const LAG_WHILE_DOWN: u64 = 96 << 20;

over! {"8", "the broker hangs for 90 s, load goes on", hangs;
    row_08_celery_redis: Redis, Always;
    row_08_celery_rabbitmq: CeleryRabbitMq, InFull;
    row_08_amqp: Amqp, InFull;
    row_08_redis_stream: RedisStream, InFull;
    row_08_redis_list: RedisList, InFull;
    row_08_nats: JetStream, InFull;
    row_08_webhook: Webhook, InFull;
    row_08_sidekiq: Sidekiq, InFull;
    row_08_dramatiq_redis: DramatiqRedis, InFull;
    row_08_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_08_bullmq: BullMq, InFull;
    row_08_kafka: Kafka, InFull;
    row_08_sqs: Sqs, InFull;
    row_08_sqs_fifo: SqsFifo, InFull;
}

async fn hangs(sheet: Sheet, outlet: Outlet) {
    let length = by_profile(Duration::from_secs(3), Duration::from_secs(79));
    let mut trial = Trial::own(&sheet, outlet);
    let other = Redis::start();
    let other_sink = format!(
        "[sink.celery.other]\nbroker_url = \"{}\"\n\n[[route]]\ntask = \"other.*\"\nsink = \"other\"\n\n[[route]]\ntask = \"*\"",
        other.url(0)
    );
    let config = edited(&trial.config(), "[[route]]\ntask = \"*\"", &other_sink);
    let life = trial.start(&config);
    let load = trial.load();
    trial.wait_for(100).await;
    let walsender = |trial: &Trial| {
        let sql = "select active_pid from pg_replication_slots";
        trial.exam.postgres.psql(sql)
    };
    let reader = walsender(&trial);
    let mut others = Others::to(&other, &trial).await;
    let quiet = others.slowest(Duration::from_secs(2)).await;

    trial.stop_broker();
    let down = life.peer_down();
    let at_first = others.slowest(OTHERS_AT_FIRST).await;
    sheet.time("another sink's slowest at first", at_first, OTHERS_AT_FIRST);
    let beside = others.slowest(length).await;
    // Beside other tests the hanging sink may be known to hang only now.
    sheet.time(
        "another sink's slowest",
        beside,
        by_profile(OTHERS_AT_FIRST, OTHERS),
    );
    sheet.note(format!("{:.0} ms before", quiet.as_secs_f64() * 1_000.0));
    if is_full() {
        life.peer_up(&down);
    }
    let lost = usize::from(walsender(&trial) != reader);
    sheet.count("sessions lost", lost, 0);
    sheet.wal("lag while it hangs", trial.lag(), LAG_WHILE_DOWN);
    trial.cont_broker();
    trial.recovery(Instant::now(), BROKER_BACK).await;
    load.stop().await;
    // What was sent to it meanwhile it applies now: at first, and again whenever it had not answered in time.
    let attempts = 2 + (OTHERS_AT_FIRST + length).as_secs() as usize / 10;
    let duplicates = outlet.duplicates(attempts * outlet.in_hands());
    trial.conclude(life, duplicates).await;
}

/// Tasks for another sink, one after the other.
struct Others {
    client: tokio_postgres::Client,
    broker: MultiplexedConnection,
    sent: usize,
}

impl Others {
    async fn to(broker: &Redis, trial: &Trial) -> Others {
        Others {
            client: trial.exam.postgres.client().await,
            broker: broker.connection().await,
            sent: 0,
        }
    }

    /// Sends tasks for so long; from the commit to the delivery of the slowest.
    async fn slowest(&mut self, time: Duration) -> Duration {
        let (end, mut slowest) = (Instant::now() + time, Duration::ZERO);
        while Instant::now() < end {
            let insert = "insert into aftercommit.outbox (task) values ('other.task')";
            self.client.batch_execute(insert).await.expect("a row");
            let committed = Instant::now();
            self.sent += 1;
            loop {
                let come: usize = self.broker.llen(LIST).await.expect("LLEN");
                if come >= self.sent {
                    break;
                }
                assert!(
                    committed.elapsed() < PATIENCE,
                    "another sink's task is stuck"
                );
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            slowest = slowest.max(committed.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        slowest
    }
}

over! {"11", "the broker is away while 120,000 rows arrive", away;
    row_11_celery_redis: Redis, Always;
    row_11_celery_rabbitmq: CeleryRabbitMq, InFull;
    row_11_amqp: Amqp, InFull;
    row_11_redis_stream: RedisStream, InFull;
    row_11_redis_list: RedisList, InFull;
    row_11_nats: JetStream, InFull;
    row_11_webhook: Webhook, InFull;
    row_11_sidekiq: Sidekiq, InFull;
    row_11_dramatiq_redis: DramatiqRedis, InFull;
    row_11_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_11_bullmq: BullMq, InFull;
    row_11_kafka: Kafka, InFull;
    row_11_sqs: Sqs, InFull;
}

async fn away(sheet: Sheet, outlet: Outlet) {
    const AT_ONCE: usize = 100;
    let rows = outlet.gently(by_profile(8_000, 120_000));
    // A debug build beside other tests does less.
    let least = outlet.gently(by_profile(500, 5_000));
    let mut trial = Trial::new(&sheet, outlet);
    let proxy = Proxy::start(trial.broker_port());
    let config = trial.config_by(&trial.exam.postgres_url(), Some(proxy.port()));
    let limit = format!("in_flight = {IN_FLIGHT}");
    let limits = format!("slot_lag = \"{}MiB\"", SLOT_LAG >> 20);
    let config = edited(&config, &limit, &limits);
    let life = trial.start(&config);
    let mut writer = trial.exam.writer(1).await;
    writer.insert(1).await.expect("a row");
    trial.wait_for(1).await;

    proxy.refuse();
    let mut lag = 0;
    for _ in 0..rows / AT_ONCE {
        writer.insert(AT_ONCE).await.expect("rows");
        if fastrand::u8(..20) == 0 {
            lag = lag.max(trial.lag());
        }
    }
    let arrived = Instant::now();
    eventually(2 * PATIENCE, "all rows to be held", || async {
        (trial.exam.held().await.len() >= rows).then_some(())
    })
    .await;
    sheet.wal("lag while away", lag.max(trial.lag()), LAG_WHILE_DOWN);
    sheet.note(format!(
        "all held {:.1} s after the last row",
        arrived.elapsed().as_secs_f64()
    ));
    // Nothing arrives any more, and nothing goes.
    let down = life.peer_down();
    tokio::time::sleep(Duration::from_secs(4)).await;
    life.peer_up(&down);

    proxy.pass();
    let back = Instant::now();
    let load = trial.light_load(Duration::from_millis(200));
    trial.recovery(back, BROKER_BACK).await;
    let first = Instant::now();
    let from = trial.different().await;
    trial.wait_for(rows).await;
    let rate = (rows - from) as f64 / first.elapsed().as_secs_f64();
    sheet.at_least("drained a second", rate as usize, least);
    load.stop().await;
    // The first row may have been answered, or not, when the broker went.
    let duplicates = outlet.duplicates(outlet.in_hands());
    trial.conclude(life, duplicates).await;
}

over! {"10", "kill -9 of a durable broker", kills;
    row_10_celery_redis: Redis, Always;
    row_10_celery_rabbitmq: CeleryRabbitMq, Always;
    row_10_amqp: Amqp, InFull;
    row_10_redis_stream: RedisStream, InFull;
    row_10_redis_list: RedisList, InFull;
    row_10_nats: JetStream, Always;
    row_10_webhook: Webhook, Always;
    row_10_exec: Exec, Always;
    row_10_sidekiq: Sidekiq, InFull;
    row_10_dramatiq_redis: DramatiqRedis, InFull;
    row_10_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_10_bullmq: BullMq, InFull;
    row_10_kafka: Kafka, InFull;
    row_10_sqs: Sqs, InFull;
    row_10_sqs_fifo: SqsFifo, InFull;
}

async fn kills(sheet: Sheet, outlet: Outlet) {
    let rounds = by_profile(3, 50);
    let mut trial = Trial::durable(&sheet, outlet);
    let mut random = trial.exam.random(0);
    let config = trial.config();
    let life = trial.start(&config);
    let load = trial.load();
    for round in 0..rounds {
        let before = trial.different().await;
        trial.wait_for(before + 1).await;
        tokio::time::sleep(Duration::from_millis(random.u64(..200))).await;
        trial.kill_broker();
        if round == 0 && outlet != Outlet::Exec {
            let down = life.peer_down();
            tokio::time::sleep(Duration::from_secs(3)).await;
            life.peer_up(&down);
        }
        trial.restart_broker();
        trial.recovery(Instant::now(), BROKER_BACK).await;
    }
    load.stop().await;
    sheet.at_least("kills", rounds, rounds);
    let duplicates = outlet.duplicates(rounds * outlet.in_hands());
    trial.conclude(life, duplicates).await;
}

over! {"13", "the broker applies, its answer is lost", lost_answers;
    row_13_celery_redis: Redis, Always;
    row_13_celery_rabbitmq: CeleryRabbitMq, Always;
    row_13_amqp: Amqp, InFull;
    row_13_redis_stream: RedisStream, Always;
    row_13_redis_list: RedisList, InFull;
    row_13_nats: JetStream, Always;
    row_13_webhook: Webhook, Always;
    row_13_sidekiq: Sidekiq, Always;
    row_13_dramatiq_redis: DramatiqRedis, Always;
    row_13_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_13_bullmq: BullMq, Always;
    row_13_kafka: Kafka, Always;
    row_13_sqs: Sqs, InFull;
    row_13_sqs_fifo: SqsFifo, InFull;
}

async fn lost_answers(sheet: Sheet, outlet: Outlet) {
    let rounds = by_profile(3, 40);
    let mut trial = Trial::new(&sheet, outlet);
    let proxy = Proxy::start(trial.broker_port());
    let config = trial.config_by(&trial.exam.postgres_url(), Some(proxy.port()));
    let life = trial.start(&config);
    let load = trial.load();
    // Of tasks that were applied without an answer; some of them were answered just before.
    let mut unanswered = 0;
    for _ in 0..rounds {
        // About nine batches are answered.
        let before = trial.different().await;
        trial.wait_for(before + outlet.gently(250)).await;
        // The answer to what was applied just before may be on its way.
        let before = trial.at(Instant::now() - Duration::from_millis(200));
        proxy.set(Way::Down, Fault::BlackHole);
        // The lane waits for an answer that will not come, and what is committed meanwhile waits behind it.
        let since = Instant::now();
        while trial.exam.written().await.len() < trial.different().await + outlet.gently(100) {
            assert!(since.elapsed() < PATIENCE, "nothing waits");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        trial.wait_for_the_last().await;
        unanswered += trial.deliveries().await.len() - before;
        // At once, or the next connection's answers are lost too.
        proxy.reset();
        proxy.pass();
        trial.recovery(Instant::now(), BROKER_BACK).await;
    }
    load.stop().await;
    sheet.at_least("applied around a lost answer", unanswered, rounds);
    trial.conclude(life, outlet.duplicates(unanswered)).await;
}
