//! Writers: applications that commit, roll back, and roll back to savepoints.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls, Statement};

use super::CANARY_PAYLOAD;
use super::ledger::hash;

/// The application's own table, written in the same transaction as the outbox: what it holds was committed.
pub(super) const SCHEMA: &str = "create schema exam; create table exam.written
    (id uuid primary key, key text not null, seq bigint not null, hash text not null)";

/// One statement, several rows.
const INSERT: &str = "
    with given as materialized (
      select * from unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[])
        as given (id, key, seq, hash, padding)
    ), written as (
      insert into exam.written select id::uuid, key, seq, hash from given
    )
    insert into aftercommit.outbox (id, task, key, kwargs)
    select id::uuid, 'exam.row', key, json_build_object('key', key, 'seq', seq, 'padding', padding) from given";

/// Keys of a load; each belongs to one writer, so that its numbers ascend in the order of commits.
pub(crate) const KEYS: usize = 1_000;

/// Running writers.
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    writers: JoinSet<Written>,
}

/// What writers have done.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Written {
    /// Rows that were committed, as far as the writers know.
    pub(crate) committed: u64,
    /// Rows that were rolled back.
    pub(crate) rolled_back: u64,
}

impl Load {
    pub(super) fn start(
        url: String,
        part: u64,
        randoms: Vec<fastrand::Rng>,
        pause: Duration,
    ) -> Load {
        let (stop, stopped) = watch::channel(false);
        let mut writers = JoinSet::new();
        let count = randoms.len() as u64;
        for (number, random) in randoms.into_iter().enumerate() {
            let keys = number as u64..KEYS as u64;
            let keys = keys
                .step_by(count as usize)
                .map(|key| part * KEYS as u64 + key)
                .collect();
            writers.spawn(write(url.clone(), random, keys, pause, stopped.clone()));
        }
        Load { stop, writers }
    }

    /// Stops the writers between transactions.
    pub(crate) async fn stop(self) -> Written {
        self.stop.send_replace(true);
        let all = self.writers.join_all().await;
        let sum = |of: fn(&Written) -> u64| all.iter().map(of).sum();
        Written {
            committed: sum(|written| written.committed),
            rolled_back: sum(|written| written.rolled_back),
        }
    }
}

/// One writer. When its connection breaks it opens another: whether its last transaction was committed, the
/// application's own table tells.
async fn write(
    url: String,
    mut random: fastrand::Rng,
    keys: Vec<u64>,
    pause: Duration,
    mut stop: watch::Receiver<bool>,
) -> Written {
    let mut written = Written::default();
    let mut rows = Rows::new(keys);
    while !*stop.borrow() {
        if let Ok(mut writer) = Writer::connect(&url, rows.clone(), random.fork()).await {
            while !*stop.borrow() {
                match writer.transact().await {
                    Ok(more) => {
                        written.committed += more.committed;
                        written.rolled_back += more.rolled_back;
                    }
                    Err(error) => {
                        // Class 57 is a server that goes down.
                        let code = error.code().map_or("57", |code| code.code());
                        assert!(code.starts_with("57"), "a writer is refused: {error:?}");
                        break;
                    }
                }
                let pause = pause.mul_f64(random.f64());
                let _ = tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await;
            }
            rows = writer.rows;
        }
        let again = Duration::from_millis(20);
        let _ = tokio::time::timeout(again, stop.wait_for(|stop| *stop)).await;
    }
    written
}

/// A connection that inserts rows which the checker knows of.
pub(crate) struct Writer {
    /// For what else is to happen in a transaction.
    pub(crate) client: Client,
    insert: Statement,
    rows: Rows,
    random: fastrand::Rng,
}

impl Writer {
    /// With a thousand keys that no other part has.
    pub(super) async fn new(url: &str, part: u64, random: fastrand::Rng) -> Writer {
        let rows = Rows::new((part * KEYS as u64..(part + 1) * KEYS as u64).collect());
        let writer = Writer::connect(url, rows, random).await;
        writer.expect("a connection")
    }

