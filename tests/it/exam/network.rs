//! Rows 12 and 14: connections that are cut, slow, and up and down.

use std::time::{Duration, Instant};

use aftercommit::outbox::{Assembler, Columns, Config, Field, Position, Task};
use aftercommit::pg::replication::{ReplicationMessage, XLogData};
use aftercommit::pg::{Lsn, Timestamp};
use aftercommit::replication::stream::Stream;
use aftercommit::replication::{Error, Policy, Target, Walsender};
use aftercommit::sink::{Settings as _, celery};
use serde_json::json;

use super::sheet::{Sheet, sit};
use super::trial::Trial;
use super::{BROKER_BACK, Outlet, SERVER_BACK, by_profile};
use crate::support::exam::{Exam, IN_FLIGHT};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_12() {
    let all = |sheet: Sheet| async move {
        cut_streams(&sheet).await;
        cut_batches(&sheet).await;
        cut_at_random(sheet).await;
    };
    sit("12", "connections cut inside a frame", all).await;
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

/// A batch on its way to Redis: wherever it is cut, the sink is away, and the next batch is delivered.
async fn cut_batches(sheet: &Sheet) {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port());
    let settings = json!({"broker_url": redis.url_through(proxy.port(), 0), "timeout": "5s"});
    let config: celery::Config = serde_json::from_value(settings).expect("settings");
    let padding = format!("{{\"padding\": \"{}\"}}", "x".repeat(600));
    let fields = [
        (Field::Id, "7b1f9a52-9c1c-4b1c-8a1e-000000000001"),
        (Field::Task, "exam.row"),
        (Field::Kwargs, padding.as_str()),
    ];
    let task = || Task::from_fields(fields, Position::default(), Timestamp(0));
    let batch: Vec<Task> = (0..8).map(|_| task()).collect();
    let mut random = fastrand::Rng::with_seed(crate::support::exam::seed());
    let (mut cuts, mut wrong) = (0, 0);
    for way in [Way::Up, Way::Down] {
        for offset in offsets(&mut random) {
            // Redis answers with less than that.
            if way == Way::Down && offset > 60 {
                break;
            }
            let mut sink = config.open().expect("a sink");
            proxy.set(way, Fault::CutAfter(offset));
            let answer = sink.deliver(&batch).await;
            proxy.pass();
            cuts += 1;
            let again = sink.deliver(&batch).await;
            // A cut behind the last byte of an answer is no cut.
            let ok = answer.is_err() || way == Way::Down;
            if !ok || again.is_err() {
                wrong += 1;
                sheet.note(format!(
                    "{way:?} cut after {offset} bytes: {answer:?}, then {again:?}"
                ));
            }
        }
    }
    sheet.at_least("cuts of batches", cuts, by_profile(40, 4_096));
    sheet.count("not answered as an outage", wrong, 0);
}

/// The whole daemon under load.
async fn cut_at_random(sheet: Sheet) {
    let rounds = by_profile(12, 400);
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let mut random = trial.exam.random(0);
    let servers = Proxy::start(trial.exam.postgres.port());
    let brokers = Proxy::start(trial.exam.redis.port());
    let url = trial.exam.postgres_url_through(servers.port());
    let redis = trial.exam.redis.url_through(brokers.port(), 0);
    let config = trial.config_through(&url, &redis);
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
            lost_answers += (proxy.accepted() - connections) * IN_FLIGHT;
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
    let duplicates = Outlet::Redis.duplicates(lost_answers);
    trial.conclude(life, duplicates).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_14() {
    sit("14", "200 ms to the broker; up and down every 2 s", slow).await;
}

async fn slow(sheet: Sheet) {
    const ROUND_TRIP: Duration = Duration::from_millis(200);
    const UP: Duration = Duration::from_secs(2);
    // The default, which is what most will have.
    const DEFAULT: usize = 4096;
    let flaps: usize = by_profile(2, 15);
    let rows = by_profile(30_000, 200_000);
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let proxy = Proxy::start(trial.exam.redis.port());
    let redis = trial.exam.redis.url_through(proxy.port(), 0);
    let config = trial.config_through(&trial.exam.postgres_url(), &redis);
    let config = config.replace(&format!("in_flight = {IN_FLIGHT}"), "");
    proxy.both(Fault::Delay(ROUND_TRIP / 2));
    let life = trial.start(&config);
    let mut writer = trial.exam.writer(1).await;
    writer.client.batch_execute("begin").await.expect("begin");
    writer.insert(rows).await.expect("rows");
    writer.client.batch_execute("commit").await.expect("commit");
    let pushed = trial.exam.pushed().await;
    let start = Instant::now();
    trial.exam.wait_for_pushed(rows).await;
    let rate = (rows - pushed) as f64 / start.elapsed().as_secs_f64();
    // Half of that; a debug build beside other tests does less.
    let least = DEFAULT as f64 / ROUND_TRIP.as_secs_f64() / by_profile(8.0, 2.0);
    sheet.at_least("tasks a second", rate as usize, least as usize);

    let load = trial.load();
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
    let duplicates = Outlet::Redis.duplicates(flaps * DEFAULT);
    trial.conclude(life, duplicates).await;
}
