//! A lost slot is made again, and what is owed is taken from the table.
//!
//! With `retention = "delete"` the rows in the outbox are exactly those that are not settled. So nothing is lost with a slot:
//! a new one is made together with a snapshot, the rows that this snapshot sees are dispatched ([`rows`]), and what is
//! committed later comes from the new slot. What was in flight, or was settled on a server that is no more, comes again.
//!
//! A crash between the two would leave a slot behind that looks sound, and is not. So a mark is committed before the old slot is
//! dropped ([`hold::begin_healing`]), and taken away once all rows from before the new slot are settled; who finds the mark
//! at a start begins anew. It loses nothing, however often: only settled rows are not in the table any more.
//!
//! The same is done for the first start on a table that has rows already, which are older than the slot.

mod conclusion;
mod doubt;
mod leftover;
mod rows;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use tracing::{info, warn};

use self::conclusion::HEALED;
pub(super) use self::conclusion::Healing;
pub(super) use self::doubt::in_doubt;
pub(super) use self::leftover::tell as tell_leftover;
pub(super) use self::rows::Rows;
use super::session::{History, expectation, refuse};
use super::{Confirmation, Intake};
use crate::control;
use crate::hold::{self, Checkpoint};
use crate::outbox::TableName;
use crate::pg::Lsn;
use crate::preflight::{self, Class, Facts, Severity, worst};
use crate::replication::{Error, Place, Policy, Stop, SystemIdentity, Walsender};

/// How often is looked whether all that the snapshot sees can be seen by everybody.
const LOOK: Duration = Duration::from_millis(20);
/// After so long that wait is warned of.
const PATIENCE: Duration = Duration::from_secs(5);

/// How it stands with the slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// It sends all that is owed; or another daemon reads it, and sees to it.
    Sound,
    /// It does, and nothing was ever settled: its first checkpoint can be written.
    Blank,
    /// It does not.
    Heal(Cause),
}

/// Why a slot does not send all that is owed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// It is not there, or is invalidated, or has failed us.
    Lost,
    /// It was made by a healing that did not come to its end.
    Interrupted,
    /// Nothing was ever settled, and the outbox has rows, which may be older than the slot.
    First,
    /// It has come along from a server, or a history of it, that ended. It may stand further than what has come of our last
    /// writes: of a standby that is not waited for, the slot may have the position, and the hold table not the tasks.
    Moved,
}

impl Cause {
    fn words(self) -> &'static str {
        match self {
            Cause::Lost => "the slot is lost",
            Cause::Interrupted => {
                "the slot was made again, but what was in the outbox then is not all settled"
            }
            Cause::First => {
                "the first start, and the outbox has rows, which may be older than the slot"
            }
            Cause::Moved => {
                "another server, or another timeline: the slot may stand further than what has come along of our last writes"
            }
        }
    }
}

/// Looks at slot, publication and table, and says how it stands with the slot. Where it has to be healed and may be, no other
/// daemon does it while `sql` is open.
///
/// # Errors
/// What keeps the daemon from running; a lost slot, too, where it is not to be healed.
pub(super) async fn examine(
    intake: &Intake,
    sql: &Client,
    history: &mut History,
    confirmed: &watch::Receiver<Confirmation>,
) -> Result<(Facts, Standing), Error> {
    let confirmed = *confirmed.borrow();
    let seen = look(intake, sql, history, confirmed).await?;
    if !matches!(seen, (_, Standing::Heal(_))) {
        return Ok(seen);
    }
    let locked = sql
        .query_typed_one(
            "select pg_try_advisory_lock(hashtext('aftercommit heal'), hashtext($1))",
            &[(&intake.slot, Type::TEXT)],
        )
        .await
        .and_then(|row| row.try_get::<_, bool>(0))
        .map_err(|e| Error::sql("lock the slot for healing", e))?;
    if !locked {
        let words = "another daemon heals the slot";
        return Err(Error::judged(Place::Preflight, Policy::StandBy, words));
    }
    // Whoever had the lock may have healed it meanwhile.
    look(intake, sql, history, confirmed).await
}

