//! Row 28: the clock of the daemon's machine jumps by an hour; those of the servers, and the time itself, go on.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aftercommit::pg::Moment;
use redis::AsyncCommands as _;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::sheet::{Sheet, sit};
use super::trial::{Life, Trial, calm, edited};
use super::{BROKER_BACK, DAEMON_BACK, Outlet, by_profile};
use crate::support::exam::{processor_time, says};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, eventually};
use crate::support::wall_clock::WallClock;

/// How far it jumps, in seconds.
const HOUR: i64 = 3_600;
/// How late a task may be that has a time, as far as it is seen here. Fifty milliseconds are promised, on a quiet machine.
const LATE: Duration = Duration::from_millis(500);
/// A task that fails is tried again so soon.
const TRIED_AGAIN: Duration = Duration::from_secs(2);
/// How far a clock may be from where it was set to.
const NEAR: Duration = Duration::from_secs(60);
/// The queue of the tasks that tell the time.
const QUEUE: &str = "clock";
/// Tasks with a time, each before and after a jump.
const SCHEDULED: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_28() {
    sit("28", "clock one hour forward and back", jumps).await;
}

async fn jumps(sheet: Sheet) {
    let clock = match WallClock::new() {
        Ok(clock) => clock,
        Err(why) => return sheet.skip(why),
    };
    let mut trial = Trial::new(&sheet, Outlet::Redis);
    let proxy = Proxy::start(trial.exam.redis.port());
    let broker = trial.exam.redis.url_through(proxy.port(), 0);
    let config = trial.config_through(&trial.exam.postgres_url(), &broker);
    let retry = "hold_after = \"0s\", attempts = 1000000, backoff =";
    let config = edited(&config, "backoff =", retry);
    let mut life = trial.start_with(&config, &clock.environment());
    let load = trial.load();
    trial.wait_for(100).await;
    let told = Told::by(&trial.exam.redis).await;
    let (mut jump, mut expiring) = (0, 0);
    for _ in 0..by_profile(1, 5) {
        // Each way once in peace, and once while the broker is away.
        for (ahead, in_peace) in [(HOUR, true), (0, false), (-HOUR, true), (0, false)] {
            jump += 1;
            let before = Plan::insert(&trial, &format!("before {jump}"));
            fails(&trial, jump).await;
            if !in_peace {
                be_away(&life, &proxy).await;
            }
            clock.set(ahead);
            let jumped = Instant::now();
            if in_peace {
                trial.recovery(jumped, DAEMON_BACK).await;
            }
            let after = Plan::insert(&trial, &format!("after {jump}"));
            expiring += 1;
            expires(&trial, expiring);
            shows(&mut life, ahead).await;
            if !in_peace {
                proxy.pass();
                trial.recovery(Instant::now(), BROKER_BACK).await;
            }
            goes_on(&trial, jump).await;
            told.judge(&trial, &[before, after], in_peace).await;
            if ahead != 0 {
                life.stop().await;
                negatives(&life);
                // These come before the server's clock is asked for.
                expiring += 1;
                expires(&trial, expiring);
                life = trial.start_with(&config, &clock.environment());
            }
        }
    }
    sheet.at_least("jumps", jump, 4);
    expired(&trial, expiring).await;
    told.left(&trial, expiring).await;
    load.stop().await;
    trial.check(0).await;
    quiet(&trial, &life, &clock).await;
    negatives(&life);
    trial.conclude(life, 0).await;
}

/// The broker has been away for a while.
async fn be_away(life: &Life, proxy: &Proxy) {
    let attempts = || {
        let records = life.records();
        let away = records.iter().filter(|record| says(record, "still away"));
        away.count()
    };
    let before = attempts();
    proxy.refuse();
    eventually(PATIENCE, "attempts to connect", || async {
        (attempts() >= before + 2).then_some(())
    })
    .await;
}

/// The daemon's own clock was set: its log tells.
async fn shows(life: &mut Life, ahead: i64) {
    let expected = unix_micros() + ahead * 1_000_000;
    let near = |record: &Value| {
        let shown = record["timestamp"].as_str().and_then(moment);
        shown.is_some_and(|shown| shown.abs_diff(expected) < NEAR.as_micros() as u64)
    };
    let lines = life.records().len();
    eventually(PATIENCE, "a line at the time that was set", || async {
        life.records().iter().skip(lines).any(near).then_some(())
    })
    .await;
}

