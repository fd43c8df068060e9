//! What a settled row leaves behind: no row in the outbox, and a checkpoint.

use tokio_postgres::types::{PgLsn, Type};
use tokio_postgres::{Client, Error as SqlError, Transaction};

use super::wire::{array_of, to_pg_lsn};
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
const BY_PAGES: &str = "set local enable_seqscan = off; set local enable_indexscan = off";

/// Deletes settled rows by their ids, as the stream has written them, and says how many there were.
///
/// The ids take the type of the column: uuid, bigint, text, or whatever the index of its primary key is made of. It is to be
/// the last in its transaction that reads a table: the planner is told what suits it.
///
/// # Errors
/// Those of the server; the transaction is of no more use then.
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