    async fn connect(
        url: &str,
        rows: Rows,
        random: fastrand::Rng,
    ) -> Result<Writer, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        let insert = client.prepare(INSERT).await?;
        Ok(Writer {
            client,
            insert,
            rows,
            random,
        })
    }

    /// The name of one of its keys.
    pub(crate) fn key(&self, index: usize) -> String {
        key_name(self.rows.keys[index].0)
    }

    /// The last number of one of its keys.
    pub(crate) fn last(&self, index: usize) -> i64 {
        self.rows.keys[index].1
    }

    /// Inserts one row of one key.
    pub(crate) async fn insert_one(&mut self, index: usize) -> Result<(), tokio_postgres::Error> {
        let mut one = Rows {
            keys: vec![self.rows.keys[index]],
        };
        insert(&mut one, &self.client, &self.insert, &mut self.random, 1).await?;
        self.rows.keys[index] = one.keys[0];
        Ok(())
    }

    /// Inserts so many rows, which count when the transaction is committed.
    pub(crate) async fn insert(&mut self, count: usize) -> Result<(), tokio_postgres::Error> {
        const AT_ONCE: usize = 1_000;
        for done in (0..count).step_by(AT_ONCE) {
            let count = AT_ONCE.min(count - done);
            insert(
                &mut self.rows,
                &self.client,
                &self.insert,
                &mut self.random,
                count,
            )
            .await?;
        }
        Ok(())
    }

    /// One transaction of 1 to 50 rows: one in ten is rolled back, one in ten has a savepoint that is rolled back.
    async fn transact(&mut self) -> Result<Written, tokio_postgres::Error> {
        let count = self.random.usize(1..=50);
        let (mut committed, mut rolled_back) = (count, 0);
        match self.random.u8(0..10) {
            0 => {
                let before = self.rows.clone();
                self.client.batch_execute("begin").await?;
                self.insert(count).await?;
                self.client.batch_execute("rollback").await?;
                self.rows = before;
                (committed, rolled_back) = (0, count);
            }
            1 => {
                self.client.batch_execute("begin").await?;
                self.insert(count).await?;
                self.client.batch_execute("savepoint half").await?;
                let before = self.rows.clone();
                self.insert(count).await?;
                self.client
                    .batch_execute("rollback to half; commit")
                    .await?;
                self.rows = before;
                rolled_back = count;
            }
            _ => self.insert(count).await?,
        }
        Ok(Written {
            committed: committed as u64,
            rolled_back: rolled_back as u64,
        })
    }
}

/// A writer's keys, with the last number of each.
#[derive(Clone)]
struct Rows {
    keys: Vec<(u64, i64)>,
}

impl Rows {
    fn new(keys: Vec<u64>) -> Rows {
        Rows {
            keys: keys.into_iter().map(|key| (key, 0)).collect(),
        }
    }
}

fn key_name(number: u64) -> String {
    format!("key-{number}")
}

async fn insert(
    rows: &mut Rows,
    client: &Client,
    insert: &Statement,
    random: &mut fastrand::Rng,
    count: usize,
) -> Result<(), tokio_postgres::Error> {
    let (mut ids, mut keys, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut hashes, mut paddings) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let index = random.usize(..rows.keys.len());
        let (number, seq) = &mut rows.keys[index];
        *seq += 1;
        let id = uuid::Builder::from_random_bytes(random.u128(..).to_be_bytes());
        let id = id.into_uuid().to_string();
        let key = key_name(*number);
        let length = random.usize(..200);
        let padding = format!("{CANARY_PAYLOAD} {}", "x".repeat(length));
        hashes.push(hash(&id, &key, *seq, &padding));
        seqs.push(*seq);
        ids.push(id);
        keys.push(key);
        paddings.push(padding);
    }
    let inserted = client
        .execute(insert, &[&ids, &keys, &seqs, &hashes, &paddings])
        .await?;
    assert_eq!(inserted, count as u64);
    Ok(())
}
