//! The slot: there, ours, alive.

use crate::control::{create_slot, ident, literal};
use crate::preflight::facts::{Facts, Slot};
use crate::preflight::{Class, Expectation, Finding};

pub(super) fn judge(facts: &Facts, expected: &Expectation) -> Vec<Finding> {
    let name = ident(&expected.slot);
    let Some(slot) = &facts.slot else {
        return vec![missing(facts, expected)];
    };
    if let Some(owner) = not_ours(slot, facts) {
        return vec![taken(&owner, facts, expected)];
    }
    let mut findings = Vec::new();
    if let Some(reason) = invalidated(slot) {
        findings.push(
            Finding::fatal(
                Class::SlotLost,
                format!(
                    "slot {name} is invalidated ({reason}): its WAL is gone. What was committed after {} is in doubt",
                    slot.confirmed_flush_lsn.as_deref().unwrap_or("its beginning")
                ),
            )
            .remedy(
                format!("{HEAL}. By hand: make it again, as below, which starts at that moment; {BY_HAND}. Raise \
                 max_slot_wal_keep_size if the limit was too low"),
            )
            .sql(drop_slot(&expected.slot))
            .sql(create_slot(&expected.slot, facts.server_version)),
        );
        return findings;
    }
    if slot.two_phase == Some(true) {
        findings.push(
            Finding::fatal(
                Class::Configuration,
                format!("slot {name} has two_phase: it sends prepared rows before they are committed"),
            )
            .remedy(
                "make it again, as below, while nothing is inserted: rows that it has not sent yet have to be inserted \
                 again",
            )
            .sql(drop_slot(&expected.slot))
            .sql(create_slot(&expected.slot, facts.server_version)),
        );
    }
    if slot.wal_status.as_deref() == Some("unreserved") {
        findings.push(
            Finding::warning(format!(
                "slot {name} is behind by more than max_slot_wal_keep_size ({}): its WAL goes at the next checkpoint",
                facts.max_slot_wal_keep_size
            ))
            .remedy("raise it until we have caught up (-1 is no limit); then: select pg_reload_conf()")
            .sql("alter system set max_slot_wal_keep_size = '-1'"),
        );
    }
    findings
}

/// What the daemon does about it by itself.
const HEAL: &str = "with [postgres] heal = true (and [outbox] retention = \"delete\") a new one is made, and what is in the \
                    outbox is dispatched: nothing is lost";
/// What a new slot leaves to the operator.
const BY_HAND: &str =
    "rows that were committed before it and have not been dispatched have to be inserted again";

fn missing(facts: &Facts, expected: &Expectation) -> Finding {
    Finding::fatal(
        Class::SlotLost,
        format!("slot {} does not exist", ident(&expected.slot)),
    )
    .remedy(format!(
        "if it has never been made: aftercommit init. If it was dropped, or another server has taken over: {HEAL}. By hand: \
         a new one, as below, starts at that moment; {BY_HAND}"
    ))
    .sql(create_slot(&expected.slot, facts.server_version))
}

/// What the slot is, where it cannot be one of ours.
fn not_ours(slot: &Slot, facts: &Facts) -> Option<String> {
    if slot.slot_type != "logical" {
        return Some(format!("a {} one", slot.slot_type));
    }
    if slot.plugin.as_deref() != Some("pgoutput") {
        let plugin = slot.plugin.as_deref().unwrap_or("no");
        return Some(format!("one of the plugin {plugin:?}, not \"pgoutput\""));
    }
    if slot.database.as_deref() != Some(facts.database.as_str()) {
        let database = slot.database.as_deref().unwrap_or("none");
        return Some(format!(
            "one of database {database:?}, not {:?}",
            facts.database
        ));
    }
    slot.temporary
        .then(|| "a temporary one, which goes with its session".to_owned())
}

/// The name is somebody else's. To drop it could lose what is not ours: take another name.
fn taken(owner: &str, facts: &Facts, expected: &Expectation) -> Finding {
    let free = free_name(&expected.slot, &facts.database);
    Finding::fatal(
        Class::Configuration,
        format!(
            "slot {} is {owner}; names of slots belong to the whole cluster",
            ident(&expected.slot)
        ),
    )
    .remedy(format!(
        "set [postgres] slot = \"{free}\", and make it, as below or by: aftercommit init"
    ))
    .sql(create_slot(&free, facts.server_version))
}

/// `<slot>_<database>`, of the characters that a slot's name may have.
fn free_name(slot: &str, database: &str) -> String {
    let mut name: String = format!("{slot}_{database}")
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c if c.is_ascii_lowercase() || c.is_ascii_digit() => c,
            _ => '_',
        })
        .collect();
    name.truncate(63);
    if name == slot {
        name.truncate(61);
        name.push_str("_2");
    }
    name
}

fn invalidated(slot: &Slot) -> Option<String> {
    if let Some(reason) = &slot.invalidation_reason {
        return Some(reason.clone());
    }
    if slot.conflicting == Some(true) {
        return Some("conflict with recovery".to_owned());
    }
    (slot.wal_status.as_deref() == Some("lost")).then(|| "wal_status is lost".to_owned())
}

fn drop_slot(slot: &str) -> String {
    format!(
        "select pg_catalog.pg_drop_replication_slot({})",
        literal(slot)
    )
}
