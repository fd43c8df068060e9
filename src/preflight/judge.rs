//! From facts to findings. Pure.

mod failover;
mod holding;
mod partitions;
mod publication;
mod slot;
mod table;

pub use table::judge as judge_table;

use super::facts::{Facts, OLDEST};
use super::{Class, Expectation, Finding, Severity, standby};
use crate::control::ident;

/// What is not as it has to be; fatal findings first, in the order in which they are best mended.
pub fn judge(facts: &Facts, expected: &Expectation) -> Vec<Finding> {
    // Where no slot can be, all the rest would be missing too, and would look as if it had been lost.
    let mut findings = judge_ground(facts);
    if !findings.is_empty() {
        return findings;
    }
    findings.extend(standby::judge_names(
        &facts.synchronous_standby_names,
        &expected.application_name,
    ));
    findings.extend(encoding(facts));
    findings.extend(judge_table(facts, expected));
    findings.extend(publication::judge(facts, expected));
    findings.extend(slot::judge(facts, expected));
    findings.extend(failover::judge(facts, expected));
    findings.extend(holding::judge(facts, expected));
    findings.extend(partitions::judge(facts, expected));
    findings.extend(judge_role(facts));
    findings.sort_by_key(|finding| finding.severity == Severity::Warning);
    findings
}

/// Without these no slot can be made at all: the version, a primary, `wal_level`.
pub fn judge_ground(facts: &Facts) -> Vec<Finding> {
    if facts.server_version < OLDEST {
        let old = format!(
            "the server is Postgres {}; {} is the oldest that works",
            facts.server_version / 10_000,
            OLDEST / 10_000
        );
        return vec![Finding::fatal(Class::Configuration, old).remedy("upgrade the server")];
    }
    let mut findings = Vec::new();
    if facts.in_recovery {
        findings.push(
            Finding::fatal(
                Class::Temporary,
                "the server is in recovery: a standby, or not started up yet",
            )
            .remedy("[postgres] url must name the primary; it is tried again, in case this one is promoted"),
        );
    }
    if facts.wal_level != "logical" {
        findings.push(
            Finding::fatal(
                Class::Configuration,
                format!("wal_level is {:?}; it must be \"logical\"", facts.wal_level),
            )
            .remedy(
                "set it, and restart the server. On Amazon RDS and Aurora: rds.logical_replication = 1 in the parameter \
                 group; on Google Cloud SQL: the flag cloudsql.logical_decoding = on",
            )
            .sql("alter system set wal_level = 'logical'"),
        );
    }
    findings
}

fn encoding(facts: &Facts) -> Option<Finding> {
    (facts.encoding == "SQL_ASCII").then(|| {
        Finding::warning(format!(
            "database {:?} has the encoding SQL_ASCII: a row whose bytes are not UTF-8 cannot be read, and stops us",
            facts.database
        ))
        .remedy("write UTF-8 only, or move to a database with the encoding UTF8")
    })
}

/// What the role lacks that the daemon logs in as, where it was asked about.
pub fn judge_role(facts: &Facts) -> Option<Finding> {
    let (role, database) = (facts.role.as_ref()?, &facts.database);
    let name = ident(&role.name);
    let fatal = |what| Finding::fatal(Class::Configuration, what);
    if !role.exists {
        return Some(
            fatal(format!("the daemon's role {name} does not exist"))
                .remedy(format!(
                    "make it, give it a password (in psql: \\password {name}), and run init again"
                ))
                .sql(format!("create role {name} login replication")),
        );
    }
    if !role.replication {
        let lacks = format!("the daemon's role {name} may not replicate");
        return Some(if role.managed {
            fatal(lacks).sql(format!("grant rds_replication to {name}"))
        } else {
            fatal(lacks).sql(format!("alter role {name} replication"))
        });
    }
    if !role.login {
        return Some(
            fatal(format!("the daemon's role {name} may not log in"))
                .sql(format!("alter role {name} login")),
        );
    }
    if !role.connect {
        return Some(
            fatal(format!(
                "the daemon's role {name} may not connect to database {database:?}"
            ))
            .sql(format!(
                "grant connect on database {} to {name}",
                ident(database)
            )),
        );
    }
    None
}

/// What has changed since an earlier look, beyond what [`judge`] finds in the new facts by themselves.
pub fn drift(old: &Facts, new: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (Some(a), Some(b)) = (&old.table, &new.table)
        && a.oid != b.oid
    {
        findings.push(
            Finding::warning(format!(
                "the outbox table was replaced: its OID was {} and is {}",
                a.oid, b.oid
            ))
            .remedy(
                "a publication follows the old table: rows that were inserted into the new one before it was added to \
                 the publication are not sent; insert them again",
            ),
        );
    }
    if let (Some(a), Some(b)) = (&old.publication, &new.publication)
        && a.oid != b.oid
    {
        findings.push(
            Finding::warning(format!(
                "the publication was dropped and made again: its OID was {} and is {}",
                a.oid, b.oid
            ))
            .remedy(
                "rows that were inserted while there was none are skipped by Postgres 18, and stop older servers with \
                 the error 42704: compare the outbox with what has been dispatched",
            ),
        );
    }
    if old.server_version / 10_000 != new.server_version / 10_000 {
        findings.push(Finding::warning(format!(
            "the server was Postgres {} and is {}",
            old.server_version / 10_000,
            new.server_version / 10_000
        )));
    }
    findings
}

#[cfg(test)]
mod tests;
