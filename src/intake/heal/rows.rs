//! The rows that are older than a new slot, as one transaction of the stream that comes before all others.
//!
//! They are read under the slot's own snapshot, in the text form that the stream has: by the same output functions, which is
//! what the simple query protocol uses, and under the same settings. The transaction commits just below the slot's
//! consistent point, where no real one can (records of the WAL begin at multiples of eight), and ends at it. So gate,
//! watermark, lanes and confirmation treat it like any other: it is confirmed when all of it is settled, and what the slot
//! sends comes behind it.
//!
//! # Order
//!
//! The rows of one key have to be in the order of their commits, which a table does not keep. They come in the order of
//!
//! 1. commit timestamps, where the server tracks them (`track_commit_timestamp`): transactions in the order in which they
//!    ended, as far as the server's clock was not set back between two of them;
//! 2. else, and between equal ones, transaction ids (`age(xmin)`). A transaction that wrote for the first time after another
//!    had committed comes behind it; so it is wherever the application itself knows the order. Of two that wrote side by
//!    side, the one that began to write first comes first, even if it committed last. A savepoint has an id of its own: its rows come
//!    behind all those that the transaction wrote outside of it;
//! 3. within a transaction, commands (`cmin`). What an interrupted DELETE of ours has touched has lost its command; it comes
//!    first, since it was dispatched before the others of its key;
//! 4. within a command, numbers, where the ids of tasks are numbers; then `created_at`, where the table has one: in ours it is
//!    the time of the row; then places in the table, which are in the order of insertion only where no gap was filled.
//!
//! So a key's order is kept for all rows that were inserted by transactions one after the other, in our own table. It is not
//! promised, without commit timestamps, between transactions that overlapped; nor in another table between rows of the same
//! INSERT that have neither numbers nor times.

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use tracing::info;

use crate::control::{ident, literal};
use crate::intake::pump::undecodable;
use crate::intake::{Intake, Item};
use crate::outbox::assembler::{AssembleError, Event, RowDefect};
use crate::outbox::columns::Layout;
use crate::outbox::task::Spans;
use crate::outbox::{Columns, Field, Position, Task};
use crate::pg::{Lsn, Timestamp};
use crate::replication::{CreatedSlot, Error, Place, Policy, connect_sql_unhurried};

/// Rows and bytes of a batch. A single row may be larger.
const BATCH_ROWS: usize = 256;
const BATCH_BYTES: usize = 256 << 10;

/// The rows, in batches: a Begin, the tasks, and a Commit.
pub(in crate::intake) struct Rows {
    batches: mpsc::Receiver<Result<Vec<Item>, Error>>,
    is_complete: bool,
}

impl Rows {
    pub(in crate::intake) fn new(batches: mpsc::Receiver<Result<Vec<Item>, Error>>) -> Rows {
        Rows {
            batches,
            is_complete: false,
        }
    }

    /// The next batch; `None` after the Commit. Cancel-safe.
    pub(in crate::intake) async fn next(&mut self) -> Option<Result<Vec<Item>, Error>> {
        if self.is_complete {
            return None;
        }
        let batch = self.batches.recv().await;
        let batch = batch.unwrap_or_else(|| Err(Error::closed(Place::Sql)));
        if let Ok(items) = &batch {
            self.is_complete = matches!(items.last(), Some(Item::Outbox(Event::Commit { .. })));
        }
        Some(batch)
    }
}

/// Takes the slot's snapshot, and begins to read. Also returns the snapshot itself, as `pg_current_snapshot()` writes it.
pub(super) async fn open(intake: &Intake, slot: &CreatedSlot) -> Result<(Rows, String), Error> {
    let client = connect_sql_unhurried(&intake.target, "aftercommit heal").await?;
    let failed = |e| Error::sql("read the outbox under the slot's snapshot", e);
    client
        .batch_execute(&format!(
            "begin isolation level repeatable read read only; set transaction snapshot {}",
            literal(&slot.snapshot)
        ))
        .await
        .map_err(|e| gone(failed(e)))?;
    let table = Table::look(&client, &intake.columns).await?;
    let row = client
        .query_typed_one(
            "select pg_current_snapshot()::text, \
             (extract(epoch from clock_timestamp()) * 1000000)::int8 - 946684800000000",
            &[],
        )
        .await
        .map_err(failed)?;
    let snapshot: String = row.try_get(0).map_err(failed)?;
    let now = Timestamp(row.try_get(1).map_err(failed)?);
    let (sender, batches) = mpsc::channel(1);
    let reader = Reader {
        client,
        table,
        end_lsn: slot.consistent_point,
        commit_lsn: Lsn(slot.consistent_point.0.saturating_sub(1)),
        xid: settled_xid(&snapshot),
        now,
    };
    tokio::spawn(async move {
        let read = tokio::select! {
            () = sender.closed() => return,
            read = reader.read(&sender) => read,
        };
        if let Err(error) = read {
            let _ = sender.send(Err(error)).await;
        }
    });
    Ok((Rows::new(batches), snapshot))
}

