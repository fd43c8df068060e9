//! Deleting settled rows of which some are locked by somebody else.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Error as SqlError, Statement, Transaction};

use super::settle::{DELETE_ROWS, delete_statement};
use super::wire::array_of;
use crate::outbox::TableName;
use crate::replication::Error;

/// A locked row is looked for by halves: each attempt waits so long for locks.
const LIMITS: &str = "set local enable_seqscan = off; set local lock_timeout = '20ms'";
/// There are so many attempts in vain.
const IN_VAIN: usize = 24;

/// As [`delete_settled`](super::delete_settled), where some of the rows are locked, or the table is: returns the ids of rows
/// that could not be deleted now, or were not tried any more.
///
/// Without `for update skip locked`, which would ask for the right to update the application's table.
///
/// # Errors
/// Those of the server; the transaction is of no more use then.
pub async fn delete_unlocked(
    db: &mut Transaction<'_>,
    table: &TableName,
    id_column: &str,
    ids: &[&str],
) -> Result<Vec<String>, Error> {
    delete(db, table, id_column, ids)
        .await
        .map_err(|e| Error::sql("delete settled rows", e))
}

async fn delete(
    db: &mut Transaction<'_>,
    table: &TableName,
    id_column: &str,
    ids: &[&str],
) -> Result<Vec<String>, SqlError> {
    let owned = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    let attempt = db.transaction().await?;
    let lock = format!("lock table {} in row exclusive mode nowait", table.to_sql());
    let locked = attempt.batch_execute(&lock).await;
    if !is_made(attempt, locked).await? {
        return Ok(owned(ids));
    }
    let statement = db.prepare(&delete_statement(table, id_column)).await?;
    let mut parts: Vec<&[&str]> = ids.chunks(DELETE_ROWS).collect();
    let (mut left, mut in_vain) = (Vec::new(), 0);
    while let Some(part) = parts.pop() {
        if in_vain >= IN_VAIN {
            left.append(&mut owned(part));
            continue;
        }
        if attempt_part(db, &statement, part).await? {
            continue;
        }
        in_vain += 1;
        match part.split_at(part.len() / 2) {
            ([], one) => left.append(&mut owned(one)),
            (first, second) => parts.extend([second, first]),
        }
    }
    Ok(left)
}

/// Deletes these; false when another session's lock is in the way.
async fn attempt_part(
    db: &mut Transaction<'_>,
    statement: &Statement,
    ids: &[&str],
) -> Result<bool, SqlError> {
    let of = statement.params().first().unwrap_or(&Type::UNKNOWN);
    let ids = array_of(ids, of);
    let attempt = db.transaction().await?;
    let deleted = match attempt.batch_execute(LIMITS).await {
        Ok(()) => attempt.execute(statement, &[&*ids]).await.map(drop),
        Err(error) => Err(error),
    };
    is_made(attempt, deleted).await
}

/// Ends an attempt; one that met a lock has done nothing.
async fn is_made(attempt: Transaction<'_>, result: Result<(), SqlError>) -> Result<bool, SqlError> {
    match result {
        Ok(()) => attempt.commit().await.map(|()| true),
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            attempt.rollback().await.map(|()| false)
        }
        Err(error) => Err(error),
    }
}
