//! A standby that may take over: what it needs to keep a copy of the slot (documentation, chapter "Logical Decoding
//! Concepts", section "Replication Slot Synchronization").

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use super::Finding;
use crate::control::{ident, literal};

/// How a standby is set up.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Replica {
    sync_replication_slots: bool,
    hot_standby_feedback: bool,
    primary_slot_name: String,
    /// `None` where our role may not read it.
    primary_conninfo: Option<String>,
    /// It has the slot already.
    has_slot: bool,
}

/// Looks whether the standby that `client` leads to keeps a copy of the slot; the findings are warnings.
///
/// Nothing is found on servers before 17, which cannot, and on one that is no standby any more.
///
/// # Errors
/// Those of the connection.
pub async fn check_replica(client: &Client, slot: &str) -> Result<Vec<Finding>, Error> {
    // What the role may not see is not in pg_settings; current_setting would fail.
    let row = client
        .query_typed_opt(
            "select current_setting('sync_replication_slots', true) is not distinct from 'on', current_setting('hot_standby_feedback') = 'on', \
                    current_setting('primary_slot_name'), \
                    (select setting from pg_catalog.pg_settings where name = 'primary_conninfo'), \
                    exists (select from pg_catalog.pg_replication_slots where slot_name = $1 and not temporary) \
             where current_setting('server_version_num')::int4 >= 170000 and pg_is_in_recovery()",
            &[(&slot, Type::TEXT)],
        )
        .await?;
    let Some(row) = row else {
        return Ok(Vec::new());
    };
    let replica = Replica {
        sync_replication_slots: row.try_get(0)?,
        hot_standby_feedback: row.try_get(1)?,
        primary_slot_name: row.try_get(2)?,
        primary_conninfo: row.try_get(3)?,
        has_slot: row.try_get(4)?,
    };
    Ok(judge(&replica, slot))
}

fn judge(replica: &Replica, slot: &str) -> Vec<Finding> {
    let mut missing = Vec::new();
    let mut sql = Vec::new();
    let mut set = |name: &str, value: &str| {
        sql.push(format!("alter system set {name} = {}", literal(value)));
    };
    if !replica.sync_replication_slots {
        missing.push("sync_replication_slots is off");
        set("sync_replication_slots", "on");
    }
    if !replica.hot_standby_feedback {
        missing.push("hot_standby_feedback is off");
        set("hot_standby_feedback", "on");
    }
    if replica.primary_slot_name.is_empty() {
        missing.push("primary_slot_name is empty");
        set("primary_slot_name", "<its physical slot on the primary>");
    }
    if replica
        .primary_conninfo
        .as_deref()
        .is_some_and(|conninfo| !names_database(conninfo))
    {
        missing.push("primary_conninfo has no dbname");
        set("primary_conninfo", "<as it is, with dbname=postgres>");
    }
    if missing.is_empty() {
        return Vec::new();
    }
    let not_yet = match replica.has_slot {
        true => "does not keep up its copy of",
        false => "does not keep a copy of",
    };
    let finding = Finding::warning(format!(
        "a standby that [gate] replicas names {not_yet} slot {}, which is lost when it takes over: {}",
        ident(slot),
        missing.join(", ")
    ))
    .remedy("on the standby:");
    sql.push("select pg_reload_conf()".to_owned());
    vec![sql.into_iter().fold(finding, Finding::sql)]
}

/// Whether a connection string names a database: `name = value` pairs, or a URL with a path.
fn names_database(conninfo: &str) -> bool {
    if let Some((_, rest)) = conninfo.split_once("://") {
        let path = rest.split_once('/').map_or("", |(_, path)| path);
        return !path.is_empty() && !path.starts_with('?') || rest.contains("dbname=");
    }
    let squeezed: String = conninfo.split_whitespace().collect::<Vec<_>>().join(" ");
    squeezed
        .replace(" =", "=")
        .split(' ')
        .any(|pair| pair.starts_with("dbname="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_a_standby_lacks() {
        let ready = Replica {
            sync_replication_slots: true,
            hot_standby_feedback: true,
            primary_slot_name: "standby".to_owned(),
            primary_conninfo: Some("host=a dbname=postgres".to_owned()),
            has_slot: true,
        };
        assert_eq!(judge(&ready, "s"), []);
        let hidden = Replica {
            primary_conninfo: None,
            ..ready.clone()
        };
        assert_eq!(judge(&hidden, "s"), []);
        let bare = Replica {
            sync_replication_slots: false,
            hot_standby_feedback: false,
            primary_slot_name: String::new(),
            primary_conninfo: Some("host=a user=dbname".to_owned()),
            has_slot: false,
        };
        let [found] = &judge(&bare, "s")[..] else {
            panic!("one finding");
        };
        for words in [
            "does not keep a copy of slot \"s\"",
            "sync_replication_slots is off, hot_standby_feedback is off, primary_slot_name is empty, \
             primary_conninfo has no dbname",
            "alter system set hot_standby_feedback = 'on'",
        ] {
            assert!(found.to_string().contains(words), "{found}");
        }
        assert_eq!(found.sql.len(), 5);
    }

    #[test]
    fn finds_the_database_in_a_connection_string() {
        for (conninfo, names) in [
            ("", false),
            ("host=h user=u", false),
            ("host=h dbname=d", true),
            ("dbname = d", true),
            ("postgres://u@h", false),
            ("postgres://u@h/?sslmode=require", false),
            ("postgres://u@h/d", true),
            ("postgres://u@h?dbname=d", true),
        ] {
            assert_eq!(names_database(conninfo), names, "{conninfo}");
        }
    }
}