/// The walsender has died meanwhile, and its snapshot with it; each version has its own code for that.
fn gone(error: Error) -> Error {
    match error.sqlstate() {
        Some("22023" | "42704" | "55000") => {
            Error::judged(Place::Sql, Policy::Reconnect, error.to_string())
        }
        _ => error,
    }
}

/// A transaction that had ended before any that the snapshot does not see: every later snapshot sees it, too.
fn settled_xid(snapshot: &str) -> u32 {
    let xmin = snapshot.split(':').next().unwrap_or_default();
    let xmin: u64 = xmin.parse().unwrap_or_default();
    (xmin as u32).wrapping_sub(1)
}

/// What is read of the table.
struct Table {
    layout: Layout,
    sql: String,
    /// Number of columns that are read for tasks; behind them stands the time of the commit.
    width: usize,
}

impl Table {
    async fn look(client: &Client, columns: &Columns) -> Result<Table, Error> {
        let failed = |e| Error::sql("look at the outbox table", e);
        let name = columns.table();
        let found = client
            .query_typed(
                "select a.attname::text, a.atttypid, c.relkind = 'p', current_setting('track_commit_timestamp') = 'on' \
                 from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                 join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
                 where n.nspname = $1 and c.relname = $2 order by a.attnum",
                &[(&name.schema(), Type::TEXT), (&name.name(), Type::TEXT)],
            )
            .await
            .map_err(failed)?;
        let mut described = Vec::with_capacity(found.len());
        let (mut is_partitioned, mut has_times) = (false, false);
        for row in &found {
            described.push((
                row.try_get::<_, &str>(0).map_err(failed)?,
                row.try_get::<_, u32>(1).map_err(failed)?,
            ));
            is_partitioned = row.try_get(2).map_err(failed)?;
            has_times = row.try_get(3).map_err(failed)?;
        }
        let layout = columns.layout(&described).map_err(|error| {
            undecodable(AssembleError::Layout {
                commit_lsn: None,
                source: Box::new(error),
            })
        })?;
        let mut read: Vec<usize> = layout.steps().iter().map(|(index, _)| *index).collect();
        read.dedup();
        let names = read.iter().filter_map(|index| described.get(*index));
        let names: Vec<String> = names.map(|(name, _)| ident(name)).collect();
        let rank = described.iter().filter(|(name, type_id)| {
            let is_id = columns.column(Field::Id) == Some(name);
            is_id && NUMBERS.contains(type_id) || *name == "created_at" && TIMES.contains(type_id)
        });
        // The id before the time.
        let mut rank: Vec<&str> = rank.map(|(name, _)| *name).collect();
        rank.sort_by_key(|name| *name == "created_at");
        let rank: String = rank
            .iter()
            .map(|name| format!("o.{}, ", ident(name)))
            .collect();
        let committed_at = if has_times {
            COMMITTED_AT
        } else {
            "null::int8"
        };
        Ok(Table {
            sql: select(&names, committed_at, &name.to_sql(), is_partitioned, &rank),
            width: names.len(),
            layout,
        })
    }
}

/// OIDs of the types that numbers and times have (`pg_type.dat` of Postgres).
const NUMBERS: [u32; 3] = [20, 21, 23];
const TIMES: [u32; 2] = [1114, 1184];

/// When the row's transaction committed, in microseconds since 2000.
const COMMITTED_AT: &str = "(extract(epoch from pg_catalog.pg_xact_commit_timestamp(o.xmin)) * 1000000)::int8 - 946684800000000";

/// `rank` orders the rows of one command. A table that is no partitioned one is published without those that inherit from it.
fn select(
    columns: &[String],
    committed_at: &str,
    table: &str,
    is_partitioned: bool,
    rank: &str,
) -> String {
    let only = if is_partitioned { "" } else { "only " };
    let names: String = columns.iter().map(|name| format!("o.{name}, ")).collect();
    // By number, since a column may have any name.
    let time = columns.len() + 1;
    format!(
        "select {names}{committed_at} from {only}{table} o \
         order by {time} nulls first, age(o.xmin) desc, \
                  case when o.xmax = '0'::xid then o.cmin::text::int8 end nulls first, {rank}o.tableoid, o.ctid"
    )
}

