//! Who keeps a slot from being made.
//!
//! A logical slot starts at a point at which every transaction is known from its beginning, so its creation waits for
//! every transaction of the cluster that has written and is still open, prepared ones too (documentation, chapter
//! "Logical Decoding Concepts").

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

/// How long a slot may take before we say whom it waits for, and between two looks.
const PATIENCE: Duration = Duration::from_secs(2);

/// An open transaction that the creation of a slot waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Blocker {
    /// A session's.
    Session {
        /// Process id of its backend.
        pid: i32,
        /// What the server tells of it: application, role, database, state. Parts may be hidden from a plain role.
        about: String,
        /// Seconds since its transaction began, where the role may see it.
        age_s: Option<i64>,
    },
    /// A prepared one, which no session holds any more.
    Prepared {
        /// Its name.
        gid: String,
        /// The database that it has to be ended in.
        database: String,
        /// Seconds since it was prepared.
        age_s: i64,
    },
}

impl Blocker {
    /// Whether both are the same transaction, whatever time has passed.
    pub fn same(&self, other: &Blocker) -> bool {
        match (self, other) {
            (Blocker::Session { pid: a, .. }, Blocker::Session { pid: b, .. }) => a == b,
            (Blocker::Prepared { gid: a, .. }, Blocker::Prepared { gid: b, .. }) => a == b,
            _ => false,
        }
    }

    /// SQL that ends it, and undoes its work.
    pub fn remedy(&self) -> String {
        match self {
            Blocker::Session { pid, .. } => format!("select pg_terminate_backend({pid});"),
            Blocker::Prepared { gid, .. } => {
                format!("rollback prepared {};", super::literal(gid))
            }
        }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blocker::Session { pid, about, age_s } => {
                write!(f, "pid {pid}")?;
                if !about.is_empty() {
                    write!(f, " ({about})")?;
                }
                match age_s {
                    Some(age) => write!(f, ", open for {age} s"),
                    None => Ok(()),
                }
            }
            Blocker::Prepared {
                gid,
                database,
                age_s,
            } => write!(
                f,
                "prepared transaction {gid:?} in database {database}, for {age_s} s"
            ),
        }
    }
}

/// Waits until a slot is made, by backend `waiting`, and tells of the transactions that are in its way, those that were told
/// of before only when others have come.
///
/// `observer` is a connection to the same server; without it, nothing is told.
pub async fn watched<T>(
    made: impl Future<Output = T>,
    observer: &Client,
    waiting: i32,
    tell: &mut (dyn FnMut(&[Blocker]) + Send),
) -> T {
    let mut made = std::pin::pin!(made);
    let mut look = tokio::time::interval_at(Instant::now() + PATIENCE, PATIENCE);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Vec<Blocker> = Vec::new();
    loop {
        tokio::select! {
            biased;
            result = &mut made => return result,
            _ = look.tick() => {}
        }
        let Ok(now) = blockers(observer, waiting).await else {
            return made.await;
        };
        let news = now.iter().any(|a| !told.iter().any(|b| a.same(b)));
        if news {
            tell(&now);
            told = now;
        }
    }
}

/// The transactions that backend `waiting` waits for now, or will: those that hold a transaction id, longest first.
async fn blockers(observer: &Client, waiting: i32) -> Result<Vec<Blocker>, Error> {
    // pg_locks shows every holder's pid to every role; pg_stat_activity hides the rest of other roles' sessions.
    let sessions = observer
        .query_typed(
            "select l.pid, \
               concat_ws(', ', nullif(a.application_name, ''), 'role ' || a.usename, 'database ' || a.datname, a.state), \
               extract(epoch from clock_timestamp() - a.xact_start)::int8 \
             from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid \
             where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted \
               and l.pid is not null and l.pid <> $1 and l.pid <> pg_backend_pid() \
               and (l.pid = any (pg_blocking_pids($1)) \
                 or a.xact_start < (select query_start from pg_catalog.pg_stat_activity where pid = $1)) \
             order by a.xact_start nulls last, l.pid",
            &[(&waiting, Type::INT4)],
        )
        .await?;
    let prepared = observer
        .query_typed(
            "select gid, database::text, extract(epoch from clock_timestamp() - prepared)::int8 \
             from pg_catalog.pg_prepared_xacts order by prepared",
            &[],
        )
        .await?;
    let mut found = Vec::new();
    for row in sessions {
        found.push(Blocker::Session {
            pid: row.try_get(0)?,
            about: row.try_get(1)?,
            age_s: row.try_get(2)?,
        });
    }
    for row in prepared {
        found.push(Blocker::Prepared {
            gid: row.try_get(0)?,
            database: row.try_get(1)?,
            age_s: row.try_get(2)?,
        });
    }
    Ok(found)
}
