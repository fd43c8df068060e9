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
use crate::hold::{self, Checkpoint};
use crate::intake::Session;
use crate::outbox::TableName;
use crate::replication::{Error, Place, Policy};

/// Rows that one statement deletes.
const DELETE_ROWS: usize = 5_000;

impl Running {
    /// Writes one round; says of which keys nothing is held any more.
    pub(super) async fn round(
        &mut self,
        session: Session,
        work: &Work,
    ) -> Result<Vec<(usize, u64)>, Error> {
        let slot = self.keeper.slot.clone();
        let table = self.keeper.table.clone();
        let delete_by = self.keeper.delete_by.clone();
        let (retained, freed) = write(
            self.client().await?,
            &slot,
            &table,
            delete_by.as_deref(),
            session,
            work,
        )
        .await?;
        self.retained = retained;
        let index = |sink: &str| self.keeper.sinks.iter().position(|name| **name == *sink);
        let freed = freed.iter().filter_map(|(sink, key)| {
            Some((index(sink)?, self.keeper.hasher.hash(key.as_bytes())))
        });
        Ok(freed.collect())
    }
}

async fn write(
    client: &mut Client,
    slot: &str,
    table: &TableName,
    delete_by: Option<&str>,
    session: Session,
    work: &Work,
) -> Result<(u64, Vec<(String, String)>), Error> {
    let failed = |error| Error::sql("settling", error);
    let transaction = client.transaction().await.map_err(failed)?;
    let retained = fence(transaction.client(), slot, session).await?;
    hold::park(&transaction, slot, &work.parks).await?;
    let mut freed = hold::remove(&transaction, &work.rows.removed).await?;
    hold::postpone(&transaction, &work.rows.postponed).await?;
    let buried = work.rows.buried.iter();
    let buried: Vec<(i64, u32, String, bool)> = buried
        .map(|row| (row.hold_id, row.attempts, row.error.clone(), row.blocks))
        .collect();
    freed.extend(hold::bury(&transaction, &buried).await?);
    if let Some(column) = delete_by {
        let held = work.parks.iter().map(|park| park.task.id());
        let ids: Vec<&str> = work.delivered.iter().chain(held).collect();
        for ids in ids.chunks(DELETE_ROWS) {
            hold::delete_settled(&transaction, table, column, ids).await?;
        }
    }
    // Of another generation it is no position here.
    if session.generation == work.confirmation.generation {
        let checkpoint = Checkpoint {
            system_id: session.identity.system_id,
            timeline: session.identity.timeline,
            lsn: work.confirmation.lsn.lsn(),
        };
        hold::write_checkpoint(&transaction, slot, &checkpoint).await?;
    }
    transaction.commit().await.map_err(failed)?;
    Ok((retained, freed))
}

/// Takes the lock of the slot's hold until the end of the transaction; fails when the slot is not ours. Says how many bytes
/// of WAL the server keeps for the slot.
pub(super) async fn fence(db: &Client, slot: &str, session: Session) -> Result<u64, Error> {
    let ours = i32::try_from(session.walsender_pid).unwrap_or_default();
    let params = [(
        &slot as &(dyn tokio_postgres::types::ToSql + Sync),
        Type::TEXT,
    )];
    let asked = tokio::try_join!(
        db.query_typed("select aftercommit.hold_lock($1)", &params),
        db.query_typed_opt(
            "select active_pid, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8
             from pg_replication_slots where slot_name = $1",
            &params
        ),
    );
    let (_, slot) = asked.map_err(|error| Error::sql("asking who reads the slot", error))?;
    let reader: Option<i32> = slot.as_ref().and_then(|row| row.try_get(0).ok().flatten());
    let retained: Option<i64> = slot.and_then(|row| row.try_get(1).ok().flatten());
    match reader == Some(ours) {
        true => Ok(u64::try_from(retained.unwrap_or_default()).unwrap_or_default()),
        false => Err(Error::judged(
            Place::Sql,
            Policy::StandBy,
            "another process reads the slot, or nobody does",
        )),
    }
}
