//! What a settled row leaves behind: no row in the outbox, and a checkpoint.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{PgLsn, ToSql, Type};
use tokio_postgres::{Client, Error as SqlError, Transaction};

use super::wire::{AsWritten, array_of, to_pg_lsn};
use crate::outbox::TableName;
use crate::pg::Lsn;
use crate::replication::Error;

/// Up to where everything is settled, and in which history of which server that is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// The system identifier.
    pub system_id: u64,
    /// The timeline.
    pub timeline: u32,
    /// The position.
    pub lsn: Lsn,
}

/// Rows that one statement deletes. The more there are, the fewer pages of a large index each of them costs; and the pages of
/// so many rows fit into the memory that a server gives a scan.
const DELETE_ROWS: usize = 1 << 14;

/// For many ids that lie anywhere, looking all of them up first and then going through the table's pages in their order
/// costs two thirds of going back and forth. The planner does not know, since it takes every page for a read from disk: it
/// would even rather read the whole table for some hundred ids, ten times slower.
///
/// A lock that somebody else keeps on a row is not waited for: all that is settled, and all that is held, would wait too.
const BY_PAGES: &str = "set local enable_seqscan = off; set local enable_indexscan = off; set local lock_timeout = '250ms'";

/// Deletes settled rows by their ids, as the stream has written them, and says how many there were.
///
/// The ids take the type of the column: uuid, bigint, text, or whatever the index of its primary key is made of. It is to be
/// the last in its transaction that reads a table: the planner is told what suits it.
///
/// # Errors
/// Those of the server; the transaction is of no more use then. 55P03 (lock_not_available) where another session keeps a
/// lock on one of the rows, or on the table: see [`delete_unlocked`].
pub async fn delete_settled(
    db: &Transaction<'_>,
    table: &TableName,
    id_column: &str,
    ids: &[&str],
) -> Result<u64, Error> {
    if ids.is_empty() {
        return Ok(0);
    }
    let delete = async {
        let statement = delete_statement(table, id_column);
        let ((), statement) = tokio::try_join!(db.batch_execute(BY_PAGES), db.prepare(&statement))?;
        let of = statement.params().first().unwrap_or(&Type::UNKNOWN);
        let mut deleted = 0;
        for ids in ids.chunks(DELETE_ROWS) {
            let ids = array_of(ids, of);
            deleted += db.execute(&statement, &[&*ids]).await?;
        }
        Ok(deleted)
    };
    delete
        .await
        .map_err(|e| Error::sql("delete settled rows", e))
}

/// A locked row is looked for by halves: each attempt waits so long for locks, and there are so many attempts in vain.
const SHORT_LIMITS: &str = "set local enable_seqscan = off; set local lock_timeout = '20ms'";
const IN_VAIN: usize = 24;

/// As [`delete_settled`], where some of the rows are locked, or the table is: returns the ids of rows that could not be
/// deleted now, or were not tried any more.
///
/// Without `for update skip locked`, which would ask for the right to update the application's table.
///
/// # Errors
/// Those of the server; the transaction is of no more use then.
pub async fn delete_unlocked(
    db: &mut Transaction<'_>,
    table: &TableName,
    id_column: &str,
    ids: &[&str],
) -> Result<Vec<String>, Error> {
    let owned = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    let table_lock = format!("lock table {} in row exclusive mode nowait", table.to_sql());
    if !is_unlocked(db, &table_lock, None).await? {
        return Ok(owned(ids));
    }
    let statement = delete_statement(table, id_column);
    let (mut parts, mut left, mut in_vain) = (vec![ids], Vec::new(), 0);
    while let Some(part) = parts.pop() {
        if in_vain >= IN_VAIN {
            left.append(&mut owned(part));
            continue;
        }
        if part.is_empty() || is_unlocked(db, &statement, Some(part)).await? {
            continue;
        }
        in_vain += 1;
        match part.split_at(part.len() / 2) {
            ([], one) => left.append(&mut owned(one)),
            (first, second) => parts.extend([second, first]),
        }
    }
    Ok(left)
}

