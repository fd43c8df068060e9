//! Floor 6: `retention = "partition"`: makes the outbox's partitions ahead of time, and drops those that are wholly
//! settled.
//!
//! Only for as long as a session of ours streams: who does not read the slot knows nothing of what is settled. What is
//! done needs no memory: a daemon that starts anew looks again, and at worst drops a partition a little later.
//!
//! No statement here makes the application wait for longer than a moment: `sql/partitions.sql` says how. So a partition
//! that somebody reads is not dropped now but later.

mod leaving;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use self::leaving::{Leaving, Look};
use crate::backoff::Backoff;
use crate::control::partitions::{
    Partition, drop_partition, extend, holders, open_transactions, partitions,
    prepared_transactions, reader, strays, written,
};
use crate::intake::{Confirmation, Line, Session};
use crate::outbox::TableName;
use crate::pg::Lsn;
use crate::replication::{Error, Target, connect_sql};
use crate::units::BackoffRange;

/// No pause between two rounds is longer, nor the one after a failure.
const ROUND: Duration = Duration::from_secs(60);
/// The pause while a partition waits for somebody else's transaction to end.
const OPEN: Duration = Duration::from_secs(5);
/// Pauses between two tries to drop one: each can make inserts wait for a tenth of a second.
const IN_USE: BackoffRange = BackoffRange {
    min: Duration::from_secs(4),
    max: ROUND,
};
/// 55P03, `lock_not_available`.
const LOCKED: &str = "55P03";

/// What is to be kept.
#[derive(Clone, Debug)]
pub struct Partitions {
    /// The primary.
    pub target: Arc<Target>,
    /// The slot: who reads it may drop.
    pub slot: String,
    /// The outbox table.
    pub table: TableName,
    /// Width of the first partition.
    pub width: Duration,
    /// How long a settled partition stays after its time is over.
    pub keep: Duration,
}

/// What the log says already, by its subject: what stays as it is, is told once.
type Told = HashMap<String, String>;

fn is_news(told: &mut Told, about: &str, words: &str) -> bool {
    told.insert(about.to_owned(), words.to_owned()).as_deref() != Some(words)
}

impl Partitions {
    /// Keeps the partitions until the intake has ended.
    pub async fn run(
        self,
        mut line: watch::Receiver<Line>,
        confirmed: watch::Receiver<Confirmation>,
    ) {
        let mut told = Told::new();
        loop {
            let session = match line.wait_for(|line| matches!(line, Line::Up(_))).await {
                Ok(line) => match &*line {
                    Line::Up(session) => *session,
                    Line::Down | Line::Halted(_) => continue,
                },
                Err(_) => return,
            };
            let is_over =
                |line: &Line| !matches!(line, Line::Up(now) if now.number == session.number);
            tokio::select! {
                biased;
                _ = line.wait_for(is_over) => {}
                () = self.during(session, confirmed.clone(), &mut told) => {}
            }
        }
    }

    /// Keeps them for as long as it is not dropped: from the session's begin to its end.
    async fn during(
        &self,
        session: Session,
        mut confirmed: watch::Receiver<Confirmation>,
        told: &mut Told,
    ) {
        loop {
            match self.connected(session, &mut confirmed, told).await {
                Ok(()) => {}
                // The session tells of a server that is away.
                Err(error) if error.sqlstate().is_none() => {
                    debug!(%error, "could not look after the partitions");
                }
                Err(error) => {
                    warn!(%error, "could not look after the outbox's partitions; will try again");
                }
            }
            tokio::time::sleep(ROUND).await;
        }
    }

