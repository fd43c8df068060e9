//! Rows 12 and 14: connections that are cut, slow, and up and down.

use std::time::{Duration, Instant};

use aftercommit::outbox::{Assembler, Columns, Config, Field, Position, Task};
use aftercommit::pg::replication::{ReplicationMessage, XLogData};
use aftercommit::pg::{Lsn, Timestamp};
use aftercommit::replication::stream::Stream;
use aftercommit::replication::{Error, Policy, Target, Walsender};
use aftercommit::sink::{Outage, Outcome};

use super::outlet::{client, over};
use super::sheet::{Sheet, sit};
use super::trial::Trial;
use super::{BROKER_BACK, Outlet, SERVER_BACK, by_profile};
use crate::support::exam::load::KEYS;
use crate::support::exam::{Exam, IN_FLIGHT};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::wait::{PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_12_postgres() {
    let streams = |sheet: Sheet| async move { cut_streams(&sheet).await };
    sit("12", "connections cut inside a frame, Postgres", streams).await;
}

over! {"12", "connections cut inside a frame", cuts;
    row_12_celery_redis: Redis, Always;
    row_12_celery_rabbitmq: CeleryRabbitMq, InFull;
    row_12_amqp: Amqp, InFull;
    row_12_redis_stream: RedisStream, InFull;
    row_12_redis_list: RedisList, InFull;
    row_12_nats: JetStream, InFull;
    row_12_webhook: Webhook, InFull;
    row_12_sidekiq: Sidekiq, InFull;
    row_12_dramatiq_redis: DramatiqRedis, InFull;
    row_12_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_12_bullmq: BullMq, InFull;
    row_12_kafka: Kafka, InFull;
    row_12_sqs: Sqs, InFull;
}

async fn cuts(sheet: Sheet, outlet: Outlet) {
    // librdkafka connects again by itself: no cut is answered.
    if outlet != Outlet::Kafka {
        cut_batches(&sheet, outlet).await;
    }
    cut_at_random(sheet, outlet).await;
}

/// Every offset of the first 4 KB, or some of them.
fn offsets(random: &mut fastrand::Rng) -> impl Iterator<Item = u64> + use<> {
    let step = by_profile(101, 1);
    (random.u64(..step as u64)..4096).step_by(step)
}

/// A walsender's stream, from the login on: wherever it is cut, what is left is a lost connection, and no error of ours.
async fn cut_streams(sheet: &Sheet) {
    let exam = Exam::start();
    exam.insert(40);
    let proxy = Proxy::start(exam.postgres.port());
    let url = exam.postgres_url_through(proxy.port());
    let target = Target::parse(&url, None).expect("a URL");
    let (mut cuts, mut ours) = (0, 0);
    for way in [Way::Down, Way::Up] {
        for offset in offsets(&mut exam.random(12)) {
            // We say less than that; what is not cut would stream for ever.
            if way == Way::Up && offset > 400 {
                break;
            }
            proxy.set(way, Fault::CutAfter(offset));
            let error = eventually(PATIENCE, "the slot to be free", || async {
                let error = read_to_the_end(&target).await;
                (error.policy() != Policy::StandBy).then_some(error)
            })
            .await;
            cuts += 1;
            if error.policy() != Policy::Reconnect {
                ours += 1;
                sheet.note(format!("{way:?} cut after {offset} bytes: {error}"));
            }
        }
        proxy.pass();
    }
    sheet.at_least("cuts of the stream", cuts, by_profile(40, 4_096));
    sheet.count("errors of ours", ours, 0);
}

/// Streams as the daemon does, until it breaks.
async fn read_to_the_end(target: &Target) -> Error {
    let opened = async {
        let mut walsender = Walsender::connect(target, "exam").await?;
        walsender.identify_system().await?;
        walsender
            .start_replication("aftercommit", Lsn::ZERO, "aftercommit")
            .await
    };
    let copy = match tokio::time::timeout(PATIENCE, opened)
        .await
        .expect("an end")
    {
        Ok(copy) => copy,
        Err(error) => return error,
    };
    let mut stream = Stream::new(copy.socket, copy.buffer);
    let columns = Columns::new(&Config::default()).expect("the default");
    let mut assembler = Assembler::new(columns);
    loop {
        let read = tokio::time::timeout(PATIENCE, stream.read()).await;
        let chunk = match read.expect("an end") {
            Ok(chunk) => chunk,
            Err(error) => return error,
        };
        for frame in &chunk.frames {
            let message = ReplicationMessage::decode(&chunk.bytes[frame.clone()]);
            if let ReplicationMessage::XLogData(_) = message.expect("a whole frame") {
                let data = frame.start + XLogData::HEADER_LEN..frame.end;
                let event = assembler.message(&chunk.bytes, data);
                event.expect("a whole message");
            }
        }
    }
}

/// A batch on its way to the broker: wherever it is cut, nothing of it is rejected, and the next attempt delivers it.
async fn cut_batches(sheet: &Sheet, outlet: Outlet) {
    /// A connection that was cut may only show when it is used again.
    const ATTEMPTS: usize = 3;
    // What a broker says to so few tasks.
    let answers = if outlet.is_in_redis() { 60 } else { 1_500 };
    let trial = Trial::new(sheet, outlet);
    let proxy = Proxy::start(trial.broker_port());
    let config = trial.config_by(&trial.exam.postgres_url(), Some(proxy.port()));
    let mut random = fastrand::Rng::with_seed(crate::support::exam::seed());
    // Longer than the offsets, also where each has a connection of its own.
    let padding = "x".repeat(4_096);
    let mut batch = || -> Vec<Task> {
        let mut task = || {
            let id = uuid::Builder::from_random_bytes(random.u128(..).to_be_bytes());
            let id = id.into_uuid().to_string();
            let kwargs = format!("{{\"key\": \"k\", \"seq\": 1, \"padding\": \"{padding}\"}}");
            let fields = [
                (Field::Id, id.as_str()),
                (Field::Task, "exam.row"),
                (Field::Kwargs, kwargs.as_str()),
            ];
            Task::from_fields(fields, Position::default(), Timestamp(0))
        };
        (0..8).map(|_| task()).collect()
    };
    let is_delivered = |answer: &Result<Vec<Outcome>, Outage>| {
        let all = |outcomes: &Vec<Outcome>| outcomes.iter().all(|it| *it == Outcome::Delivered);
        answer.as_ref().is_ok_and(all)
    };
    let (mut cuts, mut wrong) = (0, 0);
    for way in [Way::Up, Way::Down] {
        for offset in offsets(&mut trial.exam.random(13)) {
            if way == Way::Down && offset > answers {
                break;
            }
            let batch = batch();
            let mut sink = client(&config);
            proxy.set(way, Fault::CutAfter(offset));
            let answer = sink.deliver(&batch).await;
            proxy.pass();
            cuts += 1;
            let rejected = answer
                .as_ref()
                .is_ok_and(|it| it.iter().any(|it| matches!(it, Outcome::Reject(_))));
            let mut again = sink.deliver(&batch).await;
            for _ in 1..ATTEMPTS {
                if !is_delivered(&again) {
                    again = sink.deliver(&batch).await;
                }
            }
            // A cut behind the last byte of an answer is no cut.
            let untouched = is_delivered(&answer) && way == Way::Up;
            if rejected || untouched || !is_delivered(&again) {
                wrong += 1;
                if wrong < 10 {
                    let answers =
                        format!("{way:?} cut after {offset} bytes: {answer:?}, then {again:?}");
                    sheet.note(answers.chars().take(400).collect::<String>());
                }
            }
        }
    }
    sheet.at_least("cuts of batches", cuts, by_profile(40, 4_096));
    sheet.count("not answered as an outage", wrong, 0);
}

/// The whole daemon under load.
async fn cut_at_random(sheet: Sheet, outlet: Outlet) {
    let rounds = by_profile(12, 400);
    let mut trial = Trial::new(&sheet, outlet);
    let mut random = trial.exam.random(0);
    let servers = Proxy::start(trial.exam.postgres.port());
    let brokers = Proxy::start(trial.broker_port());
    let url = trial.exam.postgres_url_through(servers.port());
    let config = trial.config_by(&url, Some(brokers.port()));
    let life = trial.start(&config);
    let load = trial.load();
    let mut lost_answers = 0;
    for round in 0..rounds {
        let before = trial.different().await;
        trial.wait_for(before + 1).await;
        let proxy = if round % 2 == 0 { &brokers } else { &servers };
        let connections = proxy.accepted();
        match random.u8(..5) {
            0 => proxy.set(Way::Up, Fault::CutAfter(random.u64(..50_000))),
            1 => proxy.set(Way::Up, Fault::CutAfter(random.u64(..60))),
            2 => proxy.set(Way::Down, Fault::CutAfter(random.u64(..50_000))),
            3 => proxy.set(Way::Down, Fault::CutAfter(random.u64(..60))),
            _ => {
                tokio::time::sleep(Duration::from_millis(random.u64(..50))).await;
                proxy.reset();
            }
        }
        // What a sink says before 50,000 bytes takes a while; so little is heard from Redis that it takes for ever.
        let patience = Instant::now() + Duration::from_secs(1);
        while proxy.accepted() == connections && Instant::now() < patience {
            trial.look_on(Duration::from_millis(10)).await;
        }
        if round % 2 == 0 {
            lost_answers += (1 + proxy.accepted() - connections) * outlet.in_hands();
        }
        proxy.pass();
        let within = if round % 2 == 0 {
            BROKER_BACK
        } else {
            SERVER_BACK
        };
        let healed = Instant::now();
        trial.recovery(healed, within).await;
        if healed.elapsed() > within / 2 {
            let said = life.records().into_iter().rev().take(5);
            let said: Vec<String> = said.map(|record| record.to_string()).collect();
            sheet.note(format!("slow in round {round}: {}", said.join(" ")));
        }
    }
    load.stop().await;
    let duplicates = outlet.duplicates(lost_answers);
    trial.conclude(life, duplicates).await;
}

over! {"14", "200 ms to the broker; up and down every 2 s", slow;
    row_14_celery_redis: Redis, Always;
    row_14_celery_rabbitmq: CeleryRabbitMq, InFull;
    row_14_amqp: Amqp, InFull;
    row_14_redis_stream: RedisStream, InFull;
    row_14_redis_list: RedisList, InFull;
    row_14_nats: JetStream, InFull;
    row_14_webhook: Webhook, InFull;
    row_14_sidekiq: Sidekiq, InFull;
    row_14_dramatiq_redis: DramatiqRedis, InFull;
    row_14_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_14_bullmq: BullMq, InFull;
    row_14_kafka: Kafka, InFull;
    row_14_sqs: Sqs, InFull;
}

async fn slow(sheet: Sheet, outlet: Outlet) {
    const ROUND_TRIP: Duration = Duration::from_millis(200);
    const UP: Duration = Duration::from_secs(2);
    // The default, which is what most will have.
    const DEFAULT: usize = 4096;
    let flaps: usize = by_profile(2, 15);
    let under_way = outlet.under_way(DEFAULT);
    // Seven times, or fifty times, as many as are under way.
    let rows = by_profile(30_000, 200_000) / DEFAULT * under_way;
    let mut trial = Trial::new(&sheet, outlet);
    let proxy = Proxy::start(trial.broker_port());
    let config = trial.config_by(&trial.exam.postgres_url(), Some(proxy.port()));
    let config = config.replace(&format!("in_flight = {IN_FLIGHT}"), "");
    proxy.both(Fault::Delay(ROUND_TRIP / 2));
    let life = trial.start(&config);
    let mut writer = trial.exam.writer(1).await;
    writer.client.batch_execute("begin").await.expect("begin");
    writer.insert(rows).await.expect("rows");
    writer.client.batch_execute("commit").await.expect("commit");
    let pushed = trial.different().await;
    // While as much is there as may be under way: behind that the fullest key, alone, takes a round trip for each of its rows.
    let full = rows - DEFAULT.min(rows / 8);
    let start = Instant::now();
    trial.wait_for(full).await;
    let rate = (full - pushed) as f64 / start.elapsed().as_secs_f64();
    trial.wait_for(rows).await;
    // Half of that; a debug build beside other tests does less.
    let least = under_way as f64 / ROUND_TRIP.as_secs_f64() / by_profile(8.0, 2.0);
    sheet.at_least("tasks a second", rate as usize, least as usize);

    // Less than can be delivered at such a distance, half of the time.
    let load = match under_way < KEYS {
        true => trial.light_load(Duration::from_millis(600)),
        false => trial.load(),
    };
    let mut idle = 0;
    for _ in 0..flaps {
        proxy.refuse();
        tokio::time::sleep(UP).await;
        proxy.pass();
        proxy.both(Fault::Delay(ROUND_TRIP / 2));
        let before = trial.different().await;
        trial.look_on(UP).await;
        idle += usize::from(trial.different().await == before);
    }
    load.stop().await;
    proxy.pass();
    // Beside other tests the machine itself may be busy for so long.
    sheet.count("two seconds without progress", idle, by_profile(flaps, 0));
    let duplicates = outlet.duplicates(flaps * under_way);
    trial.conclude(life, duplicates).await;
}
