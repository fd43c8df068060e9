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

/// Keys in all; each belongs to one writer, so that its numbers ascend in the order of commits.
const KEYS: u64 = 1_000;

/// Running writers.
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    writers: JoinSet<Written>,
}

/// What writers have done.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Written {
    /// Rows that were committed.
    pub(crate) committed: u64,
    /// Rows that were rolled back.
    pub(crate) rolled_back: u64,
}

impl Load {
    pub(super) fn start(url: String, randoms: Vec<fastrand::Rng>, pause: Duration) -> Load {
        let (stop, stopped) = watch::channel(false);
        let mut writers = JoinSet::new();
        let count = randoms.len() as u64;
        for (number, random) in randoms.into_iter().enumerate() {
            let keys = (number as u64..KEYS).step_by(count as usize).collect();
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

/// One writer: transactions of 1 to 50 rows, one in ten rolled back, one in ten with a savepoint rolled back.
async fn write(
    url: String,
    mut random: fastrand::Rng,
    keys: Vec<u64>,
    pause: Duration,
    mut stop: watch::Receiver<bool>,
) -> Written {
    let (client, connection) = tokio_postgres::connect(&url, NoTls)
        .await
        .expect("a connection");
    tokio::spawn(connection);
    let insert = client.prepare(INSERT).await.expect("the outbox");
    let mut written = Written::default();
    let mut rows = Rows {
        keys: keys.into_iter().map(|key| (key, 0)).collect(),
    };
    while !*stop.borrow() {
        let count = random.u64(1..=50);
        match random.u8(0..10) {
            0 => {
                let mut discarded = rows.clone();
                command(&client, "begin").await;
                discarded.insert(&client, &insert, &mut random, count).await;
                command(&client, "rollback").await;
                written.rolled_back += count;
            }
            1 => {
                command(&client, "begin").await;
                rows.insert(&client, &insert, &mut random, count).await;
                command(&client, "savepoint half").await;
                let mut discarded = rows.clone();
                discarded.insert(&client, &insert, &mut random, count).await;
                command(&client, "rollback to half").await;
                command(&client, "commit").await;
                written.committed += count;
                written.rolled_back += count;
            }
            _ => {
                rows.insert(&client, &insert, &mut random, count).await;
                written.committed += count;
            }
        }
        let pause = pause.mul_f64(random.f64());
        let _ = tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await;
    }
    written
}

async fn command(client: &Client, sql: &str) {
    client.batch_execute(sql).await.expect(sql);
}

/// A writer's keys, with the last number of each.
#[derive(Clone)]
struct Rows {
    keys: Vec<(u64, i64)>,
}

impl Rows {
    async fn insert(
        &mut self,
        client: &Client,
        insert: &Statement,
        random: &mut fastrand::Rng,
        count: u64,
    ) {
        let (mut ids, mut keys, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
        let (mut hashes, mut paddings) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let index = random.usize(..self.keys.len());
            let (number, seq) = &mut self.keys[index];
            *seq += 1;
            let id = uuid::Builder::from_random_bytes(random.u128(..).to_be_bytes());
            let id = id.into_uuid().to_string();
            let key = format!("key-{number}");
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
            .await
            .expect("rows");
        assert_eq!(inserted, count);
    }
}
