//! The mark that a lost slot is being made again, in the slot's row of `aftercommit.checkpoint`.
//!
//! A new slot sends only what is committed after it was made; what the outbox held before is dispatched from the table.
//! Between the two a crash must not leave a slot behind that looks sound. So the mark is committed before the slot is made,
//! and taken away when the rows from before are settled.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::Checkpoint;
use super::wire::to_pg_lsn;
use crate::replication::Error;

/// Since when the slot is being healed, as the server writes times; `None` where it is not.
///
/// # Errors
/// Those of the server.
pub async fn healing_since(db: &Client, slot: &str) -> Result<Option<String>, Error> {
    db.query_typed_opt(
        "select healing::text from aftercommit.checkpoint where slot = $1",
        &[(&slot, Type::TEXT)],
    )
    .await
    .and_then(|row| row.map_or(Ok(None), |row| row.try_get(0)))
    .map_err(|e| Error::sql("look whether the slot is being healed", e))
}

/// Sets the mark. What the row says of a position stays; where there is no row, nothing has been settled.
///
/// # Errors
/// Those of the server.
pub async fn begin_healing(
    db: &Client,
    slot: &str,
    system_id: u64,
    timeline: u32,
) -> Result<(), Error> {
    let system_id = system_id.to_string();
    let timeline = i32::try_from(timeline).unwrap_or(i32::MAX);
    // Whatever the role's settings, the mark is on disk before there is a slot. A standby that takes over has it, too, if it has
    // the slot, which comes behind it in the WAL.
    db.execute_typed(
        "with durable as materialized (select set_config('synchronous_commit', 'local', true)) \
         insert into aftercommit.checkpoint (slot, system_id, timeline, lsn, healing) \
         select $1, $2, $3, '0/0', clock_timestamp() from durable \
         on conflict (slot) do update set healing = excluded.healing",
        &[
            (&slot, Type::TEXT),
            (&system_id, Type::TEXT),
            (&timeline, Type::INT4),
        ],
    )
    .await
    .map_err(|e| Error::sql("mark the slot as being healed", e))?;
    Ok(())
}

/// Sets the mark where the slot has a row: it was at work before, and is being made anew by somebody else than the daemon.
///
/// # Errors
/// Those of the server.
pub async fn mark_known(db: &Client, slot: &str) -> Result<(), Error> {
    db.execute_typed(
        "update aftercommit.checkpoint set healing = coalesce(healing, clock_timestamp()) where slot = $1",
        &[(&slot, Type::TEXT)],
    )
    .await
    .map_err(|e| Error::sql("mark the slot as being healed", e))?;
    Ok(())
}

/// Takes the mark away.
///
/// # Errors
/// Those of the server.
pub async fn end_healing(db: &Client, slot: &str) -> Result<(), Error> {
    db.execute_typed(
        "update aftercommit.checkpoint set healing = null where slot = $1 and healing is not null",
        &[(&slot, Type::TEXT)],
    )
    .await
    .map_err(|e| Error::sql("mark the slot as healed", e))?;
    Ok(())
}

/// Writes the slot's first checkpoint, where it has none.
///
/// # Errors
/// Those of the server.
pub async fn note_beginning(db: &Client, slot: &str, beginning: &Checkpoint) -> Result<(), Error> {
    let system_id = beginning.system_id.to_string();
    let timeline = i32::try_from(beginning.timeline).unwrap_or(i32::MAX);
    db.execute_typed(
        "insert into aftercommit.checkpoint (slot, system_id, timeline, lsn) values ($1, $2, $3, $4) \
         on conflict (slot) do nothing",
        &[
            (&slot, Type::TEXT),
            (&system_id, Type::TEXT),
            (&timeline, Type::INT4),
            (&to_pg_lsn(beginning.lsn), Type::PG_LSN),
        ],
    )
    .await
    .map_err(|e| Error::sql("write the first checkpoint", e))?;
    Ok(())
}
