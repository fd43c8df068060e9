//! Our walsender must not be a synchronous standby: commits would wait for our acknowledgement, and we wait at the gate
//! for commits to become visible.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use super::{Class, Expectation, Finding};

/// Checks, once the stream has started, that walsender `pid` reads the slot on the very server that `client` is
/// connected to, and that commits do not wait for it.
///
/// What the server tells of a walsender's synchronous state is hidden from a plain role, and says `async` until the
/// first answer of the standby; the names in `synchronous_standby_names`, which [`super::judge`] looks at, tell early.
///
/// # Errors
/// Those of the connection.
pub async fn check_walsender(
    client: &Client,
    expected: &Expectation,
    pid: i32,
) -> Result<Vec<Finding>, Error> {
    let row = client
        .query_typed_one(
            "select (select active_pid from pg_catalog.pg_replication_slots where slot_name = $1), \
                    (select sync_state from pg_catalog.pg_stat_replication where pid = $2)",
            &[(&expected.slot, Type::TEXT), (&pid, Type::INT4)],
        )
        .await?;
    let active: Option<i32> = row.try_get(0)?;
    let state: Option<&str> = row.try_get(1)?;
    let mut findings = Vec::new();
    if active != Some(pid) {
        findings.push(
            Finding::fatal(
                Class::Configuration,
                format!(
                    "the server of the SQL connection does not know our walsender (pid {pid}): \
                     slot \"{}\" is {} there",
                    expected.slot,
                    match active {
                        Some(other) => format!("read by pid {other}"),
                        None => "not active".to_owned(),
                    }
                ),
            )
            .remedy("[postgres] url must lead both connections to one server: name one host, and no pooler or balancer"),
        );
    }
    match state {
        None | Some("async") => {}
        Some(state) => findings.push(synchronous(&format!("walsender pid {pid} is {state}"))),
    }
    Ok(findings)
}

/// The finding that `synchronous_standby_names` picks us.
pub(super) fn judge_names(names: &str, application_name: &str) -> Option<Finding> {
    let picked = standby_names(names)
        .into_iter()
        .find(|name| name == "*" || name.eq_ignore_ascii_case(application_name))?;
    Some(synchronous(&format!(
        "synchronous_standby_names = {names:?} holds {picked:?}, which is our application_name {application_name:?} too"
    )))
}

fn synchronous(how: &str) -> Finding {
    Finding::fatal(
        Class::Configuration,
        format!(
            "our walsender counts as a synchronous standby ({how}): commits would wait for us, and we for them"
        ),
    )
    .remedy(
        "name the standbys, each by its own application_name, and not \"*\": \
         alter system set synchronous_standby_names = 'FIRST 1 (...)'; select pg_reload_conf()",
    )
}

/// The names in `[FIRST|ANY] n (a, "b", *)`, or `a, b`, the older form (documentation, chapter "Replication").
fn standby_names(setting: &str) -> Vec<String> {
    let list = match setting.split_once('(') {
        Some((head, rest)) if !head.contains('"') => {
            rest.rsplit_once(')').map_or(rest, |(list, _)| list)
        }
        _ => setting,
    };
    let mut names = Vec::new();
    let mut name = String::new();
    let mut quoted = false;
    for c in list.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(std::mem::take(&mut name)),
            c if c.is_whitespace() && !quoted => {}
            c => name.push(c),
        }
    }
    names.push(name);
    names.retain(|name| !name.is_empty());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_names_of_standbys() {
        for (setting, names) in [
            ("", vec![]),
            ("*", vec!["*"]),
            ("s1", vec!["s1"]),
            ("s1, s2", vec!["s1", "s2"]),
            ("FIRST 2 (s1, \"s 2\", s3)", vec!["s1", "s 2", "s3"]),
            ("any 1(*)", vec!["*"]),
            ("2 (s1,s2)", vec!["s1", "s2"]),
            ("\"odd(name\", s2", vec!["odd(name", "s2"]),
        ] {
            assert_eq!(standby_names(setting), names, "{setting}");
        }
    }

    #[test]
    fn refuses_to_be_a_synchronous_standby() {
        assert!(judge_names("FIRST 1 (replica_a)", "aftercommit").is_none());
        for bad in ["*", "ANY 1 (replica_a, *)", "AfterCommit, replica_a"] {
            assert!(judge_names(bad, "aftercommit").is_some(), "{bad}");
        }
    }
}
