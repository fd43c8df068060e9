//! Changing what is held: it is gone, put off, or given up.

use std::sync::Arc;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error as SqlError, Transaction};

use super::wire::{clean, count, micros};
use super::{Buried, Postponed};
use crate::replication::Error;

/// Serializes what changes the slot's queues, until the end of the transaction.
const LOCK: &str = "select aftercommit.hold_lock($1)";

pub(super) async fn lock(db: &Transaction<'_>, slot: &str) -> Result<(), SqlError> {
    db.query_typed(LOCK, &[(&slot, Type::TEXT)]).await?;
    Ok(())
}

/// Drops rows whose tasks have been delivered. Their queues are to be looked after: see [`settle_queues`].
///
/// To be called before [`postpone`] where both happen in one transaction: a postponed task that is the first of its
/// queue keeps its pause, another one waits for those before it and then goes on at once.
///
/// # Errors
/// Those of the server; the transaction is of no more use then.
pub async fn remove(db: &Transaction<'_>, slot: &str, hold_ids: &[i64]) -> Result<(), Error> {
    if hold_ids.is_empty() {
        return Ok(());
    }
    const REMOVE: &str = "delete from aftercommit.hold where hold_id = any ($1)";
    let params: [(&(dyn ToSql + Sync), Type); 1] = [(&hold_ids, Type::INT8_ARRAY)];
    tokio::try_join!(
        lock(db, slot),
        db.batch_execute(SEES_TO_QUEUES),
        db.execute_typed(REMOVE, &params),
        db.batch_execute(LEAVES_QUEUES),
    )
    .map_err(|e| Error::sql("drop delivered tasks from the hold table", e))?;
    Ok(())
}

/// The trigger on deletes is not needed between these: who deletes there lets the queues go on.
const SEES_TO_QUEUES: &str = "set local aftercommit.sees_to_queues = on";
const LEAVES_QUEUES: &str = "set local aftercommit.sees_to_queues = off";

/// A queue: the tasks of a key that are held for a sink, and block it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Queue {
    /// Name of the sink.
    pub sink: Arc<str>,
    /// The key.
    pub key: String,
}

/// What has become of queues from which rows were taken.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Settled {
    /// These are empty: their keys are free again.
    pub empty: Vec<Queue>,
    /// In so many, what waited behind a row that is gone is due now.
    pub moved: usize,
}

/// Looks after queues from which rows were taken: those that are empty are told, and in the others what waited behind a
/// row that is gone becomes due.
///
/// It need not be in the transaction that took the rows: until it is called, what comes for such a key is held, and what
/// waits in it waits. The lock of the slot's hold is to be taken before, in the same transaction.
///
/// # Errors
/// Those of the server.
pub async fn settle_queues(db: &Client, slot: &str, queues: Vec<Queue>) -> Result<Settled, Error> {
    // A look-up in an index for each queue. As `not exists` it would be a join with the whole table.
    const HEADS: &str = "\
        select k.place, head.hold_id is null
        from unnest($2::text[], $3::text[]) with ordinality k (sink, key, place)
        left join lateral (
          select q.hold_id, q.due_at, q.state from aftercommit.hold q
          where q.slot = $1 and q.sink = k.sink and q.blocks and q.key = k.key
            and hashtextextended(q.key, 0) = hashtextextended(k.key, 0)
          order by q.hold_id + 0 limit 1
        ) head on true
        where head.hold_id is null or head.due_at is null and head.state <> 'dead'
        order by k.place";
    if queues.is_empty() {
        return Ok(Settled::default());
    }
    let settle = async {
        let sinks: Vec<&str> = queues.iter().map(|queue| &*queue.sink).collect();
        let keys: Vec<&str> = queues.iter().map(|queue| &*queue.key).collect();
        let params: [(&(dyn ToSql + Sync), Type); 3] = [
            (&slot, Type::TEXT),
            (&sinks, Type::TEXT_ARRAY),
            (&keys, Type::TEXT_ARRAY),
        ];
        let (mut is_empty, mut waits) = (vec![false; queues.len()], Vec::new());
        for row in db.query_typed(HEADS, &params).await? {
            let place: i64 = row.try_get(0)?;
            let index = usize::try_from(place - 1).unwrap_or(usize::MAX);
            match (row.try_get(1)?, is_empty.get_mut(index)) {
                (true, Some(is_empty)) => *is_empty = true,
                (false, Some(_)) => waits.push(index),
                (_, None) => {}
            }
        }
        if !waits.is_empty() {
            let slots = vec![slot; waits.len()];
            let of = |values: &[&'_ str]| -> Vec<String> {
                let value = |index: &usize| values.get(*index).map(|value| (*value).to_owned());
                waits.iter().filter_map(value).collect()
            };
            let advance = "select aftercommit.hold_advance($1, $2, $3)";
            let params: [(&(dyn ToSql + Sync), Type); 3] = [
                (&slots, Type::TEXT_ARRAY),
                (&of(&sinks), Type::TEXT_ARRAY),
                (&of(&keys), Type::TEXT_ARRAY),
            ];
            db.query_typed(advance, &params).await?;
        }
        Ok((is_empty, waits.len()))
    };
    let (is_empty, moved) = settle
        .await
        .map_err(|e| Error::sql("look after the queues of the hold table", e))?;
    let empty = queues.into_iter().zip(is_empty);
    Ok(Settled {
        empty: empty
            .filter(|(_, is)| *is)
            .map(|(queue, _)| queue)
            .collect(),
        moved,
    })
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
    const POSTPONE: &str = "\
        update aftercommit.hold h
         set state = 'retrying', attempts = g.attempts, last_error = g.error, updated_at = clock_timestamp(),
             blocks = h.blocks or h.state = 'scheduled' and h.key is not null,
             due_at = case
               when h.key is not null and (h.blocks or h.state = 'scheduled') and (
                 select true from aftercommit.hold q
                 where q.slot = h.slot and q.sink = h.sink and q.blocks and q.key = h.key
                   and hashtextextended(q.key, 0) = hashtextextended(h.key, 0) and q.hold_id + 0 < h.hold_id
                 order by q.hold_id + 0 limit 1
               ) is not null then null
               else clock_timestamp() + g.due_in * interval '1 microsecond'
             end
         from unnest($1::int8[], $2::int8[], $3::int4[], $4::text[]) g (hold_id, due_in, attempts, error)
         where h.hold_id = g.hold_id";
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

/// Gives tasks up: each is dead, with the number of its attempts, the reason, and whether it blocks its key. Where it does
/// not, its queue is to be looked after: see [`settle_queues`].
///
/// # Errors
/// Those of the server; the transaction is of no more use then.
pub async fn bury(db: &Transaction<'_>, slot: &str, rows: &[Buried]) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    const BURY: &str = "\
        update aftercommit.hold h
        set state = 'dead', due_at = null, attempts = g.attempts, last_error = g.error, updated_at = clock_timestamp(),
            blocks = g.blocks and h.key is not null
        from unnest($1::int8[], $2::int4[], $3::text[], $4::bool[]) g (hold_id, attempts, error, blocks)
        where h.hold_id = g.hold_id";
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
    tokio::try_join!(
        lock(db, slot),
        db.execute_typed(BURY, &stated),
        db.query_typed(STOP_QUEUES, &stated[..1]),
    )
    .map_err(|e| Error::sql("give held tasks up", e))?;
    Ok(())
}