    /// Round after round, until another daemon reads the slot.
    async fn connected(
        &self,
        session: Session,
        confirmed: &mut watch::Receiver<Confirmation>,
        told: &mut Told,
    ) -> Result<(), Error> {
        let db = connect_sql(&self.target, "aftercommit partitions").await?;
        db.batch_execute("set statement_timeout = '30s'")
            .await
            .map_err(|e| Error::sql("begin a session", e))?;
        let ours = i32::try_from(session.walsender_pid).ok();
        let mut leaving = Leaving::default();
        let mut in_use = Backoff::new(IN_USE);
        // What is confirmed of another generation is a position in another history.
        let position = |confirmation: &Confirmation| match confirmation.generation {
            generation if generation == session.generation => confirmation.lsn.lsn(),
            _ => Lsn::ZERO,
        };
        while reader(&db, &self.slot).await? == ours {
            self.make(&db, told).await?;
            let all = partitions(&db, &self.table).await?;
            let (past, pause) = self.past(&all);
            if leaving.retain(&past) {
                let look = Look {
                    open: open_transactions(&db).await?,
                    prepared: prepared_transactions(&db).await?,
                    written: written(&db).await?,
                };
                leaving.look(&past, &look);
            }
            let settled = position(&confirmed.borrow());
            let pause = match leaving.retain(&past) {
                true => pause.min(OPEN),
                false => pause,
            };
            let mut all_dropped = true;
            for partition in past.iter().filter(|p| leaving.is_settled(p, settled)) {
                all_dropped &= self.drop(&db, partition, told).await?;
            }
            let pause = match all_dropped {
                true => {
                    in_use.reset();
                    pause
                }
                false => pause.min(in_use.next(fastrand::f64())),
            };
            let awaited = leaving.awaits(settled);
            let is_confirmed = async {
                let reached = |now: &Confirmation| awaited.is_some_and(|lsn| position(now) >= lsn);
                confirmed.wait_for(reached).await.is_ok()
            };
            tokio::select! {
                true = is_confirmed => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// Makes those to come. That it fails is told each time: when the last one is over, inserts fail, or go into the
    /// DEFAULT partition.
    async fn make(&self, db: &Client, told: &mut Told) -> Result<(), Error> {
        match extend(db, &self.table, self.width).await {
            Ok(made) => {
                for made in made {
                    match &made.problem {
                        None => info!(
                            partition = %made.name, from = %made.from, to = %made.to,
                            "made a partition of the outbox"
                        ),
                        Some(problem) if is_news(told, &made.name, problem) => warn!(
                            partition = %made.name, from = %made.from, to = %made.to,
                            "cannot make a partition of the outbox: {problem}. Rows of its time go into the DEFAULT \
                             partition and stay there: move those that are in it out of the way, or drop or attach \
                             the table of this name"
                        ),
                        Some(_) => {}
                    }
                }
            }
            Err(error) if error.sqlstate() == Some(LOCKED) => {
                info!(table = %self.table, "cannot make the partitions to come yet: somebody holds a lock");
            }
            Err(error) if error.sqlstate().is_some() => {
                let remedy = remedy(&error).unwrap_or_default();
                warn!(%error, table = %self.table, "cannot make the partitions to come{remedy}");
            }
            Err(error) => return Err(error),
        }
        match strays(db, &self.table).await {
            Ok(Some(name)) if is_news(told, "strays", &name) => warn!(
                partition = %name,
                "the DEFAULT partition has rows: they are dispatched, but the partition is never dropped, and no \
                 partition can be made for their time; delete what is dispatched"
            ),
            Ok(None) => {
                told.remove("strays");
            }
            Ok(Some(_)) => {}
            Err(error) if error.sqlstate() == Some(LOCKED) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The partitions that have been over for long enough, and the longest pause until the next look at all of them.
    fn past<'a>(&self, all: &'a [Partition]) -> (Vec<&'a Partition>, Duration) {
        const BRIEFLY: Duration = Duration::from_secs(1);
        let keep_us = i64::try_from(self.keep.as_micros()).unwrap_or(i64::MAX);
        let left_us = |partition: &Partition| Some(keep_us.saturating_sub(partition.past_us?));
        let is_past = |partition: &&Partition| left_us(partition).is_some_and(|left| left < 0);
        // Two partitions are there before they are needed: within half the width of one, one has to be made.
        let half = all.iter().filter_map(|p| p.width).map(|width| width / 2);
        let next = all
            .iter()
            .filter_map(left_us)
            .filter_map(|left| u64::try_from(left).ok())
            .map(|left| Duration::from_micros(left) + Duration::from_millis(1));
        let pause = half.chain(next).min().unwrap_or(ROUND);
        (
            all.iter().filter(is_past).collect(),
            pause.clamp(BRIEFLY, ROUND),
        )
    }

    /// Whether it could be dropped.
    async fn drop(
        &self,
        db: &Client,
        partition: &Partition,
        told: &mut Told,
    ) -> Result<bool, Error> {
        let name = &partition.name;
        match drop_partition(db, &self.table, partition.oid).await {
            Ok(()) => {
                told.remove(name);
                info!(partition = %name, "dropped a partition of the outbox: all that was in it is settled");
                Ok(true)
            }
            Err(error) if error.sqlstate() == Some(LOCKED) => {
                let pids = holders(db, &self.table, partition.oid).await?;
                let words = format!("{pids:?}");
                if is_news(told, name, &words) {
                    info!(
                        partition = %name, holders = %words,
                        "a settled partition of the outbox is in use; it is dropped later"
                    );
                }
                Ok(false)
            }
            Err(error) if error.sqlstate().is_some() => {
                let remedy = remedy(&error).unwrap_or_default();
                if is_news(told, name, &error.to_string()) {
                    warn!(%error, partition = %name, "cannot drop a settled partition of the outbox{remedy}");
                }
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// What to do about a refusal, to be put behind the words.
fn remedy(error: &Error) -> Option<&'static str> {
    Some(match error.sqlstate()? {
        "42501" => {
            ": aftercommit.outbox_extend and aftercommit.outbox_drop need an owner who owns the table and may create in \
             its schema, and our role EXECUTE on them and DELETE on the table: aftercommit init, as that owner"
        }
        "42883" | "3F000" => ": aftercommit init makes the functions",
        "2BP01" => ": a foreign key or a view needs it; drop that, or set retention = \"keep\"",
        "57014" => ": it took too long; is there a DEFAULT partition with many rows?",
        _ => return None,
    })
}
