//! The reliability exam: writers that commit and roll back at random, the list that the daemon fills, and a checker that
//! compares the two.
//!
//! What is random comes from one seed, which every run prints; `EXAM_SEED` repeats it.

pub(crate) mod ledger;
pub(crate) mod load;
mod numbered;
pub(crate) mod unbound;

use std::collections::HashSet;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::AsyncCommands;

use self::ledger::{Delivery, Receipt, Written};
use self::load::{Load, Writer};
use super::daemon::{Daemon, init};
use super::postgres::{self, Postgres, SUPERUSER};
use super::redis::{self as broker, Redis};
use super::wait::eventually;

/// In every row's payload.
pub(crate) const CANARY_PAYLOAD: &str = "canary-payload-93ab";
/// The password of both servers.
pub(crate) const CANARY_SECRET: &str = "canary-secret-5e1f";
/// The list that the daemon pushes to.
pub(crate) const LIST: &str = "celery";
/// The limit on tasks in flight that [`Exam::config`] sets: small, so that a bound on duplicates means something.
pub(crate) const IN_FLIGHT: usize = 512;

/// How long the daemon may take to deliver all that was committed. Long: these tests share the machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// The seed of everything that is random in this process.
pub(crate) fn seed() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| {
        std::env::var("EXAM_SEED")
            .map(|seed| seed.parse().expect("EXAM_SEED is a number"))
            .unwrap_or_else(|_| fastrand::u64(..))
    });
    *SEED
}

/// Private servers, set up by `init`, and what was delivered so far.
pub(crate) struct Exam {
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    seed: u64,
    /// How many loads have been started: each has keys of its own.
    loads: AtomicU64,
    deliveries: Vec<Delivery>,
}

impl Exam {
    /// Servers with their defaults; both know the canary as a password.
    pub(crate) fn start() -> Exam {
        Exam::start_with(broker::Options::default())
    }

    /// As [`start`](Exam::start), with a Redis of another kind.
    pub(crate) fn start_with(redis: broker::Options) -> Exam {
        Exam::start_on(postgres::Options::default(), redis)
    }

    /// As [`start_with`](Exam::start_with), with a Postgres of another kind.
    pub(crate) fn start_on(postgres: postgres::Options, redis: broker::Options) -> Exam {
        let seed = seed();
        eprintln!("EXAM_SEED={seed}");
        let exam = Exam {
            postgres: Postgres::start(postgres),
            redis: Redis::start_with(broker::Options {
                password: Some(CANARY_SECRET),
                ..redis
            }),
            seed,
            loads: AtomicU64::new(0),
            deliveries: Vec::new(),
        };
        init(&exam.config());
        exam.postgres.psql(load::SCHEMA);
        exam
    }

