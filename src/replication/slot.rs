//! Making the slot on the walsender session, together with a snapshot of the very moment at which it begins.
//!
//! Postgres documentation, chapter "Streaming Replication Protocol". What the snapshot sees and what the slot sends are,
//! together, everything that is ever committed, and no row is in both.

use super::error::Error;
use super::walsender::Walsender;
use crate::pg::Lsn;

/// A slot that has just been made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreatedSlot {
    /// Where it begins: it sends the transactions whose commit record starts here or later.
    pub consistent_point: Lsn,
    /// Name of the snapshot that sees all others. Other sessions can take it (`SET TRANSACTION SNAPSHOT`) until this session
    /// gets its next command.
    pub snapshot: String,
}

impl Walsender {
    /// Makes a logical slot for pgoutput, and exports the snapshot that belongs to it. Waits, without a limit, for every
    /// transaction of the cluster that has written and is open.
    ///
    /// If the future is dropped before it is done, the session is of no more use, and the server may still make the slot.
    ///
    /// # Errors
    /// SQLSTATE 42710 (there is one), 53400 (no slot is free) and more; see [`Error::policy`].
    pub async fn create_slot(&mut self, slot: &str) -> Result<CreatedSlot, Error> {
        let command = create_command(slot, self.server_version());
        let rows = self.simple_query(&command).await?;
        rows.first()
            .and_then(|row| created(row))
            .ok_or_else(|| self.unexpected())
    }
}

/// Slot name, consistent point, snapshot, plugin.
fn created(row: &[Option<String>]) -> Option<CreatedSlot> {
    Some(CreatedSlot {
        consistent_point: row.get(1)?.as_deref()?.parse().ok()?,
        snapshot: row.get(2)?.clone()?,
    })
}

/// 15 put the options in parentheses, 17 added FAILOVER: standbys keep a copy of such a slot, if they are told to.
fn create_command(slot: &str, server_version: u32) -> String {
    let options = match server_version {
        ..150_000 => "EXPORT_SNAPSHOT",
        150_000..170_000 => "(SNAPSHOT 'export')",
        _ => "(SNAPSHOT 'export', FAILOVER true)",
    };
    let slot = slot.replace('"', "\"\"");
    format!("CREATE_REPLICATION_SLOT \"{slot}\" LOGICAL pgoutput {options}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_syntax() {
        for (version, command) in [
            (
                140_020,
                r#"CREATE_REPLICATION_SLOT "s" LOGICAL pgoutput EXPORT_SNAPSHOT"#,
            ),
            (
                150_018,
                r#"CREATE_REPLICATION_SLOT "s" LOGICAL pgoutput (SNAPSHOT 'export')"#,
            ),
            (
                180_000,
                r#"CREATE_REPLICATION_SLOT "s" LOGICAL pgoutput (SNAPSHOT 'export', FAILOVER true)"#,
            ),
        ] {
            assert_eq!(create_command("s", version), command);
        }
    }

    #[test]
    fn reads_the_answer() {
        let row = |values: [Option<&str>; 4]| values.map(|value| value.map(str::to_owned));
        let slot = row([
            Some("s"),
            Some("0/16B3748"),
            Some("0-1-1"),
            Some("pgoutput"),
        ]);
        assert_eq!(
            created(&slot),
            Some(CreatedSlot {
                consistent_point: Lsn(0x016b_3748),
                snapshot: "0-1-1".to_owned()
            })
        );
        assert_eq!(created(&row([Some("s"), Some("0/1"), None, None])), None);
        assert_eq!(created(&row([Some("s"), Some("x"), Some("y"), None])), None);
        assert_eq!(created(&[]), None);
    }
}