/// A task that fails, until [`goes_on`] lets it pass.
async fn fails(trial: &Trial, jump: usize) {
    trial.exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task, options) values
           ('fails {jump}', '{{\"exchange\": \"{QUEUE}.{jump}\", \"routing_key\": \"rk\"}}')"
    ));
    attempts(trial, jump, 0).await;
}

/// The task that fails is tried again, and passes when it can.
async fn goes_on(trial: &Trial, jump: usize) {
    let start = Instant::now();
    let more = attempts(trial, jump, i64::MAX).await;
    attempts(trial, jump, more).await;
    trial
        .sheet
        .time("tried again", start.elapsed(), TRIED_AGAIN);
    let binding = format!("rk\x06\x16\x06\x16{QUEUE}");
    let exchange = format!("_kombu.binding.{QUEUE}.{jump}");
    trial.exam.redis.run(&["SADD", &exchange, &binding]);
    let left = format!("select count(*) from aftercommit.hold where task = 'fails {jump}'");
    trial.exam.wait_for_answer(&left, "0").await;
}

/// Waits until the task that fails has more attempts than that; says how many it has. `i64::MAX`: at once.
async fn attempts(trial: &Trial, jump: usize, than: i64) -> i64 {
    let sql = format!("select max(attempts) from aftercommit.hold where task = 'fails {jump}'");
    eventually(PATIENCE, "another attempt", || async {
        let attempts: i64 = trial.exam.postgres.psql(&sql).parse().ok()?;
        (attempts > than || than == i64::MAX).then_some(attempts)
    })
    .await
}

/// One that has expired, and one that has ten minutes left; by the server's clock.
fn expires(trial: &Trial, number: usize) {
    trial.exam.postgres.psql(&format!(
        "insert into aftercommit.outbox (task, queue, expires_at) values
           ('over {number}', '{QUEUE}', now() - interval '1 second'),
           ('left {number}', '{QUEUE}', now() + interval '10 minutes')"
    ));
}

/// The ones are dead, and the others are not.
async fn expired(trial: &Trial, expiring: usize) {
    let count = |condition: &str| {
        let sql = format!("select count(*) from aftercommit.hold where {condition}");
        trial.exam.postgres.psql(&sql)
    };
    let over = "state = 'dead' and task like 'over %' and last_error like '%expired%'";
    eventually(PATIENCE, "the expired ones", || async {
        (count(over) == expiring.to_string()).then_some(())
    })
    .await;
    let wrong = count("task not like 'over %' and state = 'dead'");
    let wrong = wrong.parse().expect("a number");
    trial.sheet.count("dead before their time", wrong, 0);
}

/// Tasks with a time, by the server's clock.
struct Plan {
    name: String,
}

impl Plan {
    /// Those that are held until it has come, and one that a worker keeps until then.
    fn insert(trial: &Trial, name: &str) -> Plan {
        trial.exam.postgres.psql(&format!(
            "insert into aftercommit.outbox (task, queue, run_at, headers)
             select '{name}: ' || task, '{QUEUE}', at, json_build_object('due', (extract(epoch from at) * 1000000)::int8)
             from (select 'soon' as task, now() + interval '1500 milliseconds' as at
                   union all
                   select 'held', now() + interval '2500 milliseconds' + n * interval '50 milliseconds'
                   from generate_series(1, {SCHEDULED}) n) planned
             order by random()"
        ));
        Plan {
            name: name.to_owned(),
        }
    }
}

/// A message in the queue, and when it was there.
#[derive(Clone, Debug)]
struct Seen {
    at: i64,
    name: String,
    due: Option<i64>,
    eta: Option<i64>,
    /// Milliseconds until it expires.
    expiration: Option<i64>,
}

impl Seen {
    fn new(message: &[u8]) -> Seen {
        let message: Value = serde_json::from_slice(message).expect("a message");
        let headers = &message["headers"];
        let expiration = message["properties"]["expiration"].as_str();
        Seen {
            at: unix_micros(),
            name: headers["task"].as_str().expect("a name").to_owned(),
            due: headers["due"].as_i64(),
            eta: headers["eta"].as_str().and_then(moment),
            expiration: expiration.map(|ms| ms.parse().expect("a number")),
        }
    }
}

/// A worker that notes what it takes from the queue, at the moment when it comes.
struct Told {
    seen: Arc<Mutex<Vec<Seen>>>,
    worker: JoinHandle<()>,
}

