//! What an operator can do when the hold table, or the checkpoint, cannot be written.

use crate::replication::Error;

/// The same error, with a remedy where one is known. Whoever writes goes on trying: nothing is confirmed meanwhile, so
/// nothing is lost, and what the operator mends works at the next attempt.
#[must_use]
pub fn remedied(error: Error) -> Error {
    match remedy(&error) {
        Some(words) => error.remedied(words),
        None => error,
    }
}

/// By SQLSTATE (Postgres documentation, appendix "PostgreSQL Error Codes").
fn remedy(error: &Error) -> Option<String> {
    let message = error.message()?;
    let sqlstate = message.sqlstate.as_str();
    let words = match (sqlstate.get(..2)?, sqlstate) {
        (_, "53100") => {
            "The server's disk is full: make room, or give it more. Until then the slot keeps the WAL, so take it from \
             something else than pg_wal"
        }
        (_, "53200") => {
            "The server has no memory left for it: look what takes it, or lower [limits] memory"
        }
        (_, "42501") => {
            "The daemon's role lacks a right: aftercommit init, by the owner or an administrator (--url), grants what it needs"
        }
        (_, "42P01" | "42883" | "42703" | "3F000") => {
            "Something that the daemon needs is missing, or of an older version: aftercommit init makes it"
        }
        (_, "25006") => {
            "Transactions are read-only here: a standby, or default_transaction_read_only is set for the role or the database"
        }
        (_, "55P03" | "57014") => {
            "Somebody holds a lock for too long (select * from pg_stat_activity where wait_event_type = 'Lock'), or \
             lock_timeout or statement_timeout is set for the role: alter role ... reset both"
        }
        (_, "54000") => {
            "A value is too large for an index that somebody has added to aftercommit.hold: drop that index"
        }
        (_, "23514") => {
            return Some(format!(
                "{} refuses it: a row of aftercommit.hold was changed by hand, or a check was added; look at it with \
                 aftercommit hold list, and mend or discard it",
                constraint(&message.message)
                    .map_or("A check".to_owned(), |name| format!("The check {name}"))
            ));
        }
        ("23", _) => {
            "A constraint, an index or a trigger that somebody has added to aftercommit.hold, aftercommit.checkpoint or the \
             outbox refuses it: drop that"
        }
        ("22", _) => {
            "A value is none for its column: was the type of a column of aftercommit.hold or of the outbox changed, or is a \
             trigger on it? The server's log has the statement"
        }
        _ => return None,
    };
    Some(words.to_owned())
}

/// The name in `... violates check constraint "name"`: the last one in double quotes, whatever the language puts first.
fn constraint(message: &str) -> Option<&str> {
    let name = message.strip_suffix('"')?;
    name.get(name.rfind('"')?..)
        .map(|name| name.trim_start_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::{Place, ServerMessage};

    fn said(sqlstate: &str, message: &str) -> Error {
        let message = ServerMessage {
            severity: "ERROR".to_owned(),
            sqlstate: sqlstate.to_owned(),
            message: message.to_owned(),
            ..ServerMessage::default()
        };
        Error::server(Place::Sql, message)
    }

    #[test]
    fn what_can_be_mended_is_told() {
        for (sqlstate, message, words) in [
            (
                "53100",
                "could not extend file \"base/1\": No space left on device",
                "disk is full",
            ),
            ("53200", "out of memory", "[limits] memory"),
            (
                "42501",
                "permission denied for table hold",
                "aftercommit init",
            ),
            (
                "42P01",
                "relation \"aftercommit.hold\" does not exist",
                "aftercommit init",
            ),
            ("42703", "column \"x\" does not exist", "aftercommit init"),
            (
                "23514",
                "new row for relation \"hold\" violates check constraint \"dead_is_never_due\"",
                "The check dead_is_never_due refuses it",
            ),
            (
                "23514",
                "verletzt Check-Constraint »x«",
                "A check refuses it",
            ),
            ("23505", "duplicate key value", "drop that"),
            (
                "23503",
                "violates foreign key constraint \"x\"",
                "drop that",
            ),
            ("22003", "smallint out of range", "The server's log"),
            (
                "25006",
                "cannot execute INSERT in a read-only transaction",
                "read-only",
            ),
            (
                "57014",
                "canceling statement due to statement timeout",
                "statement_timeout",
            ),
            (
                "55P03",
                "canceling statement due to lock timeout",
                "lock_timeout",
            ),
            (
                "54000",
                "index row size 8200 exceeds maximum",
                "drop that index",
            ),
        ] {
            let told = remedied(said(sqlstate, message)).to_string();
            assert!(told.contains(words), "{sqlstate}: {told}");
        }
    }

    #[test]
    fn what_passes_by_itself_needs_no_words() {
        for sqlstate in ["40001", "40P01", "57P01", "58030", "08006", "", "é"] {
            let error = said(sqlstate, "x");
            let before = error.to_string();
            assert_eq!(remedied(error).to_string(), before, "{sqlstate}");
        }
        let closed = Error::closed(Place::Sql);
        assert!(remedy(&closed).is_none());
    }
}
