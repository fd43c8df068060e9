//! Looks at slot, publication and table while a session streams, on a SQL connection of its own.
//!
//! The connection stays open between the looks: it is how we hear of a server that shuts down while the stream is not
//! being read, because the relay takes nothing. Such a server would wait for us for ever. And it is how we hear that the
//! walsender has gone without a sign of it on our connection: nothing can be settled any more, so nothing would be read.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use tracing::{error, warn};

use super::Intake;
use super::session::{Warned, check, refuse};
use crate::preflight::{self, Facts};
use crate::replication::{ANSWER_WITHIN, Error, Place, Policy, open_sql};

/// How often is looked again.
const INTERVAL: Duration = Duration::from_secs(20);
/// How often a new connection takes the place of the last. A server in smart shutdown stops within five seconds: this,
/// and what the session takes to leave.
const KNOCK: Duration = Duration::from_millis(2_500);
/// The pause before the next connection, when one has failed.
const RETRY: Duration = Duration::from_secs(1);

/// What the session has to know.
#[derive(Debug)]
pub(super) enum Seen {
    /// Slot, publication or table are not what they were, or the slot is not read by our walsender any more: stop.
    Drift(Error),
    /// The server is shutting down, or gone.
    Leaving,
}

/// Watches until the receiver is dropped. `walsender` is the process that reads the slot for us.
pub(super) fn watch(
    intake: Intake,
    facts: Facts,
    walsender: u32,
    mut warned: Warned,
) -> mpsc::Receiver<Seen> {
    let (seen, sees) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let Err(error) = tokio::select! {
                () = seen.closed() => return,
                ended = look(&intake, &facts, walsender, &mut warned) => ended,
            };
            let is_leaving = match error.sqlstate() {
                Some(sqlstate) => matches!(sqlstate, "57P01" | "57P03"),
                // A stream that is not being read does not show that nobody is there any more.
                None => error.place() == Place::Connect,
            };
            match error.policy() {
                Policy::Stop(_) => {
                    // What comes of it, is said by who decides it.
                    error!(%error, "slot, publication or table have changed");
                    let _ = seen.send(Seen::Drift(error)).await;
                    return;
                }
                _ if error.place() == Place::Streaming => {
                    let _ = seen.send(Seen::Drift(error)).await;
                    return;
                }
                _ if is_leaving => {
                    if seen.send(Seen::Leaving).await.is_err() {
                        return;
                    }
                }
                // The stream tells by itself whether the server is away.
                _ => warn!(%error, "could not look at slot, publication and table"),
            }
            tokio::select! {
                () = seen.closed() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    });
    sees
}

/// Looks again and again, until the connection ends or something has changed.
///
/// A connection is kept until the next one is there: a server in smart shutdown waits for its clients, and the only sign
/// is that it takes no new ones (57P03).
async fn look(
    intake: &Intake,
    facts: &Facts,
    walsender: u32,
    warned: &mut Warned,
) -> Result<std::convert::Infallible, Error> {
    let mut seen = Instant::now(); // by the preflight
    loop {
        let (sql, connection) =
            open_sql(&intake.target, "aftercommit watch", Some(ANSWER_WITHIN)).await?;
        let looked = async {
            still_reads(intake, &sql, walsender).await?;
            if seen.elapsed() >= INTERVAL {
                let now = check(intake, &sql, warned).await?;
                refuse(preflight::drift(facts, &now), warned)?;
                seen = Instant::now();
            }
            tokio::time::sleep(KNOCK).await;
            Ok::<(), Error>(())
        };
        tokio::select! {
            biased;
            ended = connection => {
                return Err(ended.err().unwrap_or_else(|| Error::closed(Place::Sql)));
            }
            looked = looked => looked?,
        }
    }
}

/// Fails where the slot is not read by this walsender. A lost slot is for the preflight to tell.
async fn still_reads(intake: &Intake, sql: &Client, walsender: u32) -> Result<(), Error> {
    let ours = i32::try_from(walsender).unwrap_or_default();
    let gone = sql
        .query_typed_opt(
            "select active_pid is distinct from $2 from pg_catalog.pg_replication_slots where slot_name = $1",
            &[(&intake.slot, Type::TEXT), (&ours, Type::INT4)],
        )
        .await
        .and_then(|row| row.map_or(Ok(false), |row| row.try_get(0)))
        .map_err(|error| Error::sql("look who reads the slot", error))?;
    match gone {
        true => Err(Error::judged(
            Place::Streaming,
            Policy::Reconnect,
            "our walsender does not read the slot any more",
        )),
        false => Ok(()),
    }
}
