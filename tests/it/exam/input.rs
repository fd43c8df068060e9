//! Rows 21, 22 and 23: what the application writes: very much at once, very large, and poison.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::outlet::over;
use super::sheet::{Sheet, sit};
use super::trial::{Trial, edited};
use super::{MEMORY, Outlet, by_profile, is_full};
use crate::support::exam::IN_FLIGHT;
use crate::support::wait::{PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_21() {
    sit(
        "21",
        "one transaction of a million rows, with kills in it",
        one_transaction,
    )
    .await;
}

async fn one_transaction(sheet: Sheet) {
    let (rows, kills) = by_profile((60_000, 2), (1_000_000, 4));
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    // As many as most will have in flight.
    let in_flight = 4096;
    let config = edited(&trial.config(), &format!("in_flight = {IN_FLIGHT}"), "");
    let mut writer = trial.exam.writer(1).await;
    writer.client.batch_execute("begin").await.expect("begin");
    writer.insert(rows).await.expect("rows");
    writer.client.batch_execute("commit").await.expect("commit");
    // Nothing of it is confirmed before its end: it all comes again, where the outlet does not know what it has.
    let mut pushed = 0;
    for kill in 1..=kills {
        let mut life = trial.start(&config);
        let part = (rows * kill / (kills + 1)).min(rows - in_flight);
        let from = Outlet::Redis.duplicates(pushed);
        trial.exam.wait_for_pushed(from + part).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        life.kill9();
        pushed = trial.exam.pushed().await;
    }
    let life = trial.start(&config);
    sheet.at_least("kills", kills, kills);
    trial.conclude(life, Outlet::Redis.duplicates(pushed)).await;
}

over! {"22", "a row of 100 MB; a row over the sink's limit", large_rows;
    row_22_celery_redis: Redis, Always;
    row_22_celery_rabbitmq: CeleryRabbitMq, InFull;
    row_22_amqp: Amqp, InFull;
    row_22_redis_stream: RedisStream, InFull;
    row_22_redis_list: RedisList, InFull;
    row_22_nats: JetStream, Always;
    row_22_webhook: Webhook, InFull;
    row_22_exec: Exec, InFull;
    row_22_stdout: Stdout, InFull;
    row_22_sidekiq: Sidekiq, InFull;
    row_22_dramatiq_redis: DramatiqRedis, InFull;
    row_22_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_22_bullmq: BullMq, InFull;
    row_22_kafka: Kafka, Always;
    row_22_sqs: Sqs, Always;
    row_22_sqs_fifo: SqsFifo, InFull;
}

/// A row that is over an outlet's limit, in bytes; and what is said of it.
///
/// The quick profile leaves limits of more than some MiB alone.
fn over_the_limit(outlet: Outlet) -> Option<(u64, &'static str)> {
    let large = |over| if is_full() { Some(over) } else { None };
    match outlet {
        // base64 makes it longer by a third.
        Outlet::Redis => large((420_000_000, "512 MiB")),
        Outlet::RedisStream
        | Outlet::RedisList
        | Outlet::Sidekiq
        | Outlet::DramatiqRedis
        | Outlet::BullMq => large((540_000_000, "512 MiB")),
        // RabbitMQ's default is 128 MiB.
        Outlet::CeleryRabbitMq | Outlet::Amqp | Outlet::DramatiqRabbitMq => {
            large((140_000_000, "max_message_size"))
        }
        // NATS's is 1 MiB.
        Outlet::JetStream => Some((by_profile(2_000_000, 100_000_000), "max_payload")),
        // This receiver's.
        Outlet::Webhook => large((160_000_000, "413")),
        // librdkafka's default is 1,000,000 bytes.
        Outlet::Kafka => Some((by_profile(2_000_000, 100_000_000), "message.max.bytes")),
        Outlet::Sqs | Outlet::SqsFifo => Some((by_profile(1_100_000, 100_000_000), "1 MiB")),
        Outlet::Exec | Outlet::Stdout => None,
    }
}

async fn large_rows(sheet: Sheet, outlet: Outlet) {
    /// `[limits] memory`, by default.
    const BUDGET: u64 = 64 << 20;
    let row: u64 = match outlet {
        // As large as it takes.
        Outlet::JetStream | Outlet::Sqs | Outlet::SqsFifo => 1_000_000,
        Outlet::Kafka => 950_000,
        _ => by_profile(20_000_000, 100_000_000),
    };
    let over = over_the_limit(outlet);
    let mut trial = Trial::new(&sheet, outlet);
    let allowed = BUDGET + 3 * over.map_or(row, |(over, _)| over);
    trial.allow_memory(allowed.max(MEMORY));
    trial
        .exam
        .postgres
        .psql("alter table aftercommit.outbox drop constraint row_is_at_most_256_mib");
    let config = trial.config();
    let life = trial.start(&config);
    let mut writer = trial.exam.writer(1).await;
    let large = |trial: &Trial, name: &str, size: u64| {
        trial.exam.postgres.psql(&format!(
            "insert into aftercommit.outbox (task, kwargs) values ('{name}', json_build_object('text', repeat('x', {size})))"
        ));
    };
    writer.insert(100).await.expect("rows");
    large(&trial, "exam.large", row);
    writer.insert(100).await.expect("rows");
    if let Some((over, words)) = over {
        let started = Instant::now();
        large(&trial, "exam.over", over);
        writer.insert(100).await.expect("rows");
        let dead =
            "select last_error from aftercommit.hold where task = 'exam.over' and state = 'dead'";
        let reason = eventually(
            2 * PATIENCE,
            "the row over the limit to be dead",
            || async {
                let reason = trial.exam.postgres.psql(dead);
                (!reason.is_empty()).then_some(reason)
            },
        )
        .await;
        let told = reason.contains(words);
        sheet.count("dead without the reason", usize::from(!told), 0);
        sheet.note(format!(
            "dead after {:.1} s: {reason}",
            started.elapsed().as_secs_f64()
        ));
    }
    // Neighbours flow: all of them have come.
    trial.wait_for(if over.is_some() { 300 } else { 200 }).await;
    let deadline = Instant::now() + PATIENCE;
    let arrived = loop {
        let arrived = trial.others().await;
        if !arrived.is_empty() || Instant::now() > deadline {
            break arrived;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    sheet.count("messages of large rows", arrived.len(), 1);
    let length = arrived.iter().map(|it| it.length).max();
    sheet.at_least(
        "bytes of the large row",
        length.unwrap_or_default(),
        row as usize,
    );
    let others = arrived.iter().filter(|it| it.task != "exam.large");
    sheet.count("others", others.count(), 0);
    trial.conclude(life, 0).await;
}

/// Columns and values of rows that no application should write, and some do.
const POISON: &[(&str, &str)] = &[
    ("args", r#"'{"a": 1}'"#),
    ("args", r#"'"text"'"#),
    ("args", "'not json'"),
    ("args", "''"),
    ("kwargs", "'[1]'"),
    ("kwargs", "'null'"),
    ("kwargs", r#"'{"a": "\u0000"}'"#),
    ("kwargs", r#"'{"a": "\ud800"}'"#),
    ("kwargs", r#"'{"a": 1e999999}'"#),
    ("kwargs", r#"'{"a": NaN}'"#),
    ("kwargs", r#"'{"a": 1, "a": 2}'"#),
    ("kwargs", r#"'{"a": 1} {"b": 2}'"#),
    ("kwargs", r#"'{"a": "' || repeat('x', 65536) || '"}'"#),
    (
        "kwargs",
        r#"'{"a": ' || repeat('[', 10000) || repeat(']', 10000) || '}'"#,
    ),
    ("args", "repeat('[', 10000) || repeat(']', 10000)"),
    ("args", "repeat('[', 1000000)"),
    ("headers", r#"'{"x": "a\r\nInjected: yes"}'"#),
    ("headers", r#"'{"a\r\nInjected": "yes"}'"#),
    ("headers", r#"'{"x": "' || repeat('y', 65536) || '"}'"#),
    ("headers", r#"'{"x": {"y": 1}}'"#),
    (
        "headers",
        r#"'{"id": "00000000-0000-0000-0000-000000000000", "task": "other", "retries": "x"}'"#,
    ),
    ("headers", "'[]'"),
    ("key", "''"),
    ("key", "repeat('k', 100000)"),
    ("queue", "''"),
    ("queue", "E'a\\r\\nLPUSH celery x'"),
    ("queue", "repeat('q', 100000)"),
    ("priority", "32767"),
    ("priority", "-1"),
    ("run_at", "'infinity'"),
    ("run_at", "'-infinity'"),
    ("run_at", "'0044-03-15 12:00:00+00 BC'"),
    ("expires_at", "'infinity'"),
    ("expires_at", "'-infinity'"),
    ("expires_at", "'294276-12-31 00:00:00+00'"),
    ("options", r#"'{"unknown": 1}'"#),
    ("options", r#"'{"time_limit": "soon"}'"#),
    ("options", "'7'"),
    ("task", "''"),
    ("task", "E'exam.poison\\r\\n'"),
    ("task", "repeat('t', 100000)"),
    ("body", r"'\x00ff'"),
    ("payload", "'{'"),
];

over! {"23", "poison rows", poison;
    row_23_celery_redis: Redis, Always;
    row_23_celery_rabbitmq: CeleryRabbitMq, InFull;
    row_23_amqp: Amqp, InFull;
    row_23_redis_stream: RedisStream, InFull;
    row_23_redis_list: RedisList, InFull;
    row_23_nats: JetStream, InFull;
    row_23_webhook: Webhook, InFull;
    row_23_exec: Exec, InFull;
    row_23_stdout: Stdout, InFull;
    row_23_sidekiq: Sidekiq, InFull;
    row_23_dramatiq_redis: DramatiqRedis, InFull;
    row_23_dramatiq_rabbitmq: DramatiqRabbitMq, InFull;
    row_23_bullmq: BullMq, InFull;
    row_23_kafka: Kafka, InFull;
    row_23_sqs: Sqs, InFull;
    row_23_sqs_fifo: SqsFifo, InFull;
}

async fn poison(sheet: Sheet, outlet: Outlet) {
    let rounds = by_profile(1, 20);
    let mut trial = Trial::new(&sheet, outlet);
    // What stands between the application and the daemon is taken away.
    trial.exam.postgres.psql(
        "do $$ declare name text; begin
           for name in select conname from pg_constraint
             where conrelid = 'aftercommit.outbox'::regclass and contype = 'c'
           loop execute format('alter table aftercommit.outbox drop constraint %I', name); end loop;
         end $$",
    );
    trial.exam.postgres.psql(
        "alter table aftercommit.outbox alter args type text, alter kwargs type text, alter payload type text,
           alter headers type text, alter options type text",
    );
    let config = trial.config();
    let mut life = trial.start(&config);
    let load = trial.load();
    let client = trial.exam.postgres.client().await;
    let mut ids = Vec::new();
    for (column, value) in (0..rounds).flat_map(|_| POISON) {
        // One of its own key follows each; that it is poisoned is nobody else's matter.
        let key = if *column == "key" { "" } else { ", key" };
        let task = if *column == "task" { "" } else { ", task" };
        let mut values = String::from(*value);
        for (name, value) in [(task, "'exam.poison'"), (key, "'poisoned'")] {
            if !name.is_empty() {
                values = format!("{values}, {value}");
            }
        }
        let poisoned = format!(
            "insert into aftercommit.outbox ({column}{task}{key}) values ({values}) returning id::text"
        );
        let neighbour = "insert into aftercommit.outbox (task, key) values ('exam.neighbour', 'poisoned') returning id::text";
        for sql in [poisoned.as_str(), neighbour] {
            let row = client.query_one(sql, &[]).await;
            let row = row.unwrap_or_else(|error| panic!("{column} = {value}: {error:?}"));
            ids.push((row.get::<_, String>(0), format!("{column} = {value}")));
        }
    }
    load.stop().await;
    trial.wait_for(1).await;
    // Each is one message or one dead row.
    let deadline = Instant::now() + 2 * PATIENCE;
    let (messages, dead) = loop {
        let messages = everywhere(&mut trial).await;
        let sql = "select id from aftercommit.hold where state = 'dead'";
        let dead = client.query(sql, &[]).await.expect("the hold table");
        let dead: HashSet<String> = dead.iter().map(|row| row.get(0)).collect();
        let settled = |id: &str| messages.contains_key(id) || dead.contains(id);
        let all = ids.iter().all(|(id, _)| settled(id));
        if all || Instant::now() > deadline || !life.running() {
            break (messages, dead);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let (mut neither, mut both) = (0, 0);
    for (id, what) in &ids {
        let what: String = what.chars().take(60).collect();
        match (messages.get(id).copied().unwrap_or(0), dead.contains(id)) {
            (1, false) | (0, true) => {}
            (0, false) => {
                neither += 1;
                sheet.note(format!("neither message nor dead row: {what}"));
            }
            (count, dead) => {
                both += 1;
                sheet.note(format!("{count} messages, dead: {dead}: {what}"));
            }
        }
    }
    let known: HashSet<&str> = ids.iter().map(|(id, _)| id.as_str()).collect();
    let injected = messages.keys().filter(|id| !known.contains(id.as_str()));
    sheet.count("injected", injected.count(), 0);
    sheet.count("neither message nor dead row", neither, 0);
    sheet.count("more than one", both, 0);
    sheet.at_least("poison rows", ids.len() / 2, POISON.len() * rounds);
    sheet.note(format!(
        "{} messages, {} dead rows",
        messages.len(),
        dead.len()
    ));
    trial.conclude(life, 0).await;
}

/// How often each id has come, wherever it went; but for the checker's.
async fn everywhere(trial: &mut Trial) -> HashMap<String, usize> {
    let mut found = HashMap::new();
    for other in trial.others().await {
        *found.entry(other.id).or_default() += 1;
    }
    found
}