async fn look(
    intake: &Intake,
    sql: &Client,
    history: &mut History,
    confirmed: Confirmation,
) -> Result<(Facts, Standing), Error> {
    let report = preflight::preflight(sql, &expectation(intake)).await;
    let report = report.map_err(|error| Error::sql("the preflight", error))?;
    let facts = report.facts;
    let (lost, others): (Vec<_>, Vec<_>) = report
        .findings
        .into_iter()
        .partition(|finding| finding.severity == Severity::Fatal(Class::SlotLost));
    // A slot is not made again for a table or a publication that is not as it has to be.
    let active = facts
        .slot
        .as_ref()
        .is_some_and(|slot| slot.active_pid.is_some());
    if worst(&others).is_some() || !intake.heal {
        refuse([lost, others].concat(), &mut history.warned)?;
        return match hold::healing_since(sql, &intake.slot).await? {
            Some(since) if !active => Err(unfinished(intake, &since)),
            _ => Ok((facts, Standing::Sound)),
        };
    }
    refuse(others, &mut history.warned)?;
    let standing = if active {
        history.lost = false;
        Standing::Sound
    } else if is_marked(intake, sql, history, confirmed).await? {
        Standing::Heal(Cause::Interrupted)
    } else if !lost.is_empty() || history.lost {
        Standing::Heal(Cause::Lost)
    } else if let Some(checkpoint) = hold::read_checkpoint(sql, &intake.slot).await? {
        match is_of_this_history(sql, &checkpoint).await? {
            true => Standing::Sound,
            false => Standing::Heal(Cause::Moved),
        }
    } else if has_rows(sql, intake.columns.table()).await? {
        Standing::Heal(Cause::First)
    } else {
        Standing::Blank
    };
    Ok((facts, standing))
}

/// Now that the slot is ours: that it is not one which another daemon has made and not begun to read, while it reads what is
/// owed from the table. The mark is older than such a slot.
///
/// # Errors
/// When it is: leave it, and look again.
pub(super) async fn look_again(
    intake: &Intake,
    sql: &Client,
    history: &History,
    confirmed: &watch::Receiver<Confirmation>,
) -> Result<(), Error> {
    let confirmed = *confirmed.borrow();
    if is_marked(intake, sql, history, confirmed).await? {
        let words = "another daemon was about to read the slot, which it has made again";
        return Err(Error::judged(Place::Preflight, Policy::StandBy, words));
    }
    Ok(())
}

/// Whether the mark is set; one that is only left over is taken away.
async fn is_marked(
    intake: &Intake,
    sql: &Client,
    history: &History,
    confirmed: Confirmation,
) -> Result<bool, Error> {
    if hold::healing_since(sql, &intake.slot).await?.is_none() {
        return Ok(false);
    }
    let settled = history
        .healing
        .as_ref()
        .is_some_and(|healing| healing.is_settled(confirmed));
    if settled {
        hold::end_healing(sql, &intake.slot).await?;
        info!(slot = %intake.slot, "{HEALED}");
    }
    Ok(!settled)
}

/// Whether a checkpoint was written on this server, on its present timeline.
async fn is_of_this_history(sql: &Client, checkpoint: &Checkpoint) -> Result<bool, Error> {
    let here = sql
        .query_typed_one(
            "select (select system_identifier::text from pg_control_system()),
                    left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)",
            &[],
        )
        .await;
    let read =
        |row: tokio_postgres::Row| Ok((row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?));
    let (system_id, timeline) = here
        .and_then(read)
        .map_err(|e| Error::sql("ask for system and timeline", e))?;
    Ok(system_id.parse() == Ok(checkpoint.system_id)
        && u32::from_str_radix(&timeline, 16) == Ok(checkpoint.timeline))
}

fn unfinished(intake: &Intake, since: &str) -> Error {
    let words = format!(
        "slot \"{}\" was made again at {since}, and what was in the outbox then was not all dispatched before the daemon \
         stopped: it is older than the slot, which does not send it. Set [postgres] heal = true again (with [outbox] \
         retention = \"delete\"); or insert those rows again, and: update aftercommit.checkpoint set healing = null where \
         slot = '{}'",
        intake.slot, intake.slot
    );
    Error::judged(Place::Preflight, Policy::Stop(Stop::SlotLost), words)
}

async fn has_rows(sql: &Client, table: &TableName) -> Result<bool, Error> {
    sql.query_typed_one(
        &format!("select exists (select from {})", table.to_sql()),
        &[],
    )
    .await
    .and_then(|row| row.try_get(0))
    .map_err(|e| Error::sql("look whether the outbox has rows", e))
}

