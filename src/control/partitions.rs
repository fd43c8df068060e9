//! The partitions of an outbox: what `sql/partitions.sql` offers, and what an open transaction can still write into them.

use std::time::Duration;

use tokio_postgres::types::{PgLsn, ToSql, Type};
use tokio_postgres::{Client, Error as SqlError, Row};

use crate::outbox::TableName;
use crate::pg::Lsn;
use crate::replication::Error;

/// A partition, but for the DEFAULT one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Partition {
    /// Its OID.
    pub oid: u32,
    /// `schema.name`, as SQL writes it.
    pub name: String,
    /// For so many microseconds no clock in the world has shown a date of it; negative, or `None`, where that is to come.
    pub past_us: Option<i64>,
    /// From its lower to its upper bound, where it has both.
    pub width: Option<Duration>,
}

/// A partition that was to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Made {
    /// `schema.name`, as SQL writes it.
    pub name: String,
    /// Where it begins.
    pub from: String,
    /// Where the next one begins.
    pub to: String,
    /// Why it could not be made: its rows are in the DEFAULT partition, or its name is taken.
    pub problem: Option<String>,
}

/// A transaction of this database that is open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// Its virtual id, which no other has while the server runs.
    pub id: String,
    /// Microseconds since it began, where our role may know.
    pub age_us: Option<i64>,
}

/// The call that makes what is missing; `width` is for the first partition of all.
pub(super) fn extend_call(table: &str, width: Duration) -> String {
    format!(
        "aftercommit.outbox_extend({table}, make_interval(secs => {}))",
        width.as_secs()
    )
}

/// Makes the partitions that are missing between now and two partitions from now.
///
/// # Errors
/// Those of the server: among them 55P03, a lock was not to be had at once.
pub async fn extend(db: &Client, table: &TableName, width: Duration) -> Result<Vec<Made>, Error> {
    let query = format!(
        "select name, lower::text, upper::text, problem from {}",
        extend_call("$1::text::regclass", width)
    );
    let made = |row: &Row| {
        Ok(Made {
            name: row.try_get(0)?,
            from: row.try_get(1)?,
            to: row.try_get(2)?,
            problem: row.try_get(3)?,
        })
    };
    rows(db, &query, &[(&table.to_sql(), Type::TEXT)], made)
        .await
        .map_err(|e| Error::sql("make the partitions to come", e))
}

/// The partitions, the oldest first.
///
/// # Errors
/// Those of the server.
pub async fn partitions(db: &Client, table: &TableName) -> Result<Vec<Partition>, Error> {
    const PARTITIONS: &str = "\
        select id, name, (extract(epoch from past) * 1000000)::int8,
               case when isfinite(lower) and isfinite(upper) then extract(epoch from upper - lower)::int8 end
        from aftercommit.outbox_partitions($1::text::regclass)";
    let partition = |row: &Row| {
        let width: Option<i64> = row.try_get(3)?;
        Ok(Partition {
            oid: row.try_get(0)?,
            name: row.try_get(1)?,
            past_us: row.try_get(2)?,
            width: width.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or_default())),
        })
    };
    rows(db, PARTITIONS, &[(&table.to_sql(), Type::TEXT)], partition)
        .await
        .map_err(|e| Error::sql("look at the partitions", e))
}

/// Drops a partition that is past.
///
/// # Errors
/// Those of the server: among them 55P03, a lock was not to be had at once.
pub async fn drop_partition(db: &Client, table: &TableName, oid: u32) -> Result<(), Error> {
    db.query_typed(
        "select aftercommit.outbox_drop($1::text::regclass, $2)",
        &[(&table.to_sql(), Type::TEXT), (&oid, Type::OID)],
    )
    .await
    .map_err(|e| Error::sql("drop a settled partition", e))?;
    Ok(())
}

