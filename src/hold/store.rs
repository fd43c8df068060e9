//! Changing what is held: it is gone, put off, or given up.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error as SqlError, Row, Transaction};

use super::wire::{clean, count, micros};
use super::{Buried, Postponed};
use crate::replication::Error;

/// Serializes what changes the slot's queues, until the end of the transaction.
const LOCK: &str = "select aftercommit.hold_lock($1)";

/// The condition that `q` is in the queue of `h`.
macro_rules! in_queue_of {
    ($h:literal) => {
        concat!(
            "q.slot = ",
            $h,
            ".slot and q.sink = ",
            $h,
            ".sink and q.blocks and q.key = ",
            $h,
            ".key \
             and hashtextextended(q.key, 0) = hashtextextended(",
            $h,
            ".key, 0)"
        )
    };
}

pub(super) async fn lock(db: &Transaction<'_>, slot: &str) -> Result<(), SqlError> {
    db.query_typed(LOCK, &[(&slot, Type::TEXT)]).await?;
    Ok(())
}

// Where a query below asks whether a queue is empty, it does so in a scalar subquery: that stays a look-up for each key,
// and `not exists` becomes a join with the whole table.

/// Drops rows whose tasks have been delivered. Returns the sink and the key of each queue that is empty now: such a key is
/// free again. What waited behind them becomes due: ask for it with [`due`](super::due) soon.
///
/// To be called before [`postpone`] where both happen in one transaction: a postponed task that is the first of its
/// queue keeps its pause, another one waits for those before it and then goes on at once.
///
/// # Errors
/// Those of the server; the transaction is of no more use then.
pub async fn remove(
    db: &Transaction<'_>,
    slot: &str,
    hold_ids: &[i64],
) -> Result<Vec<(String, String)>, Error> {
    if hold_ids.is_empty() {
        return Ok(Vec::new());
    }
    const REMOVE: &str = concat!(
        "with gone as (
           delete from aftercommit.hold where hold_id = any ($1) returning hold_id, slot, sink, key, blocks
         )
         select h.slot, h.sink, h.key, head.hold_id is null
         from (select distinct slot, sink, key from gone where blocks) h
         left join lateral (
           select q.hold_id, q.due_at, q.state from aftercommit.hold q
           where ", in_queue_of!("h"), " and q.hold_id not in (select hold_id from gone)
           order by q.hold_id limit 1
         ) head on true
         where head.hold_id is null or head.due_at is null and head.state <> 'dead'"
    );
    let params = [(&hold_ids as &(dyn ToSql + Sync), Type::INT8_ARRAY)];
    let removed = async {
        let ((), (), rows, ()) = tokio::try_join!(
            lock(db, slot),
            db.batch_execute(SEES_TO_QUEUES),
            db.query_typed(REMOVE, &params),
            db.batch_execute(LEAVES_QUEUES),
        )?;
        let (mut freed, mut waiting) = (Vec::new(), Queues::default());
        for row in &rows {
            let (sink, key) = (row.try_get(1)?, row.try_get(2)?);
            match row.try_get(3)? {
                true => freed.push((sink, key)),
                false => waiting.push(row.try_get(0)?, sink, key),
            }
        }
        waiting.advance(db).await?;
        Ok(freed)
    };
    removed
        .await
        .map_err(|e| Error::sql("drop delivered tasks from the hold table", e))
}

/// The trigger on deletes is not needed between these: who deletes there lets the queues go on.
const SEES_TO_QUEUES: &str = "set local aftercommit.sees_to_queues = on";
const LEAVES_QUEUES: &str = "set local aftercommit.sees_to_queues = off";

/// Queues: slot, sink and key of each.
#[derive(Default)]
struct Queues {
    slots: Vec<String>,
    sinks: Vec<String>,
    keys: Vec<String>,
}

impl Queues {
    fn push(&mut self, slot: String, sink: String, key: String) {
        self.slots.push(slot);
        self.sinks.push(sink);
        self.keys.push(key);
    }

    /// Lets those go on whose first task waits although none before it is left.
    async fn advance(&self, db: &Transaction<'_>) -> Result<(), SqlError> {
        if self.slots.is_empty() {
            return Ok(());
        }
        db.query_typed(
            "select aftercommit.hold_advance($1, $2, $3)",
            &[
                (&self.slots, Type::TEXT_ARRAY),
                (&self.sinks, Type::TEXT_ARRAY),
                (&self.keys, Type::TEXT_ARRAY),
            ],
        )
        .await?;
        Ok(())
    }
}

fn sinks_and_keys(rows: &[Row]) -> Result<Vec<(String, String)>, SqlError> {
    let pair = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?));
    rows.iter().map(pair).collect()
}

