//! Reading the hold table: what is due, and what is held.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio_postgres::types::{PgLsn, ToSql, Type};
use tokio_postgres::{Client, Error as SqlError, Row};

use super::wire::{At, to_pg_lsn};
use super::{Released, State};
use crate::outbox::{Field, Position, Task};
use crate::pg::{Lsn, Timestamp};
use crate::replication::Error;

/// How much [`due`] returns at most. One task comes even where it alone is larger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Number of tasks.
    pub tasks: i64,
    /// Bytes of their fields.
    pub bytes: i64,
}

/// A place in the order in which a sink's tasks are due.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    due_at: Timestamp,
    hold_id: i64,
}

impl Place {
    /// Before all of them.
    pub const START: Place = Place {
        due_at: Timestamp(i64::MIN),
        hold_id: i64::MIN,
    };

    /// Behind this row.
    pub fn at(due_at: Timestamp, hold_id: i64) -> Place {
        Place { due_at, hold_id }
    }
}

/// A sink for which tasks are held that are due, or will be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outlook {
    /// Its name.
    pub sink: Arc<str>,
    /// Some are due now.
    pub is_due: bool,
    /// Time until the first of the others is.
    pub next: Option<Duration>,
}

/// The sinks of a slot for which something has a due time. To be asked before [`due`], or what becomes due between the two
/// is missed.
///
/// # Errors
/// Those of the server.
pub async fn outlook(db: &Client, slot: &str) -> Result<Vec<Outlook>, Error> {
    // They are found by a jump from one to the next: no row is looked at that does not count.
    const OUTLOOK: &str = "\
        with recursive sinks as (
          (select h.sink from aftercommit.hold h where h.slot = $1 and h.due_at is not null order by h.sink limit 1)
          union all
          select (select h.sink from aftercommit.hold h
                  where h.slot = $1 and h.due_at is not null and h.sink > s.sink order by h.sink limit 1)
          from sinks s where s.sink is not null
        ), now as materialized (select clock_timestamp() as at)
        select s.sink, first.due_at <= now.at, (extract(epoch from next.due_at - now.at) * 1000000)::int8
        from sinks s
        cross join now
        cross join lateral (
          select h.due_at from aftercommit.hold h
          where h.slot = $1 and h.sink = s.sink and h.due_at is not null order by h.due_at limit 1
        ) first
        left join lateral (
          select h.due_at from aftercommit.hold h
          where h.slot = $1 and h.sink = s.sink and h.due_at > now.at and h.due_at < 'infinity' order by h.due_at limit 1
        ) next on true";
    let read = |row: Row| {
        let next: Option<i64> = row.try_get(2)?;
        Ok(Outlook {
            sink: row.try_get::<_, &str>(0)?.into(),
            is_due: row.try_get(1)?,
            next: next
                .map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or_default())),
        })
    };
    let rows = db.query_typed(OUTLOOK, &[(&slot, Type::TEXT)]).await;
    rows.and_then(|rows| rows.into_iter().map(read).collect())
        .map_err(|e| Error::sql("look when a held task is due", e))
}

/// In order from the index; each row is touched once. The sizes are those of the columns that can be large, and reading
/// them reads no value that is stored out of line.
const DUE: &str = "\
select h.hold_id, h.due_at, h.route, h.state, h.attempts, h.commit_lsn, h.ordinal, h.committed_at,
       h.id, h.task, h.args, h.kwargs, h.payload, h.body, h.key, h.queue, h.headers, h.priority, h.run_at, h.expires_at,
       h.options
from (
  select h.*, sum(
      octet_length(h.id)::float8 + octet_length(h.task) + coalesce(octet_length(h.args), 0) + coalesce(octet_length(h.kwargs), 0)
        + coalesce(octet_length(h.payload), 0) + coalesce(octet_length(h.body), 0) + coalesce(octet_length(h.key), 0)
        + coalesce(octet_length(h.queue), 0) + coalesce(octet_length(h.headers), 0) + coalesce(octet_length(h.options), 0)
    ) over (order by h.due_at, h.hold_id rows between unbounded preceding and 1 preceding) as before
  from (
    select * from aftercommit.hold h
    where h.slot = $1 and h.sink = $2 and h.due_at <= (select clock_timestamp()) and (h.due_at, h.hold_id) > ($3, $4)
      and not (h.hold_id in (select unnest($5::int8[])))
    order by h.due_at, h.hold_id
    limit $6
  ) h
) h
where h.before is null or h.before < $7
order by h.due_at, h.hold_id";