impl Told {
    async fn by(redis: &Redis) -> Told {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut connection = redis.connection().await;
        let worker = tokio::spawn({
            let seen = seen.clone();
            async move {
                loop {
                    let taken: Option<(String, Vec<u8>)> =
                        connection.brpop(QUEUE, 1.0).await.expect("BRPOP");
                    let taken = taken.map(|(_, message)| Seen::new(&message));
                    seen.lock().expect("no panic").extend(taken);
                }
            }
        });
        Told { seen, worker }
    }

    /// What it took whose name begins so.
    fn named(&self, name: &str) -> Vec<Seen> {
        let seen = self.seen.lock().expect("no panic");
        let named = seen.iter().filter(|seen| seen.name.starts_with(name));
        named.cloned().collect()
    }

    /// What a plan has come to. Not in peace the tasks come, and not before their time; in peace also in time, and in order.
    async fn judge(&self, trial: &Trial, plans: &[Plan], in_peace: bool) {
        for plan in plans {
            eventually(PATIENCE, "what was planned", || async {
                (self.named(&plan.name).len() > SCHEDULED).then_some(())
            })
            .await;
            let all = self.named(&plan.name);
            let (soon, held): (Vec<Seen>, Vec<Seen>) = all
                .into_iter()
                .partition(|seen| seen.name.ends_with("soon"));
            let sheet = &trial.sheet;
            let wrong = soon.iter().chain(&held).filter(|seen| seen.eta != seen.due);
            sheet.count("etas that are not run_at", wrong.count(), 0);
            let early = held.iter().filter(|seen| Some(seen.at) < seen.due);
            sheet.count("early", early.count(), 0);
            sheet.at_least("tasks with a time", held.len(), SCHEDULED);
            if in_peace {
                let late = held.iter().filter_map(|seen| Some(seen.at - seen.due?));
                let late = late.max().unwrap_or(i64::MAX).unsigned_abs();
                sheet.time("late", Duration::from_micros(late), LATE);
                let in_order = held.is_sorted_by_key(|seen| seen.due);
                sheet.count("plans out of order", usize::from(!in_order), 0);
            }
        }
    }

    /// Those with time left have come, and their messages say how much.
    async fn left(&self, trial: &Trial, expiring: usize) {
        eventually(PATIENCE, "those that are not over", || async {
            (self.named("left ").len() >= expiring).then_some(())
        })
        .await;
        let ten_minutes = 600_000;
        let wrong = self.named("left ").into_iter().filter(|seen| {
            let expiration = seen.expiration.unwrap_or_default();
            !(ten_minutes - NEAR.as_millis() as i64..=ten_minutes).contains(&expiration)
        });
        trial.sheet.count("wrong expirations", wrong.count(), 0);
        trial
            .sheet
            .at_least("with ten minutes left", self.named("left ").len(), expiring);
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

/// Nothing is to do: the jumps make no timer turn without end.
async fn quiet(trial: &Trial, life: &Life, clock: &WallClock) {
    for ahead in [HOUR, -HOUR] {
        clock.set(ahead);
        let (used, start) = (processor_time(life), Instant::now());
        tokio::time::sleep(by_profile(Duration::from_secs(1), Duration::from_secs(5))).await;
        let used = processor_time(life).saturating_sub(used);
        let share = used.as_secs_f64() / start.elapsed().as_secs_f64();
        trial.sheet.cores("with nothing to do", share, calm());
    }
}

/// No number in the log is below zero.
fn negatives(life: &Life) {
    let records = life.records();
    let numbers = records.iter().filter_map(Value::as_object).flatten();
    let negative = numbers.filter(|(_, value)| value.as_f64().is_some_and(|value| value < 0.0));
    let negative: Vec<_> = negative.collect();
    life.sheet().count("negative numbers", negative.len(), 0);
    if let Some((name, value)) = negative.first() {
        life.sheet().note(format!("{name} is {value}"));
    }
}

/// A time as a message or the log writes it, in microseconds since 1970.
fn moment(text: &str) -> Option<i64> {
    let text = text.replace('T', " ").replace('Z', "+00");
    match Moment::parse(text.as_bytes()) {
        Ok(Moment::At(at)) => Some(at.to_unix_micros()),
        _ => None,
    }
}

/// The present, by the clock of this machine, which is the servers', too.
fn unix_micros() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(now.expect("after 1970").as_micros()).expect("before 292277")
}
