//! Standbys that may take over: do they keep a copy of the slot? Asked once for each primary.

use tracing::{debug, warn};

use super::Intake;
use crate::preflight;
use crate::replication::{Error, connect_sql};

/// Looks at the standbys that `[gate] replicas` names, beside everything else, and warns of what they need. One that is away
/// is left out: the gate tells of it.
pub(super) fn look(intake: &Intake) {
    for target in &intake.replicas {
        let (target, slot) = (target.clone(), intake.slot.clone());
        tokio::spawn(async move {
            let looked = async {
                let sql = connect_sql(&target, "aftercommit watch").await?;
                let findings = preflight::check_replica(&sql, &slot).await;
                findings.map_err(|error| Error::sql("look at a standby", error))
            };
            match looked.await {
                Ok(findings) => findings.iter().for_each(|finding| warn!("{finding}")),
                Err(error) => debug!(%error, "could not look at a standby"),
            }
        });
    }
}