struct Reader {
    client: Client,
    table: Table,
    commit_lsn: Lsn,
    end_lsn: Lsn,
    xid: u32,
    /// Stands for the time of a commit that is not known.
    now: Timestamp,
}

impl Reader {
    async fn read(&self, batches: &mpsc::Sender<Result<Vec<Item>, Error>>) -> Result<(), Error> {
        let failed = |e| Error::sql("read the outbox", e);
        let begin = Event::Begin {
            xid: self.xid,
            commit_lsn: self.commit_lsn,
            committed_at: self.now,
        };
        let mut items = vec![Item::Outbox(begin)];
        let (mut bytes, mut ordinal) = (0, 0);
        let rows = self.client.simple_query_raw(&self.table.sql).await;
        let mut rows = std::pin::pin!(rows.map_err(failed)?);
        while let Some(message) = rows.next().await {
            let SimpleQueryMessage::Row(row) = message.map_err(failed)? else {
                continue;
            };
            let task = self.task(&row, ordinal).map_err(undecodable)?;
            ordinal += 1;
            bytes += task.size();
            items.push(Item::Outbox(Event::Task(task)));
            if items.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
                let batch = std::mem::take(&mut items);
                bytes = 0;
                if batches.send(Ok(batch)).await.is_err() {
                    return Ok(());
                }
            }
        }
        items.push(Item::Outbox(Event::Commit {
            end_lsn: self.end_lsn,
        }));
        info!(rows = ordinal, consistent_point = %self.end_lsn, "read what was in the outbox; streaming from here");
        let _ = batches.send(Ok(items)).await;
        Ok(())
    }

    fn task(&self, row: &SimpleQueryRow, ordinal: u64) -> Result<Task, AssembleError> {
        let position = Position {
            commit_lsn: self.commit_lsn,
            ordinal,
        };
        let bad = |defect| AssembleError::Row { position, defect };
        let text = |column: usize, name: &'static str| {
            row.try_get(column)
                .map_err(|_| bad(RowDefect::NotUtf8(name)))
        };
        let mut bytes = Vec::new();
        let mut spans = Spans::default();
        let mut read = None;
        for (index, field) in self.table.layout.steps() {
            // A column may hold several fields.
            let (column, span) = match read {
                Some((last, column, span)) if last == *index => (column, span),
                before => {
                    let column = before.map_or(0, |(_, column, _)| column + 1);
                    let start = bytes.len() as u32;
                    let value = text(column, field.name())?;
                    bytes.extend_from_slice(value.unwrap_or_default().as_bytes());
                    (column, value.map(|_| (start, bytes.len() as u32)))
                }
            };
            read = Some((*index, column, span));
            spans[*field as usize] = span;
        }
        for field in [Field::Id, Field::Task] {
            if spans[field as usize].is_none() {
                return Err(bad(RowDefect::Null(field.name())));
            }
        }
        let committed_at = text(self.table.width, "the time of the commit")?
            .and_then(|micros| micros.parse().ok())
            .map_or(self.now, Timestamp);
        Ok(Task::new(
            bytes.into(),
            spans,
            self.table.layout.json(),
            position,
            committed_at,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_about_a_transaction_that_every_later_snapshot_sees() {
        for (snapshot, xid) in [
            ("100:110:102,105", 99),
            ("4294967301:4294967301:", 4),
            ("4294967296:4294967301:", u32::MAX),
        ] {
            assert_eq!(settled_xid(snapshot), xid, "{snapshot}");
        }
    }

    #[test]
    fn reads_the_columns_by_name_and_orders_by_commits() {
        let columns = ["\"id\"".to_owned(), "\"the \"\"task\"\"\"".to_owned()];
        let sql = select(&columns, "null::int8", "\"a\".\"b\"", false, "o.\"id\", ");
        assert_eq!(
            sql,
            r#"select o."id", o."the ""task""", null::int8 from only "a"."b" o order by 3 nulls first, age(o.xmin) desc, case when o.xmax = '0'::xid then o.cmin::text::int8 end nulls first, o."id", o.tableoid, o.ctid"#
        );
        let sql = select(&columns, COMMITTED_AT, "\"a\".\"b\"", true, "");
        assert!(sql.contains("946684800000000 from \"a\".\"b\" o order by 3"));
    }
}
