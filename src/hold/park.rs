//! Holding tasks.
//!
//! They come in bulk when a sink is away, so the rows go in by COPY, which costs the server half of what an INSERT does.
//! COPY knows no `on conflict` and computes nothing: what it depends on is asked for before, under the lock of the slot's
//! hold, and stays true until the end of the transaction.

use std::collections::{HashMap, HashSet};

use tokio_postgres::types::{PgLsn, Type};
use tokio_postgres::{Error as SqlError, Transaction};

use super::copy::{Copy, Value};
use super::store::lock;
use super::wire::{At, clean, count, micros, to_pg_lsn};
use super::{Park, State};
use crate::outbox::{Field, Position};
use crate::pg::{Lsn, Timestamp};
use crate::replication::Error;

/// The columns, in the order of [`copy`].
const COPY: &str = "\
copy aftercommit.hold
  (slot, sink, route, state, blocks, id, task, key, due_at, attempts, last_error, held_at, updated_at, commit_lsn, ordinal,
   committed_at, args, kwargs, payload, body, queue, headers, priority, run_at, expires_at, options)
from stdin (format binary)";

/// How many they are.
const COLUMNS: i16 = 26;

/// Fields that are copied as they are, in the order of [`COPY`].
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

/// Which of these are held already. A transaction's rows are asked for together: they are one range of an index.
const KNOWN: &str = "\
select h.commit_lsn, h.ordinal, h.id
from unnest($2::pg_lsn[], $3::int8[], $4::int8[]) g (commit_lsn, first, last)
cross join lateral (
  select h.commit_lsn, h.ordinal, h.id from aftercommit.hold h
  where h.slot = $1 and h.commit_lsn = g.commit_lsn and h.ordinal between g.first and g.last
  offset 0
) h";

/// The last row of each queue that is not empty. See [`PLANNER`](super::PLANNER) for its order.
const TAILS: &str = "\
select k.place, tail.due_at, tail.attempts
from unnest($2::text[], $3::text[]) with ordinality k (sink, key, place)
cross join lateral (
  select q.due_at, q.attempts from aftercommit.hold q
  where q.slot = $1 and q.sink = k.sink and q.blocks and q.key = k.key
    and hashtextextended(q.key, 0) = hashtextextended(k.key, 0)
  order by q.hold_id + 0 desc limit 1
) tail";

/// Holds tasks. A row that is held already, at the same position, stays as it is.
///
/// The tasks of a key have to come in their order, here and from one call to the next.
///
/// # Errors
/// Those of the server; the transaction is of no more use then.
pub async fn park(db: &Transaction<'_>, slot: &str, parks: &[Park]) -> Result<(), Error> {
    if parks.is_empty() {
        return Ok(());
    }
    let park = async {
        let ((), mut known, ends, now) = tokio::try_join!(
            lock(db, slot),
            known(db, slot, parks),
            ends(db, slot, parks),
            now(db),
        )?;
        let mut new = Vec::with_capacity(parks.len());
        for park in parks {
            if known.insert((park.task.position, park.task.id())) {
                new.push(park);
            }
        }
        copy(db, slot, &new, &due_times(&new, ends, now), now).await
    };
    park.await.map_err(|e| Error::sql("hold tasks", e))
}

/// Which tasks are held already: position and id.
async fn known<'p>(
    db: &Transaction<'_>,
    slot: &str,
    parks: &'p [Park],
) -> Result<HashSet<(Position, &'p str)>, SqlError> {
    let mut ranges: HashMap<Lsn, (i64, i64)> = HashMap::new();
    for park in parks {
        let Position {
            commit_lsn,
            ordinal,
        } = park.task.position;
        let ordinal = to_int8(ordinal);
        let (first, last) = ranges.entry(commit_lsn).or_insert((ordinal, ordinal));
        (*first, *last) = ((*first).min(ordinal), (*last).max(ordinal));
    }
    let lsns: Vec<PgLsn> = ranges.keys().map(|lsn| to_pg_lsn(*lsn)).collect();
    let firsts: Vec<i64> = ranges.values().map(|(first, _)| *first).collect();
    let lasts: Vec<i64> = ranges.values().map(|(_, last)| *last).collect();
    let rows = db
        .query_typed(
            KNOWN,
            &[
                (&slot, Type::TEXT),
                (&lsns, Type::PG_LSN_ARRAY),
                (&firsts, Type::INT8_ARRAY),
                (&lasts, Type::INT8_ARRAY),
            ],
        )
        .await?;
    let mut there = HashSet::with_capacity(rows.len());
    for row in &rows {
        let lsn: PgLsn = row.try_get(0)?;
        there.insert((u64::from(lsn), row.try_get(1)?, row.try_get::<_, &str>(2)?));
    }
    let marks = parks
        .iter()
        .map(|park| (park.task.position, park.task.id()));
    let known = marks.filter(|(position, id)| {
        there.contains(&(position.commit_lsn.0, to_int8(position.ordinal), *id))
    });
    Ok(known.collect())
}

