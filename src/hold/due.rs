//! Reading the hold table: what is due, and what is held.

use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio_postgres::types::{PgLsn, ToSql, Type};
use tokio_postgres::{Client, Error as SqlError, Row};

use super::wire::{At, to_pg_lsn};
use super::{Released, State};
use crate::outbox::{Field, Position, Task};
use crate::pg::Lsn;
use crate::replication::Error;

/// How much [`due`] returns at most. One task comes even where it alone is larger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Number of tasks.
    pub tasks: i64,
    /// Bytes of their fields.
    pub bytes: i64,
}

/// Each sink's rows come in order from an index; the sinks of a slot are found by a jump from one to the next, so that the
/// rows of one that is away are never looked at.
///
/// A task whose time has come is marked as released, if it was scheduled: from now on it is too late to cancel it. One
/// that is being cancelled, by a transaction which is still open, is passed over; of it only the row's id comes back.
const DUE: &str = "\
with recursive sinks as (
  (select h.sink from aftercommit.hold h where h.slot = $1 and h.due_at is not null order by h.sink limit 1)
  union all
  select (select h.sink from aftercommit.hold h
          where h.slot = $1 and h.due_at is not null and h.sink > s.sink order by h.sink limit 1)
  from sinks s where s.sink is not null
), picked as (
  select r.hold_id from sinks s
  cross join lateral (
    select h.hold_id, h.due_at from aftercommit.hold h
    where h.slot = $1 and h.sink = s.sink and h.due_at <= (select clock_timestamp())
      and not (h.hold_id in (select unnest($3::int8[])))
    order by h.due_at, h.hold_id
    limit $4
  ) r
  where s.sink is not null and s.sink <> all ($2::text[])
  order by r.due_at, r.hold_id
  limit $4
), chosen as materialized (
  select hold_id, state,
         state = 'scheduled' and not blocks and key is not null and exists (
           select from aftercommit.hold q
           where q.slot = sized.slot and q.sink = sized.sink and q.blocks and q.key = sized.key
             and hashtextextended(q.key, 0) = hashtextextended(sized.key, 0)
         ) as waits
  from (
    select h.hold_id, h.slot, h.sink, h.key, h.state, h.blocks, sum(
        octet_length(concat(h.id, h.task, h.key, h.queue))::bigint
          + coalesce(octet_length(h.args), 0) + coalesce(octet_length(h.kwargs), 0) + coalesce(octet_length(h.payload), 0)
          + coalesce(octet_length(h.body), 0) + coalesce(octet_length(h.headers), 0) + coalesce(octet_length(h.options), 0)
      ) over (order by h.due_at, h.hold_id rows between unbounded preceding and 1 preceding) as before
    from picked p join aftercommit.hold h on h.hold_id = p.hold_id
  ) sized
  where before is null or before < $5
), released as (
  update aftercommit.hold h set released_at = clock_timestamp()
  where h.hold_id in (
    select l.hold_id from aftercommit.hold l
    where l.hold_id in (select hold_id from chosen where state = 'scheduled' and not waits)
    for no key update skip locked
  )
  returning h.hold_id
)
select c.hold_id, c.waits, h.sink, h.route, h.state, h.attempts, h.commit_lsn, h.ordinal, h.committed_at,
       h.id, h.task, h.args, h.kwargs, h.payload, h.body, h.key, h.queue, h.headers, h.priority, h.run_at, h.expires_at,
       h.options
from chosen c
left join aftercommit.hold h
  on h.hold_id = c.hold_id and (c.state <> 'scheduled' or c.hold_id in (select hold_id from released))
order by h.due_at, h.hold_id";

/// What [`due`] has found.
#[derive(Debug, Default)]
pub struct Due {
    /// Tasks whose time has come, in the order in which they were due; those of a key in their order.
    pub released: Vec<Released>,
    /// Rows that were passed over, since an open transaction is cancelling them. They stay due: whoever looks on without
    /// leaving them out finds them again, and perhaps nothing else.
    pub passed_over: Vec<i64>,
}

/// Tasks whose time has come, by the server's clock.
///
/// Left out are those for the sinks that are `away`, and the rows in `but`, those in flight: a row stays, and stays due, until
/// it is removed, postponed or buried. A scheduled task of whose key another one is held goes into the queue of its key.
///
/// # Errors
/// Those of the server.
pub async fn due(
    db: &Client,
    slot: &str,
    away: &[&str],
    but: &[i64],
    batch: Batch,
) -> Result<Due, Error> {
    let failed = |e| Error::sql("look for held tasks that are due", e);
    let rows = db
        .query_typed(
            DUE,
            &[
                (&slot, Type::TEXT),
                (&away, Type::TEXT_ARRAY),
                (&but, Type::INT8_ARRAY),
                (&batch.tasks, Type::INT8),
                (&batch.bytes, Type::INT8),
            ],
        )
        .await
        .map_err(failed)?;
    let mut due = Due::default();
    let mut waiting = Vec::new();
    for row in rows {
        let hold_id: i64 = row.try_get(0).map_err(failed)?;
        let sink: Option<&str> = row.try_get(2).map_err(failed)?;
        if row.try_get(1).map_err(failed)? {
            waiting.push(hold_id);
        } else if sink.is_none() {
            due.passed_over.push(hold_id);
        } else {
            due.released.push(released(&row).map_err(failed)?);
        }
    }
    if !waiting.is_empty() {
        db.query_typed(
            "select aftercommit.hold_enqueue($1, $2)",
            &[(&slot, Type::TEXT), (&waiting, Type::INT8_ARRAY)],
        )
        .await
        .map_err(failed)?;
        // Of these, too, one may have been passed over; the others are not due any more.
        due.passed_over.append(&mut waiting);
    }
    Ok(due)
}