/// The DEFAULT partition, where it has rows.
///
/// # Errors
/// Those of the server.
pub async fn strays(db: &Client, table: &TableName) -> Result<Option<String>, Error> {
    let query = "select aftercommit.outbox_strays($1::text::regclass)";
    let row = db
        .query_typed_one(query, &[(&table.to_sql(), Type::TEXT)])
        .await;
    row.and_then(|row| row.try_get(0))
        .map_err(|e| Error::sql("look into the DEFAULT partition", e))
}

/// Sessions that hold a lock on the table, or on this partition of it.
///
/// # Errors
/// Those of the server.
pub async fn holders(db: &Client, table: &TableName, oid: u32) -> Result<Vec<i32>, Error> {
    const HOLDERS: &str = "\
        select distinct l.pid from pg_catalog.pg_locks l
        where l.locktype = 'relation' and l.granted and l.pid <> pg_backend_pid()
          and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
          and l.relation in ($1::text::regclass, $2)
        order by l.pid";
    let params: [Param<'_>; 2] = [(&table.to_sql(), Type::TEXT), (&oid, Type::OID)];
    rows(db, HOLDERS, &params, |row| row.try_get(0))
        .await
        .map_err(|e| Error::sql("look who holds a lock", e))
}

/// The transactions of this database that are open. Every role sees the lock that each has on its own virtual id.
///
/// # Errors
/// Those of the server.
pub async fn open_transactions(db: &Client) -> Result<Vec<Open>, Error> {
    const OPEN: &str = "\
        select l.virtualxid, (extract(epoch from clock_timestamp() - a.xact_start) * 1000000)::int8
        from pg_catalog.pg_locks l join pg_catalog.pg_stat_activity a on a.pid = l.pid
        where l.locktype = 'virtualxid' and l.mode = 'ExclusiveLock' and l.granted and l.pid <> pg_backend_pid()
          and a.datname = current_database()";
    let open = |row: &Row| {
        Ok(Open {
            id: row.try_get(0)?,
            age_us: row.try_get(1)?,
        })
    };
    rows(db, OPEN, &[], open)
        .await
        .map_err(|e| Error::sql("look for open transactions", e))
}

/// The transactions of this database that are prepared, by their ids.
///
/// # Errors
/// Those of the server.
pub async fn prepared_transactions(db: &Client) -> Result<Vec<String>, Error> {
    let query = "select transaction::text from pg_catalog.pg_prepared_xacts where database = current_database()";
    rows(db, query, &[], |row| row.try_get(0))
        .await
        .map_err(|e| Error::sql("look for prepared transactions", e))
}

/// Where the next byte of WAL is written: what has been committed is below.
///
/// # Errors
/// Those of the server.
pub async fn written(db: &Client) -> Result<Lsn, Error> {
    let row = db
        .query_typed_one("select pg_current_wal_insert_lsn()", &[])
        .await;
    row.and_then(|row| row.try_get::<_, PgLsn>(0))
        .map(|lsn| Lsn(lsn.into()))
        .map_err(|e| Error::sql("look how far the WAL is written", e))
}

/// The walsender that reads a slot.
///
/// # Errors
/// Those of the server.
pub async fn reader(db: &Client, slot: &str) -> Result<Option<i32>, Error> {
    let query = "select active_pid from pg_catalog.pg_replication_slots where slot_name = $1";
    let row = db.query_typed_opt(query, &[(&slot, Type::TEXT)]).await;
    row.and_then(|row| row.map_or(Ok(None), |row| row.try_get(0)))
        .map_err(|e| Error::sql("look who reads the slot", e))
}

type Param<'a> = (&'a (dyn ToSql + Sync), Type);

async fn rows<T>(
    db: &Client,
    query: &str,
    params: &[Param<'_>],
    read: impl Fn(&Row) -> Result<T, SqlError>,
) -> Result<Vec<T>, SqlError> {
    db.query_typed(query, params)
        .await?
        .iter()
        .map(read)
        .collect()
}