/// Marks scheduled tasks as released: from now on it is too late to cancel them. Those of whose key another one is held wait.
///
/// By arrays and not by joins: where the planner takes the table for empty, it would go through all of it for each row.
const RELEASE: &str = "\
with chosen as materialized (
  select h.hold_id, not h.blocks and h.key is not null and (
           select true from aftercommit.hold q
           where q.slot = h.slot and q.sink = h.sink and q.blocks and q.key = h.key
             and hashtextextended(q.key, 0) = hashtextextended(h.key, 0)
           order by q.hold_id + 0 limit 1
         ) is not null as waits
  from aftercommit.hold h where h.hold_id = any ($1) and h.state = 'scheduled'
), released as (
  update aftercommit.hold h set released_at = clock_timestamp()
  where h.hold_id = any (array(
    select l.hold_id from aftercommit.hold l
    where l.hold_id = any (array(select hold_id from chosen where not waits))
    for no key update skip locked
  ))
  returning h.hold_id
)
select hold_id, false from released union all select hold_id, true from chosen where waits";

/// What [`due`] has found.
#[derive(Debug, Default)]
pub struct Due {
    /// Tasks whose time has come, in the order in which they were due; those of a key in their order.
    pub released: Vec<Released>,
    /// Rows that were passed over, since an open transaction is cancelling them. They stay due: whoever looks on without
    /// leaving them out finds them again, and perhaps nothing else.
    pub passed_over: Vec<i64>,
    /// Where to look on; `None` where nothing was found.
    pub last: Option<Place>,
    /// Rows that were found.
    pub found: usize,
}

/// Tasks of a sink whose time has come, by the server's clock, and that are behind `after`.
///
/// Left out are the rows in `but`, those in flight: a row stays, and stays due, until it is removed, postponed or buried. A
/// scheduled task of whose key another one is held goes into the queue of its key. What changes the queues must not come
/// in between: the lock of the slot's hold is to be taken before, in the same transaction.
///
/// # Errors
/// Those of the server.
pub async fn due(
    db: &Client,
    slot: &str,
    sink: &Arc<str>,
    after: Place,
    but: &[i64],
    batch: Batch,
) -> Result<Due, Error> {
    let failed = |e| Error::sql("look for held tasks that are due", e);
    let rows = db
        .query_typed(
            DUE,
            &[
                (&slot, Type::TEXT),
                (&&**sink, Type::TEXT),
                (&At(after.due_at), Type::TIMESTAMPTZ),
                (&after.hold_id, Type::INT8),
                (&but, Type::INT8_ARRAY),
                (&batch.tasks, Type::INT8),
                (&(batch.bytes as f64), Type::FLOAT8),
            ],
        )
        .await
        .map_err(failed)?;
    let mut due = Due {
        found: rows.len(),
        ..Due::default()
    };
    if let Some(row) = rows.last() {
        let At(due_at) = row.try_get(1).map_err(failed)?;
        due.last = Some(Place::at(due_at, row.try_get(0).map_err(failed)?));
    }
    for row in rows {
        due.released.push(released(&row, sink).map_err(failed)?);
    }
    release(db, slot, &mut due).await.map_err(failed)?;
    Ok(due)
}

/// Takes those out that have to wait, or that are being cancelled.
async fn release(db: &Client, slot: &str, due: &mut Due) -> Result<(), SqlError> {
    let scheduled = due
        .released
        .iter()
        .filter(|task| task.state == State::Scheduled);
    let scheduled: Vec<i64> = scheduled.map(|task| task.hold_id).collect();
    if scheduled.is_empty() {
        return Ok(());
    }
    let rows = db
        .query_typed(RELEASE, &[(&scheduled, Type::INT8_ARRAY)])
        .await?;
    let (mut free, mut waiting) = (HashSet::new(), Vec::new());
    for row in rows {
        let hold_id: i64 = row.try_get(0)?;
        match row.try_get(1)? {
            true => waiting.push(hold_id),
            false => drop(free.insert(hold_id)),
        }
    }
    let goes = |task: &Released| task.state != State::Scheduled || free.contains(&task.hold_id);
    // Those that go into the queue of their key may be passed over, too, and are not due any more otherwise.
    let stay = due.released.iter().filter(|task| !goes(task));
    due.passed_over = stay.map(|task| task.hold_id).collect();
    due.released.retain(goes);
    if !waiting.is_empty() {
        db.query_typed(
            "select aftercommit.hold_enqueue($1, $2)",
            &[(&slot, Type::TEXT), (&waiting, Type::INT8_ARRAY)],
        )
        .await?;
    }
    Ok(())
}

fn released(row: &Row, sink: &Arc<str>) -> Result<Released, SqlError> {
    let attempts: i32 = row.try_get(4)?;
    let At(committed_at) = row.try_get(7)?;
    let position = position(row, 5)?;
    let mut fields = Vec::with_capacity(Field::ALL.len());
    for (index, field) in Field::ALL.into_iter().enumerate() {
        if let Some(value) = row.try_get::<_, Option<&str>>(8 + index)? {
            fields.push((field, value));
        }
    }
    Ok(Released {
        hold_id: row.try_get(0)?,
        task: Task::from_fields(fields, position, committed_at),
        sink: sink.clone(),
        route: row.try_get(2)?,
        state: State::named(row.try_get(3)?),
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
