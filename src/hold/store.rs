//! Changing the hold table.

use tokio_postgres::types::{PgLsn, ToSql, Type};
use tokio_postgres::{Error as SqlError, Row, Transaction};

use super::wire::{At, clean, count, micros, to_pg_lsn};
use super::{Buried, Park, Postponed};
use crate::outbox::Field;
use crate::replication::Error;

/// Rows and bytes of a statement. One statement's rows pass through the server's memory together.
const CHUNK_ROWS: usize = 2_000;
const CHUNK_BYTES: usize = 4 << 20;

/// Fields that are copied as they are, in the order of [`PARK`].
const COPIED: [Field; 10] = [
    Field::Args,
    Field::Kwargs,
    Field::Payload,
    Field::Body,
    Field::Queue,
    Field::Headers,
    Field::Priority,
    Field::RunAt,
    Field::ExpiresAt,
    Field::Options,
];

/// A row that blocks is due after those before it in its queue, and has no due time where one of them has none or has
/// been tried in vain.
const PARK: &str = "\
with given as (
  select g.*, g.may_block and g.key is not null as blocks,
         case when g.state <> 'dead' then coalesce(g.at, (select clock_timestamp()) + g.due_in * interval '1 microsecond') end as due
  from unnest($2::text[], $3::text[], $4::text[], $5::bool[], $6::text[], $7::text[], $8::text[], $9::int8[],
              $10::timestamptz[], $11::int4[], $12::text[], $13::pg_lsn[], $14::int8[], $15::timestamptz[])
    with ordinality g (sink, route, state, may_block, id, task, key, due_in,
                       at, attempts, last_error, commit_lsn, ordinal, committed_at, place)
), tails as (
  select k.sink, k.key, tail.due_at, tail.attempts
  from (select distinct sink, key from given where blocks) k
  cross join lateral (
    select q.due_at, q.attempts from aftercommit.hold q
    where q.slot = $1 and q.sink = k.sink and q.blocks and q.key = k.key
      and hashtextextended(q.key, 0) = hashtextextended(k.key, 0)
    order by q.hold_id desc limit 1
  ) tail
), queued as (
  select place, max(due) over in_order as due,
         bool_or(attempts > 0 or due is null) over (in_order rows between unbounded preceding and 1 preceding) as waits
  from given where blocks
  window in_order as (partition by sink, key order by place)
)
insert into aftercommit.hold
  (slot, sink, route, state, blocks, id, task, key, attempts, last_error, commit_lsn, ordinal, committed_at, due_at,
   args, kwargs, payload, body, queue, headers, priority, run_at, expires_at, options)
select $1, g.sink, g.route, g.state, g.blocks, g.id, g.task, g.key, g.attempts, g.last_error, g.commit_lsn, g.ordinal,
       g.committed_at,
       case
         when not g.blocks or g.due is null then g.due
         when q.waits or t.key is not null and (t.due_at is null or t.attempts > 0) then null
         else greatest(q.due, t.due_at)
       end,
       c.args, c.kwargs, c.payload, c.body, c.queue, c.headers, c.priority, c.run_at, c.expires_at, c.options
from given g
join unnest($16::text[], $17::text[], $18::text[], $19::text[], $20::text[],
            $21::text[], $22::text[], $23::text[], $24::text[], $25::text[])
  with ordinality c (args, kwargs, payload, body, queue, headers, priority, run_at, expires_at, options, place)
  on c.place = g.place
left join queued q on q.place = g.place
left join tails t on g.blocks and t.sink = g.sink and t.key = g.key
order by g.place
on conflict do nothing";

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

/// Holds tasks. A row that is held already, at the same position, stays as it is.
///
/// The tasks of a key have to come in their order, here and from one call to the next.
///
/// # Errors
/// Those of the server; the transaction is of no more use then.
pub async fn park(db: &Transaction<'_>, slot: &str, parks: &[Park]) -> Result<(), Error> {
    let failed = |e| Error::sql("hold tasks", e);
    let mut rest = parks;
    while !rest.is_empty() {
        let (chunk, behind) = rest.split_at(chunk_length(rest));
        rest = behind;
        let held = tokio::try_join!(lock(db, slot), park_chunk(db, slot, chunk)).map_err(failed)?;
        let all = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        if held.1 < all {
            // Some were held before, perhaps in another state: nothing may be left waiting behind nothing.
            advance(db, slot, chunk).await.map_err(failed)?;
        }
    }
    Ok(())
}