/// The end of a queue, as far as it is known: what a task that joins it has to go by.
#[derive(Clone, Copy, Debug)]
struct End {
    /// Nothing joins it that is due earlier.
    due: Timestamp,
    /// What joins it waits until the queue goes on.
    waits: bool,
}

type Ends<'p> = HashMap<(&'p str, &'p str), End>;

/// The end of each queue that one of these joins, and that is not empty.
async fn ends<'p>(
    db: &Transaction<'_>,
    slot: &str,
    parks: &'p [Park],
) -> Result<Ends<'p>, SqlError> {
    let queues: HashSet<(&str, &str)> = parks.iter().filter_map(queue_of).collect();
    let mut ends = HashMap::new();
    if queues.is_empty() {
        return Ok(ends);
    }
    let (sinks, keys): (Vec<&str>, Vec<&str>) = queues.iter().copied().unzip();
    let rows = db
        .query_typed(
            TAILS,
            &[
                (&slot, Type::TEXT),
                (&sinks, Type::TEXT_ARRAY),
                (&keys, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    for row in &rows {
        let place: i64 = row.try_get(0)?;
        let due: Option<At> = row.try_get(1)?;
        let attempts: i32 = row.try_get(2)?;
        let end = End {
            due: due.as_ref().map_or(Timestamp(i64::MIN), |At(due)| *due),
            waits: due.is_none() || attempts > 0,
        };
        let index = usize::try_from(place - 1).unwrap_or(usize::MAX);
        if let (Some(sink), Some(key)) = (sinks.get(index), keys.get(index)) {
            ends.insert((*sink, *key), end);
        }
    }
    Ok(ends)
}

async fn now(db: &Transaction<'_>) -> Result<Timestamp, SqlError> {
    let row = db.query_typed_one("select clock_timestamp()", &[]).await?;
    row.try_get(0).map(|At(now)| now)
}

/// The sink and the key whose queue a task joins.
fn queue_of(park: &Park) -> Option<(&str, &str)> {
    match park.blocks {
        true => Some((&*park.sink, park.task.text(Field::Key)?)),
        false => None,
    }
}

/// When each is due. One that joins a queue is due after those before it, and has no due time where one of them has none
/// or has been tried in vain: then it waits until the queue goes on.
fn due_times<'p>(parks: &[&'p Park], mut ends: Ends<'p>, now: Timestamp) -> Vec<Option<Timestamp>> {
    let each = parks.iter().map(|park| {
        let wish = (park.state != State::Dead).then(|| {
            let pause = micros(park.due_in.unwrap_or_default());
            park.due_at
                .unwrap_or(Timestamp(now.0.saturating_add(pause)))
        });
        let Some(queue) = queue_of(park) else {
            return wish;
        };
        let end = ends.entry(queue).or_insert(End {
            due: Timestamp(i64::MIN),
            waits: false,
        });
        let due = wish.filter(|_| !end.waits).map(|wish| wish.max(end.due));
        end.due = end.due.max(wish.unwrap_or(end.due));
        end.waits |= wish.is_none() || park.attempts > 0;
        due
    });
    each.collect()
}

async fn copy(
    db: &Transaction<'_>,
    slot: &str,
    parks: &[&Park],
    due: &[Option<Timestamp>],
    now: Timestamp,
) -> Result<(), SqlError> {
    if parks.is_empty() {
        return Ok(());
    }
    let mut rows = Copy::start(db, COPY).await?;
    for (park, due) in parks.iter().zip(due) {
        let task = &park.task;
        let key = task.text(Field::Key);
        rows.row(COLUMNS);
        for text in [slot, &park.sink, &park.route, park.state.name()] {
            rows.text(Some(text)).await?;
        }
        rows.value(Value::Bool(park.blocks && key.is_some()));
        for text in [Some(task.id()), Some(task.name()), key] {
            rows.text(text).await?;
        }
        rows.value(Value::Time(*due));
        rows.value(Value::Int4(count(park.attempts)));
        rows.text(park.error.as_deref().map(clean).as_deref())
            .await?;
        rows.value(Value::Time(Some(now)));
        rows.value(Value::Time(Some(now)));
        rows.value(Value::Lsn(task.position.commit_lsn));
        rows.value(Value::Int8(to_int8(task.position.ordinal)));
        rows.value(Value::Time(Some(task.committed_at)));
        for field in COPIED {
            rows.text(task.text(field)).await?;
        }
    }
    rows.finish().await
}

fn to_int8(ordinal: u64) -> i64 {
    i64::try_from(ordinal).unwrap_or(i64::MAX)
}
