//! Asks the primary, and the named replicas, what they see, while a transaction waits.
//!
//! One poll serves every transaction that waits, and under load a snapshot clears many that have not arrived yet. Between
//! polls the watcher backs off: busy polling would starve the very backend that is committing.
//!
//! The watcher has SQL connections of its own, to the server of the slot. It fails closed: while it knows nothing, nothing
//! passes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_postgres::{Client, SimpleQueryMessage, Statement};
use tracing::{info, warn};

use super::clearance::{Clearance, Snapshot};
use crate::backoff::Backoff;
use crate::pg::Lsn;
use crate::replication::{Error, Place, RECONNECT, Target, connect_sql};
use crate::units::BackoffRange;

/// Pauses between polls of one wait.
const POLL: BackoffRange = BackoffRange {
    min: Duration::from_micros(200),
    max: Duration::from_millis(50),
};
/// How long one poll may take before its connection counts as dead.
const POLL_TIMEOUT: Duration = Duration::from_secs(20);

/// What is asked while a transaction waits.
const SNAPSHOT: &str = "select pg_is_in_recovery(), pg_current_snapshot()::text";

/// A connection to the primary with the query prepared: to parse and plan it each time would take the server as long again.
struct Primary {
    client: Client,
    query: Statement,
}

/// Who asks, and where.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The primary.
    pub primary: Arc<Target>,
    /// Whether the primary's snapshot is asked for.
    pub visibility: bool,
    /// Standbys that must have replayed a transaction.
    pub replicas: Vec<Arc<Target>>,
    /// The slot; tells that the connection leads to the same server.
    pub slot: String,
    /// After this long a wait is warned of.
    pub timeout: Duration,
}

/// The transaction at the head of the gate, which everything else waits behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Its id, as Begin tells it.
    pub xid: u32,
    /// The start of its commit record.
    pub commit_lsn: Lsn,
}

/// What the watcher reports.
#[derive(Debug)]
pub enum News {
    /// The transaction that was wanted may pass, and perhaps others.
    Cleared(Clearance),
    /// The server is shutting down: it will wait for the slot's reader.
    ServerLeaving,
}

