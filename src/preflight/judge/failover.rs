//! What a standby needs to take over the slot, too: Postgres 17 and newer (documentation, chapter "Logical Replication",
//! section "Logical Replication Failover").

use crate::control::{ident, literal};
use crate::preflight::facts::Facts;
use crate::preflight::{Expectation, Finding};

pub(super) fn judge(facts: &Facts, expected: &Expectation) -> Option<Finding> {
    let slot = facts.slot.as_ref()?;
    let name = ident(&expected.slot);
    match slot.failover? {
        false => Some(
            Finding::warning(format!(
                "slot {name} is not kept by standbys (failover is false): after a failover it is lost"
            ))
            .remedy(format!(
                "stop the daemon, and: psql \"<the daemon's URL as name=value pairs> replication=database\" -c \
                 'ALTER_REPLICATION_SLOT {name} (FAILOVER true)'"
            )),
        ),
        true if facts.physical_slots.is_empty() || facts.synchronized_standby_slots.as_deref() != Some("") => None,
        true => Some(
            Finding::warning(
                "synchronized_standby_slots is empty: tasks can leave before a standby has their rows, and when it takes \
                 over, such a row never existed",
            )
            .remedy("name the slots of the standbys that may take over, on the primary")
            .sql(format!(
                "alter system set synchronized_standby_slots = {}",
                literal(&facts.physical_slots.join(", "))
            ))
            .sql("select pg_reload_conf()"),
        ),
    }
}
