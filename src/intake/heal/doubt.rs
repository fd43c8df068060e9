//! What is in doubt when a slot is lost, in words for the operator.

use crate::hold::{self, Checkpoint};
use crate::intake::Intake;
use crate::replication::{APPLICATION_NAME, Error, SystemIdentity, Walsender, connect_sql};

/// The error, and behind it which positions are in doubt, as far as the server can be asked.
pub(in crate::intake) async fn in_doubt(intake: &Intake, error: &Error) -> String {
    match ask(intake).await {
        Ok((checkpoint, system)) => format!("{error}\n{}", words(checkpoint, &system)),
        Err(_) => error.to_string(),
    }
}

async fn ask(intake: &Intake) -> Result<(Option<Checkpoint>, SystemIdentity), Error> {
    let sql = connect_sql(&intake.target, APPLICATION_NAME).await?;
    let checkpoint = hold::read_checkpoint(&sql, &intake.slot).await?;
    let mut walsender = Walsender::connect(&intake.target, APPLICATION_NAME).await?;
    let system = walsender.identify_system().await?;
    walsender.close().await;
    Ok((checkpoint, system))
}

fn words(checkpoint: Option<Checkpoint>, system: &SystemIdentity) -> String {
    let now = system.xlog_pos;
    match checkpoint {
        Some(at) if (at.system_id, at.timeline) == (system.system_id, system.timeline) => {
            format!(
                "In doubt: what was committed between {} (our checkpoint: everything below is settled) and {now} (where the \
                 server's WAL ends now). Some of it may not have been dispatched, some of it may have been",
                at.lsn
            )
        }
        Some(at) => {
            let other = match at.system_id == system.system_id {
                true => format!(
                    "timeline {}, and this is timeline {}",
                    at.timeline, system.timeline
                ),
                false => format!(
                    "system {}, and this is system {}",
                    at.system_id, system.system_id
                ),
            };
            format!(
                "In doubt: everything that was committed below {now} (where the server's WAL ends now). Our checkpoint, {}, is \
                 of {other}: it says nothing of positions here",
                at.lsn
            )
        }
        None => format!(
            "In doubt: everything that was committed below {now} (where the server's WAL ends now). There is no checkpoint: \
             nothing was settled yet"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Lsn;

    #[test]
    fn a_checkpoint_counts_only_for_its_own_history() {
        let system = SystemIdentity {
            system_id: 7,
            timeline: 2,
            xlog_pos: Lsn(0x20),
            database: "app".to_owned(),
        };
        let at = |system_id, timeline| {
            let lsn = Lsn(0x10);
            words(
                Some(Checkpoint {
                    system_id,
                    timeline,
                    lsn,
                }),
                &system,
            )
        };
        assert!(at(7, 2).contains("between 0/10 (our checkpoint"));
        assert!(at(7, 2).contains("and 0/20 (where"));
        assert!(at(7, 1).contains("0/10, is of timeline 1, and this is timeline 2"));
        assert!(at(8, 2).contains("0/10, is of system 8, and this is system 7"));
        assert!(words(None, &system).contains("below 0/20"));
    }
}