    /// Random numbers of this run; `part` tells its users apart.
    pub(crate) fn random(&self, part: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(
            self.seed
                .wrapping_add(part.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        )
    }

    /// The configuration of a daemon that pushes everything to [`LIST`].
    pub(crate) fn config(&self) -> String {
        self.config_through(&self.postgres_url(), &self.redis.url(0))
    }

    /// As [`config`](Exam::config), by way of other URLs.
    pub(crate) fn config_through(&self, postgres_url: &str, broker_url: &str) -> String {
        format!(
            r#"
[postgres]
url = "{postgres_url}"

[limits]
in_flight = {IN_FLIGHT}

[log]
level = "trace"

[sink.celery.workers]
broker_url = "{broker_url}"
queue = "{LIST}"

[[route]]
task = "*"
sink = "workers"
retry = {{ backoff = "50ms..500ms" }}
"#
        )
    }

    /// URL of the database; the server trusts everyone, and the password is for the log not to show.
    pub(crate) fn postgres_url(&self) -> String {
        self.postgres_url_through(self.postgres.port())
    }

    /// As [`postgres_url`](Exam::postgres_url), by way of another port: a proxy's.
    pub(crate) fn postgres_url_through(&self, port: u16) -> String {
        let user = format!("{SUPERUSER}:{CANARY_SECRET}");
        self.postgres.url_through(port, &user)
    }

    /// Starts writers on `connections` connections, each with a random pause of up to `pause` between transactions.
    pub(crate) fn load(&self, connections: u64, pause: Duration) -> Load {
        let number = self.loads.fetch_add(1, Ordering::Relaxed);
        let random = |part| self.random(1 + part + 100 * number);
        let randoms = (0..connections).map(random).collect();
        Load::start(self.postgres.url(SUPERUSER), number, randoms, pause)
    }

    /// A connection for transactions of the test's own making, with rows that the checker knows of. `part` tells their
    /// keys apart from those of others.
    pub(crate) async fn writer(&self, part: u64) -> Writer {
        let part = part + 1_000_000; // beyond all loads
        let random = self.random(part);
        Writer::new(&self.postgres.url(SUPERUSER), part, random).await
    }

    /// Commits one transaction of so many rows, outside of the checker's view: for what is counted only.
    pub(crate) fn bulk(&self, rows: usize) {
        self.postgres.psql(&format!(
            "insert into aftercommit.outbox (task, key, kwargs)
             select 'exam.bulk', n % 1000, json_build_object('n', n, 'padding', '{CANARY_PAYLOAD}' || repeat('x', 100))
             from generate_series(1, {rows}) n"
        ));
    }

    /// Commits so many transactions of one row, as [`bulk`](Exam::bulk) does.
    pub(crate) fn insert(&self, rows: usize) {
        self.postgres.psql(&format!(
            "do $$ begin
               perform set_config('synchronous_commit', 'off', false);
               for n in 1 .. {rows} loop
                 insert into aftercommit.outbox (task, key, kwargs)
                 values ('exam.single', n % 1000, json_build_object('n', n, 'padding', '{CANARY_PAYLOAD}'));
                 commit;
               end loop;
             end $$"
        ));
    }

    /// How many messages the daemon has pushed.
    pub(crate) async fn pushed(&self) -> usize {
        let mut connection = self.redis.connection().await;
        connection.llen(LIST).await.expect("LLEN")
    }

    /// Waits until the daemon has pushed so many messages.
    pub(crate) async fn wait_for_pushed(&self, at_least: usize) {
        let connection = self.redis.connection().await;
        let what = format!("{at_least} messages");
        eventually(PATIENCE, &what, || {
            let mut connection = connection.clone();
            async move {
                let length: usize = connection.llen(LIST).await.ok()?;
                (length >= at_least).then_some(())
            }
        })
        .await;
    }

    /// What was delivered so far, in order, with what came twice.
    pub(crate) async fn deliveries(&mut self) -> &[Delivery] {
        // Pushed to the left: what came after the messages that are known has the smallest indices.
        let mut connection = self.redis.connection().await;
        loop {
            let length: usize = connection.llen(LIST).await.expect("LLEN");
            let known = self.deliveries.len();
            if length <= known {
                return &self.deliveries;
            }
            let first = -(known as isize) - 1;
            let most = 5_000.min((length - known) as isize);
            let messages: Vec<Vec<u8>> = connection
                .lrange(LIST, first - most + 1, first)
                .await
                .expect("LRANGE");
            let decoded = messages
                .iter()
                .rev()
                .map(|message| Delivery::of_celery(message));
            self.deliveries.extend(decoded);
        }
    }

    /// How many different tasks were pushed; counted by Redis, for lists that are too long to be read.
    pub(crate) async fn different(&self) -> usize {
        const SCRIPT: &str = r#"
            local seen, count = {}, 0
            for from = 0, redis.call('llen', KEYS[1]), 1000 do
                for _, message in ipairs(redis.call('lrange', KEYS[1], from, from + 999)) do
                    local id = string.match(message, '"id": ?"([^"]+)"')
                    if not seen[id] then
                        seen[id] = true
                        count = count + 1
                    end
                end
            end
            return count"#;
        let mut connection = self.redis.connection().await;
        let mut script = redis::cmd("EVAL");
        script.arg(SCRIPT).arg(1).arg(LIST);
        script.query_async(&mut connection).await.expect("a number")
    }

    /// What was committed so far, whoever wrote it.
    pub(crate) async fn written(&self) -> Vec<Written> {
        let client = self.postgres.client().await;
        let sql = "select id::text, key, seq, hash from exam.written";
        let rows = client.query(sql, &[]).await.expect("the rows");
        rows.iter()
            .map(|row| Written {
                id: row.get(0),
                key: row.get(1),
                seq: row.get(2),
                hash: row.get(3),
            })
            .collect()
    }

    /// Ids of the tasks in the hold table: not delivered, and not lost.
    pub(crate) async fn held(&self) -> HashSet<String> {
        let client = self.postgres.client().await;
        let rows = client.query("select id from aftercommit.hold", &[]).await;
        let rows = rows.expect("the hold table");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Waits until all that was committed is delivered (the writers must have stopped), and compares.
    pub(crate) async fn receipt(&mut self) -> Receipt {
        let written = self.written().await;
        self.wait_for_pushed(written.len()).await;
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let held = self.held().await;
            let receipt = Receipt::new(&written, self.deliveries().await, &held);
            if receipt.lost.is_empty() || std::time::Instant::now() > deadline {
                return receipt;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until neither the outbox nor the hold table has a row.
    pub(crate) async fn nothing_left(&self) {
        let left = "select (select count(*) from aftercommit.outbox), (select count(*) from aftercommit.hold)";
        eventually(PATIENCE, "an empty outbox and hold table", || async {
            (self.postgres.psql(left) == "0|0").then_some(())
        })
        .await;
    }

    /// What the slot has confirmed.
    pub(crate) fn confirmed(&self) -> u64 {
        let sql = "select confirmed_flush_lsn - '0/0' from pg_replication_slots where slot_type = 'logical'";
        self.postgres.psql(sql).parse().expect("a position")
    }

    /// Waits until nobody reads, or makes, the slot.
    pub(crate) async fn wait_until_idle(&self) {
        let busy = "select count(*) from pg_replication_slots where active";
        eventually(PATIENCE, "the end of the walsender", || async {
            (self.postgres.psql(busy) == "0").then_some(())
        })
        .await;
    }

    /// Waits until the server knows that the slot's reader is gone, and returns what is confirmed.
    pub(crate) async fn confirmed_at_rest(&self) -> u64 {
        eventually(PATIENCE, "the end of the walsender", || async {
            let sql =
                "select confirmed_flush_lsn - '0/0' from pg_replication_slots where not active";
            self.postgres.psql(sql).parse().ok()
        })
        .await
    }
}

/// The processor time that a daemon has used so far.
pub(crate) fn processor_time(daemon: &Daemon) -> Duration {
    // proc(5): utime and stime are the 12th and 13th field after the name, in hundredths of a second.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).expect("proc(5)");
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>());
    Duration::from_millis(10 * ticks.map(|ticks| ticks.expect("a number")).sum::<u64>())
}

/// Whether a record of the log holds these words.
pub(crate) fn says(record: &serde_json::Value, words: &str) -> bool {
    let text = |name: &str| record[name].as_str().unwrap_or_default();
    text("message").contains(words) || text("cause").contains(words)
}

/// The lines of a daemon's log that hold a payload, a secret or a panic.
pub(crate) fn indiscretions(daemon: &Daemon) -> Vec<String> {
    let words = [CANARY_PAYLOAD, CANARY_SECRET, "panicked"];
    let log = daemon.log();
    let lines = log
        .lines()
        .filter(|line| words.iter().any(|word| line.contains(word)));
    lines.map(str::to_owned).collect()
}

/// What a daemon has said holds neither a payload nor a secret, and no panic.
pub(crate) fn assert_discreet(daemon: &Daemon) {
    assert_eq!(indiscretions(daemon), [""; 0]);
    assert_eq!(daemon.stdout(), [""; 0]);
}