fn chunk_length(parks: &[Park]) -> usize {
    let mut bytes = 0;
    let fits = parks.iter().take(CHUNK_ROWS).take_while(|park| {
        bytes += park.task.size();
        bytes <= CHUNK_BYTES
    });
    fits.count().max(1)
}

async fn lock(db: &Transaction<'_>, slot: &str) -> Result<(), SqlError> {
    db.query_typed(LOCK, &[(&slot, Type::TEXT)]).await?;
    Ok(())
}

async fn park_chunk(db: &Transaction<'_>, slot: &str, parks: &[Park]) -> Result<u64, SqlError> {
    fn each<'a, T>(parks: &'a [Park], value: impl Fn(&'a Park) -> T) -> Vec<T> {
        parks.iter().map(value).collect()
    }
    let sinks = each(parks, |p| &*p.sink);
    let routes = each(parks, |p| &*p.route);
    let states = each(parks, |p| p.state.name());
    let blocks = each(parks, |p| p.blocks);
    let ids = each(parks, |p| p.task.id());
    let names = each(parks, |p| p.task.name());
    let keys = each(parks, |p| p.task.text(Field::Key));
    let due_ins = each(parks, |p| micros(p.due_in.unwrap_or_default()));
    let due_ats = each(parks, |p| p.due_at.map(At));
    let attempts = each(parks, |p| count(p.attempts));
    let errors = each(parks, |p| p.error.as_deref().map(clean));
    let lsns: Vec<PgLsn> = each(parks, |p| to_pg_lsn(p.task.position.commit_lsn));
    let ordinals = each(parks, |p| {
        i64::try_from(p.task.position.ordinal).unwrap_or(i64::MAX)
    });
    let committed = each(parks, |p| At(p.task.committed_at));
    let copied = COPIED.map(|field| each(parks, |p| p.task.text(field)));
    let mut params: Vec<(&(dyn ToSql + Sync), Type)> = vec![
        (&slot, Type::TEXT),
        (&sinks, Type::TEXT_ARRAY),
        (&routes, Type::TEXT_ARRAY),
        (&states, Type::TEXT_ARRAY),
        (&blocks, Type::BOOL_ARRAY),
        (&ids, Type::TEXT_ARRAY),
        (&names, Type::TEXT_ARRAY),
        (&keys, Type::TEXT_ARRAY),
        (&due_ins, Type::INT8_ARRAY),
        (&due_ats, Type::TIMESTAMPTZ_ARRAY),
        (&attempts, Type::INT4_ARRAY),
        (&errors, Type::TEXT_ARRAY),
        (&lsns, Type::PG_LSN_ARRAY),
        (&ordinals, Type::INT8_ARRAY),
        (&committed, Type::TIMESTAMPTZ_ARRAY),
    ];
    for column in &copied {
        params.push((column, Type::TEXT_ARRAY));
    }
    db.execute_typed(PARK, &params).await
}

async fn advance(db: &Transaction<'_>, slot: &str, parks: &[Park]) -> Result<(), SqlError> {
    let queues: std::collections::HashSet<(&str, &str)> = parks
        .iter()
        .filter_map(|park| Some((&*park.sink, park.task.text(Field::Key)?)))
        .collect();
    let mut waiting = Queues::default();
    for (sink, key) in queues {
        waiting.push(slot.to_owned(), sink.to_owned(), key.to_owned());
    }
    waiting.advance(db).await
}

/// Takes the lock of each slot that has one of these rows.
const LOCK_OF_ROWS: &str = "\
select aftercommit.hold_lock(s.slot)
from (select distinct slot from aftercommit.hold where hold_id = any ($1) order by slot) s";

async fn lock_rows(db: &Transaction<'_>, hold_ids: &[i64]) -> Result<(), SqlError> {
    db.query_typed(LOCK_OF_ROWS, &[(&hold_ids, Type::INT8_ARRAY)])
        .await?;
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
            lock_rows(db, hold_ids),
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
pub async fn postpone(db: &Transaction<'_>, rows: &[Postponed]) -> Result<(), Error> {
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
        lock_rows(db, &ids),
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
pub async fn bury(db: &Transaction<'_>, rows: &[Buried]) -> Result<Vec<(String, String)>, Error> {
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
        lock_rows(db, &ids),
        db.execute_typed(BURY, &stated),
        db.query_typed(STOP_QUEUES, &stated[..1]),
        db.query_typed(RELEASE_QUEUES, &stated[..1]),
        db.query_typed(FREED, &stated[..1]),
    );
    buried
        .and_then(|(.., freed)| sinks_and_keys(&freed))
        .map_err(|e| Error::sql("give held tasks up", e))
}