fn released(row: &Row) -> Result<Released, SqlError> {
    let attempts: i32 = row.try_get(5)?;
    let At(committed_at) = row.try_get(8)?;
    let position = position(row, 6)?;
    let mut fields = Vec::with_capacity(Field::ALL.len());
    for (index, field) in Field::ALL.into_iter().enumerate() {
        if let Some(value) = row.try_get::<_, Option<&str>>(9 + index)? {
            fields.push((field, value));
        }
    }
    Ok(Released {
        hold_id: row.try_get(0)?,
        task: Task::from_fields(fields, position, committed_at),
        sink: row.try_get(2)?,
        route: row.try_get(3)?,
        state: State::named(row.try_get(4)?),
        attempts: u32::try_from(attempts).unwrap_or_default(),
    })
}

/// A position in two columns.
fn position(row: &Row, index: usize) -> Result<Position, SqlError> {
    let lsn: PgLsn = row.try_get(index)?;
    let ordinal: i64 = row.try_get(index + 1)?;
    Ok(Position {
        commit_lsn: Lsn(lsn.into()),
        ordinal: u64::try_from(ordinal).unwrap_or_default(),
    })
}

/// Time until the first task that is not due yet will be; `None` where there is none. To be asked before [`due`], or what
/// becomes due between the two is missed.
///
/// # Errors
/// Those of the server.
pub async fn next_due(db: &Client, slot: &str) -> Result<Option<Duration>, Error> {
    const NEXT: &str = "\
        with recursive sinks as (
          (select h.sink from aftercommit.hold h where h.slot = $1 and h.due_at is not null order by h.sink limit 1)
          union all
          select (select h.sink from aftercommit.hold h
                  where h.slot = $1 and h.due_at is not null and h.sink > s.sink order by h.sink limit 1)
          from sinks s where s.sink is not null
        ), now as materialized (select clock_timestamp() as at)
        select (extract(epoch from min(r.due_at) - (select at from now)) * 1000000)::int8 from sinks s
        cross join lateral (
          select h.due_at from aftercommit.hold h
          where h.slot = $1 and h.sink = s.sink and h.due_at > (select at from now) and h.due_at < 'infinity'
          order by h.due_at limit 1
        ) r";
    let next = db
        .query_typed_one(NEXT, &[(&slot, Type::TEXT)])
        .await
        .and_then(|row| row.try_get::<_, Option<i64>>(0))
        .map_err(|e| Error::sql("look when a held task is due", e))?;
    Ok(next.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or_default())))
}

/// Hands over the sink and the key of every queue, one by one: of the keys whose later tasks have to be held, too. There
/// may be millions: none is kept here.
///
/// # Errors
/// Those of the server.
pub async fn held_keys(
    db: &Client,
    slot: &str,
    mut each: impl FnMut(&str, &str),
) -> Result<(), Error> {
    let keys = "select distinct sink, key from aftercommit.hold where slot = $1 and blocks";
    let take = |row: &Row| {
        each(row.try_get(0)?, row.try_get(1)?);
        Ok(())
    };
    stream(db, keys, &[(&slot, Type::TEXT)], take)
        .await
        .map_err(|e| Error::sql("read the held keys", e))
}

/// Hands over the positions of the held tasks whose transactions committed at `from` or later, one by one and in no order.
///
/// # Errors
/// Those of the server.
pub async fn held_positions(
    db: &Client,
    slot: &str,
    from: Lsn,
    mut each: impl FnMut(Position),
) -> Result<(), Error> {
    let positions =
        "select commit_lsn, ordinal from aftercommit.hold where slot = $1 and commit_lsn >= $2";
    let from = to_pg_lsn(from);
    let take = |row: &Row| {
        each(position(row, 0)?);
        Ok(())
    };
    let params: [Param<'_>; 2] = [(&slot, Type::TEXT), (&from, Type::PG_LSN)];
    stream(db, positions, &params, take)
        .await
        .map_err(|e| Error::sql("read the held positions", e))
}

type Param<'a> = (&'a (dyn ToSql + Sync), Type);

async fn stream(
    db: &Client,
    query: &str,
    params: &[Param<'_>],
    mut take: impl FnMut(&Row) -> Result<(), SqlError>,
) -> Result<(), SqlError> {
    let params = params.iter().map(|(value, of)| (*value, of.clone()));
    let mut rows = pin!(db.query_typed_raw(query, params).await?);
    while let Some(row) = rows.try_next().await? {
        take(&row)?;
    }
    Ok(())
}

/// Lets queues go on that wait for nothing, as they may after somebody has changed rows by hand. To be called at every
/// connect.
///
/// # Errors
/// Those of the server.
pub async fn mend(db: &Client, slot: &str) -> Result<(), Error> {
    const MEND: &str = "\
        with locked as materialized (select aftercommit.hold_lock($1))
        select aftercommit.hold_advance(array_agg($1), array_agg(k.sink), array_agg(k.key))
        from (select distinct sink, key from aftercommit.hold
              where slot = $1 and blocks and due_at is null and state <> 'dead') k, locked
        having count(*) > 0";
    db.query_typed(MEND, &[(&slot, Type::TEXT)])
        .await
        .map_err(|e| Error::sql("look after the queues of the hold table", e))?;
    Ok(())
}
