//! One round: a transaction that writes down what is settled.
//!
//! The fence: two daemons may stand by one slot, and one that has lost it may not know yet. So each round takes the lock
//! of the slot's hold first, and then asks whether the slot is being read by the walsender of our own session. If another
//! daemon had taken over before, it is not, and the round is given up; if one takes over after that, it waits for the lock
//! before it reads what is held, and so sees the round.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::Running;
use super::Work;
use crate::clock;
use crate::failpoint::{self, Point};
use crate::hold::{self, Checkpoint};
use crate::intake::Session;
use crate::pg::Timestamp;
use crate::replication::{Error, Place, Policy};

impl Running {
    /// Writes one round.
    pub(super) async fn round(&mut self, session: Session, work: &Work) -> Result<(), Error> {
        let mut passes_over = !self.stuck.is_empty();
        let wrote = loop {
            let wrote = self.write_round(session, work, passes_over).await;
            match &wrote {
                Err(error) if is_lock(error) && !passes_over && self.stuck.has_room() => {
                    passes_over = true;
                }
                _ => break wrote?,
            }
        };
        self.retained = wrote.retained;
        self.stuck.set(wrote.stuck);
        Ok(())
    }

    async fn write_round(
        &mut self,
        session: Session,
        work: &Work,
        passes_over: bool,
    ) -> Result<Wrote, Error> {
        self.client().await?;
        let Running {
            client: Some(client),
            keeper,
            stuck,
            ..
        } = self
        else {
            return Err(Error::closed(Place::Sql));
        };
        let failed = |error| Error::sql("settling", error);
        let mut transaction = client.transaction().await.map_err(failed)?;
        let retained = fence(transaction.client(), &keeper.slot, session).await?;
        hold::park(&transaction, &keeper.slot, &work.parks).await?;
        hold::remove(&transaction, &keeper.slot, &work.rows.removed).await?;
        hold::postpone(&transaction, &keeper.slot, &work.rows.postponed).await?;
        hold::bury(&transaction, &keeper.slot, &work.rows.buried).await?;
        let (again, rest) = stuck.parts();
        let mut left = rest.to_vec();
        if let Some(column) = &keeper.delete_by {
            let held = work.parks.iter().map(|park| park.task.id());
            let ids: Vec<&str> = work.delivered.iter().chain(held).collect();
            let table = &keeper.table;
            let again: Vec<&str> = again.iter().map(String::as_str).collect();
            for ids in [ids, again] {
                match passes_over {
                    true => left.append(
                        &mut hold::delete_unlocked(&mut transaction, table, column, &ids).await?,
                    ),
                    false => {
                        hold::delete_settled(&transaction, table, column, &ids).await?;
                    }
                }
            }
        }
        // Of another generation it is no position here; and what is still in the outbox counts as not settled.
        if session.generation == work.confirmation.generation && left.is_empty() {
            let checkpoint = Checkpoint {
                system_id: session.identity.system_id,
                timeline: session.identity.timeline,
                lsn: work.confirmation.lsn.lsn(),
            };
            hold::write_checkpoint(&transaction, &keeper.slot, &checkpoint).await?;
        }
        failpoint::reach(Point::Settling);
        transaction.commit().await.map_err(failed)?;
        failpoint::reach(Point::Settled);
        Ok(Wrote {
            retained,
            stuck: left,
        })
    }
}

/// What a round has done.
struct Wrote {
    /// Bytes of WAL that the server keeps for the slot.
    retained: u64,
    /// Settled rows that are still in the outbox.
    stuck: Vec<String>,
}

fn is_lock(error: &Error) -> bool {
    error.sqlstate() == Some("55P03")
}

/// Takes the lock of the slot's hold until the end of the transaction; fails when the slot is not ours. Says how many bytes
/// of WAL the server keeps for the slot. And hears what time it is there, since it is asked so often.
pub(super) async fn fence(db: &Client, slot: &str, session: Session) -> Result<u64, Error> {
    let ours = i32::try_from(session.walsender_pid).unwrap_or_default();
    let params = [(
        &slot as &(dyn tokio_postgres::types::ToSql + Sync),
        Type::TEXT,
    )];
    let asked = tokio::try_join!(
        db.query_typed("select aftercommit.hold_lock($1)", &params),
        db.query_typed_opt(
            "select active_pid, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8,
                    (extract(epoch from clock_timestamp()) * 1000000)::int8
             from pg_replication_slots where slot_name = $1",
            &params
        ),
    );
    let (_, slot) = asked.map_err(|error| Error::sql("asking who reads the slot", error))?;
    let reader: Option<i32> = slot.as_ref().and_then(|row| row.try_get(0).ok().flatten());
    let retained: Option<i64> = slot.as_ref().and_then(|row| row.try_get(1).ok().flatten());
    if let Some(shows) = slot.and_then(|row| row.try_get(2).ok()) {
        clock::hear(Timestamp::from_unix_micros(shows));
    }
    match reader == Some(ours) {
        true => Ok(u64::try_from(retained.unwrap_or_default()).unwrap_or_default()),
        false => Err(Error::judged(
            Place::Sql,
            Policy::StandBy,
            "another process reads the slot, or nobody does",
        )),
    }
}