/// Executes a statement, on ids where there are any; false when another session's lock is in the way. Then nothing has
/// happened.
async fn is_unlocked(
    db: &mut Transaction<'_>,
    statement: &str,
    ids: Option<&[&str]>,
) -> Result<bool, Error> {
    let failed = |error| Error::sql("delete settled rows", error);
    let attempt = db.transaction().await.map_err(failed)?;
    let made = match ids {
        None => attempt.batch_execute(statement).await,
        Some(ids) => {
            let ids = AsWritten(ids);
            let params: [(&(dyn ToSql + Sync), Type); 1] = [(&ids, Type::UNKNOWN)];
            tokio::try_join!(
                attempt.batch_execute(SHORT_LIMITS),
                attempt.execute_typed(statement, &params)
            )
            .map(|_| ())
        }
    };
    match made {
        Ok(()) => attempt.commit().await.map_err(failed)?,
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            attempt.rollback().await.map_err(failed)?;
            return Ok(false);
        }
        Err(error) => return Err(failed(error)),
    }
    Ok(true)
}

fn delete_statement(table: &TableName, id_column: &str) -> String {
    let column = postgres_protocol::escape::escape_identifier(id_column);
    format!("delete from {} where {column} = any ($1)", table.to_sql())
}

/// The slot's checkpoint; `None` where there is none yet, or where what is there is none.
///
/// # Errors
/// Those of the server.
pub async fn read_checkpoint(db: &Client, slot: &str) -> Result<Option<Checkpoint>, Error> {
    let found = db
        .query_typed_opt(
            "select system_id, timeline, lsn from aftercommit.checkpoint where slot = $1",
            &[(&slot, Type::TEXT)],
        )
        .await;
    let read = |row: tokio_postgres::Row| -> Result<Option<Checkpoint>, SqlError> {
        let system_id: String = row.try_get(0)?;
        let timeline: i32 = row.try_get(1)?;
        let lsn: PgLsn = row.try_get(2)?;
        let (Ok(system_id), Ok(timeline)) = (system_id.parse(), u32::try_from(timeline)) else {
            return Ok(None);
        };
        Ok(Some(Checkpoint {
            system_id,
            timeline,
            lsn: Lsn(lsn.into()),
        }))
    };
    found
        .and_then(|row| row.map_or(Ok(None), read))
        .map_err(|e| Error::sql("read the checkpoint", e))
}

/// Writes the slot's checkpoint. In one history it does not go back: a daemon that has just started knows of no position yet.
///
/// # Errors
/// Those of the server; the transaction is of no more use then.
pub async fn write_checkpoint(
    db: &Transaction<'_>,
    slot: &str,
    checkpoint: &Checkpoint,
) -> Result<(), Error> {
    let system_id = checkpoint.system_id.to_string();
    let timeline = i32::try_from(checkpoint.timeline).unwrap_or(i32::MAX);
    db.execute_typed(
        "insert into aftercommit.checkpoint (slot, system_id, timeline, lsn) values ($1, $2, $3, $4)
         on conflict (slot) do update
         set system_id = excluded.system_id, timeline = excluded.timeline,
             lsn = case when (checkpoint.system_id, checkpoint.timeline) = (excluded.system_id, excluded.timeline)
                        then greatest(checkpoint.lsn, excluded.lsn) else excluded.lsn end,
             updated_at = clock_timestamp()",
        &[
            (&slot, Type::TEXT),
            (&system_id, Type::TEXT),
            (&timeline, Type::INT4),
            (&to_pg_lsn(checkpoint.lsn), Type::PG_LSN),
        ],
    )
    .await
    .map_err(|e| Error::sql("write the checkpoint", e))?;
    Ok(())
}

/// Corrects the slot's checkpoint, where it has one, to where a session begins: whatever was in it before, perhaps of another
/// history, or changed by hand, from here on it is this one's. Not while the slot is being healed, when nothing is settled yet.
///
/// # Errors
/// Those of the server; the transaction is of no more use then.
pub async fn correct_checkpoint(
    db: &Transaction<'_>,
    slot: &str,
    checkpoint: &Checkpoint,
) -> Result<(), Error> {
    let system_id = checkpoint.system_id.to_string();
    let timeline = i32::try_from(checkpoint.timeline).unwrap_or(i32::MAX);
    db.execute_typed(
        "update aftercommit.checkpoint
         set system_id = $2, timeline = $3, lsn = $4, updated_at = clock_timestamp()
         where slot = $1 and healing is null and (system_id, timeline, lsn) is distinct from ($2, $3, $4)",
        &[
            (&slot, Type::TEXT),
            (&system_id, Type::TEXT),
            (&timeline, Type::INT4),
            (&to_pg_lsn(checkpoint.lsn), Type::PG_LSN),
        ],
    )
    .await
    .map_err(|e| Error::sql("correct the checkpoint", e))?;
    Ok(())
}