/// The slot's first checkpoint: nothing was owed when it was looked at.
pub(super) async fn note_beginning(
    intake: &Intake,
    sql: &Client,
    system: &SystemIdentity,
    lsn: Lsn,
) -> Result<(), Error> {
    let beginning = Checkpoint {
        system_id: system.system_id,
        timeline: system.timeline,
        lsn,
    };
    hold::note_beginning(sql, &intake.slot, &beginning).await
}

/// A slot that was made again, and what has to go before it.
pub(super) struct Healed {
    /// Where the slot begins.
    pub consistent_point: Lsn,
    /// The rows from before.
    pub rows: Rows,
}

/// Makes the slot again, after [`examine`] has found that it has to be, and with the same `sql`.
///
/// # Errors
/// Those of the server. Whatever has been done by then, the next attempt begins anew.
pub(super) async fn heal(
    intake: &Intake,
    sql: &Client,
    walsender: &mut Walsender,
    system: &SystemIdentity,
    cause: Cause,
) -> Result<Healed, Error> {
    warn!(
        slot = %intake.slot, cause = cause.words(),
        "making the slot again; what is in the outbox will be dispatched, and what was in flight comes twice"
    );
    hold::begin_healing(sql, &intake.slot, system.system_id, system.timeline).await?;
    drop_slot(sql, &intake.slot).await?;
    let_others_finish(sql, &intake.slot).await?;
    let pid = i32::try_from(walsender.backend_pid()).unwrap_or_default();
    let created = walsender.create_slot(&intake.slot);
    let created = control::watched(created, sql, pid, &mut |blockers| {
        for blocker in blockers {
            warn!(
                blocker = %blocker, remedy = blocker.remedy(),
                "the slot waits for an open transaction to end"
            );
        }
    })
    .await
    .map_err(taken)?;
    let (rows, snapshot) = rows::open(intake, &created).await?;
    wait_until_visible(sql, &snapshot).await?;
    info!(
        slot = %intake.slot, consistent_point = %created.consistent_point,
        "made the slot again; dispatching what is in the outbox"
    );
    Ok(Healed {
        consistent_point: created.consistent_point,
        rows,
    })
}

/// Only a slot that can be nobody else's: names of slots belong to the whole cluster.
async fn drop_slot(sql: &Client, slot: &str) -> Result<(), Error> {
    sql.execute_typed(
        "select pg_drop_replication_slot(slot_name) from pg_catalog.pg_replication_slots \
         where slot_name = $1 and slot_type = 'logical' and plugin = 'pgoutput' and database = current_database() \
           and not temporary and active_pid is null",
        &[(&slot, Type::TEXT)],
    )
    .await
    .map_err(|e| Error::sql("drop the lost slot", e))?;
    Ok(())
}

/// Who writes down what is settled holds this lock, and holds the slot: there is none now, so nobody begins any more. What was
/// begun ends before the snapshot, which else would see rows that are settled.
async fn let_others_finish(sql: &Client, slot: &str) -> Result<(), Error> {
    sql.query_typed("select aftercommit.hold_lock($1)", &[(&slot, Type::TEXT)])
        .await
        .map_err(|e| Error::sql("wait for what is being settled", e))?;
    Ok(())
}

/// Somebody else has made the slot at the same moment (42710): look again.
fn taken(error: Error) -> Error {
    match error.sqlstate() {
        Some("42710") => Error::judged(Place::Preflight, Policy::Reconnect, error.to_string()),
        _ => error,
    }
}

/// The snapshot sees what was in the WAL as committed. Others see it when the commit is over, and with synchronous
/// replication that can take a while; so it is waited for here. The gate is asked about one transaction, and not about all
/// that the rows are from.
async fn wait_until_visible(sql: &Client, snapshot: &str) -> Result<(), Error> {
    let since = Instant::now();
    let mut warned = false;
    loop {
        let visible = sql
            .query_typed_one(
                "select not exists (select from pg_snapshot_xip(pg_current_snapshot()) xid \
                 where pg_visible_in_snapshot(xid, $1::text::pg_snapshot))",
                &[(&snapshot, Type::TEXT)],
            )
            .await
            .and_then(|row| row.try_get::<_, bool>(0))
            .map_err(|e| Error::sql("look whether the rows are visible", e))?;
        if visible {
            return Ok(());
        }
        if !warned && since.elapsed() >= PATIENCE {
            warned = true;
            warn!(
                "waiting for commits to become visible, as a synchronous standby that does not answer makes them wait"
            );
        }
        sleep(LOOK).await;
    }
}