impl Watch {
    /// Watches for the lifetime of one replication session; `walsender_pid` is that session's.
    ///
    /// Ends when the sender of `wanted` is dropped.
    pub async fn run(
        self,
        walsender_pid: u32,
        mut wanted: watch::Receiver<Option<Wanted>>,
        news: mpsc::Sender<News>,
    ) {
        let mut primary: Option<Primary> = None;
        let mut replicas: Vec<Option<Client>> = self.replicas.iter().map(|_| None).collect();
        let mut reconnect = Backoff::new(RECONNECT);
        // The first connection is made before it is needed: a wait then costs one round trip.
        let mut warm = true;
        loop {
            let target = *wanted.borrow_and_update();
            if target.is_none() && !warm {
                if wanted.changed().await.is_err() {
                    return;
                }
                continue;
            }
            warm = false;
            match self
                .wait_for(
                    target,
                    walsender_pid,
                    &mut primary,
                    &mut replicas,
                    &mut wanted,
                )
                .await
            {
                Ok(Some(clearance)) => {
                    reconnect.reset();
                    if target.is_some() && news.send(News::Cleared(clearance)).await.is_err() {
                        return;
                    }
                    if target.is_some() && wanted.changed().await.is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    if matches!(error.sqlstate(), Some("57P01" | "57P03"))
                        && news.send(News::ServerLeaving).await.is_err()
                    {
                        return;
                    }
                    let pause = reconnect.next(fastrand::f64());
                    warn!(%error, "the gate cannot see; tasks wait");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = news.closed() => return,
                    }
                }
            }
        }
    }

    /// Polls until the wanted transaction is admitted. `None` when something else is wanted by then.
    async fn wait_for(
        &self,
        target: Option<Wanted>,
        walsender_pid: u32,
        primary: &mut Option<Primary>,
        replicas: &mut [Option<Client>],
        wanted: &mut watch::Receiver<Option<Wanted>>,
    ) -> Result<Option<Clearance>, Error> {
        let since = Instant::now();
        let mut warned = since;
        let mut backoff = Backoff::new(POLL);
        loop {
            let snapshot = match self.visibility {
                true => Some(self.snapshot(primary, walsender_pid).await?),
                false => None,
            };
            let mut replayed = None;
            for (target, client) in self.replicas.iter().zip(replicas.iter_mut()) {
                let at = replay_position(target, client).await?;
                replayed = Some(replayed.map_or(at, |least: Lsn| least.min(at)));
            }
            let clearance = Clearance { snapshot, replayed };
            let Some(Wanted { xid, commit_lsn }) = target else {
                return Ok(Some(clearance));
            };
            if clearance.admits(xid, commit_lsn) {
                if warned > since {
                    info!(lsn = %commit_lsn, seconds = since.elapsed().as_secs(), "a transaction is visible at last");
                }
                return Ok(Some(clearance));
            }
            if warned.elapsed() >= self.timeout {
                warned = Instant::now();
                warn!(
                    lsn = %commit_lsn, xid, seconds = since.elapsed().as_secs(),
                    "a committed transaction is not visible yet; its tasks, and those after it, wait at the gate \
                     (a synchronous standby that does not answer, or a replica that lags)"
                );
            }
            pause(backoff.next(fastrand::f64())).await;
            if wanted.has_changed().unwrap_or(true) {
                return Ok(None);
            }
        }
    }

    async fn snapshot(
        &self,
        primary: &mut Option<Primary>,
        walsender_pid: u32,
    ) -> Result<Snapshot, Error> {
        let open = match primary.take() {
            Some(open) => open,
            None => self.open(walsender_pid).await?,
        };
        let row = answered(open.client.query_one(&open.query, &[])).await?;
        let (Ok(recovery), Ok(snapshot)) = (row.try_get::<_, bool>(0), row.try_get::<_, &str>(1))
        else {
            return Err(Error::refused(
                Place::Sql,
                "the server did not return a snapshot",
            ));
        };
        if recovery {
            return Err(Error::refused(
                Place::Sql,
                "the server that [postgres] url leads to is a standby; tasks pass at the primary only",
            ));
        }
        let snapshot = Snapshot::parse(snapshot)
            .map_err(|error| Error::refused(Place::Sql, error.to_string()))?;
        *primary = Some(open);
        Ok(snapshot)
    }

    async fn open(&self, walsender_pid: u32) -> Result<Primary, Error> {
        let client = connect_sql(&self.primary, "aftercommit gate").await?;
        let sql = format!(
            "select active_pid from pg_replication_slots where slot_name = {}",
            postgres_protocol::escape::escape_literal(&self.slot)
        );
        let pid = first_row(&client, &sql).await?.first().cloned().flatten();
        if pid != Some(walsender_pid.to_string()) {
            return Err(Error::refused(
                Place::Sql,
                "the gate's connection leads to another server than the replication connection; point [postgres] \
                 url straight at the primary, not at a pooler or a balancer",
            ));
        }
        let query = answered(client.prepare(SNAPSHOT)).await?;
        Ok(Primary { client, query })
    }
}

async fn replay_position(target: &Target, client: &mut Option<Client>) -> Result<Lsn, Error> {
    let open = match client.take() {
        Some(open) => open,
        None => connect_sql(target, "aftercommit gate").await?,
    };
    // A replica that was promoted replays no more; what it has is all that it will ever have of the primary's.
    let row = first_row(&open, "select pg_last_wal_replay_lsn()").await?;
    let Some(at) = row
        .first()
        .cloned()
        .flatten()
        .and_then(|at| at.parse().ok())
    else {
        return Err(Error::refused(
            Place::Sql,
            "a server named in [gate] replicas is not a standby",
        ));
    };
    *client = Some(open);
    Ok(at)
}

/// The simple protocol: one round trip, and no statement to prepare.
async fn first_row(client: &Client, sql: &str) -> Result<Vec<Option<String>>, Error> {
    let messages = answered(client.simple_query(sql)).await?;
    let row = messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(row.map_or(Vec::new(), |row| {
        (0..row.len())
            .map(|i| row.get(i).map(str::to_owned))
            .collect()
    }))
}

/// The answer to a query, unless its connection counts as dead.
async fn answered<T>(
    query: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(POLL_TIMEOUT, query).await {
        Ok(answer) => answer.map_err(|error| Error::sql("the gate's snapshot", error)),
        Err(_) => Err(Error::refused(
            Place::Sql,
            "no answer to the gate's query within 20 s",
        )),
    }
}

/// tokio's timer has a grain of a millisecond; a shorter pause is slept on a thread of its own.
async fn pause(length: Duration) {
    if length >= Duration::from_millis(2)
        || tokio::task::spawn_blocking(move || std::thread::sleep(length))
            .await
            .is_err()
    {
        tokio::time::sleep(length).await;
    }
}
