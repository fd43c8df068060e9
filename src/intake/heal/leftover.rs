//! What stays in the outbox after a failover, where the slot goes on and is not healed.
//!
//! A standby that nobody waits for may have the slot's position, and not our last writes from before it: the deletes of rows
//! that were dispatched, and rows of the hold table. The slot does not send those again. So the rows of the outbox that are
//! still there, once everything is settled that the slot sends, are told to the operator: what is older than the session,
//! and not deleted by then, never will be.

use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use tracing::{info, warn};

use crate::hold;
use crate::intake::{Confirmation, Identity, Intake};
use crate::outbox::{Retention, TableName};
use crate::pg::Lsn;
use crate::replication::{Error, connect_sql_unhurried};

/// Where the new server stood when the session began.
struct Beginning {
    /// All transactions below it had ended.
    xmin: String,
    /// What they have written is below it.
    end: Lsn,
}

/// Where our checkpoint is of another history: warns, counts the rows that are left, once all is settled that was committed
/// before this session, and says what to do.
///
/// # Errors
/// Those of the server.
pub(in crate::intake) async fn tell(
    intake: &Intake,
    sql: &Client,
    here: Identity,
    generation: u64,
    mut confirmed: watch::Receiver<Confirmation>,
) -> Result<(), Error> {
    let checkpoint = hold::read_checkpoint(sql, &intake.slot).await?;
    if checkpoint.is_none_or(|at| at.system_id == here.system_id && at.timeline == here.timeline) {
        return Ok(());
    }
    warn!(
        slot = %intake.slot,
        "this server goes on from another one, or from a backup: what the daemon wrote last there may not have come along, \
         tasks that were held among it"
    );
    if intake.retention != Retention::Delete {
        return Ok(());
    }
    let beginning = look(sql).await?;
    let intake = intake.clone();
    tokio::spawn(async move {
        let reached = |now: &Confirmation| {
            now.generation > generation
                || now.generation == generation && now.lsn.lsn() >= beginning.end
        };
        match confirmed.wait_for(reached).await.map(|now| now.generation) {
            Ok(now) if now == generation => {}
            // Another server, or the end.
            _ => return,
        }
        let table = intake.columns.table();
        match count(&intake, &beginning).await {
            Ok(0) => {
                info!(%table, "no row is left in the outbox of what the old server had settled")
            }
            Ok(rows) => warn!(rows, %table, "{}", words(table, &beginning)),
            Err(error) => warn!(
                %error, %table,
                "could not count the rows that are left in the outbox of what the old server had settled"
            ),
        }
    });
    Ok(())
}

async fn look(sql: &Client) -> Result<Beginning, Error> {
    let failed = |e| Error::sql("look where the new server stands", e);
    // One after the other: the snapshot first.
    let row = sql
        .query_typed_one(
            "select pg_snapshot_xmin(pg_current_snapshot())::xid::text",
            &[],
        )
        .await
        .map_err(failed)?;
    let xmin = row.try_get(0).map_err(failed)?;
    let row = sql
        .query_typed_one("select pg_current_wal_insert_lsn()::text", &[])
        .await
        .map_err(failed)?;
    let end: String = row.try_get(0).map_err(failed)?;
    Ok(Beginning {
        xmin,
        end: end.parse().unwrap_or_default(),
    })
}

async fn count(intake: &Intake, beginning: &Beginning) -> Result<i64, Error> {
    let sql = connect_sql_unhurried(&intake.target, "aftercommit watch").await?;
    let table = intake.columns.table().to_sql();
    sql.query_typed_one(
        &format!("select count(*) from {table} where age(xmin) > age($1::text::xid)"),
        &[(&beginning.xmin, Type::TEXT)],
    )
    .await
    .and_then(|row| row.try_get(0))
    .map_err(|e| Error::sql("count what is left in the outbox", e))
}

fn words(table: &TableName, beginning: &Beginning) -> String {
    let rows = format!(
        "{} where age(xmin) > age('{}'::xid)",
        table.to_sql(),
        beginning.xmin
    );
    format!(
        "rows are left in the outbox, which the slot does not send again: the old server had settled them, and that has not \
         come along. Most of them were dispatched; what was held there, was not. To send all of them (again): with rest as \
         (delete from {rows} returning *) insert into {} select * from rest. To drop them: delete from {rows}. With \
         [postgres] heal = true they would have been sent",
        table.to_sql()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_rows_in_sql() {
        let beginning = Beginning {
            xmin: "731".to_owned(),
            end: Lsn(1),
        };
        let words = words(&TableName::ours(), &beginning);
        for sql in [
            r#"with rest as (delete from "aftercommit"."outbox" where age(xmin) > age('731'::xid) returning *) insert into "aftercommit"."outbox" select * from rest."#,
            r#"drop them: delete from "aftercommit"."outbox" where age(xmin) > age('731'::xid)."#,
        ] {
            assert!(words.contains(sql), "{words}");
        }
    }
}
