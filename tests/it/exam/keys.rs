//! Row 24: one key fails, and the others do not wait for it.

use std::time::{Duration, Instant};

use redis::AsyncCommands as _;

use super::sheet::{Sheet, sit};
use super::trial::{Trial, edited};
use super::{Outlet, by_profile};
use crate::support::exam::load::Writer;
use crate::support::wait::{PATIENCE, eventually};

/// Of the others' rate, at least so much remains, in percent. Quickly, both rates are those of half a second of a debug build
/// beside other tests, and differ by a factor of two where nothing fails.
fn remains_at_least() -> usize {
    by_profile(25, 80)
}
/// How often the key fails.
const FAILS: usize = 5;
/// The queue of the key that fails.
const QUEUE: &str = "taken";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_24() {
    sit("24", "one key fails five times, 999 keys flow", one_key).await;
}

async fn one_key(sheet: Sheet) {
    let rows = by_profile(20_000, 200_000);
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let config = edited(
        &trial.config(),
        "backoff = \"50ms..500ms\"",
        // More attempts than there is time for: it is to fail, and not to die.
        "attempts = 100000, backoff = \"200ms..400ms\", hold_after = \"300ms\"",
    );
    let life = trial.start(&config);
    let mut writer = trial.exam.writer(1).await;
    // Twice the same, each in one transaction: the first time nothing fails.
    let undisturbed = rate(&trial, &mut writer, rows, rows).await;

    // The key's tasks go to a list that is none.
    let (key, last) = (writer.key(0), writer.last(0));
    trial.exam.postgres.psql(&format!(
        "create function exam.taken() returns trigger language plpgsql as
           $$ begin new.queue := '{QUEUE}'; return new; end $$;
         create trigger taken before insert on aftercommit.outbox
           for each row when (new.key = '{key}') execute function exam.taken()"
    ));
    trial.exam.redis.run(&["SET", QUEUE, "by another"]);
    writer.insert_one(0).await.expect("a row that fails");
    let others = 2 * rows + 1;
    let disturbed = rate(&trial, &mut writer, rows, others).await;
    let of_key = writer.last(0) - last;
    let remains = (100.0 * disturbed / undisturbed) as usize;
    sheet.at_least("rate of the others, percent", remains, remains_at_least());
    sheet.note(format!(
        "{undisturbed:.0} tasks a second undisturbed, {disturbed:.0} beside a key that fails"
    ));

    let attempts = "select coalesce(max(attempts), 0) from aftercommit.hold";
    let attempts = eventually(PATIENCE, "the key to fail five times", || async {
        let attempts: usize = trial
            .exam
            .postgres
            .psql(attempts)
            .parse()
            .expect("a number");
        (attempts >= FAILS).then_some(attempts)
    })
    .await;
    sheet.at_least("failures", attempts, FAILS);
    let waiting = trial.exam.held().await.len();
    sheet.at_least("waiting behind it", waiting, 2);

    // It is back, and its tasks come in order.
    let mut connection = trial.exam.redis.connection().await;
    let gone: usize = connection.del(QUEUE).await.expect("DEL");
    assert_eq!(gone, 1, "it was somebody else's all the time");
    let back = Instant::now();
    eventually(PATIENCE, "nothing to be held", || async {
        trial.exam.held().await.is_empty().then_some(())
    })
    .await;
    sheet.time("drained", back.elapsed(), Duration::from_secs(5));
    let messages = trial.exam.redis.lrange(QUEUE).await;
    let come = messages.len();
    sheet.at_least("of the key delivered", come, of_key as usize);
    trial.deliver_also(&messages);
    trial.conclude(life, 0).await;
}

/// Commits so many rows at once; says how many of them come in a second, until the list is as long as it may get without
/// those of the key that fails.
async fn rate(trial: &Trial, writer: &mut Writer, rows: usize, most: usize) -> f64 {
    let (before, last) = (trial.exam.pushed().await, writer.last(0));
    writer.client.batch_execute("begin").await.expect("begin");
    writer.insert(rows).await.expect("rows");
    let start = Instant::now();
    writer.client.batch_execute("commit").await.expect("commit");
    let failing = match before {
        0 => 0,
        _ => (writer.last(0) - last) as usize + 1,
    };
    let expected = most - failing;
    trial.exam.wait_for_pushed(expected).await;
    (expected - before) as f64 / start.elapsed().as_secs_f64()
}
