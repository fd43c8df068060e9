//! A healing has come to its end when all is settled that was in the outbox: then the mark goes.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::hold;
use crate::intake::{Confirmation, Intake};
use crate::pg::Lsn;
use crate::replication::connect_sql;

/// How long the end of a session waits for the mark to be taken away.
const CONCLUDE_WITHIN: Duration = Duration::from_secs(2);
/// The pause before that is tried again.
const RETRY: Duration = Duration::from_secs(1);
pub(super) const HEALED: &str = "the slot is healed: all that was in the outbox is settled";

/// What is known of a healing: it has come to its end when all below this position is settled.
#[derive(Debug)]
pub(in crate::intake) struct Healing {
    generation: u64,
    until: Lsn,
    conclusion: JoinHandle<()>,
}

impl Healing {
    /// Takes the mark away as soon as all is settled, as long as the daemon lives.
    pub(in crate::intake) fn watch(
        intake: &Intake,
        generation: u64,
        until: Lsn,
        confirmed: watch::Receiver<Confirmation>,
    ) -> Healing {
        Healing {
            generation,
            until,
            conclusion: tokio::spawn(conclude(intake.clone(), generation, until, confirmed)),
        }
    }

    /// Whether all is settled, by this word of the keeper.
    pub(super) fn is_settled(&self, confirmed: Confirmation) -> bool {
        confirmed.generation == self.generation && confirmed.lsn.lsn() >= self.until
    }

    /// Waits for the mark to be taken away, for a moment, if all is settled.
    pub(in crate::intake) async fn conclude(&mut self, confirmed: Confirmation) {
        if self.is_settled(confirmed) && !self.conclusion.is_finished() {
            let _ = timeout(CONCLUDE_WITHIN, &mut self.conclusion).await;
        }
    }
}

async fn conclude(
    intake: Intake,
    generation: u64,
    until: Lsn,
    mut confirmed: watch::Receiver<Confirmation>,
) {
    let over = confirmed.wait_for(|now| {
        now.generation > generation || now.generation == generation && now.lsn.lsn() >= until
    });
    match over.await.map(|now| now.generation) {
        Ok(now) if now == generation => {}
        // Another healing, another server, or the end.
        _ => return,
    }
    loop {
        let ended = async {
            let sql = connect_sql(&intake.target, "aftercommit heal").await?;
            hold::end_healing(&sql, &intake.slot).await
        };
        match ended.await {
            Ok(()) => break,
            Err(error) => warn!(%error, "could not note that the slot is healed; will try again"),
        }
        sleep(RETRY).await;
    }
    info!(slot = %intake.slot, "{HEALED}");
}