const STOP_QUEUES: &str = "select aftercommit.hold_stop($1)";

/// Puts tasks off that were tried in vain: they are retrying, and later rows of their keys wait for them. One that has
/// another one of its key before it waits for that one. One that lost its place when it died (it does not block) stays
/// without.
///
/// # Errors
/// Those of the server; the transaction is of no more use then.
pub async fn postpone(db: &Transaction<'_>, slot: &str, rows: &[Postponed]) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    const POSTPONE: &str = concat!(
        "update aftercommit.hold h
         set state = 'retrying', attempts = g.attempts, last_error = g.error, updated_at = clock_timestamp(),
             blocks = h.blocks or h.state = 'scheduled' and h.key is not null,
             due_at = case
               when h.key is not null and (h.blocks or h.state = 'scheduled') and exists (
                 select from aftercommit.hold q where ", in_queue_of!("h"), " and q.hold_id < h.hold_id
               ) then null
               else clock_timestamp() + g.due_in * interval '1 microsecond'
             end
         from unnest($1::int8[], $2::int8[], $3::int4[], $4::text[]) g (hold_id, due_in, attempts, error)
         where h.hold_id = g.hold_id"
    );
    let ids: Vec<i64> = rows.iter().map(|row| row.hold_id).collect();
    let due_ins: Vec<i64> = rows.iter().map(|row| micros(row.due_in)).collect();
    let attempts: Vec<i32> = rows.iter().map(|row| count(row.attempts)).collect();
    let errors: Vec<String> = rows.iter().map(|row| clean(&row.error)).collect();
    let stated: [(&(dyn ToSql + Sync), Type); 4] = [
        (&ids, Type::INT8_ARRAY),
        (&due_ins, Type::INT8_ARRAY),
        (&attempts, Type::INT4_ARRAY),
        (&errors, Type::TEXT_ARRAY),
    ];
    tokio::try_join!(
        lock(db, slot),
        db.execute_typed(POSTPONE, &stated),
        db.query_typed(STOP_QUEUES, &stated[..1]),
    )
    .map_err(|e| Error::sql("put held tasks off", e))?;
    Ok(())
}

/// Gives tasks up: each is dead, with the number of its attempts, the reason, and whether it blocks its key. Returns the
/// sink and the key of each queue that is empty by that.
///
/// # Errors
/// Those of the server; the transaction is of no more use then.
pub async fn bury(
    db: &Transaction<'_>,
    slot: &str,
    rows: &[Buried],
) -> Result<Vec<(String, String)>, Error> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    const BURY: &str = "\
        update aftercommit.hold h
        set state = 'dead', due_at = null, attempts = g.attempts, last_error = g.error, updated_at = clock_timestamp(),
            blocks = g.blocks and h.key is not null
        from unnest($1::int8[], $2::int4[], $3::text[], $4::bool[]) g (hold_id, attempts, error, blocks)
        where h.hold_id = g.hold_id";
    const RELEASE_QUEUES: &str = "\
        select aftercommit.hold_advance(array_agg(k.slot), array_agg(k.sink), array_agg(k.key))
        from (select distinct slot, sink, key from aftercommit.hold
              where hold_id = any ($1) and not blocks and key is not null) k
        having count(*) > 0";
    const FREED: &str = concat!(
        "select h.sink, h.key
         from (select distinct slot, sink, key from aftercommit.hold
               where hold_id = any ($1) and not blocks and key is not null) h
         where (select true from aftercommit.hold q where ",
        in_queue_of!("h"),
        " order by q.hold_id limit 1) is null"
    );
    let ids: Vec<i64> = rows.iter().map(|row| row.hold_id).collect();
    let attempts: Vec<i32> = rows.iter().map(|row| count(row.attempts)).collect();
    let errors: Vec<String> = rows.iter().map(|row| clean(&row.error)).collect();
    let blocks: Vec<bool> = rows.iter().map(|row| row.blocks).collect();
    let stated: [(&(dyn ToSql + Sync), Type); 4] = [
        (&ids, Type::INT8_ARRAY),
        (&attempts, Type::INT4_ARRAY),
        (&errors, Type::TEXT_ARRAY),
        (&blocks, Type::BOOL_ARRAY),
    ];
    let buried = tokio::try_join!(
        lock(db, slot),
        db.execute_typed(BURY, &stated),
        db.query_typed(STOP_QUEUES, &stated[..1]),
        db.query_typed(RELEASE_QUEUES, &stated[..1]),
        db.query_typed(FREED, &stated[..1]),
    );
    buried
        .and_then(|(.., freed)| sinks_and_keys(&freed))
        .map_err(|e| Error::sql("give held tasks up", e))
}
